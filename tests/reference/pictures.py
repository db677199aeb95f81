"""Files of every kind that the server reads, made here: pictures, and what cameras, editors and programs put around them.

What all formats share; `pictures_jpeg`, `pictures_png`, `pictures_webp`, `pictures_gif` and `pictures_bmp` make the files.

Formats are written by hand where Pillow does not write a variant: any JPEG sampling, all PNG types with and without
interlacing, bitmaps of all headers, GIF frames anywhere on the screen. Each case is bytes; what a reader makes of them
is not said here but read with Pillow, and where that is not the answer (deploy/DECODING.md) a case brings its own.
"""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass
class Case:
    data: bytes
    # RGB [H, W, 3] where Pillow's reading is not the answer, and the text of the error where there is none.
    pixels: np.ndarray | None = None
    error: str | None = None


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Ramps, edges and some noise: what tells decoders apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    ramps = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 120 * np.sin((x * 3 + y * 5) / 7.0)]
    pixels = np.stack(ramps, axis=2)
    pixels[(x // 5 + y // 3) % 4 == 0] = [240, 30, 60]
    pixels += rng.normal(0, 12, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


SIZES = [(1, 1), (2, 3), (7, 5), (16, 16), (17, 31), (33, 18), (64, 48), (130, 97)]
ORIENTATIONS = range(1, 9)


# Metadata.


def tiff(orientation: int | None, order: str = "<", kind: int = 3, filler: int = 0) -> bytes:
    """A TIFF file of one directory, as EXIF keeps it; `filler` entries come before the orientation."""
    entries = [struct.pack(order + "HHI4s", 0x0080 + i, 3, 1, struct.pack(order + "HH", 7, 0)) for i in range(filler)]
    if orientation is not None:
        value = {1: struct.pack("B3x", orientation), 3: struct.pack(order + "HH", orientation, 0)}
        value = value.get(kind, struct.pack(order + "I", orientation))
        entries.append(struct.pack(order + "HHI4s", 0x0112, kind, 1, value))
    head = b"II" if order == "<" else b"MM"
    body = struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", 0)
    return head + struct.pack(order + "HI", 42, 8) + body


def xmp(orientation: int, element: bool = False) -> bytes:
    tag = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if element else ""
    attribute = "" if element else f' tiff:Orientation="{orientation}"'
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{tag}</rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()
