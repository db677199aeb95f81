from frostline.v1 import stream_pb2 as _stream_pb2
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

class FeaturePooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_POOLING_UNSPECIFIED: _ClassVar[FeaturePooling]
    FEATURE_POOLING_MEAN: _ClassVar[FeaturePooling]
FEATURE_POOLING_UNSPECIFIED: FeaturePooling
FEATURE_POOLING_MEAN: FeaturePooling

class DetectionOptions(_message.Message):
    __slots__ = ("score_threshold", "max_detections", "omit_masks", "mask_format")
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    OMIT_MASKS_FIELD_NUMBER: _ClassVar[int]
    MASK_FORMAT_FIELD_NUMBER: _ClassVar[int]
    score_threshold: float
    max_detections: int
    omit_masks: bool
    mask_format: _types_pb2.MaskFormat
    def __init__(self, score_threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., omit_masks: _Optional[bool] = ..., mask_format: _Optional[_Union[_types_pb2.MaskFormat, str]] = ...) -> None: ...

class SegmentationOptions(_message.Message):
    __slots__ = ("format",)
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    format: _types_pb2.LabelMapFormat
    def __init__(self, format: _Optional[_Union[_types_pb2.LabelMapFormat, str]] = ...) -> None: ...

class ClassificationOptions(_message.Message):
    __slots__ = ("top_k",)
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    def __init__(self, top_k: _Optional[int] = ...) -> None: ...

class AnalyzeRequest(_message.Message):
    __slots__ = ("image", "clip", "heads", "detection", "segmentation", "classification", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: _types_pb2.Image
    clip: _types_pb2.Clip
    heads: _containers.RepeatedScalarFieldContainer[str]
    detection: DetectionOptions
    segmentation: SegmentationOptions
    classification: ClassificationOptions
    priority: _types_pb2.Priority
    def __init__(self, image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., clip: _Optional[_Union[_types_pb2.Clip, _Mapping]] = ..., heads: _Optional[_Iterable[str]] = ..., detection: _Optional[_Union[DetectionOptions, _Mapping]] = ..., segmentation: _Optional[_Union[SegmentationOptions, _Mapping]] = ..., classification: _Optional[_Union[ClassificationOptions, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class HeadResult(_message.Message):
    __slots__ = ("head", "version", "detection", "segmentation", "classification", "tensor", "keypoints", "error")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    KEYPOINTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    head: str
    version: str
    detection: _types_pb2.DetectionResult
    segmentation: _types_pb2.SegmentationResult
    classification: _types_pb2.ClassificationResult
    tensor: _types_pb2.TensorResult
    keypoints: _types_pb2.KeypointResult
    error: _status_pb2.Status
    def __init__(self, head: _Optional[str] = ..., version: _Optional[str] = ..., detection: _Optional[_Union[_types_pb2.DetectionResult, _Mapping]] = ..., segmentation: _Optional[_Union[_types_pb2.SegmentationResult, _Mapping]] = ..., classification: _Optional[_Union[_types_pb2.ClassificationResult, _Mapping]] = ..., tensor: _Optional[_Union[_types_pb2.TensorResult, _Mapping]] = ..., keypoints: _Optional[_Union[_types_pb2.KeypointResult, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class AnalyzeResponse(_message.Message):
    __slots__ = ("results", "provenance", "image_size")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[HeadResult]
    provenance: _types_pb2.Provenance
    image_size: _types_pb2.ImageSize
    def __init__(self, results: _Optional[_Iterable[_Union[HeadResult, _Mapping]]] = ..., provenance: _Optional[_Union[_types_pb2.Provenance, _Mapping]] = ..., image_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ...) -> None: ...

class BatchAnalyzeRequest(_message.Message):
    __slots__ = ("items", "heads", "detection", "segmentation", "classification", "priority")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[BatchAnalyzeItem]
    heads: _containers.RepeatedScalarFieldContainer[str]
    detection: DetectionOptions
    segmentation: SegmentationOptions
    classification: ClassificationOptions
    priority: _types_pb2.Priority
    def __init__(self, items: _Optional[_Iterable[_Union[BatchAnalyzeItem, _Mapping]]] = ..., heads: _Optional[_Iterable[str]] = ..., detection: _Optional[_Union[DetectionOptions, _Mapping]] = ..., segmentation: _Optional[_Union[SegmentationOptions, _Mapping]] = ..., classification: _Optional[_Union[ClassificationOptions, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class BatchAnalyzeItem(_message.Message):
    __slots__ = ("image", "clip")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    image: _types_pb2.Image
    clip: _types_pb2.Clip
    def __init__(self, image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., clip: _Optional[_Union[_types_pb2.Clip, _Mapping]] = ...) -> None: ...

class BatchAnalyzeResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchAnalyzeResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchAnalyzeResult, _Mapping]]] = ...) -> None: ...

class BatchAnalyzeResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: AnalyzeResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[AnalyzeResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class DetectRequest(_message.Message):
    __slots__ = ("image", "head", "options", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: _types_pb2.Image
    head: str
    options: DetectionOptions
    priority: _types_pb2.Priority
    def __init__(self, image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., head: _Optional[str] = ..., options: _Optional[_Union[DetectionOptions, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class DetectResponse(_message.Message):
    __slots__ = ("result", "head", "version", "provenance", "image_size")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    result: _types_pb2.DetectionResult
    head: str
    version: str
    provenance: _types_pb2.Provenance
    image_size: _types_pb2.ImageSize
    def __init__(self, result: _Optional[_Union[_types_pb2.DetectionResult, _Mapping]] = ..., head: _Optional[str] = ..., version: _Optional[str] = ..., provenance: _Optional[_Union[_types_pb2.Provenance, _Mapping]] = ..., image_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("image", "head", "options", "priority")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    image: _types_pb2.Image
    head: str
    options: SegmentationOptions
    priority: _types_pb2.Priority
    def __init__(self, image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., head: _Optional[str] = ..., options: _Optional[_Union[SegmentationOptions, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("result", "head", "version", "provenance", "image_size")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    result: _types_pb2.SegmentationResult
    head: str
    version: str
    provenance: _types_pb2.Provenance
    image_size: _types_pb2.ImageSize
    def __init__(self, result: _Optional[_Union[_types_pb2.SegmentationResult, _Mapping]] = ..., head: _Optional[str] = ..., version: _Optional[str] = ..., provenance: _Optional[_Union[_types_pb2.Provenance, _Mapping]] = ..., image_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ...) -> None: ...

class RecognizeActionRequest(_message.Message):
    __slots__ = ("clip", "head", "options", "priority")
    CLIP_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    clip: _types_pb2.Clip
    head: str
    options: ClassificationOptions
    priority: _types_pb2.Priority
    def __init__(self, clip: _Optional[_Union[_types_pb2.Clip, _Mapping]] = ..., head: _Optional[str] = ..., options: _Optional[_Union[ClassificationOptions, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class RecognizeActionResponse(_message.Message):
    __slots__ = ("result", "head", "version", "provenance", "image_size")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    result: _types_pb2.ClassificationResult
    head: str
    version: str
    provenance: _types_pb2.Provenance
    image_size: _types_pb2.ImageSize
    def __init__(self, result: _Optional[_Union[_types_pb2.ClassificationResult, _Mapping]] = ..., head: _Optional[str] = ..., version: _Optional[str] = ..., provenance: _Optional[_Union[_types_pb2.Provenance, _Mapping]] = ..., image_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ...) -> None: ...

class ExtractFeaturesRequest(_message.Message):
    __slots__ = ("image", "map_names", "input_size", "priority", "data_type", "pooling", "max_bytes")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MAP_NAMES_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    image: _types_pb2.Image
    map_names: _containers.RepeatedScalarFieldContainer[str]
    input_size: _types_pb2.ImageSize
    priority: _types_pb2.Priority
    data_type: _types_pb2.DataType
    pooling: FeaturePooling
    max_bytes: int
    def __init__(self, image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ..., map_names: _Optional[_Iterable[str]] = ..., input_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., data_type: _Optional[_Union[_types_pb2.DataType, str]] = ..., pooling: _Optional[_Union[FeaturePooling, str]] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class StreamFeaturesRequest(_message.Message):
    __slots__ = ("features_request",)
    FEATURES_REQUEST_FIELD_NUMBER: _ClassVar[int]
    features_request: ExtractFeaturesRequest
    def __init__(self, features_request: _Optional[_Union[ExtractFeaturesRequest, _Mapping]] = ...) -> None: ...

class StreamFeaturesResponse(_message.Message):
    __slots__ = ("piece", "offset", "provenance", "image_size")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    piece: _types_pb2.Tensor
    offset: int
    provenance: _types_pb2.Provenance
    image_size: _types_pb2.ImageSize
    def __init__(self, piece: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., offset: _Optional[int] = ..., provenance: _Optional[_Union[_types_pb2.Provenance, _Mapping]] = ..., image_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ...) -> None: ...

class ExtractFeaturesResponse(_message.Message):
    __slots__ = ("maps", "provenance", "image_size")
    MAPS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    maps: _containers.RepeatedCompositeFieldContainer[_types_pb2.Tensor]
    provenance: _types_pb2.Provenance
    image_size: _types_pb2.ImageSize
    def __init__(self, maps: _Optional[_Iterable[_Union[_types_pb2.Tensor, _Mapping]]] = ..., provenance: _Optional[_Union[_types_pb2.Provenance, _Mapping]] = ..., image_size: _Optional[_Union[_types_pb2.ImageSize, _Mapping]] = ...) -> None: ...
