"""Opens every page of the built book in a headless Chromium and looks at what a reader would get.

::

    python book/_tools/check_pages.py [SITE] [--only WORD] [--screenshots FOLDER]

Every page is opened on a desktop and on a telephone, light and dark.  Looked for: formulas that are not rendered,
errors in the console, requests to another host, broken images and links, solutions that are not hidden or do not open,
content that is wider than a telephone, too much to load, figures whose sliders lead to other numbers than Python's, a
search that misses its chapter, and serious or critical findings of axe, the accessibility checker.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.server
import os
import re
import shutil
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Request,
    Response,
    TimeoutError,
    async_playwright,
)

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What people type, and a page that has to be among the first hits.
SEARCHES = {"where to put dropout": "convolutional/placement", "U-Net": "choosing", "nn.Dropout2d": "spatial_dropout",
            "skip connection": "convolutional/placement", "what is dropped": "what_is_dropped",
            "uncertainty": "choosing",
            "which dropout": "choosing", "batch norm": "convolutional/placement", "DropConnect": "dropconnect"}
FIRST_HITS = 3
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
REDIRECT = re.compile(r'http-equiv="refresh"[^>]*url=([^"\'>]+)', re.IGNORECASE)


@dataclass(frozen=True)
class View:
    """How a page is looked at."""

    width: int
    theme: str
    axe: tuple[str, ...] | None = None  # the rules that axe checks; None for all

    def __str__(self) -> str:
        return f"{self.width} px, {self.theme}"


# The markup is the same in all views: axe reads it once, and then only what a theme or a width can change.
VIEWS = (View(1280, "light"), View(1280, "dark", axe=("color-contrast",)),
         View(390, "light", axe=("scrollable-region-focusable", "target-size")), View(390, "dark", axe=()))

# Each function returns the findings as a list of strings.
FORMULAS = r"""async () => {
  const found = [];
  const formulas = [...document.querySelectorAll(".math")].filter((node) => !node.closest("mjx-container"));
  if (formulas.length) {
    if (!window.MathJax?.startup?.promise) return ["MathJax is not loaded"];
    await MathJax.startup.promise;
  }
  for (const node of formulas)
    if (!node.querySelector("mjx-container"))
      found.push("formula not rendered: " + node.textContent.trim().slice(0, 80));
  for (const node of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
    found.push("formula with an error: " + (node.dataset.mjxError || node.textContent).slice(0, 80));
  for (const node of document.querySelectorAll("mjx-assistive-mml mtext"))
    if (node.textContent.startsWith("\\")) found.push("unknown TeX command: " + node.textContent.slice(0, 80));
  const walker = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (!text.parentElement.closest("pre, code, script, style, mjx-container, .math, textarea")
        && /\$\$|\\\(|\\\[|\\begin\{|\\(frac|operatorname|mathrm|sum|sqrt)\b/.test(text.textContent))
      found.push("TeX left as text: " + text.textContent.trim().slice(0, 80));
  }
  return found;
}"""

IMAGES = """async () => {
  const found = [];
  for (const image of document.images) {
    image.loading = "eager";
    try { await image.decode(); } catch { found.push("broken image: " + image.src.slice(0, 120)); }
  }
  return found;
}"""

OVERFLOW = """() => {
  const found = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width + 1)
    found.push(`page is ${document.documentElement.scrollWidth} px wide in a window of ${width} px`);
  const article = document.querySelector("article");
  const reachable = (node) => {
    for (let box = node; box && box !== article; box = box.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return true;
    return false;
  };
  for (const node of article ? article.querySelectorAll("*") : []) {
    const box = node.getBoundingClientRect();
    const drawn = box.width > 1 && !node.closest("mjx-assistive-mml, svg, .visually-hidden");
    if (drawn && box.right > width + 1 && !reachable(node)) {
      const name = `<${node.tagName.toLowerCase()} class="${node.getAttribute("class") || ""}">`;
      found.push(`${name} ends at ${Math.round(box.right)} px of ${width} px: ${node.textContent.trim().slice(0, 60)}`);
      break;
    }
  }
  return found;
}"""

SOLUTIONS = """async () => {
  const found = [];
  const visible = (box) => [...box.children].some((child) =>
    !child.matches(".admonition-title, .toggle-button, button, summary")
    && child.checkVisibility({visibilityProperty: true, opacityProperty: true})
    && child.getBoundingClientRect().height > 0);
  const boxes = [...document.querySelectorAll(".solution")];
  for (const box of boxes) if (visible(box)) found.push("solution is not hidden: " + box.id);
  for (const box of boxes) box.querySelector("button.toggle-button, .admonition-title")?.click();
  for (let wait = 0; wait < 50 && !boxes.every(visible); wait++)
    await new Promise((resolve) => setTimeout(resolve, 100));
  for (const box of boxes) if (!visible(box)) found.push("solution does not open: " + box.id);
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const box of document.querySelectorAll(".toggle-hidden button.toggle-button")) box.click();
  return found;
}"""

# Moves every slider and presses every unit of a figure (dropoutlib.interactive). Its numbers and what is drawn
# have to be those that Python computed from the SymPy expression.
FIGURES = """async () => {
  const found = [];
  // below -7.07, Vega's distribution function of a normal variable is off by 9e-9
  const close = (value, wanted) => Math.abs(value - wanted) <= 3e-8 * Math.abs(wanted) + 1e-15;
  const marks = (node, name) =>
    node.name === name ? [node] : (node.items || []).flatMap((child) => marks(child, name));
  for (const figure of document.querySelectorAll(".moving-figure")) {
    const title = figure.getAttribute("aria-label");
    const wrong = (what) => found.push(`figure "${title}": ${what}`);
    const network = figure.matches(".moving-network");
    const held = JSON.parse(figure.querySelector(".moving-data").textContent);
    const {checks, readings, first_point} = network ? held : held.usermeta;
    figure.scrollIntoView();
    for (let wait = 0; wait < 600 && !network && figure.dataset.moving === undefined; wait++)
      await new Promise((resolve) => setTimeout(resolve, 100));
    const inputs = [...figure.querySelectorAll("input")], units = [...figure.querySelectorAll(".units button")];
    if (!inputs.length || !readings.length) { wrong("no slider or no number"); continue; }
    for (const input of inputs)
      if (new Set(checks.map((check) => check.sliders[input.name])).size < 3) wrong(`${input.name} is not checked`);
    const scene = figure.view?.scenegraph().root, x = figure.view?.scale("x"), y = figure.view?.scale("y");
    for (const [number, {mask, sliders, values}] of checks.entries()) {
      units.forEach((unit, index) => {
        if ((unit.getAttribute("aria-pressed") === "true") !== (mask[index] === 1)) unit.click();
      });
      for (const input of inputs) {
        input.value = sliders[input.name];
        input.dispatchEvent(new Event("input", {bubbles: true}));
        if (Number(input.value) !== sliders[input.name]) wrong(`${input.name} stops at ${input.value}`);
      }
      await figure.view?.runAsync();
      const shown = [...figure.querySelectorAll(".moving-readings data")], where = JSON.stringify({mask, ...sliders});
      values.forEach((wanted, index) => {
        const value = Number(shown[index]?.value);
        if (!close(value, wanted)) wrong(`${readings[index]} is ${value}, not ${wanted}, at ${where}`);
        if (Number(shown[index]?.textContent) !== Number(value.toPrecision(4)))
          wrong(`${readings[index]} is shown as ${shown[index]?.textContent}, not ${value}`);
      });
      if (!scene) continue;
      // The curve passes through its number: between the two drawn points on both sides of it, within a pixel.
      const place = marks(scene, "reading_0_marks")[0]?.items[0]?.x;
      values.forEach((wanted, index) => {
        const drawn = marks(scene, `curve_${index}_marks`)[0]?.items || [];
        const before = drawn.filter((item) => item.x + (item.width || 0) / 2 <= place + 0.01).at(-1);
        const after = drawn.find((item) => item.x + (item.width || 0) / 2 >= place - 0.01);
        const [low, high] = [before?.y, after?.y].sort((one, other) => one - other);
        if (first_point === undefined && !(y(wanted) >= low - 1 && y(wanted) <= high + 1))
          wrong(`${readings[index]} is not drawn at ${wanted}, at ${where}`);
      });
      if (first_point === undefined || number) continue;
      const dot = marks(scene, "cloud_marks")[0]?.items[0];
      if (!dot || Math.hypot(dot.x - x(first_point[0]), dot.y - y(first_point[1])) > 0.5)
        wrong(`the first point is not drawn at ${first_point}`);
    }
  }
  return found;
}"""

# A page has thousands of words of code, all of a few looks: the contrast of one of each is measured.  A leaf that only
# colours words which look like others melts into its parent, because axe walks through every element of a page.
SAME_LOOK = """() => {
  const seen = new Set(), repeated = [];
  const words = (node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim();
  for (const node of document.querySelectorAll("article *")) {
    if (![...node.childNodes].some(words)) continue;
    const {color, fontSize, fontWeight} = getComputedStyle(node), look = [color, fontSize, fontWeight];
    for (let box = node; box; box = box.parentElement) {
      const {backgroundColor, backgroundImage, opacity} = getComputedStyle(box);
      look.push(opacity, backgroundImage, backgroundColor);
      if (backgroundColor.startsWith("rgb(")) break;
    }
    const name = look.filter((part) => !["1", "none", "rgba(0, 0, 0, 0)"].includes(part)).join();
    if (seen.has(name)) repeated.push(node);
    seen.add(name);
  }
  for (const node of repeated) {
    if (node.matches("span, em, strong, code") && !node.children.length && !node.id) node.replaceWith(node.textContent);
    else node.dataset.sameLook = "";
  }
}"""

# Everything that a page loads but its pictures and what moves, which may be embedded in it.
WEIGHT = r"""() => {
  const pictures = document.documentElement.outerHTML.match(/data:image\/[a-z+]+;base64,[A-Za-z0-9+\/=\\\s]*/g) ?? [];
  const moving = [...document.querySelectorAll(".moving-figure")].map((figure) => figure.outerHTML);
  const files = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .filter((file) => file.initiatorType !== "img" && !/\/vega\.js/.test(file.name));
  const total = files.reduce((sum, file) => sum + file.decodedBodySize, 0)
    - [...pictures, ...moving].reduce((sum, part) => sum + part.length, 0);
  return total > 2_600_000 ? [`the page weighs ${(total / 1e6).toFixed(2)} MB without its pictures`] : [];
}"""

# What opened is measured by the scripts of the page in the next frames.
SETTLED = """() => new Promise((done) =>
  requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"""


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.targets |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))


def redirect(path: Path) -> str:
    """Where a page sends the browser at once, or an empty string for a page of its own."""
    found = REDIRECT.search(path.read_text(encoding="utf-8")[:1000])
    return found.group(1) if found else ""


def broken_links(site: Path) -> list[tuple[str, str]]:
    """Links between the pages that lead nowhere, each with the page that holds it."""
    site = site.resolve()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = set()
    for path, page in pages.items():
        for link in [*page.links, *filter(None, [redirect(path)])]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            lost_place = target in pages and fragment and fragment not in pages[target].targets
            if not target.is_file() or lost_place:
                found.add((path.relative_to(site).as_posix(), link))
    return sorted(found)


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(site: Path) -> http.server.ThreadingHTTPServer:
    """Serves a folder on a free port of this machine, in a thread of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


async def new_context(browser: Browser, view: View) -> BrowserContext:
    """A browser window of the view's size and theme."""
    context = await browser.new_context(viewport={"width": view.width, "height": 900}, reduced_motion="reduce",
                                        color_scheme="dark" if view.theme == "dark" else "light")
    context.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    await context.add_init_script(f"localStorage.setItem('mode', '{view.theme}'); "
                                  f"localStorage.setItem('theme', '{view.theme}');")
    return context


def listen(page: Page, found: list[str]) -> None:
    """Writes down what goes wrong while a page loads.  The browser is started so that it reaches no other host."""

    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.append(f"console: {message.text[:200]}")

    def request(asked: Request) -> None:
        address = urlsplit(asked.url)
        if address.hostname != "127.0.0.1" and address.scheme not in ("data", "blob"):
            found.append(f"asks another host: {asked.url}")

    def response(answer: Response) -> None:
        if answer.status >= 400:
            found.append(f"{answer.status}: {urlsplit(answer.url).path}")

    page.on("console", console)
    page.on("pageerror", lambda error: found.append(f"script error: {str(error)[:200]}"))
    page.on("request", request)
    page.on("response", response)


async def check_page(context: BrowserContext, address: str, view: View, screenshot: Path | None = None) -> list[str]:
    """Opens one page in one view.

    Args:
        context: the browser window.
        address: the address of the page on this machine.
        view: width and theme of the window.
        screenshot: where a picture of the whole page is stored.

    Returns:
        list[str]: the findings, empty for a good page.
    """
    found: list[str] = []
    page = await context.new_page()
    try:
        listen(page, found)
        await page.goto(address, wait_until="load")
        found += await page.evaluate(FORMULAS)
        theme = await page.evaluate("document.documentElement.dataset.theme")
        if theme != view.theme:
            found.append(f"the theme is {theme}, not {view.theme}")
        found += await page.evaluate(IMAGES)
        if screenshot is not None:
            screenshot.parent.mkdir(parents=True, exist_ok=True)
            await page.screenshot(path=screenshot, full_page=True)
        if view.axe is None:
            found += await page.evaluate(WEIGHT)
            found += await page.evaluate(FIGURES)
        found += await page.evaluate(SOLUTIONS)
        await page.evaluate(SETTLED)
        found += await page.evaluate(OVERFLOW)
        loaded = list(found)  # axe itself fetches style sheets; that is not the page's doing
        return loaded + await accessibility(page, view.axe)
    finally:
        await page.close()


async def accessibility(page: Page, rules: tuple[str, ...] | None) -> list[str]:
    """Serious and critical findings of axe, which empties the formulas: their thousands of elements are MathJax's."""
    if rules == ():
        return []
    await page.evaluate("document.querySelectorAll('mjx-container > *').forEach((node) => node.remove())")
    await page.evaluate(SAME_LOOK)
    options: dict[str, object] = {"resultTypes": ["violations"], "preload": False}
    runs = []
    if rules is None or "color-contrast" in rules:
        runs.append(({"exclude": [["[data-same-look]"]]}, {"runOnly": ["color-contrast"]}))
    if rules is None:
        runs.append((None, {"rules": {"color-contrast": {"enabled": False}}}))
    elif others := [rule for rule in rules if rule != "color-contrast"]:
        runs.append((None, {"runOnly": others}))
    findings = [finding for context, which in runs
                for finding in (await Axe().run(page, context=context, options=options | which)).response["violations"]]
    return [f"axe, {finding['impact']}: {' '.join(node['failureSummary'].split())[:160]}: {node['html'][:160]}"
            for finding in findings if finding["impact"] in ("serious", "critical") for node in finding["nodes"][:3]]


async def check_search(context: BrowserContext, root: str) -> list[str]:
    """The search of the site finds a word where a reader looks: among the first hits."""
    found: list[str] = []
    for words, wanted in SEARCHES.items():
        page = await context.new_page()
        listen(page, found)
        await page.goto(f"{root}/search.html?q={quote(words)}", wait_until="load")
        try:
            await page.wait_for_selector(".search-summary:not(:empty)", timeout=15_000)  # when all hits are there
        except TimeoutError:
            found.append(f"search: no answer for {words!r}")
        hits = await page.evaluate("[...document.querySelectorAll('ul.search > li > a')].map((hit) => hit.href)")
        if not any(wanted in hit for hit in hits[:FIRST_HITS]):
            found.append(f"search: {wanted} is not in the first {FIRST_HITS} hits for {words!r}: {hits[:FIRST_HITS]}")
        await page.close()
    return found


def chromium() -> str | None:
    """The browser to use: ``$CHROMIUM``, or one that is installed; otherwise playwright's own."""
    return os.environ.get("CHROMIUM") or next((path for name in BROWSERS if (path := shutil.which(name))), None)


async def check_site(site: Path, only: str = "", screenshots: Path | None = None,
                     workers: int = 2) -> dict[str, list[str]]:
    """Opens every page of a site in every view.

    Returns:
        dict[str, list[str]]: the findings of each page, empty for a good one.
    """
    pages = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))
             if "_static" not in path.parts and only in path.as_posix() and not redirect(path)]
    findings: dict[str, list[str]] = {page: [] for page in pages}
    server = serve(site)
    root = f"http://127.0.0.1:{server.server_address[1]}"
    gate = asyncio.Semaphore(workers)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        contexts = {view: await new_context(browser, view) for view in VIEWS}

        async def check(name: str, view: View) -> None:
            async with gate:
                picture = screenshots / f"{name}.{view.width}.{view.theme}.png" if screenshots else None
                try:
                    found = await check_page(contexts[view], f"{root}/{name}", view, picture)
                except Error as error:  # a page that cannot be looked at is a finding, not the end
                    found = [f"could not be checked: {error}"]
                findings[name] += [f"{view}: {finding}" for finding in found]

        async def check_views(name: str) -> None:
            await asyncio.gather(*(check(name, view) for view in VIEWS))
            print(f"{'FAILED' if findings[name] else 'passed'} {name}", flush=True)

        await asyncio.gather(*map(check_views, pages))
        if not only:
            findings["search.html"] += [f"a search: {found}" for found in await check_search(contexts[VIEWS[0]], root)]
        await browser.close()
    server.shutdown()
    if not only:
        for page, link in broken_links(site):
            findings.setdefault(page, []).append(f"all views: link leads nowhere: {link}")
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_build" / "html", help="folder of the built site")
    parser.add_argument("--only", default="", help="look at the pages whose path holds this word")
    parser.add_argument("--screenshots", type=Path, help="store a picture of every page in every view here")
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 2), help="pages open at once")
    options = parser.parse_args()
    start = time.perf_counter()
    findings = asyncio.run(check_site(options.site.resolve(), options.only, options.screenshots, options.workers))
    failed = {name: found for name, found in findings.items() if found}
    for name, found in failed.items():
        print(f"\n{name}")
        views = defaultdict(list)
        for finding in found:
            view, _, what = finding.partition(": ")
            views[what].append(view)
        for what, where in views.items():
            print(f"  {what}  [{'; '.join(where)}]")
    if not findings:
        print(f"no page in {options.site}")
    print(f"{len(findings) - len(failed)} pages passed, {len(failed)} failed, {len(VIEWS)} views each, "
          f"{time.perf_counter() - start:.0f} s")
    return 1 if failed or not findings else 0


if __name__ == "__main__":
    sys.exit(main())
