"""What a server has: its backbone and its heads."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FeatureMap:
    """One of the backbone's outputs."""

    name: str
    stride: int
    """Input pixels per cell."""
    channels: int
    layout: str
    """Order of the axes: NCHW or NHWC."""


@dataclass(frozen=True)
class Backbone:
    """The frozen backbone."""

    name: str
    version: str
    fingerprint: str
    """SHA-256 of its weights, in hex."""
    architecture: str
    checkpoint: str
    license: str
    precision: str
    sizes: tuple[tuple[int, int], ...]
    """Input sizes that it accepts: height and width in pixels."""
    resize: str
    maps: tuple[FeatureMap, ...]


@dataclass(frozen=True)
class Head:
    """A head that a server has loaded."""

    name: str
    version: str
    task: str
    """detection, segmentation, action, classification, embedding, tensor or keypoints."""
    labels: tuple[str, ...]
    frames: int
    """Frames that it reads; 1 for an image."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    reads: tuple[str, ...]
    """Names of the feature maps that it reads."""
    fingerprint: str
    """SHA-256 of its graph, in hex."""
    trained: dict[str, str] = field(hash=False)
    """How it was trained, as its manifest tells it."""
    metrics: dict[str, float] = field(hash=False)
    """What was measured on held-out data, as its manifest tells it."""
    score_threshold: float | None = None
    """Least score of a detection where a call asks for no other; ``None`` for other tasks, as the next three."""
    max_detections: int | None = None
    """Most detections in an answer."""
    nms_iou: float | None = None
    """Share of two boxes of one label from which on the lesser goes; ``None`` where all stay."""
    masks: bool | None = None
    """Whether detections have masks."""
    top_k: int | None = None
    """Labels in an answer where a call asks for no other number, of an action or classification head."""

    def __repr__(self) -> str:
        return f"<Head {self.name} {self.version}: {self.task}, {len(self.labels)} labels>"
