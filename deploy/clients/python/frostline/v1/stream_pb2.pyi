import datetime

from frostline.v1 import types_pb2 as _types_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FramePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_POLICY_UNSPECIFIED: _ClassVar[FramePolicy]
    FRAME_POLICY_LATEST: _ClassVar[FramePolicy]
    FRAME_POLICY_QUEUE: _ClassVar[FramePolicy]
    FRAME_POLICY_WAIT: _ClassVar[FramePolicy]

class FrameOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_OUTCOME_UNSPECIFIED: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_ANSWERED: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_SUPERSEDED: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_SKIPPED: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_TOO_OLD: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_OVERLOADED: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_OVER_QUOTA: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_BAD_IMAGE: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_DUPLICATE: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_INVALID: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_FAILED: _ClassVar[FrameOutcome]
    FRAME_OUTCOME_STREAM_ENDED: _ClassVar[FrameOutcome]

class StreamState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_STATE_UNSPECIFIED: _ClassVar[StreamState]
    STREAM_STATE_ACTIVE: _ClassVar[StreamState]
    STREAM_STATE_ENDING: _ClassVar[StreamState]
    STREAM_STATE_DRAINING: _ClassVar[StreamState]
FRAME_POLICY_UNSPECIFIED: FramePolicy
FRAME_POLICY_LATEST: FramePolicy
FRAME_POLICY_QUEUE: FramePolicy
FRAME_POLICY_WAIT: FramePolicy
FRAME_OUTCOME_UNSPECIFIED: FrameOutcome
FRAME_OUTCOME_ANSWERED: FrameOutcome
FRAME_OUTCOME_SUPERSEDED: FrameOutcome
FRAME_OUTCOME_SKIPPED: FrameOutcome
FRAME_OUTCOME_TOO_OLD: FrameOutcome
FRAME_OUTCOME_OVERLOADED: FrameOutcome
FRAME_OUTCOME_OVER_QUOTA: FrameOutcome
FRAME_OUTCOME_BAD_IMAGE: FrameOutcome
FRAME_OUTCOME_DUPLICATE: FrameOutcome
FRAME_OUTCOME_INVALID: FrameOutcome
FRAME_OUTCOME_FAILED: FrameOutcome
FRAME_OUTCOME_STREAM_ENDED: FrameOutcome
STREAM_STATE_UNSPECIFIED: StreamState
STREAM_STATE_ACTIVE: StreamState
STREAM_STATE_ENDING: StreamState
STREAM_STATE_DRAINING: StreamState

class AnalyzeStreamRequest(_message.Message):
    __slots__ = ("start", "frame", "update", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: StreamStart
    frame: StreamFrame
    update: StreamUpdate
    end: StreamEnd
    def __init__(self, start: _Optional[_Union[StreamStart, _Mapping]] = ..., frame: _Optional[_Union[StreamFrame, _Mapping]] = ..., update: _Optional[_Union[StreamUpdate, _Mapping]] = ..., end: _Optional[_Union[StreamEnd, _Mapping]] = ...) -> None: ...

class AnalyzeStreamResponse(_message.Message):
    __slots__ = ("started", "updated", "result", "done", "status")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    started: StreamStarted
    updated: StreamUpdated
    result: StreamResult
    done: FrameDone
    status: StreamStatus
    def __init__(self, started: _Optional[_Union[StreamStarted, _Mapping]] = ..., updated: _Optional[_Union[StreamUpdated, _Mapping]] = ..., result: _Optional[_Union[StreamResult, _Mapping]] = ..., done: _Optional[_Union[FrameDone, _Mapping]] = ..., status: _Optional[_Union[StreamStatus, _Mapping]] = ...) -> None: ...

class StreamStart(_message.Message):
    __slots__ = ("name", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    settings: StreamSettings
    def __init__(self, name: _Optional[str] = ..., settings: _Optional[_Union[StreamSettings, _Mapping]] = ...) -> None: ...

class StreamSettings(_message.Message):
    __slots__ = ("heads", "policy", "queue_length", "every", "max_age", "frames_per_second", "priority", "status_interval")
    HEADS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STATUS_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[StreamHead]
    policy: FramePolicy
    queue_length: int
    every: int
    max_age: _duration_pb2.Duration
    frames_per_second: float
    priority: _types_pb2.Priority
    status_interval: _duration_pb2.Duration
    def __init__(self, heads: _Optional[_Iterable[_Union[StreamHead, _Mapping]]] = ..., policy: _Optional[_Union[FramePolicy, str]] = ..., queue_length: _Optional[int] = ..., every: _Optional[int] = ..., max_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., frames_per_second: _Optional[float] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., status_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StreamHead(_message.Message):
    __slots__ = ("name", "every", "score_threshold", "max_detections", "omit_masks", "label_map_format", "top_k", "stride_frames", "stride_time", "hop_frames", "hop_time", "track")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    OMIT_MASKS_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_FORMAT_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    STRIDE_TIME_FIELD_NUMBER: _ClassVar[int]
    HOP_FRAMES_FIELD_NUMBER: _ClassVar[int]
    HOP_TIME_FIELD_NUMBER: _ClassVar[int]
    TRACK_FIELD_NUMBER: _ClassVar[int]
    name: str
    every: int
    score_threshold: float
    max_detections: int
    omit_masks: bool
    label_map_format: _types_pb2.LabelMapFormat
    top_k: int
    stride_frames: int
    stride_time: _duration_pb2.Duration
    hop_frames: int
    hop_time: _duration_pb2.Duration
    track: bool
    def __init__(self, name: _Optional[str] = ..., every: _Optional[int] = ..., score_threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., omit_masks: _Optional[bool] = ..., label_map_format: _Optional[_Union[_types_pb2.LabelMapFormat, str]] = ..., top_k: _Optional[int] = ..., stride_frames: _Optional[int] = ..., stride_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hop_frames: _Optional[int] = ..., hop_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., track: _Optional[bool] = ...) -> None: ...

class StreamFrame(_message.Message):
    __slots__ = ("id", "capture_time", "image")
    ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    id: int
    capture_time: _timestamp_pb2.Timestamp
    image: _types_pb2.Image
    def __init__(self, id: _Optional[int] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., image: _Optional[_Union[_types_pb2.Image, _Mapping]] = ...) -> None: ...

class StreamUpdate(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: StreamSettings
    def __init__(self, settings: _Optional[_Union[StreamSettings, _Mapping]] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamStarted(_message.Message):
    __slots__ = ("settings", "backbone")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    settings: StreamSettings
    backbone: str
    def __init__(self, settings: _Optional[_Union[StreamSettings, _Mapping]] = ..., backbone: _Optional[str] = ...) -> None: ...

class StreamUpdated(_message.Message):
    __slots__ = ("settings", "error")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    settings: StreamSettings
    error: _status_pb2.Status
    def __init__(self, settings: _Optional[_Union[StreamSettings, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class StreamResult(_message.Message):
    __slots__ = ("frame_id", "capture_time", "head", "version", "clip_frame_ids", "detection", "segmentation", "classification", "tensor", "keypoints", "error", "track_ids")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIP_FRAME_IDS_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    KEYPOINTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TRACK_IDS_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    capture_time: _timestamp_pb2.Timestamp
    head: str
    version: str
    clip_frame_ids: _containers.RepeatedScalarFieldContainer[int]
    detection: _types_pb2.DetectionResult
    segmentation: _types_pb2.SegmentationResult
    classification: _types_pb2.ClassificationResult
    tensor: _types_pb2.TensorResult
    keypoints: _types_pb2.KeypointResult
    error: _status_pb2.Status
    track_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, frame_id: _Optional[int] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., head: _Optional[str] = ..., version: _Optional[str] = ..., clip_frame_ids: _Optional[_Iterable[int]] = ..., detection: _Optional[_Union[_types_pb2.DetectionResult, _Mapping]] = ..., segmentation: _Optional[_Union[_types_pb2.SegmentationResult, _Mapping]] = ..., classification: _Optional[_Union[_types_pb2.ClassificationResult, _Mapping]] = ..., tensor: _Optional[_Union[_types_pb2.TensorResult, _Mapping]] = ..., keypoints: _Optional[_Union[_types_pb2.KeypointResult, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., track_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class FrameDone(_message.Message):
    __slots__ = ("frame_id", "capture_time", "outcome", "error", "results", "backbone_rows", "feature_source", "timing", "clips_restarted")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    BACKBONE_ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CLIPS_RESTARTED_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    capture_time: _timestamp_pb2.Timestamp
    outcome: FrameOutcome
    error: _status_pb2.Status
    results: int
    backbone_rows: int
    feature_source: _types_pb2.FeatureSource
    timing: _types_pb2.Timing
    clips_restarted: bool
    def __init__(self, frame_id: _Optional[int] = ..., capture_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcome: _Optional[_Union[FrameOutcome, str]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., results: _Optional[int] = ..., backbone_rows: _Optional[int] = ..., feature_source: _Optional[_Union[_types_pb2.FeatureSource, str]] = ..., timing: _Optional[_Union[_types_pb2.Timing, _Mapping]] = ..., clips_restarted: _Optional[bool] = ...) -> None: ...

class FrameCount(_message.Message):
    __slots__ = ("outcome", "frames")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    outcome: FrameOutcome
    frames: int
    def __init__(self, outcome: _Optional[_Union[FrameOutcome, str]] = ..., frames: _Optional[int] = ...) -> None: ...

class StreamStatus(_message.Message):
    __slots__ = ("state", "frames_offered", "frames", "offered_per_second", "answered_per_second", "age", "ring_bytes", "grace")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_OFFERED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    OFFERED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    RING_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    state: StreamState
    frames_offered: int
    frames: _containers.RepeatedCompositeFieldContainer[FrameCount]
    offered_per_second: float
    answered_per_second: float
    age: _duration_pb2.Duration
    ring_bytes: int
    grace: _duration_pb2.Duration
    def __init__(self, state: _Optional[_Union[StreamState, str]] = ..., frames_offered: _Optional[int] = ..., frames: _Optional[_Iterable[_Union[FrameCount, _Mapping]]] = ..., offered_per_second: _Optional[float] = ..., answered_per_second: _Optional[float] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., ring_bytes: _Optional[int] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
