"""What readers of labelled boxes share: pictures with their boxes, listed when the set is opened."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import at
from .base import Images, Things, read_image

#: EXIF's orientation, and the values by which width and height change places.
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


@dataclass
class Picture:
    """A picture, and rows of ``(class, x0, y0, x1, y1)`` in its pixels; ``size`` is (width, height),
    ``file`` what says so, ``ignored`` rows that nobody is blamed for."""

    path: Path
    size: tuple[int, int]
    file: Path
    rows: list[tuple] = field(default_factory=list)
    ignored: list[tuple] = field(default_factory=list)


class Boxed(Images):
    """Pictures whose instances have boxes."""

    tasks = ("detection",)
    masks = False
    pictures: list[Picture]

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, index: int) -> str:
        return self.pictures[index].path.name

    def fingerprint(self) -> str:
        text = "\n".join(f"{p.path.name} {p.size}" for p in self.pictures)
        return hashlib.sha256(text.encode()).hexdigest()

    def image_id(self, index: int) -> int:
        return index

    def category_id(self, label: int) -> int:
        return label

    def path(self, index: int) -> Path:
        return self.pictures[index].path

    def size(self, index: int) -> tuple[int, int]:
        return self.pictures[index].size

    def image(self, index: int) -> np.ndarray:
        picture = self.pictures[index]
        pixels = read_image(picture.path)
        height, width = pixels.shape[:2]
        if (width, height) != picture.size:
            said = "x".join(map(str, picture.size))
            raise at(picture.path, f"is {width}x{height}, but {picture.file.name} says {said}")
        return pixels

    def things(self, index: int) -> Things:
        return _things(self.pictures[index].rows)

    def ignored(self, index: int) -> Things:
        return _things(self.pictures[index].ignored)


def _things(rows: list[tuple]) -> Things:
    boxes = np.array([row[1:] for row in rows], np.float32).reshape(-1, 4)
    return Things(boxes, np.array([row[0] for row in rows], np.int64), None)


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of the picture as :func:`.base.read_image` gives it, from its head alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)
    except FileNotFoundError:
        raise at(path, "no such image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise at(path, f"is not a readable image: {error}") from None


def clipped(corners: list[float], size: tuple[int, int]) -> list[float] | str:
    """The box within the picture, or what is wrong with it."""
    if not all(math.isfinite(v) for v in corners):
        return f"box {corners} is not finite"
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        return f"box {corners} has no area: xmax and ymax must be beyond xmin and ymin"
    width, height = size
    inside = [min(max(v, 0.0), float(most)) for v, most in zip(corners, (width, height) * 2)]
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return f"box {corners} lies outside the picture of {width}x{height}"
    return inside
