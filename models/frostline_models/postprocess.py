"""From head outputs to answers in the original image: what the server does, in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .repository import PAD, SIZE


@dataclass(frozen=True)
class Placement:
    """Where an image of ``width x height`` lies in the model's square input."""

    width: int
    height: int
    new_width: int
    new_height: int
    left: int
    top: int

    @property
    def scale_x(self) -> float:
        return self.new_width / self.width

    @property
    def scale_y(self) -> float:
        return self.new_height / self.height


def placement(width: int, height: int, size: int = SIZE) -> Placement:
    scale = min(size / width, size / height)
    new_w, new_h = max(1, round(width * scale)), max(1, round(height * scale))
    return Placement(width, height, new_w, new_h, (size - new_w) // 2, (size - new_h) // 2)


def letterbox(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """The model's input, uint8 ``[size, size, 3]``."""
    where = placement(*image.size, size)
    small = image.convert("RGB").resize(
        (where.new_width, where.new_height), Image.Resampling.BILINEAR
    )
    canvas = np.full((size, size, 3), PAD, np.uint8)
    rows = slice(where.top, where.top + where.new_height)
    canvas[rows, where.left : where.left + where.new_width] = np.asarray(small)
    return canvas


def sampling(count: int, scale: float, offset: int, cells: int, size: int = SIZE) -> np.ndarray:
    """Bilinear weights ``[count, cells]``: original pixel centres over a map's cell centres.

    A pixel's centre is mapped into the input, then into the map, whose edge cells are
    held constant outwards.
    """
    at = (np.arange(count) + 0.5) * scale + offset
    at = np.clip(at * cells / size - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), cells - 2) if cells > 1 else np.zeros(count, int)
    share = (at - low).astype(np.float32)
    weights = np.zeros((count, cells), np.float32)
    weights[np.arange(count), low] = 1 - share
    if cells > 1:
        weights[np.arange(count), low + 1] += share
    return weights


def resample(maps: np.ndarray, where: Placement) -> np.ndarray:
    """``[C, h, w]`` maps over the input to ``[C, height, width]`` over the original."""
    rows = sampling(where.height, where.scale_y, where.top, maps.shape[1])
    cols = sampling(where.width, where.scale_x, where.left, maps.shape[2])
    return rows @ maps @ cols.T


@dataclass
class Detection:
    label: int
    score: float
    box: np.ndarray  # xyxy in original pixels
    mask: np.ndarray  # bool [height, width]


def iou_with(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return both / np.maximum((box[2:] - box[:2]).prod() + areas - both, 1e-9)


def detections(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray,
    where: Placement, score_threshold: float, nms_iou: float, max_detections: int,
    mask_threshold: float = 0.5,
) -> list[Detection]:  # fmt: skip
    """One image's answer: threshold, boxes clipped to the image, those without area dropped, greedy
    suppression per class, most detections, masks cut to their box."""
    shift = np.array([where.left, where.top] * 2)
    scale = np.array([where.scale_x, where.scale_y] * 2)
    limit = np.array([where.width, where.height] * 2)
    original = np.clip((boxes - shift) / scale, 0, limit).astype(np.float32).astype(np.float64)
    visible = (original[:, 2:] > original[:, :2]).all(1) & (scores >= score_threshold) & (scores > 0)
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if len(kept) == max_detections:
            break
        same = [j for j in kept if labels[j] == labels[i]]
        if visible[i] and (not same or iou_with(original[i], original[same]).max() <= nms_iou):
            kept.append(int(i))
    if not kept:
        return []
    full = resample(masks[kept], where) >= mask_threshold
    x, y = np.arange(where.width) + 0.5, np.arange(where.height) + 0.5
    found = []
    for i, mask in zip(kept, full):
        x0, y0, x1, y1 = box = original[i]
        mask &= ((x >= x0) & (x <= x1))[None, :] & ((y >= y0) & (y <= y1))[:, None]
        found.append(Detection(int(labels[i]), float(scores[i]), box, mask))
    return found


def label_map(logits: np.ndarray, where: Placement) -> np.ndarray:
    """``[C, h, w]`` logits to the winning class per original pixel."""
    return resample(logits, where).argmax(0)
