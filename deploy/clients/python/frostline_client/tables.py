"""Answers as tables, as COCO's results, and as `supervision` takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .extras import need

if TYPE_CHECKING:
    from .results import Classification, Detections, Poses, Segmentation


def _frame(answer: Any, rows: list[dict[str, Any]], columns: dict[str, str]) -> Any:
    """A table with the columns and types that it has with no rows, too."""
    pandas = need("pandas", "to_pandas")
    image = os.fspath(answer.image) if isinstance(answer.image, (str, os.PathLike)) else None
    columns = {"image": "str", "head": "str"} | columns
    rows = [{"image": image, "head": answer.head} | row for row in rows]
    return pandas.DataFrame(rows, columns=list(columns)).astype(columns | {"image": "object"})


def detections(found: Detections) -> Any:
    edges = ("x_min", "y_min", "x_max", "y_max")
    rows = [
        {"label": d.label, "class_index": d.class_index, "score": d.score}
        | dict(zip(edges, d.box))
        | {"area": d.mask.area if d.mask else None}
        for d in found
    ]
    columns = {"label": "str", "class_index": "int64", "score": "float64"}
    return _frame(found, rows, columns | dict.fromkeys(edges, "float64") | {"area": "Int64"})


def segments(answer: Segmentation) -> Any:
    pixels = answer.size[0] * answer.size[1]
    rows = [
        {"label": s.label, "class_index": s.class_index, "pixels": s.pixels, "share": s.pixels / pixels}
        for s in answer.segments
    ]
    return _frame(answer, rows, {"label": "str", "class_index": "int64", "pixels": "int64", "share": "float64"})


def top(answer: Classification) -> Any:
    rows = [{"label": s.label, "class_index": s.class_index, "probability": s.probability} for s in answer.top]
    return _frame(answer, rows, {"label": "str", "class_index": "int64", "probability": "float64"})


def poses(found: Poses) -> Any:
    rows = [
        {"pose": index, "pose_score": pose.score, "label": p.label, "x": p.x, "y": p.y, "score": p.score}
        for index, pose in enumerate(found)
        for p in pose.keypoints
    ]
    floats = dict.fromkeys(("x", "y", "score"), "float64")
    return _frame(found, rows, {"pose": "int64", "pose_score": "float64", "label": "str"} | floats)


def supervision(found: Detections) -> Any:
    numpy, sv = need("numpy", "to_supervision"), need("supervision", "to_supervision")
    masks = [d.mask.array() for d in found if d.mask]
    return sv.Detections(
        xyxy=found.boxes(),
        # All or none: a head makes masks or does not.
        mask=numpy.stack(masks) if masks and len(masks) == len(found) else None,
        confidence=found.scores(),
        class_id=found.class_indices().astype(int),
        data={"class_name": numpy.array(found.labels(), dtype=str)},
    )


def coco(found: Detections, image_id: int, categories: Mapping[str, int] | None) -> list[dict[str, Any]]:
    rows = []
    for d in found:
        if categories is not None and d.label not in categories:
            raise KeyError(f"categories has no number for {d.label!r}")
        x_min, y_min, x_max, y_max = d.box
        row: dict[str, Any] = {
            "image_id": image_id,
            "category_id": d.class_index if categories is None else categories[d.label],
            "bbox": [x_min, y_min, x_max - x_min, y_max - y_min],
            "score": d.score,
        }
        if d.mask:
            row["segmentation"] = d.mask.coco() | {"counts": d.mask.counts.decode("ascii")}
            row["area"] = d.mask.area
        rows.append(row)
    return rows
