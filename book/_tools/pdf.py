"""The whole book as one PDF, printed from the built site by the browser that checks it.

::

    python book/_tools/pdf.py [SITE] [PDF]

The pages follow one another as in the table of contents, with a bookmark each and solutions open; code that is folded
on the page stays so. Links between the pages lead to the published site, where a build knows its address.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
from pathlib import Path

import check_pages
import checks
from playwright.async_api import Browser, async_playwright
from pypdf import PdfWriter

ROOT = Path(__file__).resolve().parents[2]
READY = """async (root) => {
  const canonical = document.querySelector("link[rel=canonical]")?.href;
  for (const box of document.querySelectorAll(".toggle-hidden button.toggle-button")) box.click();
  for (const image of document.images) { image.loading = "eager"; await image.decode().catch(() => {}); }
  await window.MathJax?.startup?.promise;
  for (const link of document.querySelectorAll("article a[href]")) {
    if (!link.href.startsWith(root)) continue;
    if (link.href.startsWith(location.href.split("#")[0] + "#")) continue;
    if (canonical) link.href = new URL(new URL(link.href).pathname.slice(1), new URL("/", canonical));
    else link.removeAttribute("href");
  }
  return document.querySelector("h1").firstChild.textContent;
}"""


async def printed(browser: Browser, root: str, name: str) -> tuple[str, bytes]:
    """Title and PDF of one page."""
    context = await check_pages.new_context(browser, check_pages.View(1280, "light"))
    page = await context.new_page()
    try:
        await page.goto(f"{root}/{name}.html", wait_until="load")
        title = await page.evaluate(READY, root)
        return title, await page.pdf(format="A4", print_background=True, margin=dict.fromkeys(
            ("top", "bottom", "left", "right"), "18mm"))
    finally:
        await context.close()


async def write(site: Path, target: Path, names: list[str]) -> None:
    """Prints pages of a site into one file."""
    server = check_pages.serve(site)
    root = f"http://127.0.0.1:{server.server_address[1]}"
    book = PdfWriter()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=check_pages.chromium(), args=check_pages.ARGUMENTS)
        for number, name in enumerate(names, start=1):
            title, pdf = await printed(browser, root, name)
            book.append(io.BytesIO(pdf), outline_item=title)
            print(f"[{number}/{len(names)}] {title}: {book.get_num_pages()} pages so far", flush=True)
        await browser.close()
    server.shutdown()
    book.add_metadata({"/Title": "Dropout, proved", "/Author": "The dropoutlib authors"})
    book.write(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_build" / "html", help="folder of the built site")
    parser.add_argument("pdf", nargs="?", type=Path, help="the file to write, dropout_proved.pdf in the site if none")
    options = parser.parse_args()
    target = options.pdf or options.site / "dropout_proved.pdf"
    asyncio.run(write(options.site.resolve(), target, checks.contents(ROOT)))
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
