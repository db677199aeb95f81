"""What every data set offers, and reading of images with errors that name the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError, at

IGNORE = 255
Image.MAX_IMAGE_PIXELS = 1 << 28


@dataclass
class Things:
    """Instances of one image, in its pixels: ``boxes [G, 4]`` xyxy, ``classes [G]``,
    ``masks [G, H, W]`` bool, or none where boxes are all that is known."""

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None


class Dataset(ABC):
    """Samples by index.  ``tasks`` says for which tasks there is truth."""

    tasks: tuple[str, ...] = ()
    labels: list[str] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """The sample's name within the data set, stable between runs."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the samples or their order do; feature caches are kept by it."""


class Images(Dataset):
    """Still images."""

    #: Whether instances have outlines; else boxes alone.
    masks: bool = True

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``."""

    def size(self, index: int) -> tuple[int, int]:
        """``(width, height)``, without reading pixels where possible."""
        height, width = self.image(index).shape[:2]
        return width, height

    def things(self, index: int) -> Things:
        """The image's instances, where ``tasks`` has detection."""
        raise TypeError(f"{type(self).__name__} knows no instances")

    def ignored(self, index: int) -> Things:
        """Instances that nothing learns from and that no detector is blamed for."""
        return Things(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None)

    def label_map(self, index: int) -> np.ndarray:
        """uint8 ``[H, W]``, :data:`IGNORE` where unknown, where ``tasks`` has segmentation."""
        raise TypeError(f"{type(self).__name__} knows no label maps")


class Clips(Dataset):
    """Videos with one class each."""

    tasks = ("action",)

    @abstractmethod
    def frames(self, index: int, count: int, stride: int | None, place: float) -> list[np.ndarray]:
        """``count`` frames, ``stride`` apart, from ``place`` (0 start to 1 end) of the video, or
        spread over all of it: :func:`.geometry.positions`.  uint8 ``[H, W, 3]`` each."""

    @abstractmethod
    def target(self, index: int) -> int:
        """The video's class."""


def read_image(path: Path) -> np.ndarray:
    """uint8 RGB ``[H, W, 3]``, upright: the pixels that the server makes of the file."""
    try:
        with Image.open(path) as image:
            return np.asarray(_rgb(image, path))
    except FileNotFoundError:
        raise at(path, "no such image") from None
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, Image.DecompressionBombError, SyntaxError) as error:
        raise at(path, f"is not a readable image: {error}") from None


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    """The first frame.  16 bits become the nearest of 256 levels: Pillow clips gray to white and
    cuts the low byte off colours."""
    deep = image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and ";16" in str(image.tile)
    image.load()
    if deep or image.mode.startswith("I"):
        levels = _deep_levels(path) if deep else np.asarray(image).astype(np.int64).clip(0, 65535)
        narrow = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        narrow.info = dict(image.info)  # the orientation
        image = narrow
    return ImageOps.exif_transpose(image).convert("RGB")


def _deep_levels(path: Path) -> np.ndarray:
    """Of a PNG with 16 bits a channel, ``[H, W]`` or ``[H, W, 3]``, without its alpha."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        raise at(
            path, "has colours of 16 bits; reading them needs the package torchvision "
            "(pip install 'frostline-models[timm]')",
        ) from None  # fmt: skip
    levels = decode_image(str(path), ImageReadMode.UNCHANGED).numpy().astype(np.int64)
    return levels[0] if len(levels) < 3 else levels[:3].transpose(1, 2, 0)


def read_labels(path: Path) -> np.ndarray:
    """A label image of one channel, uint8 ``[H, W]``."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise at(path, f"is of mode {image.mode}; labels need one 8-bit channel (L or P)")
            return np.asarray(image, dtype=np.uint8)
    except FileNotFoundError:
        raise at(path, "no such label image") from None
    except (OSError, SyntaxError) as error:
        raise at(path, f"is not a readable image: {error}") from None


def folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise at(path, f"no such folder ({what})")
    return path
