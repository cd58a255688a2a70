"""Channels of an evaluated model: which are the same for every input, and which does nothing read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .plain_layers import Scale
from .surgery import _tensors

__all__ = ["Flow", "Run", "Units", "fold_scales", "name_of"]

# Functions and modules that act on every element by itself, by name; in evaluation dropout is one.
_ELEMENTWISE = {
    "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Softplus",
    "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "Threshold", "Tanhshrink", "Softshrink",
    "Hardshrink", "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout",
    "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "gelu", "silu",
    "mish", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "softsign", "hardtanh", "hardtanh_", "hardswish",
    "hardsigmoid", "logsigmoid", "threshold", "threshold_", "tanhshrink", "softshrink", "hardshrink", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "exp", "log",
    "log1p", "expm1", "sqrt", "rsqrt", "square", "abs", "neg", "sin", "cos", "erf", "reciprocal", "clamp", "clamp_",
    "clamp_min", "clamp_max", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "truediv", "maximum",
    "minimum", "contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16"}
_POOLS = {f"{kind}{axes}d": axes for axes in (1, 2, 3) for kind in (
    "MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "ZeroPad", "ReflectionPad", "ReplicationPad",
    "max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")}
_RESIZING = {"Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "interpolate"}
_MULTIPLYING = {"mul", "mul_"}
_RESHAPING = {"Flatten", "flatten", "view", "reshape", "squeeze", "unsqueeze"}
_OVER_SPACE = {"mean", "amax", "amin"}
_QUERIES = {"size", "dim", "getattr", "numel", "len"}
# f(s x) = s f(x) for s >= 0: a factor moves through them.
_HOMOGENEOUS = {"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "dropout", "ReLU", "relu", "LeakyReLU",
                "leaky_relu", *(name for name in _POOLS if "Pool" in name or "pool" in name)}
_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def name_of(node: fx.Node, model: nn.Module) -> str:
    """Class of a module, or name of a function or method; empty for what only stands for a value."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


class Units(NamedTuple):
    """What became of the units of a layer, or of the channels of a convolution, by their numbers.

    Attributes:
        kept: those that are still there, in this order.
        constant: removed, because their outputs were the same for every input: next layers have them in their biases.
        unread: removed, because nothing read them.
    """

    kept: tuple[int, ...]
    constant: tuple[int, ...]
    unread: tuple[int, ...]


@dataclass
class _Channels:
    """The channels of a tensor: where they lie, who they are, and which are the same for every input.

    ``atoms`` are numbers of channels: those with one number, or with numbers that were joined, go together.
    """

    axis: int  # counted from the end
    atoms: Tensor
    known: Tensor
    value: Tensor  # 0 where it is not known

    def __post_init__(self) -> None:
        self.known = self.known & self.value.isfinite()
        self.value = torch.where(self.known, self.value, 0.0)

    def repeated(self, times: int, axis: int) -> _Channels:
        """Each channel several times, one beside the other, along an axis."""
        return _Channels(axis, *(part.repeat_interleave(times) for part in (self.atoms, self.known, self.value)))


class _Reader(NamedTuple):
    """A linear layer or a convolution of one group: the columns that it reads, the rows that it gives."""

    node: fx.Node
    inputs: _Channels
    outputs: _Channels
    weighted: Tensor  # (rows, columns): whether the weight is not zero
    folds: Tensor     # (columns,): whether what comes is constant and can go into the bias


class _Shape(NamedTuple):
    """What is needed to make a tensor like another."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Others:
    """Stands for a result that holds tensors, but is none."""


class Run(fx.Interpreter):
    """Runs the graph, and keeps the shapes of tensors, and the sizes that the model asks for."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.results: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.results[n] = _Shape(tuple(result.shape), result.dtype, result.device)
        else:
            self.results[n] = _Others() if any(True for _ in _tensors(result)) else result
        return result


class Flow:
    """Follows channels through a graph, from the inputs to the outputs, and back to find out what is needed."""

    def __init__(self, model: nn.Module, graph: fx.Graph, results: dict[fx.Node, Any]) -> None:
        self.model, self.graph, self.results = model, graph, results
        self.parents: list[int] = []
        self.pinned: set[int] = set()
        self.channels: dict[fx.Node, _Channels] = {}
        self.readers: list[_Reader] = []
        self.per_channel: list[tuple[fx.Node, _Channels, _Channels]] = []
        self.merged: list[tuple[fx.Node, _Channels]] = []
        self.sized: list[tuple[fx.Node, int, _Channels]] = []
        self.barriers: list[str] = []
        with torch.no_grad():
            for node in graph.nodes:
                result = self._visit(node)
                if result is not None:
                    self.channels[node] = result
        self.needed = self._find_needed()

    # Forward

    def _visit(self, node: fx.Node) -> _Channels | None:
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.op == "output":     # a size that is given out stays, too
            return self._stop(node, said=False, everything=True)
        name = name_of(node, self.model)
        if not isinstance(self.results[node], _Shape):
            return None if name in _QUERIES or not self._tensors_of(node) else self._stop(node)
        if name not in _RESHAPING and any(not isinstance(self.results[arg], _Shape) for arg in node.all_input_nodes):
            return self._stop(node, everything=True)
        module = _module(self.model, node)
        if type(module) is nn.Linear:
            return self._read(node, module, -1)
        if type(module) in _CONVOLUTIONS:
            axis = -1 - _CONVOLUTIONS[type(module)]
            if module.groups == 1:
                return self._read(node, module, axis)
            return self._each(node, axis, module) if module.groups == module.in_channels else self._stop(node)
        if _has_channels(module):
            batch_statistics = type(module) in _BATCH_NORMS and module.running_mean is None
            return self._stop(node) if batch_statistics else self._each(node, 1 - len(self.results[node].sizes), module)
        if name in _ELEMENTWISE or type(module) in (Scale, nn.PReLU):
            return self._each(node, module=module)
        if name in _POOLS or name in _RESIZING:
            rank = _POOLS.get(name, len(self.results[node].sizes) - 2)
            return self._each(node, -1 - rank, grows=True)
        if name in _RESHAPING:
            return self._reshape(node)
        if name in _OVER_SPACE:
            return self._over_space(node)
        if name in ("cat", "concat", "concatenate"):
            return self._cat(node)
        return self._stop(node)

    def _tensors_of(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.all_input_nodes if isinstance(self.results[arg], (_Shape, _Others))]

    def _stop(self, node: fx.Node, said: bool = True, everything: bool = False) -> _Channels | None:
        """Keeps all that a node reads; with ``everything`` also that whose sizes it reads. Nothing is known of it."""
        stopped = False
        todo = list(node.all_input_nodes)
        while todo:
            arg = todo.pop()
            if arg in self.channels:
                stopped = True
                self._pin(self.channels[arg])
            elif everything and not isinstance(self.results[arg], (_Shape, _Others)):
                todo += arg.all_input_nodes
        if stopped and said:
            self.barriers.append(f"{_place(node)} ({name_of(node, self.model)})")
        return None

    def _pin(self, channels: _Channels) -> None:
        self.pinned.update(channels.atoms.tolist())

    def _fresh(self, axis: int, count: int) -> _Channels:
        start = len(self.parents)
        self.parents += range(start, start + count)
        return _Channels(axis, torch.arange(start, start + count, device="cpu"),
                         torch.zeros(count, dtype=torch.bool, device="cpu"),
                         torch.zeros(count, dtype=torch.float64, device="cpu"))

    def _along(self, node: fx.Node, axis: int) -> _Channels:
        """The channels of a tensor along an axis; where nothing is known of them, all stay."""
        found = self.channels.get(node)
        if found is not None and found.axis == axis:
            return found
        if found is not None:
            self._pin(found)
        channels = self._fresh(axis, self.results[node].sizes[axis])
        self._pin(channels)
        return channels

    def _find(self, atom: int) -> int:
        while self.parents[atom] != atom:
            self.parents[atom] = self.parents[self.parents[atom]]
            atom = self.parents[atom]
        return atom

    def _join(self, one: Tensor, other: Tensor) -> None:
        for first, second in zip(one.tolist(), other.tolist(), strict=True):
            self.parents[self._find(second)] = self._find(first)

    def _read(self, node: fx.Node, module: Any, axis: int) -> _Channels:
        inputs = self._along(node.all_input_nodes[0], axis)
        weight = module.weight.detach()
        weighted = ((weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0).cpu()
        folds = inputs.known & ((inputs.value == 0) | (not _pads_with_zeros(module)))
        outputs = _Channels(axis, self._fresh(axis, len(weight)).atoms, known=~(weighted & ~folds).any(1),
                            value=_bias(module) + _folded(weight, torch.where(folds, inputs.value, 0.0)))
        self.readers.append(_Reader(node, inputs, outputs, weighted, folds))
        return outputs

    def _each(self, node: fx.Node, axis: int | None = None, module: nn.Module | None = None, grows: bool = False
              ) -> _Channels | None:
        """A function of single channels: what it gives for constants is seen by calling it on maps of them."""
        tensors = node.all_input_nodes
        if axis is None:
            axes = {self.channels[arg].axis for arg in tensors if arg in self.channels}
            if len(axes) != 1:
                return self._stop(node)
            axis = axes.pop()
        width = max((self.results[arg].sizes[axis] for arg in tensors if len(self.results[arg].sizes) >= -axis),
                    default=0)
        times, rest = divmod(self.results[node].sizes[axis], max(width, 1))
        if rest or not width:
            return self._stop(node)
        # What has one number for all channels is not one of them.
        inputs = {arg: self._along(arg, axis) for arg in tensors
                  if len(self.results[arg].sizes) >= -axis and self.results[arg].sizes[axis] == width}
        for arg in tensors:
            if arg in self.channels and arg not in inputs:
                self._pin(self.channels[arg])
        first, *others = inputs.values()
        for other in others:
            self._join(first.atoms, other.atoms)
        known = torch.stack([one.known for one in inputs.values()]).all(0) & (len(inputs) == len(tensors))
        outputs = self._on_constants(node, inputs, known.repeat_interleave(times), axis, grows or times > 1)
        outputs.atoms = first.repeated(times, axis).atoms
        always = self._whatever_comes(node, inputs, module)
        if always is not None:
            outputs = _Channels(axis, outputs.atoms, outputs.known | always.isfinite(), torch.where(
                always.isfinite(), always, outputs.value))
        if others:
            self.merged.append((node, outputs))
        self.per_channel.append((node, first, outputs))
        return outputs

    def _on_constants(self, node: fx.Node, inputs: Mapping[fx.Node, _Channels], known: Tensor, axis: int, grows: bool
                      ) -> _Channels:
        """Of channels that are known, which are the same everywhere: on maps of this size and of a larger one."""
        values = torch.zeros(len(known), 1, dtype=torch.float64, device="cpu")
        if known.any():
            maps = [self._call(node, {arg: _map_of(channels, self.results[arg], axis, extra)
                                      for arg, channels in inputs.items()}) for extra in ((0, 13) if grows else (0,))]
            values = torch.cat([one.movedim(axis, 0).reshape(len(known), -1).cpu().double() for one in maps], 1)
        value = values[:, :1]
        rounding = 100 * torch.finfo(self.results[node].dtype).eps * value.abs()
        return _Channels(axis, known, known & ((values - value).abs() <= rounding).all(1), value.squeeze(1))

    def _call(self, node: fx.Node, tensors: Mapping[fx.Node, Tensor]) -> Tensor:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda arg: tensors[arg])
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)

    def _whatever_comes(self, node: fx.Node, inputs: Mapping[fx.Node, _Channels], module: Any) -> Tensor | None:
        """What channels give that are multiplied by zero; nan for the others."""
        if name_of(node, self.model) in _MULTIPLYING:
            zero = torch.stack([one.known & (one.value == 0) for one in inputs.values()]).any(0)
            return torch.where(zero, 0.0, math.nan).double()
        if type(module) is Scale:
            return torch.where(module.factor == 0, 0.0, math.nan).cpu().double()
        if type(module) in _BATCH_NORMS and module.affine:
            return torch.where(module.weight == 0, module.bias, math.nan).cpu().double()
        if type(module) in _CONVOLUTIONS:
            return torch.where((module.weight != 0).flatten(1).any(1).cpu(), math.nan, _bias(module))
        return None

    def _reshape(self, node: fx.Node) -> _Channels | None:
        """A view that puts channels beside what follows them, as before a linear layer."""
        source = node.all_input_nodes[0]
        found = self.channels.get(source)
        named = name_of(node, self.model) in ("view", "reshape")
        if found is None or (named and node.kwargs) or (  # squeeze() takes away what has one channel left, too
                name_of(node, self.model) == "squeeze" and len(node.args) + len(node.kwargs) == 1):
            return self._stop(node)
        before, after = self.results[source].sizes, self.results[node].sizes
        place = len(before) + found.axis
        count = len(found.atoms)
        axis = max((k for k, size in enumerate(after) if math.prod(after[:k]) == math.prod(before[:place])
                    and size and size % count == 0), default=None)
        if axis is None:
            return self._stop(node)
        outputs = found.repeated(after[axis] // count, axis - len(after))
        if named:
            sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            said: Any = sizes[axis] if len(sizes) == len(after) else None
            if isinstance(said, fx.Node):
                if not self._is_count_of(said, found):
                    return self._stop(node, everything=True)
            elif not isinstance(said, int):
                return self._stop(node, everything=True)
            elif said != -1:
                self.sized.append((node, axis, outputs))
        return outputs

    def _is_count_of(self, node: fx.Node, channels: _Channels) -> bool:
        """Whether a size was asked of tensors with the same channels alone."""
        asked: list[fx.Node] = [node]
        while any(not isinstance(self.results[arg], _Shape) for arg in asked):
            asked = [source for arg in asked for source in (
                [arg] if isinstance(self.results[arg], _Shape) else arg.all_input_nodes)]
        return bool(asked) and all(
            arg in self.channels and torch.equal(self.channels[arg].atoms, channels.atoms) for arg in asked)

    def _over_space(self, node: fx.Node) -> _Channels | None:
        """A mean or maximum over other axes than that of the channels."""
        source = node.all_input_nodes[0]
        found = self.channels.get(source)
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if found is None or given is None:
            return self._stop(node)
        rank = len(self.results[source].sizes)
        gone = {dim % rank for dim in (given if isinstance(given, (tuple, list)) else (given,))}
        place = rank + found.axis
        if place in gone:
            return self._stop(node)
        kept = len(self.results[node].sizes) == rank
        return found.repeated(1, found.axis if kept else found.axis + sum(dim > place for dim in gone))

    def _cat(self, node: fx.Node) -> _Channels | None:
        tensors: Any = node.args[0]
        rank = len(self.results[node].sizes)
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        axes = {self.channels[arg].axis for arg in tensors if arg in self.channels}
        if len(axes) != 1 or not isinstance(dim, int):
            return self._stop(node)
        axis = axes.pop()
        parts = [self._along(arg, axis) for arg in tensors]
        if dim % rank == rank + axis:
            return _Channels(axis, *(torch.cat([getattr(part, name) for part in parts]) for name in (
                "atoms", "known", "value")))
        first, *others = parts
        for other in others:
            self._join(first.atoms, other.atoms)
        same = torch.stack([part.known & (part.value == first.value) for part in parts]).all(0)
        result = _Channels(axis, first.atoms, same, first.value)
        self.merged.append((node, result))
        return result

    # Backward

    def _find_needed(self) -> Tensor:
        """For each atom whether it stays: what an output needs, and what rows that stay read."""
        self.roots = torch.tensor([self._find(atom) for atom in range(len(self.parents))], dtype=torch.long,
                                  device="cpu")
        needed = torch.zeros(len(self.parents), dtype=torch.bool, device="cpu")
        needed[self.roots[list(self.pinned)]] = True
        while True:
            before = -1
            while before != (before := int(needed.sum())):
                for reader in reversed(self.readers):
                    rows = needed[self.roots[reader.outputs.atoms]]
                    read = reader.weighted[rows].any(0) & ~reader.folds
                    needed[self.roots[reader.inputs.atoms[read]]] = True
            empty = next((reader for reader in self.readers if len(reader.outputs.atoms) and not needed[
                self.roots[reader.outputs.atoms]].any()), None)
            if empty is None:
                return needed[self.roots]
            last = int(empty.outputs.known.long().argmax())  # a constant, if there is one, reads nothing
            needed[self.roots[empty.outputs.atoms[last]]] = True

    def _stays(self, channels: _Channels) -> Tensor:
        return self.needed[channels.atoms]

    # What follows

    def layers(self) -> dict[str, Units]:
        """What becomes of the units of each layer.

        Returns:
            dict[str, Units]: by name, in the order of the calls.
        """
        outputs = {reader.node: reader.outputs for reader in self.readers}
        outputs |= {node: channels for node, _, channels in self.per_channel if node.op == "call_module"
                    and type(self.model.get_submodule(str(node.target))) in _CONVOLUTIONS}
        found = {}
        for node in self.graph.nodes:
            if node in outputs:
                stays, known = self._stays(outputs[node]), outputs[node].known
                found[str(node.target)] = Units(*(tuple(part.nonzero().flatten().tolist()) for part in (
                    stays, ~stays & known, ~stays & ~known)))
        return found

    def slice(self, model: nn.Module, as_graph: bool = False) -> nn.Module:
        """Makes the layers of a copy of the model smaller.

        Args:
            model: the copy.
            as_graph: whether to leave the forward of the model, and call the layers as the graph does.

        Returns:
            nn.Module: the copy; or a module of its layers and the graph, also where this names a size that is another.
        """
        for reader in self.readers:
            layer: Any = model.get_submodule(str(reader.node.target))
            rows, columns = self._stays(reader.outputs), self._stays(reader.inputs)
            bias = _bias(layer) + _folded(layer.weight.detach(), torch.where(
                reader.folds & ~columns, reader.inputs.value, 0.0))
            if layer.bias is not None or bias[rows].any():
                like = layer.weight if layer.bias is None else layer.bias
                layer.bias = nn.Parameter(bias[rows].to(like), like.requires_grad)
            _select(layer, "weight", rows, columns)
            kind = "features" if isinstance(layer, nn.Linear) else "channels"
            for name, count in ((f"out_{kind}", rows), (f"in_{kind}", columns)):
                setattr(layer, name, int(count.sum()))
        for node, inputs, outputs in self.per_channel:
            if node.op == "call_module":
                _slice_channels(model.get_submodule(str(node.target)), self._stays(inputs), self._stays(outputs))
        resized = [(node, place, int(self._stays(outputs).sum())) for node, place, outputs in self.sized
                   if not self._stays(outputs).all()]
        if not (resized or as_graph):
            return model
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.graph, copies))
        for node, place, size in resized:
            _say_size(copies[node], place, size)
        return fx.GraphModule(model, graph, type(model).__name__)

    def notes(self) -> tuple[str, ...]:
        """What stays although it is constant, and where nothing is removed.

        Returns:
            tuple[str, ...]: sentences, each with its place.
        """
        notes = []
        for reader in self.readers:
            rows = self._stays(reader.outputs)
            held = int((reader.weighted[rows].any(0) & reader.inputs.known & ~reader.folds).sum())
            if held:
                notes.append(f"{_place(reader.node)}: {held} of its inputs are constant and stay, because it reads "
                             "them through zero padding")
        for node, inputs, outputs in self.per_channel:
            if len(node.all_input_nodes) == 1 and len(inputs.known) == len(outputs.known):
                held = int((inputs.known & ~outputs.known & self._stays(outputs)).sum())
                if held:
                    notes.append(f"{_place(node)}: {held} channels are constant in front of it and stay, because what "
                                 "it makes of them is not, as behind zero padding")
        for node, outputs in self.merged:
            stays = self._stays(outputs) & ~outputs.known
            held = int((torch.stack([self.channels[arg].known for arg in node.all_input_nodes
                                     if arg in self.channels]).any(0) & stays).sum())
            if held:
                notes.append(f"{_place(node)}: {held} channels are constant in one of the tensors that meet and stay, "
                             "because they are not in all of them")
        notes += [f"{barrier}: nothing that it reads is removed" for barrier in self.barriers]
        return tuple(notes)


def _place(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _bias(layer: Any) -> Tensor:
    if layer.bias is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64, device="cpu")
    return layer.bias.detach().cpu().double()


def _has_channels(module: Any) -> bool:
    """Whether a layer has a number for each channel, along the second axis."""
    return type(module) in _BATCH_NORMS or (type(module) is nn.PReLU and module.num_parameters > 1) or (
        type(module) is Scale and module.factor.dim() == 1)


def _pads_with_zeros(layer: Any) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return any(size > 1 for size in layer.kernel_size) if layer.padding == "same" else any(layer.padding)


def _folded(weight: Tensor, value: Tensor) -> Tensor:
    """What constant inputs give: a number for each row."""
    columns = value.nonzero().flatten()
    chosen = weight[:, columns.to(weight.device)].cpu().double()
    return (chosen.flatten(2).sum(2) if chosen.dim() > 2 else chosen) @ value[columns]


def _map_of(channels: _Channels, like: _Shape, axis: int, extra: int) -> Tensor:
    """A map of constants, one for each channel."""
    sizes = [size + extra if place > len(like.sizes) + axis else size for place, size in enumerate(like.sizes)]
    column = channels.value.to(like.dtype).to(like.device).view(-1, *[1] * (-1 - axis))
    return column.expand(sizes).contiguous()


def _select(module: nn.Module, name: str, *chosen: Tensor) -> None:
    """Keeps a part of a parameter or buffer, along its first axes."""
    whole = getattr(module, name, None)
    if whole is None:
        return
    part = whole.detach()
    for axis, keep in enumerate(chosen):
        part = part.index_select(axis, keep.nonzero().flatten().to(part.device))
    setattr(module, name, nn.Parameter(part, whole.requires_grad) if isinstance(whole, nn.Parameter) else part)


def _slice_channels(module: Any, inputs: Tensor, outputs: Tensor) -> None:
    """Makes a layer smaller that has numbers of its own for each channel."""
    if type(module) in _BATCH_NORMS:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(module, name, outputs)
        module.num_features = int(outputs.sum())
    elif type(module) in _CONVOLUTIONS:
        _select(module, "weight", outputs)
        _select(module, "bias", outputs)
        module.in_channels = module.groups = int(inputs.sum())
        module.out_channels = int(outputs.sum())
    elif _has_channels(module):
        _select(module, "factor" if type(module) is Scale else "weight", outputs)
        if type(module) is nn.PReLU:
            module.num_parameters = int(outputs.sum())


def _say_size(node: fx.Node, place: int, size: int) -> None:
    given: Any = node.args[1]
    if isinstance(given, (tuple, list)):
        node.update_arg(1, [*given[:place], size, *given[place + 1:]])
    else:
        node.update_arg(place + 1, size)


# Factors


def fold_scales(model: nn.Module, graph: fx.Graph, results: Mapping[fx.Node, Any]) -> None:
    """Has a layer beside a factor take it into its weights, where there is such a layer.

    Args:
        model: is changed.
        graph: of its calls.
        results: of a run of the graph.
    """
    for node in graph.nodes:
        module = _module(model, node)
        if type(module) is Scale and (_fold_forward(model, node, module.factor, results)
                                      or _fold_backward(model, node, module.factor, results)):
            place, _, name = str(node.target).rpartition(".")
            setattr(model.get_submodule(place), name, nn.Identity())


def _module(model: nn.Module, node: fx.Node) -> Any:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


@torch.no_grad()
def _fold_forward(model: nn.Module, node: fx.Node, factor: Tensor, results: Mapping[fx.Node, Any]) -> bool:
    """Into the columns of the layer that reads it."""
    while len(node.users) == 1:
        sizes = results[node].sizes
        node = next(iter(node.users))
        module, name, of_channels = _module(model, node), name_of(node, model), factor.dim() == 1
        axes = _CONVOLUTIONS.get(type(module), 0)
        if (type(module) is nn.Linear or (axes and module.groups == 1)) and (
                not of_channels or len(sizes) == axes + 2):
            module.weight.mul_(factor.view(-1, *[1] * axes) if of_channels else factor)
            return True
        if name in ("Flatten", "flatten") and results[node].sizes == (sizes[0], math.prod(sizes[1:])):
            factor = factor.repeat_interleave(math.prod(sizes[2:])) if of_channels else factor
        elif name not in _HOMOGENEOUS or not (factor >= 0).all():
            return False
    return False


@torch.no_grad()
def _fold_backward(model: nn.Module, node: fx.Node, factor: Tensor, results: Mapping[fx.Node, Any]) -> bool:
    """Into the rows of the layer that gives it."""
    while len(node.all_input_nodes) == 1 and len(node.all_input_nodes[0].users) == 1:
        node = node.all_input_nodes[0]
        module, of_channels = _module(model, node), factor.dim() == 1
        is_layer = type(module) in (nn.Linear, *_CONVOLUTIONS, *_BATCH_NORMS) and module.weight is not None
        # The second axis is that of units only where nothing but examples lies in front of it.
        rank = len(results[node].sizes)
        has_units = rank == 2 if type(module) is nn.Linear else rank == _CONVOLUTIONS.get(type(module), rank - 2) + 2
        if is_layer and (has_units or not of_channels):
            module.weight.mul_(factor.view(-1, *[1] * (module.weight.dim() - 1)) if of_channels else factor)
            if module.bias is not None:
                module.bias.mul_(factor)
            return True
        if name_of(node, model) not in _HOMOGENEOUS or not (factor >= 0).all():
            return False
    return False
