"""Live frames with the asyncio client, against a real server."""

import asyncio

import numpy as np
import pytest
from conftest import SAMPLES
from frostline_client import AsyncClient, FrameDone, FrostlineError, StreamHead, StreamResult, StreamStatus
from PIL import Image

SCENE = SAMPLES / "scene-1.jpg"
CLIP = sorted((SAMPLES / "clip-1").iterdir())


async def _rest(stream):
    answers = []
    async for answer in stream:
        answers.append(answer)
    return answers


def test_frames_are_answered_as_calls_are(server):
    async def run():
        async with AsyncClient(server) as client:
            alone = await client.detect(SCENE, "objects")
            async with client.stream(["objects", "scene"], policy="wait", name="door") as stream:
                assert stream.backbone == alone.provenance.backbone
                with Image.open(SCENE) as image:
                    pixels = np.asarray(image.convert("RGB"))
                assert [await stream.send(SCENE), await stream.send(pixels)] == [1, 2]
                await stream.end()
                answers = await _rest(stream)
            return alone, answers

    alone, answers = asyncio.run(run())
    results = [a for a in answers if isinstance(a, StreamResult)]
    assert sorted((r.frame_id, r.result.head) for r in results) == [
        (1, "objects"), (1, "scene"), (2, "objects"), (2, "scene"),
    ]  # fmt: skip
    found = next(r.result for r in results if (r.frame_id, r.result.head) == (1, "objects"))
    assert found.detections == alone.detections
    done = [a for a in answers if isinstance(a, FrameDone)]
    words = sorted((d.frame_id, d.outcome, d.results, d.backbone_rows) for d in done)
    assert words == [(1, "answered", 2, 1), (2, "answered", 2, 1)]
    status = answers[-1]
    assert isinstance(status, StreamStatus)
    assert (status.state, status.frames_offered, status.frames) == ("ending", 2, {"answered": 2})


def test_clips_and_mistakes(server):
    async def run():
        async with AsyncClient(server) as client:
            head = StreamHead("motion", stride=1, hop=1, top_k=1)
            async with client.stream([head], policy="wait") as stream:
                for path in CLIP:
                    await stream.send(path)
                await stream.send(b"no image")
                await stream.end()
                return await _rest(stream), await client.recognize(CLIP)

    answers, alone = asyncio.run(run())
    clip = next(a for a in answers if isinstance(a, StreamResult))
    frames = len(clip.clip_frame_ids)
    assert clip.clip_frame_ids == tuple(range(1, frames + 1))
    if len(CLIP) == frames:
        assert clip.result.top[0].label == alone.top[0].label
    bad = next(a for a in answers if isinstance(a, FrameDone) and a.frame_id == len(CLIP) + 1)
    assert bad.outcome == "bad_image" and bad.error.reason == "INVALID_IMAGE"


def test_settings_change_and_those_that_do_not_hold_are_refused(server):
    async def run():
        async with AsyncClient(server) as client:
            with pytest.raises(FrostlineError) as refused:
                async with client.stream(["nothing"]):
                    pass
            assert (refused.value.reason, refused.value.field) == ("UNKNOWN_HEAD", "start.settings.heads[0].name")
            async with client.stream(["scene"], policy="wait") as stream:
                reading = asyncio.create_task(_rest(stream))
                with pytest.raises(FrostlineError, match="nothing"):
                    await stream.update(["nothing"])
                await stream.update(["objects"], policy="wait")
                await stream.send(SCENE)
                await stream.end()
                return await reading

    answers = asyncio.run(run())
    assert [a.result.head for a in answers if isinstance(a, StreamResult)] == ["objects"]
