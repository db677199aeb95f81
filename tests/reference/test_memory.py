"""What one picture may make the server hold: what its pixels and the limits say, whatever else is in the file.

The server is a process of its own; its high-water mark is set back before each call.
"""

import json
import os
import random
import struct
import subprocess
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import ROOT
from jpeg_writer import segment
from pictures import encode, scene, tiff
from pictures_bmp import bmp, packed_rows
from pictures_gif import gif
from pictures_jpeg import insert
from pictures_png import chunk, png
from pictures_webp import extended, riff, stream
from PIL import Image

PIXELS = 4_000_000
SIDE = 2000
# Rows and coefficients of the picture, by the pixel.
BYTES_PER_PIXEL = 12
# Buffers of the decoder, the network's input and features.
FIXED = 24 << 20
# The message as it is received, and once more as one piece.
COPIES = 3
MANY = 300 << 20


def zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


def tiny_png(before: bytes = b"", after: bytes = b"") -> bytes:
    return png(np.asarray(scene(64, 64)).astype(np.uint32), 2, 8, before=before, after=after)


def code_tables() -> bytes:
    """A lossless WebP of 4 x 4 pixels that names 65536 groups of five codes, each with a table of 4 kB."""
    bits = []

    def put(value: int, count: int):
        bits.extend(value >> i & 1 for i in range(count))

    put(0x2F, 8), put(3, 14), put(3, 14), put(0, 4), put(0, 1), put(0, 1), put(1, 1), put(0, 3), put(0, 1)
    for symbol in (255, 255, 0, 0, 0):
        put(0b101, 3), put(symbol, 8)
    head = bits
    bits = []
    put(0, 1), put(10, 4)
    for length in (0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4):
        put(length, 3)
    put(1, 1), put(1, 3), put(9, 4)
    words = ["000", "001", "010", "011", "100", "101", "1100", "1101", "1110", "1111"]
    for length in [*range(10), 9]:
        bits.extend(int(bit) for bit in words[length])
    everything = np.concatenate([np.array(head, np.uint8), np.tile(np.array(bits, np.uint8), 5 << 16), np.zeros(64, np.uint8)])
    return riff((b"VP8L", np.packbits(everything, bitorder="little").tobytes()))


def unpacking() -> dict[str, bytes]:
    """Small pictures with much beside them."""
    jpeg = encode(scene(64, 64), "JPEG")
    webp = stream(encode(scene(64, 64), "WEBP"))
    noise = random.Random(1).randbytes(10 << 20)
    packed = zeros(MANY)
    key = b"XML:com.adobe.xmp\0"
    cases = {
        "png profile of 300 MB": tiny_png(chunk(b"iCCP", b"p\0\0" + packed)),
        "png text of 300 MB": tiny_png(chunk(b"zTXt", b"Comment\0\0" + packed)),
        "png xmp of 300 MB": tiny_png(chunk(b"iTXt", key + b"\1\0\0\0" + packed)),
        "png xmp of 300 MB behind": tiny_png(after=chunk(b"iTXt", key + b"\1\0\0\0" + packed)),
        "png exif text of 300 MB": tiny_png(chunk(b"zTXt", b"Raw profile type exif\0\0" + packed)),
        "png exif": tiny_png(chunk(b"eXIf", tiff(6) + noise)),
        "png profile": tiny_png(chunk(b"iCCP", b"p\0\0" + noise)),
        "png unknown chunk": tiny_png(chunk(b"teSt", noise)),
        "png palette": tiny_png(chunk(b"PLTE", noise[: 3 << 20])),
        "jpeg exif": insert(jpeg, *[segment(0xE1, b"Exif\0\0" + noise[:65_000])] * 150),
        "jpeg profile": insert(
            jpeg, *[segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, 150]) + noise[:65_000]) for i in range(150)]
        ),
        "jpeg comments": insert(jpeg, *[segment(0xFE, b"")] * (2 << 20)),
        "webp metadata": extended((64, 64), 0x2C, (b"ICCP", noise[: 3 << 20]), webp, (b"EXIF", noise[: 3 << 20]), (b"XMP ", noise[: 3 << 20])),
        "webp code tables": code_tables(),
        "gif extensions": gif((64, 64), (0, 0, 64, 64), table=bytes(48), before=gif_extension(noise)),
        "bmp profile": bmp(packed_rows(np.asarray(scene(64, 64)), 24), (64, 64), 24, header=124, gap=10 << 20),
    }
    return cases


def gif_extension(data: bytes) -> bytes:
    blocks = b"".join(b"\xff" + data[at : at + 255].ljust(255, b"\1") for at in range(0, len(data), 255))
    return b"!\xff\x0bXMP DataXMP" + blocks + b"\0" + b"!\xff\x0bICCRGBG1012" + blocks + b"\0"


def largest() -> dict[str, bytes]:
    """Pictures as large as the limits let them be, in the ways that take most."""
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8)
    rgb = Image.fromarray(np.stack([ramp, ramp.T // 2, 255 - ramp], axis=2))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(ramp))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, 1)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(
        (b"\0" + bytes(8 * len(range(x, SIDE, dx)))) * len(range(y, SIDE, dy)) for x, y, dx, dy in passes
    )
    png16 = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", deep) + chunk(b"eXIf", tiff(6)) + chunk(b"IDAT", zlib.compress(rows))
    return {
        "jpeg": encode(rgb, "JPEG", subsampling=0, exif=exif),
        "jpeg progressive": encode(rgb, "JPEG", subsampling=0, progressive=True, exif=exif),
        "jpeg progressive cmyk": encode(rgb.convert("CMYK"), "JPEG", progressive=True, exif=exif),
        "png of 16 bits, interlaced": png16 + chunk(b"IEND", b""),
        "png with alpha": encode(alpha, "PNG", compress_level=1, exif=exif),
        "webp": encode(rgb, "WEBP", method=0, exif=exif),
        "webp with alpha": encode(alpha, "WEBP", method=0, exif=exif),
        "webp lossless with alpha": encode(alpha, "WEBP", lossless=True, method=0, exif=exif),
        "webp animated": encode(alpha, "WEBP", method=0, save_all=True, append_images=[rgb]),
        "bmp with alpha": encode(alpha, "BMP"),
        "gif": encode(rgb.quantize(16, dither=0), "GIF"),
    }


LARGEST = largest()
CASES = unpacking() | LARGEST
# More tables than any encoder writes; a palette that is none.
REFUSED = {"webp code tables"}


@pytest.fixture(scope="module")
def limited():
    """Address and number of a server whose images have at most `PIXELS` pixels."""
    binary = os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline")
    settings = ["telemetry.format=json", f"limits.image_pixels={PIXELS}", "engine.lanes=1"]
    command = [binary, "serve", "--listen", "127.0.0.1:0", *(f"--set={setting}" for setting in settings)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    address = None
    for line in process.stderr:
        fields = json.loads(line)
        if fields.get("message") == "ready":
            address = fields["address"]
            break
    assert address, "the server ended before it was ready"
    yield address, process.pid
    process.terminate()
    assert process.wait(timeout=30) == 0
    process.stderr.close()


def status(process: int, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


@pytest.mark.parametrize("name", CASES)
def test_the_high_water_mark_is_bounded(name, limited, proto):
    address, process = limited
    data = CASES[name]
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", 64 << 20)]) as channel:
        vision = proto.services.VisionServiceStub(channel)
        small = proto.types.Image(encoded=encode(scene(32, 32), "PNG"))
        vision.Detect(proto.vision.DetectRequest(image=small, head="objects"))
        image = proto.types.Image(encoded=data)
        Path(f"/proc/{process}/clear_refs").write_text("5")
        before = status(process, "VmHWM:")
        try:
            vision.Detect(proto.vision.DetectRequest(image=image, head="objects"))
            refused = None
        except grpc.RpcError as error:
            refused = error
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        grown = status(process, "VmHWM:") - before
    pixels = PIXELS if name in LARGEST else 64 * 64
    bound = BYTES_PER_PIXEL * pixels + COPIES * len(data) + FIXED
    print(f"{name}: {len(data) >> 10} kB, grown by {grown >> 20} MB of {bound >> 20}")
    assert grown < bound
    assert (refused is not None) == (name in REFUSED), refused
