"""From an image and its truth to the model's input: the plain view and augmented ones.

View 0 is what the server does, as ``GEOMETRY.md`` says.  View 1 is its mirror image.  Further
views are drawn from the seed, the sample and the view's number: another scale and place,
mirrored half of the time, other colours.  They show padding only where the server does.  The
same numbers always give the same view, so features of a few views can be kept on disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import geometry
from ..dataset import jitter
from .base import IGNORE, Things

#: Least side in pixels of a thing that is still worth learning after a view has cut it.
LEAST_SIDE = 2.0


@dataclass(frozen=True)
class View:
    """Where the image goes (then mirrored within the input), and the input."""

    where: geometry.Placement
    to: geometry.Input
    mirror: bool = False
    colour: tuple[int, ...] | None = None  # seed of the colour jitter


def view(
    width: int, height: int, to: geometry.Input, seed: int, index: int, number: int, mirror: bool = True
) -> View:
    """View ``number`` of sample ``index``, for an image of ``width`` x ``height``.

    ``mirror`` False: views are never mirrored (where left and right are the classes).
    """
    where = geometry.placement(width, height, to)
    if number == 0 or (number == 1 and not mirror):
        return View(where, to, colour=(seed, index, 1) if number else None)
    if number == 1:
        return View(where, to, mirror=True)
    rng = np.random.default_rng((seed, index, number))
    least = 0.6
    if not to.pads():  # the input stays covered, as it is when serving
        least = min(1.0, max(least, to.width / where.new_width, to.height / where.new_height))
    where = geometry.zoomed(where, float(np.exp(rng.uniform(np.log(least), np.log(1.8)))))
    # Anywhere that keeps the larger of image and input covered by the other.
    free_w, free_h = to.width - where.new_width, to.height - where.new_height
    left = int(rng.integers(min(0, free_w), max(0, free_w) + 1))
    top = int(rng.integers(min(0, free_h), max(0, free_h) + 1))
    where = replace(where, left=left, top=top)
    return View(where, to, mirror and bool(rng.random() < 0.5), (seed, index, number))


def pixels(image: np.ndarray, at: View) -> np.ndarray:
    """uint8 ``[S, S, 3]``."""
    out = geometry.place(image, at.where, at.to)
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
    rows, row_inside = _nearest(at.to.height, height, at.where.new_height, at.where.top)
    columns, column_inside = _nearest(at.to.width, width, at.where.new_width, at.where.left)
    out = maps[..., rows[:, None], columns[None]]
    out = np.where(row_inside[:, None] & column_inside[None], out, np.asarray(fill, out.dtype))
    return out[..., ::-1] if at.mirror else out


def label_map(labels: np.ndarray, at: View) -> np.ndarray:
    """uint8 ``[S, S]``, :data:`IGNORE` off the image."""
    return np.ascontiguousarray(_warp(labels, at, IGNORE))


def things(truth: Things, at: View) -> Things:
    """Instances in the view; what it cuts away or shrinks to nothing is dropped."""
    where, side = at.where, at.to.width
    scale = np.array([where.new_width / where.width, where.new_height / where.height] * 2, np.float32)
    boxes = truth.boxes * scale + np.array([where.left, where.top] * 2, np.float32)
    boxes = boxes.clip(0, [side, at.to.height] * 2)
    if at.mirror:
        boxes = np.stack((side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]), 1)
    keep = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= LEAST_SIDE
    masks = None
    if truth.masks is not None:
        masks = _warp(truth.masks, at, 0).astype(bool)
        keep &= masks.any((1, 2))
        masks = np.ascontiguousarray(masks[keep])
    return Things(boxes[keep].astype(np.float32), truth.classes[keep], masks)
