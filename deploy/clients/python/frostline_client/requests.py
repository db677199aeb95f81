"""Calls as messages, and what turns their answers into results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from frostline.v1 import model_pb2, types_pb2, vision_pb2

from . import results

ImageLike = bytes | str | os.PathLike | np.ndarray
"""An image: a file's bytes, a path, or pixels as a uint8 array [height, width, 3] in the order R, G, B."""

Priority = Literal["background", "normal", "high"]
"""How urgent a call is. A lower one waits while a higher one has work."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One call."""

    service: str
    """`vision` or `model`."""
    method: str
    request: Any
    convert: Callable[[Any], Answer]
    repeatable: bool = True
    """Whether making it twice is as good as once."""


def image(value: ImageLike) -> types_pb2.Image:
    if isinstance(value, bytes):
        return types_pb2.Image(encoded=value)
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise ValueError(f"pixels must be uint8 [height, width, 3], not {value.dtype} {list(value.shape)}")
        height, width, _ = value.shape
        raw = types_pb2.RawImage(width=width, height=height, rgb=np.ascontiguousarray(value).tobytes())
        return types_pb2.Image(raw=raw)
    with open(value, "rb") as file:
        return types_pb2.Image(encoded=file.read())


def clip(frames: Iterable[ImageLike]) -> types_pb2.Clip:
    return types_pb2.Clip(frames=[image(frame) for frame in frames])


def priority(name: Priority | None) -> int:
    return types_pb2.Priority.Value(f"PRIORITY_{(name or 'unspecified').upper()}")


def _detection(score_threshold: float | None, max_detections: int | None, masks: bool) -> vision_pb2.DetectionOptions:
    return vision_pb2.DetectionOptions(
        score_threshold=score_threshold, max_detections=max_detections, omit_masks=not masks
    )


def detect(
    source: ImageLike,
    head: str,
    score_threshold: float | None,
    max_detections: int | None,
    masks: bool,
    urgency: Priority | None,
) -> Call[results.Detections]:
    options = _detection(score_threshold, max_detections, masks)
    request = vision_pb2.DetectRequest(image=image(source), head=head, options=options, priority=priority(urgency))
    return Call("vision", "Detect", request, results.detections)


def segment(source: ImageLike, head: str, urgency: Priority | None) -> Call[results.Segmentation]:
    options = vision_pb2.SegmentationOptions(format=types_pb2.LABEL_MAP_FORMAT_PNG)
    request = vision_pb2.SegmentRequest(image=image(source), head=head, options=options, priority=priority(urgency))
    return Call("vision", "Segment", request, results.segmentation)


def recognize(
    frames: Iterable[ImageLike], head: str, top_k: int | None, urgency: Priority | None
) -> Call[results.Classification]:
    options = vision_pb2.ClassificationOptions(top_k=top_k)
    request = vision_pb2.RecognizeActionRequest(
        clip=clip(frames), head=head, options=options, priority=priority(urgency)
    )
    return Call("vision", "RecognizeAction", request, results.classification)


def analyze(
    source: ImageLike | None,
    frames: Iterable[ImageLike] | None,
    heads: Sequence[str],
    score_threshold: float | None,
    max_detections: int | None,
    masks: bool,
    top_k: int | None,
    urgency: Priority | None,
) -> Call[results.Analysis]:
    if (source is None) == (frames is None):
        raise ValueError("give an image or frames, one of them")
    request = vision_pb2.AnalyzeRequest(
        image=None if source is None else image(source),
        clip=None if frames is None else clip(frames),
        heads=heads,
        detection=_detection(score_threshold, max_detections, masks),
        segmentation=vision_pb2.SegmentationOptions(format=types_pb2.LABEL_MAP_FORMAT_PNG),
        classification=vision_pb2.ClassificationOptions(top_k=top_k),
        priority=priority(urgency),
    )
    return Call("vision", "Analyze", request, results.analysis)


def features(
    source: ImageLike, names: Sequence[str], size: tuple[int, int] | None, urgency: Priority | None
) -> Call[results.Features]:
    height, width = size or (0, 0)
    request = vision_pb2.ExtractFeaturesRequest(
        image=image(source), features=names, height=height, width=width, priority=priority(urgency)
    )
    return Call("vision", "ExtractFeatures", request, results.features)


def heads() -> Call[list[results.Head]]:
    return Call("model", "ListHeads", model_pb2.ListHeadsRequest(), lambda a: [results.head(h) for h in a.heads])


def load(name: str) -> Call[results.Head]:
    return Call("model", "LoadHead", model_pb2.LoadHeadRequest(name=name), lambda a: results.head(a.head))


def unload(name: str) -> Call[results.Head]:
    # A second one finds no head: whether the first got through would not be known.
    request = model_pb2.UnloadHeadRequest(name=name)
    return Call("model", "UnloadHead", request, lambda a: results.head(a.head), repeatable=False)
