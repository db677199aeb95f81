"""What trains each head: ``objective(head, maps, truth)`` gives named losses to be summed.

``truth`` of a batch, in input pixels:

* detection: ``boxes`` list of ``[G, 4]``, ``classes`` list of ``[G]`` int64, and for heads with
  masks ``masks`` list of ``[G, S, S]`` float (0 or 1);
* segmentation: ``labels [N, S, S]`` int64, :data:`IGNORE` where nothing is known;
* action, classification, embedding: ``classes [N]`` int64.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..losses import box_iou_pairs, mask_losses
from . import boxes as geometry
from . import classification
from .action import ActionHead
from .detection import Dense, RoiHead, SingleStage
from .segmentation import MaskFormer

IGNORE = 255
#: Cells within this many strides of a box's centre are its positives.
RADIUS = 1.5
MOST_MASKS = 64  # positives whose masks are trained, per image
#: The single stage names things with its score alone, beside boxes and masks.
CLASS_WEIGHT = 3.0
SAMPLED_ROIS, POSITIVE_SHARE = 128, 0.25

Losses = dict[str, Tensor]
Truth = dict[str, list[Tensor] | Tensor]


def objective(head: nn.Module, maps: list[Tensor], truth: Truth) -> Losses:
    """The head's losses on a batch."""
    if isinstance(head, SingleStage):
        return single_stage(head, head(maps), truth)
    if isinstance(head, RoiHead):
        return roi(head, maps, truth)
    if isinstance(head, MaskFormer):
        return mask_former(head(maps), truth["labels"], head.classes)
    if isinstance(head, (classification.Classifier, classification.Embedding)):
        return {"class": classification.loss(head, maps, truth["classes"])}
    if isinstance(head, ActionHead):
        return {"class": F.cross_entropy(head(maps), truth["classes"], label_smoothing=0.05)}
    return {"class": segmentation(head(maps), truth["labels"])}


# === dense detection ===


def pad(truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """``boxes [N, G, 4]`` and ``classes [N, G]`` of a batch, and which of them are there."""
    counts = torch.tensor([len(b) for b in truth["boxes"]], device=truth["boxes"][0].device)
    boxes = pad_sequence(truth["boxes"], batch_first=True)
    classes = pad_sequence(truth["classes"], batch_first=True)
    if not boxes.shape[1]:
        boxes, classes = boxes.new_zeros(len(boxes), 1, 4), classes.new_zeros(len(boxes), 1)
    return boxes, classes, torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]


def assign(dense: Dense, boxes: Tensor, there: Tensor) -> Tensor:
    """The box each cell answers for, ``[N, L]``: a row of its image's ``boxes [N, G, 4]``, of
    which ``there [N, G]`` are boxes and not padding, or -1.

    A box belongs to the level whose stride suits its longer side (4 to 8 strides) and to the
    cells near its centre there, smaller boxes first; every box gets at least one cell.
    """
    strides = torch.tensor(dense.strides, dtype=boxes.dtype, device=boxes.device)
    longer = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
    level = (longer[..., None] > 8 * strides[:-1]).sum(-1)  # [N, G]
    x, y = dense.centres[:, 0, None], dense.centres[:, 1, None]  # [L, 1]
    x0, y0, x1, y1 = (boxes[:, None, :, i] for i in range(4))  # [N, 1, G]
    inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    far = torch.maximum((x - (x0 + x1) / 2).abs(), (y - (y0 + y1) / 2).abs())  # [N, L, G]
    here = (dense.steps[:, None] == strides[level][:, None]) & there[:, None]
    far = far.masked_fill(~here, float("inf"))
    nearest = far == far.amin(1, keepdim=True)
    area = geometry.areas(boxes)[:, None]
    cost = torch.where(nearest, area - 1e9, area)
    allowed = here & ((inside & (far < RADIUS * dense.steps[:, None])) | nearest)
    best, owner = cost.masked_fill(~allowed, float("inf")).min(-1)
    return torch.where(best.isinf(), -1, owner)


def dense_losses(
    dense: Dense, raw: dict[str, Tensor], truth: Truth, one_class: bool = False
) -> tuple[Losses, Tensor]:
    """Score loss towards the box's IoU (varifocal), generalized IoU of boxes; and owners."""
    boxes, classes, there = pad(truth)
    owners = assign(dense, boxes, there)
    image, cell = (owners >= 0).nonzero(as_tuple=True)
    thing = owners[image, cell]
    iou, giou = box_iou_pairs(raw["boxes"][image, cell].float(), boxes[image, thing])
    target = torch.zeros_like(raw["logits"])
    label = torch.zeros_like(thing) if one_class else classes[image, thing]
    target[image, cell, label] = iou.detach().clamp(min=0.05).to(target.dtype)
    # Only negatives are weighed down as they are learnt: with positives weighed by their gap too
    # (quality focal), boxes and masks outweigh the classes from the start.
    weight = torch.where(target > 0, target, 0.75 * raw["logits"].detach().sigmoid().square())
    score = F.binary_cross_entropy_with_logits(raw["logits"], target, weight, reduction="sum")
    box = (1 - giou).mean() if len(giou) else raw["boxes"].sum() * 0
    return {"score": score / max(1, len(image)), "box": 2 * box}, owners


def single_stage(head: SingleStage, raw: dict[str, Tensor], truth: Truth) -> Losses:
    """The dense losses and that of masks: the mean over images of the mean over their cells."""
    losses, owners = dense_losses(head.dense, raw, truth)
    losses["score"] = CLASS_WEIGHT * losses["score"]
    if not head.masks:
        return losses
    image, cell, slot, counts = _some(owners >= 0, MOST_MASKS)
    if not len(image):
        return losses | {"mask": raw["prototypes"].sum() * 0}
    thing = owners[image, cell]
    # One product per image; places beyond an image's count mix prototypes for nothing.
    cells = cell.new_zeros(len(owners), int(counts.max()))
    cells[image, slot] = cell
    mixed = geometry.take(raw["coefficients"], cells) @ raw["prototypes"].flatten(2)
    logits = mixed[image, slot].float().unflatten(1, (head.side, head.side))
    # Only the masks asked for: a full-size mask is a hundred times a box.
    most = max(len(b) for b in truth["boxes"])
    asked = torch.zeros(len(owners), most, dtype=torch.bool, device=owners.device)
    asked[image, thing] = True
    masks = torch.cat([m[a[: len(m)]] for m, a in zip(truth["masks"], asked) if len(m)])
    scale = head.size // head.side
    small = F.avg_pool2d(masks.unsqueeze(1), scale)[:, 0]
    row = (asked.flatten().cumsum(0) - 1).reshape(asked.shape)[image, thing]
    boxes = torch.cat([b[a[: len(b)]] for b, a in zip(truth["boxes"], asked) if len(b)])
    each = mask_losses(logits, small[row], boxes[row] / scale)
    losses["mask"] = (each / counts[image]).sum() / (counts > 0).sum()
    return losses


def _some(chosen: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns of up to ``most`` true entries of each row of ``chosen [N, L]``, drawn at
    random; the place of each within its row's, and how many each row has."""
    counts = chosen.sum(1)
    if int(counts.max()) > most:
        chance = torch.rand(chosen.shape, device=chosen.device).masked_fill(~chosen, -1)
        picked = torch.zeros_like(chosen)
        picked.scatter_(1, chance.topk(min(most, chosen.shape[1]), dim=1).indices, True)
        chosen = chosen & picked
        counts = chosen.sum(1)
    row, column = chosen.nonzero(as_tuple=True)
    return row, column, (chosen.cumsum(1) - 1)[row, column], counts


# === RoI heads ===


def roi(head: RoiHead, maps: list[Tensor], truth: Truth) -> Losses:
    levels, raw = head(maps)
    losses, _ = dense_losses(head.dense, raw, truth, one_class=True)
    losses = {f"proposal_{k}": v for k, v in losses.items()}
    with torch.no_grad():
        proposals = head.propose({k: v.detach() for k, v in raw.items()})
    boxes = _sample_rois(proposals, truth, head.STAGES[0][1])
    for s, stage in enumerate(head.stages):
        weights, least = head.STAGES[s]
        owner, label = _match(boxes, truth, least, head.classes)
        logits, delta = stage(levels, boxes, head.size)
        name = f"_{s + 1}" if len(head.stages) > 1 else ""
        losses[f"class{name}"] = F.cross_entropy(logits.flatten(0, 1).float(), label.flatten())
        positive = owner >= 0
        if positive.any():
            want = torch.cat([truth["boxes"][i][o[o >= 0]] for i, o in enumerate(owner)])
            goal = geometry.encode(boxes[positive], want, weights)
            value = F.smooth_l1_loss(delta[positive].float(), goal, beta=1.0, reduction="sum")
            losses[f"delta{name}"] = value / label.numel()
        else:
            losses[f"delta{name}"] = delta.sum() * 0
        if s == 0 and head.masks:
            losses["mask"] = _mask_loss(head, levels, boxes, owner, truth)
        with torch.no_grad():
            boxes = geometry.decode(boxes, delta.detach().float(), weights, float(head.size))
    return losses


def _sample_rois(proposals: Tensor, truth: Truth, least: float) -> Tensor:
    """Proposals and true boxes, ``[N, 128, 4]``: up to a quarter positives, the rest others."""
    rows = []
    for i, boxes in enumerate(truth["boxes"]):
        every = torch.cat((boxes, proposals[i]))
        overlap = geometry.iou(every, boxes).amax(1) if len(boxes) else every[:, 0] * 0
        good, other = ((overlap >= least).nonzero()[:, 0], (overlap < least).nonzero()[:, 0])
        good = good[torch.randperm(len(good), device=good.device)]
        good = good[: int(SAMPLED_ROIS * POSITIVE_SHARE)]
        other = other[torch.randperm(len(other), device=other.device)[: SAMPLED_ROIS - len(good)]]
        index = torch.cat((good, other))
        # Every image gives the same number: repeats fill up small sets.
        index = index[torch.arange(SAMPLED_ROIS, device=index.device) % len(index)]
        rows.append(every[index])
    return torch.stack(rows)


def _match(boxes: Tensor, truth: Truth, least: float, none: int) -> tuple[Tensor, Tensor]:
    """For each box ``[N, K]``: the row of its true box or -1, and its class or ``none``."""
    owners, labels = [], []
    for row, things, classes in zip(boxes, truth["boxes"], truth["classes"]):
        if not len(things):
            owners.append(torch.full((len(row),), -1, device=row.device))
            labels.append(torch.full((len(row),), none, device=row.device))
            continue
        overlap, owner = geometry.iou(row, things).max(1)
        owner = torch.where(overlap >= least, owner, -1)
        owners.append(owner)
        labels.append(torch.where(owner >= 0, classes[owner.clamp(min=0)], none))
    return torch.stack(owners), torch.stack(labels)


def _mask_loss(
    head: RoiHead, levels: list[Tensor], boxes: Tensor, owner: Tensor, truth: Truth
) -> Tensor:
    """Cross-entropy of box-relative masks, for an equal number of boxes of every image."""
    count = int((owner >= 0).sum(1).max())
    if not count:
        return sum(p.sum() for p in head.mask.parameters()) * 0
    order = (owner < 0).to(torch.int64).argsort(dim=1, stable=True)[:, :count]
    rois, which = geometry.take(boxes, order), owner.gather(1, order)
    labels, targets, valid = [], [], which >= 0
    side = 2 * head.mask.BINS
    for i, things in enumerate(which):
        safe = things.clamp(min=0)
        if not len(truth["classes"][i]):
            labels.append(safe * 0)
            targets.append(torch.zeros(count, side, side, device=boxes.device))
            continue
        labels.append(truth["classes"][i][safe])
        masks = truth["masks"][i][safe].unsqueeze(1).to(boxes.dtype)
        got = geometry.sample(masks, rois[i].unsqueeze(1), side, float(head.size))
        targets.append((got[:, 0] >= 0.5).to(boxes.dtype))
    logits = head.mask(levels, rois, torch.stack(labels), head.size).float()
    loss = F.binary_cross_entropy_with_logits(
        logits, torch.cat(targets).to(logits.dtype), reduction="none"
    ).mean((1, 2))
    valid = valid.flatten()
    return (loss * valid).sum() / valid.sum()


# === segmentation ===


def segmentation(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at twice the logits' resolution, labels taken at the cells' centres."""
    side = min(2 * logits.shape[-1], labels.shape[-1])
    up = F.interpolate(logits.float(), size=(side, side), mode="bilinear", align_corners=False)
    step = labels.shape[-1] // side
    labels = labels[:, step // 2 :: step, step // 2 :: step]
    if not (labels != IGNORE).any():
        return logits.sum() * 0
    return F.cross_entropy(up, labels, ignore_index=IGNORE)


def mask_former(out: list[tuple[Tensor, Tensor]], labels: Tensor, classes: int) -> Losses:
    """Hungarian matching of queries to the classes present, after every layer."""
    side = out[-1][1].shape[-1]
    step = labels.shape[-1] // side
    labels = labels[:, step // 2 :: step, step // 2 :: step]
    known = (labels != IGNORE).to(torch.float32).flatten(1)
    present = [row[row != IGNORE].unique() for row in labels]
    masks = [(row[None] == kinds[:, None, None]).float().flatten(1) for row, kinds in zip(labels, present)]
    total: Losses = {}
    for logits, maps in out:
        for name, value in _matched(logits.float(), maps.float(), present, masks, known, classes):
            total[name] = total.get(name, 0.0) + value / len(out)
    return total


def _matched(logits, maps, present, masks, known, classes):
    wanted = torch.full(logits.shape[:2], classes, device=logits.device)
    entropy, dice, count = [], [], 0
    maps = maps.flatten(2)
    for i, (kinds, truth) in enumerate(zip(present, masks)):
        if not len(kinds):
            continue
        row, column = _hungarian(logits[i], maps[i], kinds, truth, known[i])
        wanted[i, row] = kinds[column]
        got, want, where = maps[i, row], truth[column], known[i]
        pixel = F.binary_cross_entropy_with_logits(got, want, reduction="none") * where
        entropy.append((pixel.sum(1) / where.sum().clamp(min=1)).sum())
        dice.append(_dice(got.sigmoid() * where, want * where).sum())
        count += len(row)
    weight = torch.ones(classes + 1, device=logits.device)
    weight[classes] = 0.1  # most queries match nothing
    yield "class", 2 * F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)
    zero = maps.sum() * 0
    yield "mask", 5 * (torch.stack(entropy).sum() / count if count else zero)
    yield "dice", 5 * (torch.stack(dice).sum() / count if count else zero)


def _dice(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (2 * (a * b).sum(-1) + 1) / (a.sum(-1) + b.sum(-1) + 1)


@torch.no_grad()
def _hungarian(logits, maps, kinds, truth, known) -> tuple[Tensor, Tensor]:
    """The cheapest one-to-one matching of queries ``[Q]`` to classes ``[K]``."""
    chance = logits.softmax(-1)[:, kinds]
    area = known.sum().clamp(min=1)
    on, off = F.softplus(-maps) * known, F.softplus(maps) * known
    entropy = (on @ truth.T + off @ (1 - truth).T) / area
    soft, truth = maps.sigmoid() * known, truth * known
    dice = 1 - (2 * soft @ truth.T + 1) / (soft.sum(1, keepdim=True) + truth.sum(1) + 1)
    cost = (-2 * chance + 5 * entropy + 5 * dice).cpu().numpy()
    row, column = linear_sum_assignment(np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6))
    device = logits.device
    return torch.from_numpy(row).to(device), torch.from_numpy(column).to(device)
