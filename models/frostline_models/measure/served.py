"""The server's postprocessing in numpy, for any input: what a head's outputs mean.

The rules are those of ``GEOMETRY.md``, and torchvision's order of steps for detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry import Placement, no_label, sampling

#: What holds where ``[postprocess]`` of a head says nothing.
DEFAULTS = {"score_threshold": 0.0, "max_detections": 100, "mask_threshold": 0.5}


@dataclass
class Detection:
    """``box`` xyxy and ``mask`` bool ``[H, W]`` in the original image's pixels."""

    label: int
    score: float
    box: np.ndarray
    mask: np.ndarray | None


def label_map(logits: np.ndarray, where: Placement) -> np.ndarray:
    """``[C, h, w]`` logits, bilinear over the original image, to the best class per pixel;
    :func:`.geometry.no_label` where the input does not show it."""
    rows, columns = where.sampling(*logits.shape[1:])
    seen = where.seen()
    rows, columns = rows[seen[0]], columns[seen[1]]
    best = np.full((len(rows), len(columns)), -np.inf, np.float32)
    labels = np.zeros(best.shape, np.int64)
    for c, plane in enumerate(logits):  # class by class: 150 full-size planes are gigabytes
        full = rows @ plane @ columns.T
        better = full > best
        labels[better], best[better] = c, full[better]
    return _whole(labels, where, len(logits))


def cell_labels(cells: np.ndarray, where: Placement, labels: int) -> np.ndarray:
    """``[h, w]`` labels of cells over the input to the label of the cell that holds each pixel's
    centre, of a head of so many labels."""

    def cell(count: int, scale: float, offset: int, size: int, many: int) -> np.ndarray:
        place = (np.arange(count) + 0.5) * scale + offset
        return np.clip(np.floor(place * many / size), 0, many - 1).astype(int)

    rows = cell(where.height, where.scale_y, where.top, where.input_height, cells.shape[0])
    columns = cell(where.width, where.scale_x, where.left, where.input_width, cells.shape[1])
    seen = where.seen()
    return _whole(cells[rows[seen[0]][:, None], columns[seen[1]][None]], where, labels)


def _whole(labels: np.ndarray, where: Placement, count: int) -> np.ndarray:
    out = np.full((where.height, where.width), no_label(count), np.int64)
    out[where.seen()] = labels
    return out


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return both / ((box[2:] - box[:2]).prod() + areas - both)


def detections(outputs: dict[str, np.ndarray], where: Placement, post: dict) -> list[Detection]:
    """One image's ``boxes [K, 4]``, ``scores``, ``labels`` and ``masks``, as the server answers:
    threshold, clip to what was seen, drop what is not there, greedy suppression within a class,
    most detections.  Rows of score 0 are none.  ``post`` is the manifest's table."""
    post = DEFAULTS | post
    scores, labels = outputs["scores"], outputs["labels"]
    scale = np.array([where.scale_x, where.scale_y] * 2)
    whole = (outputs["boxes"].astype(np.float64) - np.array([where.left, where.top] * 2)) / scale
    low, high = _edges(where)
    clipped = whole.clip([*low, *low], [*high, *high])
    sides = clipped.astype(np.float32)
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] <= 0 or scores[i] < post["score_threshold"] or len(kept) == post["max_detections"]:
            break
        if sides[i, 2] <= sides[i, 0] or sides[i, 3] <= sides[i, 1]:
            continue
        same, limit = [j for j in kept if labels[j] == labels[i]], post.get("nms_iou")
        # The limit as the server reads it, in single precision.
        if limit is None or not same or _iou(sides[i].astype(float), sides[same].astype(float)).max() <= np.float32(limit):
            kept.append(int(i))
    found = []
    for i in kept:
        mask = None
        if "masks" in outputs and "mask" in post:
            mask = paste(outputs["masks"][i], whole[i], clipped[i], where, post)
        found.append(Detection(int(labels[i]), float(scores[i]), clipped[i], mask))
    return found


def _edges(where: Placement) -> tuple[np.ndarray, np.ndarray]:
    """What of the original the input shows: its corners, in the original's pixels."""
    size = np.array([where.width, where.height], float)
    offset = np.array([where.left, where.top], float)
    new = np.array([where.new_width, where.new_height], float)
    most = np.array([where.input_width, where.input_height], float)
    scale = new / size
    low, high = offset.clip(0, most), (offset + new).clip(0, most)
    return ((low - offset) / scale).clip(0, size), ((high - offset) / scale).clip(0, size)


def paste(
    mask: np.ndarray, box: np.ndarray, clipped: np.ndarray, where: Placement, post: dict
) -> np.ndarray:
    """The original pixels inside ``clipped`` whose interpolated probability reaches the
    threshold; a mask over the box covers all of ``box``."""
    h, w = mask.shape
    if post["mask"] == "image":
        rows, columns = where.sampling(h, w)
    else:
        rows = _inside(where.height, box[1], box[3], h)
        columns = _inside(where.width, box[0], box[2], w)
    x, y = np.arange(where.width) + 0.5, np.arange(where.height) + 0.5
    within = ((y > clipped[1]) & (y < clipped[3]))[:, None] & ((x > clipped[0]) & (x < clipped[2]))[None]
    return (rows @ mask @ columns.T >= post.get("mask_threshold", DEFAULTS["mask_threshold"])) & within


def _inside(count: int, low: float, high: float, cells: int) -> np.ndarray:
    """Bilinear weights of pixels over a mask's cells, which span ``low`` to ``high`` pixels."""
    scale = cells / max(high - low, 1e-6)
    return sampling(count, scale, -low * scale, cells, cells)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
