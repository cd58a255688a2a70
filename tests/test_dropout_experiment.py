"""The program that trains one network several times."""

from __future__ import annotations

import csv
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import dropoutlib
from dropoutlib.experiments import dropout
from dropoutlib.experiments.__main__ import EXPERIMENTS
from dropoutlib.experiments.__main__ import main as experiments
from dropoutlib.experiments.dropout import METHODS, Settings, main, network
from dropoutlib.experiments.networks import rate_of

QUICK = ["--epochs", "1", "--batch-size", "500"]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_row_a_run_and_the_mean_as_the_document_prints_it(tmp_path, capsys) -> None:
    file = tmp_path / "table.csv"
    assert main(["--dropout", "0.4", "--max_norm", "25", "--runs", "3", "--output", str(file), *QUICK]) == 0
    table, printed = rows(file), capsys.readouterr().out
    assert [row["seed"] for row in table] == ["0", "1", "2"] and len({row["accuracy"] for row in table}) > 1
    accuracies = torch.tensor([100 * float(row["accuracy"]) for row in table])
    assert printed == f"mean accuracy (3 runs): {accuracies.mean():.3g} +/- {accuracies.std():.3g}\n"
    first = table[0]
    assert (first["dropout"], first["max_norm"], first["torch"]) == ("0.4", "25", torch.__version__)
    assert 0 < float(first["calibration"]) < 1 and float(first["loss"]) > 0 and float(first["seconds"]) > 0
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch) -> None:
    file, done = tmp_path / "table.csv", []
    score = dropout.score
    monkeypatch.setattr(dropout, "score", lambda run: done.append(run) or score(run))
    for more in (["--runs", "2"], ["--runs", "3"], ["--runs", "2", "--dropout", "0.5"], ["--runs", "3"]):
        assert main([*more, "--output", str(file), *QUICK]) == 0
    assert [(run.seed, run.settings.dropout) for run in done] == [(0, 0), (1, 0), (2, 0), (0, 0.5), (1, 0.5)]
    assert len(rows(file)) == 5


def test_killed_half_way_it_goes_on(tmp_path) -> None:
    """What was finished is kept, the rest is done at the next start, and gives what one start gives."""
    file, whole = tmp_path / "table.csv", tmp_path / "whole.csv"
    command = ["--runs", "4", "--epochs", "4"]
    program = subprocess.Popen([sys.executable, "-m", "dropoutlib.experiments", "dropout", *command, "--output",
                                str(file)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not file.exists() and program.poll() is None:
        time.sleep(0.05)
    program.send_signal(signal.SIGKILL)
    program.wait()
    kept = rows(file)
    assert 1 <= len(kept) < 4, "killed too late"
    assert main([*command, "--output", str(file)]) == main([*command, "--output", str(whole)]) == 0
    assert rows(file)[:len(kept)] == kept
    for one, other in zip(rows(file), rows(whole), strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


def test_threads_and_processes_leave_the_numbers(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()  # a process of its own has the sizes of fast paths that pay, and not those of tests
    tables = []
    for jobs, threads in (("1", 1), ("2", 2)):
        torch.set_num_threads(threads)
        file = tmp_path / f"{jobs}.csv"
        assert main(["--runs", "2", "--jobs", jobs, "--dropout", "0.2", "--output", str(file), *QUICK]) == 0
        tables.append(sorted((row["seed"], row["accuracy"], row["loss"]) for row in rows(file)))
    assert tables[0] == tables[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method) -> None:
    takes_rate = rate_of(method) is not None
    settings = Settings(method=method, dropout=0.3 if takes_rate else 0.0, epochs=1, batch_size=500)
    model = network(settings, 8)
    assert any(type(part).__name__ == method for part in model.modules())
    outcome = dropout.score(dropout.Run(settings, 0))
    assert 0 <= outcome.accuracy <= 1 and all(math.isfinite(value) for value in outcome)


def test_noise_that_is_learned_adds_its_divergence(monkeypatch) -> None:
    asked = []
    divergence = dropoutlib.kl_divergence
    monkeypatch.setattr(dropoutlib, "kl_divergence", lambda model: asked.append(1) or divergence(model))
    dropout.score(dropout.Run(Settings(method="SparseVariationalLinear", epochs=1, batch_size=500), 0))
    assert len(asked) == 2
    dropout.score(dropout.Run(Settings(dropout=0.3, epochs=1, batch_size=500), 0))
    assert len(asked) == 2


def test_the_norm_is_held(monkeypatch) -> None:
    trained: list[torch.nn.Module] = []
    fit = dropout.fit
    monkeypatch.setattr(dropout, "fit", lambda *given, **named: trained.append(fit(*given, **named)) or trained[-1])
    dropout.score(dropout.Run(Settings(max_norm=0.5, epochs=2), 0))
    assert max(part.weight.flatten(1).norm(dim=1).max().item() for part in trained[0].modules()
               if hasattr(part, "weight")) <= 0.5 + 1e-5


def test_dead_units_are_counted(monkeypatch) -> None:
    made = dropout.network

    def network(settings: Settings, side: int) -> torch.nn.Sequential:
        model = made(settings, side)
        with torch.no_grad():
            for part in (model.conv1, model.conv2, model.hidden):
                torch.nn.init.zeros_(part.weight)
                torch.nn.init.ones_(part.bias)
            model.hidden.bias[:16] = -1     # 16 of 8 + 16 + 64
        return model

    monkeypatch.setattr(dropout, "network", network)
    monkeypatch.setattr(dropout, "he_normal", lambda model: model)
    assert dropout.score(dropout.Run(Settings(epochs=1, learning_rate=1e-9), 0)).dead == pytest.approx(16 / 88)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--dropout", "1.5"], "argument --dropout: has to be a number between 0 and 1, but got '1.5'"),
    (["--max-norm", "-1"], "argument --max-norm/--max_norm: has to be a positive number, but got '-1'"),
    (["--runs", "0"], "argument --runs: has to be a whole number of at least 1"),
    (["--method", "VariationalLSTM"], "invalid choice: 'VariationalLSTM'"),
    (["--method", "SparseVariationalLinear", "--dropout", "0.2"], "SparseVariationalLinear has no rate to be set"),
    (["--method", "SpatialDropout2d"], "SpatialDropout2d with --dropout 0 drops nothing"),
    (["--device", "moon"], "argument --device: 'moon' cannot be used: "),
    (["--output", "no/such/folder.csv"], "there is no folder no/such"),
    (["--output", "table.png"], "argument --output: has to be another file than the picture beside it"),
    (["--method", "FastDropoutLinear", "--dropout", "1"], "less than 1")])
def test_bad_settings_are_refused_before_anything_trains(arguments, words, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dropout, "score", None)
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_a_table_of_something_else_is_left_alone(tmp_path, capsys) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit):
        main(["--output", str(file)])
    assert "is no table of this program" in capsys.readouterr().err and file.read_text() == "a,b\n1,2\n"
    file.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SystemExit):
        main(["--output", str(file)])
    assert "table.csv is no table of this program" in capsys.readouterr().err


def test_a_rate_of_many_digits_is_found_again(tmp_path, capsys) -> None:
    file = tmp_path / "table.csv"
    command = ["--runs", "1", "--output", str(file), *QUICK, "--max-norm", "2.1234567", "--learning-rate", "0.01234567"]
    for rate, missing in (("0.3333333", 1), ("0.3333333", 0), ("0.333333", 1)):
        assert main([*command, "--dropout", rate]) == 0
        assert f"{missing} of 1 runs are missing" in capsys.readouterr().err
    assert [row["dropout"] for row in rows(file)] == ["0.3333333", "0.333333"]


def test_a_table_that_ends_within_a_row_is_gone_on_with(tmp_path, capsys) -> None:
    file = tmp_path / "table.csv"
    command = ["--runs", "2", "--output", str(file), *QUICK]
    assert main(command) == 0
    whole = rows(file)
    first, second, _ = file.read_text().rpartition("digits,")
    file.write_text(first + second + "Drop")
    capsys.readouterr()
    assert main(command) == 0
    assert "mean accuracy (2 runs): " in capsys.readouterr().out
    file.write_text(first + second + second.splitlines()[-1].rpartition(",")[0] + ",")
    assert main(command) == 0 and main(command) == 0
    assert "0 of 2 runs are missing" in capsys.readouterr().err
    assert {**rows(file)[-1], "seconds": ""} == {**whole[-1], "seconds": ""}
    file.write_text("")
    assert main(["--runs", "1", "--output", str(file), *QUICK]) == 0
    assert len(rows(file)) == 1 and "+/-" not in capsys.readouterr().out   # one run has no spread


def test_mnist_without_network_says_so(monkeypatch, capsys, tmp_path) -> None:
    from sklearn import datasets

    from dropoutlib.experiments import data

    def fetch(*given: object, **named: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    data.mnist.cache_clear()
    with pytest.raises(SystemExit):
        main(["--data", "mnist", "--output", str(tmp_path / "table.csv")])
    assert "MNIST is not in" in (said := capsys.readouterr().err) and "no route to host" in said


def test_experiments_by_name(capsys) -> None:
    for arguments, words in ((["--help"], EXPERIMENTS), (["dropout", "--help"], ["examples:", "--max-norm"])):
        with pytest.raises(SystemExit) as stop:
            experiments(arguments)
        printed = capsys.readouterr().out
        assert stop.value.code == 0 and all(word in printed for word in words)
    with pytest.raises(SystemExit):
        experiments(["cooking"])


def test_a_cluster_gives_what_processes_give(tmp_path) -> None:
    distributed = pytest.importorskip("distributed")
    command = ["--runs", "3", *QUICK, "--output"]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert main([*command, str(tmp_path / "cluster.csv"), "--cluster", cluster.scheduler_address]) == 0
    assert main([*command, str(tmp_path / "here.csv")]) == 0
    here, there = (sorted((row["seed"], row["accuracy"], row["loss"]) for row in rows(tmp_path / name))
                   for name in ("here.csv", "cluster.csv"))
    assert here == there and len(here) == 3


def test_a_cluster_that_is_not_there_is_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(dropout, "_PATIENCE", 0.1)
    with pytest.raises(SystemExit):
        main(["--runs", "1", *QUICK, "--output", str(tmp_path / "t.csv"), "--cluster", "tcp://127.0.0.1:9"])
    assert "no Dask cluster at 'tcp://127.0.0.1:9'" in capsys.readouterr().err


def test_processes_of_torchrun_train_one_network(tmp_path) -> None:
    tables = []
    for name in ("one.csv", "other.csv"):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
             "dropoutlib.experiments", "dropout", "--runs", "2", "--dropout", "0.3", "--max-norm", "3", *QUICK,
             "--epochs", "4", "--output", str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("mean accuracy (2 runs)") == 1
        tables.append(rows(tmp_path / name))
    assert [row["processes"] for row in tables[0]] == ["2", "2"] and float(tables[0][0]["accuracy"]) > 0.2
    assert [{**row, "seconds": ""} for row in tables[0]] == [{**row, "seconds": ""} for row in tables[1]]


def test_the_grid_of_rates_and_norms(tmp_path) -> None:
    from dropoutlib.experiments import lenet
    from dropoutlib.experiments.paired import read_scores

    file = tmp_path / "lenet.txt"
    assert lenet.main(["--seeds", "1", "--epochs", "1", "--rates", "0.05", "--output", str(file)]) == 0
    scores = read_scores(file.read_text())
    settings = [key for key in scores if key[3] == "accuracy"]
    assert len(settings) == 3 * 14 and len(scores) == 3 * 28
    assert {key[2] for key in settings if key[1] == "no max-norm"} == set(lenet.DROPOUT)
    key = ("learning rate 0.05", "max-norm 25", 0.4)
    outcome = dropout.score(dropout.Run(Settings(dropout=0.4, max_norm=25, epochs=1), 0))
    assert scores[*key, "accuracy"][0] == pytest.approx(outcome.accuracy, abs=1e-4)
    assert scores[*key, "dead units"][0] == pytest.approx(outcome.dead, abs=1e-4)


def test_the_committed_grid_is_whole_and_its_runs_can_be_done_again() -> None:
    from dropoutlib.experiments import lenet, measured
    from dropoutlib.experiments.paired import read_scores

    scores = read_scores(measured("lenet"))
    assert len(scores) == 2 * 14 * (len(lenet.RATES) + len(lenet.RECTIFIED))
    assert all(len(values) == 10 for values in scores.values())
    accuracy, dead = lenet.score(lenet.Run(0.05, 0.4, 25.0, 0), epochs=20)
    key = ("learning rate 0.05", "max-norm 25", 0.4)
    assert scores[*key, "accuracy"][0] == pytest.approx(accuracy, abs=0.02)    # other processors round otherwise
    assert scores[*key, "dead units"][0] == pytest.approx(dead, abs=0.05)


def test_rectified_scores_are_behind_the_last_layer_and_count_among_the_dead(monkeypatch) -> None:
    from dropoutlib.experiments import lenet

    model = lenet.rectified(Settings(dropout=0.3), 8)
    assert [name for name, _ in model.named_children()][-2:] == ["output", "scores"] and model.noise3.p == 0.3
    assert (model(torch.rand(50, 64)) >= 0).all()
    settings = Settings(epochs=1, learning_rate=1e-9)

    def silent(settings: Settings, side: int) -> torch.nn.Sequential:
        model = lenet.rectified(settings, side)
        with torch.no_grad():
            model.output.bias -= 100
        return model

    plain, dead = (dropout.score(dropout.Run(settings, 0), build).dead for build in (lenet.rectified, silent))
    assert dead * 98 == pytest.approx(plain * 98 + 10, abs=5)     # scores may be zero before they are silenced
