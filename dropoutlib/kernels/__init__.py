"""Fast paths behind :mod:`dropoutlib.noise`: one module a device, each with the question when it may be used.

A fast path is eager only. Under a transform (``torch.compile``, ``torch.func``, export, fake tensors, tensor
subclasses) the plain torch expressions of :mod:`dropoutlib.noise` run instead, so a kernel needs no rule for any
of them. A kernel of another device is one more module here and one more branch there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["is_eager"]

# torch has no public question for these two (autograd.Function.apply asks the first). Were a name to vanish,
# every call would take the plain path: slower, never wrong.
_transforms: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


def is_eager(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary tensor with memory, seen by no transform and no dispatch mode.

    The order matters: a size or an address must not be asked for while a graph is being recorded.
    """
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if _transforms() or _dispatch_modes() or x.layout is not torch.strided:
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    try:
        return x.data_ptr() != 0  # raises for the gradients of torch.autograd.grad(is_grads_batched=True)
    except RuntimeError:
        return False
