"""Calls as messages, and what turns their answers into results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from frostline.v1 import model_pb2, types_pb2, vision_pb2

from . import convert, images, models, results
from .connection import LARGEST_MESSAGE
from .images import Frames, ImageLike

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
    convert: Callable[[Any, convert.About], Answer]
    repeatable: bool = True
    """Whether making it twice is as good as once."""
    image: Any = None
    """What the answer is about, for those that remember it."""


def priority(name: Priority | None) -> types_pb2.Priority:
    known = {
        "background": types_pb2.PRIORITY_BACKGROUND,
        "normal": types_pb2.PRIORITY_NORMAL,
        "high": types_pb2.PRIORITY_HIGH,
    }
    if name is None:
        return types_pb2.PRIORITY_UNSPECIFIED
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"priority must be one of {', '.join(map(repr, known))}, not {name!r}")
    return known[name]


def _head(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"head is one name, not {name!r}; analyze takes several")
    return name


def names(given: Sequence[str], what: str) -> list[str]:
    """A list of names, and not the letters of one."""
    if isinstance(given, str):
        raise TypeError(f"{what} takes a list of names, not one text: {what}=[{given!r}]")
    listed = list(given)
    for name in listed:
        if not isinstance(name, str):
            raise TypeError(f"{what} takes a list of names, and {name!r} is none")
    return listed


def _share(value: float | None, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is a number, not {value!r}")
    return float(value)


def _count(value: int | None, what: str) -> int | None:
    """What the protocol can say; which of these make sense the server tells."""
    if value is None:
        return None
    if not hasattr(value, "__index__"):
        raise TypeError(f"{what} is a whole number, not {value!r}")
    number = operator.index(value)
    if not 0 <= number < 1 << 32:
        raise ValueError(f"{what} must be 0 to {(1 << 32) - 1}, not {number}")
    return number


def _detection(score_threshold: float | None, max_detections: int | None, masks: bool) -> vision_pb2.DetectionOptions:
    return vision_pb2.DetectionOptions(
        score_threshold=_share(score_threshold, "score_threshold"),
        max_detections=_count(max_detections, "max_detections"),
        omit_masks=not masks,
    )


def _classification(top_k: int | None) -> vision_pb2.ClassificationOptions:
    return vision_pb2.ClassificationOptions(top_k=_count(top_k, "top_k"))


def _segmentation() -> vision_pb2.SegmentationOptions:
    return vision_pb2.SegmentationOptions(format=types_pb2.LABEL_MAP_FORMAT_PNG)


def detect(
    source: ImageLike,
    head: str,
    score_threshold: float | None,
    max_detections: int | None,
    masks: bool,
    urgency: Priority | None,
) -> Call[results.Detections]:
    image = images.image(source)
    request = vision_pb2.DetectRequest(
        image=image,
        head=_head(head),
        options=_detection(score_threshold, max_detections, masks),
        priority=priority(urgency),
    )
    return Call("vision", "Detect", request, convert.detections, image=images.kept(source, image))


def segment(source: ImageLike, head: str, urgency: Priority | None) -> Call[results.Segmentation]:
    image = images.image(source)
    request = vision_pb2.SegmentRequest(
        image=image, head=_head(head), options=_segmentation(), priority=priority(urgency)
    )
    return Call("vision", "Segment", request, convert.segmentation, image=images.kept(source, image))


def recognize(frames: Frames, head: str, top_k: int | None, urgency: Priority | None) -> Call[results.Classification]:
    request = vision_pb2.RecognizeActionRequest(
        clip=images.clip(frames),
        head=_head(head),
        options=_classification(top_k),
        priority=priority(urgency),
    )
    return Call("vision", "RecognizeAction", request, convert.classification)


def analyze(
    source: ImageLike | None,
    frames: Frames | None,
    heads: Sequence[str],
    score_threshold: float | None,
    max_detections: int | None,
    masks: bool,
    top_k: int | None,
    urgency: Priority | None,
) -> Call[results.Analysis]:
    if (source is None) == (frames is None):
        raise ValueError("give an image or frames, one of them")
    heads = names(heads, "heads")
    image = None if source is None else images.image(source)
    request = vision_pb2.AnalyzeRequest(
        image=image,
        clip=None if frames is None else images.clip(frames),
        heads=heads,
        detection=_detection(score_threshold, max_detections, masks),
        segmentation=_segmentation(),
        classification=_classification(top_k),
        priority=priority(urgency),
    )
    kept = None if source is None or image is None else images.kept(source, image)
    return Call("vision", "Analyze", request, convert.analysis, image=kept)


def features(
    source: ImageLike, wanted: Sequence[str], size: tuple[int, int] | None, urgency: Priority | None
) -> Call[results.Features]:
    if size is not None and (not isinstance(size, (tuple, list)) or len(size) != 2):
        raise TypeError(f"size is height and width, not {size!r}")
    input_size = None
    if size is not None:
        height, width = (_count(side, "size") for side in size)
        input_size = types_pb2.ImageSize(height=height, width=width)
    request = vision_pb2.ExtractFeaturesRequest(
        image=images.image(source),
        map_names=names(wanted, "names"),
        input_size=input_size,
        # What the channel takes; without it the server holds to what other clients take by default.
        max_bytes=LARGEST_MESSAGE,
        priority=priority(urgency),
    )
    return Call("vision", "ExtractFeatures", request, convert.features)


def backbone() -> Call[models.Backbone]:
    return Call("model", "GetBackbone", model_pb2.GetBackboneRequest(), lambda a, _: convert.backbone(a.backbone))


def heads(page: str = "") -> Call[tuple[list[models.Head], str]]:
    """One page of them, and where the next begins; empty after the last."""
    request = model_pb2.ListHeadsRequest(page_token=page)
    return Call("model", "ListHeads", request, lambda a, _: ([convert.head(h) for h in a.heads], a.next_page_token))


def head(name: str) -> Call[models.Head]:
    request = model_pb2.GetHeadRequest(name=_head(name))
    return Call("model", "GetHead", request, lambda a, _: convert.head(a.head))


def load(name: str) -> Call[models.Head]:
    request = model_pb2.LoadHeadRequest(name=_head(name))
    return Call("model", "LoadHead", request, lambda a, _: convert.head(a.head))


def unload(name: str) -> Call[models.Head]:
    # A second one finds no head: whether the first got through would not be known.
    request = model_pb2.UnloadHeadRequest(name=_head(name))
    return Call("model", "UnloadHead", request, lambda a, _: convert.head(a.head), repeatable=False)
