"""Answers as plain objects. Boxes and masks are in the original image's pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from frostline.v1 import model_pb2, types_pb2, vision_pb2
from PIL import Image
from pycocotools import mask as coco


@dataclass(frozen=True)
class Provenance:
    """How an answer was made."""

    backbone: str
    """SHA-256 of the backbone's weights, in hex."""
    features: str
    """Where the features came from: ``computed``, ``shared`` with an equal image in flight, or ``cached``."""
    backbone_rows: int
    """Images that the backbone ran for on behalf of this call."""
    batch_size: int
    """Images in the backbone's batch; 0 where the features were cached."""
    seconds: dict[str, float]
    """Where the time went: queue, decode, backbone, head, postprocess, total."""


@dataclass(frozen=True)
class Mask:
    """A binary mask at the original image's size, as COCO run lengths."""

    height: int
    width: int
    counts: bytes

    def coco(self) -> dict[str, Any]:
        """The object that pycocotools' functions take."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def array(self) -> np.ndarray:
        """The pixels, bool [height, width]."""
        return coco.decode(self.coco()).astype(bool)


@dataclass(frozen=True)
class Detection:
    """One object."""

    box: tuple[float, float, float, float]
    """x_min, y_min, x_max, y_max."""
    score: float
    label: int
    name: str
    mask: Mask | None
    """``None`` where the head makes none, or masks were declined."""


@dataclass(frozen=True)
class Detections:
    """Answer of a detection head, highest score first. Iterates over its detections."""

    head: str
    version: str
    detections: tuple[Detection, ...]
    provenance: Provenance

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections)

    def __len__(self) -> int:
        return len(self.detections)

    def boxes(self) -> np.ndarray:
        """float32 [K, 4]."""
        return np.array([d.box for d in self.detections], np.float32).reshape(-1, 4)

    def scores(self) -> np.ndarray:
        """float32 [K]."""
        return np.array([d.score for d in self.detections], np.float32)

    def labels(self) -> np.ndarray:
        """int64 [K]."""
        return np.array([d.label for d in self.detections], np.int64)


@dataclass(frozen=True)
class Segment:
    """One label that occurs in a label map."""

    label: int
    name: str
    pixels: int


@dataclass(frozen=True)
class Segmentation:
    """Answer of a segmentation head."""

    head: str
    version: str
    label_map: np.ndarray
    """A label for each pixel, uint8 or uint16 [height, width]."""
    segments: tuple[Segment, ...]
    provenance: Provenance


@dataclass(frozen=True)
class ScoredLabel:
    """A label with its probability."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Classification:
    """Answer of an action or classification head, most probable label first."""

    head: str
    version: str
    top: tuple[ScoredLabel, ...]
    frames: int
    """Frames that the head read; 1 for an image."""
    provenance: Provenance


@dataclass(frozen=True)
class Tensors:
    """Answer of a tensor or embedding head: the graph's outputs by name."""

    head: str
    version: str
    tensors: dict[str, np.ndarray]
    provenance: Provenance


@dataclass(frozen=True)
class Features:
    """The backbone's feature maps by name, each [channels, height, width] or as the backbone's manifest says."""

    maps: dict[str, np.ndarray]
    provenance: Provenance


@dataclass(frozen=True)
class HeadFailure:
    """A head that failed where others of the same call did not."""

    head: str
    version: str
    code: int
    reason: str
    message: str


HeadResult = Detections | Segmentation | Classification | Tensors | HeadFailure


@dataclass(frozen=True)
class Analysis:
    """Answers of several heads from one pass of the backbone, by head."""

    results: dict[str, HeadResult]
    provenance: Provenance

    def __getitem__(self, head: str) -> HeadResult:
        return self.results[head]


@dataclass(frozen=True)
class Head:
    """A head that a server has loaded."""

    name: str
    version: str
    task: str
    """detection, segmentation, action, classification, embedding or tensor."""
    labels: tuple[str, ...]
    frames: int
    """Frames that it reads; 1 for an image."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    fingerprint: str
    """SHA-256 of its graph, in hex."""


# --- from messages ---

_DTYPES = {
    types_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    types_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    types_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    types_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    types_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}


def _provenance(made: types_pb2.Provenance) -> Provenance:
    stages = ("queue", "decode", "backbone", "head", "postprocess", "total")
    source = types_pb2.FeatureSource.Name(made.features).removeprefix("FEATURE_SOURCE_").lower()
    return Provenance(
        backbone=made.backbone,
        features=source,
        backbone_rows=made.backbone_rows,
        batch_size=made.batch_size,
        seconds={stage: getattr(made.timing, f"{stage}_us") / 1e6 for stage in stages},
    )


def _mask(mask: types_pb2.Mask) -> Mask:
    return Mask(mask.height, mask.width, mask.counts)


def _detection(d: types_pb2.Detection) -> Detection:
    box = (d.bbox.x_min, d.bbox.y_min, d.bbox.x_max, d.bbox.y_max)
    return Detection(box, d.score, d.label, d.name, _mask(d.mask) if d.HasField("mask") else None)


def _tensors(tensors) -> dict[str, np.ndarray]:
    return {t.name: np.frombuffer(t.data, _DTYPES[t.data_type]).reshape(tuple(t.shape)) for t in tensors}


def _detections(answer, result: types_pb2.DetectionResult, made: Provenance) -> Detections:
    return Detections(answer.head, answer.version, tuple(map(_detection, result.detections)), made)


def _segmentation(answer, result: types_pb2.SegmentationResult, made: Provenance) -> Segmentation:
    with Image.open(io.BytesIO(result.png)) as png:
        # Pillow reads 16-bit grayscale as 32-bit integers in some of its versions.
        label_map = np.asarray(png)
    if label_map.dtype != np.uint8:
        label_map = label_map.astype(np.uint16)
    segments = tuple(Segment(s.label, s.name, s.pixels) for s in result.segments)
    return Segmentation(answer.head, answer.version, label_map, segments, made)


def _classification(answer, result: types_pb2.ClassificationResult, made: Provenance) -> Classification:
    top = tuple(ScoredLabel(s.label, s.name, s.probability) for s in result.top)
    return Classification(answer.head, answer.version, top, result.frames, made)


def detections(answer: vision_pb2.DetectResponse) -> Detections:
    return _detections(answer, answer.result, _provenance(answer.provenance))


def segmentation(answer: vision_pb2.SegmentResponse) -> Segmentation:
    return _segmentation(answer, answer.result, _provenance(answer.provenance))


def classification(answer: vision_pb2.RecognizeActionResponse) -> Classification:
    return _classification(answer, answer.result, _provenance(answer.provenance))


def features(answer: vision_pb2.ExtractFeaturesResponse) -> Features:
    return Features(_tensors(answer.features), _provenance(answer.provenance))


def analysis(answer: vision_pb2.AnalyzeResponse) -> Analysis:
    made = _provenance(answer.provenance)

    def convert(result: vision_pb2.HeadResult) -> HeadResult:
        kind = result.WhichOneof("result")
        if kind == "detection":
            return _detections(result, result.detection, made)
        if kind == "segmentation":
            return _segmentation(result, result.segmentation, made)
        if kind == "classification":
            return _classification(result, result.classification, made)
        if kind == "tensors":
            return Tensors(result.head, result.version, _tensors(result.tensors.tensors), made)
        error = result.error
        return HeadFailure(result.head, result.version, error.code, error.reason, error.message)

    return Analysis({result.head: convert(result) for result in answer.results}, made)


def head(message: model_pb2.Head) -> Head:
    return Head(
        name=message.name,
        version=message.version,
        task=model_pb2.Task.Name(message.task).removeprefix("TASK_").lower(),
        labels=tuple(message.labels),
        frames=message.frames,
        input_size=(message.input_size.height, message.input_size.width),
        fingerprint=message.fingerprint,
    )
