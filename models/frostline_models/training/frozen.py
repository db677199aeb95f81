"""A head on frozen features, and the baseline that trains the backbone with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..taskheads.objectives import objective
from ..train import parameter_groups
from .cache import FeatureCache
from .loop import Plan, run
from .samples import Samples, order

#: Learning rate of a fine-tuned backbone over that of its head.
BACKBONE_RATE = 0.1


def to_device(truth: dict, device: str) -> dict:
    move = lambda v: [t.to(device) for t in v] if isinstance(v, list) else v.to(device)  # noqa: E731
    return {k: move(v) for k, v in truth.items()}


def batches(
    samples: Samples, plan: Plan, read: Callable[[list[int]], list[np.ndarray]]
) -> Callable[[int], tuple[list[Tensor], dict]]:
    """``step -> (tensors that read gives, truth)``."""

    def batch(step: int) -> tuple[list[Tensor], dict]:
        rows = order(len(samples.dataset), samples.views, plan.batch, step, plan.seed)
        return [torch.from_numpy(a) for a in read(rows)], samples.truths(rows)

    return batch


def train_head(
    head: nn.Module, samples: Samples, cache: FeatureCache, plan: Plan, folder: Path,
    stop_after: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Trains the head on cached features; PyTorch never sees the backbone."""

    def loss(model: nn.Module, data: tuple[list[Tensor], dict]) -> dict[str, Tensor]:
        maps, truth = data
        maps = [m.to(plan.device).float() for m in maps]
        return objective(model, maps, to_device(truth, plan.device))

    batch = batches(samples, plan, cache.read)
    return run(head, batch, loss, plan, folder, stop_after=stop_after)


class Whole(nn.Module):
    """Backbone and head as one model: uint8 images or clips to the head's maps and losses."""

    def __init__(self, backbone: nn.Module, names: list[str], head: nn.Module):
        super().__init__()
        self.backbone, self.head, self.names = backbone, head, names

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps of ``[N, S, S, 3]`` or ``[N, T, S, S, 3]``, as the head reads them."""
        every = dict(zip(self.names, self.backbone(images.flatten(0, -4))))
        chosen = [every[f] for f in self.head.features]
        if images.ndim == 5:
            chosen = [m.unflatten(0, tuple(images.shape[:2])) for m in chosen]
        return chosen


def fine_tune(
    backbone: nn.Module, names: list[str], head: nn.Module, samples: Samples, plan: Plan,
    folder: Path, stop_after: int | None = None, backbone_rate: float = BACKBONE_RATE,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Trains both on the images themselves; returns averaged weights of backbone and head."""
    model = Whole(backbone, names, head)

    def groups(model: Whole) -> list[dict]:
        slow = [g | {"lr_scale": backbone_rate} for g in parameter_groups(model.backbone, plan.weight_decay)]
        return [g for g in slow + parameter_groups(model.head, plan.weight_decay) if g["params"]]

    def loss(model: Whole, data: tuple[list[Tensor], dict]) -> dict[str, Tensor]:
        (images,), truth = data
        return objective(model.head, model.maps(images.to(plan.device)), to_device(truth, plan.device))

    def read(rows: list[int]) -> list[np.ndarray]:
        return [np.stack([samples.pixels(row) for row in rows])]

    weights = run(model, batches(samples, plan, read), loss, plan, folder, groups, stop_after)
    split = lambda part: {  # noqa: E731
        k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")
    }
    return split("backbone"), split("head")
