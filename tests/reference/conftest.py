"""A real server process on a free port, and a client made from the protocol files."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import grpc_tools
import pytest
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline")


@pytest.fixture(scope="session")
def proto(tmp_path_factory):
    """The generated modules: `proto.vision`, `proto.types`, `proto.stub(channel)`."""
    out = tmp_path_factory.mktemp("proto")
    names = sorted(str(file.relative_to(ROOT / "proto")) for file in (ROOT / "proto/frostline/v1").glob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    flags = [*includes, f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(["protoc", *flags, *names]) == 0
    sys.path.insert(0, str(out))

    class Proto:
        types = importlib.import_module("frostline.v1.types_pb2")
        vision = importlib.import_module("frostline.v1.vision_pb2")
        services = importlib.import_module("frostline.v1.vision_pb2_grpc")

    return Proto


def start(*arguments: str) -> tuple[subprocess.Popen, str]:
    """A server's process and address."""
    # The references compute in fp32: another precision is not theirs to judge.
    command = [BINARY, "serve", "--listen", "127.0.0.1:0", "--set", "telemetry.format=json"]
    command += ["--set", "device.device=cpu", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stderr:
        fields = json.loads(line)
        if fields.get("message") == "ready":
            return process, fields["address"]
    raise AssertionError("the server ended before it was ready")


def stop(process: subprocess.Popen):
    process.terminate()
    assert process.wait(timeout=30) == 0, "the server did not drain"
    process.stderr.close()


OPTIONS = [("grpc.max_receive_message_length", 256 << 20), ("grpc.max_send_message_length", 64 << 20)]


@contextlib.contextmanager
def serve(*arguments: str):
    """A channel to a server of one's own."""
    process, address = start(*arguments)
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        yield channel
    stop(process)


@pytest.fixture(scope="session")
def server():
    """Address of a running server with the embedded models."""
    process, address = start()
    yield address
    stop(process)


@pytest.fixture(scope="session")
def vision(server, proto):
    """A client of VisionService."""
    with grpc.insecure_channel(server, options=OPTIONS) as channel:
        yield proto.services.VisionServiceStub(channel)
