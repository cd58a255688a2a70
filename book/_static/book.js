// What is wider than its box scrolls inside it; make such a box reachable from the keyboard, and only such a box.
(() => {
  const always = ".pst-scrollable-table-container";  // a late font can widen a table after everything was measured
  const boxes = "div.math, pre, .cell_output .output, .pst-scrollable-table-container, .table-wrapper, .bd-content table, mjx-container";
  const scrolls = (box) => {
    const style = getComputedStyle(box);
    const across = ["auto", "scroll"].includes(style.overflowX) && box.scrollWidth > box.clientWidth;
    const down = ["auto", "scroll"].includes(style.overflowY) && box.scrollHeight > box.clientHeight;
    return across || down;
  };
  const mark = () => {
    for (const formula of document.querySelectorAll('.bd-content mjx-container:not([display="true"])')) {
      const block = formula.closest("p, li, td, th, dd, dt, figcaption, h1, h2, h3");
      formula.classList.remove("too-wide");
      formula.classList.toggle("too-wide", block !== null && formula.offsetWidth > block.clientWidth);
    }
    for (const box of document.querySelectorAll(boxes)) {
      if (scrolls(box) || box.matches(always)) {
        box.tabIndex = 0;
        box.dataset.scrolls = "";
      } else if ("scrolls" in box.dataset && !box.matches(always)) {
        box.removeAttribute("tabindex");
        delete box.dataset.scrolls;
      }
    }
  };
  window.addEventListener("load", () => {
    mark();
    window.MathJax?.startup?.promise?.then(mark);
    const opened = new ResizeObserver(() => requestAnimationFrame(mark));  // a solution that opens, a late font
    for (const box of document.querySelectorAll("pre, .cell_output .output, div.math")) opened.observe(box);
  });
  window.addEventListener("resize", mark);
})();

// A link to what a reader may want to cite: a formula that a cell shows, a theorem, an exercise.
(() => {
  const cited = ".cell[id]:has(.cell_output :is(div.math, mjx-container)), .proof[id], .exercise[id]";
  window.addEventListener("DOMContentLoaded", () => {
    for (const box of document.querySelectorAll(cited)) {
      const place = box.querySelector(".admonition-title") ?? box.querySelector(".cell_output");
      if (!place) continue;  // a proof, which belongs to its theorem
      const link = document.createElement("a");
      link.className = "headerlink permalink";
      link.href = `#${box.id}`;
      link.textContent = "#";
      link.setAttribute("aria-label", `Link to ${box.querySelector(".admonition-title")?.textContent.trim() ?? "this formula"}`);
      place.append(link);
    }
  });
})();
