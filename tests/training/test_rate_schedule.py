"""One factor for all rates of a model: where it goes, what it keeps, and that training can be resumed."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import dropoutlib
from dropoutlib import Dropout, RateSchedule
from dropoutlib.enumeration import distribution
from dropoutlib.training import curriculum, early, late

LAYERS = {
    "torch": (lambda: nn.Dropout(0.4), ["p"]),
    "a number of NumPy": (lambda: nn.Dropout(np.float32(0.4)), ["p"]),
    "torch's maps": (lambda: nn.Dropout2d(0.4), ["p"]),
    "alpha": (lambda: nn.AlphaDropout(0.4), ["p"]),
    "torch's LSTM": (lambda: nn.LSTM(2, 3, 2, dropout=0.4), ["dropout"]),
    "attention": (lambda: nn.MultiheadAttention(4, 2, dropout=0.4), ["dropout"]),
    "ours": (lambda: Dropout(0.4), ["p"]),
    "Gaussian": (lambda: dropoutlib.GaussianDropout(0.4), ["p"]),
    "weights": (lambda: dropoutlib.DropConnectLinear(2, 3, p=0.4), ["p"]),
    "several": (lambda: dropoutlib.VariationalLSTM(2, 3, 2, dropout=0.4, p_input=0.4, p_hidden=0.4, p_output=0.4),
                ["dropout", "p_input", "p_hidden", "p_output"]),
    "zoneout": (lambda: dropoutlib.ZoneoutLSTM(2, 3, p_hidden=0.4, p_cell=0.4), ["p_hidden", "p_cell"]),
}


def network() -> nn.Sequential:
    return nn.Sequential(Dropout(0.2), nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))


def rates(model: nn.Sequential) -> tuple[float, float]:
    return model[0].p, model[3].p


@pytest.mark.parametrize("name", LAYERS)
def test_every_assigned_rate_is_multiplied(name: str) -> None:
    make, names = LAYERS[name]
    layer = make()
    schedule = RateSchedule(layer, late(2))
    assert [getattr(layer, rate) for rate in names] == [0] * len(names)
    schedule.step()
    schedule.step()
    assert [getattr(layer, rate) for rate in names] == pytest.approx([0.4] * len(names))
    assert set(schedule.state_dict()["rates"]) >= set(names)


OF_THE_TABLE = {fact.name: fact for row in dropoutlib.catalogue().values() for fact in row.facts
                if isinstance(kind := getattr(dropoutlib, fact.name, None), type)
                and issubclass(kind, dropoutlib.NoisyLayer)}
ARGUMENTS = {"module": nn.Conv2d(2, 2, 1), "shape": (3,), "num_layers": 2}      # others that have no default are sizes
ATTRIBUTES = {"mean": "rate_mean", "std": "rate_std", "drop_prob": "p"}         # where they differ from the argument
NO_RATES = {"NEFTune": {"alpha"}, "LoRALinear": {"alpha"}, "TargetedDropoutLinear": {"target_fraction"},
            "EmbeddingDropout": {"max_norm", "norm_type"}}


@pytest.mark.parametrize("name", OF_THE_TABLE)
def test_every_number_of_a_layer_of_the_table_is_multiplied_or_said_to_stay(name: str) -> None:
    kind, stay = getattr(dropoutlib, name), NO_RATES.get(name, set())
    parameters = inspect.signature(kind).parameters
    arguments = {key: ARGUMENTS.get(key, 2) for key, one in parameters.items()
                 if key in ARGUMENTS or one.default is one.empty}
    numbers = {key: 0.4 for key, one in parameters.items() if one.annotation in ("float", "float | None")}
    layer = kind(**arguments | numbers)
    if OF_THE_TABLE[name].rate not in ("assigned", "drawn"):
        with pytest.raises(ValueError, match="no dropout rate that can be assigned"):
            RateSchedule(layer, lambda step: 0.5)
        return
    RateSchedule(nn.Sequential(layer, nn.Dropout()), lambda step: 0.5)
    assert numbers.keys() - stay
    for key in numbers:
        assert getattr(layer, ATTRIBUTES.get(key, key)) == (0.4 if key in stay else 0.2), key


def test_the_numbers_of_noisy_layers_that_stay_are_named() -> None:
    for name in OF_THE_TABLE:
        if name in NO_RATES and name != "EmbeddingDropout":     # those are not of the noise
            for word in (name, *NO_RATES[name]):
                assert word in RateSchedule.__doc__


@pytest.mark.parametrize("law", [{}, {"mean": 0.3, "std": 0.2}], ids=["uniform", "normal"])
def test_a_rate_that_is_drawn_is_multiplied_as_it_would_be_drawn(law: dict[str, float]) -> None:
    x = torch.ones(4)
    whole = dropoutlib.StochasticRateDropout(0.1, 0.5, **law)
    layer = copy.deepcopy(whole)
    schedule = RateSchedule(nn.Sequential(layer, nn.Dropout(0.5)), lambda step: step / 4)
    assert layer(x) is x and layer.draw(x).rate == 0
    assert torch.equal(layer.variance(x), torch.zeros(4))
    for _ in range(4):
        schedule.step()
        for seed in range(20):
            one, other = (each.draw(x, generator=torch.Generator().manual_seed(seed)).rate for each in (layer, whole))
            torch.testing.assert_close(one, schedule.factor * other)
    assert (layer.low, layer.high, layer.rate_mean, layer.rate_std) == (0.1, 0.5, law.get("mean"), law.get("std"))


def test_rates_that_are_learned_and_norms_stay() -> None:
    learned, norm = dropoutlib.VariationalDropoutLinear(2, 3), nn.TripletMarginLoss(p=2.0)
    before = copy.deepcopy(learned.state_dict())
    model = nn.ModuleList([learned, norm, Dropout(0.5)])
    RateSchedule(model, early(4))
    assert norm.p == 2.0
    assert all(torch.equal(before[name], value) for name, value in learned.state_dict().items())


def test_the_name_that_others_use_and_a_layer_in_two_places() -> None:
    class DropPath(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_prob = 0.4

    one = Dropout(0.5)
    model = nn.ModuleList([DropPath(), one, one])
    schedule = RateSchedule(model, early(2))
    schedule.step()
    assert (model[0].drop_prob, one.p) == (0.2, 0.25)


def test_early_is_a_straight_line_and_then_zero() -> None:
    line = torch.cat([torch.linspace(1, 0, 51, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)])
    ours = torch.tensor([early(50)(step) for step in range(60)], dtype=torch.float64)
    torch.testing.assert_close(ours, line, rtol=0, atol=1e-15)


@pytest.mark.parametrize("keep", [0.9, 0.75, 0.5])
@pytest.mark.parametrize("gamma", [1e-3, 1e-4, 0.5])
def test_curriculum_is_the_papers_probability_of_keeping(keep: float, gamma: float) -> None:
    factor = curriculum(gamma)
    for step in (0, 1, 10, 1000, 10**6):
        assert 1 - (1 - keep) * factor(step) == pytest.approx((1 - keep) * math.exp(-gamma * step) + keep, abs=1e-15)


@pytest.mark.parametrize(("schedule", "sign"), [(early(7), -1), (late(3), 1), (curriculum(0.3), 1)])
def test_named_schedules_are_monotone_and_stay_between_0_and_1(schedule, sign) -> None:
    factors = [schedule(step) for step in range(200)]
    assert all(0 <= one <= 1 for one in factors)
    assert all(sign * (after - before) >= 0 for before, after in pairwise(factors))
    assert (factors[0], factors[-1]) == pytest.approx((1, 0) if sign < 0 else (0, 1))


@pytest.mark.parametrize("make", [lambda p: Dropout(p), lambda p: nn.Dropout(p)], ids=["ours", "torch"])
def test_the_mean_stays_at_every_step(make) -> None:
    """Scaled with the rate of the moment; a scale that is fixed would be off by (1 - f p)/(1 - p)."""
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    layer = make(0.5)
    schedule = RateSchedule(layer, curriculum(0.4))
    for _ in range(4):
        rate = layer.p

        def output(keep, rate=rate):
            return Dropout(rate)(x, noise=keep)

        assert (distribution(output, (3,), rate).mean() - x).abs().max() < 1e-12
        wide = layer(torch.ones(2**16, dtype=torch.float64))
        kept = wide[wide != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
        assert abs((wide == 0).double().mean() - rate) < 0.02
        schedule.step()


def test_rates_are_a_function_of_the_step_and_do_not_add_up_errors() -> None:
    model = network()
    schedule = RateSchedule(model, curriculum(0.01))
    for step in range(1000):
        assert rates(model) == (0.2 * curriculum(0.01)(step), 0.5 * curriculum(0.01)(step))
        schedule.step()


def trained(model, schedule, optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def test_training_is_resumed_from_a_checkpoint() -> None:
    def made():
        torch.manual_seed(0)
        model = network()
        return model, RateSchedule(model, early(10)), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    whole = made()
    trained(*whole, range(8))
    first = made()
    trained(*first, range(3))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = made()
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert rates(second[0]) == rates(first[0])
    trained(*second, range(3, 8))
    assert rates(second[0]) == rates(whole[0])
    for ours, theirs in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_brings_its_rates_back_where_the_model_has_lost_them() -> None:
    """A model that was saved whole has the rates of the moment."""
    model = network()
    schedule = RateSchedule(model, early(4))
    schedule.step()
    again = RateSchedule(copy.deepcopy(model), early(4))
    again.load_state_dict(schedule.state_dict())
    assert again.state_dict() == schedule.state_dict() == {"step": 1, "rates": {"0.p": 0.2, "3.p": 0.5}}
    schedule.state_dict()["rates"]["0.p"] = 1.0
    assert schedule.state_dict()["rates"]["0.p"] == 0.2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_with_its_model_goes_on_alone(copied) -> None:
    model = network()
    schedule = RateSchedule(model, late(1))
    other, its = copied((model, schedule))
    its.step()
    assert rates(other) == (0.2, 0.5)
    assert rates(model) == (0, 0)


def test_in_the_state_of_other_layers_nothing_changes() -> None:
    model = network()
    schedule = RateSchedule(model, early(4))
    before = schedule.state_dict()
    other = RateSchedule(nn.Sequential(model), early(4))
    with pytest.raises(ValueError, match=r"state_dict has to hold the rates \['0.p', '3.p'\], but got \['0.0.p'"):
        schedule.load_state_dict(other.state_dict())
    assert schedule.state_dict() == before


@pytest.mark.parametrize("state", [{}, None, {"step": 3}, {"step": -1, "rates": {"0.p": 0.2, "3.p": 0.5}},
                                   {"step": 1.5, "rates": {"0.p": 0.2, "3.p": 0.5}}, {"step": 1, "rates": None},
                                   {"step": 1, "rates": ["0.p", "3.p"]}, {"step": 1, "rates": {"0.p": "a", "3.p": 0.5}},
                                   {"step": 1, "rates": {"0.p": None, "3.p": 0.5}},
                                   {"step": 1, "rates": {"0.p": math.nan, "3.p": 0.5}},
                                   {"step": 1, "rates": {"0.p": 10 ** 400, "3.p": 0.5}},
                                   {"step": 1, "rates": {1: 1, "3.p": 0.5}}])
def test_what_is_no_state_is_named(state) -> None:
    schedule = RateSchedule(network(), early(4))
    with pytest.raises(ValueError, match="state_dict has to hold "):
        schedule.load_state_dict(state)
    assert schedule.state_dict()["step"] == 0


@pytest.mark.parametrize("number", [float, np.float32, torch.tensor])
def test_a_state_with_rates_of_any_size_comes_back(number) -> None:
    model = nn.Sequential(nn.Linear(3, 3), dropoutlib.StochasticRateDropout(0.0, 0.7, mean=-0.5, std=2.0))
    schedule = RateSchedule(model, early(10))
    rates = schedule.state_dict()["rates"]
    assert rates["1.rate_mean"] == -0.5 and rates["1.rate_std"] == 2
    schedule.load_state_dict({"step": np.int64(3), "rates": {name: number(rate) for name, rate in rates.items()}})
    assert schedule.state_dict() == {"step": 3, "rates": pytest.approx(rates)}


def test_repr() -> None:
    schedule = RateSchedule(network(), early(4))
    schedule.step()
    assert repr(schedule) == "RateSchedule(2 rates, step=1, factor=0.75)"
    assert schedule.factor == 0.75


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: RateSchedule("model", early(4)), TypeError, "model has to be a module, but got str"),
    (lambda: RateSchedule(network(), 0.5), TypeError, "schedule"),
    (lambda: RateSchedule(nn.Linear(2, 2), early(4)), ValueError, "Linear has no dropout rate that can be assigned"),
    (lambda: RateSchedule(network(), lambda step: 1.5), ValueError, r"factor in \[0, 1\], but at step 0 got 1.5"),
    (lambda: RateSchedule(network(), lambda step: math.nan), ValueError, "at step 0 got nan"),
    (lambda: RateSchedule(network(), lambda step: None), TypeError, "factor that schedule gives has to be a real"),
    (lambda: early(0), ValueError, "steps"),
    (lambda: late(-1), ValueError, "start"),
    (lambda: curriculum(math.inf), ValueError, "gamma"),
    (lambda: curriculum("10"), TypeError, "gamma has to be a real number"),
])
def test_errors(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_factor_that_is_refused_changes_no_rate() -> None:
    model = network()
    with pytest.raises(ValueError, match="at step 0"):
        RateSchedule(model, lambda step: -0.1)
    assert rates(model) == (0.2, 0.5)


@pytest.mark.parametrize("wrong", [1.1, math.nan, None])
def test_a_step_that_is_refused_changes_nothing(wrong) -> None:
    factors = [0.0, 0.5, wrong, 1.0]
    model = network()
    schedule = RateSchedule(model, lambda step: factors[step])
    schedule.step()
    before = schedule.state_dict()
    for go_on in (schedule.step, lambda: schedule.load_state_dict({"step": 2, "rates": {"0.p": 0.1, "3.p": 0.1}}),
                  lambda: schedule.load_state_dict({"step": 3, "rates": {"0.p": 0.1, "3.p": None}})):
        with pytest.raises((TypeError, ValueError)):
            go_on()
        assert schedule.state_dict() == before == {"step": 1, "rates": {"0.p": 0.2, "3.p": 0.5}}
        assert rates(model) == (0.1, 0.25)
    factors[2] = 1.0
    schedule.step()
    assert rates(model) == (0.2, 0.5)


def test_torch_compile_follows_the_rate() -> None:
    """It compiles again for new rates, which costs time, but uses them."""
    torch._dynamo.reset()
    layer = nn.Dropout(0.5)
    compiled = torch.compile(layer, backend="eager")
    schedule = RateSchedule(layer, early(3))
    shares = []
    for _ in range(4):
        shares.append((compiled(torch.ones(10**4)) == 0).double().mean().item())
        schedule.step()
    assert shares == pytest.approx([0.5, 1 / 3, 1 / 6, 0], abs=0.03)
