"""Figures that a reader moves: curves, clouds and a network that are proved formulas, with sliders (extra ``book``).

What is drawn is the SymPy expression of a derivation: it is printed in the expression language of Vega, and the browser
works it out anew whenever a slider moves.  A figure carries numbers that :func:`~dropoutlib.symbolic.number` computed
from the same expression at other positions of the sliders; ``book/_tools/check_pages.py`` moves them and compares.

JupyterLab draws :func:`curves` and :func:`cloud` by itself, the pages with ``book/_tools/sliders.py``; :func:`network`
is HTML with its own few lines of script.

>>> from sympy import symbols
>>> from dropoutlib.interactive import Slider, curves
>>> p = symbols("p", positive=True)
>>> curves({"inverted": p / (1 - p), "raw": p * (1 - p)}, p,
...        {p: Slider(0.0, 0.9, 0.5, "p, the probability of dropping")}, y="variance", title="Variance of a mask",
...        alt="One curve rises without bound, the other has a maximum at one half.")
Figure with sliders: Variance of a mask
  inverted: p/(1 - p)
  raw: p*(1 - p)
  p, the probability of dropping: 0.0 to 0.9, at first 0.5
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sympy import (
    Add,
    Expr,
    Indexed,
    Integer,
    Mul,
    Product,
    S,
    Sum,
    Symbol,
    cosh,
    exp,
    sinh,
    sympify,
    tanh,
)
from sympy.printing.codeprinter import CodePrinter, PrintMethodNotImplementedError

from .plotting import BLUE, GREEN, ORANGE
from .symbolic import number
from .symbolic.notation import MOMENTS, plain

__all__ = ["MIME", "Figure", "Slider", "cloud", "curves", "network"]

MIME = "application/vnd.vegalite.v5+json"       # the version that JupyterLab draws
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"      # a name, from which nothing is fetched
COLOURS = [BLUE, ORANGE, GREEN]
DASHES = [[1, 0], [7, 3], [2, 2]]
STEPS = 200
LARGEST_FACTORIAL = 170                         # the largest that a float holds
SIZE = {"width": 500, "height": 260}

# ``currentColor`` is the colour of the text around the figure, light or dark.
CONFIG = {
    "background": "transparent",
    "view": {"stroke": None},
    "mark": {"aria": False},
    "axis": {"aria": False, "labelColor": "currentColor", "titleColor": "currentColor", "domainColor": "currentColor",
             "tickColor": "currentColor", "gridColor": "currentColor", "gridOpacity": 0.15, "labelFontSize": 12,
             "titleFontSize": 13, "titleFontWeight": "normal"},
    "legend": {"aria": False, "labelColor": "currentColor", "labelFontSize": 13, "labelLimit": 0, "orient": "top",
               "columns": 1, "title": None, "symbolType": "stroke", "symbolSize": 600, "symbolStrokeWidth": 2},
    "title": {"aria": False, "color": "currentColor", "subtitleColor": "currentColor", "anchor": "start",
              "subtitleFontSize": 13},
}


@dataclass(frozen=True)
class Slider:
    """A slider for one symbol.

    Attributes:
        low: the smallest value.
        high: the largest.
        start: the value before it is moved.
        label: plain text that says what is moved, such as "p, the probability of dropping".
        step: from one value to the next; by default 1 between whole numbers, otherwise 0.01.
    """

    low: float
    high: float
    start: float
    label: str
    step: float | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.start <= self.high or self.low == self.high:
            raise ValueError(f"{self.label}: {self.start} is not between {self.low} and {self.high}")
        if not self.label.strip() or "$" in self.label:
            raise ValueError(f"the label of a slider is plain text, got {self.label!r}")

    @property
    def whole(self) -> bool:
        """Whether it moves over whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.start, self.step or 1))

    @property
    def stride(self) -> float:
        """The step."""
        return self.step or (1 if self.whole else 0.01)

    def at(self, share: float) -> float:
        """The value nearest to a share of the way, as the input of a browser computes it."""
        steps = round(share * (self.high - self.low) / self.stride)
        return min(round(self.low + steps * self.stride, 10), self.high)

    def bind(self) -> dict[str, Any]:
        """What Vega makes a labelled input of."""
        return {"input": "range", "min": self.low, "max": self.high, "step": self.stride, "name": self.label}


# -- from a proof to the browser ------------------------------------------------
class _Vega(CodePrinter):  # type: ignore[misc]
    """Vega's expression language; all its functions but two are those of JavaScript's ``Math``."""

    language = "Vega"
    _operators = {"and": "&&", "or": "||", "not": "!"}      # noqa: RUF012  # as the base class declares it

    def __init__(self, names: Mapping[Symbol, str]) -> None:
        super().__init__({"strict": True})
        self.names = names
        self.known_functions = {**{name: name for name in ("atan", "cos", "exp", "log", "sin")}, "Abs": "abs",
                                "Max": "max", "Min": "min", "Phi": "cumulativeNormal", "phi": "densityNormal"}

    def _print_Symbol(self, e: Any) -> str:
        if e not in self.names:
            raise ValueError(f"{e} has neither a slider nor a value")
        return self.names[e]

    def _print_Function(self, e: Any) -> str:
        if e.func.__name__ not in self.known_functions:
            raise ValueError(f"the browser cannot work out {plain(e)}")
        return str(super()._print_Function(e))

    def _print_Integer(self, e: Any) -> str:
        return str(int(e)) if abs(int(e)) < 2**53 else repr(float(e))

    def _print_Rational(self, e: Any) -> str:
        return f"{self._print(Integer(e.p))}/{self._print(Integer(e.q))}"

    def _print_Float(self, e: Any) -> str:
        return repr(float(e))

    def _print_NumberSymbol(self, e: Any) -> str:
        return repr(float(e))

    _print_Pi = _print_Exp1 = _print_NumberSymbol

    def _print_NaN(self, e: Any) -> str:
        return "NaN"

    def _print_Pow(self, e: Any) -> str:
        if e.exp == -1:
            return f"1/{self.parenthesize(e.base, 1000)}"
        if e.exp == S.Half:
            return f"sqrt({self._print(e.base)})"
        return f"pow({self._print(e.base)}, {self._print(e.exp)})"

    def _print_Relational(self, e: Any) -> str:
        sign = {"==": "===", "!=": "!=="}.get(e.rel_op, e.rel_op)
        return f"({self._print(e.lhs)} {sign} {self._print(e.rhs)})"

    def _print_Piecewise(self, e: Any) -> str:
        value = "NaN"
        for then, condition in reversed(e.args):
            value = self._print(then) if condition == S.true \
                else f"({self._print(condition)} ? {self._print(then)} : {value})"
        return value

    def _print_KroneckerDelta(self, e: Any) -> str:
        return f"({self._print(e.args[0])} === {self._print(e.args[1])} ? 1 : 0)"

    def _print_sign(self, e: Any) -> str:
        argument = self._print(e.args[0])
        return f"({argument} > 0 ? 1 : {argument} < 0 ? -1 : 0)"

    def _print_erf(self, e: Any) -> str:
        return f"(2*cumulativeNormal(sqrt(2)*({self._print(e.args[0])})) - 1)"

    def _print_erfc(self, e: Any) -> str:
        return f"(2*cumulativeNormal(-sqrt(2)*({self._print(e.args[0])})))"

    def _print_factorial(self, e: Any) -> str:
        return f"factorials[{self._print(e.args[0])}]"

    def _print_binomial(self, e: Any) -> str:
        above, below = map(self._print, e.args)
        return (f"(0 <= {below} && {below} <= {above} ? "
                f"factorials[{above}]/(factorials[{below}]*factorials[{above} - ({below})]) : 0)")


def printed(expression: Any, names: Mapping[Symbol, str]) -> str:
    """An expression in Vega's language.

    Args:
        expression: without sums and entries of arrays.
        names: what each symbol is called there.

    Returns:
        str: the text.

    Raises:
        ValueError: if something has no counterpart there; the message names it.

    >>> from sympy import sqrt, symbols
    >>> from dropoutlib.interactive import printed
    >>> p, n = symbols("p n", positive=True)
    >>> printed(sqrt(p) / (n**2 * (1 - p)), {p: "slider_p", n: "slider_n"})
    'sqrt(slider_p)/(pow(slider_n, 2)*(1 - slider_p))'
    """
    expression = sympify(expression).replace(lambda e: isinstance(e, sinh | cosh | tanh), lambda e: e.rewrite(exp))
    try:
        return str(_Vega(names)._print(expression))
    except PrintMethodNotImplementedError as error:
        raise ValueError(f"the browser cannot work out {plain(expression)}: {error}") from error


def _unrolled(e: Any) -> Any:
    """Every sum and product written out."""
    if isinstance(e, MOMENTS):
        raise ValueError(f"{plain(e)} is a sum over all masks: work it out first")
    if isinstance(e, Sum | Product):
        *inner, (index, low, high) = e.limits
        if not (low.is_Integer and high.is_Integer):
            raise ValueError(f"{plain(e)} has no fixed number of terms: give a value to {plain(high)}")
        body = e.func(e.function, *inner) if inner else e.function
        parts = [_unrolled(body.xreplace({index: Integer(i)})) for i in range(int(low), int(high) + 1)]
        return (Add if isinstance(e, Sum) else Mul)(*parts)
    return e if not e.args or isinstance(e, Indexed) else e.func(*map(_unrolled, e.args))


class _Formulas:
    """The expressions of a figure: for the browser as text, for the check as numbers."""

    def __init__(self, sliders: Mapping[Any, Slider], values: Mapping[Any, Any] | None) -> None:
        self.sliders = dict(sliders)
        if not self.sliders:
            raise ValueError("a figure that moves needs a slider")
        self.formulas = {key: value for key, value in (values or {}).items() if isinstance(value, Expr)}
        self.numbers = {key: _listed(value) for key, value in (values or {}).items() if key not in self.formulas}
        self.names = {symbol: f"slider_{re.sub(r'[^0-9A-Za-z]', '_', str(symbol))}" for symbol in self.sliders}
        if len(set(self.names.values())) < len(self.names):
            raise ValueError(f"two sliders have one name: {', '.join(map(str, self.names))}")

    def text(self, proved: Any, *, rows: Mapping[Any, str] | None = None, axis: Mapping[Any, str] | None = None) -> str:
        """What the browser works out.

        Args:
            proved: a derivation, an identity or an expression.
            rows: what the arrays and symbols that a row of data holds are called.
            axis: the name of the symbol along the horizontal axis.
        """
        rows = rows or {}
        scalars = {symbol: sympify(value) for symbol, value in self.numbers.items() if isinstance(symbol, Symbol)}
        names = {**self.names, **(axis or {}), **{key: text for key, text in rows.items() if isinstance(key, Symbol)}}

        def entry(e: Any) -> Any:
            if any(not index.is_Integer for index in e.indices):
                raise ValueError(f"{plain(e)}: give a value to its index")
            place = [int(index) - 1 for index in e.indices]
            if e.base in rows:
                symbol = Symbol(plain(e), real=True)
                names[symbol] = rows[e.base] + "".join(f"[{index}]" for index in place)
                return symbol
            if e.base not in self.numbers:
                raise ValueError(f"no value for {e.base}: give {{{e.base}: ...}}")
            value = self.numbers[e.base]
            for index in place:
                value = value[index]
            return sympify(value)

        expression = _unrolled(self._expression(proved).xreplace(scalars))
        return printed(expression.replace(lambda e: isinstance(e, Indexed), entry), names)

    def value(self, proved: Any, sliders: Mapping[Any, float], row: Mapping[Any, Any] | None = None) -> float:
        """The same as a number, worked out by the judge's arithmetic and not from the text."""
        return number(self._expression(proved), {**self.numbers, **sliders, **(row or {})})

    def _expression(self, proved: Any) -> Any:
        return expression_of(proved).xreplace(self.formulas)

    def positions(self) -> Iterator[dict[Any, float]]:
        """The start, and every slider by itself near both ends of its way."""
        start = {symbol: slider.start for symbol, slider in self.sliders.items()}
        yield start
        for symbol, slider in self.sliders.items():
            for share in (0.2, 0.9):
                yield start | {symbol: slider.at(share)}

    def checks(self, expressions: Sequence[Any]) -> list[dict[str, Any]]:
        """What the browser has to show at some positions of the sliders."""
        return [{"sliders": {self.names[symbol]: value for symbol, value in position.items()},
                 "values": [self.value(expression, position) for expression in expressions]}
                for position in self.positions()]


def expression_of(proved: Any) -> Any:
    """The last line of a derivation, the right side of an identity, or the expression itself."""
    return sympify(getattr(proved, "result", getattr(proved, "right", proved)))


def _listed(value: Any) -> Any:
    """Arrays and tensors as nested lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(map(_listed, value)) if isinstance(value, tuple | list) else value


# -- figures ----------------------------------------------------------------------
class Figure:
    """A figure with sliders.

    Attributes:
        spec: the specification in Vega-Lite.
    """

    def __init__(self, spec: dict[str, Any], description: str) -> None:
        self.spec, self._description = spec, description

    def __repr__(self) -> str:
        return self._description

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {MIME: self.spec, "text/plain": repr(self)}


def curves(expressions: Mapping[str, Any], x: Symbol, sliders: Mapping[Any, Slider], *, y: str, title: str, alt: str,
           values: Mapping[Any, Any] | None = None, limits: tuple[float, float] | None = None,
           bars: Collection[str] = ()) -> Figure:
    """Curves against one symbol, with sliders; that of the axis moves the point at which the curves are read.

    Args:
        expressions: at most three, each under its name: derivations, identities (their right side) or expressions.
        x: the symbol along the horizontal axis, one of those that have a slider.
        sliders: one for each symbol without a value.
        y: title of the vertical axis.
        title: of the figure.
        alt: describes the figure to those who do not see it.
        values: of the other symbols and arrays, as :func:`~dropoutlib.symbolic.number` takes them; an expression
            instead of a number is put in the symbol's place.
        limits: of the vertical axis; what lies beyond is cut off. Without them the axis follows the curves.
        bars: names of those expressions that have a bar at every whole number instead of a line.

    Returns:
        Figure: what a notebook shows.

    Raises:
        ValueError: if an expression has a part that the browser cannot work out, or a symbol has neither slider nor
            value.
    """
    if not 1 <= len(expressions) <= len(COLOURS):
        raise ValueError(f"a figure has one to {len(COLOURS)} curves, got {len(expressions)}")
    if x not in sliders:
        raise ValueError(f"the axis {x} needs a slider")
    if unknown := set(bars) - set(expressions):
        raise ValueError(f"no curve is called {', '.join(sorted(unknown))}")
    formulas, axis = _Formulas(sliders, values), sliders[x]
    names = list(expressions)
    scale = {"domain": [axis.low, axis.high], "nice": False, "padding": 8 if bars else 0}
    horizontal: dict[str, Any] = {"field": "x", "type": "quantitative", "title": axis.label, "scale": scale}
    nominal: dict[str, Any] = {"type": "nominal", "legend": {} if len(names) > 1 else None}
    colour = {**nominal, "scale": {"domain": names, "range": COLOURS[:len(names)]}}
    dash = {**nominal, "scale": {"domain": names, "range": DASHES[:len(names)]}}
    layers: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for index, (name, proved) in enumerate(expressions.items()):
        vertical = {"field": f"y_{index}", "type": "quantitative", "title": y,
                    "scale": {"domain": list(limits), "nice": False} if limits else {}}
        encoding: dict[str, Any] = {"x": horizontal, "y": vertical, "color": {"datum": name, **colour}}
        calculated = [{"calculate": formulas.text(proved, axis={x: "datum.x"}), "as": f"y_{index}"}]
        if name in bars:
            layers.append({"name": f"curve_{index}", "data": _sequence(axis.low, axis.high, 1), "transform": calculated,
                           "mark": {"type": "bar", "width": 6, "opacity": 0.6, "clip": True}, "encoding": encoding})
        else:
            layers.append({"name": f"curve_{index}",
                           "data": _sequence(axis.low, axis.high, (axis.high - axis.low) / STEPS),
                           "transform": calculated, "mark": {"type": "line", "clip": True},
                           "encoding": {**encoding, "strokeDash": {"datum": name, **dash}}})
        points.append({"name": f"reading_{index}", "data": {"values": [{}]},
                       "transform": [{"calculate": formulas.names[x], "as": "x"},
                                     {"calculate": f"reading_{index}", "as": f"y_{index}"}],
                       "mark": {"type": "circle", "size": 90, "opacity": 1, "clip": True}, "encoding": encoding})
    rule = {"data": {"values": [{}]}, "transform": [{"calculate": formulas.names[x], "as": "x"}],
            "mark": {"type": "rule", "color": "currentColor", "opacity": 0.35}, "encoding": {"x": horizontal}}
    return _figure(formulas, expressions, [rule, *layers, *points], title, alt)


def _sequence(start: float, stop: float, step: float) -> dict[str, Any]:
    return {"sequence": {"start": start, "stop": stop + step / 2, "step": step, "as": "x"}}


def cloud(rows: Mapping[Any, Sequence[Any]], x: Any, y: Any, sliders: Mapping[Any, Slider], *,
          shown: Mapping[str, Any], x_title: str, y_title: str, x_limits: tuple[float, float],
          y_limits: tuple[float, float], title: str, alt: str, values: Mapping[Any, Any] | None = None,
          x_line: Any = None, stems: bool = False) -> Figure:
    """A point for each row of data: two expressions, worked out in the browser from the row and the sliders.

    Args:
        rows: from symbols to one number a row, and from arrays to one list a row.
        x: the horizontal coordinate.
        y: the vertical one.
        sliders: one for each symbol that has no value and is not in the rows.
        shown: expressions that do not depend on the row, under their names, to be read beside the figure.
        x_title: title of the horizontal axis.
        y_title: title of the vertical one.
        x_limits: of the horizontal axis; what lies beyond is cut off.
        y_limits: of the vertical one.
        title: of the figure.
        alt: describes the figure to those who do not see it.
        values: of the other symbols and arrays.
        x_line: where a dashed line stands, such as the mean; it does not depend on the row.
        stems: a line from the horizontal axis to each point.

    Returns:
        Figure: what a notebook shows.
    """
    columns = {key: _listed(column) for key, column in rows.items()}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or not (length := lengths.pop()):
        raise ValueError("the columns of the data have one length, and it is not 0")
    formulas = _Formulas(sliders, values)
    names = {key: f"datum.row_{index}" for index, key in enumerate(columns)}
    data = [{f"row_{index}": column[row] for index, column in enumerate(columns.values())} for row in range(length)]
    encoding: dict[str, Any] = {
        "x": {"field": "x", "type": "quantitative", "title": x_title,
              "scale": {"domain": list(x_limits), "nice": False}},
        "y": {"field": "y", "type": "quantitative", "title": y_title,
              "scale": {"domain": list(y_limits), "nice": False}}}
    transform = [{"calculate": formulas.text(x, rows=names), "as": "x"},
                 {"calculate": formulas.text(y, rows=names), "as": "y"}]
    marks: list[dict[str, Any]] = [{"name": "cloud", "encoding": encoding, "mark": {
        "type": "circle", "color": COLOURS[0], "size": 40, "opacity": 0.85 if stems else 0.4, "clip": True}}]
    if stems:
        marks.insert(0, {"encoding": {**encoding, "y2": {"datum": 0}}, "mark": {
            "type": "rule", "color": COLOURS[0], "strokeWidth": 2, "clip": True}})
    start = next(formulas.positions())
    first = {key: column[0] for key, column in columns.items()}
    dot = [formulas.value(coordinate, start, first) for coordinate in (x, y)]
    layers = [{"data": {"values": data}, "transform": transform, "layer": marks}]
    if x_line is not None:
        layers.append({"data": {"values": [{}]}, "transform": [{"calculate": formulas.text(x_line), "as": "x"}],
                       "mark": {"type": "rule", "color": COLOURS[1], "strokeDash": DASHES[1], "clip": True},
                       "encoding": {"x": encoding["x"]}})
    return _figure(formulas, shown, layers, title, alt, first_point=dot)


def _figure(formulas: _Formulas, shown: Mapping[str, Any], layers: list[dict[str, Any]], title: str, alt: str,
            **more: Any) -> Figure:
    _check_words(title, alt)
    params = [{"name": formulas.names[symbol], "value": slider.start, "bind": slider.bind()}
              for symbol, slider in formulas.sliders.items()]
    params += [{"name": f"reading_{index}", "expr": formulas.text(proved)}
               for index, proved in enumerate(shown.values())]
    if "factorials[" in json.dumps([params, layers]):
        params.insert(0, {"name": "factorials", "value": _factorials()})
    parts = [f"{json.dumps(name + ' ')} + format(reading_{index}, '.4~g')" for index, name in enumerate(shown)]
    spec = {
        "$schema": SCHEMA,
        "description": alt,
        "title": {"text": title, "subtitle": {"expr": " + ', ' + ".join(parts)}},
        **SIZE,
        "config": CONFIG,
        "usermeta": {"embedOptions": {"actions": False, "renderer": "svg"},
                     "readings": list(shown), "checks": formulas.checks(list(shown.values())), **more},
        "params": params,
        "layer": layers,
    }
    return Figure(spec, _described(title, shown, formulas))


def _check_words(title: str, alt: str) -> None:
    if len(alt.split()) < 3:
        raise ValueError(f"alt has to describe the figure in words, three at least, but got {alt!r}")
    if "$" in title + alt:
        raise ValueError(f"title and alt have to be plain text, without formulas, but got {title!r} and {alt!r}")


def _described(title: str, shown: Mapping[str, Any], formulas: _Formulas) -> str:
    """The same in plain text, which a notebook stores."""
    return "\n  ".join([f"Figure with sliders: {title}",
                        *(f"{name}: {plain(expression_of(proved))}" for name, proved in shown.items()),
                        *(f"{slider.label}: {slider.low} to {slider.high}, at first {slider.start}"
                          for slider in formulas.sliders.values())])


def _factorials() -> list[float]:
    found = [1.0]
    for factor in range(1, LARGEST_FACTORIAL + 1):
        found.append(found[-1] * factor)
    return found


# -- a network to click -----------------------------------------------------------
def network(shown: Mapping[str, Any], mask: Any, labels: Sequence[str], sliders: Mapping[Any, Slider], *, bars: str,
            title: str, alt: str, values: Mapping[Any, Any] | None = None) -> Network:
    """Units that a click drops or keeps, and what follows from the mask.

    Args:
        shown: expressions in the entries ``mask[1]``, ``mask[2]``, ... and the sliders, under their names.
        mask: the keep mask: noise or an array.
        labels: what stands on each unit; there are as many units, and a bar for every mask.
        sliders: one for each other symbol without a value.
        bars: the name of the expression whose value is the height of a mask's bar.
        title: of the figure.
        alt: describes the figure to those who do not see it.
        values: of the other symbols and arrays.

    Returns:
        Network: what a notebook shows.
    """
    _check_words(title, alt)
    if bars not in shown:
        raise ValueError(f"nothing that is shown is called {bars}")
    formulas = _Formulas(sliders, values)
    start, *moved = formulas.positions()
    places = [(keep, start) for keep in product((1, 0), repeat=len(labels))] + [((1, *[0] * (len(labels) - 1)), place)
                                                                                for place in moved]
    checks = [{"mask": list(keep), "sliders": {formulas.names[symbol]: value for symbol, value in place.items()},
               "values": [formulas.value(proved, place, {mask: list(keep)}) for proved in shown.values()]}
              for keep, place in places]
    texts = [formulas.text(proved, rows={mask: "mask"}) for proved in shown.values()]
    if "Normal(" in str(texts) or "factorials[" in str(texts):
        raise ValueError("the script of a network knows no normal law and no factorials")
    data = {"readings": list(shown), "bars": list(shown).index(bars), "checks": checks, "expressions": texts}
    return Network(data, {formulas.names[symbol]: slider for symbol, slider in formulas.sliders.items()}, labels, title,
                   alt, _described(title, shown, formulas))


class Network:
    """A network to click: HTML with its own script, the same in a notebook and on a page."""

    def __init__(self, data: dict[str, Any], sliders: Mapping[str, Slider], labels: Sequence[str], title: str, alt: str,
                 description: str) -> None:
        self.data, self.sliders, self.labels, self.title, self.alt = data, sliders, labels, title, alt
        self._description = description

    def __repr__(self) -> str:
        return self._description

    def _repr_html_(self) -> str:
        data = json.dumps(self.data).replace("<", r"\u003c")
        name = "network-" + hashlib.sha256((self.title + data).encode()).hexdigest()[:8]
        title, alt = html.escape(self.title), html.escape(self.alt)
        units = "".join(f'<button type="button" aria-pressed="true" aria-label="{text}: unit {unit}">{text}</button>'
                        for unit, text in enumerate(map(html.escape, self.labels), start=1))
        sliders = "".join(
            f'<label><span>{html.escape(slider.label)}</span><input type="range" name="{symbol}" min="{slider.low}" '
            f'max="{slider.high}" step="{slider.stride}" value="{slider.start}"><output>{slider.start}</output></label>'
            for symbol, slider in self.sliders.items())
        readings = ", ".join(f'{html.escape(reading)} <data value="{value!r}">{value:.4g}</data>' for reading, value
                             in zip(self.data["readings"], self.data["checks"][0]["values"], strict=True))
        return f"""<div class="moving-figure moving-network" id="{name}" role="group" aria-label="{title}">
<style>{STYLE}</style>
<p class="moving-title">{title}</p>
<div class="units">{units}</div>
<svg viewBox="0 0 448 190" role="img" aria-label="{alt}"></svg>
<div class="moving-sliders">{sliders}</div>
<p class="moving-readings" aria-live="polite">{readings}</p>
<script type="application/json" class="moving-data">{data}</script>
<script>{SCRIPT}("{name}");</script>
</div>"""


STYLE = """
.moving-network .units { display: flex; justify-content: space-around; max-width: 28rem; }
.moving-network .units button { width: 3.4rem; height: 3.4rem; border-radius: 50%; border: 2px solid #2f79c4;
  background: #2f79c4; color: #fff; font: inherit; cursor: pointer; }
.moving-network .units button[aria-pressed="false"] { background: none; border: 2px dashed #d2691e; color: inherit;
  text-decoration: line-through; }
.moving-network svg { display: block; width: 100%; max-width: 28rem; height: auto; }
.moving-network label { display: flex; flex-wrap: wrap; align-items: center; gap: 0 .7rem; }
.moving-network input { flex: 0 1 16rem; min-height: 1.75rem; }
"""

# The kept units are joined to the output; below it stands a bar for each mask, and that of the present one is orange.
SCRIPT = """((name) => {
  const figure = document.getElementById(name), find = (selector) => [...figure.querySelectorAll(selector)];
  const data = JSON.parse(figure.querySelector(".moving-data").textContent);
  const buttons = find(".units button"), inputs = find("input"), readings = find("data"), units = buttons.length;
  const functions = "const {abs, atan, cos, exp, log, max, min, pow, sin, sqrt} = Math;";
  const formulas = data.expressions.map((text) =>
    new Function("mask", ...inputs.map((input) => input.name), `${functions} return ${text};`));
  const value = (which, mask) => formulas[which](mask, ...inputs.map((input) => Number(input.value)));
  const masks = Array.from({length: 2 ** units}, (_, index) =>
    buttons.map((_, unit) => 1 - (index >> (units - 1 - unit) & 1)));

  const draw = () => {
    const present = buttons.map((button) => Number(button.getAttribute("aria-pressed") === "true"));
    const chances = masks.map((mask) => value(data.bars, mask)), top = Math.max(...chances);
    const line = (x, y, x2, y2) => `<line x1="${x}" y1="${y}" x2="${x2}" y2="${y2}" stroke="currentColor"/>`;
    const lines = present.map((kept, unit) => kept ? line((unit + 0.5) * 448 / units, 0, 224, 76) : "");
    const width = 448 / masks.length;
    const bars = masks.map((mask, index) => {
      const height = 80 * chances[index] / top, colour = mask.join() === present.join() ? "#d2691e" : "#2f79c4";
      return `<rect x="${(index + 0.15) * width}" y="${186 - height}" width="${0.7 * width}" height="${height}"
                    fill="${colour}"/>`;
    });
    figure.querySelector("svg").innerHTML =
      [...lines, '<circle cx="224" cy="76" r="12" fill="#3a8a4d"/>', ...bars, line(0, 186, 448, 186)].join("");
    readings.forEach((reading, which) => {
      reading.value = String(value(which, present));
      reading.textContent = String(Number(value(which, present).toPrecision(4)));
    });
    find("output").forEach((output, index) => { output.textContent = inputs[index].value; });
  };

  for (const button of buttons) button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    draw();
  });
  for (const input of inputs) input.addEventListener("input", draw);
  draw();
})"""
