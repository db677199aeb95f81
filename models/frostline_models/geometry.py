"""How an image becomes a backbone's input, and which frames of a clip a head reads.

The rules are those of ``GEOMETRY.md``, beside this package; the server keeps to the same page,
and the cases of ``geometry/cases.json`` hold both to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import InputError, at

#: Ways to fit and filters that ``backbone.toml`` may name.
RESIZES = ("letterbox", "stretch", "center_crop")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PAD = 114
LEAST_CROP = 0.1
#: Of these rules and of reading images; features that were kept under others are not used.
RULES = 2


@dataclass(frozen=True)
class Input:
    """``[input]`` of ``backbone.toml`` at one size, in pixels."""

    width: int
    height: int
    resize: str = "letterbox"
    filter: str = "bilinear"
    pad: int = PAD
    crop_fraction: float = 1.0

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise InputError(f"resize {self.resize!r}: must be one of {', '.join(RESIZES)}")
        if self.filter not in FILTERS:
            raise InputError(f"filter {self.filter!r}: must be one of {', '.join(FILTERS)}")
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or not 0 <= self.pad <= 255:
            raise InputError(f"pad {self.pad!r}: must be a whole number from 0 to 255")
        share = self.crop_fraction
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not LEAST_CROP <= share <= 1:
            raise InputError(f"crop_fraction {share!r}: must be from {LEAST_CROP} to 1")
        if share != 1 and self.resize != "center_crop":
            raise InputError(f"crop_fraction {share!r}: has no meaning for resize {self.resize!r}")

    def manifest(self) -> dict:
        """The keys of ``[input]`` that say how images are fitted."""
        table = {"resize": self.resize, "filter": self.filter, "pad": self.pad}
        return table | ({"crop_fraction": self.crop_fraction} if self.resize == "center_crop" else {})

    def pads(self) -> bool:
        """Whether the model is ever shown padding."""
        return self.resize == "letterbox"


#: What ``[input]`` may hold.
KEYS = {"name", "sizes", "resize", "filter", "pad", "crop_fraction"}


def from_manifest(path: Path, table: dict, size: list[int] | None = None) -> Input:
    """Of ``backbone.toml`` (at ``path``, for messages), at ``[height, width]`` or its default."""
    given = table["input"]
    for key in given:
        if key not in KEYS:
            raise at(path, f"input.{key}: is no key that is known here; there are {', '.join(sorted(KEYS))}")
    for key in ("name", "sizes", "resize"):
        if not given.get(key):
            raise at(path, f"input.{key}: is missing")
    height, width = size or given["sizes"][0]
    chosen = {k: given[k] for k in ("resize", "filter", "pad", "crop_fraction") if k in given}
    try:
        return Input(width, height, **chosen)
    except InputError as error:
        raise at(path, f"input.{error}") from None


@dataclass(frozen=True)
class Placement:
    """Where an image of ``width x height`` lies in the input: resized to ``new_width x
    new_height``, then moved by ``left`` and ``top`` (negative: cut)."""

    width: int
    height: int
    new_width: int
    new_height: int
    left: int
    top: int
    input_width: int
    input_height: int

    @property
    def scale_x(self) -> float:
        return self.new_width / self.width

    @property
    def scale_y(self) -> float:
        return self.new_height / self.height

    def seen(self) -> tuple[slice, slice]:
        """Rows and columns of the original whose centres lie in the input."""
        return (
            _seen(self.height, self.new_height, self.top, self.input_height),
            _seen(self.width, self.new_width, self.left, self.input_width),
        )

    def sampling(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Bilinear weights ``[height, rows]`` and ``[width, columns]`` of the original's pixel
        centres over the cells of a map that covers the input."""
        return (
            sampling(self.height, self.scale_y, self.top, rows, self.input_height),
            sampling(self.width, self.scale_x, self.left, columns, self.input_width),
        )


def _seen(count: int, resized: int, offset: int, cells: int) -> slice:
    # The centre of pixel i lies at (2i + 1) * resized / (2 * count) of the resized image.
    first = lambda edge: min(count, max(0, -((resized - 2 * edge * count) // (2 * resized))))  # noqa: E731
    return slice(first(-offset), first(cells - offset))


def half_up(side: int, to: int, given: int) -> int:
    """``side * to / given``, to the nearest, halves up; at least 1."""
    return max(1, (2 * side * to + given) // (2 * given))


def placement(width: int, height: int, to: Input) -> Placement:
    """Where an image goes."""
    if to.resize == "stretch":
        return Placement(width, height, to.width, to.height, 0, 0, to.width, to.height)
    box_w, box_h = to.width, to.height
    if to.resize == "center_crop":
        box_w, box_h = (max(v, math.floor(v / to.crop_fraction)) for v in (box_w, box_h))
    # The box is wider for its height than the image: its height decides what fits, its width what covers.
    wider = box_w * height > box_h * width
    ratio = (box_h, height) if wider == (to.resize == "letterbox") else (box_w, width)
    new_w, new_h = half_up(width, *ratio), half_up(height, *ratio)
    if to.resize == "letterbox":
        left, top = (to.width - new_w) // 2, (to.height - new_h) // 2
    else:
        left, top = -((new_w - to.width) // 2), -((new_h - to.height) // 2)
    return Placement(width, height, new_w, new_h, left, top, to.width, to.height)


def place(image: Image.Image | np.ndarray, where: Placement, to: Input) -> np.ndarray:
    """uint8 ``[H, W, 3]``: the image as ``where`` says, on a ground of the input's pad."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    whole = image.convert("RGB").resize((where.new_width, where.new_height), FILTERS[to.filter])
    canvas = Image.new("RGB", (to.width, to.height), (to.pad,) * 3)
    canvas.paste(whole, (where.left, where.top))
    return np.asarray(canvas)


def fit(image: Image.Image | np.ndarray, to: Input) -> np.ndarray:
    """The model's input, uint8 ``[H, W, 3]``, as the server makes it."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return place(image, placement(*image.size, to), to)


def zoomed(where: Placement, by: float) -> Placement:
    """The same image resized by another factor; its place is left to the caller."""
    number = Fraction(by)
    new_w, new_h = (half_up(v, number.numerator, number.denominator) for v in (where.new_width, where.new_height))
    return replace(where, new_width=new_w, new_height=new_h)


def sampling(count: int, scale: float, offset: float, cells: int, size: int) -> np.ndarray:
    """Bilinear weights ``[count, cells]``: original pixel centres over a map's cell centres.

    A pixel's centre is mapped into the input of ``size`` pixels, then into the map, whose edge
    cells are held constant outwards.
    """
    place = (np.arange(count) + 0.5) * scale + offset
    place = np.clip(place * cells / size - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(int), cells - 2) if cells > 1 else np.zeros(count, int)
    share = (place - low).astype(np.float32)
    weights = np.zeros((count, cells), np.float32)
    weights[np.arange(count), low] = 1 - share
    if cells > 1:
        weights[np.arange(count), low + 1] += share
    return weights


def no_label(labels: int) -> int:
    """Value of a label map's pixels that a centre crop has cut away."""
    return 255 if labels <= 255 else 65535


def positions(total: int, count: int, stride: int | None, place: float = 0.5) -> list[int]:
    """Which frames of ``total`` a head of ``count`` frames reads.

    ``stride`` frames apart from ``place`` (0 start to 1 end) of the clip; without a stride, or
    where the clip is too short for it, the middles of equal parts of the whole clip.
    """
    if stride is not None:
        span = (count - 1) * stride + 1
        if total >= span:
            start = math.floor((total - span) * place + 0.5)
            return [start + i * stride for i in range(count)]
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
