"""Packages that only some uses need: named in the error where one is missing."""

from __future__ import annotations

import importlib
import sys
from typing import Any

_EXTRAS = {
    "numpy": ("numpy", "images"),
    "PIL": ("pillow", "images"),
    "pandas": ("pandas", "pandas"),
    "supervision": ("supervision", "supervision"),
    "tqdm": ("tqdm", "progress"),
}
"""A module's package, and the extra of this package that has it."""


def need(module: str, purpose: str) -> Any:
    """Imports `module`, or says what `purpose` needs."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        package = module.partition(".")[0]
        name, extra = _EXTRAS[package]
        text = f"{purpose} needs {name}: pip install {name}, or install this package with its extra [{extra}] ({missing})"
        raise ImportError(text, name=package) from missing


def loaded(module: str) -> Any | None:
    """`module` if the program has imported it: an object of its types can exist only then."""
    return sys.modules.get(module)
