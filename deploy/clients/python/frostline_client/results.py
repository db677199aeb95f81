"""Answers as plain objects. Boxes and masks are in the original image's pixels.

Answers are equal where what was found is: how long it took and which call it was are not compared. They can be hashed
and pickled. An answer remembers the image that it is about (the path, or the object that was given; `remember` of the
client), so that it can be drawn; only a path is pickled with it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Union, overload

import grpc

from . import masks
from .errors import FrostlineError
from .extras import need
from .show import Drawn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas
    import supervision

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Provenance:
    """How an answer was made."""

    backbone: str
    """SHA-256 of the backbone's weights, in hex."""
    feature_source: str
    """Where the features came from: ``computed``, ``shared`` with an equal image in flight, or ``cached``."""
    backbone_rows: int
    """Images that the backbone ran for on behalf of this call."""
    batch_size: int
    """Images in the backbone's batch; 0 where the features were cached."""
    seconds: dict[str, float] = field(hash=False)
    """Where the time went: queue, decode, backbone, head, postprocess, total."""


@dataclass(frozen=True, repr=False)
class Mask:
    """A binary mask at the original image's size, as COCO run lengths."""

    height: int
    width: int
    counts: bytes

    def __repr__(self) -> str:
        return f"<Mask {self.width}x{self.height}>"

    def coco(self) -> dict[str, Any]:
        """The object that pycocotools' functions take."""
        return {"size": [self.height, self.width], "counts": self.counts}

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return sum(masks.runs(self.counts, self.height * self.width)[1::2])

    def array(self) -> npt.NDArray[np.bool_]:
        """The pixels, bool [height, width]."""
        numpy = need("numpy", "a mask as an array")
        lengths = masks.runs(self.counts, self.height * self.width)
        flat = numpy.repeat(numpy.arange(len(lengths)) % 2 == 1, lengths)
        return flat.reshape(self.width, self.height).T  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Detection:
    """One object."""

    box: tuple[float, float, float, float]
    """x_min, y_min, x_max, y_max."""
    score: float
    label: str
    class_index: int
    """The label's index among the head's labels."""
    mask: Mask | None
    """``None`` where the head makes none, or masks were declined."""

    def __repr__(self) -> str:
        box = ", ".join(f"{edge:.0f}" for edge in self.box)
        return f"<{self.label} {self.score:.2f} at {box}>"


class _Answer(Drawn):
    """What answers have in common: what is not worth or not able to travel is left out of a pickle."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if not isinstance(state.get("image"), (str, os.PathLike)):
            state["image"] = None
        state.pop("label_map", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True, repr=False)
class Detections(_Answer, Sequence[Detection]):
    """Answer of a detection head, highest score first: a sequence of detections."""

    head: str
    version: str
    detections: tuple[Detection, ...]
    provenance: Provenance = field(compare=False)
    request_id: str = field(default="", compare=False)
    image: Any = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Detection]:
        return iter(self.detections)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Detections: ...
    def __getitem__(self, index: int | slice) -> Detection | Detections:
        if isinstance(index, slice):
            part = self.detections[index]
            return Detections(self.head, self.version, part, self.provenance, self.request_id, self.image)
        return self.detections[index]

    def boxes(self) -> npt.NDArray[np.float32]:
        """float32 [K, 4]: x_min, y_min, x_max, y_max."""
        numpy = need("numpy", "boxes as an array")
        return numpy.array([d.box for d in self.detections], numpy.float32).reshape(-1, 4)  # type: ignore[no-any-return]

    def scores(self) -> npt.NDArray[np.float32]:
        """float32 [K]."""
        numpy = need("numpy", "scores as an array")
        return numpy.array([d.score for d in self.detections], numpy.float32)  # type: ignore[no-any-return]

    def class_indices(self) -> npt.NDArray[np.int64]:
        """int64 [K]."""
        numpy = need("numpy", "indices as an array")
        return numpy.array([d.class_index for d in self.detections], numpy.int64)  # type: ignore[no-any-return]

    def labels(self) -> list[str]:
        """The labels' texts."""
        return [d.label for d in self.detections]

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each detection: image, head, label, class_index, score, the box, area of the mask."""
        from . import tables

        return tables.detections(self)

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections`, with masks where there are any, and labels as ``class_name``."""
        from . import tables

        made: supervision.Detections = tables.supervision(self)
        return made

    def to_coco(self, image_id: int = 0, *, categories: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """COCO's results: what `COCO.loadRes` takes, and `json.dump`.

        Args:
            image_id: the image's number in the data set.
            categories: a category's number by its label; without it the index among the head's labels.
        """
        from . import tables

        return tables.coco(self, image_id, categories)


@dataclass(frozen=True)
class Segment:
    """One label that occurs in a label map."""

    label: str
    class_index: int
    pixels: int


@dataclass(frozen=True, repr=False, eq=False)
class Segmentation(_Answer):
    """Answer of a segmentation head."""

    head: str
    version: str
    size: tuple[int, int]
    """Height and width in pixels."""
    segments: tuple[Segment, ...]
    """The labels that occur, by index."""
    png: bytes
    """The label map as a grayscale PNG."""
    provenance: Provenance
    request_id: str = ""
    image: Any = None

    @cached_property
    def label_map(self) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """A label's index for each pixel, uint8 or uint16 [height, width]."""
        numpy, pillow = need("numpy", "a label map"), need("PIL.Image", "a label map")
        with pillow.open(io.BytesIO(self.png), formats=("PNG",)) as png:
            # Pillow reads 16-bit grayscale as 32-bit integers in some of its versions.
            made = numpy.asarray(png)
        return made if made.dtype == numpy.uint8 else made.astype(numpy.uint16)  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        if self._key() != other._key():
            return False
        return self.png == other.png or bool((self.label_map == other.label_map).all())

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.head, self.version, self.size, self.segments

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each label that occurs: image, head, label, class_index, pixels, share of the image."""
        from . import tables

        return tables.segments(self)


@dataclass(frozen=True)
class ScoredLabel:
    """A label with its probability."""

    label: str
    class_index: int
    probability: float


@dataclass(frozen=True, repr=False)
class Classification(_Answer):
    """Answer of an action or classification head, most probable label first."""

    head: str
    version: str
    top: tuple[ScoredLabel, ...]
    frames: int
    """Frames that the head read; 1 for an image."""
    provenance: Provenance = field(compare=False)
    request_id: str = field(default="", compare=False)
    image: Any = field(default=None, compare=False)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each label: image, head, label, class_index, probability."""
        from . import tables

        return tables.top(self)


@dataclass(frozen=True)
class Keypoint:
    """A named point of a body."""

    x: float
    """In the original image's pixels; it may lie outside of the image."""
    y: float
    score: float
    """0 for a point that was not found, which is given at 0, 0."""
    label: str


@dataclass(frozen=True, repr=False)
class Pose:
    """One body."""

    score: float
    """Mean of its points' scores."""
    keypoints: tuple[Keypoint, ...]
    """One for each of the head's labels, in their order."""

    def __getitem__(self, label: str) -> Keypoint:
        for point in self.keypoints:
            if point.label == label:
                return point
        raise KeyError(f"no point {label!r}; there are {', '.join(point.label for point in self.keypoints)}")

    def __repr__(self) -> str:
        seen = sum(point.score > 0 for point in self.keypoints)
        return f"<Pose {self.score:.2f}, {seen} of {len(self.keypoints)} points>"


@dataclass(frozen=True, repr=False)
class Poses(_Answer, Sequence[Pose]):
    """Answer of a keypoints head, highest score first: a sequence of poses."""

    head: str
    version: str
    poses: tuple[Pose, ...]
    skeleton: tuple[tuple[int, int], ...]
    """Pairs of points, by index, that are joined in pictures."""
    provenance: Provenance = field(compare=False)
    request_id: str = field(default="", compare=False)
    image: Any = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.poses)

    def __iter__(self) -> Iterator[Pose]:
        return iter(self.poses)

    @overload
    def __getitem__(self, index: int) -> Pose: ...
    @overload
    def __getitem__(self, index: slice) -> Poses: ...
    def __getitem__(self, index: int | slice) -> Pose | Poses:
        if isinstance(index, slice):
            part = self.poses[index]
            return Poses(
                self.head, self.version, part, self.skeleton, self.provenance, self.request_id, self.image
            )
        return self.poses[index]

    def array(self) -> npt.NDArray[np.float32]:
        """x, y and score of every point, float32 [poses, points, 3]."""
        numpy = need("numpy", "poses as an array")
        rows = [[(p.x, p.y, p.score) for p in pose.keypoints] for pose in self.poses]
        points = len(self.poses[0].keypoints) if self.poses else 0
        return numpy.array(rows, numpy.float32).reshape(len(self.poses), points, 3)  # type: ignore[no-any-return]

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each point of each pose."""
        from . import tables

        return tables.poses(self)


@dataclass(frozen=True, repr=False)
class Tensor:
    """A tensor as it came."""

    dtype: str
    """As numpy writes it, such as ``<f4``."""
    shape: tuple[int, ...]
    data: bytes
    """Elements in row-major order."""

    def array(self) -> npt.NDArray[Any]:
        """The elements, read only."""
        numpy = need("numpy", "a tensor as an array")
        if self.dtype.startswith("unknown"):
            raise ValueError("a tensor of a type that this version of the client does not know")
        return numpy.frombuffer(self.data, self.dtype).reshape(self.shape)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<Tensor {self.dtype} {list(self.shape)}>"


@dataclass(frozen=True)
class Tensors:
    """Answer of a tensor or embedding head: the graph's outputs by name."""

    head: str
    version: str
    raw: dict[str, Tensor] = field(hash=False)
    provenance: Provenance = field(compare=False)
    request_id: str = field(default="", compare=False)

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs as arrays."""
        return {name: tensor.array() for name, tensor in self.raw.items()}


@dataclass(frozen=True)
class Features:
    """The backbone's feature maps by name."""

    raw: dict[str, Tensor] = field(hash=False)
    provenance: Provenance = field(compare=False)
    request_id: str = field(default="", compare=False)

    @property
    def maps(self) -> dict[str, npt.NDArray[Any]]:
        """Each [channels, height, width], or as the backbone's manifest says."""
        return {name: tensor.array() for name, tensor in self.raw.items()}


@dataclass(frozen=True)
class HeadFailure:
    """A head that failed where others of the same call did not."""

    head: str
    version: str
    code: grpc.StatusCode
    reason: str
    message: str
    request_id: str = field(default="", compare=False)
    details: dict[str, str] = field(default_factory=dict, hash=False)
    """Values that the server names beside its sentence."""

    def error(self) -> FrostlineError:
        """As the error that the head alone would have been."""
        return FrostlineError(
            self.code,
            f"{self.head}: {self.message}",
            reason=self.reason,
            details=self.details,
            request_id=self.request_id,
        )


HeadResult = Union[Detections, Segmentation, Classification, Poses, Tensors, HeadFailure]


@dataclass(frozen=True, repr=False)
class Analysis(_Answer):
    """Answers of several heads from one pass of the backbone, by head."""

    results: dict[str, HeadResult] = field(hash=False)
    provenance: Provenance = field(compare=False)
    request_id: str = field(default="", compare=False)
    image: Any = field(default=None, compare=False)

    def __getitem__(self, head: str) -> HeadResult:
        return self.results[head]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __contains__(self, head: object) -> bool:
        return head in self.results

    def detections(self, head: str = "") -> Detections:
        """What a detection head found; its name may be left out where one answered.

        Raises:
            FrostlineError: the head failed.
            KeyError: no such head answered, or several did and none is named.
            TypeError: it gives another kind of answer.
        """
        return self._of(Detections, head)

    def segmentation(self, head: str = "") -> Segmentation:
        """The answer of a segmentation head, likewise."""
        return self._of(Segmentation, head)

    def classification(self, head: str = "") -> Classification:
        """The answer of an action or classification head, likewise."""
        return self._of(Classification, head)

    def poses(self, head: str = "") -> Poses:
        """The answer of a keypoints head, likewise."""
        return self._of(Poses, head)

    def tensors(self, head: str = "") -> Tensors:
        """The answer of a tensor or embedding head, likewise."""
        return self._of(Tensors, head)

    def failures(self) -> list[HeadFailure]:
        """The heads that failed."""
        return [result for result in self.results.values() if isinstance(result, HeadFailure)]

    def _of(self, kind: type[_Result], head: str) -> _Result:
        if not head:
            fitting = [result for result in self.results.values() if isinstance(result, kind)]
            failed = self.failures()
            if len(fitting) == 1:
                return fitting[0]
            if not fitting and failed:
                raise failed[0].error()
            raise KeyError(f"{len(fitting)} heads of {', '.join(self.results)} gave {kind.__name__}: name one")
        if head not in self.results:
            raise KeyError(f"no answer of a head {head!r}; there are {', '.join(self.results)}")
        result = self.results[head]
        if isinstance(result, kind):
            return result
        if isinstance(result, HeadFailure):
            raise result.error()
        raise TypeError(f"the head {head} gave {type(result).__name__}, not {kind.__name__}")
