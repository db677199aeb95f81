"""Messages as results: the one place that reads what a server answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from frostline.v1 import model_pb2, types_pb2, vision_pb2

from . import models, results
from .errors import FrostlineError
from .results import (
    Analysis,
    Classification,
    Detections,
    Features,
    HeadFailure,
    HeadResult,
    Poses,
    Segmentation,
    Tensors,
)


@dataclass(frozen=True)
class About:
    """What is known of an answer beside the message."""

    request_id: str = ""
    image: Any = None


_DTYPES = {
    types_pb2.DATA_TYPE_FLOAT32: "<f4",
    types_pb2.DATA_TYPE_FLOAT16: "<f2",
    types_pb2.DATA_TYPE_INT64: "<i8",
    types_pb2.DATA_TYPE_INT32: "<i4",
    types_pb2.DATA_TYPE_UINT8: "u1",
}


def text(enum: Any, value: int, prefix: str) -> str:
    """An enum's name as text; a number that this package does not know (of a newer server) as ``unknown_9``."""
    descriptor = enum.DESCRIPTOR.values_by_number.get(value)
    return descriptor.name.removeprefix(prefix).lower() if descriptor else f"unknown_{value}"


def _provenance(made: types_pb2.Provenance) -> results.Provenance:
    stages = ("queue", "decode", "backbone", "head", "postprocess", "total")
    return results.Provenance(
        backbone=made.backbone,
        feature_source=text(types_pb2.FeatureSource, made.feature_source, "FEATURE_SOURCE_"),
        backbone_rows=made.backbone_rows,
        batch_size=made.batch_size,
        seconds={stage: getattr(made.timing, f"{stage}_us") / 1e6 for stage in stages},
    )


def _mask(mask: types_pb2.Mask) -> results.Mask:
    return results.Mask(mask.height, mask.width, mask.counts.encode())


def _detection(d: types_pb2.Detection) -> results.Detection:
    box = (d.bbox.x_min, d.bbox.y_min, d.bbox.x_max, d.bbox.y_max)
    return results.Detection(box, d.score, d.label, d.class_index, _mask(d.mask) if d.HasField("mask") else None)


def _tensors(tensors: Any) -> dict[str, results.Tensor]:
    return {t.name: _tensor(t) for t in tensors}


def _tensor(t: types_pb2.Tensor) -> results.Tensor:
    return results.Tensor(_DTYPES.get(t.data_type, f"unknown_{t.data_type}"), tuple(t.shape), t.data)


def _detections(of: Any, result: types_pb2.DetectionResult, made: results.Provenance, about: About) -> Detections:
    found = tuple(map(_detection, result.detections))
    return Detections(of.head, of.version, found, made, about.request_id, about.image)


def _segmentation(of: Any, result: types_pb2.SegmentationResult, made: results.Provenance, about: About) -> Segmentation:
    segments = tuple(results.Segment(s.label, s.class_index, s.pixels) for s in result.segments)
    size = (result.height, result.width)
    return Segmentation(of.head, of.version, size, segments, result.png, made, about.request_id, about.image)


def _classification(
    of: Any, result: types_pb2.ClassificationResult, made: results.Provenance, about: About
) -> Classification:
    top = tuple(results.ScoredLabel(s.label, s.class_index, s.probability) for s in result.top)
    return Classification(of.head, of.version, top, result.frames, made, about.request_id, about.image)


def _poses(of: Any, result: types_pb2.KeypointResult, made: results.Provenance, about: About) -> Poses:
    def pose(one: types_pb2.Pose) -> results.Pose:
        named = zip(one.keypoints, result.labels)
        return results.Pose(one.score, tuple(results.Keypoint(p.x, p.y, p.score, label) for p, label in named))

    bones = tuple((bone.first, bone.second) for bone in result.skeleton)
    return Poses(of.head, of.version, tuple(map(pose, result.poses)), bones, made, about.request_id, about.image)


def detections(answer: vision_pb2.DetectResponse, about: About) -> Detections:
    return _detections(answer, answer.result, _provenance(answer.provenance), about)


def segmentation(answer: vision_pb2.SegmentResponse, about: About) -> Segmentation:
    return _segmentation(answer, answer.result, _provenance(answer.provenance), about)


def classification(answer: vision_pb2.RecognizeActionResponse, about: About) -> Classification:
    return _classification(answer, answer.result, _provenance(answer.provenance), about)


def features(answer: vision_pb2.ExtractFeaturesResponse, about: About) -> Features:
    return Features(_tensors(answer.maps), _provenance(answer.provenance), about.request_id)


def head_result(result: Any, made: results.Provenance, about: About) -> HeadResult:
    """One head's part of an answer, of a call or of a stream."""
    kind = result.WhichOneof("outcome")
    if kind == "detection":
        return _detections(result, result.detection, made, about)
    if kind == "segmentation":
        return _segmentation(result, result.segmentation, made, about)
    if kind == "classification":
        return _classification(result, result.classification, made, about)
    if kind == "keypoints":
        return _poses(result, result.keypoints, made, about)
    if kind == "tensor":
        return Tensors(result.head, result.version, _tensors(result.tensor.outputs), made, about.request_id)
    if kind == "error":
        error = FrostlineError.of_status(_code(result.error.code), result.error)
        return HeadFailure(
            result.head, result.version, error.code, error.reason, error.message, about.request_id, error.details
        )
    message = "an answer of a kind that this version of the client does not know"
    return HeadFailure(result.head, result.version, grpc.StatusCode.UNKNOWN, "", message, about.request_id)


def failure(status: Any) -> FrostlineError:
    """What a part of an answer says in place of a result."""
    return FrostlineError.of_status(_code(status.code), status)


def analysis(answer: vision_pb2.AnalyzeResponse, about: About) -> Analysis:
    made = _provenance(answer.provenance)
    return Analysis({result.head: head_result(result, made, about) for result in answer.results}, made, about.request_id, about.image)


def _code(number: int) -> grpc.StatusCode:
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def head(message: model_pb2.Head) -> models.Head:
    return models.Head(
        name=message.name,
        version=message.version,
        task=text(model_pb2.HeadTask, message.task, "HEAD_TASK_"),
        labels=tuple(message.labels),
        frames=message.frames,
        input_size=(message.input_size.height, message.input_size.width),
        reads=tuple(message.reads),
        fingerprint=message.fingerprint,
        trained=dict(message.trained),
        metrics=dict(message.metrics),
        **_settings(message),
    )


def _settings(message: model_pb2.Head) -> dict[str, Any]:
    """What holds where a call says nothing, of those tasks that have such."""
    settings: dict[str, Any] = {}
    if message.HasField("detection"):
        of = message.detection
        settings = {"score_threshold": of.score_threshold, "max_detections": of.max_detections, "masks": of.has_masks}
        settings["nms_iou"] = of.nms_iou if of.HasField("nms_iou") else None
    if message.HasField("classification"):
        settings["top_k"] = message.classification.top_k
    return settings


def backbone(message: model_pb2.Backbone) -> models.Backbone:
    return models.Backbone(
        name=message.name,
        version=message.version,
        fingerprint=message.fingerprint,
        architecture=message.architecture,
        checkpoint=message.checkpoint,
        license=message.license,
        precision=text(model_pb2.Precision, message.precision, "PRECISION_"),
        sizes=tuple((size.height, size.width) for size in message.input_sizes),
        resize=text(model_pb2.ResizeMode, message.resize, "RESIZE_MODE_"),
        maps=tuple(
            models.FeatureMap(
                m.name, m.stride, m.channels, text(model_pb2.TensorLayout, m.layout, "TENSOR_LAYOUT_").upper()
            )
            for m in message.feature_maps
        ),
    )
