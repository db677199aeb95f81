"""A small JPEG encoder for what Pillow does not write: any sampling factors, scans of one component, any marker.

Baseline, with Huffman codes of one length, which every decoder takes and no encoder writes.
"""

import struct

import numpy as np

STEP = 6
ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
DCT = np.array(
    [[np.sqrt((1 if u == 0 else 2) / 8) * np.cos((2 * x + 1) * u * np.pi / 16) for x in range(8)] for u in range(8)]
)
# Runs and sizes of coefficients, each with a code of 8 bits; sizes of DC differences with codes of 4.
AC = [run << 4 | size for run in range(16) for size in range(1, 11)] + [0x00, 0xF0]
AC_CODES = {symbol: code for code, symbol in enumerate(AC)}


class Bits:
    def __init__(self):
        self.text = []

    def put(self, value: int, count: int):
        if count:
            self.text.append(format(value, f"0{count}b"))

    def coded(self) -> bytes:
        text = "".join(self.text)
        text += "1" * (-len(text) % 8)
        data = int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:]
        return data.replace(b"\xff", b"\xff\x00")


def amplitude(bits: Bits, value: int, size: int):
    bits.put(value if value > 0 else value + (1 << size) - 1, size)


def block(bits: Bits, levels: np.ndarray, last: int) -> int:
    """One block; returns its DC coefficient."""
    coefficients = np.rint(DCT @ (levels.astype(np.float64) - 128) @ DCT.T / STEP).astype(int).reshape(-1)[ZIGZAG]
    difference = int(coefficients[0]) - last
    size = abs(difference).bit_length()
    bits.put(size, 4)
    amplitude(bits, difference, size)
    run = 0
    for value in map(int, coefficients[1:]):
        if value == 0:
            run += 1
            continue
        while run > 15:
            bits.put(AC_CODES[0xF0], 8)
            run -= 16
        size = abs(value).bit_length()
        bits.put(AC_CODES[run << 4 | size], 8)
        amplitude(bits, value, size)
        run = 0
    if run:
        bits.put(AC_CODES[0x00], 8)
    return int(coefficients[0])


def segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def jpeg(
    pixels: np.ndarray,
    sampling: list[tuple[int, int]],
    ids: bytes = b"\x01\x02\x03\x04",
    jfif: bool = True,
    adobe: int | None = None,
    interleaved: bool = True,
    restart: int = 0,
) -> bytes:
    """`pixels` [H, W, C] as they are stored; `sampling` across and down for each component."""
    height, width = pixels.shape[:2]
    across, down = max(s[0] for s in sampling), max(s[1] for s in sampling)
    columns, rows = -(-width // (8 * across)), -(-height // (8 * down))
    planes = []
    for index, (h, v) in enumerate(sampling):
        full = np.pad(
            pixels[:, :, index],
            ((0, rows * 8 * down - height), (0, columns * 8 * across - width)),
            mode="edge",
        )
        # Nearest samples: which ones does not matter, only that decoders agree on what they are made into.
        y = (np.arange(rows * 8 * v) * down // v).clip(0, full.shape[0] - 1)
        x = (np.arange(columns * 8 * h) * across // h).clip(0, full.shape[1] - 1)
        planes.append(full[y][:, x])
    count = len(sampling)
    out = [b"\xff\xd8"]
    if jfif:
        out.append(segment(0xE0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, 0, 1, 1, 0, 0)))
    if adobe is not None:
        out.append(segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe)))
    out.append(segment(0xDB, bytes([0]) + bytes([STEP] * 64)))
    parts = b"".join(bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(sampling))
    out.append(segment(0xC0, struct.pack(">BHHB", 8, height, width, count) + parts))
    lengths = lambda length, codes: bytes(codes if i == length else 0 for i in range(1, 17))
    out.append(segment(0xC4, bytes([0x00]) + lengths(4, 12) + bytes(range(12))))
    out.append(segment(0xC4, bytes([0x10]) + lengths(8, len(AC)) + bytes(AC)))
    if restart:
        out.append(segment(0xDD, struct.pack(">H", restart)))
    scans = [list(range(count))] if interleaved else [[i] for i in range(count)]
    for scan in scans:
        head = bytes([len(scan)]) + b"".join(bytes([ids[i], 0x00]) for i in scan) + bytes([0, 63, 0])
        out.append(segment(0xDA, head))
        out.append(coded(planes, sampling, scan, (columns, rows), (width, height), (across, down), restart))
    return b"".join(out) + b"\xff\xd9"


def coded(planes, sampling, scan, units, size, most, restart) -> bytes:
    """The coded bytes of one scan: all its components in turn, or one component's own blocks."""
    if len(scan) == 1:
        h, v = sampling[scan[0]]
        wide = -(-(-(-size[0] * h // most[0])) // 8)
        high = -(-(-(-size[1] * v // most[1])) // 8)
        order = [[(scan[0], x, y)] for y in range(high) for x in range(wide)]
    else:
        order = []
        for row in range(units[1]):
            for column in range(units[0]):
                unit = []
                for index in scan:
                    h, v = sampling[index]
                    unit += [(index, column * h + x, row * v + y) for y in range(v) for x in range(h)]
                order.append(unit)
    out, bits, last = b"", Bits(), [0] * len(planes)
    for number, unit in enumerate(order):
        if restart and number and number % restart == 0:
            out += bits.coded() + bytes([0xFF, 0xD0 + (number // restart - 1) % 8])
            bits, last = Bits(), [0] * len(planes)
        for index, x, y in unit:
            levels = planes[index][y * 8 : y * 8 + 8, x * 8 : x * 8 + 8]
            last[index] = block(bits, levels, last[index])
    return out + bits.coded()
