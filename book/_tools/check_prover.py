"""Runs claims in the box "Prove it yourself" of a built page, in a headless Chromium, as a reader would.

::

    python book/_tools/check_prover.py [SITE] [--page PAGE] [--required] [--screenshots FOLDER]

Looked for: that nothing is loaded before the click, and nothing from another host at all; that a true claim is shown
and a false one refused with the difference; that a syntax error is named with its line; that an endless loop is stopped
by the button and by the time limit; that the box can be used with the keyboard, fits a telephone and has enough
contrast in light and dark.  A site without the runtime passes, unless ``--required``.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.server
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from check_pages import ARGUMENTS, OVERFLOW, ROOT, SETTLED, VIEWS, View, accessibility, chromium, listen, new_context
from playwright.async_api import BrowserContext, Page, async_playwright

WAIT = 300_000  # milliseconds; a busy machine is slow, not wrong
HEAD = """\
from sympy import *
from dropoutlib.symbolic import *
p = symbols("p")
m = Noise(Bernoulli("m", 1 - p))
"""
TRUE = HEAD + 'print("printed", end="")\nprove(Variance(m[1]/(1 - p)), p/(1 - p))'
FALSE = HEAD + "prove(Variance(m[1]/(1 - p)), p/(1 + p))"
NOT_PYTHON = HEAD + "prove(Variance(m[1], p)"
ENDLESS = "while True:\n    pass"


class _Counted(http.server.ThreadingHTTPServer):
    """Serves a folder and writes down which files were asked for, and how many bytes it sent."""

    def __init__(self, site: Path) -> None:
        self.asked: dict[str, int] = {}
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def copyfile(self, source: Any, outputfile: Any) -> None:
                content = source.read()
                path = urlsplit(self.path).path
                server.asked[path] = server.asked.get(path, 0) + len(content)
                outputfile.write(content)

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def sent(self) -> dict[str, int]:
        """The bytes sent for the prover, by file."""
        return {path: size for path, size in self.asked.items()
                if ("/prover/" in path or "prover_worker" in path) and not path.endswith("settings.js")}


def page_with_a_box(site: Path) -> str | None:
    """The first page of a site that has a box and its script."""
    pages = (path for path in sorted(site.rglob("*.html")) if "prover/settings.js" in path.read_text(encoding="utf-8"))
    return next((path.relative_to(site).as_posix() for path in pages), None)


class _Box:
    """The first box of a page, used from the keyboard where that is possible."""

    def __init__(self, page: Page) -> None:
        self.page, self.box = page, page.locator("details.prover").first
        self.text, self.answer = self.box.locator("textarea"), self.box.locator(".prover-answer")

    async def press(self, button: str) -> None:
        await self.box.get_by_role("button", name=button).focus()
        await self.page.keyboard.press("Enter")

    async def state(self, name: str) -> None:
        await self.page.wait_for_function("([box, name]) => box.dataset.state === name",
                                          arg=[await self.box.element_handle(), name], timeout=WAIT)

    async def verdict(self) -> tuple[str, str]:
        """Waits for the answer: the verdict and all that is written."""
        await self.page.wait_for_function("(box) => box.dataset.verdict", arg=await self.box.element_handle(),
                                          timeout=WAIT)
        return str(await self.box.get_attribute("data-verdict")), await self.answer.inner_text()

    async def ask(self, claim: str) -> tuple[str, str, float]:
        """Runs a claim: verdict, text and seconds."""
        await self.text.fill(claim)
        start = time.perf_counter()
        await self.press("Run")
        verdict, text = await self.verdict()
        return verdict, text, time.perf_counter() - start


async def _claims(page: Page, server: _Counted, found: list[str]) -> str:
    """Tries the claims; returns the line with the measurements."""
    box = _Box(page)

    def expect(what: str, verdict: tuple[str, str], wanted: str, *words: str) -> None:
        if verdict[0] != wanted or any(word not in verdict[1] for word in words):
            found.append(f"{what}: expected {wanted} with {', '.join(words)}, got {verdict[0]}: {verdict[1][:200]}")

    await page.wait_for_load_state("networkidle")
    if server.sent():
        found.append(f"loaded before the click: {', '.join(server.sent())}")
    if await box.text.is_visible():
        found.append("the box is open before the click")
    own = await box.text.input_value()
    await box.box.locator("summary").focus()
    await page.keyboard.press("Enter")
    await box.text.focus()
    await page.keyboard.press("Tab")
    if await box.text.evaluate("(text) => text === document.activeElement"):
        found.append("the text keeps the keyboard: Tab does not leave it")

    *answer, cold = await box.ask(TRUE)
    expect("a true claim", (answer[0], answer[1]), "shown", "Shown", "printed")
    if not await box.answer.locator("mjx-container").count():
        found.append("a true claim: its formula is not rendered")
    megabytes = sum(server.sent().values()) / 1e6
    *answer, again = await box.ask(TRUE)
    expect("a true claim again", (answer[0], answer[1]), "shown", "Shown")
    *answer, _ = await box.ask(FALSE)
    expect("a false claim", (answer[0], answer[1]), "refused", "Refused", "the difference is")
    *answer, _ = await box.ask(NOT_PYTHON)
    expect("a syntax error", (answer[0], answer[1]), "error", "Not Python", "line 5")
    if (sent := sum(server.sent().values()) / 1e6) != megabytes:
        found.append(f"the second claim loads again: {sent - megabytes:.1f} MB")

    await box.text.fill(ENDLESS)
    await box.press("Run")
    await box.state("proving")
    await page.wait_for_timeout(1000)
    await box.press("Stop")
    expect("an endless loop and the button", await box.verdict(), "stopped", "Stopped")
    await box.press("Reset")
    if await box.text.input_value() != own:
        found.append("Reset does not bring the claim of the chapter back")
    start = time.perf_counter()
    await box.press("Run")
    expect("the claim of the chapter", await box.verdict(), "shown", "Shown")
    warm = time.perf_counter() - start
    return (f"{cold:.1f} s from the click to the first proof, {warm:.1f} s after a stop, "
            f"{again:.1f} s when Python is loaded; {megabytes:.1f} MB")


async def _looks(page: Page, view: View, found: list[str]) -> None:
    """The box with an answer: nothing is wider than the window, contrast and names are right."""
    await page.evaluate("window.scrollTo(0, 0)")  # without the button that leads there
    await page.evaluate(SETTLED)
    problems = await page.evaluate(OVERFLOW)
    problems += await accessibility(page, None if view.width > 600 else ("color-contrast", "target-size",
                                                                        "scrollable-region-focusable"))
    found += [f"{view}: {problem}" for problem in problems]


async def _time_limit(context: BrowserContext, address: str, found: list[str]) -> None:
    page = await context.new_page()
    await page.add_init_script("Object.defineProperty(window, 'prover', {set(value) { this.settings = value; }, "
                               "get() { return {...this.settings, seconds: 1}; }})")
    await page.goto(address, wait_until="load")
    box = _Box(page)
    await box.box.locator("summary").click()
    verdict, text, _ = await box.ask(ENDLESS)
    if verdict != "stopped" or "1 s" not in text:
        found.append(f"an endless loop and the time limit: got {verdict}: {text}")
    await page.close()


async def check(site: Path, name: str, screenshots: Path | None = None) -> tuple[list[str], str]:
    """Opens a page with a box in every view.

    Args:
        site: the folder of the built site.
        name: the page.
        screenshots: where a picture of the box is stored in every view.

    Returns:
        tuple[list[str], str]: the findings, and a line with what was measured.
    """
    found: list[str] = []
    measured = ""
    server = _Counted(site)
    address = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        for view in VIEWS:
            context = await new_context(browser, view)
            page = await context.new_page()
            listen(page, found)
            await page.goto(address, wait_until="load")
            if view == VIEWS[0]:
                measured = await _claims(page, server, found)
                await _time_limit(context, address, found)
            else:
                box = _Box(page)
                await box.box.locator("summary").click()
                verdict, text, _ = await box.ask(await box.text.input_value())
                if verdict != "shown":
                    found.append(f"{view}: the claim of the chapter: {verdict}: {text}")
            if screenshots is not None:
                screenshots.mkdir(parents=True, exist_ok=True)
                await page.locator("details.prover").first.screenshot(
                    path=screenshots / f"prover.{view.width}.{view.theme}.png")
            await _looks(page, view, found)
            await context.close()
        await browser.close()
    server.shutdown()
    return found, measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_build" / "html", help="folder of the built site")
    parser.add_argument("--page", help="the page whose box is tried; the first one with a box if none is named")
    parser.add_argument("--required", action="store_true", help="a site without boxes fails")
    parser.add_argument("--screenshots", type=Path, help="store a picture of the box in every view here")
    options = parser.parse_args()
    site = options.site.resolve()
    name = options.page or page_with_a_box(site)
    if name is None:
        print(f"{options.site} was built without the boxes 'Prove it yourself'")
        return 1 if options.required else 0
    found, measured = asyncio.run(check(site, name, options.screenshots))
    for finding in found:
        print(f"  {finding}")
    print(f"{'FAILED' if found else 'passed'} the box of {name}: {measured}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
