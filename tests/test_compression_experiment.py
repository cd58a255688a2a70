"""The experiment on pruning, and its table."""

import pytest
import torch

from dropoutlib.experiments import compression, measured
from dropoutlib.experiments.paired import read_scores

_SHORT = compression.Setting((3, 4, 5), (3, 2), (2, 1), 8, 200, 10, 3, 2e-3, 4.0,
                             {"sparse": (1.0,), "units": (1.0,)})


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(compression.SETTINGS, "digits", _SHORT)


def test_a_later_call_goes_on_where_the_last_one_ended(short, tmp_path, monkeypatch):
    output = tmp_path / "table.txt"
    call = ["digits", "--output", str(output), "--seeds"]
    assert compression.main([*call, "1"]) == 0
    first = read_scores(output.read_text())
    done = []
    score = compression.score
    monkeypatch.setattr(compression, "score", lambda run: done.append(run) or score(run))
    assert compression.main([*call, "2"]) == 0
    assert [run.seed for run in done] == [1]
    both = read_scores(output.read_text())
    assert both.keys() == first.keys() == set(compression._keys(compression.Run("digits", 0)))
    assert all(both[key][0] == first[key][0] and len(both[key]) == 2 for key in both)
    monkeypatch.setitem(compression.SETTINGS, "digits", _SHORT._replace(steps=4))
    with pytest.raises(SystemExit):
        compression.main([*call, "2"])


def test_a_run_repeats(short):
    once, again = (compression.score(compression.Run("digits", 0)) for _ in range(2))
    count = len(compression._QUANTITIES)
    for start in range(0, len(once), count):
        assert once[start:start + count - 2] == again[start:start + count - 2]  # but for the times


@pytest.mark.parametrize("method", compression.METHODS)
def test_magnitude_has_as_many_zeros_as_the_method_beside_it(short, method):
    torch.manual_seed(0)
    plain = compression.lenet(_SHORT)
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    noisy = compression._NOISY[method](plain)
    with torch.no_grad():
        for layer in noisy.modules():
            if hasattr(layer, "log_sigma2"):
                layer.log_sigma2[torch.rand(layer.weight.shape) > 0.5] = 20
            elif hasattr(layer, "log_s"):
                layer.log_s[:2] = 2
    zeros = compression._ZEROS[method](noisy, start)
    if method == "sparse":
        assert sum(int(zero.sum()) for zero in zeros.values()) == sum(
            int((~layer.keep).sum()) for layer in noisy.modules() if hasattr(layer, "keep")) > 0
        assert max(start[name].abs()[zero].max() for name, zero in zeros.items() if zero.any()) <= min(
            start[name].abs()[~zero].min() for name, zero in zeros.items() if not zero.all())
    else:
        assert {name: int(zero.sum()) for name, zero in zeros.items()} == {
            name: 2 for layer in ("0", "3", "7") for name in (f"{layer}.weight", f"{layer}.bias")}
    model = compression.lenet(_SHORT)
    compression._set_zero(model, zeros)
    assert all((model.get_parameter(name)[zero] == 0).all() for name, zero in zeros.items())


def test_the_network_for_mnist_is_that_of_the_papers():
    model = compression.lenet(compression.SETTINGS["mnist"])
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for name, p in model.named_parameters() if "weight" in name) == 430_500


def test_the_table_of_the_book_is_that_of_the_settings():
    text = measured("compression")
    assert tuple(line.partition(sign)[2] for line, sign in zip(text.splitlines()[1:3], ("; ", "# "), strict=True)
                 ) == compression._about("digits")
    scores = read_scores(text)
    assert set(scores) == set(compression._keys(compression.Run("digits", 0)))
    assert len({frozenset(values) for values in scores.values()}) == 1
    strengths = compression.SETTINGS["digits"].strengths
    for method, name in compression.METHODS.items():
        for strength in strengths[method]:
            for quantity in ("weights that are not zero",) if method == "sparse" else (
                    "units of conv1", "units of conv2", "units of fc1"):
                one, other = (scores[quantity, which, strength, "-"] for which in (name, compression._BESIDE[method]))
                assert all(abs(one[seed] - other[seed]) <= 0.05 * one[seed] for seed in one)
