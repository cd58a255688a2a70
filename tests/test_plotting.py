"""Pictures: that what is dropped is crossed out, and that an animation needs no other host."""

import re

import matplotlib as mpl
import pytest
import torch

from dropoutlib import plotting

mpl.use("agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def axes():
    with mpl.rc_context():
        plotting.use_style()
        figure, axes = plt.subplots()
        yield axes
        plt.close(figure)


def test_the_style_has_a_transparent_background(axes):
    assert mpl.colors.to_rgba(axes.figure.get_facecolor())[3] == 0
    assert mpl.colors.to_rgba(axes.get_facecolor())[3] == 0


def test_what_is_dropped_is_crossed_out(axes):
    keep = torch.tensor([[1, 0, 1], [0, 1, 1]])
    plotting.masked_image(axes, torch.rand(2, 3), keep)
    (crosses,) = axes.collections
    assert crosses.get_offsets().tolist() == [[1, 0], [0, 1]]
    assert axes.images[0].get_array().mask.tolist() == (keep == 0).tolist()


def test_a_dropped_unit_loses_its_connections(axes):
    plotting.network(axes, [2, 3, 1], [None, torch.tensor([1, 0, 1]), None])
    (lines,) = axes.collections
    assert len(lines.get_segments()) == 2 * 2 + 2
    assert [dot.get_marker() for dot in axes.lines].count("x") == 1
    assert len(axes.lines) == 5 + 2


def test_a_band_is_two_standard_errors_wide(axes):
    runs = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    plotting.band(axes, [0, 1], runs, label="runs")
    assert axes.lines[0].get_ydata().tolist() == [1, 1]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(1 + 2 * (2**0.5 / 2**0.5))


def test_an_animation_is_described_and_asks_no_other_host(axes):
    drawn = []
    page = plotting.animation(axes.figure, drawn.append, 3, alt='a "mask" & more').data
    assert set(drawn) == {0, 1, 2}
    assert 'alt="a &quot;mask&quot; &amp; more"' in page
    assert "aria-label" in re.search(r"<input[^>]*type=\"range\"[^>]*>", page)[0]
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", page)


def test_what_cannot_be_drawn_is_named():
    _, axes = plt.subplots()
    for runs in (torch.ones(1, 3), torch.ones(3), torch.ones(4, 2)):
        with pytest.raises(ValueError, match=r"runs has to be of shape \(runs, 3\), with at least two runs"):
            plotting.band(axes, [1, 2, 3], runs, label="a")
    for keep in ([None], [None, torch.ones(3)]):
        with pytest.raises(ValueError, match=r"keep has to hold a mask, or None, for each layer of \[2, 2\] units"):
            plotting.network(axes, [2, 2], keep)
    with pytest.raises(ValueError, match=r"keep has to be of the shape \(2, 2\) of the values, but got \(2,\)"):
        plotting.masked_image(axes, torch.ones(2, 2), torch.ones(2))
    plotting.masked_image(axes, torch.ones(2, 2, requires_grad=True))
