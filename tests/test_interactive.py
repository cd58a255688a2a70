"""Figures with sliders: the browser works out the proved expression, and the page check finds it if it does not."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import check_pages
import nbformat
import notebooks
import offline
import pytest
import sliders as extension
import vl_convert
from playwright.async_api import async_playwright
from sympy import (
    Abs,
    IndexedBase,
    KroneckerDelta,
    Max,
    Min,
    Piecewise,
    Product,
    Rational,
    Sum,
    binomial,
    cosh,
    erf,
    erfc,
    exp,
    factorial,
    gamma,
    log,
    pi,
    sign,
    sinh,
    sqrt,
    symbols,
    tanh,
)

from dropoutlib.interactive import Figure, Network, Slider, cloud, curves, network, printed
from dropoutlib.symbolic import Bernoulli, Expectation, Noise, Phi, Variance, derive, exact, number, phi

p, y = symbols("p y", positive=True)
n, j, k = symbols("n j k", integer=True, positive=True)
w, x, u = IndexedBase("w"), IndexedBase("x"), IndexedBase("u")
m = Noise(Bernoulli("m", 1 - p))
unit = Sum(w[j] * m[j] / (1 - p) * x[j], (j, 1, n))
variance = derive(Variance(unit), exact)
DROP = Slider(0.0, 0.9, 0.5, "p, the probability of dropping")
THREE = {n: 3, w: [1.5, -2, 0.25], x: [1, 0.5, 1]}
STATIC = Path(__file__).parents[1] / "book" / "_static"
needs_browser = pytest.mark.skipif(check_pages.chromium() is None, reason="needs a Chromium")


def some_curves(**other: Any) -> Figure:
    options: dict[str, Any] = {"values": THREE, "y": "variance", "title": "Variance <of> a unit",
                               "alt": "Two curves against p.", **other}
    raw = (1 - p) ** 2 * variance.result
    return curves({"inverted": variance, "raw": raw}, p, {p: DROP, y: Slider(0.1, 3.0, 1.0, "y, unused")}, **options)


def some_bars() -> Figure:
    drops = {k: Slider(0, 12, 3, "k, kept inputs"), n: Slider(1, 12, 10, "n, inputs"), p: DROP}
    return curves({"bars": binomial(n, k) * (1 - p) ** k * p ** (n - k)}, k, drops, bars=["bars"], y="probability",
                  limits=(0, 1), title="A binomial law", alt="Bars that are highest in the middle.")


def some_cloud(**other: Any) -> Figure:
    kept = unit.xreplace({m[j]: Piecewise((1, u[j] >= p), (0, True))})
    options: dict[str, Any] = {"values": THREE, "shown": {"variance": variance}, "x_title": "unit", "y_title": "square",
                               "x_limits": (-4, 4), "y_limits": (0, 9), "title": "A cloud", "alt": "A cloud of points.",
                               **other}
    return cloud({u: [[0.9, 0.2, 0.6], [0.1, 0.8, 0.3]]}, kept, kept**2, {p: DROP}, **options)


def some_network() -> Network:
    chance = Product((1 - p) ** m[j] * p ** (1 - m[j]), (j, 1, n))
    return network({"output": unit, "probability": chance, "mean": derive(Expectation(unit), exact)}, m,
                   ["1.5", "-1", "0.25"], {p: Slider(0.05, 0.9, 0.5, "p, the probability of dropping")}, values=THREE,
                   bars="probability", title="Three units", alt="Three units above eight bars.")


# -- the expression in the browser's language ----------------------------------------
A, B = symbols("a", real=True), symbols("b", positive=True)
COUNT = symbols("q", integer=True, nonnegative=True)
EXPRESSIONS = [
    A + 2 * B, A**2 - A**3 / 7, B ** Rational(1, 3) / (1 + B), -sqrt(B) / (A - 3) ** 2, 1 / (1 + exp(-A)), log(B) / 3,
    Abs(A) * sign(A), sign(-B), Max(0, A, B - 1), Min(A, -A), tanh(A) + sinh(A) * cosh(B), Phi(A), phi(B), erf(A),
    erfc(B), pi * B**A, exp(1) ** B, Piecewise((A, A >= 0), (-B, A > -1), (1, True)), KroneckerDelta(COUNT, 4) + 1,
    binomial(12, COUNT) * B, factorial(COUNT), binomial(COUNT, 6) + 1, 2 ** (-COUNT), (A - B) / (A + 2 * B) / 3,
    A - (B - A), A / (B / 7), -(A**2), (-A) ** 2, 10**20 * B, Rational(10**20, 3 * 10**19 + 1) * A,
]
POINTS = [{A: 0.37, B: 1.9, COUNT: 4}, {A: -1.25, B: 0.04, COUNT: 9}]


def test_vega_works_out_what_sympy_says() -> None:
    """Vega itself, without a browser, which sees the text of each expression at each point."""
    names = {A: "slider_a", B: "slider_b", COUNT: "slider_q"}
    texts = [printed(expression, names) for expression in EXPRESSIONS]
    factorials = [1.0]
    for factor in range(1, 171):
        factorials.append(factorials[-1] * factor)
    for point in POINTS:
        spec = {"params": [{"name": "factorials", "value": factorials},
                           *({"name": names[symbol], "value": value} for symbol, value in point.items())],
                "data": {"values": [{}]}, "mark": "text",
                "encoding": {"text": {"value": {"expr": f"join([{', '.join(texts)}], ' ')"}}}}
        picture = vl_convert.vegalite_to_svg(spec, vl_version=extension.VEGA_LITE)
        found = re.search(r"<text[^>]*>([^<]+)</text>", picture)
        assert found is not None
        for expression, value in zip(EXPRESSIONS, map(float, found[1].split()), strict=True):
            assert value == pytest.approx(number(expression, point), rel=1e-12, abs=1e-15), expression


@pytest.mark.parametrize(("call", "message"), [
    (lambda: curves({"a": gamma(p)}, p, {p: DROP}, y="y", title="t", alt="a b c"), "cannot work out gamma"),
    (lambda: curves({"a": Expectation(m[1])}, p, {p: DROP}, y="y", title="t", alt="a b c"), "work it out first"),
    (lambda: curves({"a": p * y}, p, {p: DROP}, y="y", title="t", alt="a b c"), "y has neither a slider nor a value"),
    (lambda: curves({"a": p}, y, {p: DROP}, y="y", title="t", alt="a b c"), "needs a slider"),
    (lambda: curves({}, p, {p: DROP}, y="y", title="t", alt="a b c"), "one to 3 curves, got 0"),
    (lambda: curves(dict.fromkeys("abcd", p), p, {p: DROP}, y="y", title="t", alt="a b c"), "got 4"),
    (lambda: curves({"a": p}, p, {p: DROP}, y="y", title="t", alt="a b c", bars=["b"]), "no curve is called b"),
    (lambda: some_curves(alt="Two"), "alt has to describe the figure in words, three at least, but got 'Two'"),
    (lambda: some_curves(title="$p$"), "plain text"),
    (lambda: some_curves(values={w: [1], x: [1]}), "give a value to n"),
    (lambda: some_curves(values={n: 3, w: [1, 2, 3]}), "no value for x"),
    (lambda: cloud({u: []}, p, p, {p: DROP}, shown={}, x_title="", y_title="", x_limits=(0, 1), y_limits=(0, 1),
                   title="t", alt="a b c"), "one length"),
    (lambda: network({"a": p}, m, ["1"], {p: DROP}, bars="b", title="t", alt="a b c"), "called b"),
    (lambda: network({"b": Phi(m[1])}, m, ["1"], {p: DROP}, bars="b", title="t", alt="a b c"), "knows no normal law"),
    (lambda: Slider(0, 1, 2, "p"), "not between"),
    (lambda: Slider(0, 1, 1, "$p$"), "plain text"),
])
def test_what_cannot_be_drawn_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_slider_stops_where_the_input_of_a_browser_does() -> None:
    assert [DROP.at(share) for share in (0, 0.2, 0.9, 1)] == [0, 0.18, 0.81, 0.9]
    whole = Slider(1, 40, 10, "n")
    assert (whole.stride, whole.at(0.2)) == (1, 9)
    assert Slider(0.1, 3.0, 2.0, "t", 0.25).at(0.99) == 2.85


@pytest.mark.parametrize("figure", [some_curves, some_bars, some_cloud])
def test_a_figure_carries_what_python_computed(figure: Callable[[], Figure]) -> None:
    spec = figure().spec
    checks = spec["usermeta"]["checks"]
    moved = {name for param in spec["params"] if "bind" in param for name in [param["name"]]}
    assert all(check["sliders"].keys() == moved for check in checks)
    assert len(checks) == 1 + 2 * len(moved)
    for version in ("5.8", extension.VEGA_LITE):    # JupyterLab's and the site's
        assert "data" in vl_convert.vegalite_to_vega(spec, vl_version=version)


def test_the_value_of_a_figure_is_that_of_the_formula() -> None:
    check = some_curves().spec["usermeta"]["checks"][2]
    assert check["sliders"] == {"slider_p": 0.81, "slider_y": 1.0}
    of_layer = 0.81 / 0.19 * (1.5**2 + 1 + 0.25**2)
    assert check["values"] == pytest.approx([of_layer, 0.19**2 * of_layer], rel=1e-12)


def test_a_notebook_stores_the_formula_and_no_picture() -> None:
    bundle = some_curves()._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", bundle, execution_count=1)
    cell = nbformat.v4.new_code_cell("interactive.curves()", outputs=[output], execution_count=1)
    (stored,) = notebooks.normalised(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert stored["data"].keys() == {"text/plain"}
    assert stored["data"]["text/plain"] == (
        "Figure with sliders: Variance <of> a unit\n"
        "  inverted: p*Sum(w[j]**2*x[j]**2, (j, 1, n))/(1 - p)\n"
        "  raw: p*(1 - p)*Sum(w[j]**2*x[j]**2, (j, 1, n))\n"
        "  p, the probability of dropping: 0.0 to 0.9, at first 0.5\n"
        "  y, unused: 0.1 to 3.0, at first 1.0")
    assert repr(some_network()).startswith("Figure with sliders: Three units\n  output: Sum(m[j]*w[j]*x[j]/(1 - p)")


# -- the pages -------------------------------------------------------------------------
class _Scripts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.data = False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open = tag == "script" and ("type", "application/json") in attrs

    def handle_data(self, data: str) -> None:
        if self.open:
            self.data += data


@pytest.mark.parametrize("title", ["A title", "</script><b>&"])
def test_a_page_holds_the_picture_the_numbers_and_the_specification(title: str, tmp_path: Path) -> None:
    figure = some_curves(title=title)
    text = extension.figure(figure.spec)
    assert figure.spec["title"]["text"] == title    # the caller's specification is as it was
    held = json.loads(_Scripts(text).data)
    assert held["usermeta"] == figure.spec["usermeta"]
    assert 'role="img" aria-label="Two curves against p."' in text
    assert '<data value="3.3125">3.312</data>' in text
    assert title not in text or title == "A title"
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    assert offline.remote_fetches(tmp_path / "page.html") == []


def test_only_a_page_with_a_figure_loads_the_script() -> None:
    class App:
        added: list[str]

        def add_js_file(self, name: str, **options: Any) -> None:
            self.added.append(name)

        add_css_file = add_js_file

    loaded = []
    for body in ("<p>nothing</p>", extension.figure(some_cloud().spec), some_network()._repr_html_()):
        app: Any = App()
        app.added = []
        extension._add_script(app, "page", "page.html", {"body": body}, None)
        loaded.append(app.added)
    assert loaded == [[], ["sliders.css", "sliders.js"], ["sliders.css"]]


PAGE = """<!doctype html><html lang="en" data-theme="light"><head><title>Title</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="sliders.css">
<style>body {{ color: #222; background: #fff; }} [data-theme="dark"] body {{ color: #ccc; background: #111; }}</style>
</head><body><main><article class="bd-content"><h1>Title</h1>{body}</article></main><script src="sliders.js"></script>
</body></html>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good figures, and figures with a fault each."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "vega.js").write_text(extension.bundle(), encoding="utf-8")
    for name in ("sliders.js", "sliders.css"):
        shutil.copy(STATIC / name, folder / name)

    def planted(figure: Figure, where: Callable[[dict[str, Any]], dict[str, Any]], key: str, old: str, new: str) -> str:
        spec = json.loads(json.dumps(figure.spec))
        place = where(spec)
        assert old in json.dumps(place[key])
        place[key] = json.loads(json.dumps(place[key]).replace(old, new))
        return extension.figure(spec)

    def reading(spec: dict[str, Any]) -> dict[str, Any]:
        return next(param for param in spec["params"] if param["name"] == "reading_0")

    bodies = {
        "good": "".join([*(extension.figure(figure().spec) for figure in (some_curves, some_bars, some_cloud)),
                         some_network()._repr_html_()]),
        "number": planted(some_curves(), reading, "expr", "(1 - slider_p)", "(1.000001 - slider_p)"),
        "curve": planted(some_curves(), lambda spec: spec["layer"][1], "transform", "datum.x/", "1.1*datum.x/"),
        "bar": planted(some_bars(), lambda spec: spec["layer"][1], "transform", "(1 - slider_p", "(1.1 - slider_p"),
        "point": planted(some_cloud(), lambda spec: spec["layer"][0], "transform", "<=", ">"),
        "check": planted(some_curves(), lambda spec: spec["usermeta"], "checks", "0.81", "0.5"),
        "mask": some_network()._repr_html_().replace("mask[1]", "mask[0]", 1),
        "nothing": planted(some_curves(), lambda spec: spec["layer"][1], "transform", "datum.x/", "NaN*datum.x/"),
    }
    for name, body in bodies.items():
        (folder / f"{name}.html").write_text(PAGE.format(body=body), encoding="utf-8")
    return folder


@needs_browser
def test_the_page_check_moves_every_slider(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_pages, "VIEWS", (check_pages.View(1280, "light"),))
    findings = {name.removesuffix(".html"): "\n".join(found)
                for name, found in asyncio.run(check_pages.check_site(site, only=".html")).items()}
    assert findings.pop("good") == ""
    messages = {"number": "inverted is 3.3124", "curve": "inverted is not drawn at 3.3125",
                "bar": "bars is not drawn at", "point": "the first point is not drawn",
                "check": "slider_p is not checked", "mask": "output is", "nothing": "inverted is not drawn"}
    assert {name: message for name, message in messages.items() if message not in findings[name]} == {}


@needs_browser
def test_figures_follow_the_keyboard_and_the_theme(site: Path) -> None:
    async def look() -> None:
        server = check_pages.serve(site)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=check_pages.chromium(), args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 390, "height": 800})
            await page.goto(f"http://127.0.0.1:{server.server_address[1]}/good.html")
            figure, network = page.locator(".moving-figure").first, page.locator(".moving-network")
            await page.wait_for_selector(".moving-figure[data-moving]", timeout=60_000)
            slider, value = figure.get_by_label("p, the probability of dropping"), figure.locator("data").first
            await slider.focus()
            await page.keyboard.press("ArrowRight")
            await page.evaluate("document.querySelector('.moving-figure').view.runAsync().then(() => null)")
            assert await slider.input_value() == "0.51"
            assert float(await value.get_attribute("value") or 0) == pytest.approx(0.51 / 0.49 * 3.3125)
            colour = "getComputedStyle(document.querySelector('.moving-picture .role-axis-label text')).fill"
            light = await page.evaluate(colour)
            await page.evaluate("document.documentElement.dataset.theme = 'dark'")
            assert (light, await page.evaluate(colour)) == ("rgb(34, 34, 34)", "rgb(204, 204, 204)")
            unit = network.get_by_role("button").nth(1)
            await unit.focus()
            await page.keyboard.press("Space")
            assert await unit.get_attribute("aria-pressed") == "false"
            assert await network.locator("data").first.text_content() == "3.5"
            width = "document.querySelector('.moving-picture svg').getBoundingClientRect().width"
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390
            narrow = await page.evaluate(width)
            await page.set_viewport_size({"width": 700, "height": 800})
            await page.wait_for_function(f"{width} > {narrow} + 300")
            await browser.close()
        server.shutdown()

    asyncio.run(look())
