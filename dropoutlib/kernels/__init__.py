"""Fast paths behind :mod:`dropoutlib.noise`: one module a device, each with the question when it may be used.

A fast path is eager only (``is_eager`` in ``arguments.py``). Under a transform (``torch.compile``, ``torch.func``,
export, fake tensors, tensor subclasses) the plain torch expressions of :mod:`dropoutlib.noise` run instead, so a kernel
needs no rule for any of them. ``cpu`` draws masks and applies them in torch's operations; ``gpu`` draws noise where it
is applied, by the kernels of ``triton_kernels``. A kernel of another device is one more module here, one branch where
noise is drawn (``noise/laws.py``) and one where it is applied (``noise/applying.py``).
"""
