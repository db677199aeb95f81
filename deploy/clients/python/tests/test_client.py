"""Both clients against a real server."""

import asyncio
import importlib.metadata
import io
import itertools
import threading

import frostline_client
import grpc
import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from frostline_client import Analysis, AsyncClient, Client, FrostlineError, RetryPolicy
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
    counts = {segment.class_index: segment.pixels for segment in by_bytes.segments}
    assert counts == dict(zip(*(a.tolist() for a in np.unique(by_bytes.label_map, return_counts=True))))
    assert by_bytes.size == pixels.shape[:2]


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


def test_what_is_no_option_is_told_before_anything_is_sent(client):
    for call in (
        lambda: client.analyze(SCENE, heads="objects"),
        lambda: client.map([SCENE], "objects"),
        lambda: client.features(SCENE, "stride8"),
    ):
        with pytest.raises(TypeError, match="a list of names, not one text"):
            call()
    with pytest.raises(TypeError, match="and 7 is none"):
        client.analyze(SCENE, heads=["objects", 7])
    with pytest.raises(TypeError, match="head is one name"):
        client.detect(SCENE, ["objects"])
    for wrong, error, says in (
        ({"score_threshold": "0.5"}, TypeError, "score_threshold is a number"),
        ({"score_threshold": [0.5]}, TypeError, "score_threshold is a number"),
        ({"max_detections": 2.5}, TypeError, "max_detections is a whole number"),
        ({"max_detections": -1}, ValueError, "max_detections must be 0 to"),
        ({"max_detections": 1 << 40}, ValueError, "max_detections must be 0 to"),
    ):
        with pytest.raises(error, match=says):
            client.detect(SCENE, **wrong)
    for size in (128, (1, 2, 3), (1.5, 2)):
        with pytest.raises(TypeError, match="size is"):
            client.features(SCENE, size=size)
    with pytest.raises(TypeError, match="top_k"):
        client.recognize(CLIP, top_k="3")
    # As numpy and tables give them.
    assert len(client.detect(SCENE, score_threshold=np.float32(0.1), max_detections=np.int64(2))) == 2
    for call in (lambda: client.detect(SCENE, priority="urgent"), lambda: client.map([SCENE], priority="urgent")):
        with pytest.raises(ValueError, match="one of 'background', 'normal', 'high', not 'urgent'"):
            call()
    assert len(client.detect(SCENE, priority="background")) == len(client.detect(SCENE, priority="high")) > 0


def test_the_backbone_and_heads_tell_what_their_manifests_say(client):
    backbone = client.backbone()
    assert (backbone.name, backbone.sizes, backbone.maps[1].name) == ("swinv2-nano-128", ((128, 128),), "stride8")
    assert len(backbone.fingerprint) == 64 and backbone.maps[1].channels == 64
    head = client.head("objects")
    assert head in client.heads() and head.metrics["box_map"] > 0.5 and head.trained and head.reads
    assert "labels" in repr(head) and len(repr(head)) < 80
    assert hash(head) == hash(client.head("objects"))
    with pytest.raises(FrostlineError, match="NOT_FOUND"):
        client.head("nobody")


def test_calls_have_ids_and_carry_what_the_caller_wants(client):
    found = client.detect(SCENE)
    assert len(found.request_id) == 32 and found.request_id != client.detect(SCENE).request_id
    # The server says it again: it has seen it.
    assert client.detect(SCENE, metadata={"X-Request-Id": "mine-1"}).request_id == "mine-1"
    assert client.analyze(SCENE, metadata=[("x-request-id", "mine-2"), ("trace-bin", b"\0\1")])["objects"].request_id == "mine-2"
    with pytest.raises(FrostlineError) as refused:
        client.detect(b"%PDF-1.7", metadata={"x-request-id": "mine-3"})
    assert refused.value.request_id == "mine-3" and refused.value.attempts == 1
    with pytest.raises(FrostlineError) as late:
        client.detect(SCENE, timeout=1e-5)
    assert len(late.value.request_id) == 32, "a call that got no answer has one too"
    for wrong, error in (
        ({"name": 7}, TypeError), ({"name": b"x"}, TypeError), ({"x-bin": "text"}, TypeError), ("name", TypeError),
        ({"na me": "x"}, ValueError), ({"name": "ä"}, ValueError), ({"grpc-timeout": "1S"}, ValueError),
    ):  # fmt: skip
        with pytest.raises(error, match="metadata"):
            client.detect(SCENE, metadata=wrong)


def test_its_version_is_the_packages():
    assert importlib.metadata.version("frostline-client") == frostline_client.__version__


def test_many_images_in_order_with_errors_as_results(client, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    scenes = sorted(SAMPLES.glob("scene-*.jpg"))
    given = [scenes[0], tmp_path / "damaged.jpg", tmp_path / "none.jpg", scenes[1].read_bytes(), *scenes[2:], "a", 7]
    steps = []
    answers = list(client.map(given, ["objects"], at_once=3, progress=lambda done, total: steps.append((done, total))))
    assert len(answers) == len(given)
    assert steps == [(n, len(given)) for n in range(1, len(given) + 1)]
    for image, answer in zip(given, answers):
        if image in (given[1], given[2], "a", 7):
            assert isinstance(answer, FrostlineError) and answer.source == image
        else:
            assert isinstance(answer, Analysis) and answer.detections() == client.detect(image, "objects")
            assert answer.image == (image if not isinstance(image, bytes) else None)
    assert answers[1].reason == "INVALID_IMAGE" and len(answers[1].request_id) == 32
    assert isinstance(answers[2].__cause__, FileNotFoundError) and "none.jpg" in str(answers[2])
    assert isinstance(answers[-1].__cause__, TypeError)
    by_folder = list(client.map(SAMPLES, ["objects"]))
    assert [answer.image for answer in by_folder] == scenes
    for wrong in (scenes[0], b"bytes", 7):
        with pytest.raises((TypeError, ValueError), match="map takes a folder or images"):
            client.map(wrong)
    with pytest.raises(ValueError, match="at_once"):
        client.map(scenes, at_once=0)


def test_map_takes_no_more_than_it_needs_and_can_be_left(client):
    taken, under_way, most, lock = [], set(), [], threading.Lock()

    class Watched:
        def __init__(self, number):
            self.number = number

        def read(self, size=-1):
            with lock:
                under_way.add(self.number)
                most.append(len(under_way))
            data = SCENE.read_bytes()
            with lock:
                under_way.discard(self.number)
            return data

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield Watched(number)

    answers = client.map(endless(), ["objects"], at_once=2)
    for _ in range(5):
        assert len(next(answers).detections()) > 0
    answers.close()
    assert len(taken) <= 5 + 2 * 2 and max(most) <= 2


async def test_asyncio_maps_too(server):
    async with AsyncClient(server) as client:
        scenes = sorted(SAMPLES.glob("scene-*.jpg"))
        answers = [answer async for answer in client.map([*scenes, b"%PDF"], ["scene"], at_once=3)]
        assert [answer.image for answer in answers[:-1]] == scenes
        assert answers[-1].reason == "INVALID_IMAGE" and answers[-1].source == b"%PDF"
        part = client.map((scene for scene in itertools.cycle(scenes)), at_once=2)
        assert isinstance(await anext(part), Analysis)
        await part.aclose()


def test_an_asyncio_client_may_be_made_outside_of_a_loop_and_used_in_several(server):
    client = AsyncClient(server)

    async def use():
        return [head.name for head in await client.heads()]

    assert [asyncio.run(use()) for _ in range(5)] == [["motion", "objects", "scene"]] * 5

    async def end():
        await use()
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await use()

    asyncio.run(end())


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
    with pytest.raises(ValueError, match="http://"):
        Client("http://127.0.0.1:1", tls=True)


def test_addresses(server):
    """One, lists of them as gRPC writes them and as Python does, names with several, URLs."""
    for address in (
        server, f"ipv4:{server}", f"ipv4:{server},{server}", [server, server], (server,), f"dns:///{server}",
        f"http://{server}", f"http://{server}/",
    ):  # fmt: skip
        with Client(address, retry=RetryPolicy(attempts=1)) as client:
            assert len(client.heads()) == 3 and client.healthy(), address
            assert len(client.detect(SCENE)) > 0
    for wrong in ([], ["localhost:1"], ["127.0.0.1:1", "[::1]:1"], ""):
        with pytest.raises(ValueError, match="address"):
            Client(wrong)


def test_tokens_are_taken_as_files_have_them():
    client = Client("127.0.0.1:1", token=" frl_secret\n")
    assert client._metadata == (("authorization", "Bearer frl_secret"),)
    assert "secret" not in repr(client) and "secret" not in repr(client._link._target)
    for wrong in ("frl_one\nfrl_two", "frl_ä", " \n"):
        with pytest.raises(ValueError, match="token") as refused:
            Client("127.0.0.1:1", token=wrong)
        assert "frl" not in str(refused.value)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.heads()
