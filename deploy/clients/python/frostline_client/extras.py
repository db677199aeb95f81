"""Packages that only some uses need: named in the error where one is missing."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_EXTRAS = {
    "numpy": "images",
    "PIL": "images",
    "pandas": "pandas",
    "supervision": "supervision",
    "tqdm": "progress",
}


def need(module: str, purpose: str) -> Any:
    """Imports `module`, or says what `purpose` needs."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        package = module.partition(".")[0]
        extra = _EXTRAS[package]
        raise ImportError(
            f"{purpose} needs {package}: pip install 'frostline-client[{extra}]' ({missing})", name=package
        ) from missing


def loaded(module: str) -> Any | None:
    """`module` if the program has imported it: an object of its types can exist only then."""
    return sys.modules.get(module)
