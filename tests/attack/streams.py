"""Attacks by what is open: streams, unfinished bodies, claims, answers that nobody reads."""

import re
import struct
import time
import urllib.request

import payloads
import wire
from plan import ELSEWHERE, Target, attack, health
from server import Options


def watch(t: Target, sources: list[str], streams: int) -> None:
    """Opens `streams` watches from each source, and opens anew what ends."""
    body = wire.message(b"")
    opened, template = [], wire.Template(health(method="Watch"))
    each = lambda stream: wire.frame(wire.DATA, wire.END_STREAM, stream, body)

    def fill(connection: wire.Connection, count: int) -> None:
        batch = template.streams(each, 0, connection.next, count)
        connection.next += 2 * count
        connection.write(batch)
        t.sent(count, len(batch))

    for source in sources:
        try:
            connection = t.connect(source=source)
        except OSError:
            t.count("connections refused")
            continue
        fill(connection, streams)
        opened.append(connection)
    while t.left > 0:
        wire.pump(opened, min(1.0, t.left))
        for index, connection in enumerate(opened):
            if connection.closed or connection.goaway is not None:
                opened[index] = connection = t.connect(source=sources[index])
                fill(connection, streams)
            elif connection.answered:
                t.count("watches ended", len(connection.answered))
                fill(connection, len(connection.answered))
                connection.answered.clear()


@attack("watch", "4 connections x 1024 Health/Watch without a token", seconds=10)
def watch_one(t: Target) -> None:
    watch(t, [ELSEWHERE] * 4, t.many(1024))


@attack("watch-peers", "the same from 64 addresses x 64", seconds=10)
def watch_many(t: Target) -> None:
    watch(t, [f"127.0.{1 + index}.2" for index in range(64)], t.many(64))


@attack("watch-neighbour", "the same from the address of the good caller and of the probes", seconds=10)
def watch_neighbour(t: Target) -> None:
    watch(t, ["127.0.0.1"] * 4, t.many(1024))


@attack("watch-connections", "1100 connections, each with one Health/Watch", seconds=10)
def watch_connections(t: Target) -> None:
    watch(t, [ELSEWHERE] * t.many(1100), 1)


@attack("watch-crowd", "1100 connections from 550 addresses, each with two Health/Watch", seconds=10)
def watch_crowd(t: Target) -> None:
    watch(t, [f"127.{1 + index % 550 // 200}.1.{2 + index % 200}" for index in range(t.many(1100))], 2)


@attack("watch-names", "1000 Health/Watch without a token for names of 3.9 MiB", seconds=12)
def watch_names(t: Target) -> None:
    most = t.many(3 << 30)
    body = memoryview(wire.message(payloads.field(1, "n" * (39 * (1 << 20) // 10))))
    connection, total = t.connect(), 0
    fields = health(method="Watch")
    while total < most and t.left > 1 and not connection.closed:
        stream = connection.call(fields, end=False)
        total += wire.pour([(connection, stream, body)], t.until - 1, end=True, piece=64 << 10)
        t.sent(1, len(body))
    t.notes["MiB sent"] = total >> 20
    t.hold()


# === bodies ===

ZEROS = memoryview(bytes(64 << 20))


def unfinished(t: Target, path: str, identity: str | None, connections: int, streams: int, size: int, most: int) -> None:
    """Bodies of `size` bytes, none of which comes to its last; `most` bytes in all."""
    fields = wire.call(path, t.tokens[identity] if identity else None)
    template, bodies = wire.Template(fields), []
    prefix = wire.message(b"", length=size)
    for connection in t.connects(connections):
        batch = template.streams(lambda stream: wire.frame(wire.DATA, 0, stream, prefix), 0, 1, streams)
        connection.write(batch)
        connection.room -= len(prefix) * streams
        for stream in range(1, 2 * streams, 2):
            connection.rooms[stream] = connection.rooms.get(stream, connection.initial) - len(prefix)
            bodies.append((connection, stream, ZEROS[: min(size - 1, most // (connections * streams))]))
        t.sent(2 * streams, len(batch))
    total = wire.pour(bodies, t.until - 2, piece=64 << 10)
    t.sent(total >> 16, total)
    t.notes["MiB sent"] = total >> 20
    t.hold()


@attack("unfinished-health", "1000 bodies of just under 4 MiB that never finish, no token, Health/Check", seconds=11)
def unfinished_health(t: Target) -> None:
    unfinished(t, f"{payloads.HEALTH}Check", None, 1, t.many(1000), 4 << 20, round(t.scale * (4 << 30)))


@attack("unfinished-connections", "the same on 64 connections", seconds=11)
def unfinished_connections(t: Target) -> None:
    unfinished(t, f"{payloads.HEALTH}Check", None, t.many(64), 16, 4 << 20, round(t.scale * (4 << 30)))


@attack("unfinished-vision", "the same to Detect without a token", seconds=11)
def unfinished_vision(t: Target) -> None:
    unfinished(t, f"{payloads.VISION}Detect", None, 1, t.many(1000), 4 << 20, round(t.scale * (4 << 30)))


@attack("unfinished-caller", "100 bodies of 60 MiB that never finish, to Detect, with a token", caller=True, seconds=11)
def unfinished_caller(t: Target) -> None:
    unfinished(t, f"{payloads.VISION}Detect", "evil", 4, t.many(25), 60 << 20, round(t.scale * (4 << 30)))


def claims(t: Target, size: int, extra: list[tuple[str, str]], flag: int) -> None:
    """Streams that say how long their message is and send a little of it."""
    fields = [*wire.call(f"{payloads.VISION}Detect", t.tokens["evil"]), *extra]
    template, connection = wire.Template(fields), t.connect()
    count = t.many(200)
    piece = wire.message(bytes(9000), flag=flag, length=size)
    batch = template.streams(lambda stream: wire.frame(wire.DATA, 0, stream, piece), 0, 1, count)
    connection.write(batch)
    t.sent(2 * count, len(batch))
    t.hold()


@attack(
    "claims",
    "200 streams that claim 64 MiB each, 1.8 MB sent, under an address limit of 8 GiB",
    caller=True,
    options=Options(address_space=8 << 30),
)
def claims_plain(t: Target) -> None:
    claims(t, 64 << 20, [], 0)


@attack("claims-packed", "the same, packed", caller=True, options=Options(address_space=8 << 30))
def claims_packed(t: Target) -> None:
    claims(t, 63 << 20, [("grpc-encoding", "gzip")], 1)


@attack("slow-bodies", "1000 messages with a token, a byte of each a second", caller=True, seconds=12)
def slow_bodies(t: Target) -> None:
    fields = wire.call(f"{payloads.VISION}Detect", t.tokens["evil"])
    template, connection, count = wire.Template(fields), t.connect(), t.many(1000)
    prefix = wire.message(b"", length=1 << 20)
    connection.write(template.streams(lambda stream: wire.frame(wire.DATA, 0, stream, prefix), 0, 1, count))
    drip = b"".join(wire.frame(wire.DATA, 0, stream, b"\0") for stream in range(1, 2 * count, 2))
    t.sent(2 * count)
    while t.left > 0 and connection.write(drip):
        t.sent(count, len(drip))
        wire.pump([connection], min(1, t.left))


# === answers ===


def unread(t: Target, path: str, body: bytes, connections: int, calls: int, drip: bool = False) -> None:
    """Calls whose answers are not read, or a byte at a time."""
    fields = wire.call(path, t.tokens["evil"])
    for connection in t.connects(connections, window=0):
        for _ in range(calls):
            stream = connection.stream()
            data = wire.frame(wire.DATA, wire.END_STREAM, stream, wire.message(body))
            connection.write(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.block(fields)) + data)
            t.sent(1, len(body))
    while t.left > 0:
        wire.pump(t.connections, min(1, t.left))
        for connection in t.connections if drip else []:
            connection.write(b"".join(wire.window_update(stream, 1) for stream in range(1, connection.next, 2)))


@attack("unread", "20 label maps of 50 million pixels that nobody reads", caller=True, seconds=30)
def unread_maps(t: Target) -> None:
    unread(t, f"{payloads.VISION}Segment", payloads.segment(payloads.webp()), 1, t.many(20))


@attack("unread-arrays", "20 label maps of 50 million pixels as numbers, 100 MB each, that nobody reads", caller=True, seconds=30)
def unread_arrays(t: Target) -> None:
    unread(t, payloads.INFER, payloads.infer("scene", [payloads.webp()]), 1, t.many(20))


@attack("unread-features", "2000 answers of ExtractFeatures that nobody reads", caller=True, seconds=20)
def unread_features(t: Target) -> None:
    unread(t, f"{payloads.VISION}ExtractFeatures", payloads.features(payloads.small(1)), 4, t.many(500))


@attack("unread-drip", "1000 of them, of which a byte a second is read", caller=True, seconds=20)
def unread_drip(t: Target) -> None:
    unread(t, f"{payloads.VISION}ExtractFeatures", payloads.features(payloads.small(1)), 4, t.many(250), drip=True)


def unread_long(t: Target, path: str, body: bytes, calls: int) -> None:
    """As `unread`, for longer than an answer may be left unread: few may be there then."""
    unread(t, path, body, 2, calls // 2)
    with urllib.request.urlopen(f"http://{t.admin[0]}:{t.admin[1]}/metrics", timeout=5) as answer:
        found = re.search(rb"^frostline_calls_in_flight (\S+)", answer.read(), re.MULTILINE)
    t.notes["calls after all that time"] = left = float(found[1])
    if left > calls / 10:
        t.faults.append(f"{left:.0f} of {calls} calls are still there after {t.seconds:.0f} s, though nobody reads their answers")


@attack("unread-long", "200 answers of ExtractFeatures, unread for 100 s", caller=True, seconds=100)
def unread_long_features(t: Target) -> None:
    unread_long(t, f"{payloads.VISION}ExtractFeatures", payloads.features(payloads.small(1)), t.many(200))


@attack("unread-small", "1000 answers of a few hundred bytes, unread for 100 s", caller=True, seconds=100)
def unread_small(t: Target) -> None:
    unread_long(t, f"{payloads.VISION}Detect", payloads.detect(payloads.small(1)), t.many(1000))


@attack("unread-reflection", "a stream of 20,000 questions to reflection whose answers nobody reads", caller=True)
def unread_reflection(t: Target) -> None:
    fields = wire.call(payloads.REFLECTION, t.tokens["evil"])
    connection = t.connect(window=0)
    stream = connection.call(fields, end=False)
    question = wire.message(payloads.field(4, "frostline.v1.VisionService"))
    batch = wire.frame(wire.DATA, 0, stream, question * 100)
    for _ in range(t.many(200)):
        if min(connection.room, connection.rooms.get(stream, connection.initial)) < len(batch) or t.left == 0:
            break
        connection.write(batch)
        connection.room -= len(batch) - 9
        connection.rooms[stream] = connection.rooms.get(stream, connection.initial) - len(batch) + 9
        t.sent(100, len(batch))
        wire.pump([connection], 0.01)
    t.hold()


@attack("reflection-names", "questions to reflection for names of 3.9 MiB", caller=True)
def reflection_names(t: Target) -> None:
    question = memoryview(wire.message(payloads.field(4, "n" * (39 * (1 << 20) // 10))))
    fields = wire.call(payloads.REFLECTION, t.tokens["evil"])
    connection = t.connect().watch()
    while t.left > 0 and not connection.closed:
        stream = connection.call(fields, end=False)
        wire.pour([(connection, stream, question)], t.until, piece=64 << 10)
        wire.pump([connection], min(0.2, t.left))
        connection.write(wire.reset(stream))
        t.sent(1, len(question))


@attack("toggle", "20,000 SETTINGS that change the windows of 1000 open streams", seconds=8)
def toggle(t: Target) -> None:
    body = wire.message(b"")
    connection, count = t.connect(), t.many(1000)
    template = wire.Template(health(method="Watch"))
    connection.write(template.streams(lambda s: wire.frame(wire.DATA, wire.END_STREAM, s, body), 0, 1, count))
    wire.pump([connection], 0.5)
    pair = wire.settings((wire.INITIAL_WINDOW, 0)) + wire.settings((wire.INITIAL_WINDOW, wire.MOST_WINDOW))
    begun = time.monotonic()
    for number in range(t.many(200)):
        if not connection.write(pair * 50, 5) or t.left == 0:
            break
        t.sent(100, 100 * len(pair) // 2)
        wire.pump([connection], max(0.0, begun + number * 0.025 - time.monotonic()))
    t.notes["acknowledged"] = connection.counts["SETTINGS"]
    t.hold()


@attack("big-headers", "4 connections x 1000 calls whose headers take 60 KiB from a table of 4 KiB", seconds=8)
def big_headers(t: Target) -> None:
    value = "x" * 3900
    first = wire.block(health()) + wire.literal("x", value, 0x40) + b"\xbe" * 14
    again = wire.block(health()) + b"\xbe" * 15
    for connection in t.connects(4):
        connection.watch()
        blocks = [first] + [again] * (t.many(1000) - 1)
        flags = wire.END_HEADERS | wire.END_STREAM
        batch = b"".join(wire.frame(wire.HEADERS, flags, 1 + 2 * index, data) for index, data in enumerate(blocks))
        connection.write(batch)
        t.sent(len(blocks), len(batch))
    t.hold()


@attack("packed-windows", "1000 zstd messages with a window of 8 MiB that never finish", caller=True, seconds=10)
def packed_windows(t: Target) -> None:
    # A frame without a length, with the largest window; then runs of one byte, 128 KiB each, none of them the last.
    head = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x68"
    run = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"\0"
    piece = wire.message(head + run * 100, flag=1, length=1 << 20)
    fields = wire.call(f"{payloads.VISION}Detect", t.tokens["evil"], ("grpc-encoding", "zstd"))
    template, connection, count = wire.Template(fields), t.connect(), t.many(1000)
    batch = template.streams(lambda stream: wire.frame(wire.DATA, 0, stream, piece), 0, 1, count)
    connection.write(batch)
    t.sent(2 * count, len(batch))
    t.hold()
