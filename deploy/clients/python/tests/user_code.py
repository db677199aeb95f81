"""A program as a user writes it, for the type checkers: each result has its type, and nothing is `Any` by accident."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt
from frostline_client import (
    Analysis,
    AsyncClient,
    Backbone,
    Classification,
    Client,
    Detection,
    Detections,
    Features,
    FrostlineError,
    Head,
    HeadFailure,
    ImageLike,
    Mask,
    Poses,
    RetryPolicy,
    Segmentation,
    Tensors,
    pictures,
)
from PIL import Image


def images(folder: Path) -> list[ImageLike]:
    pixels = np.zeros((4, 4, 3), np.uint8)
    return [
        folder / "a.jpg", "b.jpg", b"", bytearray(), memoryview(b""), io.BytesIO(), pixels, Image.new("RGB", (4, 4)),
        (folder / "c.jpg").open("rb"),
    ]  # fmt: skip


def count(client: Client, path: Path) -> dict[str, int]:
    found = client.detect(path, score_threshold=0.5, priority="high", metadata={"x-tenant": "a"})
    assert_type(found, Detections)
    assert_type(found[0], Detection)
    assert_type(found[1:], Detections)
    counts: dict[str, int] = {}
    for one in found:
        assert_type(one.score, float)
        assert_type(one.box, tuple[float, float, float, float])
        counts[one.label] = counts.get(one.label, 0) + 1
        if one.mask is not None:
            assert_type(one.mask, Mask)
            assert_type(one.mask.array(), npt.NDArray[np.bool_])
            assert_type(one.mask.area, int)
    assert_type(found.boxes(), npt.NDArray[np.float32])
    assert_type(found.draw(), Image.Image)
    assert_type(found.request_id, str)
    return counts


def several(client: Client, path: Path) -> None:
    answer = client.analyze(path, heads=["objects", "scene"])
    assert_type(answer, Analysis)
    assert_type(answer.detections("objects"), Detections)
    assert_type(answer.segmentation(), Segmentation)
    assert_type(answer.segmentation().size, tuple[int, int])
    assert_type(answer.classification(), Classification)
    assert_type(answer.tensors(), Tensors)
    for name, result in answer.results.items():
        match result:
            case Detections():
                print(name, len(result))
            case Segmentation():
                print(result.label_map.shape, result.segments[0].pixels)
            case Classification():
                print(result.top[0].probability)
            case Poses():
                print(result[0].keypoints)
            case Tensors():
                print(result.tensors)
            case HeadFailure():
                print(result.error().reason)


def folder(client: Client, path: Path) -> Iterator[str]:
    for answer in client.map(pictures(path), ["objects"], at_once=4, progress=lambda done, total: print(done, total)):
        if isinstance(answer, FrostlineError):
            assert_type(answer.retry_after, float | None)
            yield answer.reason
        else:
            assert_type(answer, Analysis)
            yield ", ".join(answer.detections().labels())


def models(client: Client) -> None:
    assert_type(client.backbone(), Backbone)
    assert_type(client.heads(), list[Head])
    assert_type(client.head("objects").metrics, dict[str, float])
    assert_type(client.features("a.jpg", ["stride8"]), Features)
    assert_type(client.recognize(["a.jpg", b""]), Classification)
    assert_type(client.recognize(np.zeros((8, 4, 4, 3), np.uint8)), Classification)
    assert_type(client.healthy(), bool)


async def asynchronous(paths: list[Path]) -> None:
    async with AsyncClient(["10.0.0.1:1"], token="t", retry=RetryPolicy(attempts=3)) as client:
        found = await asyncio.gather(*(client.detect(path) for path in paths))
        assert_type(found, list[Detections])
        async for answer in client.map(paths):
            assert_type(answer, Analysis | FrostlineError)


def misused(client: Client) -> None:
    # Each line is wrong: without its comment both checkers refuse it, with it they would complain if it were right.
    client.detect(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.detect("a.jpg", priority="urgent")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.detect("a.jpg", threshold=0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.analyze("a.jpg").detections("objects").label_map  # type: ignore[attr-defined]  # pyright: ignore
    client.detect("a.jpg")[0].name  # type: ignore[attr-defined]  # pyright: ignore
    for answer in client.map(["a.jpg"]):
        answer.detections()  # type: ignore[union-attr]  # pyright: ignore
