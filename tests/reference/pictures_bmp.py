"""Bitmaps of all headers and depths, and offsets that are wrong."""

import struct

import numpy as np
from pictures import Case, encode, scene


def bmp(
    rows: bytes,
    size: tuple[int, int],
    bits: int,
    header: int = 40,
    compression: int = 0,
    palette: bytes = b"",
    colors: int = 0,
    masks: tuple[int, ...] = (),
    gap: int = 0,
    offset: int | None = None,
) -> bytes:
    width, height = size
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(rows), 1, 1, colors, 0)
        inside = struct.pack(f"<{len(masks)}I", *masks)
        info = (info + inside).ljust(header, b"\0") if header > 40 else info + inside
    at = 14 + len(info) + len(palette) + gap
    file = struct.pack("<2sIHHI", b"BM", at + len(rows), 0, 0, at if offset is None else offset)
    return file + info + palette + bytes(gap) + rows


def packed_rows(samples: np.ndarray, bits: int) -> bytes:
    """[H, W] of `bits` bits or [H, W, C] bytes; each row filled to four bytes; from the bottom."""
    rows = []
    for row in samples[::-1]:
        if bits < 8:
            spread = (row.reshape(-1, 1) >> np.arange(bits)[::-1]) & 1
            data = np.packbits(spread.astype(np.uint8).reshape(-1)).tobytes()
        else:
            data = row.astype("<u2").tobytes() if bits == 16 else row.astype(np.uint8).tobytes()
        rows.append(data + bytes(-len(data) % 4))
    return b"".join(rows)


def bmps() -> dict[str, Case]:
    cases = {}
    rng = np.random.default_rng(8)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        picture = scene(37, 21).quantize(200) if mode == "P" else scene(37, 21).convert(mode)
        cases[f"bmp {mode} by pillow"] = Case(encode(picture, "BMP"))
    size = (37, 21)
    for bits in (1, 4, 8):
        samples = rng.integers(0, 1 << bits, size[::-1], dtype=np.uint32)
        rows = packed_rows(samples, bits)
        colors = rng.integers(0, 256, (1 << bits, 3), dtype=np.uint8)
        four = b"".join(bytes(color) + b"\0" for color in colors)
        three = colors.tobytes()
        cases[f"bmp {bits} bits"] = Case(bmp(rows, size, bits, palette=four))
        cases[f"bmp {bits} bits, oldest header"] = Case(bmp(rows, size, bits, header=12, palette=three))
        cases[f"bmp {bits} bits, gap"] = Case(bmp(rows, size, bits, palette=four, gap=100))
        # Two offsets that are wrong and understood.
        cases[f"bmp {bits} bits, no offset"] = Case(bmp(rows, size, bits, palette=four, offset=0))
        cases[f"bmp {bits} bits, palette forgotten"] = Case(bmp(rows, size, bits, palette=four, offset=54))
        old = bmp(rows, size, bits, header=12, palette=three, offset=26)
        cases[f"bmp {bits} bits, palette forgotten, oldest header"] = Case(old)
        for header in (108, 124):
            cases[f"bmp {bits} bits, header {header}"] = Case(bmp(rows, size, bits, header=header, palette=four))
        if bits > 1:
            fewer = (1 << bits) - 3
            rows = packed_rows(samples % fewer, bits)
            cases[f"bmp {bits} bits, {fewer} colours"] = Case(
                bmp(rows, size, bits, palette=four[: fewer * 4], colors=fewer)
            )
    wide = rng.integers(0, 1 << 16, size[::-1], dtype=np.uint32)
    rows = packed_rows(wide, 16)
    # Levels of five and six bits become the nearest of 256; Pillow rounds down.
    nearest = lambda shift, most: np.floor((wide >> shift & most) * 255 / most + 0.5).astype(np.uint8)
    five = np.stack([nearest(10, 31), nearest(5, 31), nearest(0, 31)], axis=2)
    six = np.stack([nearest(11, 31), nearest(5, 63), nearest(0, 31)], axis=2)
    cases["bmp 16 bits"] = Case(bmp(rows, size, 16), five)
    cases["bmp 16 bits 555"] = Case(bmp(rows, size, 16, compression=3, masks=(0x7C00, 0x3E0, 0x1F)), five)
    cases["bmp 16 bits 565"] = Case(bmp(rows, size, 16, compression=3, masks=(0xF800, 0x7E0, 0x1F)), six)
    full = np.asarray(scene(*size))[:, :, ::-1]
    cases["bmp 24 bits"] = Case(bmp(packed_rows(full, 24), size, 24))
    cases["bmp 24 bits, oldest header"] = Case(bmp(packed_rows(full, 24), size, 24, header=12))
    cases["bmp 24 bits, no offset"] = Case(bmp(packed_rows(full, 24), size, 24, offset=0))
    cases["bmp 24 bits, from the top"] = Case(bmp(packed_rows(full[::-1], 24), (size[0], -size[1]), 24))
    four = np.concatenate([full, full[:, :, :1]], axis=2)
    rows = packed_rows(four, 32)
    cases["bmp 32 bits"] = Case(bmp(rows, size, 32))
    cases["bmp 32 bits, from the top"] = Case(bmp(rows, (size[0], -size[1]), 32))
    layouts = {"bgrx": (0xFF0000, 0xFF00, 0xFF), "xbgr": (0xFF000000, 0xFF0000, 0xFF00)}
    for name, masks in layouts.items():
        cases[f"bmp 32 bits {name}"] = Case(bmp(rows, size, 32, compression=3, masks=masks))
    alphas = {"bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000), "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000)}
    for name, masks in alphas.items():
        for header in (56, 108, 124):
            data = bmp(rows, size, 32, header=header, compression=3, masks=masks)
            cases[f"bmp 32 bits {name}, header {header}"] = Case(data)
    for bits in (4, 8):
        samples = rng.integers(0, 1 << bits, size[::-1], dtype=np.uint32)
        palette = rng.integers(0, 256, 4 << bits, dtype=np.uint8).tobytes()
        rows = packed_rows(samples, bits)
        cases[f"bmp {bits} bits, OS/2 header"] = Case(bmp(rows, size, bits, header=64, palette=palette))
        data = bmp(rows, size, bits, palette=palette)
        cases[f"bmp {bits} bits, last row not filled"] = Case(data[:-1])
    cases |= run_bmps()
    whole = bmp(packed_rows(full, 24), size, 24)
    for offset in (1, 14, 53):
        data = bmp(packed_rows(full, 24), size, 24, offset=offset)
        cases[f"bmp pixels said to be at {offset}"] = Case(data, error="inside its header")
    for offset in (60, 100, len(whole), 1 << 31):
        data = bmp(packed_rows(full, 24), size, 24, offset=offset)
        cases[f"bmp pixels said to be at {offset}"] = Case(data, error="behind its offset")
    return cases


def run_bmps() -> dict[str, Case]:
    """Run lengths: runs, plain pixels, ends of lines, and jumps over pixels, which stay black."""
    palette = b"".join(bytes([i * 9 % 256, i * 5 % 256, i % 256, 0]) for i in range(256))
    lines = [
        b"\x05\x21\x03\x42\x00\x00",
        b"\x00\x05\x01\x02\x03\x04\x05\x00\x03\x07\x00\x00",
        b"\x08\x11\x00\x00",
    ]
    eight = b"".join(lines) + b"\x00\x01"
    cases = {"bmp run lengths of 8 bits": bmp(eight, (8, 3), 8, compression=1, palette=palette)}
    lines = [b"\x08\x21\x00\x00", b"\x00\x05\x12\x34\x50\x00\x03\x77\x00\x00", b"\x07\x91\x01\x20\x00\x00"]
    four = b"".join(lines) + b"\x00\x01"
    cases["bmp run lengths of 4 bits"] = bmp(four, (8, 3), 4, compression=2, palette=palette[:64])
    cases = {name: Case(data) for name, data in cases.items()}
    # What is jumped over, and what is missing behind an end, is black. Pillow takes colour 0 for the one and refuses
    # the other.
    color = lambda index: [index, index * 5 % 256, index * 9 % 256]
    tinted = b"\xff\xff\xff\0" + palette[4:]
    pixels = np.zeros((3, 8, 3), np.uint8)
    pixels[2, 0:2], pixels[1, 5:7] = color(0x21), color(0x42)
    jump = b"\x02\x21\x00\x02\x03\x01\x02\x42\x00\x00\x00\x01"
    cases["bmp run lengths with a jump"] = Case(bmp(jump, (8, 3), 8, compression=1, palette=tinted), pixels)
    pixels = np.zeros((3, 8, 3), np.uint8)
    pixels[2, 0:3] = color(0x21)
    early = b"\x03\x21\x00\x01"
    cases["bmp run lengths that end early"] = Case(bmp(early, (8, 3), 8, compression=1, palette=tinted), pixels)
    return cases
