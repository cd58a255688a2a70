import copy
import operator
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import dropoutlib
from dropoutlib import channels, compress
from dropoutlib.channels import Units
from dropoutlib.plain_layers import Scale, _plain

_IMAGES, _VECTORS, _SEQUENCES = (3, 3, 12, 12), (5, 9), (4, 3, 20)


# Networks


class _Residual(nn.Module):
    """A block as torchvision has it: the module of the activation is called twice, and in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = None if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class _ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(_Residual(8, 8), _Residual(8, 12, 2), _Residual(12, 12))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class _Written(nn.Module):
    """Parts of its own, and a function that says what is done with them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _squeeze_excite(m, x):
    x = m.conv(x)
    b, c, _, _ = x.size()
    s = torch.sigmoid(m.up(torch.relu(m.down(m.pool(x).view(b, c))))).view(b, c, 1, 1)
    return m.fc((x * s).mean((2, 3)))


def _tutorial(m, x):
    x = F.max_pool2d(F.relu(m.conv1(x)), 2)
    x = F.max_pool2d(F.relu(m.conv2(x)), 2)
    x = x.view(-1, 10 * 3 * 3)
    return m.fc2(F.dropout(torch.tanh(m.fc1(x)), training=m.training))


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (lambda: nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)),
            _VECTORS),
    "MLP without biases": (lambda: nn.Sequential(nn.Linear(9, 20, bias=False), nn.Sigmoid(),
                                                 nn.Linear(20, 4, bias=False)), _VECTORS),
    "MLP with batch norm": (lambda: nn.Sequential(nn.Linear(9, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Dropout(),
                                                  nn.Linear(20, 15), nn.BatchNorm1d(15), nn.GELU(), nn.Linear(15, 4)),
                            _VECTORS),
    "tanh": (lambda: nn.Sequential(nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 15), nn.Softplus(), nn.Linear(15, 4)),
             _VECTORS),
    "PReLU": (lambda: nn.Sequential(nn.Linear(9, 20), nn.PReLU(20), nn.Linear(20, 15), nn.PReLU(), nn.Linear(15, 4)),
              _VECTORS),
    "sequence of vectors": (lambda: nn.Sequential(nn.Linear(20, 15), nn.ELU(), nn.Linear(15, 4)), _SEQUENCES),
    "LeNet": (lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 10, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), _IMAGES),
    "LeNet with tanh": (lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 10, 3), nn.Sigmoid(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)), _IMAGES),
    "tutorial with sizes": (lambda: _Written(_tutorial, conv1=nn.Conv2d(3, 6, 3, padding=1), conv2=nn.Conv2d(
        6, 10, 3, padding=1), fc1=nn.Linear(90, 20), fc2=nn.Linear(20, 5)), _IMAGES),
    "VGG": (lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12),
        nn.ReLU(True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(48, 20), nn.ReLU(True),
        nn.Linear(20, 5)), _IMAGES),
    "padding with copies": (lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Sigmoid(),
        nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular"), nn.Sigmoid(), nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(8, 5, 3, padding=1, padding_mode="replicate")), _IMAGES),
    "zero padding": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(
        8, 8, 3, padding="same"), nn.Sigmoid(), nn.AvgPool2d(3, 2, 1), nn.Conv2d(8, 5, 3)), _IMAGES),
    "residual": (_ResNet, _IMAGES),
    "concat": (lambda: _Written(
        lambda m, x: m.last(torch.cat([torch.relu(m.one(x)), torch.sigmoid(m.two(x)), x], 1)),
        one=nn.Conv2d(3, 6, 3, padding=1), two=nn.Conv2d(3, 5, 1), last=nn.Conv2d(14, 4, 3)), _IMAGES),
    "dense block": (lambda: _Written(
        lambda m, x: m.last(torch.relu(m.norm(torch.cat([x := m.one(x), m.two(torch.relu(x))], dim=1))).mean([2, 3])),
        one=nn.Conv2d(3, 6, 3), two=nn.Conv2d(6, 5, 3, padding=1), norm=nn.BatchNorm2d(11), last=nn.Linear(11, 4)),
        _IMAGES),
    "depthwise": (lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.SiLU(), nn.Conv2d(12, 5, 1),
        nn.AdaptiveMaxPool2d(1), nn.Flatten()), _IMAGES),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(
        8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)), _IMAGES),
    "global pooling": (lambda: _Written(
        lambda m, x: m.fc(F.adaptive_avg_pool2d(F.leaky_relu(m.conv(x)), 1).squeeze(-1).squeeze(-1)),
        conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4)), _IMAGES),
    "sequences": (lambda: nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3), nn.Tanh(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4)), _SEQUENCES),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.Mish(), nn.AvgPool3d(2), nn.Conv3d(
        6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)), (2, 2, 6, 6, 6)),
    "squeeze and excite": (lambda: _Written(_squeeze_excite, conv=nn.Conv2d(3, 8, 3), pool=nn.AdaptiveAvgPool2d(1),
                                            down=nn.Linear(8, 4), up=nn.Linear(4, 8), fc=nn.Linear(8, 5)), _IMAGES),
    "U": (lambda: _Written(
        lambda m, x: m.out(torch.cat([x := torch.relu(m.one(x)), F.interpolate(
            torch.sigmoid(m.two(F.max_pool2d(x, 2))), scale_factor=2, mode="bilinear")], 1)),
        one=nn.Conv2d(3, 6, 3, padding=1), two=nn.Conv2d(6, 7, 3, padding=1), out=nn.Conv2d(13, 3, 1)), _IMAGES),
    "gates": (lambda: _Written(lambda m, x: m.last(torch.tanh(m.one(x)) * torch.sigmoid(m.two(x)) / 2 + 1),
                               one=nn.Linear(9, 12), two=nn.Linear(9, 12), last=nn.Linear(12, 3)), _VECTORS),
    "layer norm": (lambda: nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 10), nn.LayerNorm(10), nn.Linear(
        10, 8), nn.ReLU(), nn.Linear(8, 3)), _VECTORS),
    "several outputs": (lambda: _Written(lambda m, x: (m.a(x := torch.relu(m.stem(x))), {"b": m.b(x)}), stem=nn.Linear(
        9, 12), a=nn.Linear(12, 3), b=nn.Linear(12, 2)), _VECTORS),
}


def _spoilt(name: str, seed: int) -> nn.Module:
    """A network with random weights, biases and statistics, of which rows, columns and whole channels are zero."""
    build, _ = _NETWORKS[name]
    torch.manual_seed(seed)
    model = build().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.mul_(torch.rand_like(module.weight) > 0.2)
            elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                keep = torch.rand(len(module.weight)) > (0.3 if len(module.weight) > 5 else 0)  # outputs are few
                module.weight[~keep] = 0
                if module.bias is not None:
                    module.bias[~keep & (torch.rand(len(keep)) > 0.5)] = 0
                if module.weight.shape[1] > 1:
                    module.weight[:, torch.rand(module.weight.shape[1]) < 0.2] = 0
    return model


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(x)
    return [found] if isinstance(found, Tensor) else [found[0], found[1]["b"]]


def _example(name: str, seed: int = 0) -> Tensor:
    return torch.randn(_NETWORKS[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", _NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_stay(name, seed):
    model, x = _spoilt(name, seed), _example(name)
    smaller, report = compress(model, x)
    # another batch size, and other sizes of maps where the model takes them
    others = [_example(name, 1), torch.cat([_example(name, 2)] * 2)]
    if name in ("zero padding", "padding with copies", "residual", "concat", "dense block", "depthwise", "groups",
                "global pooling", "squeeze and excite", "U", "VGG"):
        others.append(torch.randn(2, 3, 20, 16, dtype=torch.float64))
    for other in others:
        for before, after in zip(_outputs(model.eval(), other), _outputs(smaller, other), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert report.parameters.after == sum(p.numel() for p in smaller.parameters()) < report.parameters.before
    assert report.flops.after <= report.flops.before
    for units in report.layers.values():
        assert sorted((*units.kept, *units.constant, *units.unread)) == list(range(sum(map(len, units))))


@pytest.mark.parametrize("name", _NETWORKS)
def test_a_second_time_nothing_is_left_to_remove(name):
    x = _example(name)
    smaller, _ = compress(_spoilt(name, 0), x)
    _, again = compress(smaller, x)
    assert again.parameters.before == again.parameters.after


def test_the_default_device_is_not_asked():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 4)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, -1
    torch.set_default_device("meta")
    try:
        smaller, _ = compress(model, x)
    finally:
        torch.set_default_device(None)
    assert smaller[0].out_features == 2
    torch.testing.assert_close(smaller(x), model(x))


@pytest.mark.parametrize("name", ["VGG", "residual", "several outputs"])
def test_the_model_stays_as_it_was(name):
    model = _spoilt(name, 0).train()
    next(iter(model.children())).eval()
    next(iter(model.parameters())).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state, gradients = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    x = _example(name)
    given, random = x.clone(), torch.get_rng_state()
    smaller, _ = compress(model, x)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert [p.requires_grad for p in smaller.parameters()] == gradients
    assert all(torch.equal(before, after) for before, after in zip(
        state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(x, given) and torch.equal(random, torch.get_rng_state())
    assert not any(module.training for module in smaller.modules())
    storages = {p.untyped_storage().data_ptr() for p in model.state_dict().values()}
    assert not storages & {p.untyped_storage().data_ptr() for p in smaller.state_dict().values()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_other_types(dtype, tolerance):
    model, x = _spoilt("VGG", 0).to(dtype), _example("VGG").to(dtype)
    smaller, _ = compress(model, x)
    before, after = _outputs(model.eval(), x)[0], _outputs(smaller, x)[0]
    assert after.dtype == dtype
    assert (before - after).abs().max() <= tolerance * before.abs().max().clamp(min=1)


# What goes, and why


def _two(weight: Tensor, activation: nn.Module, columns: Tensor | None = None) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, len(weight)), activation, nn.Linear(len(weight), 2)).double()
    with torch.no_grad():
        model[0].weight.mul_(weight.double().unsqueeze(1))
        if columns is not None:
            model[2].weight.mul_(columns.double())
    return model


def test_a_constant_goes_into_the_next_bias():
    model = _two(torch.tensor([1, 0, 1]), nn.Sigmoid())
    smaller, report = compress(model, torch.randn(4, 3).double())
    assert report.layers == {"0": Units((0, 2), (1,), ()), "2": Units((0, 1), (), ())}
    expected = model[2].bias + model[2].weight[:, 1] * torch.sigmoid(model[0].bias[1])
    torch.testing.assert_close(smaller[2].bias, expected, rtol=0, atol=1e-15)


def test_a_unit_that_nothing_reads_goes_and_what_it_alone_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[4].weight[:, :3] = 0
        model[2].weight[3:, :2] = 0  # units 0 and 1 are read by units 0, 1 and 2, which nothing reads
    _, report = compress(model, torch.randn(4, 3).double())
    assert report.layers["2"] == Units((3, 4), (), (0, 1, 2))
    assert report.layers["0"] == Units((2, 3), (), (0, 1))


def test_constants_are_carried_on():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[2].weight[:2, 2:] = 0  # reads constants alone
    _, report = compress(model, torch.randn(4, 3).double())
    assert report.layers["2"].constant == (0, 1) and report.layers["0"].constant == (0, 1)


def test_a_bias_is_added_where_there_was_none():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
    smaller, _ = compress(model, torch.randn(4, 3).double())
    assert smaller[2].bias is not None
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    assert compress(model, torch.randn(4, 3).double()).model[2].bias is None


def test_zero_padding_keeps_a_constant_and_says_so():
    model, x = _spoilt("zero padding", 0), _example("zero padding")
    with torch.no_grad():
        model[0].weight[:2], model[2].weight[:, :2] = 0, 1
        model[0].weight[2:], model[2].weight[:, 2:] = 1, 1
    _, report = compress(model, x)
    assert report.layers["0"].kept == tuple(range(8))
    assert "2: 2 of its inputs are constant and stay, because it reads them through zero padding" in report.notes
    with torch.no_grad():
        model[2].padding_mode, model[2].padding = "reflect", (1, 1)
        model[2]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert compress(model, x).report.layers["0"].constant == (0, 1)


def test_a_padded_mean_says_that_constants_end_there():
    for padded in (True, False):
        pool = nn.AvgPool2d(3, 1, 1, count_include_pad=padded)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(8, 4, 1))
        with torch.no_grad():
            model[0].weight[:4], model[0].bias[:4] = 0, 1
        report = compress(model, torch.randn(2, 3, 8, 8)).report
        assert report.notes == (("2: 4 channels are constant in front of it and stay, because what it makes of them is "
                                 "not, as behind zero padding",) if padded else ())
        assert (report.parameters.after < report.parameters.before) is not padded


def test_a_zero_passes_zero_padding():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, -1
    assert compress(model, _example("LeNet")).report.layers["0"].constant == (0,)


def test_what_is_added_goes_together():
    model = _Written(lambda m, x: m.last(m.one(x) + m.two(x)), one=nn.Linear(9, 4), two=nn.Linear(9, 4),
                     last=nn.Linear(4, 2)).double()
    with torch.no_grad():
        model.one.weight[:2] = 0
        model.two.weight[1:3] = 0
    _, report = compress(model, _example("MLP"))
    assert report.layers["one"] == report.layers["two"] == Units((0, 2, 3), (1,), ())
    assert report.notes == ("add: 2 channels are constant in one of the tensors that meet and stay, because they are "
                            "not in all of them",)


def test_a_product_with_zero_is_zero():
    model = _Written(lambda m, x: m.last(m.one(x) * m.two(x)), one=nn.Linear(9, 4), two=nn.Linear(9, 4),
                     last=nn.Linear(4, 2)).double()
    with torch.no_grad():
        model.one.weight[1], model.one.bias[1] = 0, 0
    _, report = compress(model, _example("MLP"))
    assert report.layers["one"].constant == (1,) and report.layers["two"].unread == (1,)


def test_a_batch_norm_may_make_a_constant():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 0, 1
    smaller, report = compress(model, _example("LeNet"))
    assert report.layers["0"].unread == (2,) and smaller[1].num_features == len(smaller[1].running_mean) == 3


def test_inputs_and_outputs_keep_their_sizes():
    model = nn.Sequential(nn.Linear(9, 4)).double()
    with torch.no_grad():
        model[0].weight.zero_()
    smaller, report = compress(model, _example("MLP"))
    assert smaller[0].weight.shape == (4, 9) and report.layers["0"].kept == (0, 1, 2, 3)


def test_one_unit_is_left():
    model = _two(torch.zeros(5), nn.ReLU())
    smaller, report = compress(model, torch.randn(4, 3).double())
    assert smaller[0].out_features == 1 and len(report.layers["0"].constant) == 4


def test_a_view_of_a_parameter_is_read():
    """As of learned positions and queries."""
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.project, self.head = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(x + self.project(self.embedding.weight[:4]).relu())

    model = Positions()
    with torch.no_grad():
        model.project.weight[:3] = 0
    smaller, report = compress(model, torch.randn(2, 4, 8))
    assert report.flops.before == report.flops.after == 2 * (4 * 8 * 8 + 2 * 4 * 8 * 2)
    assert all(parameter.requires_grad for parameter in (*model.parameters(), *smaller.parameters()))


def test_a_constant_that_is_not_finite_stays():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, torch.inf
    assert compress(model, torch.randn(4, 3).double()).report.layers["0"].kept == (0, 1, 2, 3)


def test_what_is_not_followed_keeps_its_size_and_is_named():
    _, report = compress(_spoilt("layer norm", 0), _example("layer norm"))
    assert len(report.layers["2"].kept) == 10 and len(report.layers["4"].kept) < 8
    assert report.notes == ("3 (LayerNorm): nothing that it reads is removed",)
    _, report = compress(_spoilt("groups", 0), _example("groups"))
    assert len(report.layers["0"].kept) == 8 and report.notes == ("2 (Conv2d): nothing that it reads is removed",)
    assert "2" not in report.layers


def test_a_size_that_enters_a_number_keeps_its_channels():
    model = _Written(lambda m, x: m.last((h := torch.relu(m.first(x))) * h.shape[1]), first=nn.Linear(9, 6),
                     last=nn.Linear(6, 2)).double()
    with torch.no_grad():
        model.first.weight[:3] = 0
    assert compress(model, _example("MLP")).report.layers["first"].kept == tuple(range(6))


# What comes back


def test_the_class_is_kept():
    x = _example("MLP")
    smaller = compress(_spoilt("MLP", 0), x).model
    assert type(smaller) is nn.Sequential and list(smaller.state_dict()) == list(_spoilt("MLP", 0).state_dict())
    assert type(compress(_spoilt("residual", 0), _example("residual")).model) is _ResNet


def test_sizes_that_are_written_down_are_changed_in_a_graph():
    model = _spoilt("tutorial with sizes", 0)
    smaller, report = compress(model, _example("tutorial with sizes"))
    kept = len(report.layers["conv2"].kept)
    assert isinstance(smaller, torch.fx.GraphModule) and kept < 10 and f"view(-1, {9 * kept})" in smaller.code
    assert smaller.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["LeNet", "tutorial with sizes", "residual"])
def test_it_is_saved_exported_and_trained(name):
    x = _example(name)
    smaller = compress(_spoilt(name, 0), x).model
    expected = smaller(x)
    if name != "tutorial with sizes":  # a graph knows no lambda, but its model has one
        assert torch.equal(pickle.loads(pickle.dumps(smaller))(x), expected)
    assert torch.equal(copy.deepcopy(smaller)(x), expected)
    other = copy.deepcopy(smaller)
    other.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(torch.export.export(smaller, (x,)).module()(x), expected)
    smaller.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in smaller.parameters())


def test_the_report_prints():
    report = compress(_two(torch.tensor([1, 0, 1]), nn.Sigmoid()), torch.randn(4, 3).double()).report
    lines = repr(report).splitlines()
    assert [line.split() for line in lines[:3]] == [["layer", "units", "kept", "constant", "unread"],
                                                    ["0", "3", "2", "1", "0"], ["2", "2", "2", "0", "0"]]
    assert lines[3:5] == ["parameters: 20 to 14", "FLOPs: 120 to 80"] and lines[5].startswith("milliseconds: ")
    assert report.seconds.before > 0 < report.seconds.after


@pytest.mark.parametrize("as_example", [lambda x: (x, x + 1), lambda x: {"other": x + 1, "x": x}, lambda x: x])
def test_inputs_of_several_kinds(as_example):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(9, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            h = torch.relu(self.one(x))
            return self.two(h) if other is None else self.two(h) + other.sum()

    model = Two().double()
    with torch.no_grad():
        model.one.weight[:2] = 0
    assert compress(model, as_example(_example("MLP"))).report.layers["one"].constant == (0, 1)


# Layers of this library


def _between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(9, 8), nn.ReLU(), layer, nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


_OURS: dict[str, Callable[[], nn.Module]] = {
    "Dropout": lambda: _between(dropoutlib.Dropout()),
    "GaussianDropout": lambda: _between(dropoutlib.GaussianDropout()),
    "WeightScalingDropout": lambda: _between(dropoutlib.WeightScalingDropout(0.3)),
    "WeightScalingDropout, p = 1": lambda: _between(dropoutlib.WeightScalingDropout(1.0)),
    "DropConnectLinear": lambda: _between(dropoutlib.DropConnectLinear(8, 8)),
    "DropConnectLinear, p = 1": lambda: _between(dropoutlib.DropConnectLinear(8, 8, p=1.0)),
    "DropConnectLinear, mean": lambda: _between(dropoutlib.DropConnectLinear(
        8, 8, activation=torch.relu, inference="mean")),
    "DropConnectLinear, sampled": lambda: _between(dropoutlib.DropConnectLinear(8, 8, inference="sampled")),
    "FastDropoutLinear": lambda: _between(dropoutlib.FastDropoutLinear(8, 8, bias=False)),
    "VariationalDropoutLinear": lambda: _between(dropoutlib.VariationalDropoutLinear(8, 8)),
    "ConcreteDropout": lambda: _between(dropoutlib.ConcreteDropout(nn.Linear(8, 8))),
    "ConcreteDropout of ours": lambda: _between(dropoutlib.ConcreteDropout(dropoutlib.VariationalDropoutLinear(8, 8))),
    "StochasticRateDropout": lambda: _between(dropoutlib.StochasticRateDropout()),
    "NestedDropout": lambda: _between(dropoutlib.NestedDropout()),
    "TargetedDropoutLinear": lambda: _between(dropoutlib.TargetedDropoutLinear(8, 8)),
    "LoRALinear": lambda: _between(dropoutlib.LoRALinear(8, 8, rank=2)),
    "ShakeDrop": lambda: _between(dropoutlib.ShakeDrop()),
    "LayerDrop": lambda: _between(dropoutlib.LayerDrop(nn.Linear(8, 8))),
}
_OURS_OF_IMAGES: dict[str, Callable[[], list[nn.Module]]] = {
    "SpatialDropout2d": lambda: [dropoutlib.SpatialDropout2d()],
    "Cutout": lambda: [dropoutlib.Cutout(3)],
    "MaxDrop": lambda: [dropoutlib.MaxDrop()],
    "DropBlock2d": lambda: [dropoutlib.DropBlock2d()],
    "AvgPoolDropout2d": lambda: [dropoutlib.AvgPoolDropout2d(3, 2, 1)],
    "MaxPoolDropout2d": lambda: [dropoutlib.MaxPoolDropout2d(3, 2, 1, p=0.4, inference="scaled")],
    "MaxPoolDropout2d, p = 0": lambda: [dropoutlib.MaxPoolDropout2d(2, p=0.0)],
    "ConcreteDropout2d": lambda: [dropoutlib.ConcreteDropout2d(nn.Conv2d(8, 8, 3))],
}


def _with_noise_of(layer: nn.Module) -> nn.Module:
    """Half of the weights, or of the units, with more noise than they can have."""
    with torch.no_grad():
        if isinstance(layer, dropoutlib.LogNormalDropout):
            layer.log_s[::2] = 2
        else:
            layer.log_sigma2[torch.rand(layer.weight.shape) > 0.5] = 20
            layer.log_sigma2[::2] = 20
    return layer


_OURS |= {
    "SparseVariationalLinear": lambda: _between(_with_noise_of(dropoutlib.SparseVariationalLinear(8, 8))),
    "LogNormalDropout": lambda: _between(_with_noise_of(dropoutlib.LogNormalDropout(8)))}
_OURS_OF_IMAGES |= {
    "SparseVariationalConv2d": lambda: [_with_noise_of(dropoutlib.SparseVariationalConv2d(
        8, 8, (3, 2), padding=1, padding_mode="reflect", dilation=2))],
    "SparseVariationalConv1d": lambda: [nn.Flatten(2), _with_noise_of(dropoutlib.SparseVariationalConv1d(
        8, 8, 5, groups=2, stride=3, bias=False)), nn.Unflatten(2, (-1, 4))],
    "DropConnectConv2d": lambda: [dropoutlib.DropConnectConv2d(8, 8, 3, activation=nn.ReLU(), inference="mean")],
    "DropConnectConv2d, p = 1": lambda: [dropoutlib.DropConnectConv2d(8, 8, 3, p=1.0)],
    "FastDropoutConv2d": lambda: [dropoutlib.FastDropoutConv2d(8, 8, 3, padding=1, dilation=2)],
    "VariationalDropoutConv1d": lambda: [nn.Flatten(2), dropoutlib.VariationalDropoutConv1d(8, 8, 5, stride=3),
                                         nn.Unflatten(2, (-1, 4))],
    "LogNormalDropout of maps": lambda: [nn.BatchNorm2d(8), _with_noise_of(dropoutlib.LogNormalDropout(8))]}
_OURS |= {name: lambda parts=parts: nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), *parts(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(6, 2)) for name, parts in _OURS_OF_IMAGES.items()}


@pytest.mark.parametrize("name", _OURS)
def test_layers_of_this_library_become_plain(name):
    torch.manual_seed(0)
    model = _OURS[name]().double().eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].bias[:1] = -1
    x = _example("LeNet") if isinstance(model[0], nn.Conv2d) else _example("MLP")
    smaller, _ = compress(model, x)
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-12, atol=1e-12)
    assert all(type(module).__module__.startswith("torch.nn") for module in smaller.modules())
    assert smaller[0].weight.shape[0] < 8 or "Conv1d" in name  # of two groups, whose inputs all stay


@pytest.mark.parametrize("name", ["RNNDropLSTM", "RecurrentDropoutGRU", "VariationalLSTM", "WeightDropLSTM"])
def test_recurrent_layers_become_plain(name):
    model = _Written(lambda m, x: m.fc(torch.relu(m.hidden(m.rnn(x)[0]))), rnn=getattr(dropoutlib, name)(
        9, 6, num_layers=2, bidirectional=True), hidden=nn.Linear(12, 8), fc=nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        model.hidden.weight[:3] = 0
    smaller, report = compress(model, torch.randn(5, 2, 9).double())
    assert type(smaller.rnn) is getattr(nn, name[-4:].removeprefix("t")) and len(report.layers["hidden"].kept) == 5


@pytest.mark.parametrize("layer", [dropoutlib.PatchDropout(), dropoutlib.NEFTune()], ids=["PatchDropout", "NEFTune"])
def test_layers_of_tokens_become_plain(layer):
    model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), layer, nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    x = torch.randn(5, 4, 9).double()
    smaller, report = compress(model, x)
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-12, atol=1e-12)
    assert report.layers["0"].constant == (0, 1, 2) and type(smaller[2]) is nn.Identity


def test_an_embedding_becomes_plain():
    model = nn.Sequential(dropoutlib.EmbeddingDropout(11, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[1].weight[:3] = 0
    smaller, report = compress(model, torch.randint(11, (3, 4)))
    assert type(smaller[0]) is nn.Embedding and report.layers["1"].constant == (0, 1, 2)


def test_every_layer_of_the_table_has_a_plain_one_or_is_known_to_have_none():
    without = {"StandoutLinear", "StochasticPool2d", "Swapout"}     # and ConditionDropout, which says why
    for row in dropoutlib.catalogue().values():
        for layer in row.facts:
            kind = getattr(dropoutlib, layer.name)
            if isinstance(kind, type) and issubclass(kind, dropoutlib.NoisyLayer):
                has_one = _plain.dispatch(kind) is not _plain.dispatch(nn.Module)
                assert has_one != (layer.name in without), layer.name


@pytest.mark.parametrize(("before", "after", "stays"), [
    ([nn.Linear(9, 6)], [nn.Tanh(), nn.Linear(6, 3)], False),                  # into the layer before
    ([nn.Linear(9, 6), nn.Tanh()], [nn.Linear(6, 3)], False),                  # into the layer behind
    ([nn.Linear(9, 6), nn.Tanh()], [nn.Sigmoid(), nn.Linear(6, 3)], True),     # neither
    ([nn.Unflatten(1, (3, 3)), nn.Conv1d(3, 6, 2), nn.ReLU(), nn.MaxPool1d(2)], [nn.Flatten(), nn.Linear(6, 3)], False),
    ([nn.Unflatten(1, (3, 3)), nn.Conv1d(3, 6, 2)], [nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(12, 3)], False),
    ([nn.Unflatten(1, (3, 3)), nn.Conv1d(3, 6, 2), nn.Tanh()], [nn.Conv1d(6, 2, 2, padding=1)], False),
    ([nn.Unflatten(1, (3, 3)), nn.Linear(3, 4)], [nn.Sigmoid(), nn.Linear(4, 2)], True),  # axis of neither
])
@pytest.mark.parametrize("sign", [1, -1])
def test_factors_of_channels(before, after, stays, sign):
    torch.manual_seed(0)
    channels_ = 3 if isinstance(before[-1], nn.Linear) and len(before) == 2 else 6
    factor = torch.rand(channels_).double()
    factor[1] *= sign
    factor[2] = 0
    model = copy.deepcopy(nn.Sequential(*before, Scale(factor), *after)).double().eval()
    x = _example("MLP")
    smaller, _ = compress(model, x)
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-12, atol=1e-12)
    assert any(isinstance(module, Scale) for module in smaller) == stays
    assert channels_ == 3 or any(getattr(module, "weight", torch.empty(0)).shape[:1] == (5,) for module in smaller)


def test_a_unit_that_is_multiplied_by_zero_goes():
    model = nn.Sequential(nn.Linear(9, 6), nn.Tanh(), Scale(torch.tensor([1, 0, 1, 1, 0, 1.0])), nn.Sigmoid(),
                          nn.Linear(6, 2)).double()
    smaller, report = compress(model, _example("MLP"))
    assert report.layers["0"].unread == (1, 4) and len(smaller[2].factor) == 4


# What is refused


class _Shared(nn.Module):
    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(9, 9), nn.Linear(9, 9)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _tied() -> nn.Module:
    model = _Shared(lambda m, x: m.two(m.one(x)))
    model.two.weight = model.one.weight
    return model


def _hooked() -> nn.Module:
    model = _Shared(lambda m, x: m.two(m.one(x)))
    model.two.register_forward_hook(lambda *_: None)
    return model


def _with_another_forward() -> nn.Module:
    model = _Shared(lambda m, x: m.two(m.one(x)))
    model.two.forward = lambda input, before=model.two.forward: before(input)
    return model


def _pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(9, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    model(torch.zeros(1, 9))
    return model


class _Twice(dropoutlib.Dropout):
    def forward(self, x, **more):
        return 2 * super().forward(x, **more)


_REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no module": (lambda: torch.relu, TypeError, "model has to be a module, but got builtin_function_or_method"),
    "scripted": (lambda: torch.jit.trace(nn.Linear(9, 3), torch.zeros(1, 9)), TypeError,
                 "the model is scripted, compiled or exported"),
    "compiled": (lambda: torch.compile(nn.Linear(9, 3)), TypeError, "the model is scripted, compiled or exported"),
    "no values": (lambda: nn.Sequential(nn.Linear(9, 3, device="meta")), ValueError, "0.weight has no values.*meta"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), ValueError, r"0 \(LazyLinear\) has no weights yet"),
    "wrong input": (lambda: nn.Linear(8, 3), ValueError, "the model cannot be called with the example: mat1"),
    "tied weights": (_tied, ValueError, "two.weight and one.weight are one tensor"),
    "a hook": (_hooked, ValueError, "two has a hook"),
    "a forward that was replaced": (_with_another_forward, ValueError, "the forward of two was replaced"),
    "a pruning hook": (_pruned, ValueError, r"0 has a hook.*prune\.remove"),
    "a parametrization": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(9, 3))), ValueError,
                          "0 has a parametrization"),
    "called twice": (lambda: _Shared(lambda m, x: m.one(m.one(x))), ValueError, "one is called twice"),
    "read outside": (lambda: _Shared(lambda m, x: m.one(x) @ m.one.weight), ValueError, "one.weight is read outside"),
    "a branch": (lambda: nn.Sequential(nn.Linear(9, 9), _Shared(lambda m, x: m.one(x) if x.sum() > 0 else m.two(x))),
                 ValueError, "1 cannot be traced by torch.fx"),
    "a branch in the model": (lambda: _Shared(lambda m, x: m.one(x) if x.sum() > 0 else x), ValueError,
                              "the model cannot be traced by torch.fx"),
    "noise in evaluation": (lambda: nn.Sequential(nn.Linear(9, 9), _Shared(lambda m, x: F.dropout(x))), ValueError,
                            "draws noise in evaluation"),
    "a written input": (lambda: _Shared(lambda m, x: F.relu(h := m.one(x), inplace=True) + h), ValueError,
                        "relu writes into its input, which is read again"),
    "an alias": (lambda: _Shared(lambda m, x: operator.iadd(h := m.one(x), 1) + h), ValueError,
                 "the model does other things than torch.fx can trace"),
    "gaussian inference": (lambda: nn.Sequential(dropoutlib.DropConnectLinear(9, 3, activation=torch.relu)), ValueError,
                           "0: DropConnectLinear with inference='gaussian' averages its activation"),
    "an unknown activation": (lambda: nn.Sequential(nn.Sequential(dropoutlib.DropConnectLinear(
        9, 3, activation=torch.sin, inference="mean"))), ValueError, "0.0: the activation"),
    "standout": (lambda: nn.Sequential(nn.ReLU(), dropoutlib.StandoutLinear(9, 3)), ValueError,
                 "1: StandoutLinear gives in evaluation what no plain layer gives"),
    "a null": (lambda: nn.Sequential(nn.Linear(9, 3), dropoutlib.ConditionDropout(3)), ValueError,
               r"1: ConditionDropout has the null, for which unconditional\(\) is asked"),
    "expected pooling": (lambda: nn.Sequential(nn.Unflatten(1, (1, 3, 3)), dropoutlib.MaxPoolDropout2d(2)), ValueError,
                         "1: MaxPoolDropout2d with inference='expected'"),
    "a forward of its own": (lambda: nn.Sequential(_Twice(), nn.Linear(9, 3)), ValueError,
                             "0: _Twice has a forward of its own"),
    "a branch on a type": (lambda: _Shared(lambda m, x: m.two(m.one(x)) if isinstance(x, Tensor) else
                                           m.two(torch.cat([x, x], 1))), ValueError,
                           "the model does other things than torch.fx can trace: its trace"),
    "zoneout": (lambda: _Written(lambda m, x: m.rnn(x)[0], rnn=dropoutlib.ZoneoutLSTM(9, 3, p_hidden=0.5)), ValueError,
                "rnn: ZoneoutLSTM has a test rule of its own"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", _REFUSED)
def test_what_is_out_of_reach_is_refused_with_its_place(name):
    make, error, message = _REFUSED[name]
    with pytest.raises(error, match=message):
        compress(make(), torch.randn(4, 9))


def test_hooks_for_all_modules_are_refused():
    """One may change this model and not its copy."""
    model, x = nn.Sequential(nn.Linear(9, 3), nn.ReLU()), torch.randn(4, 9)
    handle = nn.modules.module.register_module_forward_hook(lambda m, _, y: 2 * y if m is model else None)
    try:
        with pytest.raises(ValueError, match="torch has hooks for all modules"):
            compress(model, x)
    finally:
        handle.remove()
    with dropoutlib.monte_carlo(nn.Dropout()):      # looks on, by such hooks
        smaller, _ = compress(model, x)
    assert torch.equal(smaller(x), model(x))


def test_an_example_without_numbers_is_refused():
    with pytest.raises(ValueError, match=r"example has to hold numbers, but got a tensor of shape \(0, 9\)"):
        compress(nn.Linear(9, 3), torch.randn(0, 9))


def test_an_example_may_have_no_batch():
    model, x = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(9)
    with torch.no_grad():
        model[0].weight[:4] = 0
    smaller, _ = compress(model, x)
    assert smaller[0].out_features == 4
    torch.testing.assert_close(smaller(x), model(x))


def test_what_the_example_leaves_out_is_noted():
    """The constants that move into the next bias are those of the default."""
    class Scaled(_Shared):
        def forward(self, x, scale=1.0):
            return self.two(self.one(x).relu() * scale)

    model, x = Scaled(None), torch.randn(4, 9)
    with torch.no_grad():
        model.one.weight[:4] = 0
    assert "scale was 1.0, as the example does not say it" in compress(model, x).report.notes[-1]
    smaller, report = compress(model, {"x": x, "scale": 2.0})
    assert not any("scale was" in note for note in report.notes)
    torch.testing.assert_close(smaller(x, 2.0), model(x, 2.0))


# Mistakes that the comparison at the end has to find


def _no_padding(monkeypatch):
    monkeypatch.setattr(channels, "_pads_with_zeros", lambda layer: False)


def _no_agreement(monkeypatch):
    monkeypatch.setattr(channels.Flow, "_join", lambda self, one, other: None)


def _no_fold(monkeypatch):
    monkeypatch.setattr(channels, "_folded", lambda weight, value: torch.zeros(len(weight), dtype=torch.float64))


def _wrong_flattening(monkeypatch):
    monkeypatch.setattr(channels._Channels, "repeated", lambda self, times, axis: channels._Channels(
        axis, *(part.repeat(times) for part in (self.atoms, self.known, self.value))))


def _wrong_constant(monkeypatch):
    monkeypatch.setattr(channels, "_map_of", lambda *args, real=channels._map_of: real(*args) + 1)


@pytest.mark.parametrize(("plant", "name"), [
    (_no_padding, "zero padding"), (_no_agreement, "residual"), (_no_fold, "LeNet with tanh"),
    (_wrong_flattening, "tutorial with sizes"), (_wrong_constant, "tanh")])
def test_a_planted_mistake_is_found(plant, name, monkeypatch):
    model, x = _spoilt(name, 0), _example(name)
    compress(model, x)
    plant(monkeypatch)
    with pytest.raises(RuntimeError, match=r"the smaller model (gives other outputs|cannot be called)"):
        compress(model, x)


# Oracles


def _of_torch(model: nn.Module, places: list[str]) -> tuple[nn.Module, nn.Module]:
    """The model with half of the units of some layers at zero, and what torch.ao.pruning makes of that."""
    pruner = pytest.importorskip("torch.ao.pruning._experimental.pruner.saliency_pruner")
    other, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    saliency = pruner.SaliencyPruner({"sparsity_level": 0.5})
    saliency.prepare(other, [{"tensor_fqn": f"{place}.weight", "prune_bias": False} for place in places])
    saliency.enable_mask_update = True
    saliency.step()
    with torch.no_grad():
        for place in places:
            zeroed.get_submodule(place).weight.copy_(other.get_submodule(place).weight)
    return zeroed, saliency.prune()


@pytest.mark.parametrize(("model", "places", "shape"), [
    (lambda: nn.Sequential(nn.Linear(9, 20), nn.Sigmoid(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 4)),
     ["0", "2"], _VECTORS),
    (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 2)),
     ["0", "2"], _IMAGES),
    (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3, padding=1)), ["0"], _IMAGES),
])
def test_it_agrees_with_the_pruning_of_torch(model, places, shape):
    """Where torch.ao.pruning is right; with padding it keeps the old size and hides the bias, which costs more."""
    torch.manual_seed(0)
    zeroed, other = _of_torch(model(), places)
    x = torch.randn(shape)
    smaller, report = compress(zeroed, x)
    torch.testing.assert_close(smaller(x), other(x), rtol=1e-5, atol=1e-6)
    if len(places) == 2:
        assert [m.weight.shape for m in smaller if hasattr(m, "weight")] == [
            m.weight.shape for m in other.children() if hasattr(m, "weight")]
    else:
        assert report.notes


def test_it_folds_what_torch_pruning_throws_away():
    """torch-pruning takes units away as if they were zero; where they are, it agrees."""
    tp = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    x = torch.randn(_IMAGES)
    for bias, agrees in ((-1.0, True), (1.0, False)):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
        with torch.no_grad():
            model[0].weight[:3], model[0].bias[:3] = 0, bias
        other = copy.deepcopy(model)
        graph = tp.DependencyGraph().build_dependency(other, x)
        graph.get_pruning_group(other[0], tp.prune_conv_out_channels, idxs=[0, 1, 2]).prune()
        smaller, _ = compress(model, x)
        assert smaller[2].weight.shape == other[2].weight.shape
        assert torch.allclose(other(x), model(x), atol=1e-5) == agrees
        torch.testing.assert_close(smaller(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn", "densenet121", "squeezenet1_1"])
def test_networks_of_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None, num_classes=10).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[torch.rand(len(module.weight)) < 0.3] = 0
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.bias.normal_(std=0.1)
                module.bias[torch.rand(len(module.bias)) < 0.7] = 0
    x = torch.randn(1, 3, 64, 64)
    _, report = compress(model, x)
    assert report.parameters.after < report.parameters.before


class _Sized(_Written):
    """Half of the units of the first layer are constant; the function may ask for their number."""

    def __init__(self, function):
        super().__init__(function, first=nn.Linear(4, 6), last=nn.Linear(6, 2))
        with torch.no_grad():
            self.first.weight[:3] = 0

    def hidden(self, x):
        return torch.relu(self.first(x))

    def checked(self, h):
        if self.last.in_features != 6:
            raise RuntimeError("the size is wrong")
        return self.last(h)


_SIZES_READ = {
    "a factor": lambda m, x: m.last(m.hidden(x)) / m.first.out_features,
    "a check": lambda m, x: m.checked(m.hidden(x)),
    "a view": lambda m, x: m.last(m.hidden(x).view(-1, m.first.out_features)),
    "a view and a factor": lambda m, x: m.last(m.hidden(x).view(-1, m.first.out_features)) * m.last.in_features,
    "an output": lambda m, x: (m.last(m.hidden(x)), m.last.in_features),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", _SIZES_READ)
def test_a_size_that_forward_reads_off_a_layer_stays_what_it_was(name, inside):
    model, x = _Sized(_SIZES_READ[name]), torch.randn(5, 4)
    smaller, report = compress(nn.Sequential(model) if inside else model, x)
    assert report.parameters == (44, 23)
    torch.testing.assert_close(smaller(x), model(x))


@pytest.mark.parametrize("function", [lambda m, x: (m.last(h := m.hidden(x)), h.shape[1]),
                                      lambda m, x: {"y": m.last(h := m.hidden(x)), "size": h.size()}])
def test_a_size_that_is_given_out_stays(function):
    model, x = _Sized(function), torch.randn(5, 4)
    smaller, report = compress(model, x)
    assert report.parameters == (44, 44)
    torch.testing.assert_close(smaller(x), model(x))


def test_a_size_that_is_read_off_a_weight_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"first.weight is read outside of its layer.*read out_features"):
        compress(_Sized(lambda m, x: m.last(m.hidden(x)) / m.first.weight.shape[0]), torch.randn(5, 4))


def test_a_model_in_a_context_of_monte_carlo_is_refused_with_the_reason():
    model, x = nn.Sequential(nn.Linear(9, 3), nn.Dropout(0.5)), torch.randn(4, 9)
    with dropoutlib.monte_carlo(model):
        for part in (model, model[0]):
            with pytest.raises(ValueError, match=r"the model is in a context of monte_carlo.*leave it first"):
                compress(part, x)
        with pytest.raises(NotImplementedError, match=r"the model .*is in a context of monte_carlo.*leave it first"):
            dropoutlib.propagate_moments(model, x)
    compress(model, x)
