"""The generated world, behind the same interface as everyone's data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from .. import dataset
from ..geometry import positions
from ..labels import MOTIONS, SCENE_NAMES, THING_NAMES
from .base import Clips, Images, Things


class GeneratedScenes(Images):
    """Scenes of :mod:`frostline_models.dataset`, already of the input's size."""

    tasks = ("detection", "segmentation")

    def __init__(self, root: Path, split: str = "train", count: int = 2000, task: str = "detection"):
        self.folder = dataset.generate(Path(root), "scenes", split, count)
        self.scenes = dataset.load_scenes(Path(root), split)
        self.split, self.task = split, task
        self.labels = list(THING_NAMES if task == "detection" else SCENE_NAMES)

    def __len__(self) -> int:
        return len(self.scenes)

    def key(self, index: int) -> str:
        return f"{self.split}-{index:06d}"

    def fingerprint(self) -> str:
        return hashlib.sha256((self.folder / "done.json").read_bytes()).hexdigest()

    def image_id(self, index: int) -> int:
        return index

    def category_id(self, label: int) -> int:
        return label

    def size(self, index: int) -> tuple[int, int]:
        return dataset.SIZE, dataset.SIZE

    def image(self, index: int) -> np.ndarray:
        return np.asarray(self.scenes.images[index])

    def things(self, index: int) -> Things:
        there = np.flatnonzero(self.scenes.classes[index] >= 0)
        numbers = self.scenes.numbers[index][there]
        instances = np.asarray(self.scenes.instances[index])
        return Things(
            np.asarray(self.scenes.boxes[index][there], np.float32),
            self.scenes.classes[index][there].astype(np.int64),
            instances[None] == numbers[:, None, None],
        )

    def label_map(self, index: int) -> np.ndarray:
        return np.asarray(self.scenes.labels[index])


class GeneratedClips(Clips):
    """Clips of :mod:`frostline_models.dataset`: eight frames each, taken whole."""

    #: Mirroring turns one motion into another, so views must not.
    mirrored_classes = True

    def __init__(self, root: Path, split: str = "train", count: int = 800):
        self.folder = dataset.generate(Path(root), "clips", split, count)
        self.clips = dataset.load_clips(Path(root), split)
        self.split, self.labels = split, list(MOTIONS)

    def __len__(self) -> int:
        return len(self.clips)

    def key(self, index: int) -> str:
        return f"{self.split}-{index:06d}"

    def fingerprint(self) -> str:
        return hashlib.sha256((self.folder / "done.json").read_bytes()).hexdigest()

    def target(self, index: int) -> int:
        return int(self.clips.motions[index])

    def frames(self, index: int, count: int, stride: int | None, place: float) -> list[np.ndarray]:
        frames = self.clips.frames[index]
        return [np.asarray(frames[i]) for i in positions(len(frames), count, stride, place)]
