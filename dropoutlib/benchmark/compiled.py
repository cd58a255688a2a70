"""What Triton makes of the kernels for a GPU; the compiler alone runs, so no card is needed and none is timed."""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

from .timing import markdown

__all__ = ["Compiled", "compiled_kernels", "kernels_table"]

_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_ARGUMENTS = {"seed": "*i64", "size": "i64", "length": "i32", "scale": "fp32", "cut": "i32", "rest": "i32",
              "mean": "fp32", "deviation": "fp32"}
_BLOCK = 1024       # elements of a row that a program masks
_THREADS = 128      # of a program
_PARTS = {"masks": 8, "masked": 8, "factors": 4, "gaussian": 4}     # elements that a thread gets of a call of Philox


class Compiled(NamedTuple):
    """A kernel for compute capability 9.0.

    ``instructions`` and ``products`` (of the rounds of Philox) are those in PTX for each element; of a mask two thirds
    of the products run only where 16 bits tie. ``local`` counts declarations and uses of local memory, which registers
    spill to, ``exchanged`` the changes of layout between threads, ``loads`` the widths in which an input is read.
    """

    kernel: str
    dtype: str
    instructions: float
    products: float
    local: int
    exchanged: int
    loads: str


def compiled_kernels() -> list[Compiled]:
    """Compiles every kernel for elements of every type.

    Returns:
        list[Compiled]: a row for each.

    Raises:
        RuntimeError: if Triton is not there, or is set to interpret.
    """
    try:
        triton = importlib.import_module("triton")
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
        source = importlib.import_module("triton.compiler").ASTSource
        kernels = importlib.import_module("dropoutlib.kernels.triton_kernels")
    except ImportError as error:
        raise RuntimeError(f"the kernels are compiled by Triton, which cannot be imported: {error}") from error
    if triton.knobs.runtime.interpret:
        raise RuntimeError("the kernels cannot be compiled where TRITON_INTERPRET is set")
    return [_compiled(getattr(kernels, name), name, dtype, kernels.STRIPE, triton, target, source)
            for name in ("masks", "masked", "masked_rows", "factors", "gaussian")
            for dtype in _TYPES if name != "masks" or dtype == "float32"]


def _compiled(kernel: Any, name: str, dtype: str, stripe: int, triton: Any, target: Any, source: Any) -> Compiled:
    pointer = "*" + _TYPES[dtype]
    known = {"input": pointer, "output": "*i8" if name == "masks" else pointer, **_ARGUMENTS}
    signature = {argument: known.get(argument, "constexpr") for argument in kernel.arg_names}
    constants = {argument: {"BLOCK": _BLOCK, "STRIPE": stripe}[argument]
                 for argument, kind in signature.items() if kind == "constexpr"}
    aligned = {(kernel.arg_names.index(argument),): [["tt.divisibility", 16]]
               for argument in ("input", "output", "length") if argument in signature}
    compiled = triton.compile(source(kernel, signature, constants, aligned), target=target,
                              options={"num_warps": _THREADS // 32})
    ptx, elements = compiled.asm["ptx"], _PARTS.get(name, _BLOCK // _THREADS)
    code = ptx[ptx.index("{", ptx.index(".entry")):]
    loads = sorted(set(re.findall(r"ld\.global\.((?:v\d\.)?b\d+)", code)) - {"b64"})
    return Compiled(name, "-" if name == "masks" else dtype, len(re.findall(r";\n", code)) / elements,
                    len(re.findall(r"mul\.(?:hi|wide)\.u32", code)) / elements, code.count(".local"),
                    compiled.asm["ttgir"].count("convert_layout"), ", ".join(loads) or "-")


def kernels_table() -> str:
    """What the kernels are compiled to.

    Returns:
        A Markdown table under a line that says by what.
    """
    triton = importlib.import_module("triton")
    rows = [[f"`{row.kernel}`", row.dtype, f"{row.instructions:.0f}", f"{row.products:.1f}", str(row.local),
             str(row.exchanged), row.loads] for row in compiled_kernels()]
    heading = ["kernel", "type", "instructions", "products of Philox", "spills", "exchanges", "loads"]
    return "\n".join([f"Triton {triton.__version__}, compute capability 9.0, {_THREADS} threads a program; in PTX, for "
                      "each element; nothing was run.", "", *markdown(heading, rows)])
