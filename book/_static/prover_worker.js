// Loads Pyodide and the provers once and answers one claim after the other.
let answer;
let loaded = 0;

const say = (message) => postMessage(message);

// Counts what arrives; Pyodide fetches its own files with this too.
const fetchOfBrowser = self.fetch.bind(self);
self.fetch = async (...request) => {
  const response = await fetchOfBrowser(...request);
  if (!response.ok) throw new Error(`${response.url} could not be loaded (${response.status})`);
  const counted = response.body.pipeThrough(new TransformStream({
    transform(chunk, out) {
      count(chunk.byteLength);
      out.enqueue(chunk);
    },
  }));
  return new Response(counted, { headers: response.headers });
};

function count(bytes) {
  loaded += bytes;
  say({ bytes: loaded });
}

async function load({ pyodide, library, bytes }) {
  const address = (path) => new URL(path, import.meta.url).href;
  const room = 20_000; // characters that one claim may print
  let printed = 0;
  const text = new TextDecoder();
  const write = (bytes) => {
    const part = text.decode(bytes, { stream: true });
    if (printed < room) say({ printed: printed + part.length < room ? part : `${part.slice(0, room - printed)}\n...` });
    printed += part.length;
    return bytes.length;
  };
  const start = async () => {
    const { loadPyodide } = await import(address(`${pyodide}pyodide.mjs`));
    await import(address(`${pyodide}pyodide.asm.mjs`));
    count(bytes["pyodide.mjs"] + bytes["pyodide.asm.mjs"]);
    const python = await loadPyodide({ indexURL: address(pyodide) });
    python.setStdout({ write });
    python.setStderr({ write });
    return python;
  };
  const archive = fetch(address(library)).then((response) => response.arrayBuffer());
  const [python, content] = await Promise.all([start(), archive]);
  say({ stage: "Starting SymPy" });
  python.FS.writeFile("/library.zip", new Uint8Array(content));
  python.runPython("import sys; sys.path.insert(0, '/library.zip')");
  const cell = python.pyimport("prover_cell");
  return (claim) => {
    printed = 0;
    return cell.answer(claim).toJs({ dict_converter: Object.fromEntries });
  };
}

self.onmessage = async ({ data: { claim, ...settings } }) => {
  try {
    answer ??= await load(settings);
    say({ stage: "Proving" });
    say({ answer: answer(claim) });
  } catch (error) {
    say({ failed: String(error.message ?? error).trim().split("\n").at(-1) });
  }
};
