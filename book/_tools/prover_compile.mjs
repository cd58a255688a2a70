// Compiles for Pyodide what a proof imports: node prover_compile.mjs FOLDER, which holds Pyodide and sources.zip and gets
// library.zip.  The other modules stay as they are: few readers need one, and compiled they are larger.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = process.argv[2];
const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide.mjs`).href);
const python = await loadPyodide();
python.unpackArchive(new Uint8Array(readFileSync(`${folder}/sources.zip`)), "zip", { extractDir: "/library" });
python.runPython(`
import ast, sys, zipfile
from importlib._bootstrap_external import _code_to_hash_pyc
from pathlib import Path

library = Path("/library")
sys.path.insert(0, str(library))
import prover_cell

assert prover_cell.answer(prover_cell.EXAMPLE)["verdict"] == "shown"
def without_docstrings(content):
    """A fifth of the download; an empty one stays, because SymPy reads some of its own."""
    tree = ast.parse(content)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body[0].value.value = ""
    return tree

imported = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
with zipfile.ZipFile("/library.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for path in sorted(library.rglob("*.py")):
        name, content = path.relative_to(library).as_posix(), path.read_bytes()
        if path in imported:
            ours = name.startswith("dropoutlib/")  # for help(derive)
            code = compile(content if ours else without_docstrings(content), name, "exec", dont_inherit=True)
            name, content = name + "c", _code_to_hash_pyc(code, bytes(8), False)
        archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
`);
writeFileSync(`${folder}/library.zip`, python.FS.readFile("/library.zip"));
