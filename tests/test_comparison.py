"""Every method under one protocol: where the layers lie, what is chosen by what, and the tables."""

import math

import pytest
import torch
from torch import nn

import dropoutlib
from dropoutlib.experiments import comparison, measured, paired
from dropoutlib.experiments.comparison import COMBINATIONS, METHODS, REGIMES, Run, chosen, network, split, strengths
from dropoutlib.experiments.networks import DENSE, LENET, dense, facts_of, lenet, put

EVERY = [(regime, method) for regime in ("dense, few labels", "convolutional, few labels", "recurrent, few labels")
         for method in (*METHODS[REGIMES[regime].network], *COMBINATIONS[REGIMES[regime].network])]
LAYERS = {layer.name for row in dropoutlib.catalogue().values() for layer in row.facts}


@pytest.mark.parametrize(("regime", "method"), EVERY)
def test_a_network_has_the_layers_of_its_methods_and_the_weights_of_the_one_without(regime, method) -> None:
    def weights(model: nn.Module) -> dict[str, torch.Tensor]:
        return {name.replace("module.", "").replace("network.lstm.", ""): value.detach()
                for name, value in model.named_parameters()}

    torch.manual_seed(0)
    plain = weights(network(Run(regime, "none", 0, 0.1, 0)))
    torch.manual_seed(0)
    model = network(Run(regime, method, 0, 0.1, 0))
    found = {type(layer).__name__ for layer in model.modules()}
    wanted = {part.removesuffix(", Monte Carlo") for part in method.split(" + ")} & LAYERS - {"MaxNorm"}
    assert wanted <= found, found
    own = weights(model)
    assert plain.keys() <= own.keys()
    assert all(torch.equal(plain[name], own[name]) for name in plain)
    assert model(torch.rand(3, 64)).shape == (3, 10)


def test_what_drops_comes_behind_what_is_there_and_what_has_weights_takes_them_over() -> None:
    model = put("GaussianDropout", put("Dropout", dense(8), DENSE, p=0.3), DENSE, p=0.2)
    for place in (model.noise1, model.noise2):
        assert [(type(layer).__name__, layer.p) for layer in place] == [("Dropout", 0.3), ("GaussianDropout", 0.2)]
    model = lenet(8)
    weight = model.conv2.weight
    assert put("DropConnectConv2d", model, LENET, p=0.3).conv2.weight is weight and model.conv2.p == 0.3


@pytest.mark.parametrize(("method", "words"), [
    ("VariationalLSTM", "has to be one for which the network has a place, but got 'VariationalLSTM'"),
    ("LockedDropout", "has to be one for which the network has a place"), ("Blackout", "but got 'Blackout'")])
def test_a_method_without_a_place_is_refused(method, words) -> None:
    with pytest.raises(ValueError, match=words):
        put(method, dense(8), DENSE)


def test_pools_without_noise_are_those_of_the_methods_that_bring_them_along() -> None:
    x = torch.rand(4, 64)
    for method, noisy in (("average pooling", "AvgPoolDropout2d"), ("expected pooling", "MaxPoolDropout2d")):
        models = []
        for name in (method, noisy):
            torch.manual_seed(0)
            models.append(network(Run("convolutional, few labels", name, 0, 0.1, 0)))
        expected = models[1].eval()(x)
        torch.testing.assert_close(models[0].train()(x), expected)
        torch.testing.assert_close(models[0].eval()(x), expected)


def test_what_is_chosen_by_is_not_what_is_tested_on() -> None:
    for seed in (0, 1):
        choose, final = split(REGIMES["dense, wrong labels"], seed)
        assert torch.equal(choose.train_inputs, final.train_inputs) and len(choose.train_labels) == 300
        assert torch.equal(choose.train_labels, final.train_labels)
        assert (len(choose.test_labels), len(final.test_labels)) == (600, 897)
        parts = [{tuple(row) for row in part.tolist()} for part in
                 (choose.train_inputs, choose.test_inputs, final.test_inputs)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    clean, _ = split(REGIMES["dense, wrong labels"]._replace(wrong=0.0), 0)
    noisy, _ = split(REGIMES["dense, wrong labels"], 0)
    assert 0.2 < (clean.train_labels != noisy.train_labels).float().mean() < 0.35    # of 30 %, a tenth is right by luck


def test_every_method_has_the_same_budget_but_those_without_a_strength() -> None:
    runs = list(comparison.choices([0]))
    for regime, (kind, *_) in REGIMES.items():
        for method in (*METHODS[kind], *COMBINATIONS[kind]):
            tried = {run[2:4] for run in runs if run[:2] == (regime, method)}
            assert len(tried) == (2 if method in ("none", "StochasticPool2d", "average pooling") else 6), method
            assert len({size for _, size in tried}) == 2
    assert strengths("Dropout") == strengths("Dropout, Monte Carlo") == (0.1, 0.3, 0.5)
    assert strengths("ConcreteDropout") == (0.01, 0.1, 1.0)


def test_the_best_is_chosen_and_of_equals_the_first() -> None:
    scores = {("r", "a", 0.0, "step size 0.1"): {0: 0.5, 1: 0.7}, ("r", "a", 2.0, "step size 0.3"): {0: 0.7, 1: 0.5},
              ("r", "b", 0.0, "step size 0.1"): {0: 0.1}, ("r", "b", 1.0, "step size 0.3"): {0: 0.2}}
    assert chosen(scores) == {("r", "a"): (0, 0.1), ("r", "b"): (1, 0.3)}
    assert comparison.runs({("r", "b"): (1, 0.3)}, [4]) == [Run("r", "b", 1, 0.3, 4)]


def test_a_pair_is_compared_with_the_better_of_the_two() -> None:
    means = {"none": 0.5, "a": 0.6, "b": 0.8, "a + b": 0.9}
    scores = {("r", name, 0.0, measure): {0: mean, 1: mean} for name, mean in means.items()
              for measure in ("accuracy", "loss")}
    gains = {(row.network, row.noise, row.placement): round(row.gain, 6) for row in comparison.table(scores)}
    assert gains["r", "a + b", "accuracy"] == 0.4 and gains["r, over b", "a + b", "loss"] == 0.1
    assert len(gains) == 2 * (3 + 1)


@pytest.fixture
def short(monkeypatch) -> None:
    monkeypatch.setattr(comparison, "_STEPS", 3)
    monkeypatch.setattr(comparison, "_SAMPLES", 2)
    monkeypatch.setattr(comparison, "REGIMES", {"dense, few labels": REGIMES["dense, few labels"]._replace(units=8)})
    monkeypatch.setattr(comparison, "METHODS", {"dense": ("none", "Dropout", "Dropout, Monte Carlo", "MaxNorm",
                                                          "weight decay", "LogNormalDropout")})
    monkeypatch.setattr(comparison, "COMBINATIONS", {"dense": ("Dropout + MaxNorm",)})


def test_a_short_comparison_chooses_trains_and_goes_on_where_it_was(short, tmp_path, monkeypatch) -> None:
    choice, output, costs, asked = (*(tmp_path / f"{name}.txt" for name in ("choice", "table", "cost")), [])
    score = comparison.score
    monkeypatch.setattr(comparison, "score", lambda run, **named: asked.append(run) or score(run, **named))
    monkeypatch.setattr(comparison, "cost", lambda run: [1.0, 2.0, 3.0])
    arguments = ["--seeds", "2", "--choice", str(choice), "--output", str(output), "--cost", str(costs)]
    assert comparison.main(arguments) == 0
    number = len(asked)
    assert number == 2 * (2 + 6 * 6) + 2 * (7 + 1)
    found, scores = (paired.read_scores(file.read_text()) for file in (choice, output))
    assert all(set(values) == {2, 3} for values in found.values())       # other seeds than those that are compared
    assert all(set(values) == {0, 1} for values in scores.values()) and len(scores) == (7 + 1) * 3
    best = chosen(found)
    assert {(regime, method, int(strength)) for regime, method, strength, _ in scores} == {
        *((*key, strength) for key, (strength, _) in best.items()),
        ("dense, few labels", "none, other step size", 0)}
    assert {run.step_size for run in asked if run.seed < 2 and run.method.startswith("none")} == {0.03, 0.1}
    timed = paired.read_scores(costs.read_text())
    assert {key[1] for key in timed} == {key[1] for key in found} - {"none"} and len(timed) == 6 * 3
    assert all(set(values) == set(range(5)) for values in timed.values())
    assert comparison.main(arguments) == 0 and len(asked) == number


def test_a_cost_is_a_multiple_of_that_without_dropout(monkeypatch) -> None:
    def seconds(work, x, repetitions):      # of a clock that knows what it is asked
        work()
        return 1.0 if work.args[0].method == "none" else 3.0

    monkeypatch.setattr(comparison, "_TIMED", 2)
    monkeypatch.setattr(comparison, "seconds_of", seconds)
    wide = Run("dense, wide", "none", 0, 0.1, 0)
    assert comparison.cost(wide) == [1, 1, 1]
    assert comparison.cost(wide._replace(method="weight decay")) == [3, 3, 1]
    update, prediction, memory = comparison.cost(wide._replace(method="Dropout"))
    assert update == prediction == 3 and 1.05 < memory < 2      # two masks


def test_the_divergence_is_weighted_and_weights_decay(short, monkeypatch) -> None:
    asked, given = [], {}
    divergence, fit = dropoutlib.kl_divergence, comparison.fit
    monkeypatch.setattr(dropoutlib, "kl_divergence", lambda model: asked.append(1) or divergence(model))
    monkeypatch.setattr(comparison, "fit", lambda *args, **named: given.update(named) or fit(*args, **named))
    comparison.score(Run("dense, few labels", "LogNormalDropout", 1, 0.1, 0), is_choice=True)
    assert len(asked) == 3 and given["weight_decay"] == 0
    comparison.score(Run("dense, few labels", "weight decay", 2, 0.1, 0), is_choice=True)
    assert len(asked) == 3 and given["weight_decay"] == strengths("weight decay")[2]


def test_an_outcome_that_is_no_number_is_refused(short, monkeypatch) -> None:
    class Broken(nn.Linear):
        def forward(self, input):
            return super().forward(input) * math.nan

    monkeypatch.setattr(comparison, "network", lambda run: Broken(64, 10))
    with pytest.raises(ValueError, match="not finite"):
        comparison.score(Run("dense, few labels", "none", 0, 0.1, 0), is_choice=False)


def test_the_committed_tables_are_whole_and_belong_together() -> None:
    choice, scores = paired.read_scores(measured("comparison_choice")), paired.read_scores(measured("comparison"))
    assert set(choice) == {key for run in comparison.choices([0]) for key in comparison._choice_key(run)}
    wanted = {key for run in comparison.runs(chosen(choice), [0]) for key in comparison._keys(run)}
    assert set(scores) == wanted
    assert all(set(values) == set(range(10)) for values in scores.values())
    assert all(set(values) == {10, 11} for values in choice.values())
    costs = paired.read_scores(measured("comparison_cost"))
    assert set(costs) == {key for run in comparison.timed([0]) for key in comparison._cost_keys(run)}
    assert all(set(values) == set(range(5)) for values in costs.values())


@pytest.mark.parametrize(("regime", "method"), [("dense, few labels", "Dropout"), ("recurrent, few labels", "none"),
                                                ("convolutional, few labels", "SpatialDropout2d + Cutout")])
def test_committed_runs_can_be_done_again(regime, method) -> None:
    strength, size = chosen(paired.read_scores(measured("comparison_choice")))[regime, method]
    scores, again = paired.read_scores(measured("comparison")), Run(regime, method, strength, size, 0)
    for key, value in zip(comparison._keys(again), comparison.score(again, is_choice=False), strict=True):
        assert scores[key][0] == pytest.approx(value, abs=0.03)      # other processors round otherwise


def test_facts_are_those_of_the_table() -> None:
    assert facts_of("Cutout").law == "place"
    with pytest.raises(ValueError, match="but got 'none'"):
        facts_of("none")
