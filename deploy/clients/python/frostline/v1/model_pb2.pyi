from frostline.v1 import types_pb2 as _types_pb2
from google.api import annotations_pb2 as _annotations_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HeadTask(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_TASK_UNSPECIFIED: _ClassVar[HeadTask]
    HEAD_TASK_DETECTION: _ClassVar[HeadTask]
    HEAD_TASK_SEGMENTATION: _ClassVar[HeadTask]
    HEAD_TASK_ACTION: _ClassVar[HeadTask]
    HEAD_TASK_CLASSIFICATION: _ClassVar[HeadTask]
    HEAD_TASK_EMBEDDING: _ClassVar[HeadTask]
    HEAD_TASK_TENSOR: _ClassVar[HeadTask]
    HEAD_TASK_KEYPOINTS: _ClassVar[HeadTask]

class TensorLayout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_LAYOUT_UNSPECIFIED: _ClassVar[TensorLayout]
    TENSOR_LAYOUT_NCHW: _ClassVar[TensorLayout]
    TENSOR_LAYOUT_NHWC: _ClassVar[TensorLayout]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FP32: _ClassVar[Precision]
    PRECISION_FP16: _ClassVar[Precision]
    PRECISION_BF16: _ClassVar[Precision]
    PRECISION_INT8: _ClassVar[Precision]

class ResizeMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIZE_MODE_UNSPECIFIED: _ClassVar[ResizeMode]
    RESIZE_MODE_LETTERBOX: _ClassVar[ResizeMode]
    RESIZE_MODE_STRETCH: _ClassVar[ResizeMode]
    RESIZE_MODE_CENTER_CROP: _ClassVar[ResizeMode]
HEAD_TASK_UNSPECIFIED: HeadTask
HEAD_TASK_DETECTION: HeadTask
HEAD_TASK_SEGMENTATION: HeadTask
HEAD_TASK_ACTION: HeadTask
HEAD_TASK_CLASSIFICATION: HeadTask
HEAD_TASK_EMBEDDING: HeadTask
HEAD_TASK_TENSOR: HeadTask
HEAD_TASK_KEYPOINTS: HeadTask
TENSOR_LAYOUT_UNSPECIFIED: TensorLayout
TENSOR_LAYOUT_NCHW: TensorLayout
TENSOR_LAYOUT_NHWC: TensorLayout
PRECISION_UNSPECIFIED: Precision
PRECISION_FP32: Precision
PRECISION_FP16: Precision
PRECISION_BF16: Precision
PRECISION_INT8: Precision
RESIZE_MODE_UNSPECIFIED: ResizeMode
RESIZE_MODE_LETTERBOX: ResizeMode
RESIZE_MODE_STRETCH: ResizeMode
RESIZE_MODE_CENTER_CROP: ResizeMode

class FeatureMap(_message.Message):
    __slots__ = ("name", "stride", "channels", "layout")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    stride: int
    channels: int
    layout: TensorLayout
    def __init__(self, name: _Optional[str] = ..., stride: _Optional[int] = ..., channels: _Optional[int] = ..., layout: _Optional[_Union[TensorLayout, str]] = ...) -> None: ...

class Backbone(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "architecture", "checkpoint", "license", "input_sizes", "feature_maps", "precision", "resize", "crop_fraction")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_MAPS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    CROP_FRACTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    fingerprint: str
    architecture: str
    checkpoint: str
    license: str
    input_sizes: _containers.RepeatedCompositeFieldContainer[_types_pb2.ImageSize]
    feature_maps: _containers.RepeatedCompositeFieldContainer[FeatureMap]
    precision: Precision
    resize: ResizeMode
    crop_fraction: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., architecture: _Optional[str] = ..., checkpoint: _Optional[str] = ..., license: _Optional[str] = ..., input_sizes: _Optional[_Iterable[_Union[_types_pb2.ImageSize, _Mapping]]] = ..., feature_maps: _Optional[_Iterable[_Union[FeatureMap, _Mapping]]] = ..., precision: _Optional[_Union[Precision, str]] = ..., resize: _Optional[_Union[ResizeMode, str]] = ..., crop_fraction: _Optional[float] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("name", "version", "task", "fingerprint", "input_size", "reads", "labels", "frames", "trained", "metrics", "frame_stride", "detection", "classification")
    class TrainedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FRAME_STRIDE_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    task: HeadTask
    fingerprint: str
    input_size: _types_pb2.ImageSize
    reads: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    frames: int
    trained: _containers.ScalarMap[str, str]
    metrics: _containers.ScalarMap[str, float]
    frame_stride: int
    detection: DetectionSettings
    classification: ClassificationSettings
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., task: _Optional[_Union[HeadTask, str]] = ..., fingerprint: _Optional[str] = ..., input_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ..., reads: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ..., frames: _Optional[int] = ..., trained: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., frame_stride: _Optional[int] = ..., detection: _Optional[_Union[DetectionSettings, _Mapping]] = ..., classification: _Optional[_Union[ClassificationSettings, _Mapping]] = ...) -> None: ...

class DetectionSettings(_message.Message):
    __slots__ = ("score_threshold", "max_detections", "nms_iou", "has_masks", "mask_threshold")
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    NMS_IOU_FIELD_NUMBER: _ClassVar[int]
    HAS_MASKS_FIELD_NUMBER: _ClassVar[int]
    MASK_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    score_threshold: float
    max_detections: int
    nms_iou: float
    has_masks: bool
    mask_threshold: float
    def __init__(self, score_threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., nms_iou: _Optional[float] = ..., has_masks: _Optional[bool] = ..., mask_threshold: _Optional[float] = ...) -> None: ...

class ClassificationSettings(_message.Message):
    __slots__ = ("top_k", "max_top_k")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    max_top_k: int
    def __init__(self, top_k: _Optional[int] = ..., max_top_k: _Optional[int] = ...) -> None: ...

class FailedHead(_message.Message):
    __slots__ = ("name", "error", "serving_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    error: _status_pb2.Status
    serving_version: str
    def __init__(self, name: _Optional[str] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., serving_version: _Optional[str] = ...) -> None: ...

class GetBackboneRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetBackboneResponse(_message.Message):
    __slots__ = ("backbone",)
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    backbone: Backbone
    def __init__(self, backbone: _Optional[_Union[Backbone, _Mapping]] = ...) -> None: ...

class ListHeadsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListHeadsResponse(_message.Message):
    __slots__ = ("heads", "failed", "next_page_token")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    failed: _containers.RepeatedCompositeFieldContainer[FailedHead]
    next_page_token: str
    def __init__(self, heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[FailedHead, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetHeadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetHeadResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: Head
    def __init__(self, head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class LoadHeadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadHeadResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: Head
    def __init__(self, head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class UnloadHeadRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadHeadResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: Head
    def __init__(self, head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...
