"""From zeros to a smaller network: takes away what an evaluated model computes in vain."""

from __future__ import annotations

import copy
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from .channels import Flow, Run, Units, fold_scales, name_of
from .from_torch import method_of_its_own
from .generators import global_generators_kept
from .plain_layers import Scale, exchanged
from .surgery import _CONTEXTS, _call, _copied, _has_hooks_for_all_modules, _is_exported, _require_values, _tensors

__all__ = ["Change", "Compressed", "CompressionReport", "compress"]

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
_UNCHANGED = "The given model is as it was"
_SECONDS = 0.05  # that a latency is measured for, at least


class Change(NamedTuple):
    """A number before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class CompressionReport:
    """What :func:`~dropoutlib.compress` did; it prints as a table.

    Both models have plain layers, so that a change is that of the sizes.

    Attributes:
        layers: what became of the units, for each layer with weights whose inputs and outputs are followed, by its
            name in the model.
        parameters: how many numbers the parameters hold.
        flops: floating point operations of products of matrices and convolutions on the example, as
            ``torch.utils.flop_counter`` counts them: two for a multiplication that is added up.
        seconds: of a forward pass on the example, the median of passes of both models in turn.
        notes: what stayed although it is constant, and where nothing is removed.
    """

    layers: dict[str, Units]
    parameters: Change
    flops: Change
    seconds: Change
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "units", "kept", "constant", "unread")]
        rows += [(place or "the model", str(sum(map(len, units))), *(str(len(part)) for part in units))
                 for place, units in self.layers.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        milliseconds = [f"{1e3 * seconds:.3g}" for seconds in self.seconds]
        lines += [f"parameters: {self.parameters.before} to {self.parameters.after}",
                  f"FLOPs: {self.flops.before} to {self.flops.after}",
                  f"milliseconds: {milliseconds[0]} to {milliseconds[1]}"]
        return "\n".join([*lines, *self.notes])


class Compressed(NamedTuple):
    """A smaller model, in evaluation, and how it came about."""

    model: nn.Module
    report: CompressionReport


def compress(model: nn.Module, example: Any) -> Compressed:
    """Makes a smaller model of plain layers that gives the same outputs in evaluation.

    A unit goes if its output is the same for every input, because all of its weights are zero or meet constants: what
    it gives moves into the biases of the layers that read it. It goes if nothing reads it. So a method that sets
    weights or units to zero, such as :class:`~dropoutlib.SparseVariationalLinear` or
    :class:`~dropoutlib.LogNormalDropout`, becomes a network that is in fact smaller. No weight is judged here: only
    exact zeros count.

    Layers of this library become what they are in evaluation, out of :mod:`torch.nn`; a factor that no layer beside it
    can take into its weights stays as a :class:`~dropoutlib.plain_layers.Scale`. Then the model is traced
    (:mod:`torch.fx`), and for each channel it is found out whether it is constant, through linear layers, convolutions
    (of one group, or a group for each channel), batch norm, functions of single elements, pooling, flattening, sums,
    products and ``cat``. Whatever else is in the model stays as it is, and what it reads and gives keeps its size; the
    notes of the report name it. So do inputs and outputs of the model. A constant does not move through zero padding,
    where the border of a map sees less of it, and of tensors that are added a channel goes in all of them or in none.
    A layer whose units could all go keeps one, a convolution with a group for each channel those of one group.

    What comes back is a copy of the model with smaller layers under the same names: of the class of ``model``, except
    where a ``view`` says the old size in a number, or ``forward`` reads one of a layer (``layer.out_features``) that it
    needs as it was. Then it is a :class:`torch.fx.GraphModule`, which has these numbers. The model itself stays as it
    is. Before it returns, the copy is compared with it on the example and on normal random inputs of the
    same shapes: outputs differ by 1e-5 at most for float32, 1e-12 for float64 and 0.01 for half precision, times the
    largest output if this is above 1.

    While a model is traced, :mod:`torch.fx` replaces what a call of a module is for the whole process: no other thread
    may call one then, or draw random numbers, or compress another model.

    Args:
        model: any model that :mod:`torch.fx` can trace. Only what it does in evaluation counts.
        example: an input, or a tuple or dictionary of arguments. FLOPs and times are those of this input. Arguments
            that it leaves out keep their defaults: with other values the outputs may be others, as a note says.

    Returns:
        Compressed: the named tuple ``(model, report)``.

    Raises:
        TypeError: if ``model`` is not a module, or is scripted, compiled or exported.
        ValueError: if ``example`` is empty, or the model cannot be called with it; if it cannot be followed, with the
            place: a layer that has no plain equal, is called twice or shares its weights, a hook or a parametrization,
            a branch that depends on values, noise in evaluation; if torch has hooks for all modules; in a context of
            :func:`~dropoutlib.monte_carlo`.
        RuntimeError: if the smaller model gives other outputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from dropoutlib import compress
        >>> model = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:90].zero_()  # 90 units are constant: relu(bias)
        >>> smaller, report = compress(model, torch.rand(16, 8))
        >>> print(smaller)
        Sequential(
          (0): Linear(in_features=8, out_features=10, bias=True)
          (1): ReLU()
          (2): Linear(in_features=10, out_features=2, bias=True)
        )
        >>> report.parameters
        Change(before=1102, after=112)
    """
    _require_what_can_be_copied(model)
    for tensor in _tensors(example):
        if not tensor.numel():
            raise ValueError(f"example has to hold numbers, but got a tensor of shape {tuple(tensor.shape)}")
    with global_generators_kept():
        given = copy.deepcopy(model).eval()
        try:
            expected = _outputs(given, example)
        except Exception as error:
            raise ValueError(f"the model cannot be called with the example: {error}") from error
        if not _close(expected, _outputs(given, example)):
            raise ValueError("the model gives other outputs when it is called again: it draws noise in evaluation, or "
                             "keeps a state")
        plain = exchanged(copy.deepcopy(model)).eval()
        graph = _traced(plain, example)
        try:
            outputs, results = _run(plain, graph, example)
        except Exception as error:
            raise ValueError("the model does other things than torch.fx can trace: its trace cannot be called: "
                             f"{error}") from error
        if not _close(expected, outputs):
            raise ValueError("the model does other things than torch.fx can trace: its trace gives other outputs")
        fold_scales(plain, graph, results)
        flow = Flow(plain, graph, results)
        examples = (example, *_random_inputs(example))
        smaller = flow.slice(copy.deepcopy(plain)).eval()
        try:
            _require_same(given, smaller, examples)
        except RuntimeError as error:
            # Its forward may read a size of a layer, which is another now; the graph has the number that it was.
            smaller = flow.slice(copy.deepcopy(plain), as_graph=True).eval()
            try:
                _require_same(given, smaller, examples)
            except RuntimeError:
                raise error from None
        return Compressed(smaller, CompressionReport(
            flow.layers(), Change(_parameters(plain), _parameters(smaller)),
            Change(_flops(plain, example), _flops(smaller, example)), _seconds(plain, smaller, example),
            (*flow.notes(), *_notes_of_defaults(plain, example))))


# What can be followed


def _require_what_can_be_copied(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model has to be a module, but got {type(model).__name__}")
    if _has_hooks_for_all_modules():
        raise ValueError("torch has hooks for all modules, which may do anything: remove those of "
                         "register_module_forward_hook and register_module_forward_pre_hook")
    for place, module in _places(model):
        if _CONTEXTS.get(module):
            raise ValueError(f"{place} is in a context of monte_carlo, which has its layers draw: leave it first")
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") or _is_exported(module):
            raise TypeError(f"{place} is scripted, compiled or exported: compress the model that it was made of")
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(f"{place} ({type(module).__name__}) has no weights yet: run the model once")
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks):
            raise ValueError(f"{place} has a hook, which may do anything: remove it (torch.nn.utils.prune.remove and "
                             "remove_weight_norm do so for theirs)")
        if method := method_of_its_own(module, type(module)):
            raise ValueError(f"the {method} of {place} was replaced, which may do anything: put that of its class back")
        if parametrize.is_parametrized(module):
            raise ValueError(f"{place} has a parametrization: call torch.nn.utils.parametrize.remove_parametrizations")
    _require_values(model)
    owners: dict[Tensor, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if owners.setdefault(parameter, name) != name and not _is_one_module(model, owners[parameter], name):
            raise ValueError(f"{name} and {owners[parameter]} are one tensor: weights that layers share cannot get two "
                             "sizes")


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name or "the model", module) for name, module in model.named_modules())


def _is_one_module(model: nn.Module, *names: str) -> bool:
    """Whether parameters belong to one module, which is there under two names: that counts if both are called."""
    return len({model.get_submodule(name.rpartition(".")[0]) for name in names}) == 1


class _Tracer(fx.Tracer):
    """A tracer that says where it failed, and keeps factors whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Scale) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
                    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except _NoTraceError:  # of a module in this one
            raise
        except Exception as error:
            raise _NoTraceError(self.path_of_module(m), error) from error


class _NoTraceError(ValueError):
    """A module that torch.fx cannot trace, and why."""

    def __init__(self, place: str, error: Exception) -> None:
        super().__init__(f"{place} cannot be traced by torch.fx, as where a branch depends on values or sizes: {error}")


def _traced(model: nn.Module, example: Any) -> fx.Graph:
    """The graph of calls, of which each layer with weights has one at most."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model, concrete_args=_defaults(model, example) or None)
    except _NoTraceError:
        raise
    except Exception as error:
        raise _NoTraceError("the model", error) from error
    called: dict[nn.Module, str] = {}
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if any(True for _ in module.parameters()) and module in called:
                raise ValueError(f"{called[module]} is called twice: what is constant in one call need not be in the "
                                 "other")
            called[module] = str(node.target)
        if _writes(node, model) and any(order[user] > order[node] for user in node.all_input_nodes[0].users):
            raise ValueError(f"{node.name} writes into its input, which is read again: make it inplace=False")
    of_layers = {id(parameter) for module in called for parameter in module.parameters()}
    for node in graph.nodes:
        if node.op == "get_attr" and id(_attribute(model, str(node.target))) in of_layers:
            raise ValueError(f"{node.target} is read outside of its layer: it cannot get two sizes. For a size alone, "
                             "read out_features or out_channels of the layer, or keep the number in the model")
    return graph


def _defaults(model: nn.Module, example: Any) -> dict[str, Any]:
    """Arguments that the example leaves out; a trace has them as constants."""
    parameters = inspect.signature(model.forward).parameters.values()
    given = (set(example) if isinstance(example, Mapping) else
             {parameter.name for parameter, _ in zip(parameters, _arguments(example), strict=False)})
    return {parameter.name: parameter.default for parameter in parameters
            if parameter.name not in given and parameter.default is not inspect.Parameter.empty}


def _notes_of_defaults(model: nn.Module, example: Any) -> list[str]:
    return [f"{name} was {default!r}, as the example does not say it: with another value the outputs may be others"
            for name, default in _defaults(model, example).items()]


def _writes(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = name_of(node, model)
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _arguments(example: Any) -> tuple[Any, ...]:
    return example if type(example) is tuple else (example,)


# Comparing and measuring


def _in_order(graph: fx.Graph, example: Any) -> list[Any]:
    """Arguments in the order of the graph's inputs."""
    if not isinstance(example, Mapping):
        return list(_arguments(example))
    places = [node for node in graph.nodes if node.op == "placeholder"]
    return [example[name] if (name := str(node.target)) in example else node.args[0] for node in places]


def _run(model: nn.Module, graph: fx.Graph, example: Any) -> tuple[list[Tensor], dict[fx.Node, Any]]:
    run = Run(model, graph)
    with torch.no_grad():
        outputs = list(_tensors(run.run(*_in_order(graph, _copied(example)))))
    return outputs, run.results


@torch.no_grad()
def _output(model: nn.Module, example: Any) -> Any:
    return _call(model, _copied(example))


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    return list(_tensors(_output(model, example)))


def _sizes(output: Any) -> list[Any]:
    """What is among the outputs and no tensor, such as the size of one."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, (int, float, str, bool))]


def _random_inputs(example: Any) -> Iterator[Any]:
    """Normal numbers in place of the numbers of the example, and larger ones."""
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 10.0):
        inputs = _copied(example)
        for tensor in _tensors(inputs):
            if tensor.is_floating_point():
                tensor.copy_(size * torch.randn(tensor.shape, generator=generator, device=generator.device))
        yield inputs


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest difference over what is allowed; the same infinities and nans are no difference."""
    if one.shape != other.shape:
        return math.inf
    if not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else math.inf
    finite = one.isfinite()
    if not torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num()) or not other[finite].isfinite().all():
        return math.inf
    if not finite.any():
        return 0.0
    one, other = one[finite].double(), other[finite].double()
    return ((one - other).abs().max() / one.abs().max().clamp(min=1)).item()


def _close(expected: list[Tensor], found: list[Tensor]) -> bool:
    return len(expected) == len(found) and all(
        _distance(one, other) <= _TOLERANCES.get(one.dtype, 1e-2) for one, other in zip(expected, found, strict=True))


def _require_same(given: nn.Module, smaller: nn.Module, examples: Iterable[Any]) -> None:
    for inputs in examples:
        _require_same_outputs(given, smaller, inputs)


def _require_same_outputs(given: nn.Module, smaller: nn.Module, inputs: Any) -> None:
    whole = _output(given, inputs)
    expected = list(_tensors(whole))
    try:
        smaller_whole = _output(smaller, inputs)
        found = list(_tensors(smaller_whole))
    except Exception as error:
        raise RuntimeError(f"the smaller model cannot be called: {error}. {_UNCHANGED}") from error
    if _sizes(whole) != _sizes(smaller_whole):
        raise RuntimeError("the smaller model gives other numbers beside tensors: "
                           f"{_sizes(smaller_whole)} in the place of {_sizes(whole)}. {_UNCHANGED}")
    if not _close(expected, found):
        worst = max(map(_distance, expected, found))
        raise RuntimeError(f"the smaller model gives other outputs, which differ by {worst:.1e} of the largest one, or "
                           f"of 1. {_UNCHANGED}")


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _flops(model: nn.Module, example: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    counted = copy.deepcopy(model).requires_grad_(False)    # the counter fails at views of what has a gradient
    with FlopCounterMode(display=False) as counter:
        _outputs(counted, example)
    return counter.get_total_flops()


def _seconds(plain: nn.Module, smaller: nn.Module, example: Any) -> Change:
    """The median of passes that take turns, so that a disturbance meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < 5 or (time.perf_counter() - start < _SECONDS and len(times[0]) < 1000):
        for model, own in zip((plain, smaller), times, strict=True):
            own.append(_time(model, example))
    return Change(*(statistics.median(own[1:]) for own in times))


@torch.no_grad()
def _time(model: nn.Module, example: Any) -> float:
    inputs = _copied(example)
    on_gpu = any(tensor.is_cuda for tensor in _tensors(inputs))
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    _call(model, inputs)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
