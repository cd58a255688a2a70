"""Elementwise noise on a GPU, drawn where it is applied: a seed of eight bytes is all that backward needs to see it.

The kernels are in :mod:`dropoutlib.kernels.triton_kernels`. They draw a seed from torch's generator of the device, so
that ``torch.manual_seed``, ``generator=``, activation checkpointing and captured graphs decide the noise as they do for
torch's own, and number the elements in the order of a contiguous tensor: a seed gives the same noise whatever the
strides are, and a mask that is drawn is the one that would have been applied. Triton comes with PyTorch for CUDA;
without it the plain expressions of :mod:`dropoutlib.noise` run.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from dropoutlib.arguments import in_forward_mode, is_eager

__all__ = ["FAST", "apply_factors", "apply_mask", "can_apply", "can_draw", "draw_factors", "draw_mask"]

_KINDS = {"cuda"}   # of devices
_WITHIN_ROW = 1024  # elements of a row that one program masks
_ROWS = range(128, _WITHIN_ROW * 65535 + 1)  # lengths: below, most threads would idle; above, programs are too many
FAST = torch.float32, torch.float16, torch.bfloat16


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("dropoutlib.kernels.triton_kernels")


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether Triton is there, compiles for this device, and finds what it compiles with."""
    try:
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise RuntimeError(f"{torch.cuda.get_device_name(device)} has no bfloat16")
        _mask(torch.empty(1, device=device), torch.zeros(1, dtype=torch.int64, device=device), 0.5)
    except Exception as error:  # Triton has one of its own for each thing that it misses
        said = str(error).partition("\n")[0]
        warnings.warn(f"noise on {device} is drawn by torch's own operations and stored, because the kernels do not "
                      f"run there: {type(error).__name__}: {said}. Triton comes with PyTorch for CUDA, and needs a C "
                      "compiler and Python's headers", stacklevel=2)
        return False
    return True


def can_draw(like: Tensor) -> bool:
    """Whether :func:`draw_mask` and :func:`draw_factors` may draw for ``like``."""
    return (isinstance(like, Tensor) and like.device.type in _KINDS and is_eager(like) and like.numel() > 0
            and _works(like.device))


def can_apply(x: Tensor, shared: tuple[int, ...], noisy_rows: bool) -> bool:
    """Whether :func:`apply_mask`, or without rows :func:`apply_factors`, may draw and apply noise to ``x``."""
    return (can_draw(x) and x.dtype in FAST and x.is_contiguous() and not x.is_neg()
            and (not shared or (noisy_rows and _row(x, shared) in _ROWS)))


def _row(x: Tensor, shared: tuple[int, ...]) -> int:
    """How many elements in a row share a draw; 0 where those that share one do not lie in a row."""
    if not isinstance(shared, tuple) or not all(-x.dim() <= axis < x.dim() for axis in shared):
        return 0    # refused by name where the draw is made
    axes = {axis % x.dim() for axis in shared}
    return math.prod(x.shape[-len(axes):]) if axes == set(range(x.dim() - len(axes), x.dim())) else 0


def draw_mask(like: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    """A bool mask of the shape and memory format of ``like``, each element False with probability ``p``."""
    return _laid_out(_mask(like, _seed(like, generator), p), like)


def draw_factors(like: Tensor, dtype: torch.dtype, mean: float, deviation: float, generator: torch.Generator | None
                 ) -> Tensor:
    """Normally distributed factors of the shape and memory format of ``like``."""
    return _laid_out(_factors(like, dtype, _seed(like, generator), mean, deviation), like)


def apply_mask(x: Tensor, p: float, scale: float, shared: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """``x * scale`` where the mask of :func:`draw_mask` keeps, else 0, without a mask in memory."""
    return _apply(x, _seed(x, generator), (p, scale, _row(x, shared) if shared else 1))


def apply_factors(x: Tensor, mean: float, deviation: float, generator: torch.Generator | None) -> Tensor:
    """``x`` times the factors of :func:`draw_factors`, without factors in memory."""
    return _apply(x, _seed(x, generator), (mean, deviation))


def _seed(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty(1, dtype=torch.int64, device=like.device).random_(-2**63, None, generator=generator)


def _laid_out(drawn: Tensor, like: Tensor) -> Tensor:
    if like.is_contiguous():
        return drawn
    return torch.empty_like(like, dtype=drawn.dtype, requires_grad=False).copy_(drawn)


def _threshold(p: float) -> tuple[int, int]:
    """16 bits of the rate, and 31 more, as whole numbers of 32 bits for every rate: a kernel is compiled for types."""
    return divmod(min(round(p * 2**47), 2**47 - 1), 2**31)


def _programs(size: int, per_call: int) -> tuple[int]:
    return (-(-size // (per_call * _kernels().STRIPE)),)


def _mask(like: Tensor, seed: Tensor, p: float) -> Tensor:
    keep, kernels = torch.empty(like.shape, dtype=torch.int8, device=like.device), _kernels()
    with torch.cuda.device_of(like):
        kernels.masks[_programs(keep.numel(), 8)](keep, seed, keep.numel(), *_threshold(p), STRIPE=kernels.STRIPE)
    return keep.view(torch.bool)


def _factors(like: Tensor, dtype: torch.dtype, seed: Tensor, mean: float, deviation: float) -> Tensor:
    factors, kernels = torch.empty(like.shape, dtype=dtype, device=like.device), _kernels()
    with torch.cuda.device_of(like):
        kernels.factors[_programs(factors.numel(), 4)](factors, seed, factors.numel(), mean, deviation,
                                                       STRIPE=kernels.STRIPE)
    return factors


def _noisy(x: Tensor, seed: Tensor, law: tuple[Any, ...]) -> Tensor:
    """In one kernel."""
    output, kernels, size = torch.empty_like(x, requires_grad=False), _kernels(), x.numel()
    with torch.cuda.device_of(x):
        if len(law) == 2:
            kernels.gaussian[_programs(size, 4)](x, output, seed, size, *law, STRIPE=kernels.STRIPE)
            return output
        p, scale, row = law
        if row == 1:
            kernels.masked[_programs(size, 8)](x, output, seed, size, scale, *_threshold(p), STRIPE=kernels.STRIPE)
        else:
            kernels.masked_rows[size // row, -(-row // _WITHIN_ROW)](
                x, output, seed, row, scale, *_threshold(p), BLOCK=_WITHIN_ROW, STRIPE=kernels.STRIPE)
    return output


def _stored(x: Tensor, seed: Tensor, law: tuple[Any, ...]) -> Tensor:
    """The same, in operations that every transform knows."""
    if len(law) == 2:
        return x * _factors(x, x.dtype, seed, *law)
    p, scale, row = law
    keep = _mask(seed.new_empty(x.numel() // row), seed, p)
    return torch.where(keep.unsqueeze(-1).expand(-1, row).reshape(x.shape), x * scale, 0)


def _apply(x: Tensor, seed: Tensor, law: tuple[Any, ...]) -> Tensor:
    if not torch.is_grad_enabled() and not in_forward_mode():
        return _noisy(x, seed, law)
    return _Noisy.apply(x, seed, law)


class _Noisy(torch.autograd.Function):
    """Linear in x and its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, law: tuple[Any, ...]) -> Tensor:
        seed = seed.view(torch.uint8)   # hooks that save tensors in another precision keep bytes, as they keep masks
        ctx.save_for_backward(seed)
        ctx.save_for_forward(seed)
        ctx.law = law
        return _noisy(x, seed.view(torch.int64), law)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        seed, = ctx.saved_tensors
        return _derivative(gradient, seed, ctx.law), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        seed, = ctx.saved_tensors
        return _derivative(tangent, seed, ctx.law)


def _derivative(x: Tensor, seed: Tensor, law: tuple[Any, ...]) -> Tensor:
    """A gradient can be sparse, batched, expanded, or of a type of its own."""
    seed = seed.view(torch.int64)
    x = x if x.layout is torch.strided else x.to_dense()
    if is_eager(x) and x.dtype in FAST:
        return _apply(x.resolve_neg().contiguous(), seed, law)
    return _stored(x, seed, law)
