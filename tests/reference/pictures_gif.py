"""GIF files: a frame anywhere on the screen, with either palette, and blocks of every kind before it."""

import struct

import numpy as np
from pictures import Case, encode, scene, xmp


def lzw(indices: bytes, bits: int) -> bytes:
    """Codes of one length only: a clear code comes before the table grows."""
    clear, width, codes = 1 << bits, bits + 1, []
    for position, index in enumerate(indices):
        if position % ((1 << bits) - 2) == 0:
            codes.append(clear)
        codes.append(index)
    codes.append(clear + 1)
    value = sum(code << (width * place) for place, code in enumerate(codes))
    data = value.to_bytes((width * len(codes) + 7) // 8, "little")
    blocks = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    return bytes([bits]) + blocks + b"\0"


def gif(
    screen: tuple[int, int],
    place: tuple[int, int, int, int],
    table: bytes = b"",
    own: bytes = b"",
    transparent: int | None = None,
    interlaced: bool = False,
    before: bytes = b"",
    version: bytes = b"89a",
) -> bytes:
    """One frame of 16 colours at `place` (left, top, width, height)."""
    left, top, width, height = place
    indices = np.random.default_rng(5).integers(0, 16, (height, width), dtype=np.uint8)
    if interlaced:
        indices = np.concatenate([indices[0::8], indices[4::8], indices[2::4], indices[1::2]])
    flags = lambda table: 0x80 | (len(table) // 3).bit_length() - 2 if table else 0
    head = b"GIF" + version + struct.pack("<HHBBB", *screen, flags(table), 7 if table else 0, 0) + table
    control = b"" if transparent is None else b"!\xf9\x04" + bytes([1, 5, 0, transparent, 0])
    frame = b"," + struct.pack("<HHHHB", left, top, width, height, flags(own) | 0x40 * interlaced) + own
    return head + before + control + frame + lzw(indices.tobytes(), 4) + b";"


def gifs() -> dict[str, Case]:
    cases = {}
    rng = np.random.default_rng(6)
    table, own = (rng.integers(0, 256, 48, dtype=np.uint8).tobytes() for _ in range(2))
    ramp = bytes(value for value in range(16) for _ in range(3))
    whole = (0, 0, 37, 21)
    places = {"whole": whole, "inside": (5, 4, 11, 9), "across": (0, 6, 37, 5), "past the edge": (30, 15, 20, 17)}
    for name, place in places.items():
        for transparent in (None, 0, 9):
            for tables in ({"table": table}, {"own": own}, {"table": table, "own": own}):
                how = f"{name}, transparent {transparent}, {'+'.join(tables)}"
                cases[f"gif {how}"] = gif((37, 21), place, transparent=transparent, **tables)
    cases["gif no table"] = gif((37, 21), whole)
    cases["gif gray table"] = gif((37, 21), whole, table=ramp)
    cases["gif short table"] = gif((37, 21), whole, table=table[:12])
    cases["gif 87a"] = gif((37, 21), whole, table=table, version=b"87a")
    for height in (1, 2, 3, 5, 8, 21):
        cases[f"gif interlaced {height}"] = gif((13, height), (0, 0, 13, height), table=table, interlaced=True)
    extensions = {
        "comment": b"!\xfe\x05hello\x00",
        "application": b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00",
        "xmp": b"!\xff\x0bXMP DataXMP" + xmp(6) + b"\x01" + bytes(range(255, -1, -1)) + b"\0",
        "unknown": b"!\x77\x02ab\x00",
        "long": b"!\xfe" + (b"\xff" + b"," * 255) * 900 + b"\0",
        "control without transparency": b"!\xf9\x04\x00\x05\x00\x03\x00",
        "zeros between": b"\0\0",
    }
    for name, before in extensions.items():
        cases[f"gif with {name}"] = gif((37, 21), whole, table=table, before=before)
    for colors in (2, 5, 256):
        cases[f"gif by pillow of {colors}"] = encode(scene(60, 40).quantize(colors), "GIF")
    frames = [scene(40, 30, seed) for seed in range(3)]
    cases["gif animated"] = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)
    cases["gif then noise"] = cases["gif no table"] + bytes(range(256))
    return {name: Case(data) for name, data in cases.items()}
