"""Accuracy as the data sets' own protocols define it, over any predictor.

A predictor has ``detect``, ``segment``, ``recognize``, ``classify`` or ``embed`` (:class:`.local.Local` or
:class:`.remote.Remote`).  Every function returns metrics and one score per sample, from which
the best and worst cases are shown.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import InputError
from ..readers.base import IGNORE, Clips, Images, Things
from ..readers.coco import Coco
from .served import Detection

#: Scores below this cannot move average precision noticeably.
LOW_SCORE = 0.01
MOST = 100  # detections per image, by COCO's protocol


@dataclass
class Result:
    """Metrics, and each sample's own score (0 to 1) with its prediction."""

    metrics: dict[str, float]
    scores: list[float] = field(default_factory=list)
    predictions: list = field(default_factory=list)


def each_sample(count: int, work: Callable[[int], object], workers: int) -> list:
    """``work`` on every sample, ``workers`` at a time, in order."""
    if workers <= 1:
        return [work(i) for i in range(count)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(count)))


def sample(predictor, dataset: Images, index: int):
    """The sample as the predictor takes it: a server gets the file's own bytes."""
    if getattr(predictor, "takes_files", False) and hasattr(dataset, "path"):
        return dataset.path(index)
    return dataset.image(index)


# === detection ===


def _encode(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def ground_truth(dataset: Images, count: int) -> COCO:
    """The first ``count`` samples for pycocotools: COCO's own file, or made from the things."""
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(dataset, Coco) and dataset.masks:
            return COCO(str(dataset.file))
        coco, annotations, images = COCO(), [], []
        for index in range(count):
            width, height = dataset.size(index)
            images.append({"id": dataset.image_id(index), "width": width, "height": height})
            for things, crowd in ((dataset.things(index), 0), (dataset.ignored(index), 1)):
                for i, (box, label) in enumerate(zip(things.boxes, things.classes)):
                    x0, y0, x1, y1 = (float(v) for v in box)
                    entry = {
                        "id": len(annotations) + 1, "image_id": dataset.image_id(index),
                        "category_id": dataset.category_id(int(label)), "iscrowd": crowd,
                        "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                    }  # fmt: skip
                    if things.masks is not None:
                        entry |= {"area": float(things.masks[i].sum()), "segmentation": _encode(things.masks[i])}
                    annotations.append(entry)
        coco.dataset = {
            "info": {}, "images": images, "annotations": annotations,
            "categories": [
                {"id": dataset.category_id(i), "name": n} for i, n in enumerate(dataset.labels)
            ],
        }  # fmt: skip
        coco.createIndex()
        return coco


def detection(predictor, dataset: Images, count: int, workers: int = 1) -> Result:
    """COCO box and mask AP at IoU .50:.05:.95 and .50, at most 100 detections an image."""
    found: list[list[Detection]] = each_sample(
        count, lambda i: predictor.detect(sample(predictor, dataset, i), LOW_SCORE)[:MOST], workers
    )
    return score_detection(found, dataset)


def score_detection(found: list[list[Detection]], dataset: Images) -> Result:
    """The same for answers that are there, to the first ``len(found)`` samples."""
    count, entries, scores = len(found), [], []
    for index, row in enumerate(found):
        for d in row:
            x0, y0, x1, y1 = (float(v) for v in d.box)
            entry = {
                "image_id": dataset.image_id(index), "category_id": dataset.category_id(d.label),
                "score": d.score, "bbox": [x0, y0, x1 - x0, y1 - y0],
            }  # fmt: skip
            if d.mask is not None:
                entry["segmentation"] = _encode(d.mask)
            entries.append(entry)
        scores.append(_f1(row, dataset.things(index)))
    masks = dataset.masks and bool(entries) and all("segmentation" in e for e in entries)
    truth, metrics = ground_truth(dataset, count), {}
    ids = [dataset.image_id(i) for i in range(count)]
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if kind == "segm" and not masks and (entries or not dataset.masks):
            continue
        metrics |= average_precision(truth, entries, ids, kind, name)
    return Result(metrics, scores, found)


def average_precision(
    truth: COCO, entries: list[dict], ids: list[int], kind: str, name: str
) -> dict[str, float]:
    if not entries:
        return {f"{name}_map": 0.0, f"{name}_map50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes works in place: give each evaluation its own entries.
        scored = truth.loadRes([dict(e) for e in entries])
        if kind == "segm":
            for entry in scored.dataset["annotations"]:
                entry["area"] = float(rle.area(entry["segmentation"]))
        evaluation = COCOeval(truth, scored, kind)
        evaluation.params.imgIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {f"{name}_map": float(evaluation.stats[0]), f"{name}_map50": float(evaluation.stats[1])}


def _f1(found: list[Detection], things: Things) -> float:
    """One image's F1 at score 0.3 and IoU 0.5: what makes a case good or bad to look at."""
    sure = [d for d in found if d.score >= 0.3]
    if not sure and not len(things.boxes):
        return 1.0
    used, hits = set(), 0
    for d in sure:
        for j, (box, label) in enumerate(zip(things.boxes, things.classes)):
            if j in used or label != d.label:
                continue
            low, high = np.maximum(box[:2], d.box[:2]), np.minimum(box[2:], d.box[2:])
            both = np.clip(high - low, 0, None).prod()
            area = (box[2:] - box[:2]).prod() + (d.box[2:] - d.box[:2]).prod() - both
            if both >= 0.5 * area:
                used.add(j)
                hits += 1
                break
    return 2 * hits / max(1, len(sure) + len(things.boxes))


# === segmentation ===


def segmentation(predictor, dataset: Images, count: int, workers: int = 1) -> Result:
    """mIoU with intersections and unions summed over the set, and pixel accuracy."""
    maps = each_sample(count, lambda i: predictor.segment(sample(predictor, dataset, i)), workers)
    return score_segmentation(maps, dataset)


def score_segmentation(maps: list[np.ndarray], dataset: Images) -> Result:
    """The same for label maps that are there."""
    classes = len(dataset.labels)
    confusion, scores = np.zeros((classes, classes + 1), np.int64), []
    for index, found in enumerate(maps):
        truth = dataset.label_map(index)
        known = truth != IGNORE
        # A pixel that the backbone has not seen has no label: the last column, wrong whatever the truth.
        said = np.where(found[known] < classes, found[known], classes)
        pairs = truth[known].astype(np.int64) * (classes + 1) + said
        one = np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)
        confusion += one
        scores.append(_miou(one))
    total = max(1, int(confusion.sum()))
    metrics = {"miou": _miou(confusion), "pixel_accuracy": float(np.diag(confusion).sum() / total)}
    return Result(metrics, scores, maps)


def _miou(confusion: np.ndarray) -> float:
    """Over the classes that occur in the truth."""
    both, present = np.diag(confusion), confusion.sum(1) > 0
    union = confusion.sum(0)[: len(both)] + confusion.sum(1) - both
    return float((both[present] / union[present]).mean()) if present.any() else 0.0


# === action ===


def action(
    predictor, dataset: Clips, count: int, frames: int, stride: int | None, clips: int = 1, crops: int = 1,
    workers: int = 1,
) -> Result:  # fmt: skip
    """Top-1 and top-5 of class probabilities averaged over ``clips`` x ``crops`` views."""
    if stride is None and clips > 1:
        raise InputError(f"clips {clips}: a head without frame_stride reads whole videos, so there is one clip of each")

    def one(index: int) -> np.ndarray:
        views = []
        for clip in range(clips):
            place = 0.5 if clips == 1 else clip / (clips - 1)
            taken = dataset.frames(index, frames, stride, place)
            for crop in range(crops):
                views.append(predictor.recognize([_crop(f, crop, crops) for f in taken]))
        return np.mean(views, 0)

    return score_action(each_sample(count, one, workers), dataset)


def score_action(chances: list[np.ndarray], dataset: Clips) -> Result:
    """The same for probabilities that are there."""
    targets = [dataset.target(i) for i in range(len(chances))]
    ranks = [int((c > c[t]).sum()) for c, t in zip(chances, targets)]
    metrics = {
        "top1": float(np.mean([r < 1 for r in ranks])),
        "top5": float(np.mean([r < 5 for r in ranks])),
    }
    return Result(metrics, [float(c[t]) for c, t in zip(chances, targets)], chances)


def _crop(frame: np.ndarray, crop: int, crops: int) -> np.ndarray:
    """Square ``crop`` of ``crops`` along the longer side; the whole frame if there is one."""
    if crops == 1:
        return frame
    height, width = frame.shape[:2]
    side = min(height, width)
    y, x = ((2 * (v - side) * crop + crops - 1) // (2 * (crops - 1)) for v in (height, width))
    return np.ascontiguousarray(frame[y : y + side, x : x + side])


def run(
    predictor, dataset, task: str, limit: int | None = None, frames: int = 1, stride: int | None = None,
    clips: int = 1, crops: int = 1, workers: int = 1, gallery: Images | None = None,
) -> Result:  # fmt: skip
    """The task's protocol on the first ``limit`` samples; ``gallery`` are an embedding's known ones."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if task == "detection":
        return detection(predictor, dataset, count, workers)
    if task == "segmentation":
        return segmentation(predictor, dataset, count, workers)
    if task in ("classification", "embedding"):
        from . import images

        if task == "classification":
            return images.classification(predictor, dataset, count, workers)
        return images.embedding(predictor, dataset, count, workers, gallery)
    return action(predictor, dataset, count, frames, stride, clips, crops, workers)
