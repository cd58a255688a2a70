"""Layers with noisy weights, made of torch's; those of sparse variational dropout are in its own tests."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import dropoutlib
from dropoutlib import methods

FACTS = [layer for row in dropoutlib.catalogue().values() for layer in row.facts]
IN_PLACE_OF_LINEAR = [layer.name for layer in FACTS if layer.replaces == "Linear"]
OPTIONS = {"DropConnectLinear": {"p": 0.3, "activation": torch.relu}, "StandoutLinear": {"belief": "learned"},
           "FastDropoutLinear": {"p": 0.3}, "VariationalDropoutLinear": {"p": 0.3, "alpha_per": "unit"},
           "SparseVariationalLinear": {"threshold": 4.0}, "TargetedDropoutLinear": {"p": 0.3, "target_fraction": 0.4},
           "LoRALinear": {"p": 0.3, "rank": 2, "alpha": 3.0}}
IN_PLACE_OF_CONVOLUTIONS = {layer.name: layer.replaces for layer in FACTS
                            if str(layer.replaces).startswith("Conv") and layer.name != "ConcreteDropout2d"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", IN_PLACE_OF_LINEAR)
def test_weights_are_those_of_the_linear_layer(name: str, bias: bool) -> None:
    linear, options = nn.Linear(5, 3, bias=bias, dtype=torch.float64).eval(), OPTIONS[name]
    before = torch.get_rng_state()
    layer = getattr(dropoutlib, name).from_linear(linear, **options)
    assert torch.equal(torch.get_rng_state(), before) is (name != "LoRALinear"), "but for its A nothing is drawn"
    assert layer.weight is linear.weight and layer.bias is linear.bias and not layer.training
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert all(getattr(layer, option) == value for option, value in options.items() if option != "p")
    made = type(layer)(5, 3, bias=bias, **options, dtype=torch.float64)
    assert repr(made) == repr(layer)
    made.load_state_dict(layer.state_dict())
    x = torch.rand(2, 5, dtype=torch.float64)
    assert torch.equal(made.eval()(x), layer(x))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("name", IN_PLACE_OF_CONVOLUTIONS)
def test_a_convolution_keeps_its_geometry(name: str, mode: str) -> None:
    kind = getattr(dropoutlib, name)
    if mode != "zeros" and name.startswith("FastDropout"):
        pytest.skip("fast dropout refuses it, see its own tests")
    conv = getattr(nn, IN_PLACE_OF_CONVOLUTIONS[name])(6, 4, 3, 2, 1, dilation=2, groups=2, padding_mode=mode).eval()
    options = OPTIONS[f"{name[:-6]}Linear"]
    layer = kind.from_conv(conv, **options)
    assert layer.weight is conv.weight and layer.bias is conv.bias and not layer.training
    assert all(getattr(layer, option) == value for option, value in options.items() if option != "p")
    x = torch.rand((2, 6, 9, 8)[:conv.weight.dim()])
    if options.get("activation"):
        layer.inference = "mean"
        assert torch.equal(layer(x), conv(x).relu())
    else:
        assert torch.equal(layer(x), conv(x))
    assert layer.train()(x).shape == conv(x).shape


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}])
@pytest.mark.parametrize("layer", [layer for layer in FACTS if layer.replaces in ("LSTM", "GRU")],
                         ids=lambda layer: layer.name)
def test_a_recurrent_layer_takes_the_parameters(layer: methods.Layer, options: dict[str, object]) -> None:
    rnn = getattr(nn, layer.replaces)(3, 4, **options, dtype=torch.float64).eval()
    before = torch.get_rng_state()
    made = getattr(dropoutlib, layer.name).from_rnn(rnn)
    assert torch.equal(torch.get_rng_state(), before) and not made.training
    assert dict(made.named_parameters()).keys() == dict(rnn.named_parameters()).keys()
    assert all(made.get_parameter(name) is parameter for name, parameter in rnn.named_parameters())
    for rate in made.rates:
        setattr(made, rate, 0.0)
    x = torch.rand(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(made(x), rnn(x))
    torch.testing.assert_close(made.train()(x), rnn(x))


def test_other_recurrent_layers_are_refused() -> None:
    for rnn, kind, words in ((nn.GRU(2, 2), TypeError, "rnn has to be a torch.nn.LSTM, but got GRU"),
                             (nn.LSTM(2, 2, proj_size=1), ValueError, "proj_size"),
                             (weight_norm(nn.LSTM(2, 2), "weight_hh_l0"), ValueError, "weight_hh_l0.*computed")):
        with pytest.raises(kind, match=words):
            dropoutlib.ZoneoutLSTM.from_rnn(rnn)


def test_a_layer_is_exchanged_in_a_model_with_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    dropoutlib.replace(model, {nn.Linear: dropoutlib.FastDropoutLinear.from_linear})
    assert all(isinstance(layer, dropoutlib.FastDropoutLinear) for layer in model)
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize("name", IN_PLACE_OF_LINEAR)
def test_no_other_layer_is_taken(name: str) -> None:
    make = getattr(dropoutlib, name).from_linear
    with pytest.raises(TypeError, match=r"linear has to be a torch.nn.Linear, but got Conv1d"):
        make(nn.Conv1d(5, 3, 1))
    with pytest.raises(TypeError, match="in_features"):
        make(nn.Linear(5, 3), in_features=4)


class _Standardised(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class _Flipped(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight.flip(-1), bias)


class _Backwards(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input.flip(0), hx)


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_a_method_that_was_put_back_is_that_of_the_class(method: str) -> None:
    conv = nn.Conv1d(4, 4, 3)
    before = getattr(conv, method)
    setattr(conv, method, lambda *inputs: before(*inputs))
    with pytest.raises(TypeError, match=f"has a {method} of its own"):
        dropoutlib.DropConnectConv1d.from_conv(conv)
    with pytest.raises(ValueError, match=f"the {method} of 0 was replaced"):
        dropoutlib.compress(nn.Sequential(conv), torch.randn(2, 4, 9))
    with pytest.raises(NotImplementedError, match=f"its {method} was replaced"):
        dropoutlib.propagate_moments(nn.Sequential(nn.Dropout(), conv), torch.randn(2, 4, 9))
    setattr(conv, method, before)
    assert method in vars(conv)
    assert dropoutlib.DropConnectConv1d.from_conv(conv).weight is conv.weight
    dropoutlib.compress(nn.Sequential(conv), torch.randn(2, 4, 9))
    dropoutlib.propagate_moments(nn.Sequential(nn.Dropout(), conv), torch.randn(2, 4, 9))


def test_moments_are_not_those_of_a_convolution_with_another_weight() -> None:
    with pytest.raises(NotImplementedError, match=r"_Flipped.*no rule for its moments is known"):
        dropoutlib.propagate_moments(nn.Sequential(nn.Dropout(), _Flipped(4, 6, 3)), torch.randn(2, 4, 9, 9))


def test_an_adapter_with_another_forward_is_not_merged() -> None:
    with pytest.raises(TypeError, match="has a forward of its own"):
        _replaced(dropoutlib.LoRALinear(4, 4, rank=2)).merge()


def _replaced(layer: nn.Module) -> nn.Module:
    layer.forward = lambda input, before=layer.forward: before(2 * input)
    return layer


@pytest.mark.parametrize(("kind", "words", "call"), [
    (TypeError, "_Standardised has a forward of its own, which would be lost",
     lambda: dropoutlib.FastDropoutConv2d.from_conv(_Standardised(4, 6, 3))),
    (TypeError, "_Flipped has a _conv_forward of its own",
     lambda: dropoutlib.DropConnectConv2d.from_conv(_Flipped(4, 6, 3))),
    (TypeError, "DropConnectLinear has a forward of its own",
     lambda: dropoutlib.FastDropoutLinear.from_linear(dropoutlib.DropConnectLinear(4, 6))),
    (TypeError, "Linear has a forward of its own",
     lambda: dropoutlib.DropConnectLinear.from_linear(_replaced(nn.Linear(4, 4)))),
    (TypeError, "Linear has a forward of its own", lambda: dropoutlib.LoRALinear.from_linear(
        _replaced(nn.Linear(4, 4)), rank=2)),
    (TypeError, "Conv1d has a forward of its own",
     lambda: dropoutlib.DropConnectConv1d.from_conv(_replaced(nn.Conv1d(4, 4, 3)))),
    (TypeError, "LSTM has a forward of its own", lambda: dropoutlib.ZoneoutLSTM.from_rnn(_replaced(nn.LSTM(4, 4)))),
    (TypeError, "_Backwards has a forward of its own", lambda: dropoutlib.ZoneoutLSTM.from_rnn(_Backwards(4, 6))),
    (TypeError, r"stride is that of the Conv2d, \(1, 1\), and cannot be given",
     lambda: dropoutlib.VariationalDropoutConv2d.from_conv(nn.Conv2d(4, 6, 3), stride=2)),
    (TypeError, "bias is that of the Conv1d, True",
     lambda: dropoutlib.FastDropoutConv1d.from_conv(nn.Conv1d(4, 6, 3), bias=False)),
    (TypeError, "dtype is that of the Linear, torch.float32",
     lambda: dropoutlib.FastDropoutLinear.from_linear(nn.Linear(4, 6), dtype=torch.float64)),
    (TypeError, r"dropout is that of the LSTM, 0\.5",
     lambda: dropoutlib.VariationalLSTM.from_rnn(nn.LSTM(5, 6, 2, dropout=0.5), dropout=0.1)),
    (TypeError, "VariationalGRU has no argument 'rate'",
     lambda: dropoutlib.VariationalGRU.from_rnn(nn.GRU(5, 6), rate=0.1)),
    (ValueError, "the LazyConv2d has no weights yet",
     lambda: dropoutlib.DropConnectConv2d.from_conv(nn.LazyConv2d(4, 3))),
    (ValueError, "the LazyLinear has no weights yet", lambda: dropoutlib.StandoutLinear.from_linear(nn.LazyLinear(4))),
    (ValueError, "the bias of the Conv2d is computed from other parameters",
     lambda: dropoutlib.DropConnectConv2d.from_conv(prune.l1_unstructured(nn.Conv2d(4, 4, 3), "bias", amount=0.5)))])
def test_what_the_layer_decides_is_not_decided_again(kind, words, call) -> None:
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("kind", [dropoutlib.DropConnectConv2d, dropoutlib.FastDropoutConv2d,
                                  dropoutlib.VariationalDropoutConv2d, dropoutlib.SparseVariationalConv2d])
def test_a_rate_in_the_place_of_a_stride_is_refused_when_the_convolution_is_made(kind) -> None:
    for kwargs, error, words in (
            ({"stride": 0.1}, TypeError, "stride has to be a whole number, or 2 of them, but got 0.1"),
            ({"padding": -1}, ValueError, "padding has to be at least 0, but got -1"),
            ({"dilation": (1, 2, 3)}, TypeError, r"dilation.*2 of them.*\(1, 2, 3\)"),
            ({"groups": 0.5}, TypeError, "groups has to be a whole number"),
            ({"bias": 0.5}, TypeError, "bias.*0.5")):
        with pytest.raises(error, match=words):
            kind(4, 6, 3, **kwargs)
    assert kind(4, 6, (3, 1), padding="same").kernel_size == (3, 1)
