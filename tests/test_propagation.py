"""Moments through whole networks: exact by enumeration where the rules are, by samples where ReLU is in between."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import dropoutlib
from dropoutlib import (
    DropConnectConv1d,
    DropConnectLinear,
    Dropout,
    FastDropoutLinear,
    GaussianDropout,
    LogNormalDropout,
    SparseVariationalLinear,
    SpatialDropout1d,
    SpatialDropout2d,
    SpatialDropout3d,
    StandoutLinear,
    VariationalDropoutLinear,
    WeightScalingDropout,
    functional,
    moments,
    monte_carlo,
    propagate_moments,
)
from dropoutlib.enumeration import distribution
from dropoutlib.experiments import measured, propagation
from dropoutlib.experiments.paired import read_scores
from dropoutlib.moments import JointMoments, Moments

EXACT = {"rtol": 0, "atol": 1e-12}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def sequential(*layers):
    """In double precision, with weights and statistics of batch norm that are no round numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(*layers).double().eval()
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 2.0)
    return model


def law_of(model, x, shape, p, place=0):
    """The law of the output for one example, over all masks of the layer in a place."""
    drop = model[place]
    return distribution(lambda keep: model[place + 1:](drop.train()(model[:place](x), noise=keep))[0], shape, p)


def check(model, x, law, joint_only=False):
    model.eval()
    with torch.no_grad():
        joint = propagate_moments(model, x, covariance=True)
        torch.testing.assert_close(joint.mean[0], law.mean().flatten(), **EXACT)
        torch.testing.assert_close(joint.covariance[0], law.covariance(), **EXACT)
        torch.testing.assert_close(joint.variance[0], law.variance().flatten(), **EXACT)
        if not joint_only:
            value = propagate_moments(model, x)
            torch.testing.assert_close(value.mean[0], law.mean(), **EXACT)
            torch.testing.assert_close(value.variance[0], law.variance(), **EXACT)


BEHIND = {
    "linear": ((6,), lambda: [nn.Linear(6, 4)]),
    "linear without bias": ((6,), lambda: [nn.Linear(6, 4, bias=False)]),
    "linear on rows": ((2, 3), lambda: [nn.Linear(3, 2)]),
    "conv1d": ((2, 5), lambda: [nn.Conv1d(2, 3, 3, stride=2, padding=1)]),
    "conv1d, dilated": ((2, 5), lambda: [nn.Conv1d(2, 3, 2, dilation=2, padding="same")]),
    "conv2d": ((2, 2, 3), lambda: [nn.Conv2d(2, 3, (2, 3), padding=1)]),
    "conv2d, groups": ((2, 2, 3), lambda: [nn.Conv2d(2, 4, 2, groups=2, bias=False)]),
    "conv3d": ((1, 2, 2, 3), lambda: [nn.Conv3d(1, 2, 2, padding=(0, 1, 0))]),
    "batch norm": ((6,), lambda: [nn.BatchNorm1d(6)]),
    "batch norm of maps": ((2, 2, 3), lambda: [nn.BatchNorm2d(2)]),
    "batch norm without weights": ((2, 5), lambda: [nn.BatchNorm1d(2, affine=False)]),
    "batch norm of volumes": ((2, 1, 2, 2), lambda: [nn.BatchNorm3d(2)]),
    "average pooling": ((2, 5), lambda: [nn.AvgPool1d(2, stride=2)]),
    "flatten": ((2, 2, 2), lambda: [nn.Flatten()]),
    "flatten in part, unflatten": ((2, 2, 2), lambda: [nn.Flatten(2), nn.Unflatten(1, (1, 2)), nn.Identity()]),
}
KINDS = {"elements": Dropout, "raw": WeightScalingDropout}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BEHIND)
def test_an_affine_layer_behind_dropout_is_exact(name, kind):
    shape, layers = BEHIND[name]
    model, x, p = sequential(KINDS[kind](0.3), *layers()), randn(1, *shape), 0.3
    check(model, x, law_of(model, x, (1, *shape), p))


@pytest.mark.parametrize(("maps", "layers"), [
    (SpatialDropout1d, (nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(6, 2))),
    (SpatialDropout2d, (nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 2))),
    (SpatialDropout3d, (nn.BatchNorm3d(3), nn.Flatten(), nn.Linear(24, 2)))])
def test_one_draw_for_a_map_is_exact_with_covariances(maps, layers):
    shape = {SpatialDropout1d: (4,), SpatialDropout2d: (2, 2), SpatialDropout3d: (2, 2, 2)}[maps]
    x, model = randn(1, 3, *shape), sequential(maps(0.3), *layers)
    check(model, x, law_of(model, x, (1, 3, *[1] * len(shape)), 0.3), joint_only=True)
    with pytest.raises(NotImplementedError, match=rf"0 \({maps.__name__}\).*covariance=True carries that"):
        propagate_moments(model, x)


def test_two_draws_one_behind_the_other_are_exact():
    first, second = Dropout(0.4), Dropout(0.2)
    model, x = sequential(first, nn.Linear(4, 3), second, nn.Linear(3, 2)), randn(1, 4)

    def output(keep):
        return model[3](second.train()(model[1](first.train()(x, noise=keep[:4])), noise=keep[4:]))[0]

    law = distribution(output, (7,), torch.tensor([0.4] * 4 + [0.2] * 3, dtype=torch.float64))
    check(model, x, law, joint_only=True)
    with torch.no_grad():
        left_out = propagate_moments(model, x).variance
    assert (left_out[0] - law.variance()).abs().max() > 1e-3, "covariances of the middle matter"


def test_maps_dropped_behind_noise_are_exact():
    first, second = Dropout(0.4), SpatialDropout1d(0.2)
    model, x = sequential(first, nn.Conv1d(2, 2, 2), second, nn.Flatten(), nn.Linear(4, 2)), randn(1, 2, 3)

    def output(keep):
        between = model[1](first.train()(x, noise=keep[:6].view(1, 2, 3)))
        return model[3:](second.train()(between, noise=keep[6:].view(1, 2, 1)))[0]

    rates = torch.tensor([0.4] * 6 + [0.2] * 2, dtype=torch.float64)
    check(model, x, distribution(output, (8,), rates), joint_only=True)


def test_layers_of_torch_are_those_of_the_library():
    x = randn(2, 2, 3, 4)
    pairs = [(nn.Dropout(0.3), Dropout(0.3), x), (nn.Dropout1d(0.3), SpatialDropout1d(0.3), x[..., 0]),
             (nn.Dropout2d(0.3), SpatialDropout2d(0.3), x), (nn.Dropout3d(0.3), SpatialDropout3d(0.3), x[..., None])]
    for of_torch, ours, value in pairs:
        one, other = (propagate_moments(nn.Sequential(layer), value, covariance=True) for layer in (of_torch, ours))
        for first, second in zip(one, other, strict=True):
            torch.testing.assert_close(first, second, **EXACT)


def test_gaussian_factors_have_the_moments_of_a_mask():
    x, linear = randn(2, 4), nn.Linear(4, 3)
    results = [propagate_moments(sequential(drop, linear), x, covariance=True)
               for drop in (Dropout(0.3), GaussianDropout(0.3))]
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, **EXACT)


POOLS = [
    (nn.AvgPool1d(3, 2, 1), (7,)), (nn.AvgPool1d(3, 2, 1, ceil_mode=True), (6,)),
    (nn.AvgPool1d(2, count_include_pad=False, padding=1), (5,)), (nn.AdaptiveAvgPool1d(3), (7,)),
    (nn.AvgPool2d((2, 3), (1, 2), (1, 1)), (4, 5)), (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (6, 4)),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (6, 4)),
    (nn.AvgPool2d(2, divisor_override=3, padding=1), (4, 5)), (nn.AdaptiveAvgPool2d((None, 2)), (3, 5)),
    (nn.AdaptiveAvgPool2d(1), (3, 5)), (nn.AvgPool3d(2, 1, 1), (2, 3, 2)), (nn.AdaptiveAvgPool3d((1, 2, 3)), (2, 3, 5)),
]


@pytest.mark.parametrize(("pool", "size"), POOLS, ids=str)
def test_the_weights_of_a_pool_are_squared(pool, size):
    x, drop = randn(2, 2, *size), Dropout(0.3)
    weights = torch.autograd.functional.jacobian(pool, x[:1])
    expected = (weights.square() * drop.variance(x[:1])).flatten(-x.dim()).sum(-1)
    got = propagate_moments(nn.Sequential(drop, pool), x)
    torch.testing.assert_close(got.mean, pool(x), **EXACT)
    torch.testing.assert_close(got.variance[:1], expected, **EXACT)


def test_drop_connect_behind_dropout_is_exact():
    """Its masks and those of its inputs: 2 + 4 + 2 draws."""
    drop, layer = Dropout(0.4), DropConnectLinear(2, 2, p=0.3)
    model, x = sequential(drop, layer), randn(1, 2)

    def output(keep):
        return layer.train()(drop.train()(x, noise=keep[:2]), noise=(keep[2:6].view(2, 2), keep[6:]))[0]

    rates = torch.tensor([0.4] * 2 + [0.3] * 6, dtype=torch.float64)
    check(model, x, distribution(output, (8,), rates))


@pytest.mark.parametrize("options", [{"kind": "A"}, {"kind": "A", "alpha_per": "weight"},
                                     {"kind": "B", "alpha_per": "unit"}, {"kind": "B"}], ids=str)
def test_variational_dropout_behind_dropout_is_exact(options):
    """By the law of total variance over the masks of its inputs; given them it is linear in its normal numbers."""
    drop, layer = Dropout(0.4), VariationalDropoutLinear(3, 2, **options)
    model, x = sequential(drop, layer), randn(1, 3)
    layer.log_alpha.data.uniform_(-1, 1, generator=generator())
    size = 2 if options["kind"] == "A" else 3

    def given(keep):
        """The conditional mean, and what each normal number adds."""
        masked = drop.train()(x, noise=keep)
        parts = [layer.train()(masked, noise=unit)[0] for unit in torch.eye(size + 1, size, dtype=torch.float64)]
        return parts[-1], torch.stack([part - parts[-1] for part in parts[:-1]])

    means = distribution(lambda keep: given(keep)[0], (3,), 0.4)
    within = distribution(lambda keep: given(keep)[1].T @ given(keep)[1], (3,), 0.4).mean()
    model.eval()
    with torch.no_grad():
        joint, alone = (propagate_moments(model, x, covariance=covariance) for covariance in (True, False))
    torch.testing.assert_close(joint.mean[0], means.mean(), **EXACT)
    torch.testing.assert_close(joint.covariance[0], means.covariance() + within, **EXACT)
    torch.testing.assert_close(alone.variance, joint.variance, **EXACT)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_log_normal_factors_behind_dropout_are_exact(shape):
    """By the law of total variance; the factors of two units are independent, those of one map are one."""
    drop, layer = Dropout(0.4), LogNormalDropout(3)
    model, x = sequential(drop, layer), randn(1, *shape)
    layer.mu.data.uniform_(-2, 0, generator=generator())
    layer.log_s.data.uniform_(-2, 0, generator=generator(1))
    mean, variance = (part(torch.ones(1, 3, dtype=torch.float64))[0] for part in (layer.mean, layer.variance))
    place = torch.arange(3).repeat_interleave(x[0, 0].numel())
    law = distribution(lambda keep: drop.train()(x, noise=keep)[0].flatten(), (1, *shape), 0.4)
    products = law.expectation(lambda value: value.outer(value))
    same = place[:, None] == place
    mean, variance = mean[place], variance[place]
    expected = mean.outer(mean) * law.covariance() + same * variance * products
    model.eval()
    with torch.no_grad():
        joint = propagate_moments(model, x, covariance=True)
        torch.testing.assert_close(joint.mean[0], mean * law.mean(), **EXACT)
        torch.testing.assert_close(joint.covariance[0], expected, **EXACT)
        if len(shape) == 1:
            torch.testing.assert_close(propagate_moments(model, x).variance, joint.variance, **EXACT)
        else:
            with pytest.raises(NotImplementedError, match=r"1 \(LogNormalDropout\).*covariance=True carries that"):
                propagate_moments(model, x)


def test_sparse_noise_on_weights_is_that_of_variational_dropout():
    x, drop = randn(2, 3), Dropout(0.4)
    plain = VariationalDropoutLinear(3, 2, alpha_per="weight").double()
    sparse = SparseVariationalLinear(3, 2).double()
    sparse.weight.data.copy_(plain.weight.data)
    sparse.bias.data.copy_(plain.bias.data)
    sparse.log_sigma2.data.copy_(plain.log_alpha.data + plain.weight.data.square().log())
    for covariance in (False, True):
        one, other = (propagate_moments(nn.Sequential(drop, layer), x, covariance=covariance)
                      for layer in (plain, sparse))
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kind", ["FastDropout", "VariationalDropout", "SparseVariational"])
@pytest.mark.parametrize("covariance", [False, True])
def test_a_convolution_with_noise_is_a_linear_layer_on_windows(kind, covariance):
    """Filters as large as the map, behind dropout; then windows that overlap, on certain inputs."""
    torch.manual_seed(0)
    drop, x = Dropout(0.4), randn(2, 2, 3)
    conv = getattr(dropoutlib, f"{kind}Conv1d")(2, 4, 3).double()
    linear = getattr(dropoutlib, f"{kind}Linear")(6, 4).double()
    linear.load_state_dict({name: part.flatten(1) if part.dim() > 1 else part
                            for name, part in conv.state_dict().items()})
    with torch.no_grad():
        one = propagate_moments(nn.Sequential(drop, conv, nn.Flatten()), x, covariance=covariance)
        other = propagate_moments(nn.Sequential(drop, nn.Flatten(), linear), x, covariance=covariance)
        torch.testing.assert_close(one, other, **EXACT)
        layer = getattr(dropoutlib, f"{kind}Conv2d")(2, 3, 2, padding=1, groups=1).double()
        maps = randn(2, 2, 3, 3)
        value = propagate_moments(layer, maps, covariance=covariance)
        torch.testing.assert_close(value.mean.flatten(), layer.mean(maps).flatten(), **EXACT)
        torch.testing.assert_close(value.variance.flatten(), layer.variance(maps).flatten(), **EXACT)


def test_noise_of_a_layer_on_rows_is_drawn_for_each():
    layer = VariationalDropoutLinear(3, 2, kind="B", alpha_per="unit").double()
    layer.log_alpha.data.uniform_(-1, 1, generator=generator())
    x = randn(2, 4, 3)
    with torch.no_grad():
        joint, alone = (propagate_moments(layer, x, covariance=covariance) for covariance in (True, False))
        torch.testing.assert_close(alone.variance, layer.variance(x), **EXACT)
    torch.testing.assert_close(joint.variance.view(2, 4, 2), alone.variance, **EXACT)
    assert (joint.covariance.view(2, 4, 2, 4, 2)[:, 0, :, 1] == 0).all()


@pytest.mark.parametrize("covariance", [False, True])
def test_fast_dropout_stands_for_dropout_and_the_layer_behind_it(covariance):
    torch.manual_seed(0)
    fast = nn.Sequential(FastDropoutLinear(5, 8, p=0.3), nn.ReLU(), FastDropoutLinear(8, 3, p=0.3)).double()
    x = randn(2, 5)
    with torch.no_grad():
        by_layers = fast[2].moments(moments.relu(fast[0].moments(x, covariance=covariance)))
        masked = nn.Sequential(Dropout(0.3), nn.Linear(5, 8), nn.ReLU(), Dropout(0.3), nn.Linear(8, 3)).double()
        for old, new in ((0, 1), (2, 4)):
            masked[new].load_state_dict(fast[old].state_dict())
        for model in (fast, masked):
            for one, other in zip(propagate_moments(model, x, covariance=covariance), by_layers, strict=True):
                torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("activation", [torch.relu, F.relu, nn.ReLU()])
def test_drop_connect_with_relu_has_the_moments_that_it_states(activation):
    layer, x = DropConnectLinear(6, 4, p=0.3, activation=activation).double(), randn(2, 6)
    with torch.no_grad():
        value = propagate_moments(layer, x)
        torch.testing.assert_close(value.mean, layer.mean(x), **EXACT)
        torch.testing.assert_close(value.variance, layer.variance(x), **EXACT)


def convolutional():
    return sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(inplace=True), SpatialDropout2d(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3))


def test_with_covariances_a_convolutional_network_has_the_spread_of_its_samples():
    """20000 passes: a deviation is known to 0.5 %; the rest is that the input of ReLU is not Gaussian."""
    model, x = convolutional(), randn(1, 1, 6, 6).abs()
    with torch.no_grad():
        joint = propagate_moments(model, x, covariance=True)
        torch.manual_seed(0)
        for part in model:
            part.train(isinstance(part, (nn.Dropout, SpatialDropout2d)))
        samples = model(x.expand(20000, -1, -1, -1))
    torch.testing.assert_close(joint.mean[0], samples.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(joint.variance[0].sqrt(), samples.std(0), rtol=0.04, atol=0)
    related = torch.corrcoef(samples.T)
    deviation = joint.variance[0].sqrt()
    torch.testing.assert_close(joint.covariance[0] / deviation.outer(deviation), related, rtol=0, atol=0.04)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model, x = convolutional(), randn(4, 1, 6, 6)
    model.train(training)
    model[1].eval()
    modes = [part.training for part in model.modules()]
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    given = x.clone()
    joint = propagate_moments(model, x, covariance=True)
    assert joint.mean.requires_grad and joint.covariance.requires_grad
    with pytest.raises(NotImplementedError):
        propagate_moments(nn.Sequential(model, nn.Tanh()), x, covariance=True)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given)


def test_an_input_is_not_written_into():
    x = randn(2, 3)
    given = x.clone()
    propagate_moments(nn.Sequential(nn.ReLU(inplace=True), Dropout(0.5)), x)
    assert torch.equal(x, given)


class Residual(nn.Module):
    def __init__(self, branch, drop=0.0):
        super().__init__()
        self.branch, self.drop = branch, drop

    def forward(self, x):
        return x + self.branch(F.dropout(x, self.drop, self.training))


class Named(nn.BatchNorm1d):
    """A class of its own."""


class DropsItself(nn.Linear):
    def forward(self, input):
        return F.dropout(super().forward(input), 0.5, self.training)


def test_any_layers_of_torch_may_stand_in_front_of_the_first_noise():
    front = sequential(nn.Linear(3, 3), nn.Tanh(), nn.LayerNorm(3), Dropout(0.0), nn.BatchNorm1d(3),
                       torch.compile(nn.Sequential()),
                       nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0, batch_first=True),
                       parametrizations.weight_norm(nn.Linear(3, 3)),
                       prune.l1_unstructured(nn.Linear(3, 3), "weight", 2))
    model, x = sequential(front, nn.Sequential(nn.Softmax(1), Dropout(0.3)), nn.Linear(3, 2)), randn(2, 3)
    state, value = str(model.state_dict()), propagate_moments(model, x)
    torch.testing.assert_close(value, propagate_moments(nn.Sequential(Dropout(0.3), model[2]),
                                                        torch.softmax(front.eval()(x), 1)), **EXACT)
    assert str(model.state_dict()) == state


@pytest.mark.parametrize(("front", "unknown"), [
    (lambda: Residual(nn.Linear(3, 3)), "the forward of Residual"),
    (lambda: nn.Sequential(Residual(nn.Identity(), 0.5)), "the forward of Residual"),
    (lambda: with_hook(nn.Linear(3, 3)), "hooks of Linear"),
    (lambda: with_forward(nn.Linear(3, 3)), "the forward of Linear"),
    (lambda: Named(3), "the forward of Named"), (lambda: torch.compile(Named(3)), "the forward of Named"),
    (lambda: parametrizations.weight_norm(DropsItself(3, 3)), "the forward of DropsItself"),
    (lambda: nn.TransformerEncoderLayer(3, 1, 4, 0.0, activation=lambda x: F.dropout(x.relu())), "a function that"),
    (lambda: with_own_parametrization(nn.Linear(3, 3)), "the forward of Residual"),
    (lambda: nn.RReLU(), "RReLU"), (lambda: nn.Sequential(nn.Tanh(), nn.RReLU()), "RReLU")])
def test_what_is_not_known_not_to_draw_is_computed_before(front, unknown):
    model, x = nn.Sequential(front(), Dropout(0.3), nn.Linear(3, 2)), torch.ones(2, 3)
    with pytest.raises(NotImplementedError, match=rf"{unknown}.* may draw in training.*model\[[1k]:\], model"):
        propagate_moments(model, x)
    assert all(part.training for part in model.modules())
    torch.manual_seed(0)
    found = propagate_moments(model[1:], model[:1].eval()(x))
    torch.manual_seed(0)
    torch.testing.assert_close(found.mean, model.eval()(x))


def with_hook(layer):
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


def with_forward(layer):
    layer.forward = lambda x: 2 * x
    return layer


def with_own_parametrization(layer):
    parametrize.register_parametrization(layer, "weight", Residual(nn.Identity()))
    return layer


def test_a_layer_that_stands_twice_acts_twice():
    linear, drop = nn.Linear(3, 3).double(), Dropout(0.3)
    twice, x = nn.Sequential(drop, linear, drop, linear), randn(2, 3)
    apart = nn.Sequential(Dropout(0.3), linear, Dropout(0.3), nn.Linear(3, 3).double())
    apart[3].load_state_dict(linear.state_dict())
    torch.testing.assert_close(propagate_moments(twice, x), propagate_moments(apart, x), **EXACT)


def test_parametrized_weights_and_compiled_models_are_followed():
    linear = parametrizations.weight_norm(nn.Linear(3, 2).double())
    plain = nn.Linear(3, 2).double()
    plain.weight.data.copy_(linear.weight.data)
    plain.bias.data.copy_(linear.bias.data)
    x = randn(2, 3)
    expected = propagate_moments(nn.Sequential(Dropout(0.3), plain), x)
    for layer in (linear, torch.compile(plain)):
        torch.testing.assert_close(propagate_moments(nn.Sequential(Dropout(0.3), layer), x), expected, **EXACT)
    torch.testing.assert_close(propagate_moments(torch.compile(nn.Sequential(Dropout(0.3), plain)), x), expected,
                               **EXACT)


@pytest.mark.parametrize("covariance", [False, True])
def test_rates_at_the_ends(covariance):
    linear, x = nn.Linear(3, 2).double(), randn(2, 3)
    nothing = propagate_moments(nn.Sequential(Dropout(1.0), linear), x, covariance=covariance)
    assert torch.equal(nothing.mean, linear.bias.expand(2, 2)) and (nothing[1] == 0).all()
    empty = propagate_moments(nn.Sequential(Dropout(0.3), linear), x[:0], covariance=covariance)
    assert empty.mean.shape == (0, 2) and empty.variance.shape == (0, 2)
    dropped = propagate_moments(DropConnectLinear(3, 2, p=1.0).double(), x, covariance=covariance)
    assert (dropped.mean == 0).all() and (dropped[1] == 0).all()


@pytest.mark.parametrize("covariance", [False, True])
def test_gradients(covariance):
    model, x = sequential(Dropout(0.3), nn.Conv1d(2, 2, 2), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten()), randn(1, 2, 3)
    assert torch.autograd.gradcheck(
        lambda x: tuple(propagate_moments(model, x, covariance=covariance)), x.requires_grad_())


def test_types_follow_the_model_and_devices(device):
    for dtype in (torch.float32, torch.float64):
        model, x = convolutional().to(device, dtype), randn(2, 1, 6, 6).to(device, dtype)
        joint = propagate_moments(model, x, covariance=True)
        assert isinstance(joint, JointMoments)
        assert {part.dtype for part in joint} == {dtype} and {part.device.type for part in joint} == {x.device.type}
        assert joint.mean.shape == (2, 3) and joint.covariance.shape == (2, 3, 3)
    value = propagate_moments(model[:6], x)
    assert isinstance(value, Moments) and value.mean.shape == value.variance.shape == (2, 6, 2, 2)
    assert propagate_moments(model[:6], x, covariance=True).mean.shape == (2, 24)


class Other(nn.Linear):
    def forward(self, input):
        return super().forward(input).sin()


def hooked():
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return layer


REFUSED = {
    "an activation": (lambda: [Dropout(), nn.Tanh()], r"1 \(Tanh\) cannot be followed behind noise: no rule"),
    "in a sequence": (lambda: [nn.Sequential(Dropout(), nn.Linear(3, 3), nn.Sigmoid())],
                      r"0\.2 \(Sigmoid\) cannot be followed behind noise"),
    "layer norm": (lambda: [Dropout(), nn.LayerNorm(3)], r"1 \(LayerNorm\)"),
    "a residual block": (lambda: [Dropout(), Residual(nn.Linear(3, 3))], r"1 \(Residual\) .* behind noise"),
    "dropout inside": (lambda: [Residual(Dropout())], r"0 \(Residual\) cannot be followed: it has dropout inside"),
    "attention inside": (lambda: [nn.TransformerEncoderLayer(3, 1, dropout=0.5)],
                         r"0 \(TransformerEncoderLayer\) cannot be followed: it has dropout inside"),
    "a changed forward": (lambda: [Dropout(), Other(3, 3)], r"1 \(Other\) cannot be followed behind noise: no rule"),
    "filters that positions share": (lambda: [nn.Unflatten(1, (3, 1)), DropConnectConv1d(3, 3, 1)],
                                     r"1 \(DropConnectConv1d\) cannot be followed: no rule"),
    "another law": (lambda: [StandoutLinear(3, 3)], r"0 \(StandoutLinear\) cannot be followed: no rule"),
    "alpha dropout": (lambda: [nn.AlphaDropout()], r"0 \(AlphaDropout\) cannot be followed: no rule"),
    "a hook": (lambda: [Dropout(), hooked()], r"1 \(Linear\) cannot be followed: it has hooks"),
    "pruned weights": (lambda: [Dropout(), prune.l1_unstructured(nn.Linear(3, 3), "weight", 1)],
                       r"1 \(Linear\) cannot be followed: it has hooks"),
    "statistics of the batch": (lambda: [Dropout(), nn.BatchNorm1d(3, track_running_stats=False)],
                                r"1 \(BatchNorm1d\).*those of the batch mix examples"),
    "examples in one row": (lambda: [Dropout(), nn.Flatten(0)], r"1 \(Flatten\).*it mixes examples"),
    "another activation of DropConnect": (lambda: [DropConnectLinear(3, 3, activation=torch.tanh)],
                                          r"0 \(DropConnectLinear\).*ReLU alone"),
    "reflected borders": (lambda: [nn.Unflatten(1, (1, 3)), Dropout(),
                                   nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect")],
                          r"2 \(Conv1d\).*padding_mode='reflect'"),
    "max pooling": (lambda: [Dropout(), nn.MaxPool1d(1)], r"1 \(MaxPool1d\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_its_place(name):
    layers, message = REFUSED[name]
    with pytest.raises(NotImplementedError, match=message):
        propagate_moments(nn.Sequential(*layers()), torch.ones(2, 3))


def test_dropout_between_recurrent_layers_is_refused():
    class Last(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.lstm = nn.LSTM(3, 3, num_layers=2, dropout=dropout, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    x = torch.ones(2, 4, 3)
    with pytest.raises(NotImplementedError, match=r"0 \(Last\) cannot be followed: it has dropout inside"):
        propagate_moments(nn.Sequential(Last(0.5), Dropout()), x)
    with pytest.raises(NotImplementedError, match=r"0 \(LSTM\) cannot be followed: it has dropout inside"):
        propagate_moments(nn.Sequential(Last(0.5).lstm, Dropout()), x)


def test_masks_shared_by_positions_are_refused_with_covariances():
    layer, x = DropConnectLinear(3, 2), torch.ones(2, 4, 3)
    assert propagate_moments(layer, x).variance.shape == (2, 4, 2)
    with pytest.raises(NotImplementedError, match=r"the model \(DropConnectLinear\).*positions .* share"):
        propagate_moments(layer, x, covariance=True)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
@pytest.mark.parametrize("make", [Dropout, lambda: nn.Sequential(Dropout(), nn.Linear(3, 3)),
                                  lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Dropout())])
def test_hooks_for_all_modules_are_refused(register, make):
    model, x = make(), torch.ones(2, 3)
    handle = register(lambda module, values, *output: 2 * output[0] if output else (2 * values[0],))
    try:
        with pytest.raises(NotImplementedError, match=r"the model .* torch has hooks for all modules"):
            propagate_moments(model, x)
    finally:
        handle.remove()
    expected = propagate_moments(model, x)
    with FlopCounterMode(display=False), monte_carlo(nn.Dropout()):     # which look on, by such hooks
        assert nn.modules.module._global_forward_hooks
        torch.testing.assert_close(propagate_moments(model, x), expected)


BAD = {
    "half precision": (RuntimeError, "x has to be float32.*float16", lambda x: (Dropout(), x.half())),
    "no module": (TypeError, "model has to be a module, but got type", lambda x: (Dropout, x)),
    "no noise": (ValueError, "Sequential has no noise", lambda x: (nn.Sequential(nn.Linear(3, 3)), x)),
    "a rate of 0": (ValueError, "Sequential has no noise", lambda x: (nn.Sequential(Dropout(0.0)), x)),
    "no tensor": (TypeError, "x has to be a tensor", lambda x: (Dropout(), [1.0])),
    "integers": (RuntimeError, r"x has to be a floating point or complex tensor, but got torch\.int64",
                 lambda x: (Dropout(), x.long())),
    "complex": (RuntimeError, "x has to hold real numbers", lambda x: (Dropout(), x + 0j)),
    "one example": (ValueError, r"shape \(N, \.\.\.\).*\(3,\): x\[None\] is one example", lambda x: (Dropout(), x[0])),
    "lazy": (ValueError, "LazyLinear", lambda x: (nn.Sequential(Dropout(), nn.LazyLinear(2)), x)),
    "shapes": (RuntimeError, "shapes cannot be multiplied", lambda x: (nn.Sequential(Dropout(), nn.Linear(4, 2)), x)),
    "unbatched maps": (ValueError, r"batch of shape \(N, C, H, W\), but got the shape \(2, 3, 3\)",
                       lambda x: (nn.Sequential(Dropout(), nn.Conv2d(2, 2, 1)), x[:, None].expand(2, 3, 3))),
    "unbatched sequence": (ValueError, r"batch of shape \(N, C, L\), but got the shape \(2, 3\)",
                           lambda x: (nn.Sequential(Dropout(), nn.AvgPool1d(2)), x)),
    "scripted": (TypeError, "scripted", lambda x: (torch.jit.trace(nn.Linear(3, 3), x), x)),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore")
def test_bad_calls_are_refused(name):
    error, message, call = BAD[name]
    with pytest.raises(error, match=message):
        propagate_moments(*call(torch.ones(2, 3)))
    with pytest.raises(TypeError, match="covariance has to be True or False, but got 1"):
        propagate_moments(Dropout(), torch.ones(2, 3), covariance=1)


def test_an_error_of_a_layer_names_its_place():
    with pytest.raises(RuntimeError) as caught:
        propagate_moments(nn.Sequential(Dropout(), nn.Sequential(nn.Linear(4, 2))), torch.ones(2, 3))
    assert caught.value.__notes__ == ["in 1.0 (Linear)"]


def test_the_docstring_says_what_was_measured():
    scores = read_scores(measured("propagation"))
    means = {key[::3]: sum(values.values()) / len(values) for key, values in scores.items()}
    said = re.findall(r"\d\.\d\d", propagate_moments.__doc__.split("Args:")[0])
    order = sorted(means, key=lambda key: key[1])   # first independent, then with covariances, each as in the table
    assert said == [f"{means[key]:.2f}" for key in order]


def test_the_committed_scores_are_those_that_the_program_asks_for():
    text = measured("propagation")
    scores = read_scores(text)
    assert set(scores) == {key for network in propagation.NETWORKS
                           for key in propagation._keys(propagation.Run(network, 0))}
    assert {tuple(values) for values in scores.values()} == {tuple(range(6))}
    assert text.startswith("# python -m dropoutlib.experiments.propagation --seeds 6\n# torch ")
    assert text.partition("; ")[2].splitlines()[:2] == [propagation._ABOUT[0], f"# {propagation._ABOUT[1]}"]


def test_a_short_measurement_is_written_and_read_back(tmp_path, monkeypatch):
    for name, value in (("_STEPS", 2), ("_PASSES", 200), ("_IMAGES", 2)):
        monkeypatch.setattr(propagation, name, value)
    networks = {name: propagation.NETWORKS[name] for name in ("dense, one hidden layer", "convolutional, maps")}
    monkeypatch.setattr(propagation, "NETWORKS", networks)
    output = tmp_path / "table.txt"
    assert propagation.main(["--seeds", "1", "--output", str(output)]) == 0
    scores = read_scores(output.read_text())
    assert [key[3] for key in scores] == ["independent", "with covariances", "with covariances"]
    assert all(0.8 < values[0] < 1.2 for values in scores.values())     # hardly trained, so hardly correlated


# What drops without being a layer


class Drops(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, input):
        return self.function(self, input)


def test_several_values_without_noise_are_no_moments():
    with pytest.raises(ValueError, match="the model GRU has no noise"):
        propagate_moments(nn.GRU(4, 4), torch.ones(2, 4))
    with pytest.raises(NotImplementedError, match=r"1 \(Dropout\) cannot be followed: it gets a tuple"):
        propagate_moments(nn.Sequential(nn.GRU(4, 4), Dropout(0.5)), torch.ones(2, 4))


def test_a_network_of_its_own_class_is_no_sequence():
    with pytest.raises(NotImplementedError, match="forward of Residual may draw, and only sequences of layers are"):
        propagate_moments(Residual(nn.Identity(), 0.5), torch.ones(1, 4))


@pytest.mark.parametrize("noise", [nn.RReLU(), nn.Dropout(0.5), Dropout(0.5),
                                   Drops(lambda self, w: nn.functional.dropout(w, 0.5, self.training)),
                                   Drops(lambda self, w: functional.dropout(w, 0.5, self.training))])
@pytest.mark.parametrize("place", [0, 1])
def test_weights_that_a_parametrization_drops_are_refused(noise, place):
    layers = [Dropout(0.1), nn.Linear(8, 8)][::1 if place else -1]
    torch.nn.utils.parametrize.register_parametrization(layers[place], "weight", noise)
    with pytest.raises(NotImplementedError, match=rf"{place} \(ParametrizedLinear\) cannot be followed"):
        propagate_moments(nn.Sequential(*layers), torch.ones(1, 8))
    plain = nn.utils.parametrizations.weight_norm(nn.Linear(8, 1))
    assert propagate_moments(nn.Sequential(Dropout(0.1), plain), torch.ones(1, 8)).variance > 0


@pytest.mark.parametrize("place", ["0", "1", "2", "3", ""])
def test_a_forward_that_was_replaced_is_refused(place):
    model = nn.Sequential(Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 1)))
    part = model.get_submodule(place)
    old = part.forward
    part.forward = lambda x: 10 * old(x)
    with pytest.raises(NotImplementedError, match="cannot be followed"):
        propagate_moments(model, torch.ones(1, 8))


def test_weights_without_values_are_named():
    model = nn.Sequential(Dropout(0.5), nn.Linear(8, 1, device="meta"))
    with pytest.raises(ValueError, match=r"1\.weight has no values: it lies on the device meta"):
        propagate_moments(model, torch.ones(1, 8))
