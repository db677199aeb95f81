from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_DETECTION: _ClassVar[Task]
    TASK_SEGMENTATION: _ClassVar[Task]
    TASK_ACTION: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_EMBEDDING: _ClassVar[Task]
    TASK_TENSOR: _ClassVar[Task]
TASK_UNSPECIFIED: Task
TASK_DETECTION: Task
TASK_SEGMENTATION: Task
TASK_ACTION: Task
TASK_CLASSIFICATION: Task
TASK_EMBEDDING: Task
TASK_TENSOR: Task

class Size(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class FeatureMap(_message.Message):
    __slots__ = ("name", "stride", "channels", "layout")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    stride: int
    channels: int
    layout: str
    def __init__(self, name: _Optional[str] = ..., stride: _Optional[int] = ..., channels: _Optional[int] = ..., layout: _Optional[str] = ...) -> None: ...

class Backbone(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "architecture", "checkpoint", "licence", "precision", "sizes", "resize", "features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    fingerprint: str
    architecture: str
    checkpoint: str
    licence: str
    precision: str
    sizes: _containers.RepeatedCompositeFieldContainer[Size]
    resize: str
    features: _containers.RepeatedCompositeFieldContainer[FeatureMap]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., architecture: _Optional[str] = ..., checkpoint: _Optional[str] = ..., licence: _Optional[str] = ..., precision: _Optional[str] = ..., sizes: _Optional[_Iterable[_Union[Size, _Mapping]]] = ..., resize: _Optional[str] = ..., features: _Optional[_Iterable[_Union[FeatureMap, _Mapping]]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("name", "version", "task", "fingerprint", "input_size", "features", "labels", "frames", "trained", "metrics", "frame_stride")
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
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FRAME_STRIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    task: Task
    fingerprint: str
    input_size: Size
    features: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    frames: int
    trained: _containers.ScalarMap[str, str]
    metrics: _containers.ScalarMap[str, float]
    frame_stride: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., fingerprint: _Optional[str] = ..., input_size: _Optional[_Union[Size, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ..., frames: _Optional[int] = ..., trained: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., frame_stride: _Optional[int] = ...) -> None: ...

class FailedHead(_message.Message):
    __slots__ = ("name", "reason", "serving_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    reason: str
    serving_version: str
    def __init__(self, name: _Optional[str] = ..., reason: _Optional[str] = ..., serving_version: _Optional[str] = ...) -> None: ...

class GetBackboneRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetBackboneResponse(_message.Message):
    __slots__ = ("backbone",)
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    backbone: Backbone
    def __init__(self, backbone: _Optional[_Union[Backbone, _Mapping]] = ...) -> None: ...

class ListHeadsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHeadsResponse(_message.Message):
    __slots__ = ("heads", "failed")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    failed: _containers.RepeatedCompositeFieldContainer[FailedHead]
    def __init__(self, heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., failed: _Optional[_Iterable[_Union[FailedHead, _Mapping]]] = ...) -> None: ...

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
