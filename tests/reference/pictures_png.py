"""PNG files: all types and depths, plain and interlaced, and chunks of every kind around the picture."""

import random
import struct
import zlib

import numpy as np
from pictures import ORIENTATIONS, Case, encode, scene, tiff, xmp
from PIL import PngImagePlugin


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: np.ndarray,
    color: int,
    depth: int,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    palette: bytes = b"",
    split: int = 1 << 20,
) -> bytes:
    """`samples` [H, W, C]; rows are filtered by all five filters in turn."""
    height, width = samples.shape[:2]
    step = max(1, CHANNELS[color] * depth // 8)

    def row_bytes(row: np.ndarray) -> bytes:
        if depth == 16:
            return row.astype(">u2").tobytes()
        if depth == 8:
            return row.astype(np.uint8).tobytes()
        bits = (row.reshape(-1, 1) >> np.arange(depth)[::-1]) & 1
        return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()

    def filtered(rows: list[bytes]) -> bytes:
        out, above = b"", bytes(len(rows[0]))
        for index, row in enumerate(rows):
            a = bytes(step) + row[:-step] if len(row) > step else bytes(len(row))
            a = a[: len(row)]
            c = (bytes(step) + above[:-step] if len(above) > step else bytes(len(above)))[: len(row)]
            kind = index % 5
            predicted = [predict(kind, *abc) for abc in zip(a, above, c)]
            out += bytes([kind]) + bytes((value - guess) & 255 for value, guess in zip(row, predicted))
            above = row
        return out

    data = b""
    for x, y, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        part = samples[y::dy, x::dx]
        if part.size:
            data += filtered([row_bytes(row) for row in part])
    packed = zlib.compress(data)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), before]
    if palette:
        parts.append(chunk(b"PLTE", palette))
    parts += [chunk(b"IDAT", packed[at : at + split]) for at in range(0, len(packed), split)]
    return b"".join(parts) + after + chunk(b"IEND", b"")


def predict(kind: int, a: int, b: int, c: int) -> int:
    if kind == 4:
        guess = a + b - c
        return min((abs(guess - a), 0, a), (abs(guess - b), 1, b), (abs(guess - c), 2, c))[2]
    return [0, a, b, (a + b) // 2][kind]


def pngs() -> dict[str, Case]:
    cases = {}
    rng = np.random.default_rng(3)
    for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth in depths:
            for size in [(1, 1), (5, 3), (9, 8), (37, 21)]:
                samples = rng.integers(0, 1 << depth, (size[1], size[0], CHANNELS[color]), dtype=np.uint32)
                palette = rng.integers(0, 256, 3 << depth, dtype=np.uint8).tobytes() if color == 3 else b""
                for interlaced in (False, True):
                    data = png(samples, color, depth, interlaced, palette=palette, split=50)
                    # Samples of 16 bits are rounded to the nearest level; Pillow cuts them or clips them.
                    levels = ((samples + 128) // 257).astype(np.uint8)
                    rgb = levels[:, :, :3] if color in (2, 6) else np.repeat(levels[:, :, :1], 3, axis=2)
                    name = f"png type {color} depth {depth} {size}{' interlaced' if interlaced else ''}"
                    cases[name] = Case(data, rgb if depth == 16 else None)
    return cases | pngs_with_chunks()


def pngs_with_chunks() -> dict[str, Case]:
    cases = {}
    samples = np.asarray(scene(24, 18)).astype(np.uint32)
    gray = samples[:, :, :1]
    make = lambda **options: png(samples, 2, 8, **options)
    for orientation in ORIENTATIONS:
        exif = chunk(b"eXIf", tiff(orientation, ">"))
        cases[f"png exif {orientation}"] = make(before=exif)
        cases[f"png exif {orientation} behind"] = make(after=exif)
        cases[f"png exif {orientation} with its name"] = make(before=chunk(b"eXIf", b"Exif\0\0" + tiff(orientation)))
        packed = zlib.compress(xmp(orientation))
        key = b"XML:com.adobe.xmp\0"
        cases[f"png xmp {orientation}"] = make(before=chunk(b"iTXt", key + b"\0\0\0\0" + xmp(orientation)))
        cases[f"png xmp {orientation} packed"] = make(before=chunk(b"iTXt", key + b"\1\0en\0clef\0" + packed))
        hexed = tiff(orientation).hex()
        lines = "\n".join(hexed[at : at + 72] for at in range(0, len(hexed), 72))
        raw = f"\nexif\n{len(hexed) // 2:8}\n{lines}\n".encode()
        key = b"Raw profile type exif\0"
        cases[f"png hexadecimal exif {orientation}"] = make(before=chunk(b"zTXt", key + b"\0" + zlib.compress(raw)))
        cases[f"png hexadecimal exif {orientation} plain"] = make(before=chunk(b"tEXt", key + raw))
    others = {
        "texts": chunk(b"tEXt", b"Comment\0made here") + chunk(b"zTXt", b"Author\0\0" + zlib.compress(b"x" * 999)),
        "icc": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3000))),
        "icc that is none": chunk(b"iCCP", b"profile\0\0" + b"not deflate"),
        "gamma and size": chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"pHYs", struct.pack(">IIB", 1, 2, 1)),
        "unknown": chunk(b"teSt", bytes(70_000)),
        "animation": chunk(b"acTL", struct.pack(">II", 2, 0)),
    }
    for name, before in others.items():
        cases[f"png chunk {name}"] = make(before=before)
        cases[f"png gray chunk {name}"] = png(gray, 0, 8, before=before)
    cases["png transparent colour"] = make(before=chunk(b"tRNS", bytes(6)))
    cases["png transparent level"] = png(gray, 0, 8, before=chunk(b"tRNS", bytes(2)))
    cases["png then noise"] = make() + random.Random(2).randbytes(5000)
    cases["png palette with transparency"] = encode(scene(30, 20).quantize(9), "PNG", transparency=3)
    cases["png palette shorter than its depth"] = encode(scene(30, 20).quantize(5), "PNG", bits=8)
    cases["png one bit"] = encode(scene(30, 20).convert("1"), "PNG")
    frames = [scene(20, 10, seed) for seed in range(3)]
    cases["png animated"] = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    cases["png animated behind another"] = encode(
        scene(20, 10, 9), "PNG", save_all=True, default_image=True, append_images=frames
    )
    info = PngImagePlugin.PngInfo()
    info.add_itxt("Title", "t" * 5000, zip=True)
    cases["png text by pillow"] = encode(scene(30, 20), "PNG", pnginfo=info, icc_profile=bytes(400))
    return {name: Case(data) for name, data in cases.items()}
