"""Client of Frostline: one frozen vision backbone, many light heads, one gRPC service.

>>> from frostline_client import Client
>>> with Client("127.0.0.1:8461") as client:
...     for found in client.detect("street.jpg"):
...         print(found.name, found.score, found.box)

`Client` blocks; `AsyncClient` has the same methods for asyncio. Both repeat calls that may be repeated
(`RetryPolicy`), and raise `FrostlineError` for what the server refuses.
"""

from .aio import AsyncClient
from .client import Client
from .errors import FrostlineError
from .requests import ImageLike
from .results import (
    Analysis,
    Classification,
    Detection,
    Detections,
    Features,
    Head,
    HeadFailure,
    Mask,
    Provenance,
    ScoredLabel,
    Segment,
    Segmentation,
    Tensors,
)
from .retry import RetryPolicy

__all__ = [
    "Analysis",
    "AsyncClient",
    "Classification",
    "Client",
    "Detection",
    "Detections",
    "Features",
    "FrostlineError",
    "Head",
    "HeadFailure",
    "ImageLike",
    "Mask",
    "Provenance",
    "RetryPolicy",
    "ScoredLabel",
    "Segment",
    "Segmentation",
    "Tensors",
]
