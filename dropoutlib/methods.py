"""The table of methods: one row a method, and nothing else repeats it by hand.

A method is an answer to four questions: what is multiplied (site), by which noise (law), over which axes one draw is
shared (sharing), and what replaces the noise at test time (test rule).  The intro page, the box that opens a method's
chapter and the docstrings of its layers are all rendered from the row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from .documentation import _Documented, document

__all__ = ["Catalogue", "Layer", "Method", "catalogue", "describe", "facts"]

QUESTIONS = {
    "site": "what is multiplied?",
    "law": "what is the noise?",
    "sharing": "over which axes is one draw shared?",
    "test_rule": "what replaces the noise at test time?",
}


@dataclass(frozen=True)
class Layer:
    """What programs ask of a layer: the facts that its prose says in words.

    Attributes:
        name: its public name.
        function: the function behind it, in :mod:`dropoutlib.functional`.
        rate: how the probability of dropping is set: ``"assigned"`` (an attribute ``p``), ``"learned"``, ``"drawn"``,
            computed from the ``"input"``, or ``"none"`` where there is none.
        law: ``"discrete"``, ``"continuous"``, or a ``"place"`` on a map; ``"none"`` where nothing is drawn.
        site: what shares no draw with its neighbours: an ``"element"``, ``"map"``, ``"window"``, ``"weight"``,
            ``"unit"`` or ``"image"``.
        has_weights: whether it computes with weights, its own or those of a layer that it wraps.
        replaces: class of :mod:`torch.nn` in whose place it stands.
        stands_for_dropout: whether it stands for dropout *and* the layer behind it: no other dropout goes before it.
    """

    name: str
    function: str
    rate: Literal["assigned", "learned", "drawn", "input", "none"]
    law: Literal["discrete", "continuous", "place", "none"]
    site: Literal["element", "map", "window", "weight", "unit", "image"]
    has_weights: bool = False
    replaces: str | None = None
    stands_for_dropout: bool = False


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: name of the chapter, of the module and of the test file.
        title: the name that the field uses.
        part: folder of the chapter, the module and the tests.
        summary: what the method does, in one sentence.
        site: what is multiplied.
        law: the law of the noise.
        sharing: the axes over which one draw is shared.
        test_rule: what replaces the noise at test time.
        references: bibliography keys of the papers that introduced it, each with the place in the paper.
        facts: of the layers that implement it.
        used_by: who uses it.
    """

    name: str
    title: str
    part: str
    summary: str
    site: str
    law: str
    sharing: str
    test_rule: str
    references: dict[str, str]
    facts: tuple[Layer, ...]
    used_by: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Public names of the library that implement it."""
        return tuple(layer.name for layer in self.facts)

    @property
    def chapter(self) -> str:
        """Path of the chapter, from the root of the project."""
        return f"book/{self.part}/{self.name}.ipynb"

    @property
    def api(self) -> str:
        """Path of the page that documents the layers, from the root of the project."""
        return f"book/reference/api/{self.part}.md"

    @property
    def answers(self) -> dict[str, str]:
        """The four questions, each with this method's answer."""
        return {question: getattr(self, question) for question in QUESTIONS}

    def __repr__(self) -> str:
        answers = [f"  {question.replace('_', ' ')}: {answer}" for question, answer in self.answers.items()]
        return "\n".join([f"{self.title} ({', '.join(self.layers)})", *answers])

    def _repr_markdown_(self) -> str:
        rows = [(f"**{question.replace('_', ' ').capitalize()}** - {QUESTIONS[question]}", answer)
                for question, answer in self.answers.items()]
        papers = [f"{{cite:t}}`{key}`" + (f", {place}" if place else "") for key, place in self.references.items()]
        rows.append(("**Papers**", "; ".join(papers)))
        rows.append(("**Used by**", self.used_by))
        rows.append(("**In the library**", ", ".join(f"[`{name}`](/{self.api})" for name in self.layers)))
        return _markdown_table(("The four questions", self.title), rows)


class Catalogue(dict[str, Method]):
    """The rows of the table by name; a notebook shows it as a table with links to the chapters."""

    def _repr_markdown_(self) -> str:
        heads = ("Method", *(question.replace("_", " ").capitalize() for question in QUESTIONS), "Layers")
        rows = [(f"[{row.title}](/{row.chapter})", *row.answers.values(), ", ".join(f"`{name}`" for name in row.layers))
                for row in self.values()]
        return _markdown_table(heads, rows)


def _markdown_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_ROWS = (
    Method(
        name="standard_dropout",
        title="Standard dropout",
        part="foundations",
        summary="Every activation is set to zero with probability p, independently, afresh at every forward pass.",
        site="activations of a layer, or the input",
        law="Bernoulli keep mask, 1 with probability 1 - p; inverted dropout divides it by 1 - p",
        sharing="none: one draw for every element of every example",
        test_rule="identity (inverted, `Dropout`); scaling by 1 - p (raw, `WeightScalingDropout`)",
        references={"hinton2012improving": "section 1", "srivastava2014dropout": "section 4"},
        facts=(
            Layer("Dropout", "dropout", "assigned", "discrete", "element", replaces="Dropout"),
            Layer("WeightScalingDropout", "weight_scaling_dropout", "assigned", "discrete", "element",
                  replaces="Dropout"),
        ),
        used_by="almost every deep-learning framework and most published networks; transformers with p = 0.1",
    ),
    Method(
        name="max_norm",
        title="Max-norm constraint",
        part="foundations",
        summary="After each update, the incoming weight vector of every unit is projected onto a ball of radius c.",
        site="incoming weights of every unit, after the optimiser's step",
        law="none: a deterministic projection",
        sharing="one norm for all incoming weights of a unit",
        test_rule="identity: the weights are used as they are",
        references={"srebro2005rank": "", "srivastava2014dropout": "section 5.1"},
        facts=(
            Layer("max_norm_", "max_norm_", "none", "none", "weight"),
            Layer("MaxNorm", "max_norm_", "none", "none", "weight"),
        ),
        used_by="the networks of the original dropout papers, together with dropout and large learning rates",
    ),
    Method(
        name="gaussian_dropout",
        title="Gaussian dropout",
        part="dense",
        summary="Every activation is multiplied by a Gaussian factor with mean one and variance p/(1 - p).",
        site="activations of a layer, or the input",
        law="Gaussian, mean 1 and variance p/(1 - p)",
        sharing="none: one draw for every element of every example",
        test_rule="identity",
        references={"srivastava2014dropout": "section 10", "wang2013fast": ""},
        facts=(Layer("GaussianDropout", "gaussian_dropout", "assigned", "continuous", "element", replaces="Dropout"),),
        used_by="Keras (`GaussianDropout`); the starting point of variational dropout",
    ),
    Method(
        name="dropconnect",
        title="DropConnect",
        part="dense",
        summary="Every weight and bias is set to zero with probability p, independently for every example.",
        site="weights and biases of a linear layer",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="none: one mask of the whole weight for every example (`sharing=\"batch\"`: one for the batch)",
        test_rule="mean of the activation under the matched Gaussian; or the mean weights; or Gaussian samples",
        references={"wan2013regularization": "sections 2 and 3"},
        facts=(Layer("DropConnectLinear", "drop_connect_linear", "assigned", "discrete", "weight", has_weights=True,
                     replaces="Linear"),),
        used_by="language models with weight-dropped LSTMs (AWD-LSTM), on their recurrent weights",
    ),
    Method(
        name="standout",
        title="Standout",
        part="dense",
        summary="A unit is kept with a probability that a second, cheap network computes from the same input.",
        site="activations of a linear layer",
        law="Bernoulli keep mask, 1 with probability sigmoid(alpha z + beta), z the pre-activation",
        sharing="none: one draw for every unit of every example",
        test_rule="scaling by the keep probability of that unit and example",
        references={"ba2013adaptive": ""},
        facts=(Layer("StandoutLinear", "standout_linear", "input", "discrete", "unit", has_weights=True,
                     replaces="Linear"),),
        used_by="research on adaptive rates; the ancestor of gated dropout",
    ),
    Method(
        name="fast_dropout",
        title="Fast dropout",
        part="dense",
        summary="The sum of many dropped inputs is replaced by the Gaussian with its mean and variance.",
        site="inputs of a linear layer, seen through their sum",
        law="Gaussian pre-activation with the mean and variance of inverted dropout",
        sharing="none: one draw for every output of every example",
        test_rule="mean; or moments carried through the whole network, without sampling",
        references={"wang2013fast": ""},
        facts=(Layer("FastDropoutLinear", "fast_dropout_linear", "assigned", "continuous", "unit", has_weights=True,
                     replaces="Linear", stands_for_dropout=True),),
        used_by="the starting point of the local reparameterisation trick; sampling-free uncertainty",
    ),
    Method(
        name="variational_dropout",
        title="Variational dropout",
        part="dense",
        summary="Gaussian dropout as inference about the weights: its variance alpha is learned with them.",
        site="weights of a linear layer (kind A), or its inputs (kind B)",
        law="Gaussian, mean 1 and variance alpha, which is learned",
        sharing="kind A: none, drawn as one Gaussian for every output; kind B: a factor shared by all outputs",
        test_rule="identity: the mean weights",
        references={"kingma2015variational": "sections 2 and 3"},
        facts=(Layer("VariationalDropoutLinear", "variational_dropout_linear", "learned", "continuous", "weight",
                     has_weights=True, replaces="Linear"),),
        used_by="sparse variational dropout and the compression of networks",
    ),
    Method(
        name="concrete_dropout",
        title="Concrete dropout",
        part="dense",
        summary="The probability of dropping is learned by gradient descent through a relaxed mask.",
        site="inputs of a layer",
        law="Concrete (relaxed Bernoulli) with drop probability p, which is learned, and a temperature",
        sharing="none (`ConcreteDropout`); space (`ConcreteDropout2d`: one draw for every feature map)",
        test_rule="identity; Monte Carlo for uncertainty",
        references={"gal2017concrete": "section 3"},
        facts=(
            Layer("ConcreteDropout", "concrete_dropout", "learned", "continuous", "element", has_weights=True),
            Layer("ConcreteDropout2d", "concrete_dropout2d", "learned", "continuous", "map", has_weights=True),
        ),
        used_by="Bayesian deep learning, where a dropout rate by grid search costs too much",
    ),
    Method(
        name="spatial_dropout",
        title="Spatial dropout",
        part="convolutional",
        summary="Whole feature maps are set to zero with probability p, afresh for every example.",
        site="feature maps of a convolutional layer",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="space: one draw for all positions of a map (`SpatialDropout1d`: for all steps of a sequence)",
        test_rule="identity",
        references={"tompson2015efficient": "section 3.2"},
        facts=tuple(Layer(f"SpatialDropout{axes}d", f"spatial_dropout{axes}d", "assigned", "discrete", "map",
                          replaces=f"Dropout{axes}d") for axes in (1, 2, 3)),
        used_by="convolutional networks for pose estimation and segmentation; temporal convolutional networks",
    ),
    Method(
        name="pooling_dropout",
        title="Pooling dropout",
        part="convolutional",
        summary="The elements of pooling windows are dropped before their maximum or mean is taken.",
        site="inputs of a pooling layer",
        law="Bernoulli keep mask, 1 with probability 1 - p; divided by 1 - p before a mean. `StochasticPool2d`: one "
            "element of a window, with probability in proportion to its size",
        sharing="none: one draw for every element of every example, shared by the windows that hold it; for every "
                "window (`StochasticPool2d`)",
        test_rule="expected pooling, the mean over the masks (maximum), or the maximum times 1 - p; identity (mean); "
                  "mean over the draw (`StochasticPool2d`)",
        references={"wu2015towards": "section 3", "zeiler2013stochastic": "section 3"},
        facts=(
            *(Layer(f"{kind}PoolDropout{axes}d", f"{kind.lower()}_pool_dropout{axes}d", "assigned", "discrete",
                    "window", replaces=f"{kind}Pool{axes}d") for kind in ("Max", "Avg") for axes in (1, 2, 3)),
            Layer("StochasticPool2d", "stochastic_pool2d", "none", "continuous", "window", replaces="MaxPool2d"),
        ),
        used_by="convolutional networks with max-pooling, for image classification",
    ),
    Method(
        name="cutout",
        title="Cutout",
        part="convolutional",
        summary="A square of every input image is set to zero, at a random place.",
        site="pixels of the input image, in all channels",
        law="zero in a square around a centre that is uniform over all pixels, clipped at the edges; nothing is scaled",
        sharing="space and channels: one centre for each square of every image",
        test_rule="identity",
        references={"devries2017improved": "section 3"},
        facts=(Layer("Cutout", "cutout", "none", "place", "image"),),
        used_by="image classification on small images (CIFAR, SVHN), as an augmentation",
    ),
    Method(
        name="max_drop",
        title="Max-drop",
        part="convolutional",
        summary="The largest activation of every map, or of every position, is set to zero with probability p.",
        site="the maximum of a feature map, or of the channels at one position",
        law="Bernoulli keep mask, 1 with probability 1 - p, on the maximum alone; everything is divided by 1 - ps, "
            "where s is the share of what can be dropped",
        sharing="the square around the maximum; one draw for every map, or for every position, of every example",
        test_rule="identity",
        references={"park2016analysis": "max-drop"},
        facts=(Layer("MaxDrop", "max_drop", "assigned", "discrete", "map"),),
        used_by="the experiments of its authors, in Caffe",
    ),
    Method(
        name="stochastic_rate_dropout",
        title="Dropout with a stochastic rate",
        part="convolutional",
        summary="The probability of dropping is itself drawn anew at every call.",
        site="inputs of any layer",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p; p uniform, or normal and clipped",
        sharing="one p for the whole input; the mask is shared by nothing",
        test_rule="identity",
        references={"park2016analysis": "stochastic dropout"},
        facts=(Layer("StochasticRateDropout", "stochastic_rate_dropout", "drawn", "discrete", "element",
                     replaces="Dropout"),),
        used_by="the experiments of its authors, in Caffe",
    ),
)


def catalogue() -> Catalogue:
    """The table of methods, by name.

    Returns:
        Catalogue: a dictionary from the name of a method to its row.

    Example:
        >>> from dropoutlib import catalogue
        >>> catalogue()["gaussian_dropout"].law
        'Gaussian, mean 1 and variance p/(1 - p)'
    """
    return Catalogue({row.name: row for row in _ROWS})


_FACTS = {layer.name: layer for row in _ROWS for layer in row.facts}


def facts(kind: type) -> Layer | None:
    """The facts of a layer of the library, or of a subclass of one; None for any other class.

    Args:
        kind: a class.

    Returns:
        Layer: from the table.

    Raises:
        TypeError: if it is no class.

    Example:
        >>> from dropoutlib import DropConnectLinear
        >>> from dropoutlib.methods import facts
        >>> facts(DropConnectLinear).site
        'weight'
    """
    if not isinstance(kind, type):
        raise TypeError(f"kind has to be a class, but got {kind!r}: facts(type(layer))")
    own = (base for base in kind.__mro__ if base.__module__.startswith("dropoutlib."))
    return next((_FACTS[base.__name__] for base in own if base.__name__ in _FACTS), None)


def describe(name: str, *of: Callable[..., object], like: Callable[..., object] | None = None,
             **words: str) -> Callable[[_Documented], _Documented]:
    """Fills in the words of a docstring: a method's ``{four_answers}``, and those that docstrings share.

    Args:
        name: name of the method's row.
        *of: objects whose docstrings give words, such as the function behind a layer.
        like: a class or a function whose docstring is taken instead of that of the decorated one.
        **words: more words to fill in, such as those of a rank.

    Returns:
        The decorator that ``dropoutlib.documentation.document`` gives.
    """
    row = catalogue()[name]
    answers = [*(f"* {question.replace('_', ' ').capitalize()}: {answer.replace('`', '``')}."
                 for question, answer in row.answers.items()),
               f"* Chapter: :doc:`/{row.chapter.removesuffix('.ipynb')}`."]
    return document(*of, like=like, four_answers="\n".join(answers), **words)
