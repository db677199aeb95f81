"""Client of Frostline: one frozen vision backbone, many light heads, one gRPC service.

>>> from frostline_client import Client
>>> with Client("127.0.0.1:8461") as client:
...     for found in client.detect("street.jpg"):
...         print(found.label, found.score, found.box)

`Client` blocks; `AsyncClient` has the same methods for asyncio. Both wait for a server that restarts and repeat calls
that may be repeated (`RetryPolicy`), and raise `FrostlineError` for what the server refuses. Importing the package needs
grpcio and protobuf alone; what arrays, pictures and tables need is imported where it is used.
"""

from .aio import AsyncClient
from .client import Client
from .connection import Metadata
from .errors import FrostlineError
from .images import Frames, ImageLike, pictures
from .requests import Priority
from .models import Backbone, FeatureMap, Head
from .results import (
    Analysis,
    Classification,
    Detection,
    Detections,
    Features,
    HeadFailure,
    HeadResult,
    Keypoint,
    Mask,
    Pose,
    Poses,
    Provenance,
    ScoredLabel,
    Segment,
    Segmentation,
    Tensor,
    Tensors,
)
from .retry import RetryPolicy
from .stream import FrameDone, Stream, StreamHead, StreamResult, StreamStatus
from .version import __version__

__all__ = [
    "Analysis",
    "AsyncClient",
    "Backbone",
    "Classification",
    "Client",
    "Detection",
    "Detections",
    "FeatureMap",
    "Features",
    "FrameDone",
    "Frames",
    "FrostlineError",
    "Head",
    "HeadFailure",
    "HeadResult",
    "ImageLike",
    "Keypoint",
    "Mask",
    "Metadata",
    "Pose",
    "Poses",
    "Priority",
    "Provenance",
    "RetryPolicy",
    "ScoredLabel",
    "Segment",
    "Segmentation",
    "Stream",
    "StreamHead",
    "StreamResult",
    "StreamStatus",
    "Tensor",
    "Tensors",
    "__version__",
    "pictures",
]
