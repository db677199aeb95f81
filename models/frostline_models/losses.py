"""Training losses of the three heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import ObjectsHead
from .labels import IGNORE, STUFF

#: Cells within this many pixels of a box's centre, on each axis, are its positives.
RADIUS = 12.0
#: Positives per step whose masks are trained; the rest would add cost, not information.
MOST_MASKS = 128


def assign(centres: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """The thing each cell answers for, ``[B, L]``: a row of ``boxes [B,G,4]`` or -1.

    A cell answers for the smallest box whose centre is near and which contains it;
    a box too small to contain any cell's centre gets the nearest cell.
    """
    x, y = centres[:, 0, None], centres[:, 1, None]  # [L, 1]
    x0, y0, x1, y1 = (boxes[:, None, :, i] for i in range(4))  # [B, 1, G]
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    far = torch.maximum((x - (x0 + x1) / 2).abs(), (y - (y0 + y1) / 2).abs())  # [B, L, G]
    valid = valid[:, None]
    nearest = far == far.amin(1, keepdim=True)
    area = ((x1 - x0) * (y1 - y0)).expand_as(far)
    # Nearest cells come first, so that a small box is never left without a cell.
    cost = torch.where(nearest, area - 1e6, area)
    cost = cost.masked_fill(~(((inside & (far < RADIUS)) | nearest) & valid), float("inf"))
    best, owner = cost.min(-1)
    return torch.where(best.isinf(), -1, owner)


def box_iou_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalized IoU of matching rows of two ``[P, 4]`` box lists."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    overlap = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - overlap
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    hull = hull.prod(1)
    iou = overlap / union
    return iou, iou - (hull - union) / hull


def objects_loss(head: ObjectsHead, raw: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """Score, box and mask loss.  Scores are trained towards the IoU of the box (quality
    focal loss), boxes by generalized IoU, masks by cross-entropy and Dice inside the box."""
    boxes, classes = batch["boxes"], batch["classes"].long()
    owner = assign(head.centres, boxes, classes >= 0)
    image, cell = (owner >= 0).nonzero(as_tuple=True)
    thing = owner[image, cell]
    count = max(len(image), 1)
    wanted = boxes[image, thing]
    iou, giou = box_iou_pairs(raw["boxes"][image, cell], wanted)

    target = torch.zeros_like(raw["logits"])
    target[image, cell, classes[image, thing]] = iou.detach().clamp(min=0.05)
    gap = (target - raw["logits"].sigmoid()).abs().square()
    score = F.binary_cross_entropy_with_logits(raw["logits"], target, gap.detach(), reduction="sum")

    pick = torch.randperm(len(image))[:MOST_MASKS]
    image, cell, thing, wanted = image[pick], cell[pick], thing[pick], wanted[pick]
    mask = mask_loss(
        torch.einsum("pc,pchw->phw", raw["coefficients"][image, cell], raw["prototypes"][image]),
        thing_masks(batch["instances"], batch["numbers"], image, thing),
        wanted / 4,
    )
    return score / count + 2 * (1 - giou).mean() + mask


def thing_masks(instances: Tensor, numbers: Tensor, image: Tensor, thing: Tensor) -> Tensor:
    """Coverage of each stride-4 cell by the given things, ``[P, S/4, S/4]``."""
    number = numbers.clamp(min=0).to(torch.uint8)
    every = (instances[:, None] == number[:, :, None, None]).float()
    return F.avg_pool2d(every, 4)[image, thing]


def mask_loss(logits: Tensor, target: Tensor, boxes: Tensor) -> Tensor:
    """:func:`mask_losses`, averaged over masks."""
    return mask_losses(logits, target, boxes).mean()


def mask_losses(logits: Tensor, target: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy plus Dice of each mask ``[P, h, w]`` inside its box ``[P, 4]`` (in cells)."""
    axis = torch.arange(logits.shape[-1], dtype=torch.float32, device=logits.device) + 0.5
    x0, y0, x1, y1 = (boxes[:, i, None] for i in range(4))
    cols = (axis > x0 - 0.5) & (axis < x1 + 0.5)
    rows = (axis > y0 - 0.5) & (axis < y1 + 0.5)
    crop = (rows[:, :, None] & cols[:, None, :]).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * crop).sum((1, 2)) / crop.sum((1, 2)).clamp(min=1)
    chance = logits.sigmoid() * crop
    target = target * crop
    both = (chance * target).sum((1, 2))
    dice = 1 - (2 * both + 1) / (chance.square().sum((1, 2)) + target.square().sum((1, 2)) + 1)
    return entropy + dice


def scene_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at half the input's resolution, things weighing twice what stuff does.

    Logits are upsampled as the server does; labels are subsampled at a random phase,
    so that no half-pixel offset is learnt.
    """
    up = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
    dy, dx = torch.randint(0, 2, (2,)).tolist()
    weight = torch.full((logits.shape[1],), 2.0)
    weight[: len(STUFF)] = 1.0
    return F.cross_entropy(up, labels[:, dy::2, dx::2].long(), weight, ignore_index=IGNORE)


def motion_loss(logits: Tensor, motions: Tensor) -> Tensor:
    return F.cross_entropy(logits, motions.long(), label_smoothing=0.05)
