"""The experiment on where dropout goes, and its table."""

from pathlib import Path

import pytest
import torch

from dropoutlib import Dropout
from dropoutlib.experiments import networks, paired, placement

COMMITTED = Path(__file__).parents[1] / "book" / "convolutional" / "measured_placement.txt"
NOISE = networks.NOISE


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", networks.CNN)
def test_dropout_lies_where_the_placement_says(place, noise, batch_norm):
    model = networks.cnn(place, noise, 0.3, batch_norm)
    names = [name for name, _ in model.named_children()]
    after = networks.CNN[place].split()
    assert [name for name in names if name.startswith("drop")] == [f"drop_{name}" for name in after]
    for name in after:
        layer = model.get_submodule(f"drop_{name}")
        assert names.index(f"drop_{name}") == names.index(name) + 1
        assert type(layer) is (Dropout if name == "relu3" else NOISE[noise])
        assert layer.p == 0.3
    assert model(torch.rand(3, 64)).shape == (3, 10)


def test_places_are_in_the_order_of_their_names():
    order = [name for name, _ in networks.cnn("before pooling", batch_norm=True).named_children()]
    assert order[1:6] == ["conv1", "norm1", "relu1", "drop_relu1", "pool1"]
    order = [name for name, _ in networks.cnn("before batch norm", batch_norm=True).named_children()]
    assert order[1:4] == ["conv1", "drop_conv1", "norm1"]
    order = [name for name, _ in networks.cnn("everywhere").named_children()]
    assert order[order.index("drop_pool2") + 1] == "flatten"
    assert order[order.index("drop_relu3") + 1] == "output"


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", networks.UNET)
def test_dropout_lies_in_the_blocks_of_the_u_net_that_the_placement_names(place, noise):
    model = networks.UNet(place, noise, 0.3)
    found = {name for name, block in model.blocks.items() if any(isinstance(layer, NOISE[noise]) for layer in block)}
    assert found == set(networks.UNET[place].split())
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)


def test_initial_weights_do_not_depend_on_the_placement():
    states = []
    for place in networks.CNN:
        torch.manual_seed(0)
        states.append(list(networks.cnn(place).parameters()))
    assert all(torch.equal(a, b) for other in states for a, b in zip(states[0], other, strict=True))


def test_segmentation_data_are_a_split_with_noise_of_their_own():
    images, masks, test, truth = placement.segmentation(10, seed=0)
    assert images.shape == masks.shape == (10, 1, 16, 16)
    assert test.shape == truth.shape == (400, 1, 16, 16)
    assert set(masks.unique().tolist()) == {0, 1}
    assert torch.equal(images, placement.segmentation(10, seed=0)[0])
    assert not torch.equal(images, placement.segmentation(10, seed=1)[0])


def test_a_short_run_is_recorded_resumed_and_read_back(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(placement, "UNET", {"none": "", "encoder": "encoder1 encoder2"})
    monkeypatch.setattr(placement, "CNN", {"none": "", "before batch norm": "conv1 conv2", "between modules": "pool1"})
    arguments = ["--seeds", "2", "--steps", "2", "--labels", "50", "--records", str(tmp_path / "records.jsonl")]
    assert placement.main(arguments) == 0
    first = capsys.readouterr().out
    rows = paired.read_table(first)
    assert first.startswith("# python -m dropoutlib.experiments.placement --seeds 2")
    assert rows == paired.read_table(paired.write_table(rows))
    names = {"CNN", "CNN with batch norm", "U-Net", "U-Net, He weights"}
    assert {row.network for row in rows} == names | {f"{name}, among places" for name in names} | {
        "batch norm re-estimated"}
    assert all(row.all_low <= row.low <= row.gain <= row.high <= row.all_high for row in rows)
    records = tmp_path / "records.jsonl"
    text = records.read_text()
    records.write_text(text[:-20])  # the last line broke off
    assert placement.main(arguments) == 0
    assert capsys.readouterr().out == first
    assert sorted(records.read_text().splitlines()) == sorted(text.splitlines())
    monkeypatch.setattr(placement, "score", None)  # nothing is left to run
    assert placement.main(arguments) == 0


def test_a_run_that_fails_loses_nothing_else(tmp_path, capsys):
    def score(run):
        return {"run": run, "score": 1 / run[0]}

    results = paired.finish([(0, 1), (2, 3)], score, tmp_path / "records.jsonl")
    assert results == [{"run": (2, 3), "score": 0.5}]
    assert "(0, 1): ZeroDivisionError" in capsys.readouterr().err


def test_intervals_are_those_of_students_t():
    a, b = ("net", "-", 0.0, "none"), ("net", "maps", 0.5, "there")
    rows = paired.compare({a: {0: 1.0, 1: 1.0, 2: 1.0, 3: 9.0}, b: {0: 2.0, 1: 3.0, 2: 4.0}}, lambda key: a)
    assert rows[0].gain == rows[0].low == 0
    assert rows[1].score == pytest.approx(3) and rows[1].gain == pytest.approx(2)  # gains 1, 2, 3: deviation 1
    assert rows[1].high - rows[1].gain == pytest.approx(4.302653 / 3**0.5)  # 97.5 % point, two degrees of freedom
    assert rows[1].all_low == rows[1].low  # a single comparison


def test_long_numbers_are_read_back():
    row = paired.Row("net, among places", "elements", 0.25, "between dense layers", 0.5, -12.25, -1000.5, 9, -1e6, 1e6)
    assert paired.read_table("# comment\n" + paired.write_table([row])) == [row]


def test_the_committed_table_is_complete():
    text = COMMITTED.read_text()
    rows = paired.read_table(text)
    assert "--seeds" in text or text.startswith("# python -m dropoutlib.experiments.placement")
    assert {row.placement for row in rows if row.network == "CNN with batch norm"} == set(networks.CNN)
    assert {row.placement for row in rows if row.network == "U-Net"} == set(networks.UNET)
