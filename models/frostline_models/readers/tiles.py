"""Large pictures in pieces: aerial photographs whose things are a few pixels of the model's input."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from ..errors import InputError
from .base import Images, Things

#: Least share of a thing's box that a piece must hold to be said to have it; less is ignored.
LEAST_SHARE = 0.4


class Tiles(Images):
    """Squares of ``tile`` pixels of a set's pictures, ``overlap`` pixels of which the next has too."""

    def __init__(self, inner: Images, tile: int, overlap: int = 0, with_empty: bool = False):
        """``with_empty`` keeps pieces without instances, where instances are the truth."""
        for name, value, most in (("tile", tile, 8192), ("overlap", overlap, None)):
            if isinstance(value, bool) or not isinstance(value, int) or value < (name == "tile") or value > (most or tile - 1):
                raise InputError(f"{name} {value!r}: must be a whole number from {int(name == 'tile')} to {most or tile - 1}")
        self.inner, self.tile, self.overlap = inner, tile, overlap
        self.tasks, self.labels, self.masks = inner.tasks, inner.labels, inner.masks
        self._image, self._things = lru_cache(2)(inner.image), lru_cache(2)(inner.things)
        self.places = [
            (index, x, y)
            for index in range(len(inner))
            for y in _starts(inner.size(index)[1], tile, overlap) for x in _starts(inner.size(index)[0], tile, overlap)
        ]  # fmt: skip
        if "detection" in self.tasks and not with_empty:
            self.places = [p for i, p in enumerate(self.places) if len(self.things(i).boxes)]

    def __len__(self) -> int:
        return len(self.places)

    def key(self, index: int) -> str:
        picture, x, y = self.places[index]
        return f"{self.inner.key(picture)} at {x},{y}"

    def fingerprint(self) -> str:
        text = f"{self.inner.fingerprint()} {self.tile} {self.overlap} {self.places}"
        return hashlib.sha256(text.encode()).hexdigest()

    def image_id(self, index: int) -> int:
        return index

    def category_id(self, label: int) -> int:
        return self.inner.category_id(label)

    def size(self, index: int) -> tuple[int, int]:
        width, height = self.inner.size(self.places[index][0])
        return min(self.tile, width), min(self.tile, height)

    def image(self, index: int) -> np.ndarray:
        picture, x, y = self.places[index]
        return np.ascontiguousarray(self._image(picture)[y : y + self.tile, x : x + self.tile])

    def label_map(self, index: int) -> np.ndarray:
        picture, x, y = self.places[index]
        return np.ascontiguousarray(self.inner.label_map(picture)[y : y + self.tile, x : x + self.tile])

    def things(self, index: int) -> Things:
        picture, x, y = self.places[index]
        truth = self._things(picture)
        boxes, share = self._cut(truth.boxes, index)
        keep = share >= LEAST_SHARE
        masks = None
        if truth.masks is not None:
            masks = truth.masks[keep, y : y + self.tile, x : x + self.tile]
            seen = masks.any((1, 2))
            keep[keep], masks = seen, np.ascontiguousarray(masks[seen])
        return Things(boxes[keep], truth.classes[keep], masks)

    def ignored(self, index: int) -> Things:
        """The set's own, and what the border cuts the most of off."""
        picture, own = self.places[index][0], self.inner.ignored(self.places[index][0])
        truth = self._things(picture)
        boxes, share = self._cut(truth.boxes, index)
        cut = (share > 0) & (share < LEAST_SHARE)
        theirs, there = self._cut(own.boxes, index)
        rows = np.concatenate((boxes[cut], theirs[there > 0]))
        return Things(rows, np.concatenate((truth.classes[cut], own.classes[there > 0])), None)

    def _cut(self, boxes: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes in the piece, and the share of each that it holds."""
        _, x, y = self.places[index]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        moved = (boxes - np.array([x, y] * 2, np.float32)).clip(0, np.array(self.size(index) * 2, np.float32))
        return moved, (moved[:, 2:] - moved[:, :2]).prod(1) / np.maximum(area, 1e-9)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Of pieces that cover the length, the last flush with its end."""
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, tile - overlap))
    return [*starts, length - tile]
