"""The service of systemd: its own tools read the units, and start the server with a socket that they opened."""

import configparser
import re
import shutil
import signal
import subprocess

import grpc
import pytest

from fleet import ROOT, binary, environment, free_ports, protocol

UNITS = ROOT / "deploy/systemd"


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str
    read.read(UNITS / name)
    return read


def test_the_unit_says_what_the_server_does():
    service = unit("frostline.service")["Service"]
    assert service["Type"] == "notify"
    words = service["ExecStart"].split()
    assert words[1:] == ["--config", "/etc/frostline/frostline.toml", "serve"]
    # The exit codes of --help that no restart mends.
    text = subprocess.run([binary(), "--help"], capture_output=True, text=True, check=True, env=environment()).stdout
    codes = dict(re.findall(r"(?m)^  (\d)  (.+)$", text))
    assert "configuration" in codes["2"] and "repository" in codes["4"]
    assert service["RestartPreventExitStatus"] == "2 4"
    listed = subprocess.run([binary(), "config"], capture_output=True, text=True, check=True, env=environment()).stdout
    seconds = {name: int(re.search(rf"(?m)^server\.{name} +(\d+)", listed)[1]) for name in ("lame_duck_seconds", "drain_seconds")}
    assert int(service["TimeoutStopSec"]) >= sum(seconds.values()) + 10
    listen = re.search(r'(?m)^server\.listen +"([^"]+)"', listed)[1]
    assert unit("frostline.socket")["Socket"]["ListenStream"] == listen


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
def test_systemd_reads_the_units(tmp_path):
    for name in ("frostline.service", "frostline.socket"):
        text = (UNITS / name).read_text().replace("/usr/local/bin/frostline", str(binary()))
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = [line for line in result.stderr.splitlines() if "frostline" in line]
    assert not ours, ours


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd is not installed here")
def test_a_call_starts_the_server():
    [port] = free_ports(1)
    variables = environment()
    command = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}", "--setenv", f"ORT_DYLIB_PATH={variables['ORT_DYLIB_PATH']}"]
    with subprocess.Popen([*command, str(binary()), "serve"], env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            # It says where it listens once it does.
            assert str(port) in process.stderr.readline()
            types, vision, stubs = protocol("types_pb2"), protocol("vision_pb2"), protocol("vision_pb2_grpc")
            picture = (ROOT / "models/demo/samples/scene-1.jpg").read_bytes()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                request = vision.DetectRequest(image=types.Image(encoded=picture))
                answer = stubs.VisionServiceStub(channel).Detect(request, timeout=120, wait_for_ready=True)
                assert answer.result.detections
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
