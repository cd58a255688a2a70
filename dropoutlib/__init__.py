"""Dropout methods for PyTorch, each held to an executable derivation.

``p`` is always the probability of dropping. Every layer with noise takes ``noise=`` (a given draw) and
``generator=`` (a private source of randomness) in ``forward``, and has a functional twin in
:mod:`dropoutlib.functional`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exports import *  # noqa: F403

__version__ = "0.2.0"


def _load(name: str) -> Any:
    """Load a module, or the layers and with them torch, when it is asked for: :mod:`dropoutlib.symbolic` needs neither.
    """
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "__all__" and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    exports = import_module(f"{__name__}.exports")
    globals().update({exported: getattr(exports, exported) for exported in exports.__all__}, __all__=exports.__all__)
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


if not TYPE_CHECKING:  # a type checker would take every name for one of ours
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *_load("__all__")})
