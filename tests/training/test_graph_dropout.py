"""What is graph dropout's own: one draw for both directions of an edge, and which sums and means keep their mean."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx

from dropoutlib import SpatialDropout1d, dropout_edge, dropout_node, functional
from dropoutlib.enumeration import distribution

# Five nodes, six undirected edges, each in both directions, and a loop.
PAIRS = torch.tensor([[0, 0, 0, 1, 3, 1], [1, 2, 3, 2, 4, 4]])
EDGES = torch.cat([PAIRS, PAIRS.flip(0), torch.tensor([[2], [2]])], 1)
VALUES = torch.tensor([1.0, 2.0, 4.0, -3.0, 0.5], dtype=torch.float64)
PLACE = torch.tensor([*range(6), *range(6), 6])  # of an edge's draw among those of the pairs


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def summed(edges: Tensor, weights: Tensor | None = None, values: Tensor = VALUES) -> Tensor:
    weights = torch.ones(edges.shape[1], dtype=torch.float64) if weights is None else weights
    return torch.zeros_like(values).index_add(0, edges[1], weights * values[edges[0]])


def degrees(edges: Tensor) -> Tensor:
    return summed(edges, values=torch.ones_like(VALUES))


def undirected(function, p: float):
    """The law over the draws of pairs of nodes."""
    return distribution(lambda coins: function(dropout_edge(EDGES, p, True, noise=coins[PLACE])[0]), (7,), p)


def close(first: Tensor, second: Tensor | float) -> None:
    second = torch.as_tensor(second, dtype=first.dtype).expand(first.shape)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_a_scaled_sum_keeps_its_mean_and_the_ends_of_an_edge_covary(p: float) -> None:
    """The covariance of two neighbours is p/(1 - p) times the product of what they send each other."""
    law = undirected(lambda left: summed(left) / (1 - p), p)
    close(law.mean(), summed(EDGES))
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for source, target in EDGES.T.tolist():
        expected[target, target] += VALUES[source] ** 2
        if source != target:
            expected[source, target] += VALUES[source] * VALUES[target]
    close(law.covariance(), p / (1 - p) * expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("degree", range(1, 9))
def test_the_mean_of_the_neighbours_that_are_left_is_unbiased_given_one(degree: int, p: float) -> None:
    x = torch.randn(degree, dtype=torch.float64)
    edges = torch.stack([torch.arange(1, degree + 1), torch.zeros(degree, dtype=torch.long)])

    def mean(keep: Tensor) -> Tensor:
        source = dropout_edge(edges, p, noise=keep)[0][0] - 1
        return torch.stack([x[source].mean() if len(source) else x.new_zeros(()), x.new_tensor(len(source) > 0)])

    law = distribution(mean, (degree,), p)
    value, left = law.mean()
    close(left, 1 - p**degree)
    close(value / left, x.mean())
    # the variance: a sample of k of n without replacement, for every k
    chances = torch.tensor([math.comb(degree, k) * (1 - p) ** k * p ** (degree - k) for k in range(1, degree + 1)])
    share = (chances / torch.arange(1, degree + 1)).sum() / chances.sum() - 1 / degree
    found = law.expectation(lambda out: out[1] * (out[0] - x.mean()) ** 2) / left
    torch.testing.assert_close(found, (share * x.var()).double() if degree > 1 else x.new_zeros(()), rtol=1e-6,
                               atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_degrees_counted_again_give_a_node_too_much_of_itself(p: float) -> None:
    """1/(deg + 1) of itself is up to 1/(1 - p) times too large, and the share of each neighbour too small."""
    edges = EDGES[:, :-1]
    pairs = PLACE[:-1]

    def normalised(left: Tensor) -> Tensor:
        root = (degrees(left) + 1).rsqrt()
        matrix = torch.diag(root**2)
        return matrix.index_put((left[1], left[0]), root[left[0]] * root[left[1]])

    law = distribution(lambda coins: normalised(dropout_edge(edges, p, True, noise=coins[pairs])[0]), (6,), p)
    ratio, d = law.mean() / normalised(edges), degrees(edges)
    close(ratio.diagonal(), (1 - p ** (d + 1)) / (1 - p))

    def root(degree: int) -> float:
        """E of 1/sqrt(2 + B), with B of the other edges of a node left."""
        return sum(math.comb(degree - 1, b) * (1 - p) ** b * p ** (degree - 1 - b) / math.sqrt(2 + b)
                   for b in range(degree))

    for source, target in edges.T.tolist():
        i, j = int(d[source]), int(d[target])
        expected = (1 - p) * root(i) * root(j) * math.sqrt((i + 1) * (j + 1))
        assert abs(ratio[target, source].item() - expected) < 1e-12
        assert expected < 1
    assert (ratio.diagonal() > 1).all()


def test_an_example_with_three_neighbours() -> None:
    """1/sqrt(deg + 1), counted again: 2.395 in the mean, 3.5 without dropping."""
    x = torch.tensor([1.0, 2.0, 4.0]).double()
    law = distribution(lambda keep: (keep * x).sum() / (keep.sum() + 1).sqrt(), (3,), 0.4)
    assert round(law.mean().item(), 3) == 2.395
    assert x.sum() / 2 == 3.5


def test_one_draw_for_two_layers_and_a_draw_for_each() -> None:
    """There and back on one edge: with one draw the mean is too large by 1/(1 - p)."""
    p, edges = 0.4, torch.tensor([[0, 1], [1, 0]])
    x = torch.tensor([1.0, 3.0]).double()

    def step(keep: Tensor, x: Tensor) -> Tensor:
        left = dropout_edge(edges, p, True, noise=keep)[0]
        return torch.zeros_like(x).index_add(0, left[1], x[left[0]]) / (1 - p)

    close(distribution(lambda keep: step(keep, step(keep, x)), (1,), p).mean(), x / (1 - p))
    close(distribution(lambda keep: step(keep[:1], step(keep[1:], x)), (2,), p).mean(), x)


def test_an_edge_is_left_where_both_its_nodes_are() -> None:
    p = 0.3
    law = distribution(lambda keep: dropout_node(EDGES, p, noise=keep)[1].double(), (5,), p)
    close(law.mean()[:-1], (1 - p) ** 2)
    close(law.mean()[-1], 1 - p)
    covariance = law.covariance()
    for one, first in enumerate(EDGES.T.tolist()):
        for two, second in enumerate(EDGES.T.tolist()):
            nodes = {*first, *second}
            close(covariance[one, two], (1 - p) ** len(nodes) - (1 - p) ** (len({*first}) + len({*second})))


def test_rows_of_features_are_those_of_spatial_dropout() -> None:
    """DropNode of Feng et al.: the mean of features stays."""
    p, x = 0.3, torch.randn(5, 3, dtype=torch.float64)
    law = distribution(lambda keep: SpatialDropout1d(p)(x, noise=keep), (5, 1), p)
    close(law.mean(), x)


def test_what_comes_back() -> None:
    weights = torch.arange(13)
    for left, mask in (dropout_edge(EDGES), dropout_edge(EDGES, 0.3, True), dropout_edge(EDGES.int(), 0.3, True)):
        assert torch.equal(left, EDGES[:, mask]) and mask.shape == weights[:13].shape
    left, edge_mask, node_mask = dropout_node(EDGES, 0.3, 7)
    assert node_mask.shape == (7,) and torch.equal(left, EDGES[:, edge_mask])
    assert torch.equal(edge_mask, node_mask[EDGES[0]] & node_mask[EDGES[1]])
    for options in ({"p": 0.0}, {"p": 0.7, "training": False}):
        left, mask = dropout_edge(EDGES, **options)
        assert left is EDGES and mask.all() and mask.shape == (13,)
        left, mask, nodes = dropout_node(EDGES, **options)
        assert left is EDGES and mask.all() and nodes.all() and nodes.shape == (5,)
    assert dropout_edge(EDGES, 1.0)[0].shape == dropout_node(EDGES, 1.0)[0].shape == (2, 0)
    nothing = torch.empty(2, 0, dtype=torch.long)
    assert dropout_edge(nothing, force_undirected=True)[1].shape == (0,)
    assert [len(part) for part in dropout_node(nothing)[1:]] == [0, 0]


def test_both_directions_go_together_and_directed_edges_by_themselves() -> None:
    many = torch.randint(500, (2, 3000))
    many = torch.cat([many, many.flip(0)], 1)
    for force in (True, False):
        kept = dropout_edge(many, 0.3, force)[1]
        together = (kept[:3000] == kept[3000:]).double().mean().item()
        assert together == 1 if force else abs(together - 0.58) < 0.06
        assert abs(kept.double().mean().item() - 0.7) < 0.06
    both = torch.tensor([[0, 1, 0, 2], [1, 0, 1, 0]])  # 0-1 is there three times
    kept = torch.stack([dropout_edge(both, 0.5, True)[1] for _ in range(200)])
    assert (kept[:, :1] == kept[:, :3]).all() and (kept[:, 0] != kept[:, 3]).any()


def their_dropout_edge(edge_index: Tensor, keep: Tensor) -> Tensor:
    """What torch_geometric.utils.dropout_edge does with force_undirected=True, for a given draw."""
    left = edge_index[:, keep & (edge_index[0] <= edge_index[1])]
    return torch.cat([left, left.flip(0)], 1)


def test_loops_stay_single_and_one_way_edges_stay_one_way() -> None:
    """The other implementation doubles loops, and turns edges or loses them."""
    keep = torch.ones(4, dtype=torch.bool)
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 0]])      # 0-1, a loop at 2, and 3 -> 0 alone
    left, _ = dropout_edge(edges, 0.5, True, noise=keep)
    assert torch.equal(left, edges)
    theirs = their_dropout_edge(edges, keep).T.tolist()
    assert theirs.count([2, 2]) == 2 and [3, 0] not in theirs


@pytest.mark.parametrize(("function", "options"), [
    (dropout_edge, {}), (dropout_edge, {"force_undirected": True}),
    (dropout_node, {}), (dropout_node, {"num_nodes": 9}),
])
def test_to_draw_and_then_to_apply_is_to_call(function, options: dict[str, object], device: str) -> None:
    edges = EDGES.to(device)
    once, twice = (torch.Generator(device).manual_seed(3) for _ in range(2))
    called = function(edges, 0.4, **options, generator=once)
    drawn = functional.draw(function, edges, 0.4, **options, generator=twice)
    assert torch.equal(once.get_state(), twice.get_state())
    for first, second in zip(called, function(edges, 0.4, **options, noise=drawn), strict=True):
        assert torch.equal(first, second) and first.device == edges.device
    assert torch.equal(drawn, called[-1])
    with pytest.raises(ValueError, match="draws nothing"):
        functional.draw(function, edges, 0.4, training=False)
    traced = fx.symbolic_trace(lambda edges: getattr(functional, function.__name__)(edges, 0.4)[0])
    assert next(node.target for node in traced.graph.nodes if node.op == "call_function") is function


def test_it_runs_in_a_compiled_function() -> None:
    def layer(x: Tensor, edges: Tensor) -> Tensor:
        left, _ = dropout_edge(edges, 0.5)
        return torch.zeros_like(x).index_add(0, left[1], x[left[0]])

    compiled = torch.compile(layer, backend="eager")
    assert compiled(VALUES, EDGES).shape == VALUES.shape


BAD = {
    "p": (ValueError, "1.5", {"p": 1.5}), "p of a wrong type": (TypeError, "half", {"p": "half"}),
    "noise in evaluation": (ValueError, "noise", {"training": False, "noise": torch.ones(13)}),
    "noise of a wrong shape": (ValueError, r"\(4,\)", {"noise": torch.ones(4)}),
    "no keep mask": (ValueError, "keep mask", {"noise": torch.full((1,), 2.0)}),
    "no tensor": (TypeError, "edge_index.*list", {"edge_index": [[0], [1]]}),
    "a matrix": (RuntimeError, r"edge_index.*\(3, 3\)", {"edge_index": torch.eye(3).long()}),
    "real numbers": (RuntimeError, "edge_index.*float32", {"edge_index": torch.ones(2, 3)}),
    "a negative node": (ValueError, "edge_index.*-1", {"edge_index": torch.tensor([[0, -1], [1, 1]])}),
    "training": (TypeError, "training.*0.5", {"training": 0.5}),
}
BAD_EDGE = {
    "one direction": (ValueError, "both directions", {"force_undirected": True, "noise": torch.arange(13) > 0}),
    "force_undirected": (TypeError, "force_undirected.*3", {"force_undirected": 3}),
}
BAD_NODE = {
    "too few nodes": (ValueError, "num_nodes.*5.*4", {"num_nodes": 4}),
    "no number of nodes": (TypeError, "num_nodes.*2.5", {"num_nodes": 2.5}),
}
ALL = [(function, *bad) for function, table in ((dropout_edge, BAD | BAD_EDGE), (dropout_node, BAD | BAD_NODE))
       for bad in table.values()]


@pytest.mark.parametrize(("function", "error", "words", "options"), ALL)
def test_bad_arguments_are_named(function, error: type[Exception], words: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=words):
        function(**{"edge_index": EDGES, **options})
