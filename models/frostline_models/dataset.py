"""Generated data on disk: scenes and clips as memory-mapped uint8 arrays, by split.

A data set is a folder of ``.npy`` files plus ``done.json``, written last, that
holds the numbers it was made from; a folder without it is made again.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from .clips import draw_clip, letterbox_clip, render_clip
from .labels import FRAMES
from .scenes import draw_scene, letterbox, render

MOST_THINGS = 6
SIZE = 128
#: First seed of each split; far enough apart that no seed is in two splits.
FIRST_SEED = {"train": 1_000_000, "heldout": 9_000_000}


@dataclass
class Scenes:
    """``images [N,S,S,3]``, ``labels [N,S,S]``, ``instances [N,S,S]``, ``boxes [N,6,4]``,
    ``classes [N,6]`` (-1: none), ``numbers [N,6]`` (the instance's value in the map)."""

    images: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class Clips:
    """``frames [N,T,S,S,3]`` uint8 and ``motions [N]``."""

    frames: np.ndarray
    motions: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


def _scene_arrays(count: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        "images": ((count, SIZE, SIZE, 3), "uint8"),
        "labels": ((count, SIZE, SIZE), "uint8"),
        "instances": ((count, SIZE, SIZE), "uint8"),
        "boxes": ((count, MOST_THINGS, 4), "float32"),
        "classes": ((count, MOST_THINGS), "int16"),
        "numbers": ((count, MOST_THINGS), "int16"),
    }


def _clip_arrays(count: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"frames": ((count, FRAMES, SIZE, SIZE, 3), "uint8"), "motions": ((count,), "int16")}


_ARRAYS = {"scenes": _scene_arrays, "clips": _clip_arrays}


def _open(folder: Path, name: str, mode: str = "r") -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode=mode)


def _fill_scenes(folder: Path, split: str, start: int, stop: int) -> None:
    arrays = {name: _open(folder, name, "r+") for name in _scene_arrays(0)}
    for i in range(start, stop):
        made = letterbox(render(draw_scene(FIRST_SEED[split] + i, split), SIZE), SIZE)
        arrays["images"][i] = made.image
        arrays["labels"][i] = made.labels
        arrays["instances"][i] = made.instances
        arrays["classes"][i], arrays["numbers"][i] = -1, -1
        for j, (label, number, box) in enumerate(zip(made.classes, made.numbers, made.boxes)):
            arrays["classes"][i, j] = label
            arrays["numbers"][i, j] = number + 1
            arrays["boxes"][i, j] = box


def _fill_clips(folder: Path, split: str, start: int, stop: int) -> None:
    frames, motions = _open(folder, "frames", "r+"), _open(folder, "motions", "r+")
    for i in range(start, stop):
        clip = draw_clip(FIRST_SEED[split] + i, split)
        frames[i], motions[i] = letterbox_clip(render_clip(clip, SIZE), SIZE), clip.motion


_FILL = {"scenes": _fill_scenes, "clips": _fill_clips}


def generate(root: Path, kind: str, split: str, count: int, workers: int | None = None) -> Path:
    """Makes ``root/kind-split`` unless it is there already; returns the folder."""
    folder = root / f"{kind}-{split}"
    done, recipe = folder / "done.json", {"kind": kind, "split": split, "count": count}
    if done.exists() and json.loads(done.read_text()) == recipe:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for name, (shape, dtype) in _ARRAYS[kind](count).items():
        open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
    step = 100
    spans = [(i, min(i + step, count)) for i in range(0, count, step)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = [pool.submit(_FILL[kind], folder, split, a, b) for a, b in spans]
        for job in jobs:
            job.result()
    done.write_text(json.dumps(recipe))
    return folder


def load_scenes(root: Path, split: str) -> Scenes:
    folder = root / f"scenes-{split}"
    return Scenes(**{name: _open(folder, name) for name in _scene_arrays(0)})


def load_clips(root: Path, split: str) -> Clips:
    folder = root / f"clips-{split}"
    return Clips(**{name: _open(folder, name) for name in _clip_arrays(0)})


def jitter(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Random gain per channel and offset per image, for uint8 ``[B, ..., 3]`` in 0..255."""
    batch, rest = len(images), (1,) * (images.ndim - 2)
    gain = rng.uniform(0.8, 1.25, (batch, *rest, 1)) * rng.uniform(0.94, 1.06, (batch, *rest, 3))
    offset = rng.uniform(-18, 18, (batch, *rest, 1))
    out = images.astype(np.float32) * gain.astype(np.float32) + offset.astype(np.float32)
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def scene_batch(
    scenes: Scenes, index: np.ndarray, rng: np.random.Generator | None = None
) -> dict[str, np.ndarray]:
    """A batch by index; with ``rng``, flipped half of the time and with jittered colours."""
    index = np.sort(index)
    batch = {name: np.asarray(getattr(scenes, name)[index]) for name in _scene_arrays(0)}
    if rng is None:
        return batch
    flip = np.flatnonzero(rng.random(len(index)) < 0.5)
    for name in ("images", "labels", "instances"):
        batch[name][flip] = batch[name][flip, :, ::-1]
    boxes = batch["boxes"]
    boxes[flip] = np.stack(
        (SIZE - boxes[flip, :, 2], boxes[flip, :, 1], SIZE - boxes[flip, :, 0], boxes[flip, :, 3]),
        axis=-1,
    )
    batch["images"] = jitter(rng, batch["images"])
    return batch
