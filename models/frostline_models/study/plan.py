"""What the study runs: its factors, its cells, and how a budget becomes steps and data.

A budget is about how many minutes all cells together take on two idle cores.  It is turned into
steps and sample counts once, so that a result depends on budget and seed and not on the clock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product

from ..errors import InputError
from ..swinv2 import SwinV2Config

#: What the backbone learnt from before it was frozen.
PRETRAININGS = ("none", "masked", "classification", "dense")
TASKS = ("detection", "segmentation", "action")
CAPACITIES = ("linear", "light", "strong")
METRIC = {"detection": "box_map", "segmentation": "miou", "action": "top1"}
METRIC_NAMES = {"detection": "box mAP", "segmentation": "mIoU", "action": "top-1"}

PIXELS = 64
#: ``size -> (width of the first stage, depths, attention heads)``.
SIZES = {
    "small": (16, (1, 1, 2, 1), (1, 2, 4, 8)),
    "medium": (24, (1, 1, 2, 1), (1, 2, 4, 8)),
    "large": (40, (1, 2, 4, 1), (1, 2, 4, 8)),
}
#: ``task -> capacity -> (form, options)``.  Detection's linear head has no tower: the least
#: that still predicts boxes and masks.
HEADS: dict[str, dict[str, tuple[str, dict]]] = {
    "detection": {
        "linear": ("single-stage", {"width": 16, "depth": 0, "prototypes": 8, "keep": 30}),
        "light": ("single-stage", {"width": 32, "depth": 1, "prototypes": 16, "keep": 30}),
        "strong": ("single-stage", {"width": 56, "depth": 2, "prototypes": 32, "keep": 30}),
    },
    "segmentation": {
        "linear": ("linear", {}),
        "light": ("upernet", {"width": 32}),
        "strong": ("upernet", {"width": 56}),
    },
    "action": {
        "linear": ("linear", {}),
        "light": ("attentive-probe", {"width": 48, "layers": 1, "heads": 4, "cells": 2}),
        "strong": ("temporal-transformer", {"width": 96, "layers": 2, "heads": 4, "cells": 2}),
    },
}  # fmt: skip

FULL_BUDGET = 180.0  # minutes, to which the numbers in `plan` belong
LEAST_BUDGET = 0.5


def scaled(number: int, share: float, least: int) -> int:
    return max(least, round(number * share))


@dataclass(frozen=True)
class Plan:
    """Steps, data and rates of every cell."""

    budget: float
    seed: int
    pretrain_images: int
    scenes: int
    clips: int
    heldout_scenes: int
    heldout_clips: int
    pretrain_steps: int
    head_steps: int
    #: Boxes and classes of few cells teach less a step than labels of all pixels do.
    detection_steps: int
    pretrain_batch: int = 32
    batch: int = 16
    detection_batch: int = 8
    clip_batch: int = 8
    pretrain_lr: float = 2e-3
    head_lr: float = 2e-3
    detection_lr: float = 6e-3
    #: Learning rate of a fine-tuned backbone over its head's: pretrained, and from scratch.
    tuned_rate: float = 0.25
    scratch_rate: float = 1.0

    def to_dict(self) -> dict:
        return asdict(self)


def plan(budget: float, seed: int) -> Plan:
    """The plan of a budget in minutes."""
    if not budget >= LEAST_BUDGET:
        raise InputError(f"--budget {budget}: must be at least {LEAST_BUDGET} minutes")
    share = budget / FULL_BUDGET
    return Plan(
        budget=budget,
        seed=seed,
        pretrain_images=min(20000, scaled(22000, share, 96)),
        scenes=min(6000, scaled(6600, share, 48)),
        clips=min(2400, scaled(3300, share, 40)),
        heldout_scenes=min(500, scaled(2000, share, 24)),
        heldout_clips=min(400, scaled(2000, share, 24)),
        pretrain_steps=scaled(3300, share, 4),
        head_steps=scaled(1020, share, 4),
        detection_steps=scaled(3000, share, 4),
    )


def config(size: str) -> SwinV2Config:
    dim, depths, heads = SIZES[size]
    return SwinV2Config(
        image_size=PIXELS, dim=dim, depths=depths, heads=heads, window=8, mlp_ratio=3.0
    )


@dataclass(frozen=True)
class Unit:
    """One backbone: every cell of it needs its pretraining first."""

    pretraining: str
    size: str

    @property
    def name(self) -> str:
        return f"{self.pretraining}-{self.size}"


@dataclass(frozen=True)
class Cell:
    """One number of the study."""

    pretraining: str
    size: str
    task: str
    capacity: str
    tuned: bool

    @property
    def name(self) -> str:
        kind = "tuned" if self.tuned else "frozen"
        return f"{self.pretraining}-{self.size}-{self.task}-{self.capacity}-{kind}"


def units() -> list[Unit]:
    """Small backbones first, so that a stopped study has whole rows."""
    return [Unit(p, s) for s, p in product(SIZES, PRETRAININGS)]


def cells(unit: Unit) -> list[Cell]:
    """Every head on frozen features, and the strong ones with their backbone fine-tuned."""
    frozen = [Cell(unit.pretraining, unit.size, t, c, False) for t, c in product(TASKS, CAPACITIES)]
    return frozen + [Cell(unit.pretraining, unit.size, t, "strong", True) for t in TASKS]
