"""Docstrings: what several of them say is written once, and filled in where one says ``{word}``.

A text is a part of a sentence, one or more sections, or an entry of a section, such as ``p: the probability ...``; an
entry begins a line.  It is looked for in the words given to :func:`document`, in the docstring of another object, and
in ``WORDS``.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

__all__ = ["RANKS", "UNDER_SHAPE", "WORDS", "document"]

_Documented = TypeVar("_Documented", bound=Callable[..., object])

WORDS = {
    # Sections that the methods of all layers have, in the words of the function behind the layer.
    "call": "\n\nArgs:\n    {input}\n    {noise} {refused}\n    {generator}\n\n"
            "Returns:\n    {Returns}\n\n"
            "Raises:\n    ValueError: if ``noise`` is not as described above, or is given {unwanted}.\n"
            "    {RuntimeError}\n    TypeError: if the input is not a tensor.",
    "moment": "\n\nArgs:\n    {input}\n\nReturns:\n    Tensor of the shape of the layer's output.",
    "shown": "What ``print(layer)`` shows of the layer.",
    "output_mean": "Mean of the training output given the layer's input",
    "output_variance": "Variance of the training output given the layer's input",
    "refused": "Refused in evaluation.",
    "unwanted": "in evaluation",
    # Arguments.
    "elements": "input: floating point or complex tensor of any shape.",
    "features": "input: floating point tensor of shape ``(..., in_features)``.",
    "images": "input: floating point tensor of shape ``(N, C, H, W)`` or ``(C, H, W)``.",
    "drop_p": "p: probability of dropping an element.",
    "assigned": "The attribute ``p`` may be changed later.",
    "weight": "weight: of shape ``(out_features, in_features)``.",
    "bias": "bias: of shape ``(out_features,)``; ``None`` for none.",
    "training": "training: whether noise is applied; if not, the input is returned as it is.",
    "inplace": "inplace: whether the result is written into ``input``.",
    "mask": "noise: keep mask that replaces the draw, 0 or 1 before any scaling, of a shape that broadcasts to {fits}.",
    "raw_mask": "noise: keep mask that replaces the draw, 0 or 1, of a shape that broadcasts to {fits}.",
    "fits": "``input``",
    "generator": "generator: source of randomness; None is torch's global one.",
    "sequence_or_maps": "input: floating point tensor {shapes}.",
    "filters": "weight: as that of :func:`torch.nn.functional.conv{axes}d`.",
    "of_channels": "bias: of shape ``(out_channels,)``; ``None`` for none.",
    "in_channels": "in_channels: as torch's.",
    "out_channels": "out_channels: as torch's.",
    "kernel": "kernel_size: as torch's.",
    "stride": "stride: as torch's.",
    "padding": "padding: as torch's.",
    "dilation": "dilation: as torch's.",
    "groups": "groups: as torch's.",
    "padding_mode": "padding_mode: as torch's.",
    "geometry": "{stride} {padding} {dilation} {groups}",
    "in_features": "in_features: size of each input.",
    "out_features": "out_features: size of each output.",
    "device": "device: where the parameters lie.",
    "dtype": "dtype: type of the parameters.",
    # Recurrent networks.
    "input_size": "input_size: number of features of a step.",
    "hidden_size": "hidden_size: number of units of a layer.",
    "num_layers": "num_layers: number of layers, one above the other.",
    "bias_too": "bias: whether biases are added.",
    "batch_first": "batch_first: whether the batch is the first axis of input and output, in front of time.",
    "between": "dropout: probability of dropping between layers, at every step anew, as torch's own does.",
    "bidirectional": "bidirectional: whether a second direction reads from the end.",
    "proj_size": "proj_size: has to be 0; it keeps the order of torch's arguments.",
    "like_torch": "{input_size} {hidden_size} {num_layers} {bias_too} {batch_first} {between} {bidirectional} "
                  "{proj_size}",
    "recurrent_shape": "As for torch's own. {given} Here K is ``num_layers``, doubled by ``bidirectional``, in torch's "
                       "order of states; steps are counted as a direction reads them. With ``dropout`` between layers "
                       "the noise is a pair, of this and of keep masks ``(num_layers - 1, T, B, features)``; one "
                       "that is None is drawn.",
    "bad_sizes": "ValueError: if a probability is not between 0 and 1, a size is less than 1, or ``proj_size`` is not "
                 "0.\n"
                 "TypeError: if an argument is of another type.",
    "stays_plain": "In evaluation it is torch's own, whose trained weights load and mean the same; "
                   "the evaluated layer exports.",
    # Pools.
    "pooled": "``input``: {the_input} The output has the shape that torch's pooling gives it. {given}",
    "overlap": "\n\nOverlapping windows share masks, so their outputs are correlated.",
    "bad_maps": "RuntimeError: if the input has a wrong number of axes, is smaller than a window, or holds no real "
                "floating point numbers, or {bad_generator}.",
    "bad_padding": "RuntimeError: if the padding is larger than half of a window.",
    "bad_numbers": "TypeError: if ``p`` is not a real number or a size no whole number.",
    # What comes back.
    "drawn": "A draw is in the memory format of ``x``, of its shape but for the axes ``shared``.",
    "same": "Tensor of the shape, dtype and memory format of ``input``.",
    "outputs": "Tensor of shape ``(..., out_features)``.",
    "given": "``noise``: {the_noise}",
    "any_shape": "Input of any shape; the output has the same one. {given}",
    "image_shape": "Input ``(N, C, H, W)`` or ``(C, H, W)``; the output has the same one. {given}",
    "convolved": "Tensor of the shape that torch's convolution gives.",
    "convolved_shape": "Input {shapes}; the output has the shape that torch's convolution gives. {given}",
    "linear_shape": "Input ``(..., in_features)``, output ``(..., out_features)``. {given}",
    # Errors.
    "bad_p": "if ``p`` is not between 0 and 1",
    "bad_rate": "ValueError: {bad_p}.\n{no_number}",
    "bad_noise": "if ``noise`` does not broadcast to {fits}, or if it is given while ``training`` is False",
    "bad_values": "ValueError: {bad_p}, {bad_noise}.",
    "bad_generator": "if ``generator`` cannot be used here (see :class:`~dropoutlib.noise.Bernoulli`)",
    "bad_input": "RuntimeError: if the input holds integers or booleans, or {bad_generator}.",
    "bad_features": "RuntimeError: if shapes do not fit, if the input holds no real floating point numbers, or "
                    "{bad_generator}.",
    "no_tensor": "TypeError: if the input is not a tensor.",
    "no_tensor_or_number": "TypeError: if the input is not a tensor or ``p`` not a real number.",
    "no_number": "TypeError: if ``p`` is not a real number.",
    # Sentences.
    "identity": "In evaluation the input is returned as it is.",
    "selects": "Dropping selects: a dropped ``inf`` or ``nan`` becomes 0, with a zero gradient.",
    "no_draw": "With p = 0 the input itself is returned, with p = 1 everything is zero; neither draws.",
    "too_sure": "Without covariances the units of a layer count as independent. They are not, and in a trained network "
                "this matters: in the two networks of the chapter on fast dropout, trained with masks, the standard "
                "deviations of 200 logits come out as 0.56 of the true ones behind one hidden layer of 256 units "
                "(median; 0.42 to 0.73) and as 0.42 behind three (0.19 to 0.68). At initialisation the medians are "
                "0.99 and 1.00, and single logits are off by up to 11 %. With covariances the trained ones are 1.00 "
                "(0.97 to 1.03) and 0.98 (0.93 to 1.04).",
    "loads_convolution": "Trained weights of :class:`torch.nn.Conv{axes}d` load and mean the same; :meth:`from_conv` "
                         "makes a layer of one.",
    "loads": "Trained weights of :class:`torch.nn.Linear` load and mean the same.",
}

# Words for the methods that a linear layer and convolutions share.
UNDER_SHAPE = {"input": "input: of the shape that the layer says under Shape.",
               "noise": "noise: replaces the draw; its shape is said there, too.",
               "Returns": "Tensor of the shape that is said there."}

# Words for the ranks of a layer on maps.
RANKS = {
    1: {"axes": "1", "maps": "a sequence", "shapes": "of shape ``(N, C, L)`` or ``(C, L)``", "ones": ", 1",
        "size": ", 4"},
    2: {"axes": "2", "maps": "an image", "shapes": "of shape ``(N, C, H, W)`` or ``(C, H, W)``", "ones": ", 1, 1",
        "size": ", 1, 4"},
    3: {"axes": "3", "maps": "a volume", "shapes": "of shape ``(N, C, D, H, W)`` or ``(C, D, H, W)``",
        "ones": ", 1, 1, 1", "size": ", 1, 1, 4"},
}


def document(*of: Callable[..., object], like: Callable[..., object] | None = None,
             **words: str) -> Callable[[_Documented], _Documented]:
    """Fills in the words of a docstring.

    Args:
        *of: objects whose docstrings give words, such as the function behind a layer: ``{p}`` is its entry for ``p``,
            ``{the_p}`` what the entry says, ``{Returns}`` the whole section. The last one counts.
        like: a class or a function whose docstring is taken instead of that of the decorated one: the ranks of a
            layer say the same in other words. Its example begins with ``{>>>}``, so that it runs for the ranks alone.
        **words: more words, such as those of a rank.

    Returns:
        A decorator for a function, or a class, whose methods it fills too. Of a private class it fills the methods
        alone: the docstring stays as it is, for ``like``.
    """
    known = {**WORDS, **{name: text for source in of for name, text in _said_by(source.__doc__ or "").items()}, **words}

    def decorate(documented: _Documented) -> _Documented:
        for method in filter(inspect.isfunction, vars(documented).values()):
            method.__doc__ = _filled(method.__doc__, known)
        if not (isinstance(documented, type) and documented.__name__.startswith("_")):
            documented.__doc__ = _filled((like or documented).__doc__, known)
        return documented

    return decorate


@cache
def _said_by(docstring: str) -> dict[str, str]:
    """The sections of a docstring, and the entries in them, each in one line."""
    text = _cleaned(docstring)
    said = {section: _cleaned(body) for section, body in re.findall(r"^(\w+):((?:\n(?: .*)?)+)", text, re.M)}
    for name, entry in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", text, re.M):
        said[f"the_{name}"] = " ".join(entry.split())
        said[name] = f"{name}: {said[f'the_{name}']}"
    return said


def _filled(template: str | None, words: Mapping[str, str]) -> str | None:
    """A docstring with its words; what does not fit into a line goes on in the next one of the paragraph."""
    if template is None or "{" not in template:  # python -OO removes docstrings
        return template
    lines: list[str] = []
    broken = ""
    for line in _expanded(_cleaned(template).replace("{>>>}", ">>>"), words):
        if broken and line.strip() and _indent(line) == _indent(broken) and not _is_entry(line):
            line = f"{lines.pop()} {line.lstrip()}"
        broken = ""
        if len(line) > 116 and not line.lstrip().startswith((">>>", "...")):
            further = "    " if _is_entry(line) else "  " if line.startswith("* ") else ""
            whole = re.sub("``.*?``", lambda literal: literal[0].replace(" ", "\0"), line)
            *parts, line = textwrap.wrap(whole, 116, subsequent_indent=_indent(line) + further, break_long_words=False,
                                         break_on_hyphens=False)
            lines, broken = lines + parts, line
        lines.append(line)
    return "\n".join(lines).replace("\0", " ")


def _expanded(text: str, words: Mapping[str, str]) -> list[str]:
    def word(found: re.Match[str]) -> str:
        space, name = found.groups()
        if name not in words:
            return found[0]
        said = "\n".join(_expanded(words[name], words))
        if not _is_entry(said):
            return space + said
        return f"\n{said}" if space or found.start() == 0 else found[0]  # \frac{p}{1 - p} has no entry

    lines = []
    for line in text.splitlines():
        if "{" not in line:
            lines.append(line)
            continue
        filled = re.sub(r"( ?)\{(\w+)\}", word, line.lstrip()).lstrip("\n")
        lines += [(_indent(line) + part).rstrip() for part in filled.split("\n")]
    return lines


def _cleaned(docstring: str) -> str:
    """As :func:`inspect.cleandoc`, which takes longer than all the rest."""
    margin = min(re.findall(r"\n( *)\S", docstring), default="")
    return docstring.replace(f"\n{margin}", "\n").strip()


def _is_entry(text: str) -> bool:
    return re.match(r" *\w+: ", text) is not None


def _indent(line: str) -> str:
    return line[:len(line) - len(line.lstrip())]
