"""The study's pretraining tasks, all on the same images of one thing each.

* classification: the thing's name, from the averaged last map;
* dense: boxes, masks and the label map, from all maps;
* masked: the pixels of hidden 16 x 16 squares, as in SimMIM;
* none: the initial weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.sources import Backbone
from ..backbones.variants import describe
from ..geometry import Input
from ..labels import SCENE_NAMES, THING_NAMES
from ..readers import views
from ..swinv2 import SwinV2
from ..taskheads import registry
from ..taskheads.objectives import objective
from ..taskheads.spec import Spec
from ..training import loop
from ..training.samples import order
from .data import StudyScenes
from .plan import PIXELS, Plan, Unit, config

#: Side of a hidden square in pixels, and the share that is hidden.
SQUARE, HIDDEN = 16, 0.6
VIEWS = 4  # the plain one, its mirror image, and two augmented ones
#: Starting gain of the residual branches; at the official 0 an untrained block is the identity.
NORM_GAIN = 0.2


def backbone(size: str, seed: int) -> SwinV2:
    torch.manual_seed(seed)
    return SwinV2(config(size), norm_gain=NORM_GAIN)


def spec(size: str, classes: int, frames: int = 1) -> Spec:
    cfg = config(size)
    return Spec(
        tuple(f"stride{s}" for s in cfg.strides()), tuple(cfg.channels()), tuple(cfg.strides()),
        PIXELS, classes, frames,
    )  # fmt: skip


class Classification(nn.Module):
    def __init__(self, body: SwinV2):
        super().__init__()
        self.backbone = body
        width = body.cfg.channels()[-1]
        self.norm, self.logits = nn.LayerNorm(width), nn.Linear(width, len(THING_NAMES))

    def loss(self, images: Tensor, truth: dict) -> dict[str, Tensor]:
        pooled = self.backbone(images)[-1].mean((2, 3))
        return {"class": F.cross_entropy(self.logits(self.norm(pooled)), truth["subjects"])}


class DenseSupervision(nn.Module):
    def __init__(self, body: SwinV2, size: str):
        super().__init__()
        self.backbone = body
        options = {"width": 32, "depth": 1, "prototypes": 16}
        things, stuff = spec(size, len(THING_NAMES)), spec(size, len(SCENE_NAMES))
        self.things = registry.build("detection", "single-stage", things, options)
        self.stuff = registry.build("segmentation", "linear", stuff)

    def loss(self, images: Tensor, truth: dict) -> dict[str, Tensor]:
        maps = self.backbone(images)
        losses = objective(self.things, maps, truth)
        return losses | {"pixels": objective(self.stuff, maps, truth)["class"]}


class Masked(nn.Module):
    """Hidden squares are a learnt token after the patch embedding; the last map gives pixels."""

    def __init__(self, body: SwinV2):
        super().__init__()
        self.backbone = body
        self.token = nn.Parameter(torch.randn(body.cfg.dim) * 0.02)
        self.stride = body.cfg.strides()[-1]
        self.pixels = nn.Conv2d(body.cfg.channels()[-1], 3 * self.stride**2, 1)

    def loss(self, images: Tensor, truth: dict) -> dict[str, Tensor]:
        side = PIXELS // SQUARE
        rank = torch.rand(len(images), side * side).argsort(1).argsort(1)
        hidden = (rank < round(HIDDEN * side * side)).reshape(-1, 1, side, side).float()
        wanted = self.backbone.normalize(images).permute(0, 3, 1, 2)
        tokens = self.backbone.patch_embed(wanted)
        cover = F.interpolate(hidden, size=tuple(tokens.shape[1:3])).permute(0, 2, 3, 1)
        maps = self.backbone.stages(tokens * (1 - cover) + self.token * cover)
        got = F.pixel_shuffle(self.pixels(maps[-1]), self.stride)
        where = F.interpolate(hidden, size=(PIXELS, PIXELS))
        return {"pixels": ((got - wanted).abs() * where).sum() / (3 * where.sum())}


def run(unit: Unit, plan: Plan, dataset: StudyScenes, folder: Path) -> tuple[SwinV2, int]:
    """The pretrained backbone, and how many images it saw."""
    body = backbone(unit.size, plan.seed)
    if unit.pretraining == "none":
        return body, 0
    if unit.pretraining == "classification":
        model: nn.Module = Classification(body)
    elif unit.pretraining == "dense":
        model = DenseSupervision(body, unit.size)
    else:
        model = Masked(body)
    steps = loop.Plan(
        steps=plan.pretrain_steps, batch=plan.pretrain_batch, lr=plan.pretrain_lr, seed=plan.seed,
        average=0.998, log_every=20,
    )  # fmt: skip

    def batch(step: int) -> tuple[Tensor, dict]:
        rows = order(len(dataset), VIEWS, plan.pretrain_batch, step, plan.seed)
        return sample(dataset, rows, plan.seed, unit.pretraining == "dense")

    weights = loop.run(model, batch, lambda m, data: m.loss(*data), steps, folder)
    body.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    )
    return body, steps.steps * steps.batch


def sample(dataset: StudyScenes, rows: list[int], seed: int, dense: bool) -> tuple[Tensor, dict]:
    """Images and their truth; what only dense supervision reads is left out for the others."""
    images, subjects = [], []
    truth: dict[str, list] = {"labels": [], "boxes": [], "classes": [], "masks": []}
    for row in rows:
        index, number = divmod(row, VIEWS)
        at = views.view(PIXELS, PIXELS, Input(PIXELS, PIXELS), seed, index, number)
        images.append(views.pixels(dataset.image(index), at))
        subjects.append(dataset.subject(index))
        if dense:
            seen = views.things(dataset.things(index), at)
            truth["labels"].append(views.label_map(dataset.label_map(index), at).astype(np.int64))
            truth["boxes"].append(torch.from_numpy(seen.boxes))
            truth["classes"].append(torch.from_numpy(seen.classes))
            truth["masks"].append(torch.from_numpy(seen.masks.astype(np.float32)))
    out: dict = {"subjects": torch.tensor(subjects)}
    if dense:
        out |= truth | {"labels": torch.from_numpy(np.stack(truth["labels"]))}
    return torch.from_numpy(np.stack(images)), out


def for_export(body: SwinV2, unit: Unit, seed: int) -> Backbone:
    """The backbone as the exporter takes it."""
    cfg = body.cfg
    return Backbone(
        body, f"study-{unit.name}", PIXELS, cfg.strides(), cfg.channels(), describe(cfg),
        f"{unit.pretraining} pretraining of the study, seed {seed}",
    )  # fmt: skip
