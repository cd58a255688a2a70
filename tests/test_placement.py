"""The experiment on where dropout goes, and its table."""


import pytest
import torch

from dropoutlib import Dropout
from dropoutlib.experiments import measured, networks, paired, placement

COMMITTED = measured("placement")
NOISE = networks.NOISE


@pytest.mark.parametrize("norm", [None, *networks.NORMS])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", networks.CNN)
def test_dropout_lies_where_the_placement_says(place, noise, norm):
    model = networks.cnn(place, noise, 0.3, norm)
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
    order = [name for name, _ in networks.cnn("before pooling", norm="group").named_children()]
    assert order[1:6] == ["conv1", "norm1", "relu1", "drop_relu1", "pool1"]
    order = [name for name, _ in networks.cnn("before norm", norm="batch").named_children()]
    assert order[1:4] == ["conv1", "drop_conv1", "norm1"]
    order = [name for name, _ in networks.cnn("everywhere").named_children()]
    assert order[order.index("drop_pool2") + 1] == "flatten"
    assert order[order.index("drop_relu3") + 1] == "output"


@pytest.mark.parametrize(("norm", "together"), [("batch", (0, 2, 3)), ("instance", (2, 3)), ("layer", (1, 2, 3))])
def test_norms_make_mean_zero_and_variance_one_of_what_their_names_say(norm, together):
    output = networks.NORMS[norm](8)(1 + torch.rand(5, 8, 6, 6))
    assert torch.allclose(output.mean(together), torch.tensor(0.0), atol=1e-5)
    assert torch.allclose(output.var(together, correction=0), torch.tensor(1.0), atol=1e-3)


def test_group_norm_has_four_groups_and_every_norm_a_scale_for_each_map():
    output = networks.NORMS["group"](8)(1 + torch.rand(5, 8, 6, 6)).reshape(5, 4, 2, 6, 6)
    assert torch.allclose(output.mean((2, 3, 4)), torch.tensor(0.0), atol=1e-5)
    assert all(make(8).weight.shape == (8,) for make in networks.NORMS.values())


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", networks.RESIDUAL)
def test_dropout_lies_in_the_branch_or_on_the_sum_as_the_placement_says(place, noise):
    model = networks.residual(place, noise, 0.3)
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, NOISE[noise])}
    numbers = range(1, 5)
    assert list(found) == {"none": [], "in the branch": [f"sum{i}.branch.drop_branch{i}" for i in numbers],
                           "on the sum": [f"drop_sum{i}" for i in numbers], "before flatten": ["drop_relu"]}[place]
    assert all(layer.p == 0.3 for layer in found.values())
    assert model(torch.rand(3, 64)).shape == (3, 10)


def test_a_residual_block_adds_its_input():
    block = networks.residual().get_submodule("sum2")
    input = torch.rand(2, 16, 4, 4)
    assert torch.equal(block(input), input + block.branch(input))
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(input), input)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", networks.UNET)
def test_dropout_lies_in_the_blocks_of_the_u_net_that_the_placement_names(place, noise):
    model = networks.UNet(place, noise, 0.3)
    found = {name for name, block in model.blocks.items() if any(isinstance(layer, NOISE[noise]) for layer in block)}
    assert found == set(networks.UNET[place].split())
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 1, 16, 16)


def test_dropout_across_leaves_the_way_down_alone():
    model = networks.UNet("across", "maps", 1.0)  # drops everything
    down = []
    model.blocks["bottleneck"].register_forward_hook(lambda module, inputs, output: down.append(output))
    image = torch.rand(1, 1, 16, 16)
    dropped, whole = model.train()(image), model.eval()(image)
    assert torch.equal(*down)
    assert not torch.equal(dropped, whole)


@pytest.mark.parametrize(("build", "places"), [(networks.cnn, networks.CNN), (networks.residual, networks.RESIDUAL),
                                               (networks.UNet, networks.UNET)])
def test_initial_weights_do_not_depend_on_the_placement(build, places):
    states = []
    for place in places:
        torch.manual_seed(0)
        states.append(list(build(place).parameters()))
    assert all(torch.equal(a, b) for other in states for a, b in zip(states[0], other, strict=True))


def test_segmentation_data_are_a_split_with_noise_of_their_own():
    images, masks, test, truth = placement.segmentation(10, seed=0)
    assert images.shape == masks.shape == (10, 1, 16, 16)
    assert test.shape == truth.shape == (400, 1, 16, 16)
    assert set(masks.unique().tolist()) == {0, 1}
    assert torch.equal(images, placement.segmentation(10, seed=0)[0])
    assert not torch.equal(images, placement.segmentation(10, seed=1)[0])


def test_a_short_run_is_recorded_resumed_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "PLACES", {
        "CNN with batch norm": ["none", "before norm", "after pooling"], "residual network": ["none", "on the sum"],
        "U-Net": ["none", "across"], "U-Net, He weights": ["none"]})
    output = tmp_path / "table.txt"
    arguments = ["--seeds", "2", "--steps", "2", "--labels", "50", "--output", str(output)]
    assert placement.main(arguments) == 0
    first = output.read_text()
    assert first.startswith("# python -m dropoutlib.experiments.placement --seeds 2")
    scores = paired.read_scores(first)
    assert {key[0] for key in scores} == {*placement.PLACES, "batch norm re-estimated"}
    assert all(list(values) == [0, 1] for values in scores.values())
    rows = placement.table(scores)
    assert all(row.all_low <= row.low <= row.gain <= row.high <= row.all_high for row in rows)
    monkeypatch.setattr(placement, "score", None)  # nothing is left to run
    assert placement.main(arguments) == 0
    assert output.read_text() == first


def test_another_rate_keeps_the_rows_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "PLACES", {"U-Net": ["none", "across"]})
    output = tmp_path / "table.txt"
    arguments = ["--seeds", "1", "--steps", "2", "--labels", "50", "--output", str(output), "--rates"]
    assert placement.main([*arguments, "0.2"]) == placement.main([*arguments, "0.5"]) == 0
    scores = paired.read_scores(output.read_text())
    assert [key[2] for key in scores if key[1] == "elements"] == [0.5, 0.2]


def test_a_rate_that_is_no_probability_is_refused_before_anything_runs(capsys):
    for rate in ("1.5", "x"):
        with pytest.raises(SystemExit):
            placement.main(["--seeds", "1", "--rates", rate])
        assert f"argument --rates: has to be a number between 0 and 1, but got '{rate}'" in capsys.readouterr().err


def test_intervals_are_those_of_students_t():
    a, b = {0: 1.0, 1: 1.0, 2: 1.0, 3: 9.0}, {0: 2.0, 1: 3.0, 2: 4.0}
    key = ("net", "maps", 0.5, "there")
    [row] = paired.compare({key: (b, a)})
    assert row[:4] == key
    assert row.score == pytest.approx(3) and row.gain == pytest.approx(2)  # gains 1, 2, 3: deviation 1
    assert row.high - row.gain == pytest.approx(4.302653 / 3**0.5)  # 97.5 % point, two degrees of freedom
    assert row.all_low == row.low  # a single comparison
    two = paired.compare({key: (b, a), ("net", "maps", 0.5, "here"): (a, b), ("net", "-", 0, "none"): ({0: 1.0}, a)})
    assert two[0].high - two[0].gain == row.high - row.gain
    assert two[0].all_high - two[0].gain == pytest.approx(6.205347 / 3**0.5)  # 98.75 % point
    assert len(two) == 2  # one seed is no comparison


def test_each_comparison_has_the_partner_that_it_names():
    net, anew = "CNN with batch norm", "batch norm re-estimated"
    means = {(net, "-", 0.0, "none"): 0.5, (net, "elements", 0.2, "before norm"): 0.6,
             (net, "elements", 0.2, "after pooling"): 0.9, (net, "elements", 0.2, "everywhere"): 0.3,
             (net, "maps", 0.2, "after pooling"): 0.65, (anew, "elements", 0.2, "before norm"): 0.8}
    rows = placement.table({key: {0: mean, 1: mean} for key, mean in means.items()})
    gains = {(row.network, row.noise, row.placement): pytest.approx(row.gain, abs=1e-6) for row in rows}
    assert gains == {
        (net, "elements", "before norm"): 0.1, (net, "elements", "after pooling"): 0.4,
        (net, "elements", "everywhere"): -0.2, (net, "maps", "after pooling"): 0.15,
        (anew, "elements", "before norm"): 0.2,
        (f"{net}, among places", "elements", "before norm"): 0,
        (f"{net}, among places", "elements", "everywhere"): -0.3,
        (f"{net}, among places", "elements", "after pooling"): 0.3,
        (f"{net}, over before norm", "elements", "after pooling"): 0.3,
        (f"{net}, over maps", "elements", "after pooling"): 0.25}


def test_scores_are_read_back():
    scores = {("a net, of two words", "-", 0.0, "none"): {0: 0.5, 12: 1.0},
              ("a net, of two words", "elements", 0.25, "between dense layers"): {0: 0.1235}}
    assert paired.read_scores("# comment\n" + paired.write_scores(scores) + "\n") == scores


def test_the_committed_scores_are_those_that_the_program_asks_for():
    text = COMMITTED
    first, versions = text.splitlines()[:2]
    assert first.startswith("# python -m dropoutlib.experiments.placement")
    scores = paired.read_scores(text)
    [seeds] = {tuple(values) for values in scores.values()}  # every line has a score of each seed
    assert seeds == tuple(range(len(seeds))) and len(seeds) >= 10
    assert versions.startswith("# torch ") and versions.endswith("; 150 updates, 100 labels (20 images for the U-Net)")
    asked = {run[:4] for run in placement.runs(1, 150, 100, [0.2])}
    assert {key for key in scores if key[0] != "batch norm re-estimated"} == asked
    assert {key[1:] for key in scores if key[0] == "batch norm re-estimated"} == {
        key[1:] for key in asked if key[0] == "CNN with batch norm"}
