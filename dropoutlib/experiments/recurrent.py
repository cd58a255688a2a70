"""Dropout in an LSTM, compared at equal budget: ``python -m dropoutlib.experiments.recurrent memory`` and two others.

``memory`` is the adding problem: two of many numbers are marked, and the network says their sum after the last one.
Examples never run out, so nothing has to be regularised: what is measured is what noise costs a network that has to
remember. ``language`` predicts the letters of a short text, which a network soon knows by heart: what is measured is
what noise gains. ``passes`` predicts the letters of a random process whose entropy is known, with as many updates on
text of which every letter is seen once as on a little of it that is seen again and again.

Each scheme starts from the same weights and sees the same examples; :func:`table` compares the scores, seed by seed.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropoutlib.noise import Bernoulli, inverted_scale
from dropoutlib.recurrence import Noise, State, Weights, run
from dropoutlib.recurrent.embedding_dropout import EmbeddingDropout, LockedDropout
from dropoutlib.recurrent.recurrent_dropout import RecurrentDropoutLSTM
from dropoutlib.recurrent.rnndrop import RNNDropLSTM
from dropoutlib.recurrent.variational_rnn import VariationalLSTM
from dropoutlib.recurrent.weight_drop import WeightDropLSTM
from dropoutlib.recurrent.zoneout import ZoneoutLSTM
from dropoutlib.recurrent_network import RecurrentNetwork

from .paired import Key, Plan, Row, Scores, arguments_of, compare, fill

__all__ = ["SCHEMES", "SETTINGS", "Network", "Run", "Setting", "StepMaskLSTM", "adding", "babble", "entropy", "main",
           "process", "prose", "real", "runs", "score", "table"]

_P, _EMBEDDING_P = 0.25, 0.1  # one rate for all, not tuned; that of AWD-LSTM for whole letters
_MODULES = ("difflib", "email/message", "codecs", "optparse", "http/cookiejar", "subprocess", "textwrap")
_HALF = "none, half as long"  # what stops before it knows the text by heart, its step size at zero
_SHA256 = "b9c855f9a495a502f82fda92e2941607d57864db87d6c12c13c2a0e04fa0d24a"
_LETTERS = 27  # a to z, and a space


class Setting(NamedTuple):
    """What all runs of an experiment have in common."""

    steps: int
    measured_at: tuple[int, ...]
    length: int
    batch: int
    units: int
    learning_rate: float


class Run(NamedTuple):
    """One training."""

    experiment: str
    noise: str
    p: float
    placement: str
    seed: int


_PASSES = {"once": "text seen once", "again": "text seen again"}
_SEQUENCES = 400    # of the text that is seen again
SETTINGS = {"memory": Setting(600, (600,), 60, 32, 32, 0.02), "language": Setting(1200, (400, 1200), 50, 16, 128, 0.01),
            **dict.fromkeys(_PASSES, Setting(800, (800,), 50, 16, 64, 0.01))}


class StepMaskLSTM(RecurrentNetwork):
    """An LSTM with another mask on its whole cell at every step: it forgets. For comparison, not for use.

    In evaluation a raw mask is replaced by its mean at every step; an inverted one is left out, since its mean is 1.

    Args:
        input_size: number of features.
        hidden_size: number of units.
        p: probability of dropping a unit of the cell.
        is_inverted: whether what is kept is divided by 1 - p.
    """

    mode: ClassVar[Any] = "LSTM"

    def __init__(self, input_size: int, hidden_size: int, *, p: float = 0.5, is_inverted: bool = False) -> None:
        super().__init__(input_size, hidden_size)
        self.p, self.is_inverted = p, is_inverted

    def _masks(self, x: Tensor, noise: Any, generator: torch.Generator | None) -> Tensor:
        like = x.new_empty(self._stacked, *x.shape[:2], self.hidden_size)
        return Bernoulli(self.p).sample(like, noise=noise, generator=generator)

    def _layer(self, k: int, x: Tensor, state: State, weights: Weights, masks: Tensor, lengths: Tensor | None
               ) -> tuple[Tensor, State]:
        cell = masks[k].to(x.dtype) * inverted_scale(self.p) if self.is_inverted else masks[k]
        return run(self.mode, x, state, weights, Noise(cell=cell), lengths)

    def _test_rule(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
        mean = None if self.is_inverted else x.new_full((1, 1, 1), 1 - self.p)
        return run(self.mode, x, state, weights, Noise(cell=mean), lengths)


_Build: TypeAlias = Callable[[int, int, float], nn.Module]
_INSIDE: dict[tuple[str, str], _Build] = {
    ("RNNDrop", "cell, a sequence"): lambda i, h, p: RNNDropLSTM(i, h, p=p),
    ("recurrent dropout", "update, a step"): lambda i, h, p: RecurrentDropoutLSTM(i, h, p=p),
    ("recurrent dropout", "update, a sequence"): lambda i, h, p: RecurrentDropoutLSTM(i, h, p=p, sharing="sequence"),
    ("variational", "state, a sequence"): lambda i, h, p: VariationalLSTM(i, h, p_input=0.0, p_hidden=p),
    ("variational", "input, state, output"): lambda i, h, p: VariationalLSTM(i, h, p_input=p, p_hidden=p, p_output=p),
    ("zoneout", "state and cell, a step"): lambda i, h, p: ZoneoutLSTM(i, h, p_hidden=p, p_cell=p),
    ("weight drop", "weights, a call"): lambda i, h, p: WeightDropLSTM(i, h, p=p),
    ("raw mask", "cell, a step"): lambda i, h, p: StepMaskLSTM(i, h, p=p),
    ("inverted mask", "cell, a step"): lambda i, h, p: StepMaskLSTM(i, h, p=p, is_inverted=True)}
_AROUND: dict[str, Callable[[float], nn.Module]] = {"nn.Dropout": nn.Dropout, "locked dropout": LockedDropout}
SCHEMES: dict[str, list[tuple[str, float, str]]] = {  # numbers to be added are not dropped
    "memory": [("-", 0.0, "none"), ("nn.Dropout", _P, "output"),
               *((noise, _P, place) for noise, place in _INSIDE if not place.startswith("input"))],
    "language": [("-", 0.0, "none"), ("-", 0.0, _HALF), ("nn.Dropout", _P, "input and output"),
                 *((noise, _P, place) for noise, place in _INSIDE if noise != "inverted mask"),
                 ("locked dropout", _P, "input and output"), ("embedding dropout", _EMBEDDING_P, "letters, a call")],
    "passes": [("-", 0.0, "none"), *(("nn.Dropout", p, "input and output") for p in (0.1, _P, 0.5)),
               ("locked dropout", _P, "input and output"), ("variational", _P, "input, state, output"),
               ("zoneout", 0.1, "state and cell, a step"), ("weight drop", _P, "weights, a call")]}


class Network(nn.Module):
    """Letters or features, an LSTM of one layer, and what is read from it.

    Args:
        inputs: number of features, or of letters.
        units: of the LSTM.
        outputs: number of outputs of a step.
        noise: of a scheme of ``SCHEMES``.
        placement: of that scheme.
        p: probability of dropping.
        letters: whether the inputs are numbers of letters; they get a third as many features as there are units.
    """

    def __init__(self, inputs: int, units: int, outputs: int, noise: str = "-", placement: str = "none",
                 p: float = 0.0, *, letters: bool = False) -> None:
        super().__init__()
        features = units // 3 if letters else inputs
        around = _AROUND.get(noise, lambda p: nn.Identity())
        inside = _INSIDE.get((noise, placement), lambda i, h, p: nn.LSTM(i, h))
        self.read: nn.Module = nn.Identity()
        if letters and noise == "embedding dropout":
            self.read = EmbeddingDropout(inputs, features, p=p)
        elif letters:
            self.read = nn.Embedding(inputs, features)
        self.before = around(p) if placement.startswith("input") else nn.Identity()
        self.lstm = inside(features, units, p)
        self.after = around(p) if placement.endswith("output") else nn.Identity()
        self.out = nn.Linear(units, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all steps, (T, B, outputs)."""
        return self.out(self.after(self.lstm(self.before(self.read(x)))[0]))


def adding(number: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Examples of the adding problem: one number in each half of a sequence is marked.

    Args:
        number: of sequences.
        length: number of steps.
        generator: of the examples.

    Returns:
        tuple[Tensor, Tensor]: numbers between -1 and 1 and their marks, ``(length, number, 2)``, and sums of the two
        that are marked, ``(number,)``. Who says 0 is wrong by 0.8165, root mean squared.
    """
    values, half = 2 * torch.rand(length, number, generator=generator) - 1, length // 2
    first = torch.randint(half, (number,), generator=generator)
    second = torch.randint(half, length, (number,), generator=generator)
    marks = torch.zeros(length, number)
    for place in (first, second):
        marks[place, torch.arange(number)] = 1
    return torch.stack([values, marks], -1), (values * marks).sum(0)


@cache
def prose(folder: str | None = None) -> tuple[Tensor, Tensor]:
    """English text that ships with Python: docstrings of seven modules, of which every second paragraph is held out.

    Capital letters are made small, and whatever is no letter becomes a space. Paragraphs of less than 80 letters,
    paragraphs with code, and repetitions are left out.

    Args:
        folder: of the standard library; None for that of this Python.

    Returns:
        tuple[Tensor, Tensor]: letters to train on and letters held out, as numbers: a space is 0, and a to z are 1 to
        26.

    Raises:
        ValueError: if this Python's text is another one; that of 3.10 to 3.13 is the same.
    """
    library = Path(folder or sysconfig.get_path("stdlib"))
    modules = (ast.parse((library / f"{name}.py").read_text(encoding="utf-8")) for name in _MODULES)
    documented = (node for module in modules for node in ast.walk(module)
                  if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    parts = chain.from_iterable(re.split(r"\n\s*\n", ast.get_docstring(node) or "") for node in documented)
    spelled = (" ".join(re.findall("[a-z]+", part.lower())) for part in parts if ">>>" not in part)
    paragraphs = list(dict.fromkeys(words for words in spelled if len(words) >= 80))
    if (found := hashlib.sha256("\n".join(paragraphs).encode()).hexdigest()) != _SHA256:
        raise ValueError(f"the docstrings of Python {sys.version.split()[0]} are not those of the experiment: their "
                         f"sha256 is {found}, and has to be {_SHA256}")
    return _letters(" ".join(paragraphs[::2])), _letters(" ".join(paragraphs[1::2]))


def _letters(text: str) -> Tensor:
    return torch.tensor([0 if letter == " " else ord(letter) - ord("a") + 1 for letter in text])


@cache
def process() -> Tensor:
    """Chances of the next letter after any two, in the text of :func:`prose`: a process of known entropy.

    Returns:
        Tensor: of shape ``(27, 27, 27)``; each row of it sums to one.
    """
    text = torch.cat(prose())
    counts = torch.zeros(_LETTERS, _LETTERS, _LETTERS)
    counts.index_put_((text[:-2], text[1:-1], text[2:]), torch.tensor(1.0), accumulate=True)
    counts[counts.sum(-1) == 0, 0] = 1      # two letters that never come in a row: a space follows
    return counts / counts.sum(-1, keepdim=True)


def babble(number: int, length: int, generator: torch.Generator) -> Tensor:
    """Text of :func:`process`, behind a word that ends with an e.

    Args:
        number: of sequences.
        length: number of letters of each.
        generator: of the text.

    Returns:
        Tensor: numbers of letters, ``(length, number)``.
    """
    chances, text = process(), [torch.full((number,), letter) for letter in _letters("e ").tolist()]
    for _ in range(length):
        text.append(torch.multinomial(chances[text[-2], text[-1]], 1, generator=generator).squeeze(-1))
    return torch.stack(text[2:])


def entropy(text: Tensor) -> float:
    """Bits per letter of a text under :func:`process`, which nothing that predicts it can beat on average.

    Args:
        text: numbers of letters, ``(length, number)``; the first two letters of a sequence do not count.
    """
    chances = process()[text[:-2], text[1:-1]].gather(-1, text[2:].unsqueeze(-1))
    return -chances.log2().mean().item()


def score(run: Run) -> list[float]:
    """Trains one network and tests it, without noise.

    Args:
        run: what to train.

    Returns:
        list[float]: after each number of updates that ``SETTINGS`` names, the root mean squared error of the sum, or
        bits per character.
    """
    torch.set_num_threads(1)
    setting = _setting(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)  # of the weights and of the noise
        scheme, examples = (run.noise, run.placement, run.p), torch.Generator().manual_seed(run.seed)
        if run.experiment == "memory":
            network = _for_long_memory(Network(2, setting.units, 1, *scheme), setting.length)
            test = adding(2000, setting.length, torch.Generator().manual_seed(10**6 + run.seed))
            found = _train(network, setting, lambda: adding(setting.batch, setting.length, examples), _squared_error,
                           lambda: _squared_error(network, *test).sqrt())
        elif run.experiment in _PASSES:
            network = Network(_LETTERS, setting.units, _LETTERS, *scheme, letters=True)
            test = _shifted(babble(1000, setting.length + 1, torch.Generator().manual_seed(10**6 + run.seed)))
            found = _train(network, setting, _reader(run, setting, examples), _surprise,
                           lambda: _surprise(network, *test) / math.log(2))
        else:
            train, held_out = prose()
            network = Network(_LETTERS, setting.units, _LETTERS, *scheme, letters=True)
            windows = held_out[:len(held_out) // (setting.length + 1) * (setting.length + 1)]
            test = _shifted(windows.reshape(-1, setting.length + 1).T)
            found = _train(network, setting, lambda: _windows(train, setting, examples), _surprise,
                           lambda: _surprise(network, *test) / math.log(2))
    return found


def _reader(run: Run, setting: Setting, examples: torch.Generator) -> Callable[[], tuple[Tensor, Tensor]]:
    """Gives new text at every update, or some of what there is."""
    if run.experiment == "once":
        return lambda: _shifted(babble(setting.batch, setting.length + 1, examples))
    text = babble(_SEQUENCES, setting.length + 1, examples)
    return lambda: _shifted(text[:, torch.randint(_SEQUENCES, (setting.batch,), generator=examples)])


def _for_long_memory(network: Network, length: int) -> Network:
    """Units whose memories last from one step to the length of a sequence (Tallec and Ollivier, 2018)."""
    bias = network.lstm.bias_ih_l0
    assert isinstance(bias, Tensor)
    units = len(bias) // 4
    with torch.no_grad():
        forget = torch.empty(units).uniform_(1, length - 1).log()
        bias[:units], bias[units:2 * units] = -forget, forget
    return network


def _windows(text: Tensor, setting: Setting, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(text) - setting.length, (setting.batch,), generator=generator)
    return _shifted(text[starts + torch.arange(setting.length + 1).unsqueeze(1)])


def _shifted(windows: Tensor) -> tuple[Tensor, Tensor]:
    return windows[:-1], windows[1:]


def _squared_error(network: nn.Module, inputs: Tensor, sums: Tensor) -> Tensor:
    return F.mse_loss(network(inputs)[-1].squeeze(-1), sums)


def _surprise(network: nn.Module, inputs: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(network(inputs).flatten(0, 1), following.flatten())


def _train(network: nn.Module, setting: Setting, draw: Callable[[], tuple[Tensor, Tensor]],
           loss: Callable[[nn.Module, Tensor, Tensor], Tensor], test: Callable[[], Tensor]) -> list[float]:
    """Adam with a step size that falls to zero, and gradients of norm 1 at most."""
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / setting.steps)
    found = []
    for step in range(1, setting.steps + 1):
        optimizer.zero_grad()
        loss(network, *draw()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step in setting.measured_at:
            network.eval()
            with torch.no_grad():
                found.append(test().item())
            network.train()
    return found


def runs(experiment: str, seeds: int) -> list[Run]:
    """All trainings of an experiment: every scheme of ``SCHEMES`` from every seed."""
    kinds = _PASSES if experiment == "passes" else [experiment]
    return [Run(kind, *scheme, seed) for seed in range(seeds) for kind in kinds for scheme in SCHEMES[experiment]]


def _setting(run: Run) -> Setting:
    setting = SETTINGS[run.experiment]
    half = setting.steps // 2
    return setting._replace(steps=half, measured_at=(half,)) if run.placement == _HALF else setting


def _keys(run: Run) -> list[Key]:
    """Where the scores of a run stand in the table."""
    setting = _setting(run)
    what = {"memory": f"adding, {setting.length} steps", **_PASSES}.get(run.experiment)
    return [(what or _updates(step), *run[1:4]) for step in setting.measured_at]


def _updates(number: int) -> str:
    return f"text, {number} updates"


def table(scores: Mapping[Key, Scores]) -> list[Row]:
    """Compares the scores, seed by seed; scores are errors, so a scheme that is better has a negative gain.

    Args:
        scores: of every scheme, as they stand in the table.

    Returns:
        list[Row]: ``"adding, 60 steps"`` or ``"text, 1200 updates"`` compares with no dropout after as many updates;
        ``"adding, 60 steps, over a mask a step"``, with a raw mask on the cell at every step; ``"text, 1200 updates,
        over half as long"``, with no dropout and half the updates, over which the step size falls to zero.
    """
    pairs: dict[Key, tuple[Scores, Scores]] = {}
    all_updates = SETTINGS["language"].steps
    last, half = _updates(all_updates), _updates(all_updates // 2)
    for (what, noise, p, place), values in scores.items():
        if noise == "-":
            continue
        pairs[what, noise, p, place] = values, scores[what, "-", 0.0, "none"]
        if what.startswith("adding") and noise != "raw mask":
            pairs[f"{what}, over a mask a step", noise, p, place] = values, scores[what, "raw mask", _P, "cell, a step"]
        if what == last:
            pairs[f"{what}, over half as long", noise, p, place] = values, scores[half, "-", 0.0, _HALF]
    return compare(pairs)


def real(rows: Sequence[Row]) -> list[Row]:
    """The rows whose gain is not zero, if all intervals of the table hold at once."""
    return [row for row in rows if row.all_low > 0 or row.all_high < 0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what is not in the table yet; :func:`~dropoutlib.experiments.paired.fill` says how."""
    parser = arguments_of("recurrent", __doc__, seeds=6)
    parser.add_argument("experiment", choices=sorted(SCHEMES))
    return fill(parser, arguments, lambda options: Plan(
        options.experiment, _about(options.experiment), runs(options.experiment, options.seeds), _keys, score))



def _about(experiment: str) -> tuple[str, str]:
    setting = SETTINGS["once" if experiment == "passes" else experiment]
    what = {"memory": "root mean squared error of the sum on 2000 sequences; 0.8165 is that of saying 0",
            "language": f"bits per character of held-out text, in windows of {setting.length} characters",
            "passes": f"bits per character of 1000 new sequences; {_SEQUENCES} sequences are seen again"}[experiment]
    return (f"{setting.steps} updates of {setting.batch} sequences of {setting.length} steps, {setting.units} units, "
            f"Adam from {setting.learning_rate:g}", f"a column for each seed: {what}")


if __name__ == "__main__":
    sys.exit(main())
