"""The experiment of the chapter on sparse variational dropout, small, and its table."""

import torch
from torch import nn

from dropoutlib.experiments import measured, sparsity
from dropoutlib.experiments.paired import read_scores


def left(scores, method, seed):
    return [values[seed] for (_, name, _, row), values in scores.items() if name == method and "layer" in row]


def test_a_short_run_writes_a_table_that_can_be_read(tmp_path, monkeypatch) -> None:
    for name, value in (("_FIRST", 4), ("_MORE", 8), ("_LABELS", 100), ("_SIZES", (64, 8, 6, 10))):
        monkeypatch.setattr(sparsity, name, value)
    state = torch.random.get_rng_state()
    assert sparsity.main(["--seeds", "2", "--output", str(tmp_path / "table.txt")]) == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    scores = read_scores((tmp_path / "table.txt").read_text(encoding="utf-8"))
    assert {name for _, name, _, _ in scores} == set(sparsity.METHODS) and len(scores) == 5 * len(sparsity.METHODS)
    assert all(set(values) == {0, 1} for values in scores.values())
    assert left(scores, "none", 0) == [64 * 8, 8 * 6, 6 * 10]


def test_magnitude_leaves_as_many_weights_as_the_method_beside_it() -> None:
    scores = read_scores(measured("sparsity"))
    for seed in range(5):
        assert sum(left(scores, "magnitude", seed)) == sum(left(scores, "warm-up", seed)) > 0
        assert left(scores, "none", seed) == [19_200, 30_000, 1_000]


def test_pruning_takes_the_smallest_weights_of_all_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
        model[1].weight.copy_(torch.tensor([[0.5, 5.0]]))
    sparsity._prune(model, 4, 0.25)  # half of the way: 7/8 of them, 3.5, a whole number of 4
    assert model[0].weight.tolist() == [[0, 0], [0, -4]] and model[1].weight.tolist() == [[0, 5]]
    sparsity._prune(model, 0, 1.0)
    assert [int(kept.sum()) for kept in sparsity._kept(model)] == [1, 1]
