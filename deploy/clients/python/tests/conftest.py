"""A real server process on a free port."""

import json
import os
import random
import socket
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PACKAGE = ROOT / "deploy/clients/python"
SAMPLES = ROOT / "models/demo/samples"
BINARY = Path(os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline"))


class Server:
    """A server of the embedded models, or of a folder."""

    def __init__(self, *arguments: str, listen: str = "127.0.0.1:0"):
        ports = ("--listen", listen, "--admin", "127.0.0.1:0")
        command = [BINARY, "serve", *ports, "--set", "telemetry.format=json", *arguments]
        # The server takes its settings from variables of this prefix.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.address = self.admin = None
        said = []
        for line in self.process.stderr:
            said.append(line)
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("message") == "admin port":
                self.admin = fields["address"]
            if fields.get("message") == "ready":
                self.address = fields["address"]
                break
        assert self.address, "the server ended before it was ready: " + "".join(said)
        # What it says later is read, so that it never waits for a reader.
        self._reader = threading.Thread(target=self.process.stderr.read, daemon=True)
        self._reader.start()

    def stop(self) -> int:
        self.process.terminate()
        return self._ended(60)

    def kill(self) -> None:
        self.process.kill()
        self._ended(60)

    def _ended(self, seconds: float) -> int:
        code = self.process.wait(timeout=seconds)
        self._reader.join()
        self.process.stderr.close()
        return code


def own_port() -> str:
    """An address for a server that comes back to it: outside the range that others' ports are taken from."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(100):
        port = random.randrange(10_000, low)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return f"127.0.0.1:{port}"
    raise AssertionError("no port is free")


@pytest.fixture(scope="session")
def server():
    """Address of a server with the embedded models."""
    running = Server()
    yield running.address
    assert running.stop() == 0, "the server did not drain"
