"""One factor for all rates of a model: where it goes, what it keeps, and that training can be resumed."""

from __future__ import annotations

import copy
import io
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

import dropoutlib
from dropoutlib import Dropout, RateSchedule
from dropoutlib.enumeration import distribution
from dropoutlib.training import curriculum, early, late

LAYERS = {
    "torch": (lambda: nn.Dropout(0.4), ["p"]),
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
    assert [getattr(layer, rate) for rate in names] == [0.4] * len(names)
    assert set(schedule.state_dict()["rates"]) >= set(names)


def test_every_layer_of_the_table_whose_rate_is_assigned_is_found() -> None:
    arguments = {"element": (), "map": (), "window": (2,), "weight": (3, 4, 2), "unit": (3, 4, 2), "state": (3, 4),
                 "word": (3, 4), "feature": ()}
    seen = 0
    for row in dropoutlib.catalogue().values():
        for fact in row.facts:
            kind = getattr(dropoutlib, fact.name)
            if fact.rate != "assigned" or fact.site not in arguments or row.part in ("residual", "training"):
                continue
            given = arguments[fact.site]
            if fact.replaces == "Linear":
                given = given[:2]
            elif row.part == "recurrent" and given:
                given = (3, 4)
            layer = kind(*given)
            rate = next(name for name in vars(layer) if name == "p" or name.startswith("p_"))
            RateSchedule(layer, lambda step: 0.5)
            assert getattr(layer, rate) == getattr(kind(*given), rate) / 2, fact.name
            seen += 1
    assert seen >= 25


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
