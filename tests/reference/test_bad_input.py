"""Hostile images against a real server process: refused with the right code, and memory does not grow."""

import io
import os
import struct
import time
import zlib
from pathlib import Path

import grpc
import pytest
from PIL import Image

ROUNDS = 40
# What an allocator may keep; far below one decoded bomb (300 MB).
GROWTH = 24 << 20


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG whose header says width x height, with `rows` rows of black pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + width * 3)) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (40, 90, 200)).save(out, "JPEG")
    return out.getvalue()


CASES = {
    "empty": b"",
    "text": b"not an image at all",
    "truncated jpeg": jpeg((640, 480))[:400],
    "30000x30000 header": png(30_000, 30_000, 1),
    "100 megapixels, whole": png(10_000, 10_000, 10_000),
    "wide as the format allows": png(2**31 - 1, 1, 0),
}


def resident(process: int) -> int:
    """Bytes of a process's own memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


@pytest.fixture(scope="module")
def process(server):
    """The server's process number, found by the port that it listens on."""
    port = int(server.rsplit(":", 1)[1])
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {row.split()[9] for row in rows if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = [os.readlink(entry) for entry in folder.iterdir()]
        except OSError:
            continue
        if any(f"socket:[{inode}]" in links for inode in inodes):
            return int(folder.parent.name)
    raise AssertionError("nobody listens")


def test_bombs_are_refused_and_memory_stays(vision, proto, process):
    def refuse(data: bytes) -> tuple[grpc.StatusCode, float]:
        image = proto.types.Image(encoded=data)
        begun = time.perf_counter()
        with pytest.raises(grpc.RpcError) as error:
            vision.Analyze(proto.vision.AnalyzeRequest(image=image))
        return error.value.code(), time.perf_counter() - begun

    for data in CASES.values():
        refuse(data)
    before, slowest = resident(process), {}
    for _ in range(ROUNDS):
        for name, data in CASES.items():
            code, seconds = refuse(data)
            assert code == grpc.StatusCode.INVALID_ARGUMENT, name
            slowest[name] = max(slowest.get(name, 0), seconds)
    print("slowest, ms:", {name: round(seconds * 1e3, 1) for name, seconds in slowest.items()})
    assert resident(process) - before < GROWTH
    good = proto.types.Image(encoded=jpeg((64, 64)))
    assert vision.Analyze(proto.vision.AnalyzeRequest(image=good)).results
