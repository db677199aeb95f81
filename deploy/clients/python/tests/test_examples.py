"""The examples run and say what is in the pictures."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SAMPLES

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


def test_go(server):
    """Generated, built and run from nothing but the protocol and pinned plugins."""
    assert shutil.which("go"), "the Go example needs Go"
    folder = CLIENTS / "go"
    output([folder / "generate.sh", sys.executable])
    said = output(["go", "run", ".", server, SAMPLES / PICTURE["file"]], cwd=folder)
    assert OBJECTS == {line.rsplit(" ", 3)[0] for line in said.splitlines()}, said


@pytest.mark.skipif(not (TOOLS / "grpcurl").exists(), reason="deploy/install_tools.sh grpcurl builds it; minutes")
def test_grpcurl(server):
    environment = os.environ | {"GRPCURL": str(TOOLS / "grpcurl")}
    said = output([CLIENTS / "grpcurl/examples.sh", server, SAMPLES / PICTURE["file"]], env=environment)
    services = said.split("# health")[0].split()
    assert {"frostline.v1.VisionService", "inference.GRPCInferenceService"} <= set(services)
    assert '"status": "SERVING"' in said
    assert all(f'"name": "{name}"' in said for name in OBJECTS), said
    infer = json.loads(said.split("Open Inference Protocol\n")[1])
    scores, labels = infer["outputs"]
    assert scores["shape"] == labels["shape"] and len(scores["contents"]["fp32Contents"]) == int(scores["shape"][1])
