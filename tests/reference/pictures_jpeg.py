"""JPEG files: all samplings and colour spaces, bytes between segments and behind the end, metadata."""

import random
import struct

import numpy as np
from jpeg_writer import jpeg as write_jpeg
from jpeg_writer import segment
from pictures import ORIENTATIONS, SIZES, Case, encode, scene, tiff, xmp


def exif_segment(data: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + data)


def xmp_segment(data: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + data)


def segments(data: bytes) -> list[bytes]:
    """A JPEG cut before each segment; the last piece is the first scan and all behind it."""
    parts, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        length = struct.unpack_from(">H", data, at + 2)[0] + 2
        parts.append(data[at : at + length])
        at += length
    return parts + [data[at:]]


def insert(data: bytes, *extra: bytes) -> bytes:
    """`extra` right behind the start of a JPEG."""
    return data[:2] + b"".join(extra) + data[2:]


def without(data: bytes, kind: int) -> bytes:
    return b"".join(part for part in segments(data) if part[1] != kind or part[0] != 0xFF)


def jpegs() -> dict[str, Case]:
    cases = {}
    for size in SIZES:
        for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
            cases[f"jpeg {size} {name}"] = encode(scene(*size), "JPEG", quality=88, subsampling=subsampling)
        cases[f"jpeg {size} progressive"] = encode(scene(*size), "JPEG", quality=80, progressive=True)
        cases[f"jpeg {size} gray"] = encode(scene(*size).convert("L"), "JPEG")
    for quality in (1, 20, 60, 95, 100):
        cases[f"jpeg quality {quality}"] = encode(scene(75, 50), "JPEG", quality=quality)
    for rows in (1, 2):
        cases[f"jpeg restart {rows} rows"] = encode(scene(75, 50), "JPEG", restart_marker_rows=rows)
    cases["jpeg restart 3 blocks progressive"] = encode(
        scene(75, 50), "JPEG", restart_marker_blocks=3, progressive=True
    )
    cases |= sampled_jpegs() | jpegs_between_and_behind() | jpegs_with_metadata()
    return {name: case if isinstance(case, Case) else Case(case) for name, case in cases.items()}


def sampled_jpegs() -> dict[str, bytes]:
    """What only other programs write: any sampling, scans of one component, colour spaces told in other ways."""
    cases = {}
    rgb = np.asarray(scene(70, 53))
    ycc = np.asarray(scene(70, 53).convert("YCbCr"))
    cmyk = 255 - np.asarray(scene(70, 53).convert("CMYK"))
    samplings = {
        "4:1:1": [(4, 1), (1, 1), (1, 1)],
        "4:4:0": [(1, 2), (1, 1), (1, 1)],
        "4:1:0": [(4, 2), (1, 1), (1, 1)],
        "2x1 of 2x1": [(2, 1), (2, 1), (2, 1)],
        "chroma 2x1 of 2x2": [(2, 2), (2, 1), (2, 1)],
        "chroma 1x2 of 2x2": [(2, 2), (1, 2), (1, 2)],
        "uneven chroma": [(2, 2), (2, 1), (1, 1)],
        "luma smaller": [(1, 1), (2, 2), (1, 1)],
        "1x4": [(1, 4), (1, 1), (1, 1)],
    }
    for name, sampling in samplings.items():
        for interleaved in (True, False):
            how = "one scan" if interleaved else "three scans"
            cases[f"jpeg sampling {name} {how}"] = write_jpeg(ycc, sampling, interleaved=interleaved)
    full = [(1, 1)] * 3
    cases["jpeg ids RGB"] = write_jpeg(rgb, full, ids=b"RGB", jfif=False)
    cases["jpeg adobe RGB"] = write_jpeg(rgb, full, jfif=False, adobe=0)
    cases["jpeg adobe YCC"] = write_jpeg(ycc, full, jfif=False, adobe=1)
    cases["jpeg no marker, other ids"] = write_jpeg(ycc, full, ids=b"\x05\x06\x07", jfif=False)
    cases["jpeg no marker, ids 0 1 2"] = write_jpeg(ycc, full, ids=b"\x00\x01\x02", jfif=False)
    cases["jpeg restarts"] = write_jpeg(ycc, samplings["4:1:1"], restart=2)
    cases["jpeg gray sampled 2x2"] = write_jpeg(ycc[:, :, :1], [(2, 2)])
    four = [(1, 1)] * 4
    cases["jpeg cmyk adobe 0"] = write_jpeg(cmyk, four, jfif=False, adobe=0)
    cases["jpeg cmyk adobe 2 (ycck)"] = write_jpeg(cmyk, four, jfif=False, adobe=2)
    cases["jpeg cmyk no marker"] = write_jpeg(cmyk, four, jfif=False)
    cases["jpeg cmyk sampled"] = write_jpeg(cmyk, [(2, 2), (1, 1), (1, 1), (2, 2)], jfif=False, adobe=2)
    cases["jpeg cmyk by pillow"] = encode(scene(40, 30).convert("CMYK"), "JPEG", quality=92)
    cases["jpeg cmyk by pillow, marker taken out"] = without(encode(scene(40, 30).convert("CMYK"), "JPEG"), 0xEE)
    return cases


def jpegs_between_and_behind() -> dict[str, bytes]:
    cases = {}
    plain = encode(scene(64, 48), "JPEG", quality=85)
    progressive = encode(scene(64, 48), "JPEG", quality=85, progressive=True)
    parts = segments(plain)
    for name, stray in [("00", b"\0"), ("17", b"\x17" * 5), ("fill", b"\xff" * 3), ("ff00", b"\xff\0\x80")]:
        # Not right behind the start: there the first bytes are no longer those of a JPEG to anybody.
        for at in range(2, len(parts)):
            cases[f"jpeg stray {name} before segment {at}"] = b"".join(parts[:at]) + stray + b"".join(parts[at:])
    rng = random.Random(1)
    trailers = {
        "zeros": bytes(300),
        "scan markers": b"\xff\xda\x00\x08" * 400,
        "end markers": b"\xff\xd9" * 10,
        "noise": rng.randbytes(50_000),
        "a second jpeg": plain,
        "a film": struct.pack(">I4s4sI", 16, b"ftyp", b"mp42", 0) + rng.randbytes(20_000),
    }
    for name, trailer in trailers.items():
        cases[f"jpeg then {name}"] = plain + trailer
        cases[f"jpeg progressive then {name}"] = progressive + trailer
    # The last scan again and again: a picture this small may have as many.
    last, count = progressive.rindex(b"\xff\xda"), progressive.count(b"\xff\xda")
    cases["jpeg 99 scans"] = progressive[:-2] + progressive[last:-2] * (99 - count) + progressive[-2:]
    return cases


def jpegs_with_metadata() -> dict[str, bytes]:
    cases = {}
    plain = encode(scene(64, 48), "JPEG", quality=85)
    for orientation in ORIENTATIONS:
        for order in "<>":
            cases[f"jpeg exif {orientation} {order}"] = insert(plain, exif_segment(tiff(orientation, order)))
        cases[f"jpeg exif {orientation} behind others"] = insert(plain, exif_segment(tiff(orientation, ">", filler=20)))
        cases[f"jpeg xmp {orientation}"] = insert(plain, xmp_segment(xmp(orientation)))
        cases[f"jpeg xmp element {orientation}"] = insert(plain, xmp_segment(xmp(orientation, element=True)))
    for kind in (1, 4):
        cases[f"jpeg exif field of type {kind}"] = insert(plain, exif_segment(tiff(6, "<", kind)))
    both = exif_segment(tiff(6)), xmp_segment(xmp(3))
    cases["jpeg exif and xmp"] = insert(plain, *both)
    cases["jpeg xmp and exif"] = insert(plain, *reversed(both))
    cases["jpeg exif without orientation, xmp"] = insert(plain, exif_segment(tiff(None, filler=2)), both[1])
    cases["jpeg exif twice named"] = insert(plain, segment(0xE1, b"Exif\0\0Exif\0\0" + tiff(8)))
    for value in (0, 9, 255):
        cases[f"jpeg exif orientation {value}"] = insert(plain, exif_segment(tiff(value)))
    cases["jpeg two exif"] = insert(plain, exif_segment(tiff(6)), exif_segment(tiff(3)))
    markers = b"\xff\xda\xff\xd9\xff\xd8" * 2000
    for kind in [*range(0xE0, 0xF0), 0xFE]:
        # An APP14 of other content, an APP0 that is no JFIF: both are read by decoders.
        cases[f"jpeg segment {kind:02x} of markers"] = insert(plain, segment(kind, b"Other\0" + markers))
    icc = [segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, 4]) + bytes(60_000)) for i in range(4)]
    cases["jpeg icc in four parts"] = insert(plain, *icc)
    cases["jpeg many comments"] = insert(plain, *[segment(0xFE, b"a comment")] * 5000)
    return cases
