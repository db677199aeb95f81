"""What others see of a server while it is attacked: a good caller, and probes. Each is a process of its own.

    observers.py good HOST PORT TOKEN CERTIFICATE      ten calls a second, each a line of JSON once it is answered
    observers.py probe HOST PORT ADMIN-HOST ADMIN-PORT BINARY CERTIFICATE
"""

import contextlib
import json
import math
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import payloads
import server
import wire

CALLS_A_SECOND = 10
PATIENCE = 5.0
PROBE_SECONDS = 0.25
PROBE_PATIENCE = 1.0


def tell(**entry: object) -> None:
    """A line for the harness; several threads write."""
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


def context(certificate: str) -> ssl.SSLContext | None:
    """TLS with the server's certificate as the authority; none without."""
    if not certificate:
        return None
    made = ssl.create_default_context(cafile=certificate)
    made.set_alpn_protocols(["h2"])
    return made


# === the processes ===


def good(host: str, port: str, token: str, certificate: str) -> None:
    """Calls at their time whether or not earlier ones are answered, as callers do who do not know of each other."""
    import grpc

    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000), ("grpc.enable_retries", 0)]
    if certificate:
        trust = grpc.ssl_channel_credentials(Path(certificate).read_bytes())
        channel = grpc.secure_channel(f"localhost:{port}", trust, options)
    else:
        channel = grpc.insecure_channel(f"{host}:{port}", options)
    call = channel.unary_unary(f"{payloads.VISION}Detect", lambda body: body, lambda body: body)
    bodies = [payloads.detect(payloads.small(seed)) for seed in range(64)]
    metadata = [("authorization", f"Bearer {token}")]
    call(bodies[0], timeout=30, metadata=metadata, wait_for_ready=True)
    begun = time.monotonic()
    for count in range(1 << 31):
        at = begun + count / CALLS_A_SECOND
        time.sleep(max(0.0, at - time.monotonic()))

        def done(answer: grpc.Future, at: float = at) -> None:
            code = answer.code()
            detail = "" if code is grpc.StatusCode.OK else f"{code.name}: {answer.details()}"[:200]
            tell(kind="call", at=at, took=time.monotonic() - at, error=detail)

        call.future(bodies[count % len(bodies)], timeout=PATIENCE, metadata=metadata).add_done_callback(done)


def check_health(address: wire.Address, tls: ssl.SSLContext | None) -> str:
    """Asks as a kubelet and a container's health check do: on a connection of its own, without a token."""
    until = time.monotonic() + PROBE_PATIENCE
    connection = wire.Connection(address, tls=tls, patience=PROBE_PATIENCE).watch(data=True)
    try:
        fields = wire.call(f"{payloads.HEALTH}Check")
        stream = connection.stream()
        body = wire.frame(wire.DATA, wire.END_STREAM, stream, wire.message(b""))
        connection.write(wire.frame(wire.HEADERS, wire.END_HEADERS, stream, wire.block(fields)) + body, PROBE_PATIENCE)
        while stream not in connection.answered and not connection.closed and time.monotonic() < until:
            wire.pump([connection], 0.005)
        if connection.data.get(stream) == wire.message(b"\x08\x01"):
            return ""
        return f"statuses {dict(connection.statuses)}, GOAWAY {connection.goaway}, closed {connection.closed}"
    finally:
        connection.close()


def check_admin(address: wire.Address) -> str:
    """Asks the admin port whether the server is ready."""
    with socket.create_connection(address, timeout=PROBE_PATIENCE) as stream:
        stream.sendall(f"GET /readyz HTTP/1.0\r\nhost: {address[0]}:{address[1]}\r\n\r\n".encode())
        answer = b""
        while piece := stream.recv(4096):
            answer += piece
    return "" if answer.split(b" ")[1:2] == [b"200"] else repr(answer[:100])


def check_command(command: list[str]) -> str:
    """Asks as the container's own health check does: with the program."""
    done = subprocess.run(command, timeout=PROBE_PATIENCE, capture_output=True, env=server.environment())
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace")[-200:]


def every(kind: str, seconds: float, check: Callable[[], str]) -> None:
    """Checks again and again, at fixed times unless one takes longer."""
    at = time.monotonic()
    while True:
        try:
            error = check()
        except (OSError, subprocess.SubprocessError, ssl.SSLError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        tell(kind=kind, at=at, took=time.monotonic() - at, error=error)
        at = max(at + seconds, time.monotonic())
        time.sleep(max(0.0, at - time.monotonic()))


def probe(host: str, port: str, admin_host: str, admin_port: str, binary: str, certificate: str) -> None:
    tls = context(certificate)
    checks = [
        ("health", PROBE_SECONDS, lambda: check_health((host, int(port)), tls)),
        ("admin", PROBE_SECONDS, lambda: check_admin((admin_host, int(admin_port)))),
    ]
    if binary:
        scheme, trust = ("https", ["--ca", certificate]) if certificate else ("http", [])
        command = [binary, "health", "--addr", f"{scheme}://localhost:{port}", *trust]
        checks.append(("command", 1.0, lambda: check_command(command)))
    threads = [threading.Thread(target=every, args=entry, daemon=True) for entry in checks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# === the harness's side ===


@dataclass
class Seen:
    """What was seen of one kind of call in a time."""

    took: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.took) + len(self.errors)

    @property
    def answered(self) -> float:
        return len(self.took) / self.count if self.count else 0.0

    def percentile(self, share: float) -> float:
        """Seconds, by nearest rank; a call without its answer took for ever."""
        ranked = sorted(self.took) + [math.inf] * len(self.errors)
        return ranked[math.ceil(share * len(ranked)) - 1] if ranked else math.inf


class Observer:
    """One of the processes. It is preferred where that is allowed: whom it stands for has a machine of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, *map(str, arguments)]
        # What a client's library says of connections that end is not for the terminal.
        variables = server.environment() | {"GRPC_VERBOSITY": "NONE"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.process.pid, max(-20, os.getpriority(os.PRIO_PROCESS, 0) - 5))
        self.entries: list[dict] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.entries.append(json.loads(line))
        self.process.stdout.close()

    def wait(self, seconds: float = 60) -> None:
        """Until the first line is there."""
        until = time.monotonic() + seconds
        while not self.entries:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.process.args[2]} did not begin")
            time.sleep(0.02)

    def seen(self, kind: str, begin: float, end: float) -> Seen:
        """What became of all that was due between the two moments."""
        seen = Seen()
        for entry in list(self.entries):
            if entry["kind"] == kind and begin <= entry["at"] < end:
                seen.errors.append(entry["error"]) if entry["error"] else seen.took.append(entry["took"])
        return seen

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.thread.join(5)


if __name__ == "__main__":
    {"good": good, "probe": probe}[sys.argv[1]](*sys.argv[2:])
