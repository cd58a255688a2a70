"""Fast paths behind :mod:`dropoutlib.noise`: one module a device, each with the question when it may be used.

A fast path is eager only (``is_eager`` in ``arguments.py``). Under a transform (``torch.compile``, ``torch.func``,
export, fake tensors, tensor subclasses) the plain torch expressions of :mod:`dropoutlib.noise` run instead, so a kernel
needs no rule for any of them. A kernel of another device is one more module here, one branch where masks are drawn
(``draw_mask`` in ``noise/laws.py``) and one where they are applied (``select`` in ``noise/applying.py``).
"""
