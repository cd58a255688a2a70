"""Parameter groups and schedules."""

import math

import pytest
import torch
from torch import nn

import dropoutlib
from dropoutlib.methods import catalogue
from dropoutlib.training import parameter_groups, warm_up


def test_learned_noise_that_is_parametrized_is_not_decayed():
    layer = dropoutlib.VariationalDropoutLinear(2, 2)
    for name in ("log_alpha", "weight"):
        nn.utils.parametrize.register_parametrization(layer, name, nn.Identity())
    decayed, spared = parameter_groups(layer, 0.1)
    assert len(decayed["params"]) == 2
    assert spared["params"] == [layer.parametrizations.log_alpha.original]


def test_learned_noise_has_no_decay_and_all_else_has() -> None:
    shared = dropoutlib.SparseVariationalLinear(4, 4)
    model = nn.Sequential(shared, shared, nn.BatchNorm1d(4), dropoutlib.ConcreteDropout(nn.Linear(4, 4)),
                          dropoutlib.VariationalDropoutLinear(4, 4), dropoutlib.StandoutLinear(4, 4, belief="learned"),
                          dropoutlib.VariationalLSTM(4, 4))
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert sorted(names[one] for one in free["params"]) == ["0.log_sigma2", "3.p_logit", "4.log_alpha"]
    together = [names[one] for one in decayed["params"] + free["params"]]
    assert sorted(together) == sorted(names.values()), "each parameter is there once"
    optimizer = torch.optim.SGD(parameter_groups(model, 0.5), lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        is_free = name in ("0.log_sigma2", "3.p_logit", "4.log_alpha")
        torch.testing.assert_close(parameter.detach(), before[name] * (1 if is_free else 0.5))


def test_adapters_and_nulls_are_no_noise() -> None:
    model = nn.Sequential(dropoutlib.ConditionDropout(8), dropoutlib.LoRALinear(8, 2, rank=2),
                          dropoutlib.StandoutLinear(2, 2, belief="learned"))
    assert parameter_groups(model, 0.01)[1]["params"] == []

    class Own(dropoutlib.NoisyLayer):
        def __init__(self) -> None:
            super().__init__()
            self.log_rate = nn.Parameter(torch.zeros(1))

    own = Own()
    assert parameter_groups(own, 0.01)[1]["params"] == [own.log_rate]


def test_every_layer_whose_rate_is_learned_has_free_parameters() -> None:
    made = {"SparseVariationalLinear": (4, 4), "SparseVariationalConv1d": (4, 4, 1), "VariationalDropoutLinear": (4, 4),
            "SparseVariationalConv2d": (4, 4, 1), "VariationalDropoutConv1d": (4, 4, 1),
            "VariationalDropoutConv2d": (4, 4, 1), "ConcreteDropout": (nn.Linear(4, 4),), "LogNormalDropout": (4,),
            "ConcreteDropout2d": (nn.Conv2d(4, 4, 1),)}
    for row in catalogue().values():
        for layer in row.facts:
            if layer.rate == "learned":
                model = getattr(dropoutlib, layer.name)(*made[layer.name])
                decayed, free = parameter_groups(model, 0.1)
                known = {one for name, one in model.named_parameters() if name.endswith(("weight", "bias"))}
                assert set(decayed["params"]) == known and free["params"], layer.name


def test_warm_up_is_a_line_between_two_constants() -> None:
    values = [warm_up(step, 10, 30, first=0.5, last=0.1) for step in (-5, 10, 15, 20, 30, 31)]
    assert values == pytest.approx([0.5, 0.5, 0.4, 0.3, 0.1, 0.1])
    assert [warm_up(step, 3, 3) for step in (2, 3, 4)] == [0.0, 1.0, 1.0], "a step"


@pytest.mark.parametrize(("kind", "call", "words"), [
    (TypeError, lambda: parameter_groups([nn.Linear(1, 1)], 0.1), "model.*list"),
    (ValueError, lambda: parameter_groups(nn.Linear(1, 1), -0.1), r"weight_decay.*-0\.1"),
    (ValueError, lambda: parameter_groups(nn.Linear(1, 1), math.nan), "weight_decay.*nan"),
    (TypeError, lambda: parameter_groups(nn.Linear(1, 1), "0.1"), "weight_decay.*'0.1'"),
    (ValueError, lambda: parameter_groups(nn.Linear(1, 1), math.inf), "weight_decay.*inf"),
    (ValueError, lambda: warm_up(1, 3, 2), "start=3 and end=2"),
    (ValueError, lambda: warm_up(math.nan, 0, 1), "step.*nan"),
    (ValueError, lambda: warm_up(3, -math.inf, math.inf), "start=-inf and end=inf"),
    (ValueError, lambda: warm_up(1, 0, 1, last=math.nan), "last.*nan"),
    (ValueError, lambda: warm_up(3, 0, 5, first=math.inf), "first.*inf"),
    (ValueError, lambda: warm_up(1, 0, math.nan), "end=nan"),
    (TypeError, lambda: warm_up(None, 0, 1), "step.*None")])
def test_bad_input(kind, call, words) -> None:
    with pytest.raises(kind, match=words):
        call()
