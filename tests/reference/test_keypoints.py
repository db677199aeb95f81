"""What becomes of a head's points, against numpy on the same raw outputs: by the API, the Open Inference Protocol and the command.

The repository holds one graph twice, as a keypoints head and as a head of raw outputs, so that both sides start from the same
numbers.
"""

import io
import json
import os
import subprocess

import grpc
import numpy as np
import pytest
from conftest import BINARY, start, stop
from PIL import Image
from points import BODIES, BONES, LABELS, MOST, POINTS, THRESHOLD, write
from test_detections import picture, seen
from tritonclient import grpc as triton

SIZES = [(128, 128), (640, 480), (1000, 100), (33, 200)]


@pytest.fixture(scope="module", params=["letterbox", "stretch", "center_crop"])
def served(request, tmp_path_factory):
    """How images are resized, the repository, and a server's address."""
    root = tmp_path_factory.mktemp("repository")
    write(root, request.param)
    process, address = start("--repository", str(root))
    yield request.param, root, address
    stop(process)


@pytest.fixture
def vision(served, proto):
    with grpc.insecure_channel(served[2]) as channel:
        yield proto.services.VisionServiceStub(channel)


def expected(raw: np.ndarray, resize: str, size: tuple[int, int], threshold: float, most: int) -> np.ndarray:
    """[poses, points, 3] of raw points [bodies, points, 3]."""
    scale, shift, _ = seen(resize, *size)
    means = raw[:, :, 2].astype(np.float64).mean(axis=1)
    order = [body for body in np.argsort(-means.astype(np.float32), kind="stable") if means[body] > 0]
    chosen = raw[[body for body in order if np.float32(means[body]) >= np.float32(threshold)][:most]].astype(np.float64)
    there = chosen[:, :, 2:] > 0
    placed = np.concatenate([(chosen[:, :, :2] - shift) / scale, chosen[:, :, 2:]], axis=2)
    return np.where(there, placed, 0.0)


def array(result) -> np.ndarray:
    rows = [[[p.x, p.y, p.score] for p in pose.keypoints] for pose in result.poses]
    return np.array(rows).reshape(-1, POINTS, 3)


def test_points_are_those_of_numpy(served, vision, proto):
    resize, _, address = served
    outside = missing = 0
    with triton.InferenceServerClient(address) as inference:
        for seed, size in enumerate(SIZES):
            data = picture(seed, *size)
            image = proto.types.Image(encoded=data)
            answer = vision.Analyze(proto.vision.AnalyzeRequest(image=image, heads=["raw", "pose"]))
            tensor = answer.results[0].tensor.outputs[0]
            raw = np.frombuffer(tensor.data, "<f4").reshape(BODIES, POINTS, 3)
            wanted = expected(raw, resize, size, THRESHOLD, MOST)
            found = answer.results[1].keypoints
            assert list(found.labels) == LABELS and [[b.first, b.second] for b in found.skeleton] == BONES
            assert 0 < len(wanted) <= MOST
            np.testing.assert_allclose(array(found), wanted, rtol=1e-5, atol=1e-3)
            means = wanted[:, :, 2].mean(axis=1)
            np.testing.assert_allclose([pose.score for pose in found.poses], means, rtol=1e-6)
            for threshold, most in ((0.0, MOST), (0.55, MOST), (0.2, 2)):
                options = proto.vision.DetectionOptions(score_threshold=threshold, max_detections=most)
                request = proto.vision.AnalyzeRequest(image=image, heads=["pose"], detection=options)
                other = vision.Analyze(request).results[0].keypoints
                right = expected(raw, resize, size, threshold, most)
                np.testing.assert_allclose(array(other), right, rtol=1e-5, atol=1e-3)
            there = wanted[wanted[:, :, 2] > 0]
            outside += ((there[:, :2] < 0) | (there[:, :2] > size)).any(axis=1).sum()
            missing += (wanted[:, :, 2] == 0).sum()

            given = triton.InferInput("image", [1], "BYTES")
            given.set_data_from_numpy(np.array([data], dtype=object))
            inferred = inference.infer("pose", [given], parameters={"max_detections": 4})
            assert inferred.as_numpy("num_detections").tolist() == [min(len(wanted), 4)]
            np.testing.assert_allclose(inferred.as_numpy("keypoints")[0], wanted[:4], rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(inferred.as_numpy("scores")[0], means[:4], rtol=1e-6)
    assert outside > 0 and missing > 0, "the pictures show too little"


def test_the_command_tells_and_draws_them(served, vision, proto, tmp_path):
    _, _, address = served
    file = tmp_path / "picture.png"
    file.write_bytes(picture(2, 640, 480))
    command = [BINARY, "analyze", "--addr", f"http://{address}", "--head", "pose", str(file)]
    # The command takes its settings from variables of this prefix.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FROSTLINE_")}
    how = {"capture_output": True, "check": True, "env": environment}
    done = subprocess.run([*command, "--json", "--out", str(tmp_path / "drawn.png")], **how)
    told = json.loads(done.stdout)["heads"]["pose"]
    request = proto.vision.AnalyzeRequest(image=proto.types.Image(encoded=file.read_bytes()), heads=["pose"])
    points = array(vision.Analyze(request).results[0].keypoints)
    assert told["labels"] == LABELS and told["skeleton"] == BONES
    np.testing.assert_allclose([pose["keypoints"] for pose in told["poses"]], points, rtol=1e-5)
    text = subprocess.run(command, text=True, **how).stdout
    assert f"{(points[0, :, 2] > 0).sum()} of {POINTS} points" in text

    # Each point of the best body has its color around it; pictures are enlarged to 720 pixels.
    with Image.open(io.BytesIO((tmp_path / "drawn.png").read_bytes())) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    scale = 720 / 640
    inside = [p for p in points[0] if p[2] > 0 and 6 < p[0] < 634 and 6 < p[1] < 474]
    assert inside
    for x, y, _ in inside:
        column, row = round(x * scale), round(y * scale)
        assert abs(pixels[row - 3, column - 3] - (31, 119, 180)).max() <= 2
