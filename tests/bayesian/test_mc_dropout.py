"""Monte Carlo dropout: what is turned on and what stays, shared masks, and predictions against the exact law."""

import asyncio
import contextlib
import copy
import gc
import io
import itertools
import math
import pickle
import random
import threading
import warnings
import weakref
from collections import OrderedDict, UserDict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

import dropoutlib
from dropoutlib import NoisyLayer, functional, monte_carlo, predict
from dropoutlib.bayesian import mc_dropout
from dropoutlib.enumeration import masks as all_masks
from dropoutlib.experiments import mc_dropout as experiment
from dropoutlib.experiments import measured
from dropoutlib.experiments.paired import read_scores


class Of(nn.Module):
    """A module around a function."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Own(NoisyLayer):
    def forward(self, input, *, noise=None, generator=None):
        return functional.dropout(input, 0.5, self.training, noise=noise, generator=generator)

    def _draw(self, input, generator):
        return functional.draw(functional.dropout, input, 0.5, generator=generator)


def sdpa(x, p):
    x = x.unsqueeze(1)
    return F.scaled_dot_product_attention(x, x, x, dropout_p=p).squeeze(1)


class LlamaAttention(nn.Module):
    """As in transformers: the rate is seen in training alone."""

    def __init__(self, p, named="attention_dropout"):
        super().__init__()
        setattr(self, named, p)
        self.named, self.norm = named, nn.BatchNorm1d(6)

    def forward(self, x):
        rate = getattr(self, self.named)
        rate = rate.p if isinstance(rate, nn.Module) else rate
        return sdpa(self.norm(x), rate if self.training else 0.0)


SEQUENCE, MAPS = (4, 6, 8), (2, 16, 3, 3)
KINDS = {
    "Dropout": (nn.Dropout(0.5), SEQUENCE), "Dropout in place": (nn.Dropout(0.5, inplace=True), SEQUENCE),
    "Dropout1d": (nn.Dropout1d(0.5), SEQUENCE), "Dropout2d": (nn.Dropout2d(0.5), MAPS),
    "Dropout3d": (nn.Dropout3d(0.5), (2, 16, 2, 2, 2)), "AlphaDropout": (nn.AlphaDropout(0.5), SEQUENCE),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.5), MAPS),
    "function": (Of(lambda self, x: F.dropout(x, 0.5, training=False)), SEQUENCE),
    "function by position": (Of(lambda self, x: F.dropout2d(x, 0.5, False)), MAPS),
    "function that follows the mode": (Of(lambda self, x: F.dropout(x, training=self.training)), SEQUENCE),
    "torch.dropout": (Of(lambda self, x: torch.dropout(x, 0.5, train=False)), SEQUENCE),
    "aten": (Of(lambda self, x: torch.ops.aten.dropout.default(x, 0.5, False)), SEQUENCE),
    "alpha function": (Of(lambda self, x: F.alpha_dropout(x, 0.5)), SEQUENCE),
    "LSTM": (nn.LSTM(8, 5, 2, dropout=0.5), SEQUENCE), "GRU": (nn.GRU(8, 5, 2, dropout=0.5), SEQUENCE),
    "RNN": (nn.RNN(8, 5, 2, dropout=0.5), SEQUENCE),
    "packed LSTM": (Of(lambda self, x: self.layer(pack_sequence([x[0], x[1, :3]]))[0].data,
                       layer=nn.LSTM(8, 5, 2, dropout=0.5)), SEQUENCE),
    "packed GRU": (Of(lambda self, x: self.layer(pack_sequence([x[0], x[1, :3]]))[0].data,
                      layer=nn.GRU(8, 5, 2, dropout=0.5)), SEQUENCE),
    "attention": (Of(lambda self, x: self.layer(x, x, x, need_weights=False)[0],
                     layer=nn.MultiheadAttention(8, 2, dropout=0.5)), SEQUENCE),
    "attention with weights": (Of(lambda self, x: self.layer(x, x, x)[0],
                                  layer=nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)), SEQUENCE),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True), SEQUENCE),
    "attention of transformers": (LlamaAttention(0.5), SEQUENCE),
    "attention of timm": (LlamaAttention(nn.Dropout(0.5), "attn_drop"), SEQUENCE),
    "ours": (dropoutlib.Dropout(), SEQUENCE), "a subclass of ours": (Own(), SEQUENCE),
    "VariationalLSTM": (dropoutlib.VariationalLSTM(8, 5, p_input=0.3, p_hidden=0.3), SEQUENCE),
    "sampled": (dropoutlib.VariationalLSTM(8, 5, p_input=0.3, inference="sampled"), SEQUENCE),
    "only between layers": (dropoutlib.RNNDropLSTM(8, 5, 2, dropout=0.5, p=0), SEQUENCE),
    "concrete": (dropoutlib.ConcreteDropout(nn.Linear(8, 5)), SEQUENCE),
}


def output(model, x):
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, torch.Tensor) else y[0]


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# What is on, and what stays


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_every_kind_of_dropout_is_on_and_nothing_else(name, training):
    layer, shape = KINDS[name]
    model = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(shape[1]) if len(shape) == 3 else nn.Identity(),
                                      layer=layer)).train(training)
    if name == "sampled":
        training = False
    modes = {part: part.training for part in model.modules()}
    buffers = [buffer.clone() for buffer in model.buffers()]
    x = numbers(*shape)
    with monte_carlo(model) as places:
        one, other = output(model, x.clone()), output(model, x.clone())
    assert not torch.equal(one, other)
    assert places and all(place.startswith("layer") for place in places)
    assert all(torch.equal(old, new) for old, new in zip(buffers, model.buffers(), strict=True))
    assert {part: part.training for part in model.modules()} == modes
    if not training and name not in ("sampled", "alpha function"):
        assert torch.equal(output(model, x.clone()), output(model, x.clone()))


def test_what_is_not_dropout_stays_as_in_evaluation():
    cutout = nn.Sequential(dropoutlib.Cutout(2), nn.Dropout(0.0))
    images = torch.ones(4, 1, 6, 6)
    with pytest.raises(RuntimeError, match="nothing in the model Sequential drew"), monte_carlo(cutout):
        cutout(images)
    model = nn.Sequential(dropoutlib.Cutout(2), nn.Dropout(0.0), dropoutlib.Dropout(0.0),
                          dropoutlib.VariationalLSTM(6, 6, p_input=0, p_hidden=0), Of(lambda self, x: x[0]),
                          nn.Dropout(0.5))
    with monte_carlo(model) as places:
        model(torch.ones(4, 1, 6))
    assert places == ["5"]


def test_only_the_model_is_reached():
    model, other = nn.Dropout(0.5), nn.Dropout(0.5).eval()
    x = torch.ones(100)
    with monte_carlo(model):
        assert torch.equal(other(x), x)
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert (model(x) == 0).any()


def test_a_backbone_that_stays_in_evaluation_draws_but_for_a_context_of_the_head():
    class Tuned(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0].eval()
            return self

    model = Tuned(nn.Dropout(), nn.Dropout()).train()
    for part, expected in [(model, ["0", "1"]), (model[1], [""])]:
        with monte_carlo(part) as places:
            model(torch.ones(2, 3))
        assert places == expected and not model[0].training and model[1].training


def test_in_place_dropout_writes_into_its_input():
    x = torch.ones(100)
    with monte_carlo(nn.Dropout(0.5, inplace=True)) as _:
        pass
    model = nn.Dropout(0.5, inplace=True)
    for masks in ("example", "call"):
        x = torch.ones(20, 5)
        with monte_carlo(model, masks):
            assert model(x) is x
        assert (x == 0).any()


def test_an_error_inside_leaves_everything_as_it_was():
    def fail(self, x):
        self.drop(x)
        raise KeyError("mine")

    model = Of(fail, drop=nn.Dropout(0.5), norm=nn.BatchNorm1d(3), ours=dropoutlib.Dropout()).train()
    model.norm.eval()
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    with pytest.raises(KeyError, match="mine"), monte_carlo(model):
        model(torch.ones(2, 3))
    assert [part.training for part in model.modules()] == [True, True, False, True]
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()] == hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(mc_dropout._CONTEXTS.values())
    model.eval()
    x = torch.ones(50)
    assert torch.equal(model.drop(x), x)


def test_a_call_that_failed_is_forgotten():
    model = Of(lambda self, x: self.drop(x) if x.sum() > 0 else self.missing, drop=nn.Dropout(0.5)).eval()
    with monte_carlo(model, "fixed"):
        one = model(torch.ones(2, 9))
        with pytest.raises(AttributeError):
            model(-torch.ones(2, 9))
        assert torch.equal(one, model(torch.ones(2, 9)))


@pytest.mark.parametrize(("outer", "inner"), [("fixed", "example"), ("example", "fixed"), ("call", "example")])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), dropoutlib.Dropout(0.5)])
def test_the_innermost_context_counts(layer, outer, inner):
    def same(pairs):
        return {"rows": all(torch.equal(row, one[0]) for one in pairs for row in one),
                "calls": torch.equal(*pairs)}

    model, x = nn.Sequential(layer), torch.ones(3, 64)
    seen = {}
    with monte_carlo(model, outer):
        seen[outer] = same([model(x), model(x)])
        with monte_carlo(model, inner):
            seen[inner] = same([model(x), model(x)])
        assert same([model(x), model(x)]) == seen[outer]
    expected = {"example": {"rows": False, "calls": False}, "call": {"rows": True, "calls": False},
                "fixed": {"rows": True, "calls": True}}
    assert all(seen[masks] == expected[masks] for masks in (outer, inner))


def test_a_context_inside_of_another_may_be_that_of_a_part():
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), torch.ones(2, 500)
    with monte_carlo(model) as whole:
        with monte_carlo(model[1]) as part:
            y = model(x)
        model(x)
    assert (whole, part) == (["0", "1"], [""])
    assert 0.6 < (y == 0).float().mean() < 0.9


@pytest.mark.parametrize("outer", ["example", "call", "fixed"])
@pytest.mark.parametrize("inner", ["example", "call", "fixed"])
@pytest.mark.parametrize("layer", [nn.Dropout(), dropoutlib.Dropout(), Of(lambda self, x: F.dropout(x, 0.5, False))])
def test_what_draws_in_an_inner_context_is_noise_of_the_outer_one(layer, outer, inner):
    model, x = nn.Sequential(nn.Linear(4, 64), nn.Sequential(layer)).eval(), numbers(2, 4)
    with monte_carlo(model, outer) as places, monte_carlo(model[1], inner) as parts:
        assert (model(x) == 0).any()
    assert places == [] and parts == ["0"]


def test_noise_that_was_given_is_used():
    model, x = dropoutlib.Dropout(0.5), torch.ones(2, 3)
    keep = torch.tensor([[True, False, True], [False, True, False]])
    for masks in ("example", "call", "fixed"):
        with monte_carlo(model, masks):
            assert torch.equal(model(x, noise=keep), 2.0 * keep)


@pytest.mark.parametrize("masks", ["example", "call", "fixed"])
@pytest.mark.parametrize("given", ["by the caller", "by a hook"])
def test_a_place_whose_noise_was_given_drew_none(masks, given):
    model, x, keep = Of(lambda self, x, **more: self.layer(x, **more), layer=dropoutlib.Dropout()), torch.ones(2, 3), {
        "noise": torch.tensor([[True, False, True], [False, True, False]])}
    if given == "by a hook":
        model.layer.register_forward_pre_hook(lambda _, args, kwargs: (args, keep), with_kwargs=True)
    with monte_carlo(model, masks) as places:
        assert torch.equal(model(x, **({} if given == "by a hook" else keep)), 2.0 * keep["noise"])
    assert places == []


@pytest.mark.parametrize("masks", ["example", "call", "fixed"])
@pytest.mark.parametrize("layer", [nn.Dropout(), dropoutlib.Dropout()], ids=["torch's", "ours"])
def test_masks_are_for_what_a_hook_makes_of_the_input(layer, masks):
    model = nn.Sequential(layer)
    handle = layer.register_forward_pre_hook(lambda _, args: (args[0].repeat(1, 30),))
    with monte_carlo(model, masks) as places:
        assert 0 < (model(torch.ones(2, 3)) == 0).sum() < 180 and places == ["0"]
    handle.remove()


@pytest.mark.parametrize("kind", ["of the module", "of all modules"])
def test_what_drops_in_a_hook_is_on_in_the_place_of_its_module(kind):
    layer, x = nn.Linear(50, 4), torch.ones(2, 50)
    fails = [True]

    def drop(module, args):
        if fails.pop():
            raise KeyError("mine")
        return (F.dropout(args[0], 0.5, module.training),) if module is layer else None

    handle = (layer.register_forward_pre_hook if kind == "of the module" else
              nn.modules.module.register_module_forward_pre_hook)(drop)
    try:
        with monte_carlo(layer) as places:
            with pytest.raises(KeyError, match="mine"):
                layer(x)
            fails += [False] * 2
            assert not torch.equal(layer(x), layer(x)) and places == [""]
        fails += [False] * 100
        assert len(predict(layer, x, 5).samples.unique(dim=0)) == 5
    finally:
        handle.remove()


def test_a_compiled_model_runs_uncompiled():
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5)).eval()
    compiled, x = torch.compile(model, backend="eager"), torch.ones(2, 4)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
        with monte_carlo(compiled) as places:
            assert not torch.equal(compiled(x), compiled(x))
        assert len(places) == 1
        assert predict(compiled, x, 5).samples.unique(dim=0).shape[0] == 5
        assert torch.equal(compiled(x), model(x))


def test_attention_that_hides_its_rate_is_reported_once_a_place():
    model = Of(lambda self, x: self.drop(self.attention(self.attention(x))), drop=nn.Dropout(0.5),
               attention=Of(lambda self, x: sdpa(x, 0.0)))
    with (pytest.warns(UserWarning, match="in attention .* no attribute of the module names one") as caught,
          monte_carlo(model) as places):
        model(numbers(2, 3, 4)), model(numbers(2, 3, 4))
    assert len(caught) == 1 and places == ["drop"]
    silent = nn.Sequential(LlamaAttention(0.0), nn.Dropout())  # it says that its rate is 0
    with warnings.catch_warnings(), monte_carlo(silent) as places:
        warnings.simplefilter("error")
        output(silent, numbers(2, 6, 4))
    assert places == ["1"]


class Block(nn.Module):
    """Neither its class nor the rate says what it does."""

    def __init__(self, rate, read=None):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        for name, value in rate.items():
            setattr(self, name, value)
        self.read = read or (lambda: getattr(self, next(iter(rate))))

    def forward(self, x):
        x = self.norm(x)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.read() if self.training else 0.0)


class Renamed(Block):
    def forward(self, x):
        return self.mix(self.norm(x))

    @torch.no_grad()
    def mix(self, x):
        return torch.stack([attend(x, x, x, None, self.read() if self.training else 0.0) for _ in range(1)])[0]


def configured(part, key):
    block = Block({"config": part})
    block.read = lambda: part[key] if isinstance(part, dict) else getattr(part, key)
    return block


@pytest.mark.parametrize("make", [
    *(lambda name=name: Block({name: 0.5}) for name in ("dropout", "dropout_p", "dropout_rate", "drop", "resid_pdrop",
                                                        "attn_pdrop", "p")),
    lambda: configured(SimpleNamespace(dropout=0.5), "dropout"), lambda: configured({"p": 0.5}, "p"),
    lambda: configured(SimpleNamespace(attn_pdrop=0.5, dropout_layers=3, drop_last=True), "attn_pdrop"),
    lambda: Renamed({"dropout": 0.5})])
def test_what_calls_attention_drops_as_in_training(make):
    model, x = nn.Sequential(make()).eval(), numbers(2, 6, 4)
    model[0].training = True
    torch.manual_seed(0)
    expected = model(x)
    model.eval()
    for _ in range(2):
        with warnings.catch_warnings(), monte_carlo(model) as places:
            warnings.simplefilter("error")
            model.eval()    # as a training loop does before it measures
            torch.manual_seed(0)
            assert torch.equal(model(x), expected)
            assert places == ["0"] and [part.training for part in model.modules()] == [False, True, False]
    assert len(predict(model, x, 10).samples.unique(dim=0)) == 10
    assert not torch.equal(model(x), expected)


HIDDEN = {
    "attention": lambda self, x: sdpa(x, self.rate_of_drop if self.training else 0.0),
    "dropout": lambda self, x: F.dropout(x, self.rate_of_drop if self.training else 0.0),
    "dropout that is told its mode": lambda self, x: F.dropout(x, self.rate_of_drop if self.training else 0.0,
                                                               self.training),
    "attention of torch": lambda self, x: F.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3, 4, 1, torch.eye(4).repeat(3, 1), None, None, None, False,
        self.rate_of_drop if self.training else 0.0, torch.eye(4), None)[0].transpose(0, 1)}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_rate_that_is_hidden_in_evaluation_is_reported_with_a_cure(name):
    model, x = nn.Sequential(Of(HIDDEN[name], rate_of_drop=0.5), nn.Dropout(0.5)), numbers(2, 3, 4)
    with (pytest.warns(UserWarning, match=r"in 0 \(Of\) .* the module has rate_of_drop = 0.5") as caught,
          monte_carlo(model) as places):
        model(x), model(x)
    assert len(caught) == 1 and places == ["1"]
    model[0].attention_dropout = 0.5        # as the message says
    with warnings.catch_warnings(), monte_carlo(model) as places:
        warnings.simplefilter("error")
        model(x)
    assert places == ["0", "1"]


@pytest.mark.parametrize("part", [
    Block({"dropout": 0.0}), configured(SimpleNamespace(dropout=0.0), "dropout"),
    Of(lambda self, x: sdpa(x, 0.0), dropout=0), Of(lambda self, x: F.scaled_dot_product_attention(x, x, x)),
    Of(lambda self, x: F.scaled_dot_product_attention(x, x, x), dropout=0.5),
    Of(lambda self, x: self.drop(x), drop=nn.Dropout(0.0), dropout=0.5),
    Of(lambda self, x: F.dropout(F.dropout(x, self.dropout, self.training), self.activation_dropout, self.training),
       dropout=0.5, activation_dropout=0.0),
    Of(lambda self, x: F.dropout(x, 0.0)), nn.LSTM(4, 4),
    Of(lambda self, x: self.layer(x, x, x)[0], layer=nn.MultiheadAttention(4, 1))])
def test_no_alarm_for_what_does_not_hide_its_rate(part):
    model = Of(lambda self, x: self.last(output(self.part, x)), part=part, last=nn.Dropout(0.5), dropout=0.5)
    with warnings.catch_warnings(), monte_carlo(model) as places:
        warnings.simplefilter("error")
        model(numbers(2, 6, 4))
        assert places[-1] == "last" and not model.training


def test_only_the_attention_that_names_its_rate_is_in_training():
    model = nn.Sequential(LlamaAttention(0.5), LlamaAttention(0.0))
    with monte_carlo(model):
        assert [part.training for part in (model, model[0], model[0].norm, model[1])] == [False, True, False, False]


@pytest.mark.parametrize(("library", "make", "shape", "expected"), [
    ("torchvision.models", lambda lib: lib.mobilenet_v3_small(weights=None), (2, 3, 64, 64), {"classifier.2"}),
    ("timm", lambda lib: lib.create_model("efficientnet_b0", drop_rate=0.2), (2, 3, 64, 64), {""}),
    ("timm", lambda lib: lib.create_model("vit_tiny_patch16_224", img_size=32, depth=2, attn_drop_rate=0.2),
     (2, 3, 32, 32), {"blocks.0.attn", "blocks.1.attn"}),
    ("transformers", lambda lib: Of(lambda self, x: self.model(pixel_values=x).logits, model=(
        lib.ViTForImageClassification(lib.ViTConfig(
            image_size=32, patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.2, hidden_size=32,
            num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)))), (2, 3, 32, 32),
     {"model.vit.layers.0.attention", "model.vit.layers.1.attention"}),
])
def test_models_that_others_wrote(library, make, shape, expected):
    model = make(pytest.importorskip(library, exc_type=Exception))
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad(), monte_carlo(model) as places:
        one, other = model(numbers(*shape)), model(numbers(*shape))
    assert not torch.equal(one, other) and set(places) == expected
    assert len(predict(model, numbers(*shape), 4).samples.unique(dim=0)) == 4
    assert all(torch.equal(old, new) for old, new in zip(buffers, model.buffers(), strict=True))


class Checkpointed(nn.Module):
    def __init__(self, body, is_on):
        super().__init__()
        self.body, self.is_on = body, is_on

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False) if self.is_on else self.body(x)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), dropoutlib.Dropout(0.5)])
def test_a_checkpoint_draws_the_same_masks_again(layer):
    """backward() runs the forward again, in a function of torch, inside of which no mode is on."""
    body = nn.Sequential(nn.Linear(3, 40), layer, nn.Tanh(), nn.Linear(40, 40), nn.Dropout(0.3), nn.Linear(40, 3))
    found = []
    for is_on in (False, True):
        model, x = Checkpointed(body, is_on), torch.ones(4, 3, requires_grad=True)
        torch.manual_seed(1)
        with monte_carlo(model):
            y = model(x)
            y.sum().backward()
        found.append((y, x.grad))
    torch.testing.assert_close(*found)
    for masks in ("call", "fixed"):
        with monte_carlo(model, masks):
            with pytest.raises(RuntimeError, match=f"'example' under activation checkpointing, but got '{masks}'"):
                model(x)
            with torch.no_grad():       # nothing is computed again
                model(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_function_that_a_checkpoint_calls_is_refused_where_it_drops(use_reentrant):
    model = Of(lambda self, x: checkpoint(lambda z: self.out(F.dropout(z, 0.5, self.training)), x,
                                          use_reentrant=use_reentrant), out=nn.Linear(3, 2))
    x = torch.ones(4, 3, requires_grad=True)
    with monte_carlo(model):
        with pytest.raises(RuntimeError, match="dropout is called by a function under activation checkpointing"):
            model(x)
        with torch.no_grad():
            model(x)
    assert len(predict(model, x, 4).samples.unique(dim=0)) == 4


def test_threads_call_a_model_in_its_context():
    model, x = nn.Sequential(nn.Linear(3, 40), nn.Dropout(), nn.Linear(40, 3)), torch.ones(2, 3)
    with monte_carlo(model) as places, ThreadPoolExecutor(4) as threads:
        outputs = torch.stack(list(threads.map(lambda _: model(x), range(20))))
    assert len(outputs.unique(dim=0)) == 20 and places == ["1"]
    with monte_carlo(model, "fixed"), ThreadPoolExecutor(4) as threads:
        outputs = torch.stack(list(threads.map(lambda _: model(x), range(20))))
        assert torch.equal(outputs, model(x).expand_as(outputs))


def test_threads_predict_one_after_the_other():
    models = [nn.Sequential(nn.Linear(3, 40), layer, nn.Linear(40, 3)).eval()
              for layer in (nn.Dropout(), dropoutlib.Dropout())]
    x, before = torch.ones(2, 3), torch.get_rng_state()

    def sampled(number):
        return predict(models[number % 2], x, 5, generator=torch.Generator().manual_seed(number)).samples

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(sampled, range(12)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(samples, sampled(number)) for number, samples in enumerate(found))
    assert all(torch.equal(model(x), model(x)) for model in models)


def test_a_context_of_another_thread_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), dropoutlib.Dropout())
    with monte_carlo(model), ThreadPoolExecutor(1) as threads, pytest.raises(RuntimeError, match="of another thread"):
        threads.submit(predict, model, torch.ones(2, 3), 3).result()
    assert model.training and len(predict(model, torch.ones(2, 3), 3).samples) == 3


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)),
          "an old pickle": lambda model: pickle.loads(pickle.dumps(model, 0)),
          "torch.save": lambda model: saved_and_loaded(model),
          "an average": lambda model: torch.optim.swa_utils.AveragedModel(model).module}


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class DropsInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.5

    def forward(self, x):
        return attend(x, x, x, dropout_p=self.attention_dropout if self.training else 0.0)


class CopiesItself(dropoutlib.Dropout):
    def __deepcopy__(self, memo):
        other = type(self)()
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def __reduce__(self):
        return CopiesItself, (), list(vars(self).items())


def looks_on(module, args, kwargs):
    return None


def modes_and_hooks(model):
    return [(module.training, {name: len(part) for name, part in vars(module).items() if "forward" in name})
            for module in model.modules()]


@pytest.mark.parametrize("masks", ["example", "fixed"])
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("copied", COPIES)
def test_copies_that_are_made_in_a_context_are_as_the_model_was_before(copied, mode, masks):
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(), nn.Sequential(dropoutlib.Dropout(), nn.BatchNorm1d(40)),
                          DropsInTraining(), nn.LSTM(40, 4, 2, dropout=0.5)).train(mode)
    model[1].train(not mode)
    model.register_forward_pre_hook(looks_on, with_kwargs=True)
    before = modes_and_hooks(model)
    with monte_carlo(model, masks), monte_carlo(model[2]):
        whole, part = COPIES[copied](model), COPIES[copied](model[2])
    assert modes_and_hooks(whole) == modes_and_hooks(model) == before and modes_and_hooks(part) == before[3:6]
    assert not any("__reduce_ex__" in vars(module) for one in (model, whole, part) for module in one.modules())
    with monte_carlo(whole) as places:
        whole(torch.ones(2, 3))
    assert places == ["1", "2.0", "3", "4"]
    x, y = torch.ones(2, 3), torch.ones(2, 40)
    whole[1].eval()
    assert torch.equal(whole(x)[0], whole(x)[0]) is torch.equal(part(y), part(y)) is not mode


@pytest.mark.parametrize("layer", [nn.Dropout, dropoutlib.Dropout, DropsInTraining])
def test_a_shallow_copy_that_is_made_in_a_context_is_as_the_layer_was_before(layer):
    layer = layer().eval()
    with monte_carlo(layer):
        other = copy.copy(layer)
        assert not other.training and layer.training == (not isinstance(layer, nn.Dropout))
    x = torch.ones(1, 4, 50)
    assert torch.equal(other(x), other(x)) and modes_and_hooks(other) == modes_and_hooks(layer)


@pytest.mark.parametrize("model", [
    nn.Sequential(CopiesItself(), nn.Linear(3, 3)),
    nn.Sequential(dropoutlib.Dropout(), nn.utils.parametrizations.weight_norm(dropoutlib.DropConnectLinear(3, 3))),
    torch.fx.symbolic_trace(nn.Sequential(dropoutlib.Dropout(), nn.Linear(3, 3))),
], ids=["its own way", "parametrised", "a graph"])
@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
def test_a_copy_of_what_copies_itself_is_as_it_was_before_the_context(model, mode):
    before = modes_and_hooks(model.train(mode))
    with monte_carlo(model):
        other = copy.deepcopy(model)
    assert modes_and_hooks(other) == modes_and_hooks(copy.deepcopy(model)) and modes_and_hooks(model) == before
    assert not any(name in vars(module) for module in (*other.modules(), *model.modules())
                   for name in ("__reduce_ex__", "__deepcopy__"))
    x = torch.ones(2, 3)
    assert torch.equal(other(x), other(x)) is not mode
    assert all(one is not another for one, another in zip(model.modules(), other.modules(), strict=True))


def test_what_says_itself_how_it_is_pickled_refuses_in_a_context():
    model = nn.Sequential(CopiesItself()).eval()
    with monte_carlo(model):
        for copied in (pickle.dumps, lambda model: copy.copy(model[0])):
            with pytest.raises(RuntimeError, match=r"CopiesItself.*cannot be copied or pickled in a context"):
                copied(model)
    pickle.dumps(model)


@pytest.mark.parametrize("layer", [nn.Dropout(), dropoutlib.GaussianDropout(), dropoutlib.FastDropoutLinear(4, 4)])
def test_fixed_masks_of_inference_serve_a_gradient(layer):
    model, x = nn.Sequential(nn.Linear(4, 4), layer), torch.ones(3, 4)
    with monte_carlo(model, "fixed"):
        with torch.inference_mode():
            y = model(x)
        again = model(x)
        again.sum().backward()
    assert torch.equal(y, again)


@pytest.mark.parametrize("layer", [nn.Dropout(), dropoutlib.Dropout()])
def test_fixed_masks_are_drawn_by_a_plain_call(layer):
    """Not inside of a transform; for an empty batch as for others; in any type."""
    model, x = nn.Sequential(layer), torch.ones(2, 40)
    with monte_carlo(model, "fixed"):
        with pytest.raises(RuntimeError, match=r"masks are fixed.*call the model once outside"):
            torch.vmap(model, randomness="same")(x)
        assert model(x[:0]).shape == (0, 40)
        y = model(x)
        assert torch.equal(torch.vmap(model, randomness="same")(x), y)
        assert torch.equal(model(x.double()), y.double()) and torch.equal(model(x.bfloat16()), y.bfloat16())


# Masks that are shared


FIRST, SECOND = 0, 1
OURS = {
    "Dropout": ((3, 9), FIRST), "WeightScalingDropout": ((3, 9), FIRST), "GaussianDropout": ((3, 9), FIRST),
    "AlphaDropout": ((3, 9), FIRST), "FeatureAlphaDropout": ((3, 9, 4), FIRST),
    "DropConnectLinear": ((3, 9), FIRST), "FastDropoutLinear": ((3, 9), FIRST),
    "TargetedDropoutLinear": ((3, 9), FIRST),
    **{f"{name}Conv{axes}d": ((3, 9, 4, 4)[:2 + axes], FIRST)
       for name in ("DropConnect", "FastDropout", "VariationalDropout") for axes in (1, 2)},
    "VariationalDropoutLinear": ((3, 9), FIRST), "ConcreteDropout": ((3, 9), FIRST),
    "ConcreteDropout2d": ((3, 9, 4, 4), FIRST), "SpatialDropout1d": ((3, 9, 4), FIRST),
    "SpatialDropout2d": ((3, 9, 4, 4), FIRST), "SpatialDropout3d": ((3, 9, 4, 4, 2), FIRST),
    "MaxPoolDropout1d": ((3, 9, 4), FIRST), "MaxPoolDropout2d": ((3, 9, 4, 4), FIRST),
    "MaxPoolDropout3d": ((3, 9, 4, 4, 2), FIRST), "AvgPoolDropout1d": ((3, 9, 4), FIRST),
    "AvgPoolDropout2d": ((3, 9, 4, 4), FIRST), "AvgPoolDropout3d": ((3, 9, 4, 4, 2), FIRST),
    "StochasticPool2d": ((3, 9, 4, 4), FIRST), "MaxDrop": ((3, 9, 4, 4), FIRST),
    **{f"DropBlock{axes}d": ((3, 9, 4, 4, 2)[:2 + axes], FIRST) for axes in (1, 2, 3)},
    "StochasticRateDropout": ((3, 9), FIRST), "LockedDropout": ((5, 3, 9), SECOND),
    "EmbeddingDropout": ((5, 3), SECOND), "EmbeddingDropout of examples": ((5, 3), SECOND),
    "RNNDropLSTM": ((5, 3, 9), SECOND),
    "RecurrentDropoutLSTM": ((5, 3, 9), SECOND), "RecurrentDropoutGRU": ((5, 3, 9), SECOND),
    "VariationalLSTM": ((5, 3, 9), SECOND), "VariationalGRU": ((5, 3, 9), SECOND),
    "ZoneoutLSTM": ((5, 3, 9), SECOND), "ZoneoutGRU": ((5, 3, 9), SECOND), "WeightDropLSTM": ((5, 3, 9), SECOND),
    "WeightDropGRU": ((5, 3, 9), SECOND), "Swapout": ((3, 9), FIRST),
    "StochasticDepth": ((3, 9), FIRST), "DropPath": ((3, 9), FIRST), "ShakeDrop": ((3, 9), FIRST),
    "LayerDrop": ((3, 9), FIRST), "ConditionDropout": ((3, 9), FIRST), "LoRALinear": ((3, 9), FIRST),
    "PatchDropout": ((3, 9, 4), FIRST), "NEFTune": ((3, 9, 4), FIRST), "NestedDropout": ((3, 9), FIRST),
}


def adapted(layer):
    """With an adapter that adds something, as after training."""
    nn.init.normal_(layer.lora_B)
    return layer


MAKE = {"ConcreteDropout": lambda layer: layer(nn.Linear(9, 9), p=0.4),
        "ConcreteDropout2d": lambda layer: layer(nn.Conv2d(9, 9, 1), p=0.4),
        "EmbeddingDropout": lambda layer: layer(20, 9, p=0.4),
        "EmbeddingDropout of examples": lambda layer: layer(20, 9, p=0.4, sharing="sample"),
        "StochasticPool2d": lambda layer: layer(2),
        "StochasticRateDropout": lambda layer: layer(), "MaxDrop": lambda layer: layer(0.5),
        "Swapout": lambda layer: layer(nn.Linear(9, 9)), "NestedDropout": lambda layer: layer(1.0),
        "ConditionDropout": lambda layer: layer(9, 0.4), "LoRALinear": lambda layer: adapted(layer(9, 9, p=0.4)),
        "LayerDrop": lambda layer: layer(nn.Linear(9, 9), p=0.4, mode="row"),
        **{f"DropBlock{axes}d": lambda layer: layer(0.4, block_size=2) for axes in (1, 2, 3)}}


def of_ours(name):
    layer = getattr(dropoutlib, name.partition(" ")[0])
    if name in MAKE:
        return MAKE[name](layer)
    if "PoolDropout" in name:
        return layer(2, p=0.4)
    if name.endswith(("LSTM", "GRU")):
        return layer(9, 9)
    if "Conv" in name:
        return layer(9, 9, 1)
    return layer(9, 9) if name.endswith("Linear") else layer(0.4)


def test_every_layer_of_the_library_is_in_the_list():
    drawing = {layer.name for row in dropoutlib.catalogue().values() for layer in row.facts
               if layer.law not in ("none", "place") and layer.rate != "input"}
    assert drawing - set(OURS) <= {"LogNormalDropout", "SparseVariationalLinear", "SparseVariationalConv1d",
                                   "SparseVariationalConv2d"}


BATCHES_ALONE = ("SpatialDropout2d", "FeatureAlphaDropout", "StochasticDepth", "DropPath", "ShakeDrop", "LayerDrop",
                 "ConditionDropout", "PatchDropout", "NEFTune", "NestedDropout")


@pytest.mark.parametrize("name", [name for name in OURS if name not in BATCHES_ALONE])
def test_fixed_masks_are_those_of_a_batch_and_of_one_example(name):
    """In both orders."""
    shape, axis = OURS[name]
    model = of_ours(name)
    x = torch.randint(20, shape) if name.startswith("EmbeddingDropout") else numbers(*shape)
    for batch_first in (True, False):
        with torch.no_grad(), monte_carlo(model, "fixed"):
            calls = [lambda: output(model, x), lambda: output(model, x.select(axis, 1))]
            found = [call() for call in (calls if batch_first else calls[::-1])]
            batch, one = found if batch_first else found[::-1]
            torch.testing.assert_close(batch.select(axis, 1), one)


def test_fixed_masks_of_torch_are_those_of_a_batch_and_of_one_example():
    for layer, x in ((nn.Dropout(), numbers(3, 9)), (nn.Dropout1d(), numbers(3, 9, 4)),
                     (nn.Dropout3d(), numbers(3, 9, 2, 2, 2)), (nn.AlphaDropout(), numbers(3, 9))):
        with monte_carlo(layer, "fixed"):
            batch, one = layer(x), layer(x[1])
        torch.testing.assert_close(batch[1], one)


@pytest.mark.parametrize(("layer", "x", "other"), [
    (dropoutlib.FastDropoutConv2d(2, 3, 3), (2, 2, 8, 8), (2, 2, 9, 9)), (dropoutlib.Dropout(), (1, 1, 6), (1, 4, 6)),
    (dropoutlib.ZoneoutLSTM(3, 4), (5, 2, 3), (1, 2, 3)), (dropoutlib.ZoneoutGRU(3, 4), (1, 2, 3), (6, 2, 3)),
    (dropoutlib.GaussianDropout(), (2, 1), (2, 3)), (dropoutlib.StochasticRateDropout(), (2, 3), (2, 4, 3)),
    (dropoutlib.WeightDropLSTM(3, 4, 2, dropout=0.5), (1, 2, 3), (5, 2, 3))])
def test_a_fixed_mask_is_not_stretched(layer, x, other):
    """One that is shared over time is that of any number of steps."""
    state = torch.get_rng_state()
    with monte_carlo(nn.Sequential(layer), "fixed"), pytest.raises(RuntimeError, match=r"masks are fixed, but 0 got .*"
                                                                   "size behind the batch, or of another number"):
        layer(numbers(*x)), torch.set_rng_state(state), layer(numbers(*other))
    assert torch.equal(torch.get_rng_state(), state)    # numbers() has one of its own
    for shared in (dropoutlib.VariationalLSTM(3, 4), dropoutlib.LockedDropout(), dropoutlib.RNNDropLSTM(3, 4)):
        with monte_carlo(shared, "fixed"):
            for steps in (1, 5, 1):
                shared(numbers(steps, 2, 3))


def test_a_fixed_length_is_for_one_number_of_units():
    """Lengths have one shape, however many units they may reach to."""
    for units in (7, 11):
        layer = dropoutlib.NestedDropout(1.0)
        with monte_carlo(layer, "fixed"):
            assert torch.equal(layer(torch.ones(2, 9)), layer(torch.ones(4, 9))[:2])
            with pytest.raises(RuntimeError, match=f"an input of {units} units, and before one of 9"):
                layer(torch.ones(2, units))
    layer = dropoutlib.NestedDropout(1.0)
    twice = Of(lambda self, x, y: torch.cat([self.drop(x), self.drop(y)], 1), drop=layer)
    with monte_carlo(twice, "fixed"):
        both = torch.ones(2, 8), torch.ones(2, 16)
        assert torch.equal(twice(*both), twice(*both))
    layer = dropoutlib.NestedDropout(1.0, dim=2)
    with monte_carlo(layer, "fixed"):
        assert torch.equal(layer(torch.ones(2, 3, 9)), layer(torch.ones(2, 5, 9))[:, :3])


def test_an_image_by_itself_has_a_mask_for_every_map():
    layer, image = dropoutlib.MaxDrop(0.5), numbers(200, 3, 3)
    with monte_carlo(layer, "fixed"):
        dropped = (layer(image) == 0).any((1, 2))
    assert 50 < dropped.sum() < 150


@pytest.mark.parametrize("masks", ["call", "fixed"])
@pytest.mark.parametrize("name", OURS)
def test_all_examples_share_their_masks(name, masks):
    torch.manual_seed(0)
    shape, axis = OURS[name]
    model = nn.Sequential(of_ours(name).eval())
    one = torch.rand((*shape[:axis], 1, *shape[axis + 1:])) + 0.1
    if name.startswith("EmbeddingDropout"):
        one = torch.randint(20, (5, 1))
    x = one.expand(shape).contiguous()
    with monte_carlo(model, masks):
        calls = [output(model, x) for _ in range(4)]
    for y in calls:
        first = y.narrow(axis, 0, 1)
        assert torch.allclose(y, first.expand_as(y), atol=1e-6), "examples have masks of their own"
    assert all(torch.allclose(calls[0], y) for y in calls) is (masks == "fixed")


@pytest.mark.parametrize(("layer", "shape"), [
    (dropoutlib.DropConnectLinear(8, 6), (3, 3, 8)), (dropoutlib.DropConnectLinear(8, 6), (3, 4, 8)),
    (dropoutlib.ConcreteDropout(dropoutlib.DropConnectLinear(8, 6)), (3, 3, 8)),
    (dropoutlib.LogNormalDropout(8), (3, 8, 8, 5)), (dropoutlib.LogNormalDropout(8), (3, 8, 8)),
])
def test_examples_of_more_axes_share_their_masks(layer, shape):
    """The axis behind the batch is no batch, whatever its size is."""
    x = torch.rand(shape[1:]).expand(shape)
    for masks in ("call", "fixed"):
        with monte_carlo(layer, masks):
            y, again = layer(x), layer(x[:1])
        assert torch.allclose(y, y[:1].expand_as(y), atol=1e-6)
        assert torch.allclose(y[:1], again, atol=1e-6) is (masks == "fixed")
    assert predict(layer, torch.rand(shape), 10, masks="call").mean.shape[0] == 3


def test_nested_tensors_are_refused_where_masks_are_shared():
    nested, model = torch.nested.nested_tensor([torch.rand(2, 6), torch.rand(5, 6)], layout=torch.jagged), \
        nn.Sequential(dropoutlib.Dropout(0.5))
    with monte_carlo(model):
        model(nested)
    with monte_carlo(model, "call"), pytest.raises(RuntimeError, match="'example' for a nested tensor, but got 'call'"):
        model(nested)
    with pytest.raises(ValueError, match="not nested ones: call the model under monte_carlo"):
        predict(model, nested, 10)


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Dropout(0.5), (3, 40)), (nn.Dropout1d(0.5), (3, 40, 2)), (nn.Dropout2d(0.5), (3, 40, 2, 2)),
    (nn.Dropout3d(0.5), (3, 40, 2, 2, 1)), (nn.AlphaDropout(0.5), (3, 40)), (nn.FeatureAlphaDropout(0.5), (3, 40, 2)),
])
def test_shared_masks_of_torch_have_the_law_of_torch(layer, shape):
    torch.manual_seed(0)
    layer.eval()
    x = torch.rand(shape[1:]).expand(shape) + 0.1
    with monte_carlo(layer, "call"):
        calls = torch.stack([layer(x) for _ in range(400)])
    assert torch.equal(calls, calls[:, :1].expand_as(calls))
    layer.train()
    drawn = torch.stack([layer(x[:1]) for _ in range(400)])
    assert torch.allclose(calls[:, 0].unique(), drawn.unique(), atol=1e-6)
    error = (drawn.var(0) / 200).sqrt()
    assert ((calls[:, :1].mean(0) - drawn.mean(0)).abs() < 6 * error).all()
    if len(shape) > 2:
        factor = calls[:, 0] == calls[:, 0].flatten(2).amax(2)[(...,) + (None,) * (len(shape) - 2)]
        assert (factor.flatten(2).sum(2) < math.prod(shape[2:])).any() or shape[2:] == (1,)
        dropped = (calls[:, 0] == drawn.min()).flatten(2)
        assert torch.equal(dropped.any(2), dropped.all(2)), "a map is dropped in part"


@pytest.mark.parametrize("layer", [nn.Dropout1d(0.5), nn.Dropout3d(0.5), dropoutlib.SpatialDropout1d(0.5),
                                   dropoutlib.SpatialDropout3d(0.5), nn.Dropout(0.5), dropoutlib.Dropout(0.5)])
def test_one_example_without_batch_has_draws_of_its_own(layer):
    shape = {"1": (64, 3), "3": (64, 3, 2, 2)}.get(type(layer).__name__[-2], (64,))
    with monte_carlo(layer, "call"):
        y = layer(torch.ones(shape))
    assert 5 < (y.reshape(64, -1)[:, 0] == 0).sum() < 59


def test_what_is_dropped_is_selected():
    x = torch.tensor([[math.inf, math.nan, 1.0] * 30])
    with monte_carlo(nn.Dropout(0.5), "call") as _:
        pass
    model = nn.Dropout(0.5)
    with monte_carlo(model, "call"):
        y = model(x)
    assert set(y[0, 0::3].tolist()) == {math.inf, 0.0}
    assert {0.0} < set(y[0, 1::3].nan_to_num(7).tolist()) == {7.0, 0.0}


def test_fixed_masks_do_not_depend_on_the_batch_and_follow_the_order_of_calls():
    model = Of(lambda self, x: (self.drop(x), self.drop(x), F.dropout(x, 0.5, self.training)), drop=nn.Dropout(0.5))
    with monte_carlo(model, "fixed"):
        large, small = model(torch.ones(5, 40)), model(torch.ones(2, 40))
        for one, other in zip(large, small, strict=True):
            assert torch.equal(one[:2], other)
        assert len({tuple(one[0].tolist()) for one in large}) == 3, "uses of one layer share their masks"
        with pytest.raises(RuntimeError, match=r"masks are fixed, but dropout in drop got the shape \(2, 3\)"):
            model(torch.ones(2, 3))
    with monte_carlo(model, "fixed"):
        assert not torch.equal(model(torch.ones(5, 40))[0], large[0])


class OfTheUser(NoisyLayer):
    def __init__(self, share=0.5):
        super().__init__()
        self.share, self.calls = share, 0

    def forward(self, input, *, noise=None, generator=None):
        self.calls += 1
        return functional.dropout(input, self.share, self.training, noise=noise, generator=generator)

    def _draw(self, input, generator):
        return functional.draw(functional.dropout, input, self.share, generator=generator)


CHANGED = {     # a layer, an input, and what is set in between
    "torch's": (nn.Dropout(0.5), (3, 60), {"p": 0.2}),
    "torch's maps": (nn.Dropout2d(0.5), (3, 60, 2, 2), {"p": 0.2}),
    "a function": (Of(lambda self, x: F.dropout(x, self.rate, self.training)), (3, 60), {"rate": 0.2}),
    "ours": (dropoutlib.Dropout(0.5), (3, 60), {"p": 0.2}),
    "a user's": (OfTheUser(), (3, 60), {"share": 0.2}),
    "weights": (dropoutlib.DropConnectLinear(60, 9), (3, 60), {"p": 0.2}),
    "a branch": (dropoutlib.DropPath(0.5), (3, 9), {"drop_prob": 0.2}),
    "a drawn rate": (dropoutlib.StochasticRateDropout(0.4, 0.6), (3, 60), {"low": 0.1, "high": 0.2}),
    "blocks": (dropoutlib.DropBlock2d(0.5, 3), (3, 5, 9, 9), {"block_size": 5}),
    "several": (dropoutlib.VariationalLSTM(60, 9, 2, p_input=0.5, p_hidden=0.5), (4, 3, 60), {"p_hidden": 0.2}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_fixed_masks_are_those_of_the_rate_of_the_moment(name):
    layer, shape, settings = CHANGED[name]
    layer, x = copy.deepcopy(layer), torch.ones(shape)
    if name == "a function":
        layer.rate = 0.5
    before = {key: getattr(layer, key) for key in settings}

    def called(seed=0):
        torch.manual_seed(seed)
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    def put(values):
        for key, value in values.items():
            setattr(layer, key, value)

    with torch.no_grad():
        with monte_carlo(layer, "fixed"):
            first = called()
            assert torch.equal(first, called(1))
            put(settings)
            changed = called(2)
            assert torch.equal(changed, called(3))
            put(before)
            assert torch.equal(first, called(4))
        put(settings)
        with monte_carlo(layer, "fixed"):
            assert torch.equal(changed, called(2)) and not torch.equal(changed, first)


def test_a_part_that_is_called_by_itself_begins_a_call():
    model = nn.Sequential(nn.Dropout(0.5))
    with monte_carlo(model, "fixed"):
        assert torch.equal(model[0](torch.ones(1, 40)), model[0](torch.ones(1, 40)))


def test_packed_sequences_share_masks_of_all_sequences():
    layer = dropoutlib.VariationalLSTM(4, 6, p_input=0.4, p_hidden=0.4)
    x = numbers(5, 4)
    with torch.no_grad(), monte_carlo(layer, "fixed"):
        packed, _ = layer(pack_sequence([x, x[:3]]))
        alone, _ = layer(x[:3].unsqueeze(1))
    together, _ = nn.utils.rnn.pad_packed_sequence(packed)
    assert torch.allclose(together[:3, 0], together[:3, 1], atol=1e-6)
    assert torch.allclose(alone[:, 0], together[:3, 1], atol=1e-6)


def test_steps_with_masks_that_are_handed_on_are_the_sequence():
    layer = dropoutlib.VariationalLSTM(4, 6, p_input=0.4, p_hidden=0.4).eval()
    x = numbers(5, 3, 4)
    with torch.no_grad(), monte_carlo(layer):
        noise, state, steps = layer.draw(x), None, []
        for step in x:
            y, state = layer(step.unsqueeze(0), state, noise=noise)
            steps.append(y)
        assert torch.allclose(torch.cat(steps), layer(x, noise=noise)[0], atol=1e-6)


# Predictions against the exact law


class Small(nn.Module):
    """Two dropouts, 2 + 3 masks of an example, behind a stem."""

    def __init__(self, outputs=2, kind=nn.Dropout):
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(3, outputs)
        self.drop, self.p = kind(0.4), 0.4
        self.double()

    def forward(self, x):
        return self.second(self.drop(torch.relu(self.first(self.drop(torch.tanh(self.stem(x)))))))

    def law(self, x):
        """Outputs (masks, N, outputs) under all masks, and their probabilities."""
        keep = all_masks(5)
        inner = torch.tanh(self.stem(x)) * keep[:, None, :2] / (1 - self.p)
        outputs = self.second(torch.relu(self.first(inner)) * keep[:, None, 2:] / (1 - self.p))
        return outputs.detach(), ((1 - self.p) ** keep * self.p ** (1 - keep)).prod(1)


class Copying(Small):
    """Cannot be mapped: it asks for a value behind the first dropout."""

    def forward(self, x):
        y = self.drop(torch.tanh(self.stem(x)))
        return self.second(self.drop(torch.relu(self.first(y)))) if float(y.sum()) < 1e9 else y


class Unseen(Copying):
    """Cannot be replayed: a function that no mode sees is in its stem."""

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

    def forward(self, x):
        return super().forward(self.Same.apply(x + 0))


WAYS = [Small, lambda *a: Small(*a, kind=dropoutlib.Dropout), Copying, Unseen]


@pytest.mark.parametrize("make", WAYS)
@pytest.mark.parametrize("masks", ["example", "call"])
def test_mean_and_variance_are_those_of_the_exact_law(make, masks):
    model, x = make(), numbers(4, 3).double()
    outputs, probability = model.law(x)
    mean = (probability[:, None, None] * outputs).sum(0)
    variance = (probability[:, None, None] * (outputs - mean) ** 2).sum(0)
    p = predict(model, x, 800, masks=masks, precision=2.0, generator=torch.Generator().manual_seed(1))
    assert p.samples.shape == (800, 4, 2) and p.samples.dtype == torch.float64
    assert ((p.mean - mean).abs() < 5 * p.standard_error["mean"]).all()
    assert ((p.variance - 0.5 - variance).abs() < 5 * p.standard_error["variance"]).all()
    distance = (p.samples[:, None] - outputs[None]).abs().amax(-1)     # (samples, masks, examples)
    assert distance.amin(1).max() < 1e-12, "a sample is no output under any mask"
    same = (distance < 1e-12).all(2).any(1).double().mean()
    assert same == 1 if masks == "call" else same < 0.2, "examples share their masks, or do not"


def exact_of_classes(model, x):
    outputs, probability = model.law(x)
    weight, classes = probability[:, None, None], outputs.softmax(-1)
    mean = (weight * classes).sum(0)
    expected = (probability[:, None] * torch.special.entr(classes).sum(-1)).sum(0)
    variance = (weight * (classes - mean) ** 2).sum(0)
    votes = (weight * F.one_hot(classes.argmax(-1), classes.shape[-1])).sum(0)
    entropy = torch.special.entr(mean).sum(-1)
    return {"mean": mean, "variance": variance, "entropy": entropy, "expected_entropy": expected,
            "mutual_information": entropy - expected, "variation_ratio": 1 - votes.amax(-1)}


@pytest.mark.parametrize("make", WAYS)
def test_what_is_said_of_classes_is_that_of_the_exact_law(make):
    model, x = make(3), numbers(4, 3).double()
    p = predict(model, x, 1000, task="classification", generator=torch.Generator().manual_seed(2))
    for name, exact in exact_of_classes(model, x).items():
        assert getattr(p, name).shape == exact.shape
        assert ((getattr(p, name) - exact).abs() < 5 * p.standard_error[name] + 1e-9).all(), name
    assert torch.allclose(p.entropy, p.expected_entropy + p.mutual_information)


def test_standard_errors_and_the_correction_of_the_bias_over_repetitions():
    model, x = Small(3), 2 * numbers(4, 3).double()
    outputs, probability = model.law(x)
    exact = exact_of_classes(model, x)

    def drawn(R, T):
        generator = torch.Generator().manual_seed(3)
        return torch.multinomial(probability, R * T, replacement=True, generator=generator).view(R, T)

    for T, R in [(30, 2000), (1000, 300)]:
        repeated = [mc_dropout._class_summary(outputs[own], class_axis=1) for own in drawn(R, T)]
        for name, value in exact.items():
            estimates = torch.stack([getattr(p, name) for p in repeated])
            errors = torch.stack([p.standard_error[name] for p in repeated])
            spread = estimates.std(0)
            known = spread > 1e-9
            ratio = errors.square().mean(0).sqrt()[known] / spread[known]
            assert known.any() and (T == 30 or ((ratio - 1).abs() < 0.2).all()), (name, ratio)
            if name != "variation_ratio":
                of_mean = spread / math.sqrt(R)
                higher_order = 0.1 * spread / math.sqrt(T)  # what the correction to first order leaves
                assert ((estimates.mean(0) - value).abs() < 5 * of_mean + higher_order).all(), (name, T)
    R, T = 4000, 30
    classes = outputs.softmax(-1)[drawn(R, T)]
    plug_in = torch.special.entr(classes.mean(1)).sum(-1) - torch.special.entr(classes).sum(-1).mean(1)
    bias = plug_in.mean(0) - exact["mutual_information"]
    formula = -(exact["variance"] / exact["mean"]).sum(-1) / (2 * T)
    error = plug_in.std(0) / math.sqrt(R)
    assert (bias < -4 * error).all(), "the plug-in estimate shows no bias here: the test tests nothing"
    assert ((bias - formula).abs() < 5 * error - 0.05 * formula).all()


def test_entropies_may_leave_their_range_above_as_a_clamp_would_bring_the_bias_back():
    T, R = 10, 20_000
    votes = torch.randint(2, (T, R, 1), generator=torch.Generator().manual_seed(4))
    logits = (4.0 * votes - 2).double() * torch.tensor([-0.5, 0.5])     # two functions, which prefer one class each
    p = mc_dropout._class_summary(logits, class_axis=1)
    own = torch.special.entr(logits[0, 0].softmax(0)).sum()
    for estimate, exact in ((p.entropy, math.log(2)), (p.mutual_information, math.log(2) - own)):
        error = estimate.std() / math.sqrt(R)
        left = 1 / T**2     # by a correction to first order
        assert (estimate.mean() - exact).abs() < 5 * error + left
        assert estimate.clamp(max=exact).mean() - exact < -5 * error - left
    K, T = 3, 3     # the farthest: a vote for each
    p = mc_dropout._class_summary(1e4 * torch.eye(K).unsqueeze(1), class_axis=1)
    for estimate in (p.entropy, p.mutual_information):
        assert estimate.item() == pytest.approx(math.log(K) + (K - 1) / (2 * (T - 1)))


@pytest.mark.parametrize("K", [2, 10, 1000])
def test_no_information_is_below_zero_by_rounding(K):
    p = mc_dropout._class_summary(numbers(500, K).expand(30, 500, K), class_axis=1)
    assert (p.mutual_information >= 0).all() and (p.mutual_information < 1e-5).all()
    assert (p.entropy >= 0).all() and (p.expected_entropy >= 0).all()


def test_numbers_worked_out_by_hand():
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, math.log(3)]], [[math.log(3), 0.0]]]).double()
    p = mc_dropout._class_summary(logits, class_axis=1)
    assert torch.allclose(p.mean, torch.tensor([[0.5, 0.5]]).double())
    assert torch.allclose(p.variance, torch.tensor([[1 / 16, 1 / 16]]).double())
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert p.expected_entropy.item() == pytest.approx((math.log(2) + 2 * quarter) / 3)
    assert p.entropy.item() == pytest.approx(math.log(2) + 2 * (1 / 16 / 0.5) / 6)
    assert p.variation_ratio.item() == pytest.approx(1 / 3)
    assert p.standard_error["mean"].flatten().tolist() == pytest.approx([0.25 / math.sqrt(3)] * 2)


def test_certain_and_impossible_classes_give_no_nan():
    class Certain(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, -math.inf, -2000.0]]) + 0 * F.dropout(torch.ones(1, 3), 0.5)

    p = predict(Certain(), torch.ones(1), 5, task="classification")
    for value in (p.mean, p.variance, p.entropy, p.mutual_information, *p.standard_error.values()):
        assert value.isfinite().all()
    assert p.entropy.item() == p.mutual_information.item() == p.variation_ratio.item() == 0


# Running once what comes before the noise


@contextlib.contextmanager
def counted(name):
    """How often a function of torch.nn.functional is computed: a list with an entry for each call."""
    calls, function = [], getattr(F, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, name, lambda *args, **named: calls.append(args) or function(*args, **named))
        yield calls


def head(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), *layers).eval()


@pytest.mark.parametrize("layers", [
    [nn.Dropout(), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 3)],
    [dropoutlib.Dropout(), nn.Linear(64, 8), nn.ReLU(inplace=True), dropoutlib.Dropout(), nn.Linear(8, 3)],
    [nn.Dropout(inplace=True), nn.Linear(64, 3)],
    [nn.Sequential(nn.Tanh(), nn.Sequential(nn.Dropout(inplace=True)), nn.Linear(64, 3))],
    [dropoutlib.DropConnectLinear(64, 3)],
    [Of(lambda self, x: self.l(x.unsqueeze(1))[0][:, 0], l=dropoutlib.VariationalLSTM(64, 8)), nn.Linear(8, 3)],
    [Of(lambda self, x: self.l(x.unsqueeze(1))[0][:, 0], l=nn.LSTM(64, 8, 2, dropout=0.5)), nn.Linear(8, 3)],
])
def test_the_plain_layers_in_front_run_once(layers):
    model, x = head(*layers), numbers(5, 1, 6, 6)
    torch.manual_seed(0)
    with counted("conv2d") as calls:
        samples = predict(model, x, 40).samples
    assert len(calls) == 1
    torch.manual_seed(0)
    with torch.no_grad(), monte_carlo(model):
        assert torch.equal(samples, torch.stack([model(x) for _ in range(40)]))
    assert not any("forward" in vars(part) for part in model.modules())


def _twice_the_same():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(layer, nn.Dropout(), layer)


def _with_hook(register):
    model = head(nn.Dropout())
    getattr(model[0], register)(lambda module, *_: None)
    return model


def _changing(change):
    def forward(self, x):
        with torch.no_grad():
            change(self.of[0])
        return x

    def make():
        model = head(nn.Dropout())
        last = Of(forward)
        vars(last)["of"] = model
        return model.append(last)
    return make


class _Noisy(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        return y + torch.randn_like(y) if getattr(func, "__name__", "") == "flatten" else y


NOT_ALL_ONCE = {
    "a layer that comes twice": (_twice_the_same, 80), "a hook": (lambda: _with_hook("register_forward_hook"), 40),
    "a hook in front": (lambda: _with_hook("register_forward_pre_hook"), 40),
    "weights that are written": (_changing(lambda layer: layer.weight.mul_(0.9)), 40),
    "weights that are set": (_changing(lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 0.9))), 40),
    "a setting": (_changing(lambda layer: setattr(layer, "count", getattr(layer, "count", 0) + 1)), 40),
    "a hook that is added": (_changing(lambda layer: layer.register_forward_hook(lambda *_: None)), 40),
    "computed weights": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3)),
                                               nn.Dropout()), 40),
    "random places": (lambda: nn.Sequential(nn.FractionalMaxPool2d(2, 5), nn.Conv2d(1, 2, 3), nn.Dropout()), 40),
    "a forward of its own": (lambda: nn.Sequential(Of(lambda self, x: self.conv(x), conv=nn.Conv2d(1, 4, 3)),
                                                   nn.Dropout()), 40),
    "maxima and their places": (lambda: nn.Sequential(
        nn.MaxPool2d(2, return_indices=True), Of(lambda self, x: F.max_unpool2d(*x, 2)), nn.Conv2d(1, 4, 3),
        nn.Dropout()), 40),
    "another model": (lambda: Of(lambda self, x: self.layers(x), layers=head(nn.Dropout())), 40),
    "noise in front": (lambda: nn.Sequential(nn.Dropout(), nn.Conv2d(1, 4, 3)), 40),
}


@pytest.mark.parametrize(("make", "times"), NOT_ALL_ONCE.values(), ids=NOT_ALL_ONCE)
@pytest.mark.filterwarnings("ignore")
def test_what_may_not_be_the_same_runs_for_each_sample(make, times):
    def begin():
        torch.manual_seed(0)
        return make().eval(), numbers(2, 1, 6, 6)

    model, x = begin()
    with counted("conv2d") as calls:
        samples = predict(model, x, 40).samples
    assert len(calls) == times
    model, x = begin()
    with torch.no_grad(), monte_carlo(model):
        assert torch.equal(samples, torch.stack([model(x) for _ in range(40)]))


def test_weights_that_are_replaced_are_kept_so_that_no_others_are_taken_for_them():
    """Another tensor could have their id and their memory."""
    alive = []

    def forward(self, x):
        replaced = weakref.ref(model[0].weight)
        model[0].weight = nn.Parameter(torch.ones(4, 4))
        alive.append(replaced() is not None)
        return x

    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), Of(forward)).eval()
    predict(model, torch.ones(1, 4), 3)
    assert alive == [True, False, False]


def test_a_mode_that_sees_functions_sees_all_of_them():
    model, x = head(nn.Dropout(0.1)), numbers(2, 1, 6, 6)
    samples = []
    for draw in (lambda: predict(model, x, 20).samples, lambda: torch.stack([model(x) for _ in range(20)])):
        torch.manual_seed(0)
        with _Noisy(), torch.no_grad(), monte_carlo(model):
            samples.append(draw())
    assert torch.equal(*samples)


def test_a_call_of_another_thread_that_began_before_the_context_ends_without_an_error():
    inside, leave = threading.Event(), threading.Event()

    def forward(self, x):
        inside.set()
        assert leave.wait(60)
        return x

    model = nn.Sequential(nn.Linear(3, 3), Of(forward), nn.Dropout()).eval()
    model.register_forward_hook(lambda *_: None)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model, torch.ones(2, 3))
        assert inside.wait(60)
        with monte_carlo(model):
            leave.set()
            assert call.result().shape == (2, 3)


def test_other_threads_and_copies_get_what_they_ask_for_while_a_model_predicts():
    def forward(self, x):
        if self.copied is None:
            vars(self)["copied"] = copy.deepcopy(model)
        with ThreadPoolExecutor(1) as pool:
            return x + pool.submit(lambda: model[:2](torch.ones(1, 3))).result()

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(), Of(forward)).eval()
    vars(model[3])["copied"] = None
    samples = predict(model, torch.zeros(1, 3), 20).samples
    with torch.no_grad():
        front, other = model[:2](torch.zeros(1, 3)), model[:2](torch.ones(1, 3))
        torch.testing.assert_close(samples.amax(0), (2 * front).relu() + other)
        copied = model[3].copied
        torch.testing.assert_close(copied[:2](torch.ones(1, 3)), other)
    assert not any("forward" in vars(part) for part in copied.modules())


def test_an_error_leaves_the_layers_as_they_were():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), Of(lambda self, x: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        predict(model, torch.zeros(1, 3))
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize(("mapped", "layers"), [
    (False, [nn.Dropout(inplace=True), nn.Linear(64, 3)]),
    (False, [dropoutlib.Dropout(inplace=True), nn.Linear(64, 3)]),
    (False, [Of(lambda self, x: x.add_(self.drop(x)), drop=nn.Dropout())]),
    (True, [Of(lambda self, x: self.drop(x[:, :9]) + self.relu(x[:, :9].sub_(0.5)), relu=nn.ReLU(True),
               drop=nn.Dropout())]),
    (True, [Of(lambda self, x: (self.drop(x), x.mul_(2))[0] + x, drop=nn.Dropout())]),
    (False, [Of(lambda self, x: (x.view(-1), self.drop(x), x.t().mul_(2))[0].clone(),
                drop=nn.Dropout(inplace=True))]),
])
def test_layers_in_place_behind_the_noise_find_what_they_found_the_first_time(mapped, layers):
    """The same random numbers in a loop without anything kept: bit for bit, where samples do not run side by side."""
    model, x = head(*layers), numbers(5, 1, 6, 6)
    original = x.clone()
    torch.manual_seed(5)
    samples = predict(model, x, 8).samples
    torch.manual_seed(5)
    with torch.no_grad(), monte_carlo(model):
        loop = torch.stack([model(x.clone()) for _ in range(8)])
    assert torch.equal(x, original)
    if mapped:
        n = 1500
        with torch.no_grad(), monte_carlo(model):
            loop = torch.stack([model(x.clone()) for _ in range(n)])
        error = (loop.var(0) * 2 / n).sqrt()
        assert ((predict(model, x, n).mean - loop.mean(0)).abs() <= 6 * error + 1e-6).all()
    else:
        assert torch.equal(samples, loop)


def test_a_model_may_write_into_its_input():
    model, x = nn.Sequential(nn.ReLU(inplace=True), Of(lambda self, x: F.dropout(x.add_(1), 0.5))).eval(), -torch.ones(
        2, 50)
    p = predict(model, x, 30)
    assert torch.equal(x, -torch.ones(2, 50))
    assert set(p.samples.unique().tolist()) == {0.0, 2.0}


@dataclass
class Batch:
    x: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor


class Slots:
    __slots__ = ("__x", "empty")

    def __init__(self, x):
        self.__x = x

    @property
    def x(self):
        return self.__x


class Attributes(dict):
    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Itself:
    def __init__(self, x):
        self.x, self.itself = [x], self


Named = namedtuple("Named", "x")
INPUTS = {
    "a list": (lambda x: ([x],), lambda x: x[0]), "a dictionary": (lambda x: ({"x": x},), lambda x: x["x"]),
    "a dataclass": (Batch, lambda x: x.x), "a frozen dataclass": (Frozen, lambda x: x.x),
    "a namespace": (lambda x: SimpleNamespace(x=x), lambda x: x.x), "a named tuple": (Named, lambda x: x.x),
    "slots": (Slots, lambda x: x.x), "items that are attributes": (lambda x: (Attributes(x=x),), lambda x: x.x),
    "what holds itself": (Itself, lambda x: x.itself.x[0]), "a deque": (lambda x: deque([x]), lambda x: x[0]),
    "a mapping": (lambda x: (UserDict(x=x),), lambda x: x["x"]),
    "a mapping that is fixed": (lambda x: (MappingProxyType({"x": x}),), lambda x: x["x"]),
    "one in the other": (lambda x: ({"a": [Batch(Named(x))]},), lambda x: x["a"][0].x.x),
    "the same twice": (lambda x: ((x, [x]),), lambda x: (x[0].add_(1), x[1][0])[1]),
}


@pytest.mark.parametrize(("make", "get"), INPUTS.values(), ids=INPUTS)
def test_a_model_may_write_into_whatever_holds_its_input(make, get):
    def forward(self, batch):
        x = get(batch).mul_(1.5)
        return x.add_(self.drop(self.linear(x)))

    model, x = Of(forward, linear=nn.Linear(6, 6), drop=nn.Dropout(0.5)), numbers(4, 6)
    before = x.clone()
    torch.manual_seed(0)
    samples = predict(model, make(x), 12).samples
    assert torch.equal(x, before)
    torch.manual_seed(0)
    with torch.no_grad(), monte_carlo(model):
        loop = [model(*given) if type(given := make(x.clone())) is tuple else model(given) for _ in range(12)]
    assert torch.equal(samples, torch.stack(loop))


def test_what_a_model_hangs_on_its_input_is_gone_in_the_next_sample():
    def forward(self, batch, more):
        more.append(self.drop(batch.x))
        batch.x = batch.x + 1
        return sum(more) * batch.x * len(more)

    batch, more = Batch(torch.ones(2, 5)), []
    samples = predict(Of(forward, drop=nn.Dropout(0.5)), (batch, more), 20).samples
    assert set(samples.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(batch.x, torch.ones(2, 5)) and more == []


def test_noise_of_the_model_itself_is_not_frozen():
    for noise in (lambda x: x + torch.randn_like(x), lambda x: x + torch.empty_like(x).normal_(),
                  lambda x: F.rrelu(-x, training=True, inplace=True), lambda x: F.rrelu(x - 2, training=True)):
        model = Of(lambda self, x, noise=noise: self.drop(self.linear(noise(x))), linear=nn.Linear(3, 2).eval(),
                   drop=nn.Dropout(0.01))
        p = predict(model, torch.ones(4, 3), 50)
        assert len(p.samples.unique(dim=0)) == 50


def test_noise_in_place_of_the_model_itself_does_not_pile_up():
    model = Of(lambda self, x: F.dropout(F.rrelu(0 - x, training=True, inplace=True), 0.5))
    kept = predict(model, torch.ones(4, 3), 50).samples / 2
    assert ((kept == 0) | ((kept <= -1 / 8) & (kept >= -1 / 3))).all()


def test_sizes_that_a_model_asks_for():
    model = Of(lambda self, x: self.drop(x.view(x.size(0), -1)).reshape(len(x), -1)[:, : x.shape[1]],
               drop=nn.Dropout(0.5))
    assert predict(model, torch.ones(3, 2, 4), 7).samples.shape == (7, 3, 2)


def test_a_model_that_counts_its_calls_is_run_as_it_is():
    def forward(self, x):
        self.calls += 1
        return F.dropout(x * self.calls, 0.5)

    model = Of(forward)
    model.calls = 0
    samples = predict(model, torch.ones(1, 50), 5).samples
    assert [sample.max().item() / 2 for sample in samples] == sorted({sample.max().item() / 2 for sample in samples})


def test_kernels_that_draw_draw_for_every_sample():
    for name in ("LSTM", "attention", "attention of timm", "transformer"):
        layer, shape = KINDS[name]
        model = Of(lambda self, x: (lambda y: y if isinstance(y, torch.Tensor) else y[0])(self.layer(x)), layer=layer)
        assert len(predict(model, numbers(*shape), 6).samples.unique(dim=0)) == 6


def test_a_generator_makes_samples_again_and_leaves_the_global_state():
    for model in (head(nn.Dropout(), nn.Linear(64, 3)), KINDS["transformer"][0], Copying()):
        x = {"Sequential": numbers(2, 1, 6, 6), "Copying": numbers(2, 3).double()}.get(
            type(model).__name__, numbers(*SEQUENCE))
        before = torch.get_rng_state()
        one, again = (predict(model, x, 4, generator=torch.Generator().manual_seed(9)).samples for _ in range(2))
        generator = torch.Generator().manual_seed(9)
        first, second = (predict(model, x, 4, generator=generator).samples for _ in range(2))
        assert torch.equal(one, again) and torch.equal(one, first) and not torch.equal(first, second)
        assert torch.equal(before, torch.get_rng_state())


def test_functions_are_the_same_for_other_inputs():
    model, x = Small(), numbers(6, 3).double()
    drawn = [predict(model, part, 50, masks="call", generator=torch.Generator().manual_seed(4)).samples
             for part in (x, x[:2])]
    assert torch.allclose(drawn[0][:, :2], drawn[1], rtol=0, atol=1e-12)


def test_inputs_of_several_parts_and_low_precision():
    model = Of(lambda self, x, y: F.dropout(x, 0.5) + y)
    x = torch.ones(2, 3)
    assert predict(model, (x, x), 3).samples.shape == predict(model, {"x": x, "y": x}, 3).samples.shape == (3, 2, 3)
    p = predict(Of(lambda self, x: F.dropout(x, 0.5)), x.bfloat16(), 300)
    assert p.samples.dtype == torch.bfloat16 and p.mean.dtype == p.variance.dtype == torch.float32
    with torch.inference_mode():
        assert predict(model, (x, x), 3).samples.shape == (3, 2, 3)


def test_classes_along_another_axis():
    x = numbers(2, 5, 4, 3)
    model = Of(lambda self, x: F.dropout(x, 0.5))
    p = predict(model, x, 10, task="classification")
    assert p.mean.shape == (2, 5, 4, 3) and p.entropy.shape == p.variation_ratio.shape == (2, 4, 3)
    assert torch.allclose(p.mean.sum(1), torch.ones(2, 4, 3))
    p = predict(model, x, 10, task="classification", class_axis=-1)
    assert p.entropy.shape == (2, 5, 4) and torch.allclose(p.mean.sum(-1), torch.ones(2, 5, 4))


def test_metrics_of_others_take_the_layout():
    metrics = pytest.importorskip("torchmetrics.classification")
    model, x, labels = Small(3), numbers(40, 3).double(), torch.arange(40) % 3
    p = predict(model, x, 25, task="classification")
    assert p.stacked.shape == (1000, 3) and p.stacked.data_ptr() == p.samples.data_ptr()
    assert torch.equal(p.stacked.view(25, 40, 3), p.samples)
    assert predict(Of(lambda self, x: self.drop(x).sum(), drop=nn.Dropout()), x, 25).stacked.shape == (25,)
    accuracy = metrics.MulticlassAccuracy(3, average="micro")(p.mean, labels)
    assert accuracy == (p.mean.argmax(1) == labels).float().mean()
    assert 0 <= metrics.MulticlassCalibrationError(3)(p.mean, labels) <= 1


# The samples are those of a loop


def _held(number):
    """Adds a number from where nobody looks, in front of the noise and behind it."""
    def make():
        model = Of(lambda self, x: self.drop(self.linear(x) + self.number()) + self.number(), linear=nn.Linear(6, 6),
                   drop=nn.Dropout(0.5))
        model.number = number()
        return model, numbers(2, 6)
    return make


def _seldom(change, number=lambda: random.Random(0).random):
    """Now and then something else is computed in front of the noise."""
    def forward(self, x):
        h = self.linear(x)
        k = F.relu(h, inplace=True) * 2
        h = k[:, :3] + 1    # the first h is gone when the noise begins
        if self.number() < 0.15:
            return change(self, x, h, k)
        return self.last(self.drop(torch.cat([h, k], 1).tanh().mul_(2).add_(k[:, :1])))

    def make():
        model = Of(forward, linear=nn.Linear(6, 6), drop=nn.Dropout(0.5), last=nn.Linear(9, 3))
        model.number = number()
        return model, numbers(2, 6)
    return make


def _caught(forward, x):
    return lambda: (Of(forward, drop=nn.Dropout(0.5)).double(), x.clone())


def _cholesky(self, x):
    k = self.drop(x).sum().reshape(1, 1)
    try:
        return torch.linalg.cholesky(k)
    except torch.linalg.LinAlgError:
        return torch.linalg.cholesky(k + 1)


def _read(self, x):
    h = self.drop(x)
    return h * (2.0 if h.sum().item() >= 10 else 1.0)


def _of_arrays(change):
    """NumPy has a hand in what is computed in front of the noise."""
    def make():
        model = Of(lambda self, x: self.drop(change(self, self.linear(x))), linear=nn.Linear(6, 6),
                   drop=nn.Dropout(0.5))
        model.array, model.shared = np.zeros((2, 6), dtype=np.float32), torch.zeros(2, 6)
        model.view = model.shared.numpy()
        return model, numbers(2, 6)
    return make


def _add(array, number):
    array += number
    return array


def _shared(forward, *views):
    def make():
        series = torch.arange(9.0)
        return Of(forward, drop=nn.Dropout(0.5)), tuple(view(series) for view in views)
    return make


def _first_half(self, x, other):
    x -= x.mean()
    return self.drop(x + other)


def _two_scales(self, x):
    return torch.cat([1e5 * self.drop(x), self.generator.normal() + x], 1)


def _of_generator(forward):
    def make():
        model = Of(forward, drop=nn.Dropout(0.5))
        model.generator = np.random.default_rng(0)
        return model, torch.ones(2, 3)
    return make


@torch.enable_grad()
def _force(self, x):
    place = x.detach().requires_grad_()
    return -torch.autograd.grad(self.energy(place).sum(), place)[0]


@torch.enable_grad()
def _force_of(self, x):
    return -torch.autograd.grad(self.energy(x).sum(), x)[0]


@torch.enable_grad()
def _gradient(self, x):
    y = self.drop(self.layer(x.requires_grad_()))
    y.square().sum().backward()
    return x.grad + self.layer.weight.grad.sum()


def _written(self, x):
    h = x + 1
    last, self.memory = getattr(self, "memory", 0), h.add_(self.drop(h))
    return self.memory + last


def _cached(self, x):
    if getattr(self, "last", None) is not x:
        self.last, self.output = x, self.drop(x)
    return self.output


@torch.jit.script
def _swish(x):
    return x * torch.sigmoid(x)


def _unchanged(*layers):
    return lambda: (nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), *copy.deepcopy(layers)), numbers(2, 5, 6))


LIKE_A_LOOP = {
    "a method": _held(lambda: random.Random(0).random),
    "a closure": _held(lambda: partial(random.Random(0).gauss, 0, 1)),
    "NumPy": _held(lambda: np.random.default_rng(0).normal), "a count": _held(lambda: partial(next, itertools.count())),
    "a cycle": _held(lambda: partial(next, itertools.cycle([1, 1, 1, 1, 0]))),
    "a number of NumPy": _held(lambda: lambda of=np.random.default_rng(0): np.float32(of.random())),  # noqa: B008
    "seldom other arguments": _seldom(lambda self, x, h, k: self.last(self.drop(torch.cat([h * 3, k], 1)))),
    "seldom the noise at once": _seldom(lambda self, x, h, k: self.drop(h)),
    "seldom the noise, of what is left": _seldom(lambda self, x, h, k: self.drop(k)[:, :3]),
    "seldom another input": _seldom(lambda self, x, h, k: self.last(self.drop(torch.cat([h, k.neg_()], 1)))),
    "seldom something written": _seldom(lambda self, x, h, k: self.drop(h.mul_(2).add_(x[:, :3]))),
    "seldom what is read": _seldom(lambda self, x, h, k: self.drop(h * float(k.sum()) + k.shape[1])),
    "every seventh time": _seldom(lambda self, x, h, k: self.drop(h), lambda: partial(
        next, itertools.cycle([1, 1, 1, 1, 1, 1, 0]))),
    "an error of one sample": _caught(_cholesky, torch.ones(6).double()),
    "a number that is read": _caught(_read, torch.ones(6).double()),
    "outputs of two scales": _of_generator(_two_scales),
    "half precision": _of_generator(lambda self, x: (10 + self.generator.normal() * 0.1 + 0 * self.drop(x)).half()),
    "seldom zero": _of_generator(lambda self, x: self.drop(x) * float(self.generator.random() > 0.1)),
    "an array added": _of_arrays(lambda self, h: h + torch.from_numpy(_add(self.array, 1.0).copy())),
    "an array that is read": _of_arrays(lambda self, h: h + torch.from_numpy(_add(self.array, 1.0))),
    "an array of a tensor": _of_arrays(lambda self, h: (_add(self.view, 1.0), h + self.shared)[1]),
    "written by NumPy": _of_arrays(lambda self, h: torch.from_numpy(_add(h.detach().numpy(), 5.0)) * 2),
    "written by NumPy, and read": _of_arrays(lambda self, h: (_add(h.detach().numpy(), 5.0), h * 2)[1]),
    "two views of an input": _shared(_first_half, lambda s: s[:-1], lambda s: s[1:]),
    "an input and a view": _shared(_first_half, lambda s: s, lambda s: s.view(-1)),
    "an input and its rows": _shared(lambda self, x, y: _first_half(self, x, 0) + y.sum(), lambda s: s[2:], lambda s: s[
        :9].view(3, 3).t()),
    "attention first": _unchanged(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "attention of ours": _unchanged(Of(lambda self, x: functional.attention_dropout(x, x, x))),
    "recurrent": _unchanged(nn.LSTM(8, 4, 2, dropout=0.5), Of(lambda self, x: x[0])),
    "recurrent of ours": _unchanged(dropoutlib.VariationalLSTM(8, 4), Of(lambda self, x: x[0])),
    "weights that are computed": _unchanged(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Dropout()),
    "noise of weights": _unchanged(dropoutlib.DropConnectLinear(8, 4), dropoutlib.FastDropoutLinear(4, 4)),
    "drawn in place": _unchanged(Of(lambda self, x: x + torch.empty_like(x).normal_()), nn.Dropout()),
    "rrelu": _unchanged(Of(lambda self, x: F.rrelu(x - 1, training=True, inplace=True)), nn.Dropout()),
    "a force of an input": lambda: (Of(_force_of, energy=nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Dropout(),
                                                                       nn.Linear(4, 1))),
                                    numbers(2, 6).requires_grad_()),
    "a force": _unchanged(Of(_force, energy=nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 1)))),
    "gradients that add up": _unchanged(Of(_gradient, layer=nn.Linear(8, 8), drop=nn.Dropout())),
    "a state that is written": _caught(_written, torch.ones(2, 3).double()),
    "a function that is scripted": _unchanged(Of(lambda self, x: _swish(x)), nn.Dropout()),
    "a cache by identity": _caught(_cached, torch.ones(2, 3).double()),
    "indexed": _unchanged(Of(lambda self, x: x.new_zeros(2, 3, 8).index_add_(1, torch.tensor([0, 2, 2, 1, 0]), x)),
                          nn.Dropout(inplace=True)),
}


def _call_of_copies(model, x):
    """Of inputs that share memory the copies share it, too."""
    if type(x) is not tuple:
        return model(x.detach().clone().requires_grad_(x.requires_grad))
    base = x[0]._base if x[0]._base is not None else x[0]
    copied = base.clone()
    return model(*(copied.as_strided(part.shape, part.stride(), part.storage_offset()) for part in x))


@pytest.mark.parametrize("make", LIKE_A_LOOP.values(), ids=LIKE_A_LOOP)
def test_samples_are_those_of_a_loop_bit_for_bit(make):
    def begin():
        torch.manual_seed(0)
        model, x = make()
        torch.manual_seed(1)
        return model.eval(), x

    model, x = begin()
    before = tree_map(torch.clone, x)
    samples = predict(model, x, 60).samples
    assert all(map(torch.equal, *map(tree_leaves, (x, before))))
    model, x = begin()
    with torch.no_grad(), monte_carlo(model):
        loop = torch.stack([_call_of_copies(model, x) for _ in range(60)])
    assert torch.equal(samples, loop) and len(loop.unique(dim=0)) > 1


@pytest.mark.parametrize("keep", [lambda h: h.tolist(), lambda h: float(h.sum()), lambda h: h.numpy().copy(),
                                  lambda h: h.clone()])
@pytest.mark.parametrize("drop", [nn.Dropout, dropoutlib.Dropout])
def test_what_is_kept_of_a_call_is_kept_once_for_each_sample(keep, drop):
    model, kept = nn.Sequential(nn.Linear(3, 3), drop(0.5), nn.Linear(3, 3)).eval(), []
    model[1].register_forward_hook(lambda module, args, output: kept.append(keep(output)))
    predict(model, numbers(2, 3), 9)
    assert len(kept) == 9 and len({str(one) for one in kept}) > 1


def test_outputs_of_several_shapes_are_named():
    model = Of(lambda self, x: self.drop(x)[:, :next(self.sizes)], drop=nn.Dropout(0.5))
    model.sizes = itertools.cycle([3, 2])
    with pytest.raises(RuntimeError, match=r"of one shape, but Of returned \(2, 3\) for one sample and \(2, 2\) for"):
        predict(model, torch.ones(2, 4), 5)


# The measured table


def test_the_table_is_that_of_the_experiment(tmp_path, monkeypatch):
    text = measured("mc_dropout")
    assert text.startswith("# python -m dropoutlib.experiments.mc_dropout --seeds 10")
    assert text.partition("; ")[2].splitlines()[:2] == [experiment._ABOUT[0], f"# {experiment._ABOUT[1]}"]
    for name, value in {"_LABELS": 20, "_STEPS": 3, "_SAMPLES": 4, "_MEMBERS": 2}.items():
        monkeypatch.setattr(experiment, name, value)
    assert experiment.main(["--seeds", "1", "--output", str(tmp_path / "table.txt")]) == 0
    small = read_scores((tmp_path / "table.txt").read_text(encoding="utf-8"))
    assert set(small) == set(read_scores(text))
    assert all(len(seeds) == 10 for seeds in read_scores(text).values())


# Bad input


DROP = nn.Dropout(0.5)


@pytest.mark.parametrize(("error", "words", "call"), [
    (TypeError, "model has to be a module, but got function", lambda: monte_carlo(F.relu).__enter__()),
    (TypeError, "model has to be a module, but got list", lambda: predict([], torch.ones(2))),
    (TypeError, "scripted or traced", lambda: predict(torch.jit.trace(nn.Linear(1, 1), torch.ones(1)), torch.ones(1))),
    (ValueError, "has no weights yet", lambda: predict(nn.Sequential(nn.LazyLinear(2), DROP), torch.ones(1))),
    (ValueError, "masks has to be 'example', 'call' or 'fixed', but got 'batch'",
     lambda: monte_carlo(DROP, "batch").__enter__()),
    (ValueError, "masks has to be 'example' or 'call', but got 'fixed'",
     lambda: predict(DROP, torch.ones(2), masks="fixed")),
    (ValueError, "masks has to be 'example', but got 'fixed': those of the model, a StandoutLinear, depend",
     lambda: monte_carlo(dropoutlib.StandoutLinear(2, 2), "fixed").__enter__()),
    (RuntimeError, "masks has to be 'example', but got 'call': lstm in the model draws masks inside",
     lambda: predict(nn.LSTM(2, 2, 2, dropout=0.5), torch.ones(2, 2, 2), masks="call")),
    (RuntimeError, "multi_head_attention_forward in layer draws masks inside",
     lambda: predict(KINDS["attention"][0], torch.ones(2, 2, 8), masks="call")),
    (RuntimeError, "nothing in the model Linear drew", lambda: predict(nn.Linear(1, 1), torch.ones(1))),
    (ValueError, "num_samples has to be at least 2, for a variance, but got 1",
     lambda: predict(DROP, torch.ones(2), 1)),
    (ValueError, "num_samples has to be at least 1", lambda: predict(DROP, torch.ones(2), 0)),
    (TypeError, "num_samples has to be a whole number, but got 2.0", lambda: predict(DROP, torch.ones(2), 2.0)),
    (ValueError, "task has to be 'regression' or 'classification', but got 'segmentation'",
     lambda: predict(DROP, torch.ones(2), task="segmentation")),
    (ValueError, "precision has to be positive", lambda: predict(DROP, torch.ones(2), precision=0.0)),
    (TypeError, "precision has to be a real number", lambda: predict(DROP, torch.ones(2), precision="1")),
    (ValueError, "precision is that of the noise around a regression, but got 2",
     lambda: predict(DROP, torch.ones(2, 2), task="classification", precision=2.0)),
    (ValueError, r"class_axis has to be an axis of the output, which has the shape \(2,\), but got 1",
     lambda: predict(DROP, torch.ones(2), task="classification")),
    (TypeError, "class_axis has to be a whole number, but got 1.0",
     lambda: predict(DROP, torch.ones(2, 2), task="classification", class_axis=1.0)),
    (ValueError, "at least 2 classes", lambda: predict(DROP, torch.ones(2, 1), task="classification")),
    (TypeError, "progress has to be", lambda: predict(DROP, torch.ones(2), progress=3)),
    (TypeError, "generator has to be a torch.Generator, but got int",
     lambda: predict(DROP, torch.ones(2), generator=3)),
    (TypeError, "model has to return one tensor of floating point numbers, but Of returned tuple: wrap it",
     lambda: predict(Of(lambda self, x: (F.dropout(x), x)), torch.ones(2))),
    (TypeError, "but Of returned torch.int64", lambda: predict(Of(lambda self, x: F.dropout(x).long()), torch.ones(2))),
    (ZeroDivisionError, "by zero", lambda: predict(Of(lambda self, x: F.dropout(x) / (1 // 0)), torch.ones(2))),
])
def test_bad_input(error, words, call):
    with pytest.raises(error, match=words):
        call()
    assert not any(mc_dropout._CONTEXTS.values())


SOURCES = {
    "Python": (random.seed, lambda own: random.random()), "NumPy": (np.random.seed, lambda own: np.random.random()),
    "Random": (random.Random, random.Random.random), "Generator": (np.random.default_rng, np.random.Generator.random),
    "RandomState": (np.random.RandomState, np.random.RandomState.random),
    "another kind of bits": (lambda seed: np.random.Generator(np.random.MT19937(seed)), np.random.Generator.random),
}


@pytest.mark.parametrize(("make", "number"), SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("forward", [
    lambda self, x, number: self.drop(x) + number, lambda self, x, number: self.drop(x + number),
    lambda self, x, number: self.drop(x) + torch.from_numpy(np.array(number)),
    lambda self, x, number: self.drop(x + 1 if number < 0.5 else x)])
def test_numbers_that_torch_did_not_draw_are_those_of_a_loop(make, number, forward):
    inner = Of(lambda self, x: forward(self, x, number(self.own)), drop=nn.Dropout(0.5))
    model, x = nn.Sequential(nn.Tanh(), inner), torch.zeros(1, 2)

    def seed():
        torch.manual_seed(0)
        inner.own = make(0)

    seed()
    samples = predict(model, x, 30).samples
    seed()
    with torch.no_grad(), monte_carlo(model):
        assert torch.equal(samples, torch.stack([model(x) for _ in range(30)]))


def test_numbers_of_the_system_are_drawn_for_each_sample():
    model = Of(lambda self, x: self.drop(x) + self.own.random(), drop=nn.Dropout(0.5), own=random.SystemRandom())
    assert predict(model, torch.zeros(1, 2), 200).variance.min() > 0.05


GENERATORS = {
    "a function": lambda self, x: x + torch.randn(x.shape, generator=self.generator),
    "in place": lambda self, x: x + torch.empty_like(x).normal_(generator=self.generator),
    "of a probability": lambda self, x: x + torch.bernoulli(torch.full_like(x, 0.3), generator=self.generator),
    "an index": lambda self, x: x[:, torch.randperm(x.shape[1], generator=self.generator)],
    "ours": lambda self, x: functional.gaussian_dropout(x, 0.5, True, generator=self.generator),
    "seeded in each pass": lambda self, x: x + torch.randn(x.shape, generator=self.generator.manual_seed(3)),
}


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
@pytest.mark.parametrize("forward", [lambda self, x: self.drop(self.draw(self, x)),
                                     lambda self, x: self.draw(self, self.drop(x))], ids=["in front", "behind"])
def test_a_generator_of_the_model_gives_what_it_gives_in_a_loop(draw, forward):
    model, x = Of(forward, drop=nn.Dropout(0.2), draw=draw), numbers(2, 5)

    def seed():
        torch.manual_seed(1)
        model.generator = torch.Generator().manual_seed(2)

    seed()
    samples = predict(model, x, 30).samples
    seed()
    with torch.no_grad(), monte_carlo(model):
        assert torch.equal(samples, torch.stack([model(x) for _ in range(30)]))


def _forked(draw, x):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return draw(x)


def _seeded(draw, x):
    torch.manual_seed(0)
    return draw(x)


def _put_back(draw, x):
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)
    y = draw(x)
    torch.set_rng_state(state)
    return y


def _twice(draw, x):
    state = torch.get_rng_state()
    y = draw(x)
    torch.set_rng_state(state)
    return y + draw(x)


SEEDED = {"forked": _forked, "seeded": _seeded, "put back": _put_back, "twice": _twice}
DRAWN = {
    "in front": lambda self, x: self.drop(x @ self.seed(torch.randn, (5, 5))),
    "behind": lambda self, x: self.drop(x) @ self.seed(torch.randn, (5, 5)),
    "in place": lambda self, x: self.drop(x) + self.seed(torch.Tensor.normal_, torch.empty(2, 5)),
    "the dropout": lambda self, x: self.drop(x) + self.seed(self.drop, x),
    "nothing else": lambda self, x: self.seed(self.drop, x),
    "at the end": lambda self, x: (self.drop(x), self.seed(lambda _: 0, x))[0],
}


@pytest.mark.parametrize("seed", SEEDED.values(), ids=SEEDED)
@pytest.mark.parametrize("forward", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("masks", ["example", "call"])
@pytest.mark.parametrize("first", [0, 1])
def test_what_a_model_seeds_itself_is_that_of_a_loop(seed, forward, masks, first):
    """By the state of the global generator, which may be the state that it had when everything began."""
    model, x = Of(forward, drop=nn.Dropout(0.2), seed=seed), numbers(2, 5)
    torch.manual_seed(first)
    samples = predict(model, x, 20, masks=masks).samples
    torch.manual_seed(first)
    with torch.no_grad(), monte_carlo(model, masks=masks):
        loop = torch.stack([model(x) for _ in range(20)])
    sets_nothing = seed is _twice and forward is DRAWN["at the end"]
    assert torch.equal(samples, loop) or (sets_nothing and len(samples.unique(dim=0)) > 10)


class Same(torch.autograd.Function):
    """No mode sees what it returns, and torch.vmap takes it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class Keeps(nn.Module):
    """Keeps something of what comes behind its noise."""

    def __init__(self, keep, drop):
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.drop, self.keep, self.kept = nn.Linear(6, 6), drop, keep, []
        self.many = nn.Parameter(torch.ones(2 ** 15))   # their masks are drawn in place
        if keep is None:
            drop.register_forward_hook(lambda module, args, output: self.kept.append(output))

    def forward(self, x):
        h = self.drop(self.linear(x).relu())
        if self.keep is not None:
            self.keep(self, h)
        return self.linear(h)


KEPT = {
    "an attribute": lambda self, h: setattr(self, "kept", h), "a list": lambda self, h: self.kept.append(h),
    "a tuple": lambda self, h: setattr(self, "kept", (h, *self.kept)), "by a hook": None,
    "a view": lambda self, h: self.kept.append(h.view(-1)[::2]), "a mean": lambda self, h: self.kept.append(h.mean()),
    "a state": lambda self, h: setattr(self, "kept", sum(self.kept) + h),
    "a buffer": lambda self, h: self.register_buffer("state", h),
    "of a function that is not seen": lambda self, h: self.kept.append(Same.apply(h)),
    "weights": lambda self, h: self.kept.append(functional.dropout(self.linear.weight, 0.3)),
    "many weights": lambda self, h: self.kept.append(functional.dropout(self.many, 0.3)),
    "drawn from weights": lambda self, h: self.kept.append(torch.bernoulli(self.linear.weight.sigmoid())),
}


@pytest.mark.parametrize("drop", [nn.Dropout, dropoutlib.Dropout], ids=["torch's", "ours"])
@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
def test_what_a_model_keeps_behind_its_noise_is_that_of_a_loop(keep, drop):
    x = numbers(4, 6)
    looped = Keeps(keep, drop(0.3))
    with torch.no_grad(), monte_carlo(looped):
        expected = torch.stack([looped(x) for _ in range(20)])
    model = Keeps(keep, drop(0.3))
    assert torch.equal(predict(model, x, 20).samples, expected)
    kept = copy.deepcopy(model.state_dict().get("state", model.kept))  # which tensors of torch.vmap refuse
    torch.testing.assert_close(kept, looped.state_dict().get("state", looped.kept), rtol=0, atol=0)


def test_a_model_that_is_told_to_evaluate_in_the_context_still_draws():
    model = nn.Sequential(nn.Linear(4, 8), dropoutlib.Dropout(0.5)).eval()
    with torch.no_grad(), monte_carlo(model):
        model.eval()
        assert not torch.equal(model(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert not any(module.training for module in model.modules())


class _WithFunction(nn.Module):
    """Noise by a function of this library, in front of the one of a layer."""

    def __init__(self, function, p=0.2):
        super().__init__()
        self.function, self.dropout, self.output = function, dropoutlib.Dropout(p), nn.Linear(8, 1)

    def forward(self, x):
        return self.output(self.dropout(self.function(x)))


FUNCTIONS = {
    "dropout": lambda x: functional.dropout(x, 0.5, True), "gaussian_dropout": lambda x: functional.gaussian_dropout(
        x, 0.5, True), "drop_connect_linear": lambda x: functional.drop_connect_linear(x, torch.ones(8, 8), p=0.5)}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_that_draw_are_seen(function) -> None:
    x = torch.randn(4, 8)
    model = _WithFunction(function)
    for masks in ("fixed", "call"):
        words = f"masks has to be 'example', but got '{masks}': a function of dropoutlib in the model draws"
        with torch.no_grad(), monte_carlo(model, masks=masks), pytest.raises(RuntimeError, match=words):
            model(x)
    with torch.no_grad(), monte_carlo(model) as places:
        assert not torch.equal(model(x), model(x)) and places == ["", "dropout"]
    alone = _WithFunction(function, p=0.0)
    assert (predict(alone, x, 50).variance > 0).all()
    with torch.no_grad(), monte_carlo(model, masks="fixed"):    # that of a layer is shared as ever
        model.function = nn.Identity()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("follow", [
    lambda model, x: predict(model, x, 4), lambda model, x: dropoutlib.audit(model, x), dropoutlib.compress,
    lambda model, x: dropoutlib.propagate_moments(model, x)])
def test_an_exported_program_is_refused_by_name(follow):
    x = torch.randn(2, 4)
    program = torch.export.export(nn.Sequential(nn.Linear(4, 3), nn.Dropout()), (x,)).module()
    with pytest.raises(TypeError, match="exported"):
        follow(program, x)


class _Cast(nn.Module):
    """Behind its noise it calls a function that returns a parameter and an input as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(40))

    def forward(self, x):
        return F.dropout(x) * self.scale.float() + x.float()


@pytest.mark.parametrize("last", [_Cast, lambda: dropoutlib.VariationalDropoutLinear(40, 3),
                                  lambda: dropoutlib.ConcreteDropout(nn.Linear(40, 3))])
def test_nothing_stays_of_what_was_computed_in_front_of_the_noise(last):
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor and thing.shape == (7, 40) for thing in gc.get_objects())

    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), last())
    before = alive()
    for _ in range(3):
        predict(model, torch.randn(7, 6), 4)
    assert alive() == before


@pytest.mark.parametrize("transform", [
    lambda energy: torch.func.grad(lambda z: energy(z).sum()),
    lambda energy: torch.func.vmap(torch.func.grad(lambda z: energy(z).sum())),
    lambda energy: torch.func.vmap(torch.func.jacrev(lambda z: energy(z)[0])),
    lambda energy: torch.func.vmap(torch.func.jacfwd(lambda z: energy(z)[0])),
    lambda energy: lambda x: torch.func.vjp(energy, x)[1](x.new_ones(len(x), 1))[0],
    lambda energy: lambda x: torch.func.jvp(energy, (x,), (torch.ones_like(x),))[1].expand(-1, 6)])
def test_a_model_may_use_transforms_of_its_own(transform):
    """The derivative of an energy, as in a force field, with dropout behind it."""
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
            self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))

        def forward(self, x):
            return self.head(transform(self.energy)(x.sin()))

    model, x = Force().double(), torch.randn(4, 6).double()
    found = predict(model, x, 400)
    with torch.no_grad():
        force = transform(model.energy)(x.sin())
        mean, deviation = model.head.eval()(force), ((force ** 2) @ (model.head[1].weight ** 2).T).sqrt()
    assert ((found.mean - mean).abs() < 6 * deviation / 20).all()
    torch.testing.assert_close(found.variance.sqrt(), deviation, rtol=0.3, atol=1e-3)


def test_dropout_inside_of_a_transform_is_sampled():
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1))

        def forward(self, x):
            return torch.func.grad(lambda z: self.energy(z).sum())(x)

    assert (predict(Force(), torch.randn(4, 6), 50).variance > 0).all()


def test_an_empty_batch_of_classes_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)), torch.randn(0, 8), 10, task="classification")
    assert found.mean.shape == (0, 3) and found.standard_error["entropy"].shape == (0,)


@pytest.mark.parametrize("write", [
    lambda h, factor: h.data.mul_(factor), lambda h, factor: np.multiply(h.numpy(), factor.numpy(), out=h.numpy())])
def test_what_is_written_past_the_version_of_a_tensor_is_undone(write):
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

        def forward(self, x):
            h = self.linear(x).detach()
            write(h, self.drop(torch.ones_like(h)))
            return h

    model, x = Writes(), torch.randn(4, 6)
    with torch.no_grad():
        expected = model.linear(x).square()     # p = 1/2: the variance is the square
    found = predict(model, x, 2000).variance
    torch.testing.assert_close(found, expected, rtol=0.2, atol=1e-4)


SHARED = torch.zeros(4, 6)


def _of_array(self):
    torch.from_numpy(self.array).zero_()
    return torch.from_numpy(self.array)


STATES = {  # what a model writes anew in each pass, in front of its noise
    "zero_": lambda self, x: self.h.zero_(), "copy_": lambda self, x: self.h.copy_(self.linear(x)),
    "a slice": lambda self, x: self.h.__setitem__(slice(None), 0) or self.h,
    "a view": lambda self, x: (self.h.view(-1)[3:].zero_(), self.h[0].zero_()) and self.h,
    "out": lambda self, x: torch.mul(x, 2, out=self.h),
    "data": lambda self, x: (self.h.data.zero_(), self.h)[1],
    "other data": lambda self, x: (setattr(self.h, "data", torch.zeros(4, 6)), self.h)[1],
    "several": lambda self, x: (torch._foreach_zero_([self.h]), self.h)[1],
    "a buffer": lambda self, x: self.buffer.zero_(), "a list": lambda self, x: self.states[0].zero_(),
    "a global": lambda self, x: SHARED.zero_(), "an array": lambda self, x: _of_array(self),
    "in place": lambda self, x: F.relu(self.h.sub_(9), inplace=True),
    # not written anew: what one pass leaves, the next one finds, as in a loop
    "read before": lambda self, x: (self.linear(self.h), self.h.mul_(0.5))[0].clone(),
    "kept": lambda self, x: self.h, "a view that is kept": lambda self, x: self.h.view(-1).view(4, 6),
}


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_that_is_written_in_front_of_the_noise_is_that_of_a_loop(state, is_inference):
    def forward(self, x):
        h = state(self, x)
        h.mul_(0.9).add_(self.drop(self.linear(x)))
        y = self.linear(h)
        self.h.add_(h)
        return y

    def samples(draw):
        torch.manual_seed(0)
        SHARED.zero_()
        with torch.inference_mode(is_inference):
            model = Of(forward, linear=nn.Linear(6, 6), drop=nn.Dropout(0.5), h=torch.zeros(4, 6),
                       states=[torch.zeros(4, 6)], array=np.zeros((4, 6), dtype=np.float32))
            model.register_buffer("buffer", torch.zeros(4, 6))
            return draw(model, torch.ones(4, 6))

    def loop(model, x):
        with torch.no_grad(), monte_carlo(model):
            return torch.stack([model(x) for _ in range(12)])

    assert torch.equal(samples(lambda model, x: predict(model, x, 12).samples), samples(loop))


def test_an_array_that_is_written_in_front_of_the_noise_does_not_add_up():
    array = np.zeros((4, 6), dtype=np.float32)

    def forward(self, x):
        torch.as_tensor(array).zero_()
        y = self.drop(x)
        return torch.from_numpy(array).add_(y).clone()

    samples = predict(Of(forward, drop=nn.Dropout(0.5)), torch.ones(4, 6), 12).samples
    assert set(samples.unique().tolist()) == {0.0, 2.0}


def test_a_variance_of_a_few_roundings_is_that_of_the_samples():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))
    with torch.no_grad():
        model[1].weight.mul_(0.1)
        model[1].bias.fill_(1e6)
    found = predict(model, torch.randn(4, 6), 500)
    torch.testing.assert_close(found.variance, found.samples.double().var(0).float(), rtol=1e-3, atol=1e-6)


# Contexts that do not end in the order in which they began, and settings of the process


@pytest.mark.parametrize("layer", [dropoutlib.Dropout(), dropoutlib.DropConnectLinear(4, 4),
                                   nn.MultiheadAttention(4, 1, dropout=0.5)], ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_contexts_may_end_in_any_order(layer, order):
    model = nn.Sequential(layer)
    for was in (False, True):
        model.train(was)
        contexts = [monte_carlo(model) for _ in order]
        for context in contexts:
            context.__enter__()
        for place in order:
            assert not model.training and layer.training
            contexts[place].__exit__(None, None, None)
        assert model.training is layer.training is was


def test_what_a_context_finds_is_put_back_even_if_another_one_ends_meanwhile():
    model = nn.Sequential(nn.Linear(4, 4), dropoutlib.Dropout()).eval()

    async def request():
        with monte_carlo(model):
            for _ in range(3):
                model(numbers(1, 4))
                await asyncio.sleep(0)

    async def requests():
        await asyncio.gather(request(), request())

    asyncio.run(requests())
    assert torch.equal(model(numbers(1, 4)), model(numbers(1, 4)))


def test_coroutines_have_one_function_in_the_context_around_them():
    model, x = nn.Sequential(nn.Dropout()), torch.ones(2, 100)

    async def calls(is_inside, several):
        with contextlib.nullcontext() if is_inside else monte_carlo(model, "fixed"):
            answers = []
            for _ in range(several):
                answers.append(model(x))
                await asyncio.sleep(0)
            return answers

    async def both(is_inside):
        return await asyncio.gather(calls(is_inside, 4), calls(is_inside, 2))

    with monte_carlo(model, "fixed"):
        first, second = asyncio.run(both(True))
    assert all(torch.equal(first[0], answer) for answer in first + second)
    first, second = asyncio.run(both(False))    # as the docstring says
    assert torch.equal(first[1], second[0]) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize("first", [0, 1])
def test_settings_of_the_process_come_back_when_the_last_context_ends(first):
    models = [nn.Sequential(nn.Dropout()) for _ in range(2)]
    contexts = [monte_carlo(model) for model in models]
    torch.compile(models[0], backend="eager")   # loads the compiler
    stance = torch._dynamo.eval_frame._stance.stance
    for context in contexts:
        context.__enter__()
    contexts[first].__exit__(None, None, None)
    assert not torch.backends.mha.get_fastpath_enabled()
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    contexts[1 - first].__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled() and torch._dynamo.eval_frame._stance.stance == stance


@pytest.mark.timeout(60)    # without it, a lock would wait for ever for the thread that holds it
def test_an_abandoned_context_may_be_collected_while_another_one_begins_or_ends(monkeypatch, request):
    def samples(model):
        with monte_carlo(model):
            yield model(torch.ones(2, 3))

    def abandon(model):
        abandoned = [samples(model)]
        next(abandoned[0])
        abandoned.append(abandoned)     # a cycle: it ends when garbage is collected
        return model

    gc.disable()
    request.addfinalizer(gc.enable)
    forgotten = [abandon(nn.Sequential(nn.Dropout())) for _ in range(2)]
    real, settings = torch.backends.mha.set_fastpath_enabled, []

    def setting(value):
        gc.collect()
        settings.append(value)
        real(value)

    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", setting)
    with monte_carlo(model := nn.Sequential(nn.Dropout())):
        assert all(one.training for one in forgotten) and not model.training
        assert not torch.backends.mha.get_fastpath_enabled()
        abandon(forgotten[0])
    gc.collect()
    assert model.training and forgotten[0].training and torch.backends.mha.get_fastpath_enabled()
    assert settings == [False, False, True]
    assert not any((*model._forward_hooks, *forgotten[0]._forward_hooks, *forgotten[0][0]._forward_pre_hooks,
                    *nn.modules.module._global_forward_hooks, *nn.modules.module._global_forward_pre_hooks))


@pytest.mark.parametrize("layer", [nn.Dropout(), dropoutlib.Dropout()], ids=["torch's", "ours"])
def test_a_module_that_the_model_does_not_hold_stays_as_it_is(layer):
    teacher = nn.Sequential(nn.Linear(8, 8), layer).eval()

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, input):
            return self.drop(input), teacher(input)

    student, x = Student(), numbers(4, 8)
    with torch.no_grad(), monte_carlo(student) as places:
        (one, fixed), (other, again) = student(x), student(x)
    assert torch.equal(fixed, again) and not torch.equal(one, other) and places == ["drop"]


NOT_HELD = {"torch's": nn.Dropout, "alpha": nn.AlphaDropout, "ours": dropoutlib.Dropout,
            "Gaussian": dropoutlib.GaussianDropout, "weights": partial(dropoutlib.DropConnectLinear, 8, 8),
            "within": lambda: nn.Sequential(nn.ReLU(), nn.Dropout()),
            "attention": partial(nn.TransformerEncoderLayer, 8, 2, 16, 0.5, batch_first=True),
            "recurrent": lambda: Of(lambda self, x: self.rnn(x)[0], rnn=nn.LSTM(8, 8, 2, dropout=0.5))}


@pytest.mark.parametrize("make", NOT_HELD.values(), ids=NOT_HELD)
def test_a_module_in_training_that_the_model_does_not_hold_draws_for_examples(make):
    parts, x = [make()], numbers(1, 3, 8)
    part = Of(lambda self, x: parts[0](x))
    model = nn.Sequential(nn.Linear(8, 8), part).eval()
    with monte_carlo(model) as places, torch.no_grad():
        assert not torch.equal(model(x), model(x)) and places == ["1"]
    assert len(predict(model, x, 5).samples.unique(dim=0)) == 5
    for masks in ("call", "fixed"):
        with (monte_carlo(model, masks),
              pytest.raises(RuntimeError, match=f"got '{masks}': 1 calls a .* that the model does not hold")):
            model(x)
    parts[0].eval()
    with monte_carlo(model), pytest.raises(RuntimeError, match="nothing in the model Sequential drew"):
        model(x)


@pytest.mark.parametrize("order", [1, -1])
def test_a_module_that_the_model_does_not_hold_may_be_in_a_context_of_its_own(order):
    part, x = nn.Sequential(nn.Dropout()), numbers(2, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), Of(lambda self, x: parts[0](x)))
    parts = [part]
    one, other = [part, model][::order]
    with monte_carlo(one, "fixed"), monte_carlo(other, "fixed"), torch.no_grad():
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("held", [list, nn.ModuleList])
@pytest.mark.parametrize("masks", ["example", "call", "fixed"])
def test_a_model_may_sample_others_by_itself(held, masks):
    def forward(self, x):
        with monte_carlo(self.parts[0], masks):
            return self.parts[0](x)

    model = Of(forward, parts=held([nn.Sequential(nn.Linear(8, 8), nn.Dropout(), dropoutlib.Dropout())])).eval()
    for mine in ("example", "call", "fixed"):
        with monte_carlo(model, mine) as places, torch.no_grad():
            y, again = model(numbers(1, 8).expand(4, 8)), model(numbers(1, 8).expand(4, 8))
        assert not torch.equal(y, again) and bool(places) is (held is list)
        assert torch.equal(y, y[:1].expand(4, 8)) is (masks != "example")


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_front_of_a_sequence_whose_method_was_replaced_is_computed_each_time(method):
    conv = nn.Conv1d(1, 4, 3)
    before = getattr(conv, method)
    setattr(conv, method, lambda input, *rest: before(F.dropout(input, 0.5, True), *rest))
    model, x = nn.Sequential(conv, nn.Flatten(), nn.Dropout(0.1)).eval(), numbers(2, 1, 9)
    torch.manual_seed(0)
    samples = predict(model, x, 5).samples
    torch.manual_seed(0)
    with monte_carlo(model), torch.no_grad():
        assert torch.equal(samples, torch.stack([model(x) for _ in range(5)]))


def test_a_plain_tensor_of_the_front_may_be_set_anew():
    first, x = nn.Linear(8, 8), numbers(2, 8)
    raw = first.weight.detach()
    del first.weight
    first.weight = raw

    def forward(self, x):
        first.weight = F.dropout(raw, 0.5, True)
        return self.drop(x)

    model = nn.Sequential(first, Of(forward, drop=nn.Dropout(0.1))).eval()
    torch.manual_seed(0)
    samples = predict(model, x, 5).samples
    first.weight = raw
    torch.manual_seed(0)
    with monte_carlo(model), torch.no_grad():
        assert torch.equal(samples, torch.stack([model(x) for _ in range(5)]))


def test_no_device_is_seeded_but_those_in_use_and_they_are_put_back(monkeypatch):
    model, x, asked = nn.Sequential(nn.Linear(3, 3), nn.Dropout()), numbers(2, 3), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: asked.append("seed"))
    predict(model, x, 3, generator=torch.Generator())
    dropoutlib.audit(model, x)
    dropoutlib.compress(model, x)
    assert not asked or torch.cuda.is_initialized()
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: "state")
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", asked.append)
    with dropoutlib.generators.global_generators_kept():
        dropoutlib.generators.seed_global_generators(3)
    assert asked == ["seed", "state"] and torch.initial_seed() != 3


def test_a_device_of_another_library_follows_the_generator(monkeypatch):
    """Registered as the backends of others are: with a module in torch that has its generator."""
    device = SimpleNamespace(is_initialized=lambda: True, manual_seed_all=lambda seed: drawn.manual_seed(seed),
                             get_rng_state_all=lambda: [drawn.get_state()],
                             set_rng_state_all=lambda states: drawn.set_state(states[0]))
    monkeypatch.setattr(torch, torch._C._get_privateuse1_backend_name(), device, raising=False)
    drawn = torch.Generator().manual_seed(7)
    before = drawn.get_state()
    model = Of(lambda self, x: self.drop(x) + torch.rand(3, generator=drawn), drop=nn.Dropout(0.1))
    one, other = (predict(model, torch.ones(1, 3), 4, generator=torch.Generator().manual_seed(5)).samples
                  for _ in range(2))
    assert torch.equal(one, other) and torch.equal(drawn.get_state(), before)


def test_cuda_is_not_asked_for_before_it_is_in_use(monkeypatch):
    """After torch.cuda.is_available() a forked process cannot use it."""
    if torch.cuda.is_initialized():
        pytest.skip("it is in use")

    def ask():
        raise AssertionError("asked")

    monkeypatch.setattr(torch.cuda, "is_available", ask)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 3)), numbers(2, 3)
    predict(model, x, 3, generator=torch.Generator())
    dropoutlib.audit(model, x)
    dropoutlib.compress(model, x)
    dropoutlib.propagate_moments(model, x)
    dropoutlib.FastDropoutLinear.from_linear(model[0])


def test_predict_leaves_a_forward_that_was_put_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout(), Of(lambda self, x: change(x)))
    put_back = model[0].forward = model[0].forward

    def change(x):
        model[1].forward = other
        return x

    def other(x):
        return x

    predict(model, numbers(2, 3), 3)
    assert vars(model[0])["forward"] == put_back and vars(model[1])["forward"] is other


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


CHANGES = {
    "forward": lambda model: setattr(model[2], "forward", lambda x: 2 * nn.Linear.forward(model[2], x)),
    "class": lambda model: setattr(model[2], "__class__", Doubled),
    "class of the first": lambda model: setattr(model[0], "__class__", Doubled),
    "layer": lambda model: model.__setitem__(1, nn.Tanh()),
    "one more layer": lambda model: model.insert(1, nn.Tanh()),
    "forward of the sequence": lambda model: setattr(model, "forward", lambda x: nn.Sequential.forward(model, 2 * x)),
    "hook of the sequence": lambda model: model.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
}


@pytest.mark.parametrize("put_back", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_front_that_changes_between_two_samples_is_computed_anew(change, put_back):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Dropout(0.5)).eval()
        if put_back:
            model[2].forward = model[2].forward
        return model

    x, model, loop = numbers(4, 4), made(), []
    with torch.no_grad(), monte_carlo(model):
        for done in range(1, 5):
            loop.append(model(x))
            if done == 2:
                change(model)
    model = made()
    samples = predict(model, x, 4, progress=lambda done, _: change(model) if done == 2 else None).samples
    assert torch.equal(samples, torch.stack(loop)) and not torch.equal(*samples[1:3])


def test_a_convolution_that_changes_between_two_samples_is_computed_anew():
    conv = nn.Conv1d(1, 1, 1)
    usual, calls = conv._conv_forward, []

    def forward(self, x):
        calls.append(len(calls) + 1)
        times = calls[-1]
        conv._conv_forward = lambda *given: times * usual(*given)
        return self.drop(x)

    model, x = nn.Sequential(conv, Of(forward, drop=nn.Dropout(1e-9))), torch.ones(1, 1, 1)
    ratios = predict(model, x, 4).samples.flatten() / usual(x, conv.weight, conv.bias).detach().flatten()
    torch.testing.assert_close(ratios, torch.tensor([1.0, 1, 2, 3]))


def test_layers_are_not_replaced_in_a_context():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    with monte_carlo(model), pytest.raises(ValueError, match="1 is in a context of monte_carlo"):
        dropoutlib.replace(model, {nn.Dropout: lambda old: dropoutlib.Dropout(old.p)})
    assert type(model[1]) is nn.Dropout and model[1].training


def test_a_layer_that_is_put_in_during_a_context_draws_if_it_is_in_training():
    model, x = nn.Sequential(nn.Linear(3, 30), nn.Dropout()), numbers(2, 3)
    with monte_carlo(model) as places:
        model[1] = dropoutlib.Dropout()
        assert not torch.equal(model(x), model(x)) and places == [""]
    assert model.training and model[1].training


@pytest.mark.parametrize("masks", ["call", "fixed"])
def test_a_layer_that_takes_no_noise_is_named(masks):
    class Plain(dropoutlib.Dropout):
        def forward(self, input):
            return super().forward(input)

    model = nn.Sequential(Plain())
    with monte_carlo(model):
        model(numbers(2, 3))
    with monte_carlo(model, masks), pytest.raises(RuntimeError, match=r"forward of 0 \(Plain\) takes no noise="):
        model(numbers(2, 3))
