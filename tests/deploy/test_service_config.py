"""The service configuration of SCALING.md, as gRPC's own client follows it."""

import json
import re
import subprocess
import time

import grpc
import pytest

from fleet import ROOT, Replica, binary, environment, free_ports, protocol

[CONFIG] = re.findall(r"(?s)```json\n(.*?)```", (ROOT / "deploy/SCALING.md").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on which one caller has ten calls a second, and its token."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = [binary(), "token", "slow", "--file", keys, "--rate", "4", "--burst", "1"]
    token = subprocess.run(made, check=True, capture_output=True, text=True, env=environment()).stdout.strip()
    [port] = free_ports(1)
    one = Replica("limited", port, None, {"auth.keys": keys})
    one.start()
    yield one.address, token
    one.kill()


def calls(server, config: dict | None) -> list[grpc.StatusCode]:
    """How three calls end that come one after another at once."""
    address, token = server
    time.sleep(0.5)  # the rate's pause: one call is free
    vision, stubs = protocol("vision_pb2"), protocol("vision_pb2_grpc")
    types = protocol("types_pb2")
    options = [("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 1)] if config else [("grpc.enable_retries", 0)]
    request = vision.DetectRequest(image=types.Image(encoded=(ROOT / "models/demo/samples/scene-1.jpg").read_bytes()))
    ended = []
    with grpc.insecure_channel(address, options) as channel:
        for _ in range(3):
            try:
                stubs.VisionServiceStub(channel).Detect(request, timeout=60, metadata=[("authorization", f"Bearer {token}")])
                ended.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                ended.append(error.code())
    return ended


def test_stock_clients_wait_as_they_are_told(server):
    assert calls(server, None).count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 1, "too slow a machine to be over the rate"
    assert calls(server, json.loads(CONFIG)) == [grpc.StatusCode.OK] * 3
