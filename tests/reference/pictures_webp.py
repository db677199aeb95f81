"""WebP files: lossy and lossless, with metadata in every place, and animations."""

import random
import struct

from pictures import ORIENTATIONS, SIZES, Case, encode, scene, tiff, xmp
from PIL import Image


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) & 1) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extended(size: tuple[int, int], flags: int, *chunks: tuple[bytes, bytes]) -> bytes:
    canvas = struct.pack("<I", size[0] - 1)[:3] + struct.pack("<I", size[1] - 1)[:3]
    return riff((b"VP8X", bytes([flags, 0, 0, 0]) + canvas), *chunks)


def stream(data: bytes) -> tuple[bytes, bytes]:
    """The one bitstream of a plain file."""
    length = struct.unpack_from("<I", data, 16)[0]
    return data[12:16], data[20 : 20 + length]


def webps() -> dict[str, Case]:
    cases = {}
    for size in SIZES:
        picture = scene(*size)
        alpha = picture.convert("RGBA")
        alpha.putalpha(Image.linear_gradient("L").resize(size))
        for quality in (5, 60, 95):
            cases[f"webp {size} quality {quality}"] = encode(picture, "WEBP", quality=quality)
        cases[f"webp {size} lossless"] = encode(picture, "WEBP", lossless=True)
        cases[f"webp {size} alpha"] = encode(alpha, "WEBP", quality=80)
        cases[f"webp {size} alpha packed less"] = encode(alpha, "WEBP", quality=80, alpha_quality=40)
        cases[f"webp {size} alpha lossless"] = encode(alpha, "WEBP", lossless=True, exact=True)
        cases[f"webp {size} few colours"] = encode(picture.quantize(7).convert("RGB"), "WEBP", lossless=True)
    for method in range(7):
        cases[f"webp method {method}"] = encode(scene(90, 70), "WEBP", quality=50, method=method)
        cases[f"webp lossless method {method}"] = encode(scene(90, 70), "WEBP", lossless=True, method=method)
    size = (64, 48)
    lossy, lossless = (stream(encode(scene(*size), "WEBP", lossless=kind)) for kind in (False, True))
    for orientation in ORIENTATIONS:
        for name, prefix in [("", b""), (" named", b"Exif\0\0"), (" twice named", b"Exif\0\0" * 2)]:
            exif = (b"EXIF", prefix + tiff(orientation, ">"))
            cases[f"webp exif{name} {orientation}"] = extended(size, 0x08, lossy, exif)
        cases[f"webp exif before {orientation}"] = extended(size, 0x08, (b"EXIF", tiff(orientation)), lossless)
        cases[f"webp xmp {orientation}"] = extended(size, 0x04, lossless, (b"XMP ", xmp(orientation)))
        # Readers go by the flags of the header.
        cases[f"webp exif unflagged {orientation}"] = extended(size, 0, lossy, (b"EXIF", tiff(orientation)))
    cases["webp icc"] = extended(size, 0x20, (b"ICCP", bytes(5001)), lossy)
    cases["webp unknown chunks"] = extended(size, 0, (b"TEST", bytes(333)), lossy, (b"MORE", bytes(77)))
    cases["webp then noise"] = riff(lossy) + random.Random(4).randbytes(3000)
    cases |= animated_webps()
    return {name: Case(data) for name, data in cases.items()}


def animated_webps() -> dict[str, bytes]:
    cases = {}
    frames = [scene(40, 30, seed) for seed in range(3)]
    for lossless in (False, True):
        cases[f"webp animated {lossless=}"] = encode(
            frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless
        )
    seen = frames[0].convert("RGBA")
    seen.putalpha(Image.radial_gradient("L").resize(seen.size))
    cases["webp animated alpha"] = encode(seen, "WEBP", save_all=True, append_images=frames, exact=True)
    three = lambda value: struct.pack("<I", value)[:3]
    for flags in range(4):
        for lossless in (False, True):
            kind, data = stream(encode(scene(20, 16), "WEBP", lossless=lossless))
            place = three(3) + three(2) + three(19) + three(15) + three(100) + bytes([flags])
            frame = place + kind + struct.pack("<I", len(data)) + data + bytes(len(data) & 1)
            animation = b"\x11\x22\x33\x44" + bytes(2)
            cases[f"webp frame inside the canvas, flags {flags}, {lossless=}"] = extended(
                (40, 30), 0x12, (b"ANIM", animation), (b"ANMF", frame)
            )
    return cases
