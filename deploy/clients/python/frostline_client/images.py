"""What people hold as an image, as the protocol takes it.

Files (a path, bytes, an open file) go as they are: the server decodes them, turns them by their EXIF orientation and
converts them to RGB. Pixels (numpy arrays, PIL images) go raw, as `RawImage`: 8-bit RGB, row by row. They are copied
once into the message, whatever their strides, and nothing is compressed: exact and quick, but three bytes a pixel. A
picture of which one has the file is better sent as the file.

To RGB as the server does it with files, so that a picture gives one answer however it is given: gray is repeated, alpha
is dropped (not composited), palettes are looked up, 16-bit gray becomes ``(v + 128) / 257``.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

from frostline.v1 import types_pb2

from .extras import loaded, need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image


class Readable(Protocol):
    """A file open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


ImageLike = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, Readable, "npt.NDArray[np.uint8]", "Image.Image"
]
"""An image: a path; a file's bytes; a file open for reading; pixels as a uint8 array [height, width, 3] (RGB),
[height, width] (gray) or [height, width, 4] (RGBA); a PIL image."""

Frames = Union[Iterable[ImageLike], "npt.NDArray[np.uint8]"]
"""A clip: images in the order they are seen, or one uint8 array [frames, height, width, 3]."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif")
"""Ends of the names of files that the server reads."""


def pictures(folder: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """The pictures in a folder, in the order of their names, numbers by value: 2.jpg is before 10.jpg."""
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder")
    found = root.rglob("*") if recursive else root.iterdir()
    return sorted((path for path in found if _is_picture(path, root)), key=_natural)


def _is_picture(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def image(value: ImageLike) -> types_pb2.Image:
    """As the protocol takes it.

    Raises:
        TypeError: it is no image, or pixels of another type than uint8.
        ValueError: pixels of a shape that is none of an image's, or a file without a byte.
        OSError: a file that cannot be read.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _encoded(_bytes(value))
    if isinstance(value, (str, os.PathLike)):
        return _encoded(_read(value))
    pillow, numpy = loaded("PIL.Image"), loaded("numpy")
    if pillow and isinstance(value, pillow.Image):
        rgb = _rgb(value)
        return _raw(rgb.width, rgb.height, rgb.tobytes())
    if numpy and isinstance(value, numpy.ndarray):
        return _pixels(numpy, value)
    if hasattr(value, "read"):
        return _encoded(_file(value))
    if hasattr(value, "__array__"):
        # What other libraries' arrays offer; those on a device or with gradients say themselves why not.
        numpy = need("numpy", "an array as an image")
        return _pixels(numpy, numpy.asarray(value))
    raise TypeError(
        f"an image is a path, bytes, an open file, a uint8 array or a PIL image, not {_named(value)}"
        + ("; for a clip give frames" if isinstance(value, (list, tuple)) else "")
    )


def clip(frames: Frames) -> types_pb2.Clip:
    """As the protocol takes it; errors name the frame."""
    made = []
    for index, frame in enumerate(_frames(frames)):
        try:
            made.append(image(frame))
        except (TypeError, ValueError) as wrong:
            raise type(wrong)(f"frames[{index}]: {wrong}") from wrong
    if not made:
        raise ValueError("frames: a clip needs at least one frame")
    return types_pb2.Clip(frames=made)


def _frames(frames: Any) -> Iterable[Any]:
    if isinstance(frames, (str, os.PathLike)):
        path = Path(frames)
        how = (
            f"a folder; give its pictures in order: pictures({str(path)!r})"
            if path.is_dir()
            else "one path; give a list of them, a path for each frame"
        )
        raise TypeError(f"frames takes images in order, and {str(path)!r} is {how}")
    if isinstance(frames, (bytes, bytearray, memoryview)) or hasattr(frames, "read"):
        raise TypeError("frames takes images in order, not one file; give a list, one image for each frame")
    shape = getattr(frames, "shape", None)
    if shape is not None and len(shape) != 4:
        raise ValueError(f"frames as one array must be [frames, height, width, channels], not {list(shape)}")
    pillow = loaded("PIL.Image")
    if (pillow and isinstance(frames, pillow.Image)) or not hasattr(frames, "__iter__"):
        raise TypeError(f"frames takes images in order, not one {type(frames).__name__}; give a list")
    return frames  # type: ignore[no-any-return]


def _named(value: Any) -> str:
    kind = type(value)
    return "None" if value is None else kind.__qualname__


def _bytes(value: bytes | bytearray | memoryview) -> bytes:
    if isinstance(value, memoryview) and value.ndim != 1:
        raise ValueError(f"a memoryview must be a file's bytes, not {list(value.shape or ())}; pixels are given as an array")
    return value if isinstance(value, bytes) else bytes(value)


def _encoded(data: bytes) -> types_pb2.Image:
    if not data:
        raise ValueError("the image has no bytes")
    return types_pb2.Image(encoded=data)


def _read(value: str | os.PathLike[str]) -> bytes:
    path = os.fspath(value)
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise ValueError("an image given as text is a path; addresses are not fetched, and data is given as bytes")
    if isinstance(path, str) and len(path) > 4096:
        raise ValueError("an image given as text is a path; base64 is given as bytes, decoded")
    if os.path.isdir(path):
        raise ValueError(f"{path!r} is a folder; Client.map takes folders, pictures({path!r}) lists one")
    with open(path, "rb") as file:
        return file.read()


def _file(file: Any) -> bytes:
    data = file.read()
    if isinstance(data, str):
        raise TypeError("the file is open for text; open it with 'rb'")
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"read() of the file gave {_named(data)}, not bytes")
    if not data:
        raise ValueError("the file gave no bytes; if it has been read before, seek(0)")
    return _bytes(data)


def _pixels(numpy: Any, array: Any) -> types_pb2.Image:
    shape = list(array.shape)
    if array.dtype != numpy.uint8:
        how = {"f": "scale them to 0..255 and convert: (pixels * 255).round().astype(numpy.uint8)"}.get(
            array.dtype.kind, "convert them: pixels.astype(numpy.uint8)"
        )
        raise TypeError(f"pixels must be uint8, not {array.dtype} {shape}; {how}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        more = "; channels come last: pixels.transpose(1, 2, 0)" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        more = "; for a clip give frames" if len(shape) == 4 else more
        raise ValueError(f"pixels must be [height, width], or [height, width, 1, 3 or 4], not {shape}{more}")
    height, width, channels = array.shape
    if not height or not width:
        raise ValueError(f"an image of no pixels: {shape}")
    # Views, both: tobytes makes the one copy, row by row, from any strides.
    array = numpy.broadcast_to(array, (height, width, 3)) if channels == 1 else array[:, :, :3]
    return _raw(width, height, array.tobytes())


def _raw(width: int, height: int, rgb: bytes) -> types_pb2.Image:
    return types_pb2.Image(raw=types_pb2.RawImage(width=width, height=height, rgb=rgb))


def _rgb(picture: Any) -> Any:
    """A PIL image in RGB, as the server makes it of a file."""
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):
        numpy, pillow = need("numpy", "a 16-bit image"), need("PIL.Image", "an image")
        levels = numpy.asarray(picture).astype(numpy.uint32)
        return pillow.fromarray(((levels + 128) // 257).astype(numpy.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"a PIL image of mode {picture.mode} has no range of its own; make it one of 8 bits: convert('L')")
    return picture.convert("RGB")


def kept(value: ImageLike, message: types_pb2.Image) -> Any:
    """What an answer remembers of the image that it is about: what was given, or an open file's bytes."""
    return message.encoded if hasattr(value, "read") else value


def picture(value: ImageLike) -> Image.Image:
    """A PIL image of what was sent, upright and in RGB: what boxes and masks are of."""
    pillow, turn = need("PIL.Image", "a picture"), need("PIL.ImageOps", "a picture").exif_transpose
    made: Image.Image
    if isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read"):
        with pillow.open(io.BytesIO(image(value).encoded)) as opened:
            made = _rgb(turn(opened))
    else:
        raw = image(value).raw
        made = pillow.frombytes("RGB", (raw.width, raw.height), raw.rgb)
    return made


def several(images: Any) -> tuple[Iterator[Any], int | None]:
    """The images of `Client.map` and their number, where it can be known."""
    if isinstance(images, (str, os.PathLike)):
        if not os.path.isdir(images):
            raise ValueError(f"map takes a folder or images, and {os.fspath(images)!r} is no folder; give a list of paths")
        images = pictures(images)
    if isinstance(images, (bytes, bytearray, memoryview)) or hasattr(images, "read") or not hasattr(images, "__iter__"):
        raise TypeError(f"map takes a folder or images, not one {_named(images)}; give a list")
    return iter(images), len(images) if hasattr(images, "__len__") else None
