// "Prove it yourself": a claim of the chapter that the reader changes and runs.  The claims stand on the page as code; this
// makes a box of each.  Nothing is loaded before "Run": then a worker loads Python, and keeps it for the next claim.
(() => {
  const worker = new URL("prover_worker.js", document.currentScript.src);
  const { bytes: sizes, seconds: limit } = window.prover;
  const total = Object.values(sizes).reduce((sum, bytes) => sum + bytes, 0);
  const size = megabytes(total);

  function megabytes(bytes) {
    return (bytes / 1e6).toFixed(1);
  }

  function add(parent, tag, attributes = {}, text = "") {
    const node = Object.assign(document.createElement(tag), { textContent: text });
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent.append(node);
    return node;
  }

  class Box {
    constructor(code, number) {
      this.claim = code.querySelector("pre").textContent.trimEnd();
      this.box = document.createElement("details");
      this.box.className = "prover";
      add(this.box, "summary", {}, "Prove it yourself");
      const name = `prover-${number}`;
      add(this.box, "label", { for: name }, "The claim, in Python: change it, then run it");
      this.text = add(this.box, "textarea", { id: name, spellcheck: "false", autocapitalize: "off", autocomplete: "off",
        wrap: "off", rows: this.claim.split("\n").length + 1 });
      const buttons = add(this.box, "div", { class: "prover-buttons" });
      this.buttons = Object.fromEntries(["Run", "Stop", "Reset"].map((label) =>
        [label, add(buttons, "button", { type: "button" }, label)]));
      this.buttons.Run.title = "Ctrl + Enter in the text";
      const progress = add(this.box, "p", { class: "prover-progress" });
      this.stage = add(progress, "span", { role: "status" });  // read out; the numbers, which change all the time, are not
      this.numbers = add(progress, "span");
      this.answer = add(this.box, "div", { class: "prover-answer", "aria-live": "polite" });

      this.buttons.Run.onclick = () => this.run();
      this.buttons.Stop.onclick = () => this.running && this.stop("Stopped", "You stopped it; that says nothing about the claim.");
      this.buttons.Reset.onclick = () => this.reset();
      this.text.onkeydown = (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
      };
      this.reset();
      code.replaceWith(this.box);
    }

    get running() {
      return ["loading", "proving"].includes(this.box.dataset.state);
    }

    reset() {
      if (this.running) this.end();
      this.text.value = this.claim;
      this.clear();
      this.enter("idle", `Nothing is loaded yet. Run loads Python and SymPy from this site, ${size} MB, once.`);
      if (this.worker) this.stage.textContent = "Python is loaded.";
    }

    // A button that cannot be used now keeps the focus of the keyboard.
    enter(state, stage) {
      this.box.dataset.state = state;
      this.since = performance.now();
      this.stage.textContent = stage;
      this.numbers.textContent = "";
      this.buttons.Run.setAttribute("aria-disabled", this.running);
      this.buttons.Stop.setAttribute("aria-disabled", !this.running);
    }

    clear() {
      window.MathJax?.typesetClear?.([this.answer]);
      this.answer.replaceChildren();
      this.printed = null;
      delete this.box.dataset.verdict;
    }

    run() {
      if (this.running) return;
      this.clear();
      if (location.protocol === "file:") {
        this.show("error", "This page was opened from a file, from which a browser loads no Python: open it from a web "
          + "server, for example with: python -m http.server");
        return;
      }
      this.started = performance.now();
      this.enter(this.worker ? "proving" : "loading", this.worker ? "Proving" : "Loading Python");
      if (!this.worker) {
        this.worker = new Worker(worker, { type: "module" });
        this.worker.onmessage = ({ data }) => this.hear(data);
        this.worker.onerror = (event) => {
          event.preventDefault();
          this.stop("Python could not be loaded", event.message || "The browser did not start the worker.", "error");
        };
      }
      this.worker.postMessage({ claim: this.text.value, ...window.prover });
      this.clock = setInterval(() => this.tick(), 200);
    }

    tick() {
      const passed = (performance.now() - this.since) / 1000;
      if (this.box.dataset.state === "loading") {
        this.numbers.textContent = `: ${this.bytes ? `${megabytes(this.bytes)} of ${size} MB, ` : ""}${passed.toFixed(0)} s`;
      } else {
        this.numbers.textContent = `: ${passed.toFixed(0)} s of at most ${limit} s`;
        if (passed > limit) this.stop(`Stopped after ${limit} s without an answer`, "That says nothing about the claim.");
      }
    }

    hear({ bytes, stage, printed, answer, failed }) {
      if (bytes) this.bytes = bytes;
      if (bytes >= total) this.stage.textContent = "Starting Python";
      if (stage === "Proving") {
        if (this.box.dataset.state === "loading") this.loaded = (performance.now() - this.started) / 1000;
        this.enter("proving", stage);
      } else if (stage) {
        this.stage.textContent = stage;
      }
      if (printed) this.print(printed);
      if (failed) this.stop("Python stopped", failed, "error");
      if (answer) {
        const proved = (performance.now() - this.since) / 1000;
        this.finish(`Answered in ${proved.toFixed(1)} s${this.loaded ? ` after ${this.loaded.toFixed(1)} s of loading` : ""}.`);
        this.loaded = 0;
        this.show(answer.verdict, answer.title, answer.text, answer.latex);
      }
    }

    print(text) {
      this.printed ??= add(this.answer, "pre", { class: "prover-printed" });
      this.printed.append(text);
    }

    // Python in a worker cannot be interrupted from outside, only ended; the next run starts it again.
    end() {
      this.worker.terminate();
      this.worker = null;
      this.bytes = this.loaded = 0;
      clearInterval(this.clock);
    }

    stop(title, text, verdict = "stopped") {
      this.end();
      this.finish("The next run loads Python again.");
      this.show(verdict, title, text);
    }

    finish(stage) {
      clearInterval(this.clock);
      this.enter("idle", stage);
    }

    async show(verdict, title, text = "", latex = "") {
      add(this.answer, "p", { class: "prover-verdict" }, title);
      if (latex && window.MathJax?.typesetPromise) {
        const formula = add(this.answer, "div", { class: "math notranslate nohighlight" }, `\\[${latex}\\]`);
        await MathJax.typesetPromise([formula]);
      } else if (text) {
        add(this.answer, "pre", {}, text);
      }
      this.box.dataset.verdict = verdict;
      window.dispatchEvent(new Event("resize"));  // book.js looks again for boxes that scroll
    }
  }

  document.querySelectorAll("div.prover").forEach((code, number) => new Box(code, number));
})();
