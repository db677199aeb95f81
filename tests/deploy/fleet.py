"""Real server processes and real balancers on loopback, with ports of their own."""

import asyncio
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import grpc
import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # Retries are this client's own, so that it can count them.
    ("grpc.enable_retries", 0),
]
HEALTH = "/grpc.health.v1.Health/Check"
START_SECONDS = 120


def binary() -> Path:
    """The server: FROSTLINE_BINARY, or what the Rust tests built."""
    return Path(os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline"))


def environment() -> dict[str, str]:
    """This process's variables without settings of the server, and with the runtime library that the Makefile fetched."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    kept.setdefault("ORT_DYLIB_PATH", str(ROOT / "target/onnxruntime/libonnxruntime.so"))
    return kept


def generate_protocol() -> None:
    """Makes the client modules `frostline.v1.*` importable."""
    out = Path(tempfile.mkdtemp(prefix="frostline-proto-"))
    names = sorted(str(file.relative_to(ROOT / "proto")) for file in (ROOT / "proto/frostline/v1").glob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    flags = [*includes, f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *flags, *names]) != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, str(out))


def protocol(name: str):
    """A generated module, such as `vision_pb2`."""
    if not any("frostline-proto-" in entry for entry in sys.path):
        generate_protocol()
    return importlib.import_module(f"frostline.v1.{name}")


def free_ports(count: int) -> list[int]:
    """Ports that were free together a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Replica:
    """One server process; it can be started again on the same port."""

    def __init__(self, name: str, port: int, repository: Path | None, settings: dict[str, object]) -> None:
        self.name = name
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.command = [str(binary()), "serve", "--listen", self.address]
        if repository:
            self.command += ["--repository", str(repository)]
        for path, value in {"telemetry.format": "json", **settings}.items():
            self.command += ["--set", f"{path}={value}"]
        self.environment = environment()
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self.was_ready = False

    def start(self) -> None:
        """Returns once the server says that it is ready."""
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True, env=self.environment)
        self.lines = []
        self.was_ready = False
        ready = threading.Event()
        threading.Thread(target=self._read, args=(self.process, ready), daemon=True).start()
        # A process whose log has ended may still be about to end.
        if not ready.wait(START_SECONDS) or not self.was_ready:
            self.kill()
            raise RuntimeError(f"{self.name} did not start: {self.lines[-5:]}")

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        for line in process.stderr:
            self.lines.append(line)
            if line.startswith("{") and json.loads(line).get("message") == "ready":
                self.was_ready = True
                ready.set()
        ready.set()
        process.stderr.close()

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def drain(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Fleet:
    """Three replicas, each with a repository of its own."""

    def __init__(self, settings: dict[str, object], count: int = 3) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="frostline-fleet-"))
        self.replicas = []
        for index, port in enumerate(free_ports(count)):
            repository = self.folder / f"models-{index}"
            shutil.copytree(ROOT / "models/demo", repository, ignore=shutil.ignore_patterns("samples"))
            self.replicas.append(Replica(f"replica {index}", port, repository, settings))

    def repository(self, index: int) -> Path:
        return self.folder / f"models-{index}"

    def __enter__(self) -> "Fleet":
        try:
            for replica in self.replicas:
                replica.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            if replica.running():
                replica.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def name_of(self, upstream: str) -> str:
        """The replica that a balancer means by an address or by a name of its configuration."""
        for index, replica in enumerate(self.replicas):
            if upstream.endswith(str(replica.port)) or upstream == f"frostline-{index}":
                return replica.name
        return upstream or "?"


def envoy() -> str | None:
    """The Envoy that the test environment installed."""
    found = Path(sys.executable).parent / "envoy"
    return str(found) if found.exists() else shutil.which("envoy")


class Balancer:
    """A balancer with its shipped configuration, on ports of this run."""

    def __init__(self, kind: str, fleet: Fleet, hashed: bool = True) -> None:
        self.kind = kind
        self.port = free_ports(1)[0]
        self.address = f"127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="frostline-balancer-"))
        source = {"envoy": "envoy.yaml", "haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[kind]
        text = (ROOT / "deploy/balancer" / source).read_text()
        ports = {"8470": self.port}
        ports |= {str(8471 + index): replica.port for index, replica in enumerate(fleet.replicas)}
        text = re.sub(r"\b847[0-3]\b", lambda match: str(ports[match.group()]), text)
        if not hashed:
            text = self._round_robin(text)
        self.config = self.folder / source
        self.config.write_text(text)
        self.log = (self.folder / "log").open("w+")
        self.process: subprocess.Popen[bytes] | None = None

    def _round_robin(self, text: str) -> str:
        for line, other in (
            ("lb_policy: RING_HASH", "lb_policy: ROUND_ROBIN"),
            ("      ring_hash_lb_config: {minimum_ring_size: 1024}\n", ""),
            ("balance hdr(x-frostline-frame-key)", "balance roundrobin"),
            ("    hash-type consistent\n", ""),
            ("        hash $frame_key consistent;\n", ""),
        ):
            text = text.replace(line, other)
        return text

    def command(self) -> list[str]:
        match self.kind:
            case "envoy":
                flags = ["--concurrency", "1", "--base-id", str(self.port), "--log-level", "warn"]
                return [envoy(), "--config-path", str(self.config), *flags]
            case "haproxy":
                return ["haproxy", "-db", "-f", str(self.config)]
            case _:
                return ["nginx", "-p", str(self.folder), "-c", str(self.config), "-g", "daemon off;"]

    async def __aenter__(self) -> "Balancer":
        self.process = subprocess.Popen(self.command(), stdout=self.log, stderr=subprocess.STDOUT)
        await self._answers()
        return self

    async def _answers(self) -> None:
        """Waits until a health check goes through to a replica."""
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            check = channel.unary_unary(HEALTH)
            async with asyncio.timeout(30):
                while True:
                    try:
                        await check(b"", timeout=5, wait_for_ready=True)
                        return
                    except grpc.aio.AioRpcError as error:
                        if self.process.poll() is not None:
                            self.log.seek(0)
                            raise RuntimeError(f"{self.kind}: {self.log.read()[-2000:]}") from error
                        await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
