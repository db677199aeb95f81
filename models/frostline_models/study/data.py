"""Generated data at the study's size: one-thing scenes to pretrain on, scenes and clips.

Every sample is drawn from a seed of its own; the pretraining images share no seed with the
tasks' data, and held-out data has other palettes and textures as well.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ..clips import draw_clip, letterbox_clip, render_clip
from ..dataset import FIRST_SEED
from ..labels import MOTIONS, SCENE_NAMES, THING_NAMES
from ..readers.base import Clips, Images, Things
from ..geometry import positions
from ..scenes import draw_scene, letterbox, render
from .plan import PIXELS, Plan

PRETRAIN_SEED = 5_000_000
#: At 64 pixels a thing of a fifth of the side, or one among six, is a few pixels that nobody
#: could name: scenes are of up to three things of at least a third of the shorter side.
MOST, LEAST = 3, 0.34
CHUNK = 50


class StudyScenes(Images):
    """Scenes of :data:`PIXELS` pixels, in memory; ``task`` chooses the labels' names."""

    tasks = ("detection", "segmentation")

    def __init__(self, path: Path, task: str = "detection"):
        with np.load(path) as file:
            self.arrays = {k: file[k] for k in file.files}
        self.source, self.task = path, task
        self.labels = list(THING_NAMES if task == "detection" else SCENE_NAMES)

    def __len__(self) -> int:
        return len(self.arrays["images"])

    def key(self, index: int) -> str:
        return f"{self.source.stem}-{index:06d}"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.arrays["images"].tobytes()).hexdigest()

    def image_id(self, index: int) -> int:
        return index

    def category_id(self, label: int) -> int:
        return label

    def size(self, index: int) -> tuple[int, int]:
        return PIXELS, PIXELS

    def image(self, index: int) -> np.ndarray:
        return self.arrays["images"][index]

    def subject(self, index: int) -> int:
        """The thing that an image is of (the first one drawn), for classification."""
        return int(self.arrays["subjects"][index])

    def things(self, index: int) -> Things:
        there = np.flatnonzero(self.arrays["classes"][index] >= 0)
        numbers = self.arrays["numbers"][index][there]
        return Things(
            self.arrays["boxes"][index][there],
            self.arrays["classes"][index][there].astype(np.int64),
            self.arrays["instances"][index][None] == numbers[:, None, None],
        )

    def label_map(self, index: int) -> np.ndarray:
        return self.arrays["labels"][index]


class StudyClips(Clips):
    """Clips of eight frames, in memory."""

    mirrored_classes = True

    def __init__(self, path: Path):
        with np.load(path) as file:
            self.clips, self.motions = file["frames"], file["motions"]
        self.labels = list(MOTIONS)

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, index: int) -> str:
        return f"clip-{index:06d}"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.clips.tobytes()).hexdigest()

    def target(self, index: int) -> int:
        return int(self.motions[index])

    def frames(self, index: int, count: int, stride: int | None, place: float) -> list[np.ndarray]:
        clip = self.clips[index]
        return [clip[i] for i in positions(len(clip), count, stride, place)]


def _scenes(split: str, first: int, count: int, most: int) -> dict[str, np.ndarray]:
    out = {
        "images": np.empty((count, PIXELS, PIXELS, 3), np.uint8),
        "labels": np.empty((count, PIXELS, PIXELS), np.uint8),
        "instances": np.empty((count, PIXELS, PIXELS), np.uint8),
        "boxes": np.zeros((count, MOST, 4), np.float32),
        "classes": np.full((count, MOST), -1, np.int16),
        "numbers": np.full((count, MOST), -1, np.int16),
        "subjects": np.empty(count, np.int16),
    }
    for i in range(count):
        scene = draw_scene(first + i, split, most, LEAST)
        made = letterbox(render(scene, PIXELS), PIXELS)
        out["images"][i], out["labels"][i] = made.image, made.labels
        out["instances"][i], out["subjects"][i] = made.instances, scene.things[0].label
        for j, (label, number, box) in enumerate(zip(made.classes, made.numbers, made.boxes)):
            out["classes"][i, j], out["numbers"][i, j], out["boxes"][i, j] = label, number + 1, box
    return out


def _clips(split: str, first: int, count: int) -> dict[str, np.ndarray]:
    drawn = [draw_clip(first + i, split) for i in range(count)]
    frames = [letterbox_clip(render_clip(clip, PIXELS), PIXELS) for clip in drawn]
    return {"frames": np.stack(frames), "motions": np.array([c.motion for c in drawn], np.int16)}


def files(folder: Path, plan: Plan) -> dict[str, tuple[Path, str, int, int, int | None]]:
    """``name -> (file, split, first seed, count, most things a scene; None: clips)``."""
    table = {
        "pretrain": ("train", PRETRAIN_SEED, plan.pretrain_images, 1),
        "scenes": ("train", FIRST_SEED["train"], plan.scenes, MOST),
        "heldout-scenes": ("heldout", FIRST_SEED["heldout"], plan.heldout_scenes, MOST),
        "clips": ("train", FIRST_SEED["train"], plan.clips, None),
        "heldout-clips": ("heldout", FIRST_SEED["heldout"], plan.heldout_clips, None),
    }
    return {k: (folder / f"{k}-{v[2]}.npz", *v) for k, v in table.items()}


def make(folder: Path, plan: Plan, workers: int) -> None:
    """Draws what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for name, (file, split, first, count, most) in files(folder, plan).items():
            if file.exists():
                continue
            spans = [(first + a, min(CHUNK, count - a)) for a in range(0, count, CHUNK)]
            if most is None:
                jobs = [pool.submit(_clips, split, a, n) for a, n in spans]
            else:
                jobs = [pool.submit(_scenes, split, a, n, most) for a, n in spans]
            parts = [job.result() for job in jobs]
            partial = file.with_suffix(".partial.npz")
            np.savez(partial, **{k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
            partial.rename(file)
            print(f"data: {count} {name}", flush=True)
