"""The examples run and say what is in the pictures."""

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys

import grpc
import pytest
from conftest import ROOT, SAMPLES, Server, own_port
from frostline.v1 import types_pb2, vision_pb2, vision_pb2_grpc
from frostline_client import AsyncClient
from google.protobuf import json_format
from PIL import Image, ImageChops

CLIENTS = ROOT / "deploy/clients"
TOOLS = ROOT / "target/tools"
EXAMPLES = ROOT / "deploy/clients/python/examples"
TRUTH = json.loads((SAMPLES / "truth.json").read_text())


def run(name: str, *arguments) -> str:
    return output([sys.executable, EXAMPLES / name, *map(str, arguments)])


def output(command: list, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


PICTURE = TRUTH["pictures"][0]
OBJECTS = {thing["label"] for thing in PICTURE["objects"]}


def test_analyze(server):
    said = run("analyze.py", server, SAMPLES / PICTURE["file"])
    assert all(f"objects: {name} " in said for name in OBJECTS), said
    assert "scene: " in said and "backbone: " in said


def test_folder(server):
    lines = run("folder.py", server, SAMPLES).splitlines()
    assert len(lines) == len(list(SAMPLES.glob("*.jpg")))
    first = next(line for line in lines if line.startswith(PICTURE["file"]))
    assert all(name in first for name in OBJECTS), first


def test_clip(server):
    clip = TRUTH["clips"][0]
    said = run("clip.py", server, *(SAMPLES / frame for frame in clip["frames"]))
    assert clip["motion"] in said.splitlines()[0], said


def test_open_inference(server):
    said = run("open_inference.py", server, SAMPLES / PICTURE["file"])
    assert OBJECTS == {line.rsplit(" ", 3)[0] for line in said.splitlines()}, said


def test_load_data_shares_nothing(server, tmp_path):
    """One message from many callers measures sharing; those that are written for ghz have an image each, of equal pixels."""
    png = tmp_path / "scene.png"
    with Image.open(SAMPLES / PICTURE["file"]) as opened:
        opened.save(png)
    command = [sys.executable, CLIENTS / "ghz_data.py", "--count", "32", "--head", "objects"]
    said = output([*command, SAMPLES / PICTURE["file"], png])
    requests = [json_format.ParseDict(message, vision_pb2.DetectRequest()) for message in json.loads(said)]
    files = [request.image.encoded for request in requests]
    assert len(set(files)) == 32 and all(request.options.omit_masks for request in requests)
    for data in files:
        with Image.open(io.BytesIO(data)) as made, Image.open(SAMPLES / PICTURE["file"]) as one:
            assert ImageChops.difference(made, one).getbbox() is None
        with Image.open(io.BytesIO(data)) as made:
            # Every chunk's sum is right, too.
            made.verify()

    async def rows(images):
        async with AsyncClient(server, timeout=120) as client:
            found = await asyncio.gather(*(client.detect(image, "objects", masks=False) for image in images))
        assert all(OBJECTS == set(one.labels()) for one in found)
        return sum(one.provenance.backbone_rows for one in found)

    assert asyncio.run(rows(files)) == 32
    assert asyncio.run(rows(files[:1] * 32)) < 32
    wrong = subprocess.run([*command, CLIENTS / "ghz_data.py"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1 and "neither a JPEG nor a PNG" in wrong.stderr
    if (TOOLS / "ghz").exists():
        (tmp_path / "data.json").write_text(said)
        call = ["--insecure", "--call", "frostline.v1.VisionService.Detect", "-D", tmp_path / "data.json", "--total", "64"]
        report = json.loads(output([TOOLS / "ghz", *call, "--concurrency", "4", "--format", "json", server]))
        assert report["statusCodeDistribution"] == {"OK": 64}


def test_go(server):
    """The module is what pinned plugins make of the protocol, and it runs; errors say their reason and their number."""
    assert shutil.which("go"), "the Go example needs Go"
    folder = CLIENTS / "go"
    committed = {path.name: path.read_text() for path in (folder / "frostlinev1").iterdir()}
    output([folder / "generate.sh", sys.executable])
    written = {path.name: path.read_text() for path in (folder / "frostlinev1").iterdir()}
    assert written == committed and len(written) >= 5, "run generate.sh"
    output(["go", "vet", "./..."], cwd=folder)
    refused = subprocess.run(["go", "run", ".", server, "go.mod"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and "INVALID_IMAGE map[field:image.encoded], request [" in refused.stderr, refused.stderr
    said = output(["go", "run", ".", server, SAMPLES / PICTURE["file"]], cwd=folder)
    assert OBJECTS == {line.rsplit(" ", 3)[0] for line in said.splitlines()}, said


def test_the_service_configuration_waits_for_a_server_that_is_away(tmp_path):
    """In Go, and in any client of gRPC's core: calls begin before there is a server, and all are answered."""
    folder, address = CLIENTS / "go", own_port()
    output(["go", "build", "-o", tmp_path / "detect", "."], cwd=folder)
    config = (folder / "service_config.json").read_text()
    image = types_pb2.Image(encoded=(SAMPLES / PICTURE["file"]).read_bytes())
    with grpc.insecure_channel(address, [("grpc.service_config", config)]) as channel:
        waiting = vision_pb2_grpc.VisionServiceStub(channel).Detect.future(
            vision_pb2.DetectRequest(image=image), timeout=240
        )
        command = [tmp_path / "detect", "-timeout", "240s", address, SAMPLES / PICTURE["file"]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as one:
            # Nothing listens, and neither gives up.
            with pytest.raises(subprocess.TimeoutExpired):
                one.wait(timeout=2)
            assert not waiting.done()
            server = Server(listen=address)
            said, _ = one.communicate(timeout=240)
            assert one.returncode == 0
        assert OBJECTS == {line.rsplit(" ", 3)[0] for line in said.splitlines()}, said
        assert OBJECTS == {found.label for found in waiting.result().result.detections}
    assert server.stop() == 0


@pytest.mark.skipif(not (TOOLS / "grpcurl").exists(), reason="deploy/install_tools.sh grpcurl builds it; minutes")
def test_grpcurl(server):
    environment = os.environ | {"GRPCURL": str(TOOLS / "grpcurl")}
    said = output([CLIENTS / "grpcurl/examples.sh", server, SAMPLES / PICTURE["file"]], env=environment)
    services = said.split("# health")[0].split()
    assert {"frostline.v1.VisionService", "inference.GRPCInferenceService"} <= set(services)
    assert '"status": "SERVING"' in said
    assert all(f'"label": "{name}"' in said for name in OBJECTS), said
    infer = json.loads(said.split("Open Inference Protocol\n")[1])
    scores, labels = infer["outputs"]
    assert scores["shape"] == labels["shape"] and len(scores["contents"]["fp32Contents"]) == int(scores["shape"][1])
