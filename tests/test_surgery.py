"""Audit: each kind of finding where it is, and nowhere else; replace: all or nothing."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dropoutlib
from dropoutlib import audit, replace, surgery
from dropoutlib.surgery import Finding, Report

IMAGES, VECTORS, SEQUENCES = torch.ones(2, 3, 8, 8), torch.ones(4, 6), torch.ones(2, 5, 6)
MAPS, NORM, OUTPUT = "element dropout on feature maps", "dropout before batch norm", "dropout on the output"
FAST, RECURRENT, EVALUATION = "dropout before fast dropout", "recurrent dropout without effect", "noise in evaluation"
RECURSION, UNREAD = "dropout inside a recursion", "weights that the kernel does not read"
STEPS = torch.ones(4, 2, 6)

NO_MAPS, UNCALLED, TAKEN = "map dropout without maps", "noise that nothing calls", "weights that torch takes"
SKIPPED = "test rule that torch skips"


class Own(dropoutlib.NoisyLayer):
    def forward(self, input, *, noise=None, generator=None):
        return dropoutlib.functional.dropout(input, 0.5, self.training, noise=noise, generator=generator)


class Calls(nn.Module):
    """A model that is one function of its parts."""

    def __init__(self, function, **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class StaysInTraining(nn.Dropout):
    def train(self, mode: bool = True):
        return super().train(True)


def convolution(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers)


def head(size: int = 144) -> tuple[nn.Module, ...]:
    return nn.Flatten(), nn.Linear(size, 2)


def ignoring_warnings(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a dropout= without effect
        return make()


def recurrent(**keywords) -> nn.Module:
    return ignoring_warnings(lambda: Calls(lambda model, x: model.head(model.body(x)[0]),
                                           body=nn.LSTM(6, 4, **keywords), head=nn.Linear(4, 2)))


def cells(step, **parts: nn.Module) -> nn.Module:
    """A network that calls a cell for every step: ``step(model, x, state)`` gives the next state."""
    def run(model: nn.Module, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], 4)
        state = (h, h) if isinstance(model.cell, nn.LSTMCell) else h
        for x_t in x.unbind():
            state = step(model, x_t, state)
        return model.head(state[0] if isinstance(state, tuple) else state)

    return Calls(run, **{"drop": nn.Dropout(), "head": nn.Linear(4, 2), **parts})


def dropped_by_hand(kept_in_place: bool) -> nn.Module:
    """Weight drop as it is often written: masked weights in the place of a parameter of nn.LSTM."""
    model = recurrent()
    weight = model.body.weight_hh_l0
    del model.body._parameters["weight_hh_l0"]
    model.body.register_parameter("weight_hh_l0_raw", weight)
    flat = list(model.body._flat_weights)
    model.body.weight_hh_l0 = F.dropout(weight, 0.5)
    if not kept_in_place:
        model.body._flat_weights = flat
    return model


CASES = {
    # Element dropout on feature maps
    "on maps": (convolution(nn.ReLU(), nn.Dropout(0.2), *head()), IMAGES, [("2", MAPS)]),
    "on maps, functional": (Calls(lambda m, x: m.head(F.dropout(m.body(x), 0.2, m.training).flatten(1)),
                                  body=nn.Conv2d(3, 4, 3), head=nn.Linear(144, 2)), IMAGES, [("", MAPS)]),
    "on maps, tensor method": (Calls(lambda m, x: m.head(torch.dropout(m.body(x), 0.2, m.training).flatten(1)),
                                     body=nn.Conv2d(3, 4, 3), head=nn.Linear(144, 2)), IMAGES, [("", MAPS)]),
    "on maps of ours": (convolution(dropoutlib.Dropout(0.2), *head()), IMAGES, [("1", MAPS)]),
    "on maps, Gaussian": (convolution(dropoutlib.GaussianDropout(0.2), *head()), IMAGES, [("1", MAPS)]),
    "on maps, random rate": (convolution(dropoutlib.StochasticRateDropout(), *head()), IMAGES, [("1", MAPS)]),
    "on maps of a sequence": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Dropout(), *head(24)), torch.ones(2, 3, 8),
                              [("1", MAPS)]),
    "on one image": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(0), nn.Linear(144, 2)), IMAGES[0],
                     [("1", MAPS)]),
    "on maps after a pool and batch norm": (convolution(nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Dropout(), *head(36)),
                                            IMAGES, [("3", MAPS)]),
    "twice in one module": (Calls(lambda m, x: m.head(m.drop(m.drop(m.body(x))).flatten(1)), body=nn.Conv2d(3, 4, 3),
                                  drop=nn.Dropout(), head=nn.Linear(144, 2)), IMAGES, [("drop", MAPS)]),
    "on maps, a learned rate": (convolution(dropoutlib.ConcreteDropout(nn.Conv2d(4, 4, 1)), *head()), IMAGES,
                                [("1", MAPS)]),
    "whole maps, a learned rate": (convolution(dropoutlib.ConcreteDropout2d(nn.Conv2d(4, 4, 1)), *head()), IMAGES, []),
    "whole maps": (convolution(nn.Dropout2d(), dropoutlib.SpatialDropout2d(), *head()), IMAGES, []),
    "after flatten": (convolution(nn.Flatten(), nn.Dropout(), nn.Linear(144, 2)), IMAGES, []),
    "after global pooling": (convolution(nn.AdaptiveAvgPool2d(1), nn.Dropout(), *head(4)), IMAGES, []),
    "on patches": (Calls(lambda m, x: m.head(m.drop(m.body(x).flatten(2).transpose(1, 2))), body=nn.Conv2d(3, 4, 2, 2),
                         drop=nn.Dropout(), head=nn.Linear(4, 2)), IMAGES, []),
    "on attention": (Calls(lambda m, x: m.head(F.dropout((x[:, None] @ x[:, None].mT).softmax(-1), 0.1, m.training)),
                           head=nn.Linear(5, 2)), SEQUENCES, []),
    "without noise": (convolution(nn.Dropout(0.0), dropoutlib.Dropout(0.0), nn.Dropout(np.float32(0)), *head()),
                      IMAGES, []),
    # Dropout of maps without maps
    "maps of vectors": (nn.Sequential(nn.Linear(6, 4), dropoutlib.SpatialDropout1d(), nn.Linear(4, 2)), VECTORS,
                        [("1", NO_MAPS)]),
    "maps of vectors, torch": (nn.Sequential(nn.Linear(6, 4), nn.Dropout1d(), nn.Linear(4, 2)), VECTORS,
                               [("1", NO_MAPS)]),
    "maps of tokens": (nn.Sequential(nn.Linear(6, 4), nn.Dropout3d(), nn.Linear(4, 2)), SEQUENCES[None],
                       [("1", NO_MAPS)]),
    "maps of one sequence": (nn.Sequential(nn.Conv1d(3, 4, 3), dropoutlib.SpatialDropout1d(), nn.Flatten(0),
                                           nn.Linear(24, 2)), torch.ones(3, 8), []),
    "a dropout of maps and vectors": (Calls(lambda m, x: m.head(m.drop(m.drop(m.body(x)).flatten(1))),
                                            body=nn.Conv2d(3, 4, 3), drop=nn.Dropout(), head=nn.Linear(144, 2)),
                                      IMAGES, [("drop", MAPS)]),
    # A layer of one's own
    "own before batch norm": (nn.Sequential(Own(), nn.BatchNorm1d(6), nn.Linear(6, 2)), VECTORS, [("0", NORM)]),
    "own on the output": (nn.Sequential(nn.Linear(6, 2), Own()), VECTORS, [("1", OUTPUT)]),
    "own on maps": (convolution(Own(), *head()), IMAGES, []),
    "own that nothing calls": (Calls(lambda m, x: m.head(x), drop=Own(), head=nn.Linear(6, 2)), VECTORS,
                               [("drop", UNCALLED)]),
    # Dropout before batch norm
    "before batch norm": (nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 4), nn.BatchNorm1d(4),
                                        nn.BatchNorm1d(4), nn.Linear(4, 2)), VECTORS, [("1", NORM)]),
    "ours before batch norm": (convolution(dropoutlib.SpatialDropout2d(), nn.BatchNorm2d(4), *head()), IMAGES,
                               [("1", NORM)]),
    "max-pool dropout before batch norm": (convolution(dropoutlib.MaxPoolDropout2d(2), nn.BatchNorm2d(4), *head(36)),
                                           IMAGES, [("1", NORM)]),
    "noisy weights before batch norm": (nn.Sequential(
        dropoutlib.DropConnectLinear(6, 4), nn.BatchNorm1d(4), dropoutlib.ConcreteDropout(nn.Linear(4, 4)),
        nn.BatchNorm1d(4), nn.Linear(4, 2)), VECTORS, [("0", NORM), ("2", NORM)]),
    "stochastic pooling before batch norm": (convolution(dropoutlib.StochasticPool2d(2), nn.BatchNorm2d(4), *head(36)),
                                             IMAGES, [("1", NORM)]),
    "in place before batch norm": (Calls(lambda m, x: (m.drop(x), m.norm(x))[1], drop=nn.Dropout(inplace=True),
                                         norm=nn.BatchNorm1d(6)), VECTORS, [("drop", NORM), ("drop", OUTPUT)]),
    "before instance norm that stores": (convolution(nn.Dropout2d(), nn.InstanceNorm2d(4, track_running_stats=True),
                                                     *head()), IMAGES, [("1", NORM)]),
    "before batch norm that stores nothing": (convolution(
        nn.Dropout2d(), nn.BatchNorm2d(4, track_running_stats=False), *head()), IMAGES, []),
    "cutout before batch norm": (nn.Sequential(dropoutlib.Cutout(3), nn.BatchNorm2d(3), *head(192)), IMAGES, []),
    "after batch norm": (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)), VECTORS, []),
    "before layer norm": (nn.Sequential(nn.Dropout(), nn.LayerNorm(6), nn.Linear(6, 2)), VECTORS, []),
    # Dropout on the output
    "on the output": (nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Softmax(-1)), VECTORS, [("1", OUTPUT)]),
    "ours on the output": (nn.Sequential(nn.Linear(6, 4), dropoutlib.Dropout()), VECTORS, [("1", OUTPUT)]),
    "on hidden states beside the logits": (Calls(lambda m, x: (lambda h: {"logits": m.head(h), "hidden": h})(
        m.drop(m.body(x))), body=nn.Linear(6, 4), drop=nn.Dropout(), head=nn.Linear(4, 2)), VECTORS, []),
    "on hidden states and on the logits": (Calls(lambda m, x: (lambda h: (m.drop(m.head(h)), h))(m.drop(m.body(x))),
                                                 body=nn.Linear(6, 4), drop=nn.Dropout(), head=nn.Linear(4, 2)),
                                           VECTORS, [("drop", OUTPUT)]),
    "on both branches of a sum": (Calls(lambda m, x: m.drop(m.body(x)) + m.drop(x), body=nn.Linear(6, 6),
                                        drop=nn.Dropout()), VECTORS, [("drop", OUTPUT)]),
    "in a residual branch": (Calls(lambda m, x: x + m.drop(m.body(x)), body=nn.Linear(6, 6), drop=nn.Dropout()),
                             VECTORS, []),
    "in a transformer": (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), SEQUENCES, []),
    # Dropout before fast dropout
    "before fast dropout": (nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.ReLU(), dropoutlib.FastDropoutLinear(4, 2)),
                            VECTORS, [("1", FAST)]),
    "before fast dropout, by name": (Calls(lambda m, x: m.head(input=m.drop(x)), drop=nn.Dropout(),
                                           head=dropoutlib.FastDropoutLinear(6, 2)), VECTORS, [("drop", FAST)]),
    "functional before fast dropout": (Calls(lambda m, x: m.head(F.dropout(x, 0.2, m.training)),
                                             head=dropoutlib.FastDropoutLinear(6, 2)), VECTORS, [("", FAST)]),
    "around a convolution with fast dropout": (
        dropoutlib.ConcreteDropout2d(dropoutlib.FastDropoutConv2d(3, 2, 1)), torch.ones(2, 3, 4, 4), [("", FAST)]),
    "around fast dropout": (dropoutlib.ConcreteDropout(dropoutlib.FastDropoutLinear(6, 2)), VECTORS, [("", FAST)]),
    "before and around fast dropout": (nn.Sequential(nn.Dropout(), dropoutlib.ConcreteDropout(
        dropoutlib.FastDropoutLinear(6, 2))), VECTORS, [("0", FAST), ("1", FAST)]),
    "fast dropout in a row": (nn.Sequential(nn.Dropout(), nn.Linear(6, 4), dropoutlib.FastDropoutLinear(4, 4),
                                            dropoutlib.FastDropoutLinear(4, 2)), VECTORS, []),
    "before fast dropout without noise": (nn.Sequential(nn.Dropout(), dropoutlib.FastDropoutLinear(6, 2, p=0.0)),
                                          VECTORS, []),
    "before other noisy weights": (nn.Sequential(
        nn.Dropout(), dropoutlib.VariationalDropoutLinear(6, 4), nn.Dropout(), dropoutlib.DropConnectLinear(4, 2)),
        VECTORS, []),
    # Weights that torch takes
    "a test rule in a transformer": (replace(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0),
        {nn.Linear: lambda old: dropoutlib.StandoutLinear(old.in_features, old.out_features)}), SEQUENCES,
        [("linear1", TAKEN), ("linear2", TAKEN)]),
    "one without weights": (replace(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.2),
                                    {nn.Dropout: lambda old: dropoutlib.WeightScalingDropout(old.p)}), SEQUENCES,
                            [(place, SKIPPED) for place in ("dropout", "dropout1", "dropout2")]),
    "stochastic depth without a scale": (replace(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.2),
        {nn.Dropout: lambda old: nn.Sequential(dropoutlib.DropPath(old.p, scale_by_keep=False))}), SEQUENCES,
        [(place, SKIPPED) for place in ("dropout.0", "dropout1.0", "dropout2.0")]),
    "a code that is cut": (replace(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.2),
                                   {nn.Dropout: lambda old: dropoutlib.NestedDropout(old.p, dim=-1, length=2)}),
                           SEQUENCES, [(place, SKIPPED) for place in ("dropout", "dropout1", "dropout2")]),
    "one that is the identity": (replace(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.2),
                                         {nn.Dropout: lambda old: dropoutlib.Dropout(old.p)}), SEQUENCES, []),
    # Recurrent
    "one layer": (recurrent(dropout=0.5), SEQUENCES, [("body", RECURRENT)]),
    "two layers": (recurrent(dropout=0.5, num_layers=2), SEQUENCES, []),
    "one layer of ours": (Calls(lambda m, x: m.head(m.body(x)[0]), head=nn.Linear(4, 2), body=ignoring_warnings(
        lambda: dropoutlib.ZoneoutLSTM(6, 4, dropout=0.5))), SEQUENCES, [("body", RECURRENT)]),
    "on the state, at every step": (cells(lambda m, x, h: m.cell(x, m.drop(h)), cell=nn.GRUCell(6, 4)), SEQUENCES,
                                    [("drop", RECURSION)]),
    "on the new state, at every step": (cells(lambda m, x, h: m.drop(m.cell(x, h)), cell=nn.RNNCell(6, 4)), STEPS,
                                        [("drop", RECURSION)]),
    "on h of an LSTM": (cells(lambda m, x, s: m.cell(x, (m.drop(s[0]), s[1])), cell=nn.LSTMCell(6, 4)), SEQUENCES,
                        [("drop", RECURSION)]),
    "functional, on the state": (cells(lambda m, x, h: m.cell(x, F.dropout(h, 0.2, m.training)),
                                       cell=nn.GRUCell(6, 4)), SEQUENCES, [("", RECURSION)]),
    "on inputs of a cell": (cells(lambda m, x, h: m.cell(m.drop(x), h), cell=nn.GRUCell(6, 4)), SEQUENCES, []),
    "on the last state": (Calls(lambda m, x: m.head(m.drop(m.body(x)[0][-1])), drop=nn.Dropout(), head=nn.Linear(4, 2),
                                body=nn.GRU(6, 4)), SEQUENCES, []),
    "weights in the place of parameters": (dropped_by_hand(True), SEQUENCES, []),
    "weights that come too late": (dropped_by_hand(False), SEQUENCES, [("body.weight_hh_l0", UNREAD)]),
    **{name: (Calls(lambda m, x: m.head(m.body(x)[0]), head=nn.Linear(4, 2), body=getattr(dropoutlib, name)(6, 4)),
              SEQUENCES, []) for name in ("RNNDropLSTM", "VariationalGRU", "WeightDropLSTM", "ZoneoutGRU")},
    "before batch norm, out of a recursion": (Calls(lambda m, x: m.norm(m.body(x)[0][-1]), norm=nn.BatchNorm1d(4),
                                                    body=dropoutlib.RecurrentDropoutLSTM(6, 4)), SEQUENCES,
                                              [("body", NORM)]),
    # Noise in evaluation
    "functional": (Calls(lambda m, x: m.head(F.dropout(x)), head=nn.Linear(6, 2)), VECTORS, [("", EVALUATION)]),
    "functional, 2d": (Calls(lambda m, x: m.head(F.dropout2d(m.body(x), 0.3).flatten(1)), body=nn.Conv2d(3, 4, 3),
                             head=nn.Linear(144, 2)), IMAGES, [("", EVALUATION)]),
    "functional that is told": (Calls(lambda m, x: m.head(F.dropout(x, 0.5, training=m.training)),
                                      head=nn.Linear(6, 2)), VECTORS, []),
    "attention": (Calls(lambda m, x: m.head(F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)),
                        head=nn.Linear(6, 2)), SEQUENCES, [("", EVALUATION)]),
    "attention that is told": (Calls(lambda m, x: m.head(F.scaled_dot_product_attention(
        x, x, x, dropout_p=0.3 if m.training else 0.0)), head=nn.Linear(6, 2)), SEQUENCES, []),
    "stays in training": (nn.Sequential(StaysInTraining(0.5), nn.Linear(6, 2)), VECTORS, [("0", EVALUATION)]),
    "stays in training without noise": (nn.Sequential(StaysInTraining(0.0), nn.Linear(6, 2)), VECTORS, []),
    "aten": (Calls(lambda m, x: m.head(torch.native_dropout(x, 0.5, m.training)[0]), head=nn.Linear(6, 2)), VECTORS,
             []),
    "differentiates": (Calls(lambda m, x: torch.autograd.grad(m.head(x).sum(), m.head.weight)[0],
                             head=nn.Linear(6, 2)), VECTORS, []),
    "noise of unknown origin": (Calls(lambda m, x: m.head(x * torch.bernoulli(torch.full_like(x, 0.5))),
                                      head=nn.Linear(6, 2)), VECTORS, [("", EVALUATION)]),
}


@pytest.mark.parametrize("case", CASES)
def test_audit(case: str) -> None:
    model, x, expected = CASES[case]
    torch.manual_seed(0)
    assert [(finding.place, finding.kind) for finding in audit(model, x)] == expected


def test_audit_of_several_inputs_and_outputs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(6, 4), nn.Dropout()

        def forward(self, first, second=None):
            return {"logits": [self.drop(self.linear(first + second))], "none": None}

    for x in ((VECTORS, VECTORS), {"first": VECTORS, "second": VECTORS}):
        assert [(finding.place, finding.kind) for finding in audit(Model(), x)] == [("drop", OUTPUT)]


def test_audit_leaves_the_model_and_the_random_numbers_alone() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.dropout(x)

    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), Counts(), nn.Linear(6, 2))
    model[1].eval()
    as_called = copy.deepcopy(model).eval()
    as_called(VECTORS)      # where noise is found in the first run there is no second one
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    audit(model, VECTORS)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert str(model.state_dict()) == str(as_called.state_dict())
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        audit(model[3:], torch.ones(2, 5))
    assert modes[4] == model[3].training and not model[3]._forward_hooks


@dataclass
class _Batch:
    x: Tensor


def test_audit_does_not_take_a_change_of_its_input_or_of_a_buffer_for_noise() -> None:
    x = VECTORS.clone()
    assert audit(Calls(lambda m, x: m.head(x.mul_(2)), head=nn.Linear(6, 2)), x) == ()
    for batch in (SimpleNamespace(x=x), _Batch(x)):
        assert audit(Calls(lambda m, batch: m.head(batch.x.mul_(2)), head=nn.Linear(6, 2)), batch) == ()
    assert torch.equal(x, VECTORS)

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(x) * self.calls

    assert audit(Counts(), x) == ()


class Cached(nn.Module):
    """A table that is filled in the first call, as those of rotary positions, and a number that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(8, 6), persistent=False)
        self.filled = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.filled < len(x):
            self.table[:len(x)] = torch.arange(len(x))[:, None].sin()
            self.filled = len(x)
        return x + self.table[:len(x)]


class Grows(nn.Module):
    """Keeps what it has seen, in a buffer that is another tensor after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, x])
        return x + len(self.seen)


class HooksItself(nn.Module):
    """Has a hook from the first call on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.is_hooked = nn.Linear(6, 6), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_hooked:
            self.linear.register_forward_hook(lambda module, args, output: output * 2)
            self.is_hooked = True
        return self.linear(x)


class HooksAnew(nn.Module):
    """Has another hook after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.handle = self.linear.register_forward_hook(self.twice)

    def twice(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output * 2

    def forward(self, x: Tensor) -> Tensor:
        self.handle.remove()
        self.handle = self.linear.register_forward_hook(self.twice)
        return self.linear(x)


@pytest.mark.parametrize("kind", [Cached, Grows, HooksItself, HooksAnew])
def test_a_model_with_a_state_goes_on_as_after_calls(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(kind(), nn.Dropout(0.1), nn.Linear(6, 2)).eval()
    again = copy.deepcopy(model)
    for _ in range(2):
        again(VECTORS)
    assert audit(model, VECTORS) == ()
    assert torch.equal(model(VECTORS), again(VECTORS))
    assert [len(part._forward_hooks) for part in model.modules()] == [len(part._forward_hooks)
                                                                      for part in again.modules()]


class Merging(nn.Module):
    """Does more in train() than to note the mode, as layers of loralib and graphs of torchvision do."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)


class Merges(Merging, nn.Linear):
    pass


class Whole(Merging, nn.Sequential):
    pass


def in_a_context(model: nn.Module, x: Tensor) -> None:
    with dropoutlib.monte_carlo(model):
        assert model.merged and model[1].merged
        with dropoutlib.monte_carlo(model[2]):
            model(x)


@pytest.mark.parametrize("call", [audit, dropoutlib.propagate_moments, in_a_context,
                                  lambda model, x: dropoutlib.predict(model, x, 2)])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", [True, False])
def test_a_class_that_does_more_in_train_is_put_back_by_it(call: Callable[..., Any], whole: bool, part: bool) -> None:
    model = Whole(nn.Dropout(0.1), Merges(6, 6), nn.Sequential(nn.Dropout(0.1), Merges(6, 2)))
    model.train(whole)
    model[1].train(part)
    modes = [module.training for module in model.modules()]
    call(model, VECTORS)
    assert [module.training for module in model.modules()] == modes
    assert [model.merged, model[1].merged, model[2][1].merged] == [not whole, not part, not whole]


class Attends(nn.Module):
    """Merges its weights where its mode changes, and drops in attention by its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.merged = 0.5, 0

    def train(self, mode: bool = True) -> Attends:
        if mode != self.training:
            self.merged += -1 if mode else 1
        return super().train(mode)

    def eval(self, data: object = None) -> Attends:     # type: ignore[override]
        raise AssertionError("model.eval() does not call it")

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout if self.training else 0.0)


@pytest.mark.parametrize("training", [True, False])
def test_what_a_context_wakes_is_put_back_by_train(training: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Attends()).train(training)
    merged = model[1].merged
    with dropoutlib.monte_carlo(model):
        model(SEQUENCES)
        with dropoutlib.monte_carlo(model, masks="example") as places:
            model(SEQUENCES)
        assert places == ["1"] and model[1].training and model[1].merged == 1
    dropoutlib.predict(model, SEQUENCES, 2)
    audit(model, SEQUENCES)
    assert model[1].training is training and model[1].merged == merged


def test_train_is_called_once_for_classes_in_each_other() -> None:
    class Counts(nn.Sequential):
        calls = 0

        def train(self, mode: bool = True) -> Counts:
            self.calls += 1
            return super().train(mode)

    model = Counts(Counts(Counts(nn.Linear(6, 6)), nn.Dropout()))
    before = [part.calls for part in model.modules() if isinstance(part, Counts)]
    dropoutlib.predict(model, VECTORS, 2)
    assert [part.calls for part in model.modules() if isinstance(part, Counts)] == [calls + 2 for calls in before]


def test_audit_knows_noise_from_another_kernel_for_the_same_numbers() -> None:
    """The strides of what a dropout gives are those that it has without the trace: a kernel is chosen by them."""
    class Transposes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.convolution = nn.Dropout(0.1), nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            maps = F.silu(x.transpose(1, 2).reshape(1, 32, 4, 4))
            return self.convolution(self.drop(maps))

    torch.manual_seed(0)
    assert audit(Transposes(), torch.randn(1, 16, 32)) == ()


def test_audit_of_a_frozen_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert [finding.kind for finding in audit(model, VECTORS)] == [NORM]
    model[2].eval()
    assert audit(model, VECTORS) == ()


def test_audit_between_forward_and_backward() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    output = model(VECTORS).sum()
    audit(model, VECTORS)
    output.backward()
    assert model[0].weight.grad is not None


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_part(model: nn.Module) -> nn.Module:
    model[0] = torch.compile(model[0], backend="eager")
    return model


COMPILED = {"": compiled_in_place, "_orig_mod.": lambda model: torch.compile(model, backend="eager"),
            " a part": compiled_part}


@pytest.mark.parametrize("prefix", COMPILED)
def test_audit_of_a_compiled_model(prefix: str, caplog, capfd) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.2)), *head())
    expected = audit(model, IMAGES)
    compiled = COMPILED[prefix](model)
    compiled(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit(compiled, IMAGES)
    place = "0._orig_mod.1" if prefix == " a part" else f"{prefix}0.1"
    assert [(one.place, one.kind) for one in report] == [(place, one.kind) for one in expected]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(capfd.readouterr())
    replace(compiled, {nn.Dropout: lambda old: dropoutlib.SpatialDropout2d(old.p)}, [place])
    assert not audit(compiled, IMAGES) and bool((compiled.eval()(IMAGES) == model(IMAGES)).all())


def test_audit_where_values_cannot_be_compared() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), *head()).to("meta")
    assert [finding.kind for finding in audit(model, IMAGES.to("meta"))] == [MAPS]
    sparse = Calls(lambda m, x: m.head(x).to_sparse(), head=nn.Linear(6, 2))
    assert audit(sparse, VECTORS) == ()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
class Scaled(dropoutlib.Dropout):
    """With a batch norm, a counter and a second argument."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input: Tensor, scale: float) -> Tensor:
        self.calls += 1
        return super().forward(self.norm(input.flatten(0, -2)).view_as(input)) * scale


class CallsItWithAScale(nn.TransformerEncoderLayer):
    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.activation(self.linear1(x))), 0.5)


def test_audit_of_layers_in_a_transformer_leaves_them_as_they_were() -> None:
    block = CallsItWithAScale(6, 2, 8, batch_first=True)
    block.dropout2 = Scaled()
    model = nn.Sequential(block, nn.Linear(6, 2))
    assert [one.place for one in audit(model, SEQUENCES) if one.kind == SKIPPED] == ["0.dropout2"]
    assert block.dropout2.calls == 2 and all(module.training for module in model.modules())


def test_audit_of_one_layer_that_stands_in_two_transformers_and_in_front() -> None:
    layer = dropoutlib.WeightScalingDropout(0.5)
    model = nn.Sequential(layer, *(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True) for _ in range(2)),
                          nn.Linear(6, 2))
    model[1].dropout1 = model[2].dropout1 = layer
    found = [one.place for one in audit(model, SEQUENCES) if one.kind == SKIPPED]
    assert found == ["1.dropout1", "2.dropout1"]


def test_audit_after_the_largest_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(-1)
        assert audit(nn.Sequential(nn.Linear(6, 2)), VECTORS) == ()


def test_audit_refuses_what_it_cannot_follow() -> None:
    traced = torch.jit.trace(nn.Linear(6, 2), VECTORS)
    with pytest.raises(TypeError, match=r"0 is one: use the model before it is scripted"):
        audit(nn.Sequential(traced), VECTORS)
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"0 \(LazyLinear\) has no weights yet"):
        audit(lazy, VECTORS)
    assert lazy[0].has_uninitialized_params()
    linear = nn.Linear(3, 3)
    linear.weight = nn.UninitializedParameter()     # as layers of torch-geometric have it
    with pytest.raises(ValueError, match=r"0 \(Linear\) has no weights yet"):
        audit(nn.Sequential(linear), VECTORS)


def test_a_report_prints_its_findings_by_kind() -> None:
    report = audit(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Conv2d(4, 4, 3), nn.Dropout()), IMAGES)
    assert isinstance(report, Report) and isinstance(report[0], Finding)
    first, second, third, fourth, fifth = repr(report).splitlines()
    assert first == "element dropout on feature maps (see the chapter 'What is dropped?')"
    assert second.startswith("  1: dropout acts on maps of shape (2, 4, 6, 6)") and "SpatialDropout2d" in second
    assert third == "    The same at 3."
    assert fourth.startswith("dropout on the output (see ") and fifth.startswith("  3: ")
    assert "call of a function" not in repr(report), "replace exchanges modules"
    assert repr(audit(nn.Linear(6, 2), VECTORS)) == "nothing found"


class DropsInAFunction(nn.Module):
    """As a layer of a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.body(self.norm(x)), 0.2, training=self.training)


def test_functional_dropout_in_layers_that_repeat() -> None:
    model = nn.Sequential(*(DropsInAFunction() for _ in range(6)), nn.Dropout(0.1), *head(192))
    report = audit(model, IMAGES)
    calls = [finding for finding in report if finding.place != "6"]
    assert len(calls) == 6 + 5 and len(report) == len(calls) + 1
    assert all("is the call of a function in DropsInAFunction: replace()" in finding.message for finding in calls)
    starts = [line.split(":")[0].split(" (")[0] for line in repr(report).splitlines()]
    assert starts == [MAPS, "  0", "    The same at 1, 2, 3 and 2 more.", "  6", NORM, "  0",
                      "    The same at 1, 2, 3 and 1 more."]
    factories = {nn.Dropout: lambda old: dropoutlib.SpatialDropout2d(old.p)}
    places = [finding.place for finding in report if finding.kind == MAPS]
    for some in (["0"], ["0", "1", "2", "3", "4"]):
        with pytest.raises(ValueError, match=r"in the given places, 0 \(DropsInAFunction\).*; a call of a function"):
            replace(model, factories, some)
    with pytest.warns(UserWarning, match=r"at 0 \(DropsInAFunction\), 1 .* and 3 more: .*a call of a function"):
        replace(model, factories, places)
    assert type(model[6]) is dropoutlib.SpatialDropout2d


def test_chapters_are_linked_where_the_address_of_the_book_is_known(monkeypatch):
    metadata = Message()
    metadata["Project-URL"] = "Documentation, https://example.org/book-site/"
    monkeypatch.setattr(surgery.metadata, "metadata", lambda name: metadata)
    root = Path(dropoutlib.__file__).parents[1]
    for kind, chapter in surgery._CHAPTERS.items():
        shown = repr(Report([Finding(kind, "0", "message", chapter)]))
        path = re.search(r"https://example\.org/book-site/(\S+)\.html", shown)[1]
        assert (root / f"{path}.ipynb").is_file(), path


class OwnDropConnect(dropoutlib.DropConnectLinear):
    """As a user writes one."""


def test_a_subclass_of_a_layer_is_found() -> None:
    model = nn.Sequential(OwnDropConnect(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert [(one.place, one.kind) for one in audit(model, VECTORS)] == [("0", NORM)]


def test_replace() -> None:
    shared = nn.Dropout(0.3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.Sequential(shared, nn.Dropout(0.1, inplace=True)).eval(),
                          nn.ModuleDict({"x": nn.AlphaDropout(0.2)}))
    result = replace(model, {nn.Dropout: lambda old: dropoutlib.SpatialDropout2d(old.p, old.inplace)})
    assert result is model and model[1] is model[2][0] and model[1] is not shared
    assert [repr(model[1]), repr(model[2][1])] == ["SpatialDropout2d(p=0.3, inplace=False)",
                                                   "SpatialDropout2d(p=0.1, inplace=True)"]
    assert model[1].training is False, "a module is in the mode of the one it replaces"
    assert isinstance(model[3]["x"], nn.AlphaDropout)
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert audit(model[:2], IMAGES)[0].kind == OUTPUT


def test_replace_in_some_places() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 2))
    factories = {nn.Dropout: lambda old: dropoutlib.SpatialDropout2d(old.p)}
    replace(model, factories, [finding.place for finding in audit(model, IMAGES) if finding.kind == MAPS])
    assert [type(model[place]).__name__ for place in (1, 3)] == ["SpatialDropout2d", "Dropout"]
    assert model(IMAGES).shape == (2, 2)
    with pytest.raises(ValueError, match="exactly of the classes Dropout in the given places"):
        replace(model, factories, ["1"])
    with pytest.raises(ValueError, match="places has '7', but the model Sequential has no module of that name"):
        replace(model, factories, ["3", "7"])
    with pytest.raises(TypeError, match="but got the text '3'"):
        replace(model, factories, "3")
    assert type(model[3]) is nn.Dropout


def test_a_place_may_be_any_name_of_a_shared_module() -> None:
    shared = nn.Dropout()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    replace(model, {nn.Dropout: lambda old: dropoutlib.Dropout(old.p)}, ["2"])
    assert type(model[0]) is dropoutlib.Dropout and model[0] is model[2]


def test_replace_of_the_model_itself_and_of_subclasses() -> None:
    new = replace(nn.Dropout(0.3), {nn.Dropout: lambda old: dropoutlib.Dropout(old.p)})
    assert repr(new) == "Dropout(p=0.3, inplace=False)" and type(new) is dropoutlib.Dropout
    model = nn.Sequential(StaysInTraining(), nn.Dropout())
    replace(model, {nn.Dropout: lambda old: nn.Identity()})
    assert [type(module) for module in model] == [StaysInTraining, nn.Identity]


def test_replace_of_modules_in_one_another() -> None:
    inner = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(6)).train()
    inner[1].eval()
    model = nn.ModuleList([inner])
    replace(model, {nn.Sequential: lambda old: nn.Sequential(*old, nn.ReLU()),
                    nn.Dropout: lambda old: dropoutlib.Dropout(old.p)})
    assert [type(module).__name__ for module in model[0]] == ["Dropout", "BatchNorm1d", "ReLU"]
    assert type(model[0][0]) is dropoutlib.Dropout
    assert [module.training for module in model[0]] == [True, False, True], "what is kept is in the mode it was in"


def test_replace_by_a_wrapper() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    first = model[0]
    replace(model, {nn.Linear: dropoutlib.ConcreteDropout})
    assert model[0].module is first and not model[0].training and model(VECTORS).shape == (4, 2)


class LanguageModel(nn.Module):
    """The head has the weights of the embedding, as in a GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


def loaded(old: nn.Linear) -> nn.Module:
    new = dropoutlib.DropConnectLinear(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    return new


def embedded(old: nn.Embedding) -> nn.Module:
    return nn.Embedding(*old.weight.shape, _weight=old.weight.detach().clone())


@pytest.mark.parametrize("factories", [{nn.Linear: loaded}, {nn.Linear: loaded, nn.Embedding: embedded},
                                       {nn.Linear: dropoutlib.ConcreteDropout}])
def test_tied_weights_stay_tied(factories) -> None:
    model = LanguageModel()
    weight = model.embedding.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(model, factories)
    assert getattr(model.head, "module", model.head).weight is model.embedding.weight is weight
    assert sum(parameter is weight for parameter in model.parameters()) == 1


def test_parts_that_are_replaced_as_one_stay_tied_to_others() -> None:
    model = nn.ModuleDict({"model": LanguageModel(), "probe": nn.Bilinear(4, 1, 7)})
    model["probe"].bias = model["model"].head.bias
    replace(model, {LanguageModel: copy.deepcopy})
    assert model["model"].head.bias is model["probe"].bias
    assert model["model"].head.weight is model["model"].embedding.weight


def frozen(old: nn.Linear) -> nn.Module:
    return loaded(old).requires_grad_(False)


@pytest.mark.parametrize("factory", [
    lambda old: dropoutlib.DropConnectLinear(old.in_features, old.out_features), lambda old: loaded(old).double(),
    lambda old: nn.Sequential(loaded(old)), frozen])
def test_weights_that_are_tied_no_more_are_named(factory) -> None:
    model = LanguageModel()
    with pytest.warns(UserWarning, match=r"head\.weight was one parameter with embedding\.weight") as caught:
        replace(model, {nn.Linear: factory})
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(LanguageModel(), {nn.Linear: lambda old: nn.Identity()})


def test_replace_changes_nothing_where_a_factory_fails() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.7))

    def factory(old: nn.Dropout) -> nn.Module:
        return dropoutlib.SpatialDropout2d(old.p + 0.5)

    with pytest.raises(ValueError, match=r"between 0 and 1, but got 1\.2"):
        replace(model, {nn.Dropout: factory})
    assert all(type(module) is nn.Dropout for module in model)


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="model has to be a module, but got int"):
        audit(3, VECTORS)
    with pytest.raises(TypeError, match="model has to be a module, but got int"):
        replace(3, {})
    with pytest.raises(ValueError, match="the model Linear has no module that is exactly of the classes Dropout"):
        replace(nn.Linear(2, 2), {nn.Dropout: nn.Identity})
    with pytest.raises(TypeError, match="factories has to map classes"):
        replace(nn.Dropout(), nn.Dropout)
    with pytest.raises(TypeError, match="has the key 'Dropout'"):
        replace(nn.Dropout(), {"Dropout": nn.Identity})
    with pytest.raises(TypeError, match=r"factory of Dropout has to return a module, but got 1 for 0"):
        replace(nn.Sequential(nn.Dropout()), {nn.Dropout: lambda old: 1})
    for factory in (nn.Identity(), 3, None):
        with pytest.raises(TypeError, match="factory of Dropout has to be a function from the old module"):
            replace(nn.Dropout(), {nn.Dropout: factory})


def test_a_class_as_factory_says_what_to_write() -> None:
    with pytest.raises(TypeError, match="real number") as caught:
        replace(nn.Sequential(nn.Dropout()), {nn.Dropout: dropoutlib.SpatialDropout2d})
    first, second = caught.value.__notes__
    assert first.startswith("in the factory for 0, Dropout(p=0.5") and "lambda old: SpatialDropout2d(old.p)" in second
    assert isinstance(replace(nn.Dropout(), {nn.Dropout: nn.Identity}), nn.Identity)


class ReadsTheRate(nn.Module):
    """As the attention of other libraries: the module only holds a number."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.dropout, self.last = drop, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(x, self.dropout.p, self.training))


def test_a_layer_that_nothing_calls_is_found() -> None:
    assert audit(ReadsTheRate(nn.Dropout(0.5)), VECTORS) == ()
    finding, = audit(ReadsTheRate(dropoutlib.GaussianDropout(0.5)), VECTORS)
    assert (finding.kind, finding.place) == ("noise that nothing calls", "dropout")
    assert audit(ReadsTheRate(dropoutlib.GaussianDropout(0.0)), VECTORS) == ()
    assert "noise that nothing calls" in repr(Report([finding]))


def test_packed_sequences_are_one_input() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(5, 6), torch.ones(3, 6)])
    assert audit(nn.LSTM(6, 4), packed) == audit(nn.LSTM(6, 4), (packed,)) == ()


def test_no_places_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 2))
    assert replace(model, {nn.Dropout: lambda old: dropoutlib.Dropout(old.p)}, []) is model
    assert type(model[1]) is nn.Dropout
    with pytest.raises(TypeError, match=r"finding\.place"):
        replace(model, {nn.Dropout: lambda old: dropoutlib.Dropout(old.p)}, [Finding("kind", "1", "", "")])
