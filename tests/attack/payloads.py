"""Requests and pictures that cost their receiver more than their sender. Each is valid, unless its name says otherwise."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from PIL import Image

VISION = "/frostline.v1.VisionService/"
MODEL = "/frostline.v1.ModelService/"
INFER = "/inference.GRPCInferenceService/ModelInfer"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
# As many pixels as `limits.image_pixels` lets through, in a square.
SIDE = math.isqrt(50_000_000)


# === protocol buffers ===


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(tag: int, value: bytes | str | int | float) -> bytes:
    """One field: bytes and text with their length, whole numbers as varints, others as `float`."""
    match value:
        case int():
            return varint(tag << 3) + varint(value)
        case float():
            return varint(tag << 3 | 5) + struct.pack("<f", value)
        case str():
            value = value.encode()
    return varint(tag << 3 | 2) + varint(len(value)) + value


def image(encoded: bytes) -> bytes:
    return field(1, encoded)


def raw(width: int, height: int, rgb: bytes) -> bytes:
    return field(2, field(1, width) + field(2, height) + field(3, rgb))


def detect(picture: bytes, head: str = "objects", options: bytes = b"") -> bytes:
    return field(1, image(picture)) + field(2, head) + (field(3, options) if options else b"")


# Every box that the head proposes, each with its mask.
ALL_BOXES = field(1, 0.0)


def segment(picture: bytes, rle: bool = False) -> bytes:
    return field(1, image(picture)) + field(2, "scene") + (field(3, field(1, 2)) if rle else b"")


def analyze(frames: Sequence[bytes], heads: Iterable[str] = (), options: bytes = b"") -> bytes:
    """A clip."""
    clip = b"".join(field(1, image(frame)) for frame in frames)
    return field(2, clip) + b"".join(field(3, head) for head in heads) + options


def features(picture: bytes, names: Iterable[str] = ()) -> bytes:
    return field(1, image(picture)) + b"".join(field(2, name) for name in names)


def parameter(name: str, value: int) -> bytes:
    return field(4, field(1, name) + field(2, field(2, value)))


def infer(model: str, pictures: Sequence[bytes], outputs: Iterable[str] = (), name: str = "image") -> bytes:
    """Pictures as the rows of a batch."""
    tensor = field(1, name) + field(2, "BYTES") + field(3, varint(len(pictures)))
    rows = b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)
    wanted = b"".join(field(6, field(1, output)) for output in outputs)
    return field(1, model) + field(5, tensor) + wanted + field(7, rows)


# === pictures ===


class Bits:
    """Bits from the lowest of each byte up."""

    def __init__(self) -> None:
        self.value, self.count = 0, 0

    def put(self, value: int, count: int) -> "Bits":
        self.value |= value << self.count
        self.count += count
        return self

    def bytes(self) -> bytes:
        return self.value.to_bytes(-(-self.count // 8), "little")


@cache
def webp(width: int = SIDE, height: int = SIDE) -> bytes:
    """A lossless WebP of one colour: five codes of one symbol each, and no bit for any pixel."""
    bits = Bits().put(0x2F, 8).put(width - 1, 14).put(height - 1, 14).put(0, 1).put(0, 3)
    # No transform, no cache of colours, one group of codes.
    bits.put(0, 1).put(0, 1).put(0, 1)
    for _ in range(5):
        # A simple code, of one symbol, of one bit, 0.
        bits.put(1, 1).put(0, 1).put(0, 1).put(0, 1)
    stream = bits.bytes()
    chunk = b"VP8L" + struct.pack("<I", len(stream)) + stream + bytes(len(stream) & 1)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@cache
def fat(width: int = SIDE, height: int = SIDE) -> bytes:
    """Such a WebP with a chunk that nobody reads behind it, so that it has as many bytes as a server by default wants for so
    many pixels: 8 million are free, and of a lossless WebP each counts 1.8 times, of which 2000 take a byte."""
    picture = webp(width, height)
    missing = max(0, math.ceil((1.8 * width * height - 8_000_000) / 2000) + 64)
    body = picture[8:] + b"JUNK" + struct.pack("<I", missing) + bytes(missing + (missing & 1))
    return b"RIFF" + struct.pack("<I", len(body)) + body


@cache
def edge(turn: int = 0) -> bytes:
    """A WebP of as many pixels as are free, a few less for each turn."""
    side = math.isqrt(int(8_000_000 / 1.8)) - 1
    return webp(side - turn, side)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png(width: int = SIDE, height: int = SIDE, depth: int = 8, colour: int = 0, filter_: int = 0, adam: bool = False) -> bytes:
    """A PNG of one colour, packed as far as deflate goes."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if adam:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    else:
        sizes = [(width, height)]
    packer, data = zlib.compressobj(6), []
    for columns, rows in sizes:
        if columns <= 0 or rows <= 0:
            continue
        row = bytes([filter_]) + bytes(-(-columns * channels * depth // 8))
        for _ in range(rows):
            data.append(packer.compress(row))
    data.append(packer.flush())
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(adam))
    palette = chunk(b"PLTE", bytes(3)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", b"".join(data)) + chunk(b"IEND", b"")


@cache
def small(seed: int, side: int = 64) -> bytes:
    """A small picture unlike those of other seeds."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(out, "PNG")
    return out.getvalue()


@cache
def pillow(kind: str, side: int = SIDE, **options: object) -> bytes:
    """A picture of one gray as Pillow writes it."""
    out = io.BytesIO()
    Image.new(str(options.pop("mode", "RGB")), (side, side)).save(out, kind, **options)
    return out.getvalue()


@cache
def bmp_short(width: int = SIDE, height: int = SIDE) -> bytes:
    """A run-length coded bitmap that ends with its first row."""
    palette = bytes(4 * 256)
    coded = b"\x00\x01"
    offset = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(coded), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(coded), 0, 0, offset) + head + palette + coded


def segment_of(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def high_bits(text: str) -> bytes:
    """A scan's bits, the highest of each byte first."""
    text += "1" * (-len(text) % 8)
    return int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\x00")


@cache
def progressive(side: int = 5800, scans: int = 97, components: int = 3, empty: bool = False) -> bytes:
    """A progressive JPEG of one colour in as many scans as asked for, each of which a decoder has to walk all blocks for:
    a first scan of the lowest frequency, then bands of the others of each component, refined bit by bit, in a sequence that
    the format allows. A scan that changes nothing takes some 60 bytes, by runs of blocks that end at once; `empty` ones have
    no byte at all, which decoders make up for."""
    blocks = 0 if empty else (-(-side // 8)) ** 2
    lengths = bytes([1] + [0] * 15)
    parts = b"".join(bytes([index + 1, 0x11, 0]) for index in range(components))
    out = [b"\xff\xd8", segment_of(0xDB, bytes([0]) + bytes([1] * 64))]
    out.append(segment_of(0xC2, struct.pack(">BHHB", 8, side, side, components) + parts))
    # One code each, a single 0: no difference; a run of 16384 blocks and as many as the 14 bits that follow say.
    out.append(segment_of(0xC4, bytes([0x00]) + lengths + bytes([0])))
    out.append(segment_of(0xC4, bytes([0x10]) + lengths + bytes([0xE0])))
    first = bytes([components]) + b"".join(bytes([index + 1, 0]) for index in range(components))
    out.append(segment_of(0xDA, first + bytes([0, 0, 0])) + high_bits("0" * (blocks * components)))
    runs = high_bits("0" * 15 * -(-blocks // 16384))
    # Each band of each component has one first scan and 13 that refine it.
    bands = max(1, round((scans - 1) / 14 / components))
    edges = [1 + 63 * index // bands for index in range(bands + 1)]
    count = 1
    for low, end in zip(edges, edges[1:]):
        for index in range(components):
            for high in range(14):
                if count == scans:
                    break
                approximation = 13 if high == 0 else (14 - high) << 4 | 13 - high
                head = bytes([1, index + 1, 0x00, low, end - 1, approximation])
                out.append(segment_of(0xDA, head) + runs)
                count += 1
    return b"".join(out) + b"\xff\xd9"


@cache
def packed_bomb(size: int, method: str = "gzip") -> bytes:
    """`size` zero bytes of an unknown field, packed."""
    plain = field(1000, bytes(size - 8))
    assert method == "gzip"
    return gzip.compress(plain, 6, mtime=0)
