"""Max-norm: after each update, the incoming weights of every unit are projected onto a ball."""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from ..arguments import real
from ..methods import describe

__all__ = ["MaxNorm", "max_norm_"]

_ModuleOrTensor = TypeVar("_ModuleOrTensor", nn.Module, Tensor)


@describe("max_norm")
def max_norm_(module_or_tensor: _ModuleOrTensor, max_norm: float, dim: int = 0) -> _ModuleOrTensor:
    r"""Projects the weights of every unit onto the ball of radius ``max_norm``, in place.

    A slice w along ``dim`` becomes :math:`w \min(1, \text{max\_norm} / \lVert w \rVert_2)`. Slices inside the
    ball keep every bit. Gradients are not recorded, and biases are never touched.

    {four_answers}

    Given a module, every weight of a linear or convolutional layer in it is projected, once if it is tied.
    The weight of a transposed convolution has its inputs first; it is read as if its outputs were first.
    Weights of other layers (recurrent, embedding, the packed input projection of attention, linear layers of other
    libraries that are no :class:`torch.nn.Linear`) are left alone: give them as tensors. An embedding that is tied to a
    linear layer is projected as its weight.

    A slice whose norm is not finite, because it holds ``inf`` or ``nan`` or because its square overflows, is
    left as it is. The norm of half precision weights is computed in float32.

    Args:
        module_or_tensor: a module, or a floating point or complex tensor with at least two dimensions.
        max_norm: the largest Euclidean norm of a slice.
        dim: the dimension that counts the units: 0 for an (out, in) or (out, in, height, width) weight, as in
            :func:`torch.renorm`.

    Returns:
        Its first argument.

    Raises:
        ValueError: if ``max_norm`` is not a positive number, or if the module holds no weight to project, or
            one that is computed from others (parametrised, weight-normalised, pruned) or not yet initialised;
            nothing is changed then.
        TypeError: if the first argument is neither a module nor a tensor, or holds integers, or if ``max_norm`` is
            not a real number.
        RuntimeError: if the tensor has fewer than two dimensions.
        IndexError: if the tensor has no dimension ``dim``.

    Source:
        Srebro and Shraibman, *Rank, Trace-Norm and Max-Norm* (2005); Srivastava et al., *Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting* (2014), section 5.1.

    Example:
        >>> import torch
        >>> from dropoutlib import max_norm_
        >>> max_norm_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), max_norm=1.0)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
        >>> layer = max_norm_(torch.nn.Linear(20, 10), max_norm=0.25)
        >>> bool((layer.weight.norm(dim=1) < 0.2501).all())
        True
    """
    _check_max_norm(max_norm)
    if isinstance(module_or_tensor, nn.Module):
        _project(_weights(module_or_tensor), max_norm, dim)
    elif isinstance(module_or_tensor, Tensor):
        _project([(module_or_tensor, 0)], max_norm, dim)
    else:
        raise TypeError(f"module_or_tensor has to be a module or a tensor, "
                        f"but got {type(module_or_tensor).__name__}")
    return module_or_tensor


def _check_max_norm(max_norm: float) -> None:
    if not real("max_norm", max_norm) > 0:
        raise ValueError(f"max_norm has to be a positive number, but got {max_norm}")


def _weights(model: nn.Module) -> list[tuple[Tensor, int]]:
    """Every weight to project, once, with the groups of a transposed convolution (0 for any other layer)."""
    weights: dict[int, tuple[Tensor, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            weight = module._parameters.get("weight")
            where = f"the weight of {name or 'the module'} ({type(module).__name__})"
            if weight is None:
                raise ValueError(f"{where} is computed from other tensors (parametrised, weight-normalised, "
                                 "pruned), which decide its norm")
            if is_lazy(weight):
                raise ValueError(f"{where} is not initialised: run a forward pass first")
            weights[id(weight)] = weight, module.groups if isinstance(module, _ConvTransposeNd) else 0
    if not weights:
        raise ValueError(f"{type(model).__name__} has no linear or convolutional layer, "
                         "so there is no weight to project")
    return list(weights.values())


@torch.no_grad()
def _project(weights: Iterable[tuple[Tensor, int]], max_norm: float, dim: int) -> None:
    units = [_units(weight, groups, dim) for weight, groups in weights]  # refuses before anything is changed
    for weight, incoming in units:
        wide = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else None
        norm = torch.linalg.vector_norm(weight, dim=incoming, keepdim=True, dtype=wide)
        outside = (norm > max_norm) & (norm < math.inf)
        weight.mul_(torch.where(outside, max_norm / norm, 1.0))


def _units(weight: Tensor, groups: int, dim: int) -> tuple[Tensor, list[int]]:
    """A view of the weight, and the dimensions of that view over which the norm of one unit runs."""
    if not (weight.is_floating_point() or weight.is_complex()):
        raise TypeError(f"max_norm_ takes floating point or complex tensors, but got {weight.dtype}")
    if weight.dim() < 2:
        raise RuntimeError(f"max_norm_ takes tensors with at least 2 dimensions, but got {weight.dim()}")
    if not -weight.dim() <= dim < weight.dim():
        raise IndexError(f"dim has to be in [{-weight.dim()}, {weight.dim() - 1}], but got {dim}")
    units = {dim % weight.dim()}
    if groups and units <= {0, 1}:  # (in, out / groups, ...): an output sees the inputs of its own group only
        weight = weight.view(groups, -1, *weight.shape[1:])
        units = {0, 2} if units == {0} else {0, 1}
    return weight, [d for d in range(weight.dim()) if d not in units]


def _is_sharded(model: nn.Module) -> bool:
    """Whether a model contains FullyShardedDataParallel, which takes seconds to import."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(part, fsdp.FullyShardedDataParallel) for part in model.modules())


def _lies_in_pieces(model: nn.Module) -> bool:
    """Whether a model is a part of one that is FullyShardedDataParallel; FSDP2 keeps weights of the right shape."""
    managed = any(getattr(part, "_is_fsdp_managed_module", False) for part in model.modules())
    return managed and not any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def _gathered(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """In which all weights of a model are whole, and what is written into them stays."""
    if not _is_sharded(model):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = sys.modules[
        "torch.distributed.fsdp"].FullyShardedDataParallel.summon_full_params(model)
    return context


@describe("max_norm")
class MaxNorm:
    r"""Keeps the incoming weights of every unit inside a ball: :func:`~dropoutlib.max_norm_` after each step.

    After each ``step()`` of any optimizer, those parameters ``weight`` of the model's linear and convolutional layers
    are projected that this optimizer holds and that are not frozen, those of layers added later among them. Nothing
    happens when the step of an unrelated optimizer ends, or when a gradient scaler skips one. The state of the
    optimizer (momentum) is not projected, and neither are the weights before the first step:
    :func:`~dropoutlib.max_norm_` does that.

    {four_answers}

    The constraint lasts as long as the model, which it does not keep alive, until :meth:`remove`, or until another
    one of the same model takes its place; the object itself need not be kept. A copy of the model alone is not
    constrained; copy or pickle the constraint together with it.

    Args:
        model: a module with linear or convolutional layers.
        max_norm: the largest Euclidean norm of the incoming weights of a unit; the attribute may be changed later.

    Raises:
        ValueError: as :func:`~dropoutlib.max_norm_` does.
        TypeError: if ``model`` is not a module or ``max_norm`` not a real number.

    Source:
        Srivastava et al., *Dropout: A Simple Way to Prevent Neural Networks from Overfitting* (2014), section
        5.1.

    Example:
        >>> import torch
        >>> from dropoutlib import MaxNorm
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
        >>> constraint = MaxNorm(model, max_norm=3.0)
        >>> model(torch.tensor([3.0, 4.0])).backward()
        >>> optimizer.step()
        >>> round(model.weight.norm().item(), 4)
        3.0
        >>> constraint.remove()
    """

    _model: weakref.ref[nn.Module]

    def __init__(self, model: nn.Module, max_norm: float) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model has to be a module, but got {type(model).__name__}")
        self.max_norm = max_norm
        with _gathered(model):
            _weights(model)  # refuses a model that cannot be projected now, not after its first step
        self._attach(model)

    @property
    def max_norm(self) -> float:
        """The largest Euclidean norm of the incoming weights of a unit."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, max_norm: float) -> None:
        _check_max_norm(max_norm)
        self._max_norm = max_norm

    def _attach(self, model: nn.Module) -> None:
        global _hook
        self._model = weakref.ref(model)
        for earlier in [constraint for constraint in _constraints if constraint._model() is model]:
            earlier.remove()
        _constraints.append(self)
        if _hook is None:
            _hook = register_optimizer_step_post_hook(_after_step)

    def remove(self) -> None:
        """Ends the constraint; a second call does nothing."""
        if self in _constraints:
            _constraints.remove(self)

    def _apply(self, model: nn.Module, stepped: Collection[int]) -> None:
        if not any(id(parameter) in stepped for parameter in model.parameters()):
            return
        sharded = _is_sharded(model)  # its weights are pieces of other parameters, until they are gathered
        if not sharded and _lies_in_pieces(model):
            raise RuntimeError(f"{type(model).__name__} was wrapped into FullyShardedDataParallel after MaxNorm was "
                               "made of it: make MaxNorm of the wrapped model")
        with _gathered(model):
            held = [(weight, groups) for weight, groups in _weights(model)
                    if weight.requires_grad and (sharded or id(weight) in stepped)]
            _project(held, self.max_norm, dim=0)

    def __repr__(self) -> str:
        model = self._model()
        state = "" if self in _constraints and model is not None else ", removed"
        return f"MaxNorm({type(model).__name__}, max_norm={self.max_norm}{state})"

    def __getstate__(self) -> dict[str, Any]:
        return {"max_norm": self.max_norm, "model": self._model(), "active": self in _constraints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.max_norm = state["max_norm"]
        model = state["model"]
        if model is not None and state["active"]:
            self._attach(model)
        else:
            self._model = weakref.ref(model if model is not None else nn.Module())


# One hook for all constraints, never taken back: torch iterates over its hooks, so none may vanish while they
# run, but a constraint may be removed at any time.
_constraints: list[MaxNorm] = []
_hook: RemovableHandle | None = None


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is not None and found_inf.any():   # a gradient scaler calls a fused optimizer, which skips the step
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for constraint in tuple(_constraints):
        model = constraint._model()
        if model is None:
            constraint.remove()
        else:
            constraint._apply(model, stepped)
