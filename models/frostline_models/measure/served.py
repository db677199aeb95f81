"""The server's postprocessing in numpy, for any input size: what a head's outputs mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..postprocess import Placement, iou_with, sampling


@dataclass
class Detection:
    """``box`` xyxy and ``mask`` bool ``[H, W]`` in the original image's pixels."""

    label: int
    score: float
    box: np.ndarray
    mask: np.ndarray | None


def label_map(logits: np.ndarray, where: Placement, size: int) -> np.ndarray:
    """``[C, h, w]`` logits, bilinear over the original image, to the best class per pixel."""
    rows = sampling(where.height, where.scale_y, where.top, logits.shape[1], size)
    columns = sampling(where.width, where.scale_x, where.left, logits.shape[2], size)
    best = np.full((where.height, where.width), -np.inf, np.float32)
    out = np.zeros((where.height, where.width), np.int64)
    for c, plane in enumerate(logits):  # class by class: 150 full-size planes are gigabytes
        full = rows @ plane @ columns.T
        better = full > best
        out[better], best[better] = c, full[better]
    return out


def detections(
    outputs: dict[str, np.ndarray], where: Placement, size: int, post: dict
) -> list[Detection]:
    """One image's ``boxes [K, 4]``, ``scores``, ``labels`` and ``masks``, as the server answers: threshold,
    boxes clipped to the original image, those without area dropped, greedy suppression within a class, most
    detections."""
    boxes, scores, labels = outputs["boxes"], outputs["scores"], outputs["labels"]
    shift = np.array([where.left, where.top] * 2)
    scale = np.array([where.scale_x, where.scale_y] * 2)
    whole = (boxes - shift) / scale
    # As they are returned: in float32.
    clipped = whole.clip(0, [where.width, where.height] * 2).astype(np.float32).astype(np.float64)
    counts = (scores >= post["score_threshold"]) & (scores > 0) & (clipped[:, 2:] > clipped[:, :2]).all(1)
    limit = post.get("nms_iou")
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if len(kept) == post["max_detections"]:
            break
        same = [j for j in kept if labels[j] == labels[i]]
        if counts[i] and (limit is None or not same or iou_with(clipped[i], clipped[same]).max() <= limit):
            kept.append(int(i))
    found = []
    for i in kept:
        mask = None
        if "masks" in outputs:
            mask = paste(outputs["masks"][i], whole[i], where, size, post)
        found.append(Detection(int(labels[i]), float(scores[i]), clipped[i], mask))
    return found


def paste(mask: np.ndarray, box: np.ndarray, where: Placement, size: int, post: dict) -> np.ndarray:
    """The original pixels inside ``box`` whose interpolated probability reaches the threshold."""
    h, w = mask.shape
    if post["mask"] == "image":
        rows = sampling(where.height, where.scale_y, where.top, h, size)
        columns = sampling(where.width, where.scale_x, where.left, w, size)
    else:
        rows = _inside(where.height, box[1], box[3], h)
        columns = _inside(where.width, box[0], box[2], w)
    x, y = np.arange(where.width) + 0.5, np.arange(where.height) + 0.5
    within = ((y > box[1]) & (y < box[3]))[:, None] & ((x > box[0]) & (x < box[2]))[None]
    return (rows @ mask @ columns.T >= post["mask_threshold"]) & within


def _inside(count: int, low: float, high: float, cells: int) -> np.ndarray:
    """Bilinear weights of pixels over a mask's cells, which span ``low`` to ``high`` pixels."""
    scale = cells / max(high - low, 1e-6)
    return sampling(count, scale, -low * scale, cells, cells)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
