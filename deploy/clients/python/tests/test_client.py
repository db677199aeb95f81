"""Both clients against a real server."""

import asyncio
import io

import grpc
import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from frostline_client import AsyncClient, Client, FrostlineError, RetryPolicy
from PIL import Image
from pycocotools import mask as coco

SCENE = SAMPLES / "scene-1.jpg"
CLIP = sorted((SAMPLES / "clip-1").iterdir())


@pytest.fixture(scope="module")
def client(server):
    with Client(server) as client:
        yield client


def test_detections(client):
    found = client.detect(SCENE, "objects")
    assert (found.head, found.version) == ("objects", "1") and len(found) > 0
    assert found.boxes().shape == (len(found), 4)
    assert (np.diff(found.scores()) <= 0).all()
    with Image.open(SCENE) as image:
        size = (image.height, image.width)
    for one in found:
        pixels = one.mask.array()
        assert pixels.shape == size and pixels.dtype == bool
        assert coco.area(one.mask.coco()) == pixels.sum() > 0
        # The mask lies where the box says, to within a cell of the head's grid.
        left, top, right, bottom = coco.toBbox(one.mask.coco()) + [0, 0, *coco.toBbox(one.mask.coco())[:2]]
        assert max(left, one.box[0]) < min(right, one.box[2])
        assert max(top, one.box[1]) < min(bottom, one.box[3])
    assert all(one.mask is None for one in client.detect(SCENE, masks=False))
    assert len(client.detect(SCENE, score_threshold=0.0, max_detections=1)) == 1
    assert found.provenance.seconds["total"] > 0


def test_an_image_may_be_a_path_bytes_or_pixels(client):
    png = io.BytesIO()
    with Image.open(SCENE) as image:
        pixels = np.asarray(image.convert("RGB"))
        image.save(png, "PNG")
    by_bytes, by_pixels = client.segment(png.getvalue()), client.segment(pixels)
    assert by_bytes.label_map.shape == pixels.shape[:2]
    assert (by_bytes.label_map == by_pixels.label_map).all()
    counts = {segment.label: segment.pixels for segment in by_bytes.segments}
    assert counts == dict(zip(*(a.tolist() for a in np.unique(by_bytes.label_map, return_counts=True))))
    with pytest.raises(ValueError, match="uint8"):
        client.segment(pixels.astype(np.float32))


def test_actions_features_and_several_heads(client):
    top = client.recognize(CLIP, top_k=3)
    assert len(top.top) == 3 and top.frames == 8
    features = client.features(SCENE, ["stride8"])
    assert list(features.maps) == ["stride8"] and features.maps["stride8"].shape == (64, 16, 16)
    both = client.analyze(SCENE, heads=["objects", "scene"])
    assert set(both.results) == {"objects", "scene"}
    assert both.provenance.backbone_rows <= 1
    assert (both["scene"].label_map == client.segment(SCENE).label_map).all()
    assert set(client.analyze(frames=CLIP).results) == {"motion", "objects", "scene"}
    with pytest.raises(ValueError):
        client.analyze()


def test_heads_come_and_go(client):
    assert [head.task for head in client.heads()] == ["action", "detection", "segmentation"]
    assert client.unload("scene").name == "scene"
    with pytest.raises(FrostlineError) as refused:
        client.segment(SCENE, "scene")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_HEAD")
    assert client.load("scene").labels[0] == "sky"
    client.segment(SCENE, "scene")


def test_refusals_name_the_field(client):
    with pytest.raises(FrostlineError) as refused:
        client.detect(b"%PDF-1.7")
    error = refused.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.field, error.retry_after) == ("INVALID_IMAGE", "image.encoded", None)
    with pytest.raises(FrostlineError) as late:
        client.detect(SCENE, timeout=1e-5)
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.healthy() and client.healthy("frostline.v1.VisionService")


async def test_asyncio(server):
    async with AsyncClient(server) as client:
        assert await client.healthy()
        scenes = sorted(SAMPLES.glob("scene-*.jpg"))
        answers = await asyncio.gather(*(client.segment(scene) for scene in scenes))
        with Client(server) as other:
            for scene, answer in zip(scenes, answers):
                assert (answer.label_map == other.segment(scene).label_map).all()
        with pytest.raises(FrostlineError, match="NOT_FOUND"):
            await client.detect(SCENE, "nobody")
        assert (await client.recognize(CLIP)).top[0].probability > 0.5


def test_nothing_listens():
    with Client("127.0.0.1:1", retry=RetryPolicy(attempts=1)) as client:
        assert not client.healthy(timeout=2.0)
        with pytest.raises(FrostlineError) as gone:
            client.heads(timeout=5.0)
        assert gone.value.code is grpc.StatusCode.UNAVAILABLE


def test_half_a_certificate_is_refused():
    with pytest.raises(ValueError, match="need TLS"):
        Client("127.0.0.1:1", cert="x.pem", key="x.key")
    with pytest.raises(ValueError, match="belong together"):
        Client("127.0.0.1:1", tls=True, cert=str(ROOT / "LICENSE"))
