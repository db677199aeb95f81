"""Held-out metrics of exported graphs, by the served semantics.

Box and mask AP by pycocotools; mIoU with intersections and unions summed over the
whole set; top-1 over clips.  The images are the 128 px letterboxed scenes themselves,
so "original pixels" are input pixels here.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnxruntime as ort
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .dataset import SIZE, Clips, Scenes
from .geometry import Input, placement
from .labels import IGNORE, SCENE_NAMES, THING_NAMES
from .measure.served import Detection, detections, label_map
from .repository import POSTPROCESS

#: Detections below this score cannot move average precision noticeably.
LOW_SCORE = 0.02
BATCH = 16


class Server:
    """A backbone session and one head session, run one after the other."""

    def __init__(self, backbone: ort.InferenceSession, head: ort.InferenceSession):
        self.backbone, self.head = backbone, head
        self.features = [i.name for i in head.get_inputs()]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """``images`` uint8 ``[N,S,S,3]`` or ``[N,T,S,S,3]``."""
        flat = np.ascontiguousarray(images.reshape(-1, *images.shape[-3:]))
        maps = self.backbone.run(self.features, {"image": flat})
        if images.ndim == 5:
            maps = [m.reshape(*images.shape[:2], *m.shape[1:]) for m in maps]
        return self.head.run(None, dict(zip(self.features, maps)))


def _encode(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def coco_truth(scenes: Scenes) -> COCO:
    """The scenes' instances as a COCO data set."""
    annotations = []
    for image in range(len(scenes)):
        for label, number, box in zip(
            scenes.classes[image], scenes.numbers[image], scenes.boxes[image]
        ):
            if label < 0:
                continue
            mask = scenes.instances[image] == number
            x0, y0, x1, y1 = (float(v) for v in box)
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(label),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(mask.sum()), "iscrowd": 0,
                "segmentation": _encode(mask),
            })  # fmt: skip
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": SIZE, "height": SIZE} for i in range(len(scenes))],
        "categories": [{"id": i, "name": n} for i, n in enumerate(THING_NAMES)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def coco_result(image: int, found: Detection) -> dict:
    x0, y0, x1, y1 = (float(v) for v in found.box)
    return {
        "image_id": image, "category_id": found.label, "score": found.score,
        "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": _encode(found.mask),
    }  # fmt: skip


def coco_metrics(truth: COCO, results: list[dict]) -> dict[str, float]:
    """Box and mask AP at IoU .50:.95 and at .50, at most 100 detections an image."""
    metrics = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        if not results:
            metrics |= {f"{name}_map": 0.0, f"{name}_map50": 0.0}
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            # loadRes works in place: give each evaluation its own entries.
            scored = truth.loadRes([dict(r) for r in results])
            if kind == "segm":
                # loadRes takes areas from boxes where both are given.
                for entry in scored.dataset["annotations"]:
                    entry["area"] = float(rle.area(entry["segmentation"]))
            evaluation = COCOeval(truth, scored, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        metrics |= {
            f"{name}_map": float(evaluation.stats[0]),
            f"{name}_map50": float(evaluation.stats[1]),
        }
    return metrics


def objects_metrics(server: Server, scenes: Scenes) -> dict[str, float]:
    where, results = placement(SIZE, SIZE, Input(SIZE, SIZE)), []
    post = POSTPROCESS["objects"] | {"score_threshold": LOW_SCORE, "max_detections": 100}
    for start in range(0, len(scenes), BATCH):
        rows = server(scenes.images[start : start + BATCH])
        for i, (boxes, scores, labels, masks) in enumerate(zip(*rows)):
            outputs = {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}
            results += [coco_result(start + i, f) for f in detections(outputs, where, post)]
    return coco_metrics(coco_truth(scenes), results)


def scene_metrics(server: Server, scenes: Scenes) -> dict[str, float]:
    where, classes = placement(SIZE, SIZE, Input(SIZE, SIZE)), len(SCENE_NAMES)
    confusion = np.zeros((classes, classes), np.int64)
    for start in range(0, len(scenes), BATCH):
        (logits,) = server(scenes.images[start : start + BATCH])
        for i, row in enumerate(logits):
            truth = scenes.labels[start + i]
            counted = truth != IGNORE
            pairs = truth[counted].astype(np.int64) * classes + label_map(row, where)[counted]
            confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    both = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - both
    present = confusion.sum(1) > 0
    return {
        "miou": float((both[present] / union[present]).mean()),
        "pixel_accuracy": float(both.sum() / confusion.sum()),
    }


def motion_metrics(server: Server, clips: Clips) -> dict[str, float]:
    right = 0
    for start in range(0, len(clips), BATCH):
        (logits,) = server(clips.frames[start : start + BATCH])
        right += int((logits.argmax(1) == clips.motions[start : start + BATCH]).sum())
    return {"top1": right / len(clips)}


METRICS = {"objects": objects_metrics, "scene": scene_metrics, "motion": motion_metrics}
