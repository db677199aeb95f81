"""What a head is built for: the maps it reads, the input's size, the number of classes."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from .. import geometry
from ..errors import at


@dataclass(frozen=True)
class Spec:
    """``features`` are the backbone's output names, finest first, with their ``channels`` and
    ``strides`` (pixels); ``size`` is the input's side in pixels; ``frames`` of a clip; ``input``
    how images are fitted to it (unset: letterboxed)."""

    features: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    size: int
    classes: int
    frames: int = 1
    input: geometry.Input | None = None

    def __post_init__(self):
        if self.input is None:
            object.__setattr__(self, "input", geometry.Input(self.size, self.size))

    def only(self, features) -> Spec:
        """The same with these maps alone."""
        kept = [i for i, f in enumerate(self.features) if f in features]
        pick = lambda row: tuple(row[i] for i in kept)  # noqa: E731
        return replace(self, features=pick(self.features), channels=pick(self.channels), strides=pick(self.strides))

    def sides(self) -> list[int]:
        """Cells a side of each map; the last may lie in part beyond the input."""
        return [-(-self.size // stride) for stride in self.strides]

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """``(C, h, w)`` of each feature."""
        return {
            f: (c, s, s) for f, c, s in zip(self.features, self.channels, self.sides())
        }


def from_manifest(
    path: Path, classes: int, features: list[str] | None = None, frames: int = 1
) -> Spec:
    """The spec of a head on the backbone whose ``backbone.toml`` is at ``path``.

    ``features`` unset: every map of stride 4 or more.
    """
    table = read_manifest(path)
    known = {f["name"]: f for f in table["features"]}
    chosen = features or [n for n, f in known.items() if f["stride"] >= 4]
    for name in chosen:
        if name not in known:
            raise at(path, f"features: there is no {name!r}; the backbone has {', '.join(known)}")
        if known[name]["layout"] != "NCHW":
            raise at(path, f"features: {name} is {known[name]['layout']}; heads read NCHW")
    entries = sorted((known[n] for n in chosen), key=lambda f: f["stride"])
    to = geometry.from_manifest(path, table)
    if to.height != to.width:
        raise at(path, f"input.sizes: {to.height}x{to.width} is not square; heads are trained on square input")
    return Spec(
        tuple(f["name"] for f in entries), tuple(f["channels"] for f in entries),
        tuple(f["stride"] for f in entries), to.height, classes, frames, to,
    )  # fmt: skip


def read_manifest(path: Path) -> dict:
    """``backbone.toml``, with the keys that training needs."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise at(path, f"cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise at(path, f"is not TOML: {error}") from None
    for key in ("file", "sha256", "input", "features"):
        if key not in table:
            raise at(path, f"{key} is missing")
    return table
