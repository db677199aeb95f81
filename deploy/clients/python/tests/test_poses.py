"""Poses as answers, against the messages that they come from."""

import copy
import pickle
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLES, Server
from frostline.v1 import types_pb2, vision_pb2, vision_pb2_grpc
from frostline_client import Client, Poses
from PIL import Image

sys.path.insert(0, str(ROOT / "tests/reference"))
from points import BONES, LABELS, write  # noqa: E402

SCENE = SAMPLES / "scene-1.jpg"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    write(root)
    server = Server("--repository", str(root))
    yield server
    server.stop()


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture
def found(client) -> Poses:
    return client.analyze(SCENE, heads=["pose"]).poses()


def test_they_say_what_the_message_says(server, found):
    import grpc

    with grpc.insecure_channel(server.address) as channel:
        image = types_pb2.Image(encoded=SCENE.read_bytes())
        request = vision_pb2.AnalyzeRequest(image=image, heads=["pose"])
        message = vision_pb2_grpc.VisionServiceStub(channel).Analyze(request).results[0].keypoints
    points = np.array([[[p.x, p.y, p.score] for p in pose.keypoints] for pose in message.poses], np.float32)
    assert len(found) == len(message.poses) > 1 and found.skeleton == tuple(map(tuple, BONES))
    assert found.array().dtype == np.float32 and (found.array() == points).all()
    assert [pose.score for pose in found] == [pose.score for pose in message.poses]
    assert [p.label for p in found[0].keypoints] == LABELS and found[0]["left foot"] == found[0].keypoints[3]
    with pytest.raises(KeyError, match="no point 'tail'; there are nose, left hand"):
        found[0]["tail"]


def test_they_are_a_sequence_and_travel(found):
    assert isinstance(found[1:], Poses) and list(found[1:]) == list(found)[1:] and found[1:].skeleton == found.skeleton
    assert not found[99:] and found[99:].array().shape[0] == 0
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert again == found and hash(again) == hash(found)
    assert repr(found).startswith(f"<pose: {len(found)} poses: 0.") and "of 5 points" in repr(found[0])
    table = found.to_pandas()
    assert len(table) == len(found) * len(LABELS) and list(table.label[:5]) == LABELS
    assert np.allclose(table[["x", "y", "score"]].to_numpy().reshape(found.array().shape), found.array())
    assert len(found[99:].to_pandas()) == 0


def test_they_are_drawn(found):
    with Image.open(SCENE) as opened:
        before = np.asarray(opened.convert("RGB")).astype(int)
    after = np.asarray(found.draw()).astype(int)
    assert before.shape == after.shape
    inside = [p for p in found[0].keypoints if p.score > 0 and 3 < p.x < before.shape[1] - 3 and 3 < p.y < before.shape[0] - 3]
    assert inside
    for point in inside:
        assert abs(after[int(point.y), int(point.x)] - (31, 119, 180)).max() <= 2
    assert "<table>" in found._repr_html_() and "nose" in found._repr_html_()
