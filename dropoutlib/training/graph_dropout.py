"""Graph dropout: edges of a graph, or nodes with all their edges, are kept or left out of a list of edges."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import applies_noise, boolean, integer, is_eager
from ..layer import draws
from ..methods import describe
from ..noise import Bernoulli

__all__ = ["dropout_edge", "dropout_node"]


def _require_edges(edge_index: Tensor) -> None:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"edge_index has to be a tensor of shape (2, E), but got {type(edge_index).__name__}")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise RuntimeError(f"edge_index has to be of shape (2, E), sources above targets, but got the shape "
                           f"{tuple(edge_index.shape)}")
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"edge_index has to hold numbers of nodes, int64 or int32, but got {edge_index.dtype}")
    if is_eager(edge_index) and edge_index.numel() and edge_index.min() < 0:
        raise ValueError(f"edge_index has to hold numbers of nodes, counted from 0, but got {int(edge_index.min())}")


def _coins(edge_index: Tensor) -> tuple[int, Tensor]:
    """How many pairs of nodes have an edge between them, and for every edge the number of its pair."""
    low, high = edge_index.long().sort(0).values
    pairs, of_edge = torch.unique(low * (high.max() + 1 if len(high) else 1) + high, return_inverse=True)
    return len(pairs), of_edge


def _edges(edge_index: Tensor, p: float, force_undirected: bool, *, noise: Tensor | None = None,
           generator: torch.Generator | None) -> Tensor:
    """The keep mask of the edges."""
    law = Bernoulli(p)
    _require_edges(edge_index)
    like = torch.empty(edge_index.shape[1], device=edge_index.device)
    if not boolean("force_undirected", force_undirected):
        return law.sample(like, noise=noise, generator=generator)
    pairs, of_edge = _coins(edge_index)
    if noise is None:
        return law.sample(like.new_empty(pairs), generator=generator)[of_edge]
    keep = law.sample(like, noise=noise)
    kept, edges = (torch.zeros(pairs, device=like.device).index_add(0, of_edge, part.float())
                   for part in (keep, torch.ones_like(keep)))
    if is_eager(keep) and bool(((kept > 0) & (kept < edges)).any()):
        raise ValueError("noise has to keep or drop both directions of an edge with force_undirected=True, but it "
                         "keeps one of them")
    return keep


@draws(_edges)
@describe("graph_dropout")
def dropout_edge(edge_index: Tensor, p: float = 0.5, force_undirected: bool = False, training: bool = True, *,
                 noise: Tensor | None = None, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """DropEdge: leaves out every edge of a graph with probability p.

    {four_answers}

    The edges that are left keep their order, so ``weights[edge_mask]`` are their weights. Nothing is scaled: a sum over
    neighbours keeps its mean with ``weights[edge_mask] / (1 - p)``, a mean over the neighbours that are left needs
    nothing, and a normalisation with degrees should come before the draw. In training the number of edges that come
    back depends on the draw.

    Args:
        edge_index: numbers of nodes, int64 or int32, of shape ``(2, E)``: an edge leads from ``edge_index[0]`` to
            ``edge_index[1]``. An undirected edge is there twice, once in each direction.
        p: probability of dropping an edge.
        force_undirected: whether all edges between two nodes, in both directions, share one draw. No edge is added.
        training: whether edges are dropped; if not, all come back.
        noise: keep mask of the edges that replaces the draw, 0 or 1, of a shape that broadcasts to ``(E,)``; with
            ``force_undirected`` the same for both directions of an edge.
        {generator}

    Returns:
        tuple[Tensor, Tensor]: the edges that are left, of shape ``(2, kept)``, and the keep mask, bool, of shape
        ``(E,)``.

    Raises:
        ValueError: {bad_p}, if ``noise`` does not broadcast to ``(E,)``, parts the two directions of an edge, or is
            given while ``training`` is False; if a number of a node is negative.
        RuntimeError: if ``edge_index`` is of another shape or type, or {bad_generator}.
        TypeError: if an argument is of another type.

    Source:
        Rong et al., *DropEdge: Towards Deep Graph Convolutional Networks on Node Classification* (2020). The names are
        those of PyTorch Geometric, whose second result is a mask or a list of indices, and which with
        ``force_undirected`` adds the reverse of every edge and doubles loops.

    Example:
        >>> import torch
        >>> from dropoutlib import dropout_edge
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> left, edge_mask = dropout_edge(edge_index, noise=torch.tensor([1, 1, 0, 0]))
        >>> left
        tensor([[0, 1],
                [1, 0]])
        >>> edge_mask
        tensor([ True,  True, False, False])
    """
    Bernoulli(p)
    _require_edges(edge_index)
    boolean("force_undirected", force_undirected)
    if not applies_noise(training, noise) or (p == 0 and noise is None):
        return edge_index, torch.ones(edge_index.shape[1], dtype=torch.bool, device=edge_index.device)
    keep = _edges(edge_index, p, force_undirected, noise=noise, generator=generator)
    return edge_index[:, keep], keep


def _nodes(edge_index: Tensor, p: float, num_nodes: int | None, *, noise: Tensor | None = None,
           generator: torch.Generator | None) -> Tensor:
    """The keep mask of the nodes."""
    law = Bernoulli(p)
    like = torch.empty(_number_of_nodes(edge_index, num_nodes), device=edge_index.device)
    return law.sample(like, noise=noise, generator=generator)


def _number_of_nodes(edge_index: Tensor, num_nodes: int | None) -> int:
    _require_edges(edge_index)
    least = int(edge_index.max()) + 1 if edge_index.numel() else 0
    if num_nodes is None:
        return least
    if integer("num_nodes", num_nodes) < least:
        raise ValueError(f"num_nodes has to be at least {least} for the nodes of edge_index, but got {num_nodes}")
    return num_nodes


@draws(_nodes)
@describe("graph_dropout", dropout_edge)
def dropout_node(edge_index: Tensor, p: float = 0.5, num_nodes: int | None = None, training: bool = True, *,
                 noise: Tensor | None = None, generator: torch.Generator | None = None
                 ) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves out every node of a graph with probability p, and with it all its edges.

    {four_answers}

    An edge is left if both its nodes are. The numbers of the nodes stay as they are. Features are not touched: with
    features ``(nodes, features)`` DropNode of Feng et al., which keeps the edges and drops rows of the features, is
    :class:`~dropoutlib.SpatialDropout1d`.

    Args:
        {edge_index}
        p: probability of dropping a node.
        num_nodes: how many nodes there are; None counts to the largest one that has an edge.
        training: whether nodes are dropped; if not, all come back.
        noise: keep mask of the nodes that replaces the draw, 0 or 1, of a shape that broadcasts to ``(num_nodes,)``.
        {generator}

    Returns:
        tuple[Tensor, Tensor, Tensor]: the edges that are left, of shape ``(2, kept)``, the keep mask of the edges,
        bool, of shape ``(E,)``, and that of the nodes, bool, of shape ``(num_nodes,)``.

    Raises:
        ValueError: {bad_p}, if ``noise`` does not broadcast to ``(num_nodes,)`` or is given while ``training`` is
            False; if ``num_nodes`` is too small, or a number of a node negative.
        RuntimeError: if ``edge_index`` is of another shape or type, or {bad_generator}.
        TypeError: if an argument is of another type.

    Source:
        You et al., *Graph Contrastive Learning with Augmentations* (2020); the names are those of PyTorch Geometric.

    Example:
        >>> import torch
        >>> from dropoutlib import dropout_node
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> left, edge_mask, node_mask = dropout_node(edge_index, noise=torch.tensor([1, 1, 0]))
        >>> left
        tensor([[0, 1],
                [1, 0]])
    """
    Bernoulli(p)
    nodes = _number_of_nodes(edge_index, num_nodes)
    if not applies_noise(training, noise) or (p == 0 and noise is None):
        all_edges, all_nodes = (torch.ones(size, dtype=torch.bool, device=edge_index.device)
                                for size in (edge_index.shape[1], nodes))
        return edge_index, all_edges, all_nodes
    keep = _nodes(edge_index, p, nodes, noise=noise, generator=generator)
    kept = keep[edge_index[0].long()] & keep[edge_index[1].long()]
    return edge_index[:, kept], kept, keep
