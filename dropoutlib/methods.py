"""The table of methods: one row a method, and nothing else repeats it by hand.

A method is an answer to four questions: what is multiplied (site), by which noise (law), over which axes one draw is
shared (sharing), and what replaces the noise at test time (test rule).  The intro page, the box that opens a method's
chapter and the docstrings of its layers are all rendered from the row here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .documentation import _Documented, document

__all__ = ["Catalogue", "InShort", "Layer", "Method", "catalogue", "describe", "facts"]

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
        function: the function behind it, in :mod:`dropoutlib.functional`; None where the layer is all there is.
        rate: how the probability of dropping is set: ``"assigned"`` (an attribute ``p``), ``"learned"``, ``"drawn"``,
            computed from the ``"input"``, or ``"none"`` where there is none.
        law: ``"discrete"``, ``"continuous"``, or a ``"place"`` on a map; ``"none"`` where nothing is drawn.
        site: what shares no draw with its neighbours: an ``"element"``, ``"map"``, ``"window"``, ``"weight"``,
            ``"unit"``, ``"image"``, ``"word"``, ``"feature"`` of a sequence, the ``"state"`` of a recurrent layer, the
            ``"branch"`` of a residual network, a ``"token"``, a ``"condition"``, a ``"block"`` of a map, or the
            ``"code"`` of ordered units.
        has_weights: whether it computes with weights, its own or those of a layer that it wraps.
        replaces: class of :mod:`torch.nn` in whose place it stands.
        stands_for_dropout: whether it stands for dropout *and* the layer behind it: no other dropout goes before it.
        answers: where an answer of the method's row speaks of several layers, what holds of this one.
    """

    name: str
    function: str | None
    rate: Literal["assigned", "learned", "drawn", "input", "none"]
    law: Literal["discrete", "continuous", "place", "none"]
    site: Literal["element", "map", "window", "weight", "unit", "image", "word", "feature", "state", "branch",
                  "token", "condition", "block", "code"]
    has_weights: bool = False
    replaces: str | None = None
    stands_for_dropout: bool = False
    answers: Mapping[str, str] = field(default_factory=dict, hash=False)


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
        use: when to use it.
        avoid: when not.
        first: a value to try first.
        evidence: how we know, each claim with its grade: proved, measured here, or literature.
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
    use: str
    avoid: str
    first: str
    evidence: str

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
        return f"book/reference/api/{self.name}.md"

    @property
    def in_short(self) -> InShort:
        """The answer box, with what the method does, when to use it, when not, a first value, and how we know."""
        return InShort({"What it does": self.summary, "Use it": self.use, "Do not use it": self.avoid,
                        "Try first": self.first, "How we know": self.evidence})

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


class InShort(dict[str, str]):
    """An answer box; a notebook shows it as a table of one column, a terminal without the addresses of links."""

    def __repr__(self) -> str:
        lines = "\n".join(f"{head}: {text}" for head, text in self.items())
        return re.sub(r"\[([^]]*)\]\([^)]*\)|\{cite:t\}`([^`]*)`", r"\1\2", lines)

    def _repr_markdown_(self) -> str:
        return _markdown_table(("In short",), [(f"**{head}**: {text}",) for head, text in self.items()])


_GROUPS = {
    "single values": ("element", "unit", "code"),
    "parts of a map": ("map", "window", "image", "block"),
    "weights": ("weight",),
    "values of a sequence": ("state", "feature", "word", "token"),
    "branches and conditions": ("branch", "condition"),
}


class Catalogue(dict[str, Method]):
    """The rows of the table by name.

    A notebook shows each method in a sentence with a link to its chapter, in groups: by what is multiplied, and in a
    group by the law.
    """

    @property
    def groups(self) -> dict[str, list[Method]]:
        """The methods by what they multiply, masks before continuous noise; the first of a method's layers decides."""
        laws = ("discrete", "place", "continuous")
        noisy = sorted((row for row in self.values() if row.facts[0].law in laws),
                       key=lambda row: laws.index(row.facts[0].law))
        groups = {group: [row for row in noisy if row.facts[0].site in sites] for group, sites in _GROUPS.items()}
        others = [row for row in self.values() if row not in noisy]
        return {group: rows for group, rows in {**groups, "no layer": others}.items() if rows}

    @property
    def in_short(self) -> InShort:
        """For each method when to use it, and a value to try first."""
        return InShort({f"[{row.title}](/{row.chapter})": f"{row.use} *First*: {row.first}" for row in self.values()})

    def _repr_markdown_(self) -> str:
        rows = [(f"*{group}*" if row is rows[0] else "", f"[{row.title}](/{row.chapter})", row.summary)
                for group, rows in self.groups.items() for row in rows]
        return _markdown_table(("Noise on", "Method", "What it does"), rows)


def _markdown_table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_WINDOWS = "none: one draw for every element of every example, shared by the windows that hold it"
_POOLS = {"Max": {"law": "raw Bernoulli keep mask, 1 with probability 1 - p",
                  "test_rule": "expected pooling, the mean over the masks; or the maximum times 1 - p"},
          "Avg": {"law": "Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p", "test_rule": "identity"}}

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
        references={"hinton2012improving": "", "srivastava2014dropout": "section 4"},
        facts=(
            Layer("Dropout", "dropout", "assigned", "discrete", "element", replaces="Dropout"),
            Layer("WeightScalingDropout", "weight_scaling_dropout", "assigned", "discrete", "element",
                  replaces="Dropout"),
        ),
        used_by="almost every deep-learning framework; many published networks, such as transformers with p = 0.1",
        use="Behind the activation of a wide hidden layer, where labels are few or wrong and the network learns them "
            "by heart.",
        avoid="Behind the last layer under a squared loss: the best prediction shrinks by the factor 1 - p. In front "
              "of a batch norm or of max pooling: the variance or the mean in training is not that of evaluation.",
        first="p = 0.5 for hidden layers, p = 0.2 for the input, p = 0.1 in a transformer.",
        evidence="*Proved*: the [mean](/book/foundations/standard_dropout.ipynb#two-ways-to-keep-the-expectation) "
                 "stays, the [variance](/book/foundations/standard_dropout.ipynb#variance) grows, an "
                 "[output](/book/foundations/standard_dropout.ipynb#why-not-on-the-output) shrinks; [batch norm and "
                 "pooling](/book/convolutional/placement.ipynb). *Measured here*: p = 0.5 on hidden layers helps "
                 "with [100 labels, a fifth of them random](/book/foundations/standard_dropout.ipynb#choosing-p). "
                 "*Literature*: 0.5 and 0.2 by {cite:t}`srivastava2014dropout`, 0.1 by "
                 "{cite:t}`vaswani2017attention`.",
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
        use="Where a large step makes some runs fail; in the original papers together with dropout and a large "
            "learning rate.",
        avoid="In place of a smaller step, which rescues the same runs. With a radius that was found for raw "
              "dropout: inverted dropout needs 1 - p times as much.",
        first="c = 3 to 4 for raw dropout, so 1.5 to 2 for inverted dropout with p = 0.5.",
        evidence="*Proved*: it is the [nearest point](/book/foundations/max_norm.ipynb#the-nearest-point) of the "
                 "ball, with [one radius for each "
                 "scaling](/book/foundations/max_norm.ipynb#one-radius-for-each-scaling). *Measured here*: on small "
                 "digits 0.6 or 1 [rescues runs](/book/foundations/max_norm.ipynb#what-it-does-in-practice) whose "
                 "step is too large; so do dropout and a smaller step. *Literature*: the radius 3 to 4 by "
                 "{cite:t}`srivastava2014dropout`, appendix A.",
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
        use="Where the noise of dropout is wanted without its zeros, and as the first step to a rate that is learned.",
        avoid="With the variance p(1 - p), which is another, weaker noise. Where a sign has to stay: at p = 0.5 "
              "about one factor in six is negative.",
        first="The p of standard dropout: p = 0.5 is the variance 1, p = 0.2 the variance 1/4.",
        evidence="*Proved*: [mean and variance](/book/dense/gaussian_dropout.ipynb#matching-two-moments) of every "
                 "linear unit are those of dropout. *Measured here*: with wrong labels the two noises [do "
                 "alike](/book/dense/gaussian_dropout.ipynb#what-it-does-in-practice). *Literature*: as good as "
                 "dropout, or perhaps better, for {cite:t}`srivastava2014dropout`, section 10.",
    ),
    Method(
        name="alpha_dropout",
        title="Alpha dropout",
        part="dense",
        summary="A dropped unit takes the lower limit of SELU, and an affine map keeps mean 0 and variance 1.",
        site="activations behind SELU",
        law="Bernoulli keep mask, 1 with probability 1 - p, between the activation and -1.758; then a times it, plus b",
        sharing="none: one draw for every element (`FeatureAlphaDropout`: for all positions of a map)",
        test_rule="identity, which is not the mean given the input",
        references={"klambauer2017self": "section on the new dropout technique"},
        facts=(
            Layer("AlphaDropout", "alpha_dropout", "assigned", "discrete", "element", replaces="AlphaDropout",
                  answers={"sharing": "none: one draw for every element"}),
            Layer("FeatureAlphaDropout", "feature_alpha_dropout", "assigned", "discrete", "map",
                  replaces="FeatureAlphaDropout", answers={"sharing": "all positions of a map"}),
        ),
        used_by="self-normalising networks of SELU; torch (`AlphaDropout`)",
        use="Behind SELU in a network that lives on mean 0 and variance 1, as one initialised for it.",
        avoid="Behind ReLU: there mean and variance move. Behind a norm without an affine map both stay, but the "
              "dropped value is no limit of the unit.",
        first="p = 0.05 or 0.1, as the paper. The default of torch, 0.5, is much more noise.",
        evidence="*Proved*: mean 0 and variance 1 [are kept](/book/dense/alpha_dropout.ipynb#mean-and-variance), and "
                 "the test rule [is not the mean](/book/dense/alpha_dropout.ipynb#the-test-rule) given an input. "
                 "*Measured here*: [mean and variance over "
                 "depth](/book/dense/alpha_dropout.ipynb#what-it-does-in-practice), at initialisation. *Literature*: "
                 "{cite:t}`klambauer2017self`.",
    ),
    Method(
        name="dropconnect",
        title="DropConnect",
        part="dense",
        summary="Every weight and bias is set to zero with probability p, independently for every example.",
        site="weights and biases of a linear layer or a convolution",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="none: one mask of the whole weight for every example (`sharing=\"batch\"`: one for the batch)",
        test_rule="mean of the activation under the matched Gaussian; or the mean weights; or Gaussian samples",
        references={"wan2013regularization": "sections 2 and 3"},
        facts=(
            Layer("DropConnectLinear", "drop_connect_linear", "assigned", "discrete", "weight", has_weights=True,
                  replaces="Linear", answers={"site": "weights and biases of a linear layer"}),
            *(Layer(f"DropConnectConv{axes}d", f"drop_connect_conv{axes}d", "assigned", "discrete", "weight",
                    has_weights=True, replaces=f"Conv{axes}d",
                    answers={"site": "weights and biases of a convolution"}) for axes in (1, 2)),
        ),
        used_by="language models with weight-dropped LSTMs (AWD-LSTM), on their recurrent weights",
        use="On a dense layer whose units should not share their noise, and on the recurrent weights of a language "
            "model.",
        avoid="Where time matters: a mask for every example is far slower than a linear layer. One mask for the "
              "whole batch is cheap, but its noise does not average out over the batch.",
        first="p = 0.5, the default.",
        evidence="*Proved*: without a bias the [variance of "
                 "dropout](/book/dense/dropconnect.ipynb#mean-variance-and-no-covariance) without its covariance. "
                 "*Measured here*: [outputs of a trained "
                 "network](/book/dense/dropconnect.ipynb#what-it-does-in-practice) are uncorrelated; whether it "
                 "generalises better was not tested. *Literature*: images by {cite:t}`wan2013regularization`; "
                 "recurrent weights, also with 0.5, by {cite:t}`merity2018regularizing`.",
    ),
    Method(
        name="targeted_dropout",
        title="Targeted dropout",
        part="dense",
        summary="The smallest weights of every unit, or the units with the smallest weights, are candidates; each "
                "candidate is set to zero with probability p.",
        site="the smallest weights of a linear layer, or its units with the smallest weights",
        law="Bernoulli keep mask on the candidates, 1 with probability 1 - p; nothing is scaled",
        sharing="the whole batch; with `mode=\"unit\"` all weights of a unit, too",
        test_rule="all candidates are left out, which is not the mean",
        references={"gomez2019targeted": ""},
        facts=(Layer("TargetedDropoutLinear", "targeted_dropout_linear", "assigned", "discrete", "weight",
                     has_weights=True, replaces="Linear"),),
        used_by="the code of its paper, for LeNet, VGG and ResNet: p = 0.5 with half of the weights as candidates, or "
                "p = 0.33 and 0.66 with three quarters",
        use="When a network is to be pruned by the size of its weights afterwards, and may be trained for that.",
        avoid="Where nothing will be pruned: the whole network is no better for it, and on a CPU, with batches of less "
              "than a few hundred, choosing and drawing the weights costs more time than the layer. With a target "
              "fraction below what will be pruned: behind it the accuracy falls steeply, though not below that without "
              "noise.",
        first="p = 0.5, and as target fraction what is to be pruned.",
        evidence="*Proved*: [mean and variance](/book/dense/targeted_dropout.ipynb#mean-and-variance), and for a "
                 "squared loss a [penalty](/book/dense/targeted_dropout.ipynb#a-penalty-on-small-weights) on the "
                 "candidates alone. *Measured here*: on digits [pruning](/book/dense/targeted_dropout.ipynb"
                 "#what-it-does-in-practice) nine tenths of the weights, without training again, costs far less "
                 "accuracy. *Literature*: {cite:t}`gomez2019targeted`.",
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
        used_by="research on adaptive rates",
        use="To study rates that depend on the input. In practice try a fixed p first.",
        avoid="With a large alpha, which is a gate with hardly any noise. Divided by the keep probability: the "
              "variance has no bound.",
        first="alpha = 1, beta = 0; alpha = 0 is raw dropout with p = 0.5.",
        evidence="*Proved*: given the input the [test "
                 "rule](/book/dense/standout.ipynb#given-the-input-mean-variance-test-rule) is the mean. *Measured "
                 "here*: with wrong labels [nothing beat alpha = "
                 "0](/book/dense/standout.ipynb#what-it-does-in-practice). *Literature*: better than a fixed rate "
                 "for {cite:t}`ba2013adaptive`.",
    ),
    Method(
        name="fast_dropout",
        title="Fast dropout",
        part="dense",
        summary="The sum of many dropped inputs is replaced by the Gaussian with its mean and variance.",
        site="inputs of a linear layer or a convolution, seen through their sum",
        law="Gaussian pre-activation with the mean and variance of inverted dropout",
        sharing="none: one draw for every output of every example",
        test_rule="mean; or moments carried through the whole network, without sampling",
        references={"wang2013fast": ""},
        facts=(
            Layer("FastDropoutLinear", "fast_dropout_linear", "assigned", "continuous", "unit", has_weights=True,
                  replaces="Linear", stands_for_dropout=True,
                  answers={"site": "inputs of a linear layer, seen through their sum"}),
            *(Layer(f"FastDropoutConv{axes}d", f"fast_dropout_conv{axes}d", "assigned", "continuous", "unit",
                    has_weights=True, replaces=f"Conv{axes}d", stands_for_dropout=True,
                    answers={"site": "inputs of a convolution, seen through the sums of its filters",
                             "sharing": "none: one draw for every output, at every position, of every example",
                             "test_rule": "mean"}) for axes in (1, 2)),
        ),
        used_by="a forerunner of the local reparameterisation trick; sampling-free uncertainty",
        use="In a small dense network: mean and variance of a prediction in one pass, and a gradient without noise "
            "from masks.",
        avoid="Behind other dropout: it stands for dropout and the linear layer. Where its variance has to be right: "
              "it is too small in a trained network, whose units depend on each other.",
        first="p = 0.5, as for standard dropout.",
        evidence="*Proved*: mean and variance are exact through a [linear "
                 "layer](/book/dense/fast_dropout.ipynb#mean-and-variance-of-a-linear-layer) with independent inputs "
                 "and, for a normal value, through [ReLU](/book/dense/fast_dropout.ipynb#relu-exact). *Measured "
                 "here*: no gradient noise, [but a bias](/book/dense/fast_dropout.ipynb#gradient-noise); covariances "
                 "[repair nearly all of the spread](/book/dense/fast_dropout.ipynb#carrying-covariances). "
                 "*Literature*: {cite:t}`wang2013fast`.",
    ),
    Method(
        name="variational_dropout",
        title="Variational dropout",
        part="dense",
        summary="Gaussian dropout as inference about the weights: its variance alpha is learned with them.",
        site="weights of a linear layer or a convolution (kind A), or inputs of a linear layer (kind B)",
        law="Gaussian, mean 1 and variance alpha, which is learned",
        sharing="kind A: none, drawn as one Gaussian for every output; kind B: a factor shared by all outputs",
        test_rule="identity: the mean weights",
        references={"kingma2015variational": "sections 2 and 3"},
        facts=(
            Layer("VariationalDropoutLinear", "variational_dropout_linear", "learned", "continuous", "weight",
                  has_weights=True, replaces="Linear",
                  answers={"site": "weights of a linear layer (kind A), or its inputs (kind B)"}),
            *(Layer(f"VariationalDropoutConv{axes}d", f"variational_dropout_conv{axes}d", "learned", "continuous",
                    "weight", has_weights=True, replaces=f"Conv{axes}d",
                    answers={"site": "weights of a convolution",
                             "sharing": "none, drawn as one Gaussian for every output, at every position"})
              for axes in (1, 2)),
        ),
        used_by="sparse variational dropout and the compression of networks",
        use="To learn which inputs or weights a network can do without, as a step to a small network.",
        avoid="As a posterior: there is none. With a divergence that is averaged or lacks its 1/N: alpha then comes "
              "out wrong.",
        first="Start at p = 0.5 with an alpha of its own for every weight; remove weights whose p ends above 0.95.",
        evidence="*Proved*: the [divergence](/book/dense/variational_dropout.ipynb#the-divergence-of-one-weight), the "
                 "[alpha that is learned](/book/dense/variational_dropout.ipynb#what-alpha-is-learned) and the "
                 "[missing posterior](/book/dense/variational_dropout.ipynb#the-critique-not-a-posterior). *Measured "
                 "here*: shuffled features of a regression [get a large "
                 "p](/book/dense/variational_dropout.ipynb#what-it-does-in-practice). *Literature*: sparse networks "
                 "and the threshold by {cite:t}`molchanov2017variational`, the critique by "
                 "{cite:t}`hron2018variational`.",
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
        use="Where a grid search over p costs too much, above all for Monte Carlo uncertainty.",
        avoid="With weight decay on its parameters, or without its divergence over N. As the best p for new data: it "
              "is that of the objective.",
        first="Start at p = 0.1 with length scale 1; p is learned.",
        evidence="*Proved*: the [regulariser](/book/dense/concrete_dropout.ipynb#the-loss) and its "
                 "[constants](/book/dense/concrete_dropout.ipynb#the-right-constants-for-your-loss). *Measured "
                 "here*: with more data the [learned p "
                 "falls](/book/dense/concrete_dropout.ipynb#what-it-does-in-practice). *Literature*: "
                 "{cite:t}`gal2017concrete`.",
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
        use="Behind a convolution whose neighbouring positions say nearly the same, as in large images, and for "
            "sequences of features.",
        avoid="At the p of element dropout: where neighbours agree, the same p is more noise. In front of a batch "
              "norm: the variance in training is not that of evaluation.",
        first="p = 0.1: in a 3 x 3 window of a constant map, with equal weights, it is the noise of element dropout "
              "with p = 0.5.",
        evidence="*Proved*: where neighbours agree element noise [averages "
                 "out](/book/convolutional/spatial_dropout.ipynb#the-reason-for-the-method), that of maps does not; "
                 "the [equal noise](/book/convolutional/what_is_dropped.ipynb#exercises). *Measured here*: no [gain "
                 "over element dropout](/book/convolutional/spatial_dropout.ipynb#what-it-does-in-practice) on tiny "
                 "digits. *Literature*: pose estimation by {cite:t}`tompson2015efficient`.",
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
                    "window", replaces=f"{kind}Pool{axes}d", answers={"sharing": _WINDOWS, **answers})
              for kind, answers in _POOLS.items() for axes in (1, 2, 3)),
            Layer("StochasticPool2d", "stochastic_pool2d", "none", "continuous", "window", replaces="MaxPool2d",
                  answers={"law": "one element of a window, with probability in proportion to its size",
                           "sharing": "none: one draw for every window of every example",
                           "test_rule": "mean over the draw"}),
        ),
        used_by="convolutional networks with max-pooling, for image classification",
        use="In place of dropout and the pool behind it: the test rule is the mean of the pool under the masks.",
        avoid="Where a max pool sees negative values: what is dropped counts as 0, and beats them. With the scaled "
              "rule at a large p: it is too small.",
        first="p = 0.2, with the expected rule, which is the default.",
        evidence="*Proved*: [expected pooling](/book/convolutional/pooling_dropout.ipynb#expected-pooling) is the "
                 "mean of one window, the scaled rule is [too "
                 "small](/book/convolutional/pooling_dropout.ipynb#the-scaled-rule). *Measured here*: the [gain by "
                 "the right rule](/book/convolutional/pooling_dropout.ipynb#what-it-does-in-practice) grows with p; "
                 "no comparison with other dropout. *Literature*: better than the scaled rule for "
                 "{cite:t}`wu2015towards`.",
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
        use="As an augmentation for classifying small images, on the normalised input.",
        avoid="Before the normalisation. Divided by the seen share: no single factor repairs every pixel.",
        first="A square of half the side (16 of 32 pixels), which hides 19 % of an image on average.",
        evidence="*Proved*: [how much](/book/convolutional/cutout.ipynb#how-much-is-hidden) is hidden, and "
                 "[where](/book/convolutional/cutout.ipynb#where-it-is-hidden). *Measured here*: better where a "
                 "square is hidden at test time, too; [no clear "
                 "gain](/book/convolutional/cutout.ipynb#what-it-does-in-practice) on whole digits. *Literature*: "
                 "gains on CIFAR and SVHN, and squares of 16 for CIFAR-10, by {cite:t}`devries2017improved`.",
    ),
    Method(
        name="drop_block",
        title="DropBlock",
        part="convolutional",
        summary="Contiguous blocks of feature maps are set to zero, at random places of every map.",
        site="positions of a feature map, in every channel by itself",
        law="zero in the union of blocks; one begins at every place where it fits, with a probability gamma <= p; "
            "the rest is multiplied by the number of positions over that of those left",
        sharing="a block: b positions along every axis; one draw of blocks for every map of every example",
        test_rule="identity",
        references={"ghiasi2018dropblock": "section 3, algorithm 1"},
        facts=tuple(Layer(f"DropBlock{axes}d", f"drop_block{axes}d", "assigned", "discrete", "block")
                    for axes in (1, 2, 3)),
        used_by="image classification and detection: `DropBlock2d` of timm (off by default) and of torchvision",
        use="On large maps whose neighbours say nearly the same, where a single dropped position is no loss.",
        avoid="Where p is to be the dropped share: overlaps make it smaller. Where all positions are to "
              "be dropped equally often: a corner is dropped less often than the middle.",
        first="p = 0.1 and blocks of 7, the paper's for ImageNet, with p growing from 0 in training; smaller blocks on "
              "maps of less than 14 x 14.",
        evidence="*Proved*: [how often](/book/convolutional/drop_block.ipynb#how-often-a-position-is-dropped) a "
                 "position is dropped, and which [factor](/book/convolutional/drop_block.ipynb#the-factor) "
                 "keeps its mean. *Measured here*: what a block hides is [harder to "
                 "fill in](/book/convolutional/drop_block.ipynb#what-it-does-in-practice) from its neighbours; no "
                 "comparison of accuracy. *Literature*: gains on ImageNet and COCO by "
                 "{cite:t}`ghiasi2018dropblock`.",
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
        use="To study how much a network relies on its largest activations.",
        avoid="Where the mean has to stay: for the single maximum the scale keeps the sum of constant maps only. For "
              "MaxDropout, another method.",
        first="p = 0.1 and a window of one position, the defaults.",
        evidence="*Proved*: [what the scale "
                 "keeps](/book/convolutional/max_drop.ipynb#the-scale-keeps-only-sums-of-constant-maps). *Measured "
                 "here*: for channels it helps against the [same "
                 "damage](/book/convolutional/max_drop.ipynb#what-it-does-in-practice) at test time, not on whole "
                 "inputs. *Literature*: {cite:t}`park2016analysis`.",
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
        use="To study a rate that is not fixed; no measurement here speaks for it.",
        avoid="With a cap on the factor 1/(1 - p): where it acts, the mean is too small. With a variance in the place "
              "of the standard deviation of the normal law.",
        first="p uniform between 0 and 0.4, its authors' example.",
        evidence="*Proved*: [more "
                 "noise](/book/convolutional/stochastic_rate_dropout.ipynb#more-noise-than-at-the-average-rate) than "
                 "at the average rate, and masks that are uncorrelated but dependent. *Measured here*: nothing. "
                 "*Literature*: {cite:t}`park2016analysis`.",
    ),
    Method(
        name="rnndrop",
        title="RNNDrop",
        part="recurrent",
        summary="Units of an LSTM's cell are set to zero with probability p, for all steps of a sequence.",
        site="cell of an LSTM",
        law="raw Bernoulli keep mask, 1 with probability 1 - p; h is divided by 1 - p where it leaves the recursion of "
            "the cell",
        sharing="time: one mask for every unit of every sequence",
        test_rule="identity",
        references={"moon2015rnndrop": ""},
        facts=(Layer("RNNDropLSTM", None, "assigned", "discrete", "state", has_weights=True, replaces="LSTM"),),
        used_by="speech recognition; without the name in AllenNLP's `AugmentedLstm`, which masks h and returns another "
                "cell",
        use="Where an LSTM overfits, and fewer units at a time are enough: it costs a memory one factor only.",
        avoid="In a GRU, which has no cell. With a mask drawn anew at every step, or divided by 1 - p inside of the "
              "cell: the one forgets, the other may explode.",
        first="p = 0.2 to 0.5.",
        evidence="*Proved*: with gates held fixed, [one factor](/book/recurrent/rnndrop.ipynb"
                 "#one-factor-for-a-memory-of-any-age) however long the sequence, and [the exact test rule]"
                 "(/book/recurrent/rnndrop.ipynb#the-test-rule). *Measured here*: [how much a trained network still "
                 "depends on old inputs](/book/recurrent/rnndrop.ipynb#what-it-does-in-practice), and [errors with and "
                 "without it](/book/recurrent/memory.ipynb#a-task-that-needs-memory) on two tasks. *Literature*: "
                 "{cite:t}`moon2015rnndrop`.",
    ),
    Method(
        name="recurrent_dropout",
        title="Recurrent dropout",
        part="recurrent",
        summary="What a step adds to the memory is set to zero with probability p; the memory itself stays.",
        site="update of the cell of an LSTM (candidate g), or of the state of a GRU (candidate n)",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="none: another mask at every step (`sharing=\"sequence\"`: time)",
        test_rule="identity",
        references={"semeniuta2016recurrent": ""},
        facts=tuple(Layer(f"RecurrentDropout{kind}", None, "assigned", "discrete", "state", has_weights=True,
                          replaces=kind) for kind in ("LSTM", "GRU")),
        used_by="language models and speech recognition; TensorFlow's `LayerNormBasicLSTMCell`",
        use="As the first noise inside of a recurrent layer: it keeps memories, and its test rule is simple.",
        avoid="On the whole cell instead of the update: then a memory loses a factor 1 - p at every step. "
              "Under the name of Keras' `recurrent_dropout`, which is another method.",
        first="p = 0.25; per sequence less, because there the noise does not average out.",
        evidence="*Proved*: with gates held fixed, [the mean](/book/recurrent/recurrent_dropout.ipynb"
                 "#the-mean-one-factor-for-a-memory-of-any-age) of memories of any age, and [the noise]"
                 "(/book/recurrent/recurrent_dropout.ipynb#the-noise-per-step-and-per-sequence) over time. *Measured "
                 "here*: [the noise in a trained network](/book/recurrent/recurrent_dropout.ipynb"
                 "#what-it-does-in-practice), and [errors with and without it](/book/recurrent/memory.ipynb"
                 "#a-task-that-needs-memory) on two tasks. *Literature*: {cite:t}`semeniuta2016recurrent`.",
    ),
    Method(
        name="variational_rnn",
        title="Variational recurrent network",
        part="recurrent",
        summary="Inputs and states are read through masks that are drawn once for a sequence and stay for all its "
                "steps.",
        site="inputs, states read by the gates, and outputs",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="time; tied: gates as well",
        test_rule="identity: the mean weights; or Monte Carlo",
        references={"gal2016theoretically": ""},
        facts=tuple(Layer(f"Variational{kind}", None, "assigned", "discrete", "state", has_weights=True,
                          replaces=kind) for kind in ("LSTM", "GRU")),
        used_by="Keras (`recurrent_dropout` of its recurrent layers); language models",
        use="Where predictions are averaged over masks, and where an input should be missing for a whole sequence.",
        avoid="On sequences in chunks whose masks are not handed on, as every call draws new ones. Where one pass has "
              "to give the mean of the network, which the test rule does not.",
        first="p = 0.2 for inputs and states.",
        evidence="*Proved*: [what the test rule misses](/book/recurrent/variational_rnn.ipynb#one-mask-in-a-recursion) "
                 "of a linear network. *Measured here*: [gaps of up to 0.5](/book/recurrent/variational_rnn.ipynb#the-"
                 "test-rule-is-not-the-mean) between test rule and mean; on digits [an average of passes was not "
                 "better](/book/recurrent/variational_rnn.ipynb#what-it-does-in-practice) than the test rule. "
                 "*Literature*: {cite:t}`gal2016theoretically`.",
    ),
    Method(
        name="zoneout",
        title="Zoneout",
        part="recurrent",
        summary="A unit of the state keeps its old value, with probability p, instead of taking the new one.",
        site="state and cell",
        law="Bernoulli mask between the old value and the new one, old with probability p",
        sharing="none: another mask at every step",
        test_rule="the mean of old and new, p times the one and 1 - p times the other",
        references={"krueger2017zoneout": ""},
        facts=tuple(Layer(f"Zoneout{kind}", None, "assigned", "discrete", "state", has_weights=True,
                          replaces=kind) for kind in ("LSTM", "GRU")),
        used_by="speech synthesis (Tacotron 2); character-level language models",
        use="As noise that does not shorten the memory: a unit that is kept passes state and gradient on unchanged.",
        avoid="With large rates for h: the output lags behind the input. For long gradients alone: a larger bias of "
              "the forget gate gives them without noise.",
        first="0.5 for the cell and 0.05 for h.",
        evidence="*Proved*: mean and variance [of a step](/book/recurrent/zoneout.ipynb#one-step) and [of the cell "
                 "over time](/book/recurrent/zoneout.ipynb#the-cell-over-time). *Measured here*: [how far gradients "
                 "reach](/book/recurrent/zoneout.ipynb#what-it-does-in-practice) before training. *Literature*: "
                 "{cite:t}`krueger2017zoneout`.",
    ),
    Method(
        name="weight_drop",
        title="Weight drop",
        part="recurrent",
        summary="Recurrent weights are set to zero with probability p, with one mask for all steps and examples of a "
                "call.",
        site="recurrent weights (`weight_hh`)",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="time and batch: one mask for a call",
        test_rule="identity: the mean weights",
        references={"merity2018regularizing": "section 2"},
        facts=tuple(Layer(f"WeightDrop{kind}", None, "assigned", "discrete", "weight", has_weights=True,
                          replaces=kind) for kind in ("LSTM", "GRU")),
        used_by="AWD-LSTM, and with it fastai's text models",
        use="In a language model with many steps to a batch: it costs one mask, and torch's kernel runs.",
        avoid="Where a large batch is to average the noise out: all examples of a call share the mask, and what their "
              "states have in common only more calls average.",
        first="p = 0.5, the default.",
        evidence="*Proved*: [one step](/book/recurrent/weight_drop.ipynb#one-step), and [noise that "
                 "stays](/book/recurrent/weight_drop.ipynb#noise-that-stays-for-all-steps) for all steps. *Measured "
                 "here*: examples that are alike [share their "
                 "noise](/book/recurrent/weight_drop.ipynb#what-it-does-in-practice). *Literature*: "
                 "{cite:t}`merity2018regularizing`.",
    ),
    Method(
        name="embedding_dropout",
        title="Embedding and locked dropout",
        part="recurrent",
        summary="Whole word types, or features of a sequence, are set to zero with probability p for all steps.",
        site="vectors of word types; features of what passes between layers",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="places of a word in the batch, or in an example (`EmbeddingDropout`); time (`LockedDropout`)",
        test_rule="identity",
        references={"gal2016theoretically": "section 4.2", "merity2018regularizing": "section 4"},
        facts=(
            Layer("EmbeddingDropout", "embedding_dropout", "assigned", "discrete", "word", has_weights=True,
                  replaces="Embedding", answers={
                      "site": "vectors of word types", "sharing": "places of a word in the batch "
                      "(`sharing=\"sample\"`: in an example)"}),
            Layer("LockedDropout", "locked_dropout", "assigned", "discrete", "feature", replaces="Dropout", answers={
                "site": "features of what passes between layers", "sharing": "time"}),
        ),
        used_by="AWD-LSTM, fastai's text models",
        use="In a model of text: words that are dropped everywhere cannot be guessed from their other places.",
        avoid="With one mask for the batch where few words make up most of it: the share that is dropped then changes "
              "much from call to call.",
        first="p = 0.1 for words, p = 0.3 to 0.5 between layers.",
        evidence="*Proved*: [what a word's places "
                 "share](/book/recurrent/embedding_dropout.ipynb#what-a-words-places-share), [how "
                 "much](/book/recurrent/embedding_dropout.ipynb#how-much-of-a-text-is-dropped) of a text is dropped, "
                 "and noise that [stays](/book/recurrent/embedding_dropout.ipynb#features-over-time). *Measured "
                 "here*: [both mechanisms](/book/recurrent/embedding_dropout.ipynb#what-it-does-in-practice), on real "
                 "data. *Literature*: {cite:t}`gal2016theoretically`, {cite:t}`merity2018regularizing`.",
    ),
    Method(
        name="stochastic_depth",
        title="Stochastic depth",
        part="residual",
        summary="Whole residual branches are set to zero with probability p, so that every example sees a network of "
                "random depth.",
        site="output of a residual branch, before it is added",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p (`DropPath(scale_by_keep=False)`: not "
            "divided)",
        sharing="all elements of an example; of all examples too in the mode `\"batch\"` of `StochasticDepth`",
        test_rule="identity; times 1 - p (`DropPath(scale_by_keep=False)`)",
        references={"huang2016deep": ""},
        facts=(
            Layer("StochasticDepth", "stochastic_depth", "assigned", "discrete", "branch", answers={
                "law": "Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
                "sharing": "all elements of an example (`mode=\"batch\"`: of all examples)", "test_rule": "identity"}),
            Layer("DropPath", "drop_path", "assigned", "discrete", "branch", answers={
                "law": "Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p "
                       "(`scale_by_keep=False`: not divided)",
                "sharing": "all elements of an example",
                "test_rule": "identity (`scale_by_keep=False`: times 1 - p)"}),
        ),
        used_by="EfficientNet, ConvNeXt and Swin in torchvision; vision transformers in timm "
                "(`drop_path_rate`)",
        use="In a deep residual network, at the end of every branch, with a rate that grows linearly from the first "
            "block to the last.",
        avoid="On what is not added to a shortcut: a dropped layer would pass nothing on. With one draw for the batch "
              "where single rows will do: its noise does not average out over the examples.",
        first="0.1 in the last block, growing linearly from 0; more in deeper networks.",
        evidence="*Proved*: [mean and variance](/book/residual/stochastic_depth.ipynb#one-branch), the mean of [a "
                 "linear stack](/book/residual/stochastic_depth.ipynb#a-stack-of-blocks), and the [expected "
                 "depth](/book/residual/stochastic_depth.ipynb#the-depth). *Measured here*: [the gradient of the first "
                 "block](/book/residual/stochastic_depth.ipynb#what-it-does-in-practice), before training: raw noise "
                 "lowers it, the scale raises it. "
                 "*Literature*: {cite:t}`huang2016deep`.",
    ),
    Method(
        name="layer_drop",
        title="LayerDrop",
        part="residual",
        summary="Whole residual layers are left out with probability p, so that a network can lose layers after "
                "training.",
        site="a residual layer: what it adds to its input",
        law="raw Bernoulli keep mask, 1 with probability 1 - p",
        sharing="all elements of all examples (`mode=\"row\"`: of an example)",
        test_rule="the identity: all layers, or those that are kept when the network is pruned; not the mean",
        references={"fan2020reducing": ""},
        facts=(Layer("LayerDrop", None, "assigned", "discrete", "branch", has_weights=True),),
        used_by="wav2vec 2.0 in transformers (`layerdrop`, 0.1 by default); fairseq's transformers "
                "(`--encoder-layerdrop`, 0.2 recommended there)",
        use="In a deep transformer of which shallower versions will be needed: one training gives all of them. To save "
            "the time of the layers that are dropped.",
        avoid="Where the whole network has to be the mean of training: every branch gives more in it than it did on "
              "average. Under FSDP or ZeRO-3 without `skip=False`, under DistributedDataParallel without that or "
              "`find_unused_parameters=True`.",
        first="p = 0.2; 0.5 where half of the layers will be taken away.",
        evidence="*Proved*: [mean and variance](/book/residual/layer_drop.ipynb#one-layer) of a layer, the [number of "
                 "layers](/book/residual/layer_drop.ipynb#how-many-layers) that are left, and the rate that suits [a "
                 "smaller network](/book/residual/layer_drop.ipynb#which-rate-for-which-depth). *Measured here*: "
                 "networks of digits that [lose layers](/book/residual/layer_drop.ipynb#what-it-does-in-practice), "
                 "which digits do not need: less is lost than without, but networks of fewer layers from the start "
                 "are no worse. *Literature*: {cite:t}`fan2020reducing`.",
    ),
    Method(
        name="swapout",
        title="Swapout",
        part="residual",
        summary="Every element of a residual block keeps or drops its input and its branch, by two independent draws.",
        site="input and branch of a residual block, each by itself",
        law="two raw Bernoulli keep masks, 1 with probability 1 - p of the input and 1 - q of the branch",
        sharing="none: two draws for every element of every example",
        test_rule="the mean, 1 - p times the input plus 1 - q times the branch; or an average over samples",
        references={"singh2016swapout": ""},
        facts=(Layer("Swapout", "swapout", "assigned", "discrete", "branch", has_weights=True),),
        used_by="residual networks for images in its paper; rarely today, when whole branches are dropped instead "
                "(stochastic depth)",
        use="In a residual network that overfits, where every unit is to choose by itself between dropout, the plain "
            "layer, the shortcut and the whole block.",
        avoid="With the mean as test rule where the probabilities themselves count: their average over samples had the "
              "lower loss, also where the mean is exact. With a large rate for the input in all blocks of a deep "
              "network: what is left of the input shrinks by 1 - p at every block.",
        first="Both rates 0 in the first block, growing linearly to 0.5 in the last one, as in the paper, whose "
              "networks have up to 32 layers; in deeper ones a smaller last rate for the input.",
        evidence="*Proved*: [mean and variance](/book/residual/swapout.ipynb#mean-and-variance) of a block, the "
                 "[special cases](/book/residual/swapout.ipynb#special-cases), what is left of [the input behind many "
                 "blocks](/book/residual/swapout.ipynb#many-blocks). *Measured here*: the [two test "
                 "rules](/book/residual/swapout.ipynb#what-it-does-in-practice) with and without batch norm, and in a "
                 "network where the mean is exact. "
                 "*Literature*: {cite:t}`singh2016swapout`.",
    ),
    Method(
        name="shake_drop",
        title="ShakeDrop",
        part="residual",
        summary="A residual branch is multiplied, with probability p, by a random number, and its gradient by another "
                "one.",
        site="output of a residual branch, before it is added; its gradient",
        law="1 with probability 1 - p, else uniform between -1 and 1; for the gradient, with the same mask, uniform "
            "between 0 and 1 (`alpha_range`, `beta_range`)",
        sharing="mask: all elements of an example (`mode=\"batch\"`: of all examples); factors: the same (`level`: of "
                "all examples, of a channel, or none)",
        test_rule="the mean factor, 1 - p in these ranges",
        references={"yamada2019shakedrop": ""},
        facts=(Layer("ShakeDrop", "shake_drop", "assigned", "discrete", "branch"),),
        used_by="the code of AutoAugment, for a PyramidNet of 272 layers on CIFAR, with p growing to 0.5 in the last "
                "block",
        use="In a deep residual network for images, on a small data set that is trained for hundreds of epochs, where "
            "stochastic depth is not enough.",
        avoid="Where gradients have to be right: with second-order methods, or where they are compared with "
              "differences. On short training: the noise is strong.",
        first="p = 0.5 in the last block, growing linearly from the first, and the ranges of the paper.",
        evidence="*Proved*: mean, variance and covariance of the [forward "
                 "factor](/book/residual/shake_drop.ipynb#the-two-factors), and the weights where a [linear "
                 "branch](/book/residual/shake_drop.ipynb#where-a-linear-branch-ends) ends on average, which are no "
                 "minimum of the mean training loss. *Measured here*: [these weights](/book/residual/shake_drop.ipynb"
                 "#what-it-does-in-practice), for a branch that cleans digits. *Literature*: "
                 "{cite:t}`yamada2019shakedrop`.",
    ),
    Method(
        name="mc_dropout",
        title="Monte Carlo dropout",
        part="bayesian",
        summary="The noise of training stays on at test time; the mean of many passes is the prediction, their spread "
                "is read as what the network does not know.",
        site="whatever the dropout of the model multiplies: its layers and functions, those of torch included",
        law="that of the dropout with which the model was trained",
        sharing="none: one draw for every example (`masks=\"call\"`: one for all examples; `masks=\"fixed\"`: and "
                "for all calls)",
        test_rule="Monte Carlo: mean and variance over passes",
        references={"gal2016dropout": "sections 3 to 5"},
        facts=(
            Layer("monte_carlo", None, "none", "none", "element"),
            Layer("predict", None, "none", "none", "element", answers={
                "sharing": "none: one draw for every example (`masks=\"call\"`: one for all examples)"}),
        ),
        used_by="image segmentation, medical images, active learning; torch-uncertainty, baal, Lightning UQ Box",
        use="For softer probabilities under shift, with a network that was trained with dropout and cannot be trained "
            "again; roughly, to tell doubt of the network from noise of the data.",
        avoid="For an error bar that more data should shrink to zero: at a fixed p it settles above. Before the "
              "entropy of one pass was tried: on digits it found unknown classes as well.",
        first="100 samples, with the p of training; the last dropout alone where time matters.",
        evidence="*Proved*: with an approximate divergence, the loss of dropout with weight decay has the slope of [a "
                 "bound on the evidence](/book/bayesian/mc_dropout.ipynb#a-loss-that-is-a-bound), with [one "
                 "precision](/book/bayesian/mc_dropout.ipynb#the-precision-and-six-ways-to-miss-it). *Measured here*: "
                 "[calibration and unknown classes](/book/bayesian/mc_dropout.ipynb#what-it-does-in-practice) on "
                 "digits, and a spread that [does not go to "
                 "zero](/book/bayesian/mc_dropout.ipynb#what-it-does-not-know) with data. *Literature*: "
                 "{cite:t}`gal2016dropout`; ensembles by {cite:t}`lakshminarayanan2017simple`.",
    ),
    Method(
        name="sparse_variational_dropout",
        title="Sparse variational dropout",
        part="bayesian",
        summary="Every weight has noise of a variance that is learned, and weights that end as mostly noise are set to "
                "zero.",
        site="weights of a linear layer or a convolution",
        law="Gaussian with the weight as mean and a learned variance sigma^2: additive noise",
        sharing="none: one draw for every output (at every position of a map) of every example",
        test_rule="weights with log alpha = log(sigma^2/weight^2) above 3 are zero, the others as they are",
        references={"molchanov2017variational": "sections 4.1 to 4.4"},
        facts=(
            Layer("SparseVariationalLinear", "sparse_variational_linear", "learned", "continuous", "weight",
                  has_weights=True, replaces="Linear", answers={"site": "weights of a linear layer"}),
            *(Layer(f"SparseVariationalConv{axes}d", f"sparse_variational_conv{axes}d", "learned", "continuous",
                    "weight", has_weights=True, replaces=f"Conv{axes}d", answers={"site": "weights of a convolution"})
              for axes in (1, 2)),
        ),
        used_by="pruning of small image classifiers by its authors, in Theano and TensorFlow; a baseline for others",
        use="To find out which single weights a trained network can lose, with no budget to choose: the number of "
            "training examples sets the scale.",
        avoid="Where time has to be saved by it alone: single zeros make no layer smaller, and what is left of units "
              "decides. With the weight of the divergence at 1 from the first step on: all weights may go.",
        first="From a trained network, threshold 3, with a weight of the divergence that grows from 0 to 1 over the "
              "first epochs.",
        evidence="*Proved*: [a derivative of the weight that is free of "
                 "noise](/book/bayesian/sparse_variational_dropout.ipynb#the-additive-form), and [which weight of a "
                 "regression](/book/bayesian/sparse_variational_dropout.ipynb#what-becomes-of-one-weight) goes. "
                 "*Measured here*: [how many weights digits "
                 "need](/book/bayesian/sparse_variational_dropout.ipynb#what-it-does-in-practice), beside pruning by "
                 "size. *Literature*: LeNet on MNIST by {cite:t}`molchanov2017variational`.",
    ),
    Method(
        name="log_normal_dropout",
        title="Log-normal dropout",
        part="bayesian",
        summary="Every unit is multiplied by log-normal noise that is learned, and units whose noise drowns their "
                "signal are removed.",
        site="units or channels, in front of or behind their activation",
        law="log-normal factor between e^-20 and 1 whose logarithm is normal, with learned mu and s, cut off at -20 "
            "and 0",
        sharing="space (`sharing=\"batch\"`: and batch)",
        test_rule="the mean of the factor; 0 where its signal-to-noise ratio is below a threshold",
        references={"neklyudov2017structured": "section 3"},
        facts=(Layer("LogNormalDropout", "log_normal_dropout", "learned", "continuous", "unit"),),
        used_by="networks that are to become smaller: its authors' code, and ports of it",
        use="To make a trained network smaller by whole units: `compress` then leaves plain layers of a smaller size.",
        avoid="Where nothing is to be removed: the mean of the factor is below 1, and shrinks what it multiplies.",
        first="[-20, 0], mu = 0 and log s = -5, the defaults, in a network that is trained already.",
        evidence="*Proved*: [moments and limits](/book/bayesian/log_normal_dropout.ipynb#mean-and-signal-to-noise). "
                 "*Measured here*: on digits [a third of the units is left](/book/bayesian/log_normal_dropout.ipynb"
                 "#what-it-does-in-practice), and the error is no larger. *Literature*: "
                 "{cite:t}`neklyudov2017structured`.",
    ),
    Method(
        name="attention_dropout",
        title="Attention dropout",
        part="training",
        summary="Every weight of attention is set to zero with probability p behind the softmax, and the rest are not "
                "normalised again.",
        site="weights of attention, behind the softmax",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="none: one draw for every query, key, head and example; the features of a value share it",
        test_rule="identity: attention without dropout",
        references={"vaswani2017attention": "section 3.2.1"},
        # a function: as a layer on the weights it is Dropout
        facts=(Layer("attention_dropout", "attention_dropout", "none", "none", "element"),),
        used_by="torch (`dropout=` of `nn.MultiheadAttention` and of its transformer layers); BERT and GPT-2, with "
                "0.1",
        use="When a small transformer is trained for many epochs, together with dropout on the residual branches; and "
            "where a published recipe has it.",
        avoid="Where the fused kernel at hand has no dropout (FlexAttention, FlashAttention-3). In evaluation: "
              "torch's function drops there, too, unless it is given 0.",
        first="p = 0.1; 0 where each text is seen once.",
        evidence="*Proved*: the [output](/book/training/attention_dropout.ipynb#mean-and-variance) keeps its mean, "
                 "and the sum of the weights has less noise [the more keys share the "
                 "attention](/book/training/attention_dropout.ipynb#how-many-keys-share-the-attention). *Measured "
                 "here*: [how many examples](/book/training/attention_dropout.ipynb#what-it-does-in-practice) share "
                 "it, and what noise follows. *Literature*: the model by {cite:t}`vaswani2017attention`; keys dropped "
                 "in front of the softmax by {cite:t}`li2023dropkey`.",
    ),
    Method(
        name="patch_dropout",
        title="Patch dropout",
        part="training",
        summary="A transformer is trained on a part of its tokens, drawn without replacement for every example, and "
                "tested on all.",
        site="tokens of a sequence, such as patches of an image, which are removed",
        law="keep mask that keeps a fixed number of tokens, each choice as probable as the other; nothing is scaled",
        sharing="features: one draw for each token of every example",
        test_rule="identity",
        references={"liu2023patchdropout": "", "li2023scaling": "section 3"},
        facts=(Layer("PatchDropout", "patch_dropout", "assigned", "discrete", "token"),),
        used_by="FLIP, with 0.5 and 0.75; OpenCLIP (`--force-patch-dropout`; its ViT-G/14 with 0.5); timm "
                "(`patch_drop_rate`)",
        use="To train a vision transformer with less time and memory on large images, or on more of them.",
        avoid="Where single tokens matter: masked text loses more than masked images. Where few tokens would be left "
              "and training is short: a mean over few tokens is noisy.",
        first="p = 0.5, then a short training with all tokens (p = 0).",
        evidence="*Proved*: a mean over the tokens themselves is unbiased, with the [variance of a sample without "
                 "replacement](/book/training/patch_dropout.ipynb#mean-and-variance-of-a-mean-pool); attention is "
                 "[biased](/book/training/patch_dropout.ipynb#attention-is-biased). *Measured here*: on digits a "
                 "network trained on a quarter of the tokens is [best with "
                 "all](/book/training/patch_dropout.ipynb#what-it-does-in-practice) of them; it learns more slowly, "
                 "and with some last steps on all tokens ends above one that always had them. *Literature*: half the "
                 "time for the accuracy of CLIP or better by {cite:t}`li2023scaling`, table 1; large images by "
                 "{cite:t}`liu2023patchdropout`.",
    ),
    Method(
        name="neftune",
        title="NEFTune",
        part="training",
        summary="Uniform noise is added to the embeddings of a language model while it is fine-tuned.",
        site="embeddings of tokens, which the noise is added to",
        law="uniform between -1 and 1, times alpha/sqrt(TD) for a text of T tokens with D features",
        sharing="none: one draw for every feature of every token",
        test_rule="identity",
        references={"jain2024neftune": "section 2 and algorithm 1"},
        facts=(Layer("NEFTune", "neftune", "none", "continuous", "element"),),
        used_by="transformers (`neftune_noise_alpha` of `TrainingArguments`), and with it TRL; Ludwig, NeMo Automodel, "
                "unsloth",
        use="When a language model is fine-tuned on few instructions and its answers in conversation matter.",
        avoid="Without knowing which length the code takes (that of the text, or of a padded or packed batch) and "
              "whether a factor multiplies the embeddings behind it: the same alpha is then another noise.",
        first="alpha = 5; the paper also has 10 and 15.",
        evidence="*Proved*: the squared noise of a text is [alpha^2/3 on "
                 "average](/book/training/neftune.ipynb#how-large-the-noise-is), and in a linear model with squared "
                 "loss it is [ridge regression](/book/training/neftune.ipynb#in-a-linear-model-a-ridge). *Measured "
                 "here*: on digits, with the cross-entropy, the noise [shrinks "
                 "weights](/book/training/neftune.ipynb#what-it-does-in-practice), but less than that ridge, and with "
                 "the length of a padded batch still less; no language model. *Literature*: better answers in the "
                 "eyes of GPT-4, and the same scores in tests of knowledge, by {cite:t}`jain2024neftune`.",
    ),
    Method(
        name="condition_dropout",
        title="Condition dropout",
        part="training",
        summary="The whole condition of an example is replaced by a learned null with probability p, so that one model "
                "learns to predict with the condition and without.",
        site="the condition of an example, such as the embedding of a label or of a text",
        law="Bernoulli keep mask, 1 with probability 1 - p; a learned null stands where it is 0, and nothing is scaled",
        sharing="all features and positions of the condition of an example",
        test_rule="identity, which is not the mean; guidance takes the prediction under the null, too",
        references={"ho2022classifier": ""},
        facts=(Layer("ConditionDropout", "condition_dropout", "assigned", "discrete", "condition"),),
        used_by="diffusion models that are sampled with classifier-free guidance: DiT and the `LabelEmbedding` of "
                "diffusers drop labels with 0.1, its examples for InstructPix2Pix set 0.05",
        use="In a generative model that is to be sampled with guidance, or whose condition is missing for some inputs.",
        avoid="To regularise: with enough freedom the best prediction given the condition is the same for every p < 1. "
              "As dropout of single features, which almost never removes all of a condition. With zeros for the null "
              "where 0 is a condition.",
        first="p = 0.1.",
        evidence="*Proved*: under the squared loss a model with enough freedom is best with [the same two "
                 "means](/book/training/condition_dropout.ipynb#two-predictions) for every p between 0 and 1, and [p "
                 "sets the shares of the gradient](/book/training/condition_dropout.ipynb#what-p-changes). *Measured "
                 "here*: [how near to both means](/book/training/condition_dropout.ipynb#what-it-does-in-practice) a "
                 "model of digits comes in a given number of steps. *Literature*: {cite:t}`ho2022classifier`.",
    ),
    Method(
        name="lora_dropout",
        title="LoRA dropout",
        part="training",
        summary="Beside a frozen weight a low-rank adapter is trained, and elements of its input are set to zero with "
                "probability p; the frozen weight sees them all.",
        site="input of the adapter; that of the frozen weight stays",
        law="Bernoulli keep mask, 1 with probability 1 - p, divided by 1 - p",
        sharing="none: one draw for every element of every example, which all outputs of the adapter share",
        test_rule="identity: the adapter is merged into the weight, or added",
        references={"hu2022lora": ""},
        facts=(Layer("LoRALinear", "lora_linear", "assigned", "discrete", "element", has_weights=True,
                     replaces="Linear"),),
        used_by="the code of LoRA for GPT-2, with 0.1; PEFT (`lora_dropout`, 0 by default); torchtune, whose recipes "
                "went from 0.05 to 0",
        use="When a large trained layer is adapted to few examples for many epochs.",
        avoid="In one epoch on much data: torchtune saw no significant change, and it costs memory. In front of the "
              "frozen weight as well, if the layer is to stay near to it: under the squared loss the penalty is then "
              "on the sum of both.",
        first="p = 0; then 0.05 or 0.1 where the training loss falls far below that of validation.",
        evidence="*Proved*: the [mean](/book/training/lora_dropout.ipynb#mean-and-noise) is the merged layer, the "
                 "noise has [no more directions than the "
                 "rank](/book/training/lora_dropout.ipynb#no-more-directions-than-the-rank), and under the squared "
                 "loss [the penalty falls on the adapter "
                 "alone](/book/training/lora_dropout.ipynb#a-penalty-on-the-adapter-alone). *Measured here*: [how the "
                 "noise grows from zero](/book/training/lora_dropout.ipynb#what-it-does-in-practice) in training, and "
                 "a gain on turned digits with some wrong labels; stopping in time has a part of it, and dropout in "
                 "front of the whole layer, at p = 0.1, as much. *Literature*: the adapter by {cite:t}`hu2022lora`.",
    ),
    Method(
        name="nested_dropout",
        title="Nested dropout",
        part="training",
        summary="Units stand in an order, and of each example all behind a random length are set to zero.",
        site="units of a code, in their order",
        law="a length for each example: all units with probability 1 - p, else one of given sizes; the units behind it "
            "are 0, and nothing is scaled",
        sharing="one length for each example; channels or positions that are no units share it",
        test_rule="identity, or the first `length` units; neither is the mean",
        references={"rippel2014learning": ""},
        facts=(Layer("NestedDropout", "nested_dropout", "assigned", "discrete", "code"),),
        used_by="audio codecs, as quantizer or codebook dropout (Descript, with 0.5; NVIDIA NeMo); "
                "sentence-transformers sums the same loss over a few sizes (Matryoshka embeddings)",
        use="Where codes are to be cut after training: embeddings that are shortened for storage or search, codecs "
            "with several bit rates.",
        avoid="Where one length is all that is needed: a network of this length is better for very short codes. With "
              "a law that never keeps the last units, which then stay untrained.",
        first="p = 0.5, with the sizes that will be used.",
        evidence="*Proved*: the [probability of keeping](/book/training/nested_dropout.ipynb#which-units-are-kept), "
                 "and that a [linear "
                 "autoencoder](/book/training/nested_dropout.ipynb#what-it-does-to-a-linear-autoencoder) is least "
                 "wrong at the principal components in their order, where the plain loss is blind to rotation. "
                 "*Measured here*: on [digits](/book/training/nested_dropout.ipynb#what-it-does-in-practice) a code "
                 "of 16 units can be cut to 8 at little cost; cut to 4, after longer training, it is nearly as good as "
                 "a network of 4; all 16 lose nothing that is seen. *Literature*: equivalence to principal components "
                 "and adaptive compression by {cite:t}`rippel2014learning`, a few nested sizes by "
                 "{cite:t}`kusupati2022matryoshka`.",
    ),
    Method(
        name="graph_dropout",
        title="Graph dropout: edges and nodes",
        part="training",
        summary="Every edge of a graph is left out with probability p before neighbours are summed or averaged; or "
                "every node with all its edges.",
        site="edges of a graph, or nodes with all their edges",
        law="Bernoulli keep mask, 1 with probability 1 - p; nothing is scaled",
        sharing="none for directed edges; both directions of an edge with `force_undirected=True`; all edges of a node "
                "for `dropout_node`; all features, and all layers that are given the same edges",
        test_rule="identity: the whole graph",
        references={"rong2020dropedge": "", "feng2020graph": "", "you2020graph": ""},
        # functions of a list of edges; features of nodes are dropped by SpatialDropout1d
        facts=(
            Layer("dropout_edge", "dropout_edge", "none", "none", "element",
                  answers={"site": "edges of a graph",
                           "sharing": "none for directed edges; both directions of an edge with "
                                      "`force_undirected=True`; all features, and all layers that are given the same "
                                      "edges"}),
            Layer("dropout_node", "dropout_node", "none", "none", "element",
                  answers={"site": "nodes of a graph, with all their edges",
                           "sharing": "all edges of a node, all features, and all layers that are given the same "
                                      "edges"}),
        ),
        used_by="PyTorch Geometric (`dropout_edge`, with 0.2 in its example of Graph U-Net; `dropout_node`) and DGL "
                "(`DropEdge`, `DropNode`); the code of GRAND, whose default rate for rows of features is 0.5",
        use="In a graph network of several layers that knows its training nodes by heart, and where single edges "
            "should not decide.",
        avoid="With degrees that are counted again behind the draw, where the mean is to stay: in training the weight "
              "of a node on itself is then up to 1/(1 - p) times the true one. With a large p where most nodes have "
              "one or two edges: a share of p or p squared of them is left alone.",
        first="p = 0.2, both directions together, a draw for each layer, behind the normalisation, with the weights "
              "divided by 1 - p.",
        evidence="*Proved*: a [sum](/book/training/graph_dropout.ipynb#sum-over-neighbours) divided by 1 - p keeps its "
                 "mean; [degrees that are counted "
                 "again](/book/training/graph_dropout.ipynb#degrees-that-are-counted-again) give a node too much of "
                 "itself, up to the factor 1/(1 - p). *Measured here*: in a [club of 34 "
                 "people](/book/training/graph_dropout.ipynb#what-it-does-in-practice) two layers gain nothing that 60 "
                 "runs could show, whether degrees are counted again or not. *Literature*: with degrees that are "
                 "counted again, on Cora 0.4 points for 2 layers, 7 for 8 and 1 for 64, by {cite:t}`rong2020dropedge`.",
    ),
    Method(
        name="rate_schedule",
        title="Early, late and curriculum dropout",
        part="training",
        summary="The rate of every dropout layer is its own p times one factor in [0, 1], which changes with the step "
                "of training.",
        site="the rates of a model: whatever its dropout multiplies",
        law="that of each layer, at the rate of the moment; the factor is a function of the step, not drawn",
        sharing="one factor for all rates of the model; draws are shared as each layer does",
        test_rule="that of each layer",
        references={"morerio2017curriculum": "", "liu2023dropout": ""},
        facts=(Layer("RateSchedule", None, "none", "none", "element"),),
        used_by="the code of the two papers (linear fall over the first 50 of 300 epochs, p = 0.1, for a small vision "
                "transformer); elsewhere mostly a few lines in a loop of training",
        use="Where training at a constant p ends with a training loss that is too high, try a rate that falls to 0; "
            "where a run is long and fits the training set, one that begins later.",
        avoid="In a single epoch of language pretraining, where no dropout is best (literature). Where masks are to be "
              "drawn at test time: after early dropout every rate is 0, and all passes agree.",
        first="No dropout, and a constant p; then `early` over the first sixth of the steps, or `curriculum` with a "
              "gamma of 10 divided by their number.",
        evidence="*Proved*: scaled with the rate of the moment the [mean](/book/training/rate_schedule.ipynb"
                 "#scale-with-the-rate-of-the-moment) stays; in linear regression with linearly "
                 "independent features [where the mean weights end](/book/training/rate_schedule.ipynb"
                 "#what-the-start-leaves-behind) depends on the last rate alone. *Measured here*: on "
                 "[digits](/book/training/rate_schedule.ipynb#what-it-does-in-practice) the training loss mostly "
                 "follows the last rate, and no schedule is a clear gain in accuracy. *Literature*: "
                 "small vision models gain 0.3 to 0.5 points over no dropout from early dropout, and 0.2 to 0.9 from "
                 "early stochastic depth, for {cite:t}`liu2023dropout`; for one epoch of language no dropout is best, "
                 "also against early dropout, for {cite:t}`liu2025drop`.",
    ),
    Method(
        name="r_drop_loss",
        title="R-Drop",
        part="training",
        summary="Each batch goes through the network twice, and the loss also asks that the two predictions agree.",
        site="no tensor: the loss compares the outputs of two passes through one network",
        law="that of the network's own dropout, drawn anew for each pass",
        sharing="none between the two passes; in each as its layers share",
        test_rule="that of the network's layers; the loss is for training",
        references={"liang2021rdrop": ""},
        facts=(Layer("RDropLoss", None, "none", "none", "element"),),
        used_by="the scripts of its authors (alpha 5 for translation, 1 for language modelling, 0.7 for summaries); "
                "`RDropLoss` of PaddleNLP, which is the divergence alone, and of bert4torch, with another meaning of "
                "alpha",
        use="Where a network with a tuned dropout rate still overfits, and a second pass can be paid for; where its "
            "predictions should depend less on the mask.",
        avoid="In place of a rate that was never tuned: a higher one may do as well, for one pass. Where the spread "
              "over masks is wanted, as in Monte Carlo dropout: R-Drop trains it away.",
        first="alpha = 1, with cross-entropies that are summed; in code that averages them, 1/2.",
        evidence="*Proved*: the divergence is [never negative](/book/training/r_drop_loss.ipynb#never-negative), its "
                 "[mean over the masks](/book/training/r_drop_loss.ipynb#the-mean-over-the-masks-exactly) is a sum of "
                 "covariances, and to [second order](/book/training/r_drop_loss.ipynb#small-noise), in a linear "
                 "classifier, the loss has 1 + alpha times the penalty of dropout. *Measured here*: on "
                 "[digits](/book/training/r_drop_loss.ipynb#what-it-does-in-practice) no difference in accuracy from a "
                 "matched higher rate is seen; two passes agree more than with dropout alone, but a network trained at "
                 "the matched rate agrees as much if its masks are then drawn at the lower one. *Literature*: "
                 "{cite:t}`liang2021rdrop` report gains on 18 data sets of five tasks.",
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
    named = {key: layer for layer in row.facts for key in (layer.name, layer.function)}

    def decorate(documented: _Documented) -> _Documented:
        layer = named.get(documented.__name__)
        answers = {**row.answers, **(layer.answers if layer else {})}
        lines = [*(f"* {question.replace('_', ' ').capitalize()}: {answer.replace('`', '``')}."
                   for question, answer in answers.items()),
                 f"* Chapter: :doc:`/{row.chapter.removesuffix('.ipynb')}`."]
        return document(*of, like=like, four_answers="\n".join(lines), **words)(documented)

    return decorate
