"""The experiments on dropout in an LSTM, and their tables."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dropoutlib.experiments import measured, paired, recurrent

EXPERIMENTS = list(recurrent.SCHEMES)
SHORT = {"memory": recurrent.Setting(2, (2,), 6, 4, 6, 0.02), "language": recurrent.Setting(4, (1, 4), 6, 4, 6, 0.01),
         **dict.fromkeys(("once", "again"), recurrent.Setting(2, (2,), 6, 4, 6, 0.01))}


def network(experiment, noise="-", p=0.0, placement="none"):
    letters = experiment != "memory"
    return recurrent.Network(27 if letters else 2, 6, 27 if letters else 1, noise, placement, p, letters=letters)


def example(experiment):
    return torch.randn(5, 3, 2) if experiment == "memory" else torch.randint(27, (5, 3))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(recurrent, "SETTINGS", SHORT)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_all_schemes_start_from_the_same_weights_and_are_noisy_in_training_only(experiment):
    inputs, states = example(experiment), []
    for noise, p, place in recurrent.SCHEMES[experiment]:
        torch.manual_seed(0)
        model = network(experiment, noise, p, place)
        states.append(list(model.parameters()))
        assert torch.equal(model(inputs), model(inputs)) == (noise == "-"), (noise, place)
        model.eval()
        assert torch.equal(model(inputs), model(inputs))
    assert all(torch.equal(a, b) for other in states for a, b in zip(states[0], other, strict=True))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_without_a_rate_every_scheme_is_the_plain_lstm(experiment):
    inputs = example(experiment)
    torch.manual_seed(0)
    expected = network(experiment)(inputs)
    for noise, _, place in recurrent.SCHEMES[experiment]:
        torch.manual_seed(0)
        torch.testing.assert_close(network(experiment, noise, 0.0, place)(inputs), expected)


def test_noise_around_the_lstm_is_where_the_placement_says():
    for noise, kind in recurrent._AROUND.items():
        both = network("language", noise, 0.3, "input and output")
        assert type(both.before) is type(both.after) is kind and both.before.p == both.after.p == 0.3
        behind = network("memory", noise, 0.3, "output")
        assert isinstance(behind.before, nn.Identity) and type(behind.after) is kind
    inside = network("language", "variational", 0.3, "input, state, output")
    assert isinstance(inside.before, nn.Identity) and isinstance(inside.after, nn.Identity)
    assert (inside.lstm.p_input, inside.lstm.p_hidden, inside.lstm.p_output) == (0.3, 0.3, 0.3)


def test_a_mask_a_step_forgets_as_the_powers_of_what_is_kept():
    torch.manual_seed(0)
    steps, p = 5, 0.25
    for is_inverted in (False, True):
        layer = recurrent.StepMaskLSTM(1, 1, p=p, is_inverted=is_inverted)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            layer.bias_ih_l0[1] = 50.0  # the forget gate is open: without noise, c stays what it is
        x, before = torch.zeros(steps, 40_000, 1), (torch.zeros(1, 40_000, 1), torch.ones(1, 40_000, 1))
        _, (_, c) = layer(x, before)
        kept = (1 - p)**steps
        assert c.unique().tolist() == pytest.approx([0.0, kept**-is_inverted])
        assert (c > 0).float().mean().item() == pytest.approx(kept, abs=0.01)
        _, (_, c) = layer.eval()(x, before)
        torch.testing.assert_close(c, torch.full_like(c, 1.0 if is_inverted else kept))


def test_the_sum_is_that_of_the_two_marked_numbers():
    inputs, sums = recurrent.adding(2000, 9, torch.Generator().manual_seed(0))
    values, marks = inputs.unbind(-1)
    assert inputs.shape == (9, 2000, 2) and sums.shape == (2000,)
    assert set(marks.unique().tolist()) == {0, 1}
    assert (marks[:4].sum(0) == 1).all() and (marks[4:].sum(0) == 1).all()
    assert (marks.sum(1) > 0).all() and values.abs().max() <= 1
    torch.testing.assert_close(sums, (values * marks).sum(0))
    assert sums.square().mean().sqrt().item() == pytest.approx(math.sqrt(2 / 3), rel=0.03)


def test_units_remember_from_one_step_to_all():
    model = recurrent._for_long_memory(recurrent.Network(2, 400, 1), 60)
    i, f, g, o = model.lstm.bias_ih_l0.chunk(4)
    assert torch.equal(i, -f)
    assert f.min() >= 0 and f.exp().max() <= 59 and f.exp().mean().item() == pytest.approx(30, abs=3)
    assert max(g.abs().max(), o.abs().max()) <= 400**-0.5  # as torch drew them


def test_the_text_is_english_of_this_python_in_two_parts():
    train, held_out = recurrent.prose()
    assert (len(train), len(held_out)) == (31885, 31604)
    assert torch.cat([train, held_out]).unique().tolist() == list(range(27))
    spelled = "".join(" abcdefghijklmnopqrstuvwxyz"[letter] for letter in train.tolist())
    assert spelled.startswith("function get close matches word possibilities n cutoff use sequencematcher to return")
    assert "  " not in spelled


def test_the_process_has_the_entropy_that_is_worked_out() -> None:
    chances = recurrent.process()
    torch.testing.assert_close(chances.sum(-1), torch.ones(27, 27))
    text = recurrent.babble(4000, 20, torch.Generator().manual_seed(0))
    first, second = (text[step] for step in (0, 1))
    after = text[2][(first == 20) & (second == 8)]      # th
    assert len(after) > 50
    assert (after == 5).float().mean().item() == pytest.approx(chances[20, 8, 5].item(), abs=0.15)
    uniform = -torch.where(chances > 0, chances * chances.log2(), 0.0).sum(-1)
    assert recurrent.entropy(text) == pytest.approx(uniform[text[:-2], text[1:-1]].mean().item(), abs=0.02)


def test_text_is_new_at_every_update_or_some_of_what_there_is(monkeypatch) -> None:
    monkeypatch.setattr(recurrent, "_SEQUENCES", 3)
    setting = recurrent.SETTINGS["once"]
    for data, most in (("once", 10 * 16), ("again", 3)):
        reader = recurrent._reader(recurrent.Run(data, "-", 0.0, "none", 0), setting, torch.Generator().manual_seed(0))
        inputs, following = zip(*(reader() for _ in range(10)), strict=True)
        assert inputs[0].shape == following[0].shape == (50, 16)
        assert torch.equal(inputs[0][1:], following[0][:-1])
        seen = {tuple(sequence) for batch in inputs for sequence in batch.T.tolist()}
        assert len(seen) == most


def test_another_text_is_refused(tmp_path):
    for name in recurrent._MODULES:
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text('"""Another text."""', encoding="utf-8")
    with pytest.raises(ValueError, match=r"the docstrings of Python 3.* are not those of the experiment"):
        recurrent.prose(str(tmp_path))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_short_run_is_recorded_resumed_and_read_back(experiment, short, tmp_path, monkeypatch):
    schemes = recurrent.SCHEMES[experiment]
    some = [*schemes[:2], schemes[-1], ("raw mask", 0.25, "cell, a step")]
    monkeypatch.setattr(recurrent, "SCHEMES", {experiment: some})
    output = tmp_path / "table.txt"
    arguments = [experiment, "--seeds", "2", "--output", str(output)]
    assert recurrent.main(arguments) == 0
    text = output.read_text()
    assert text.startswith(f"# python -m dropoutlib.experiments.recurrent {experiment} --seeds 2 --output")
    scores = paired.read_scores(text)
    assert {key for run in recurrent.runs(experiment, 2) for key in recurrent._keys(run)} == set(scores)
    assert all(list(values) == [0, 1] and min(values.values()) > 0 for values in scores.values())
    assert all(row.all_low <= row.low <= row.gain <= row.high <= row.all_high for row in recurrent.table(scores))
    *above, last, _ = text.split("\n")
    cells = last.split("  ")
    output.write_text("\n".join([*above, "  ".join([*cells[:-1], "-"]), ""]))  # one run is missing
    asked = []
    monkeypatch.setattr(recurrent, "score", lambda run, score=recurrent.score: asked.append(run) or score(run))
    assert recurrent.main(arguments) == 0
    assert len(asked) == 1 and asked[0].seed == 1
    assert output.read_text() == text
    assert recurrent.main(arguments) == 0 and len(asked) == 1  # nothing is left to run
    assert [path.name for path in tmp_path.iterdir()] == ["table.txt"]


def test_numbers_are_those_that_were_written():
    scores = {("a network", "a noise", p, "a place"): {0: 0.5} for p in (1 / 3, 0.333333, 1e-7 / 3, 0.0, 1.0)}
    scores["a network", "a noise", np.float64(2 / 3), "a place"] = {0: 0.5}
    assert paired.read_scores(paired.write_scores(scores)) == scores
    assert "  1  " in paired.write_scores(scores)


def test_a_table_that_is_not_whole_is_named(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recurrent, "SCHEMES", {"memory": recurrent.SCHEMES["memory"][:1]})
    output = tmp_path / "a table.txt"
    command = ["memory", "--seeds", "1", "--output", str(output)]
    assert recurrent.main(command) == 0
    text = output.read_text()
    assert f"--output '{output}'" in text.splitlines()[0]
    output.write_text("\n".join(text.splitlines()[:3]))
    with pytest.raises(SystemExit):
        recurrent.main(command)
    assert "is not whole: it has no rows" in capsys.readouterr().err
    output.write_text(text[:-12])
    with pytest.raises(SystemExit):
        recurrent.main(command)
    assert f"{output} is no table of scores, or is not whole: a row of" in capsys.readouterr().err


def test_long_names_stay_apart():
    scores = {("a network of many, many words", "recurrent dropout", 0.25, "in all of the places at once"): {0: 0.5}}
    assert paired.read_scores(paired.write_scores(scores)) == scores


def test_a_table_of_other_settings_is_not_mixed_with_these(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recurrent, "SCHEMES", {"memory": recurrent.SCHEMES["memory"][:1]})
    output = tmp_path / "table.txt"
    assert recurrent.main(["memory", "--seeds", "1", "--output", str(output)]) == 0
    monkeypatch.setattr(recurrent, "SETTINGS", {"memory": SHORT["memory"]._replace(steps=3)})
    with pytest.raises(SystemExit):
        recurrent.main(["memory", "--seeds", "2", "--output", str(output)])
    assert "is a table of something else" in capsys.readouterr().err


def test_a_run_that_fails_loses_nothing_else(tmp_path, monkeypatch, capsys):
    def score(run):
        return [1 / run.seed]

    monkeypatch.setattr(recurrent, "SCHEMES", {"memory": recurrent.SCHEMES["memory"][:1]})
    monkeypatch.setattr(recurrent, "score", score)
    output = tmp_path / "table.txt"
    assert recurrent.main(["memory", "--seeds", "3", "--output", str(output)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    [values] = paired.read_scores(output.read_text()).values()
    assert values == {1: 1.0, 2: 0.5}


def test_each_comparison_has_the_partner_that_it_names():
    adding, early, half, late = "adding, 60 steps", *(f"text, {number} updates" for number in (400, 600, 1200))
    naive, other = ("raw mask", 0.25, "cell, a step"), ("zoneout", 0.25, "state and cell, a step")
    means = {(adding, "-", 0.0, "none"): 0.1, (adding, *naive): 0.5, (adding, *other): 0.2,
             (early, "-", 0.0, "none"): 2.0, (early, *other): 2.1, (half, "-", 0.0, "none, half as long"): 2.2,
             (late, "-", 0.0, "none"): 2.4, (late, *other): 1.9}
    rows = recurrent.table({key: {0: mean, 1: mean} for key, mean in means.items()})
    gains = {(row.network, row.noise): pytest.approx(row.gain) for row in rows}
    assert gains == {(adding, "raw mask"): 0.4, (adding, "zoneout"): 0.1,
                     (f"{adding}, over a mask a step", "zoneout"): -0.3, (early, "zoneout"): 0.1,
                     (late, "zoneout"): -0.5, (f"{late}, over half as long", "zoneout"): -0.3}


def test_what_is_real_does_not_reach_zero_when_all_intervals_hold():
    key = "adding, 60 steps", "-", 0.0, "none"
    scores = {key: {0: 1.0, 1: 1.1, 2: 1.2}, (key[0], "raw mask", 0.25, "cell, a step"): {0: 2.0, 1: 2.101, 2: 2.202},
              (key[0], "zoneout", 0.25, "state and cell, a step"): {0: 1.1, 1: 1.0, 2: 1.3}}
    found = recurrent.real(recurrent.table(scores))
    assert [(row.network, row.noise) for row in found] == [
        (key[0], "raw mask"), (f"{key[0]}, over a mask a step", "zoneout")]


def test_importing_the_experiments_does_not_import_these():
    code = "import sys, dropoutlib.experiments; sys.exit('dropoutlib.experiments.recurrent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("experiment", "least"), [("memory", 6), ("language", 4), ("passes", 10)])
def test_the_committed_scores_are_those_that_the_program_asks_for(experiment, least):
    text = measured(experiment)
    first, versions, what = text.splitlines()[:3]
    program, _, said = first.partition(" --seeds ")
    assert program == f"# python -m dropoutlib.experiments.recurrent {experiment}"
    assert (versions.partition("; ")[2], what.removeprefix("# ")) == recurrent._about(experiment)
    assert versions.startswith("# torch ")
    scores = paired.read_scores(text)
    [seeds] = {tuple(values) for values in scores.values()}  # every line has a score of each seed
    assert seeds == tuple(range(len(seeds))) and len(seeds) >= least
    assert int(said or 6) == len(seeds)     # 6 if nothing is said
    assert set(scores) == {key for run in recurrent.runs(experiment, 1) for key in recurrent._keys(run)}
