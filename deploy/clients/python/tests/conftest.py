"""A real server process on a free port."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SAMPLES = ROOT / "models/demo/samples"
BINARY = Path(os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline"))


class Server:
    """A server of the embedded models, or of a folder."""

    def __init__(self, *arguments: str):
        ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
        command = [BINARY, "serve", *ports, "--set", "telemetry.format=json", *arguments]
        # The server takes its settings from variables of this prefix.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.address = self.admin = None
        for line in self.process.stderr:
            fields = json.loads(line)
            if fields.get("message") == "admin port":
                self.admin = fields["address"]
            if fields.get("message") == "ready":
                self.address = fields["address"]
                break
        assert self.address, "the server ended before it was ready"

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(timeout=30)
        self.process.stderr.close()
        return code


@pytest.fixture(scope="session")
def server():
    """Address of a server with the embedded models."""
    running = Server()
    yield running.address
    assert running.stop() == 0, "the server did not drain"
