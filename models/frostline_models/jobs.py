"""The training jobs of the demo: joint pretraining, heads on frozen features, fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import losses
from .dataset import Scenes, jitter, load_clips, load_scenes, scene_batch
from .features import Features
from .labels import mirrored
from .repository import make_backbone, make_head
from .train import Job

LEVELS = ("stride4", "stride8", "stride16", "stride32")


class Pretraining(nn.Module):
    """The backbone with the two dense heads that teach it."""

    def __init__(self):
        super().__init__()
        self.backbone = make_backbone()
        self.objects = make_head("objects")
        self.scene = make_head("scene")


class Whole(nn.Module):
    """A backbone and one head trained together: the ceiling that freezing is compared with."""

    def __init__(self, name: str):
        super().__init__()
        self.backbone = make_backbone()
        self.head = make_head(name)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """``images`` uint8 ``[N,S,S,3]``, or ``[N,T,S,S,3]`` for the motion head."""
        maps = dict(zip(LEVELS, self.backbone(images.flatten(0, -4))))
        maps = [maps[f] for f in self.head.features]
        if images.ndim == 5:
            maps = [m.unflatten(0, tuple(images.shape[:2])) for m in maps]
        return self.head(maps)


def tensors(batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in batch.items()}


def draw(rng: np.random.Generator, scenes: Scenes, batch: int) -> dict[str, Tensor]:
    return tensors(scene_batch(scenes, rng.integers(len(scenes), size=batch), rng))


def pretraining(data: Path, batch: int) -> Job:
    """Detection, masks and segmentation together, from scratch."""
    scenes = load_scenes(data, "train")

    def loss(model: Pretraining, rng: np.random.Generator):
        truth = draw(rng, scenes, batch)
        maps = model.backbone(truth["images"])
        objects = losses.objects_loss(model.objects, model.objects(maps), truth)
        scene = losses.scene_loss(model.scene(maps), truth["labels"])
        return objects + scene, {"objects": objects.item(), "scene": scene.item()}

    return Job(Pretraining(), loss)


def frozen_head(name: str, data: Path, cache: Path, batch: int, start: dict | None) -> Job:
    """One head on the features that the exported backbone gave."""
    head = make_head(name)
    if start:
        head.load_state_dict(start)
    features = Features(cache / ("clips-train" if name == "motion" else "scenes-train"))
    truth = load_clips(data, "train") if name == "motion" else load_scenes(data, "train")

    def loss(model: nn.Module, rng: np.random.Generator):
        index = np.sort(rng.integers(len(features), size=batch))
        maps = [torch.from_numpy(features.read(f, index)) for f in model.features]
        out = model(maps)
        if name == "motion":
            value = losses.motion_loss(out, torch.from_numpy(clip_labels(truth.motions, index)))
        else:
            value = dense_loss(model, out, tensors(scene_batch(truth, index)))
        return value, {"loss": value.item()}

    return Job(head, loss)


def clip_labels(motions: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Labels of feature rows: the clips in order, then the same clips mirrored."""
    count = len(motions)
    return np.array(
        [motions[i] if i < count else mirrored(int(motions[i - count])) for i in index]
    )


def dense_loss(head: nn.Module, out: Tensor | dict, truth: dict[str, Tensor]) -> Tensor:
    if head.task == "detection":
        return losses.objects_loss(head, out, truth)
    return losses.scene_loss(out, truth["labels"])


def fine_tuning(name: str, data: Path, batch: int, backbone: dict, head: dict) -> Job:
    """One head and its own copy of the backbone, from the frozen result onwards."""
    model = Whole(name)
    model.backbone.load_state_dict(backbone)
    model.head.load_state_dict(head)
    truth = load_clips(data, "train") if name == "motion" else load_scenes(data, "train")

    def loss(model: Whole, rng: np.random.Generator):
        if name == "motion":
            index = np.sort(rng.integers(len(truth), size=batch))
            frames, motions = jitter(rng, truth.frames[index]), truth.motions[index].copy()
            flip = np.flatnonzero(rng.random(batch) < 0.5)
            frames[flip] = frames[flip, :, :, ::-1]
            motions[flip] = [mirrored(int(m)) for m in motions[flip]]
            value = losses.motion_loss(model(torch.from_numpy(frames)), torch.from_numpy(motions))
        else:
            seen = draw(rng, truth, batch)
            value = dense_loss(model.head, model(seen["images"]), seen)
        return value, {"loss": value.item()}

    return Job(model, loss)
