"""From an image and its truth to the model's input: the plain view and augmented ones.

View 0 is what the server does (letterbox).  View 1 is its mirror image.  Further views are
drawn from the seed, the sample and the view's number: another scale and place, mirrored half
of the time, other colours.  The same numbers always give the same view, so features of a few
views can be kept on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..dataset import jitter
from ..postprocess import PAD, placement
from .base import IGNORE, Things

#: Least side in pixels of a thing that is still worth learning after a view has cut it.
LEAST_SIDE = 2.0


@dataclass(frozen=True)
class View:
    """``x' = x * scale_x + left`` (then mirrored within ``size``), in pixels."""

    size: int
    new_width: int
    new_height: int
    left: int
    top: int
    mirror: bool = False
    colour: tuple[int, ...] | None = None  # seed of the colour jitter


def view(
    width: int, height: int, size: int, seed: int, index: int, number: int, mirror: bool = True
) -> View:
    """View ``number`` of sample ``index``, for an image of ``width`` x ``height``.

    ``mirror`` False: views are never mirrored (where left and right are the classes).
    """
    where = placement(width, height, size)
    plain = (size, where.new_width, where.new_height, where.left, where.top)
    if number == 0 or (number == 1 and not mirror):
        return View(*plain, colour=(seed, index, 1) if number else None)
    if number == 1:
        return View(*plain, mirror=True)
    rng = np.random.default_rng((seed, index, number))
    zoom = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))
    new_w, new_h = (max(1, round(v * zoom)) for v in (where.new_width, where.new_height))
    # Anywhere that keeps the larger of image and input covered by the other.
    left = int(rng.integers(min(0, size - new_w), max(0, size - new_w) + 1))
    top = int(rng.integers(min(0, size - new_h), max(0, size - new_h) + 1))
    return View(
        size, new_w, new_h, left, top, mirror and bool(rng.random() < 0.5), (seed, index, number)
    )


def pixels(image: np.ndarray, at: View) -> np.ndarray:
    """uint8 ``[S, S, 3]``."""
    small = Image.fromarray(image).resize((at.new_width, at.new_height), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (at.size, at.size), (PAD, PAD, PAD))
    canvas.paste(small, (at.left, at.top))
    out = np.asarray(canvas)
    if at.mirror:
        out = out[:, ::-1]
    if at.colour is not None:
        out = jitter(np.random.default_rng(at.colour), out[None])[0]
    return np.ascontiguousarray(out)


def _nearest(count: int, original: int, new: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``count`` input cells its original one, and whether it lies on the image."""
    place = np.arange(count) + 0.5 - offset
    inside = (place >= 0) & (place < new)
    return np.clip((place * original / new).astype(int), 0, original - 1), inside


def _warp(maps: np.ndarray, at: View, fill: int) -> np.ndarray:
    """``[..., H, W]`` to ``[..., S, S]`` by nearest neighbour."""
    height, width = maps.shape[-2:]
    rows, row_inside = _nearest(at.size, height, at.new_height, at.top)
    columns, column_inside = _nearest(at.size, width, at.new_width, at.left)
    out = maps[..., rows[:, None], columns[None]]
    out = np.where(row_inside[:, None] & column_inside[None], out, np.asarray(fill, out.dtype))
    return out[..., ::-1] if at.mirror else out


def label_map(labels: np.ndarray, at: View) -> np.ndarray:
    """uint8 ``[S, S]``, :data:`IGNORE` off the image."""
    return np.ascontiguousarray(_warp(labels, at, IGNORE))


def things(truth: Things, at: View) -> Things:
    """Instances in the view; what it cuts away or shrinks to nothing is dropped."""
    height, width = truth.masks.shape[-2:]
    scale = np.array([at.new_width / width, at.new_height / height] * 2, np.float32)
    boxes = truth.boxes * scale + np.array([at.left, at.top] * 2, np.float32)
    boxes = boxes.clip(0, at.size)
    if at.mirror:
        boxes = np.stack((at.size - boxes[:, 2], boxes[:, 1], at.size - boxes[:, 0], boxes[:, 3]), 1)
    masks = _warp(truth.masks, at, 0).astype(bool)
    sides = boxes[:, 2:] - boxes[:, :2]
    keep = (sides.min(1, initial=np.inf) >= LEAST_SIDE) & masks.any((1, 2))
    return Things(boxes[keep].astype(np.float32), truth.classes[keep], np.ascontiguousarray(masks[keep]))
