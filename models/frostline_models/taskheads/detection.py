"""Detection heads: single-stage with prototype masks, and RoI heads with one or three stages.

Outputs ``boxes [N, K, 4]`` (xyxy, input pixels), ``scores [N, K]``, ``labels [N, K]`` (int64)
and ``masks``: over the whole input ``[N, K, s, s]`` for the single stage, over each box
``[N, K, 28, 28]`` for the RoI heads.  Heads built without masks have the first three.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..heads import conv
from .boxes import best, decode, pyramid_align, suppress, take
from .parts import BiFpn, Fpn
from .spec import Spec

OUTPUTS = ("boxes", "scores", "labels", "masks")


class Tower(nn.Module):
    """Convolutions whose weights all levels share, each level with its own norm."""

    def __init__(self, width: int, depth: int, levels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth)) for _ in range(levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        for layer, norm in zip(self.convs, self.norms[level]):
            x = torch.relu(norm(layer(x)))
        return x


class Dense(nn.Module):
    """Anchor-free predictions in every cell of every level, flattened to ``[N, L, ...]``."""

    def __init__(self, spec: Spec, strides: list[int], width: int, classes: int, extra: int, depth: int):
        super().__init__()
        self.size, self.strides = spec.size, strides
        self.tower = Tower(width, depth, len(strides))
        self.class_logits = nn.Conv2d(width, classes, 1)
        self.box_sides = nn.Conv2d(width, 4, 1)
        self.extra = nn.Conv2d(width, extra, 1) if extra else None
        self.scales = nn.Parameter(torch.zeros(len(strides)))
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.constant_(self.class_logits.bias, -math.log(99.0))
        nn.init.constant_(self.box_sides.bias, 0.7)
        centres, steps = [], []
        for stride in strides:
            axis = (torch.arange(-(-spec.size // stride), dtype=torch.float32) + 0.5) * stride
            y, x = torch.meshgrid(axis, axis, indexing="ij")
            centres.append(torch.stack((x, y), -1).reshape(-1, 2))
            steps.append(torch.full((len(centres[-1]),), float(stride)))
        self.register_buffer("centres", torch.cat(centres), persistent=False)
        self.register_buffer("steps", torch.cat(steps), persistent=False)

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """Class logits ``[N, L, C]``, boxes ``[N, L, 4]`` (not clipped), extras ``[N, L, E]``."""
        logits, sides, extras = [], [], []
        for i, x in enumerate(levels):
            x = self.tower(x, i)
            logits.append(self.class_logits(x).flatten(2))
            sides.append((self.box_sides(x) + self.scales[i]).flatten(2))
            if self.extra is not None:
                extras.append(self.extra(x).flatten(2))
        distance = torch.cat(sides, 2).transpose(1, 2).clamp(max=5.0).exp()
        near, far = (distance * self.steps.unsqueeze(-1)).split(2, -1)
        out = {
            "logits": torch.cat(logits, 2).transpose(1, 2),
            "boxes": torch.cat((self.centres - near, self.centres + far), -1),
        }
        if extras:
            out["extra"] = torch.cat(extras, 2).transpose(1, 2)
        return out


def detection_levels(spec: Spec) -> list[int]:
    """Indices of the maps that carry predictions: stride 8 and coarser, or all there are."""
    return [i for i, s in enumerate(spec.strides) if s >= 8] or list(range(len(spec.strides)))


class SingleStage(nn.Module):
    """The light head: every cell scores classes, a box, and a mix of prototype masks."""

    task, outputs, mask_space = "detection", OUTPUTS, "image"

    def __init__(
        self, spec: Spec, width: int = 64, depth: int = 2, prototypes: int = 32, keep: int = 100,
        bifpn: bool = False, masks: bool = True,
    ):  # fmt: skip
        super().__init__()
        if not masks and not bifpn:  # nothing would read the finer maps
            spec = spec.only([spec.features[i] for i in detection_levels(spec)])
        self.features, self.classes, self.size = spec.features, spec.classes, spec.size
        self.masks, self.outputs = masks, OUTPUTS if masks else OUTPUTS[:3]
        self.prototypes, self.levels = prototypes if masks else 0, detection_levels(spec)
        self.side = spec.sides()[0]
        if masks and spec.size % self.side:
            raise ValueError(f"masks need a finest map that tiles the input; {self.side} cells do not tile {spec.size} pixels")
        self.fpn = (BiFpn if bifpn else Fpn)(spec.channels, spec.sides(), width)
        strides = [spec.strides[i] for i in self.levels]
        self.dense = Dense(spec, strides, width, spec.classes, self.prototypes, depth)
        self.proto = nn.Sequential(conv(width, width), nn.Conv2d(width, prototypes, 1)) if masks else None
        self.keep = min(keep, len(self.dense.centres) * spec.classes)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """:class:`Dense`'s outputs, for masks with ``coefficients`` and ``prototypes [N, P, s, s]``."""
        levels = self.fpn(maps)
        out = self.dense([levels[i] for i in self.levels])
        if self.masks:
            out["coefficients"] = torch.tanh(out.pop("extra"))
            out["prototypes"] = self.proto(levels[0])
        return out

    def serve(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        raw = self.forward(maps)
        cells = len(self.dense.centres)
        scores, index = raw["logits"].reshape(-1, cells * self.classes).topk(self.keep, dim=1)
        cell = torch.div(index, self.classes, rounding_mode="trunc")
        labels = index - cell * self.classes
        boxes = raw["boxes"].clamp(0.0, float(self.size))
        if not self.masks:
            return take(boxes, cell), torch.sigmoid(scores), labels
        rows = torch.cat((boxes, raw["coefficients"]), -1)
        boxes, mix = take(rows, cell).split((4, self.prototypes), -1)
        masks = mix @ raw["prototypes"].reshape(-1, self.prototypes, self.side**2)
        masks = torch.sigmoid(masks).reshape(-1, self.keep, self.side, self.side)
        return boxes, torch.sigmoid(scores), labels, masks


class BoxStage(nn.Module):
    """One RoI stage: pooled cells to class logits (the last is "none") and a correction."""

    BINS = 7

    def __init__(self, width: int, hidden: int, classes: int, weights: tuple[float, float]):
        super().__init__()
        self.weights = weights
        self.layers = nn.Sequential(
            nn.Linear(width * self.BINS**2, hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.label = nn.Linear(hidden, classes + 1)
        self.delta = nn.Linear(hidden, 4)
        nn.init.normal_(self.label.weight, std=0.01)
        nn.init.normal_(self.delta.weight, std=0.001)
        nn.init.zeros_(self.delta.bias)

    def forward(self, levels: list[Tensor], boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Logits ``[N, K, C + 1]`` and deltas ``[N, K, 4]`` for boxes ``[N, K, 4]``."""
        count = int(boxes.shape[1])
        x = self.layers(pyramid_align(levels, boxes, self.BINS, size).flatten(1))
        label, delta = self.label(x), self.delta(x)
        return label.reshape(-1, count, int(label.shape[-1])), delta.reshape(-1, count, 4)


class MaskStage(nn.Module):
    """Box-relative masks ``[N * K, 28, 28]`` (logits) of the given labels."""

    BINS = 14

    def __init__(self, width: int, depth: int, classes: int):
        super().__init__()
        self.layers = nn.Sequential(*(conv(width, width) for _ in range(depth)))
        self.up = nn.ConvTranspose2d(width, width, 2, 2)
        self.weight = nn.Parameter(torch.randn(classes, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, levels: list[Tensor], boxes: Tensor, labels: Tensor, size: int) -> Tensor:
        x = self.layers(pyramid_align(levels, boxes, self.BINS, size))
        x = torch.relu(self.up(x))
        side, labels = 2 * self.BINS, labels.reshape(-1)
        # One class's filter per box, not every class's mask.
        weight = self.weight.index_select(0, labels).unsqueeze(1)
        x = weight @ x.reshape(-1, int(x.shape[1]), side * side)
        bias = self.bias.index_select(0, labels).reshape(-1, 1, 1)
        return (x + bias).reshape(-1, side, side)


class RoiHead(nn.Module):
    """Mask R-CNN style on an anchor-free proposer; with several stages, a cascade.

    Proposals come from :class:`Dense` with one class.  Each stage classifies and corrects its
    boxes; a cascade's later stages take the corrected ones and are trained at a higher IoU.
    """

    task, outputs, mask_space = "detection", OUTPUTS, "box"
    #: Of each stage: weights of its box coding and the IoU that makes a positive.
    STAGES = (((10.0, 5.0), 0.5), ((20.0, 10.0), 0.6), ((30.0, 15.0), 0.7))

    def __init__(
        self, spec: Spec, stages: int = 1, width: int = 256, hidden: int = 1024, depth: int = 4,
        proposals: int = 200, candidates: int = 1000, keep: int = 100, bifpn: bool = False, masks: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.masks, self.outputs = masks, OUTPUTS if masks else OUTPUTS[:3]
        if not 1 <= stages <= len(self.STAGES):
            raise ValueError(f"{stages} stages: from 1 to {len(self.STAGES)}")
        self.features, self.classes, self.size = spec.features, spec.classes, spec.size
        self.levels = detection_levels(spec)
        self.fpn = (BiFpn if bifpn else Fpn)(spec.channels, spec.sides(), width)
        strides = [spec.strides[i] for i in self.levels]
        self.dense = Dense(spec, strides, width, 1, 0, 2)
        self.stages = nn.ModuleList(
            BoxStage(width, hidden, spec.classes, weights) for weights, _ in self.STAGES[:stages]
        )
        self.mask = MaskStage(width, depth, spec.classes) if masks else None
        cells = len(self.dense.centres)
        self.candidates, self.proposals = min(candidates, cells), min(proposals, cells)
        self.proposals = min(self.proposals, self.candidates)
        self.keep = min(keep, self.proposals * spec.classes)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The pyramid, and the proposer's raw outputs."""
        levels = self.fpn(maps)
        return levels, self.dense([levels[i] for i in self.levels])

    def propose(self, raw: dict[str, Tensor]) -> Tensor:
        """The best boxes ``[N, K, 4]`` of the proposer, near-duplicates left out."""
        scores, index = raw["logits"][..., 0].topk(self.candidates, dim=1)
        boxes = take(raw["boxes"], index).clamp(0.0, float(self.size))
        return best(boxes, scores.sigmoid(), 0.7, self.proposals)[0]

    def serve(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        levels, raw = self.forward(maps)
        boxes = self.propose(raw)
        chance = 0.0
        for stage in self.stages:
            logits, delta = stage(levels, boxes, self.size)
            boxes = decode(boxes, delta, stage.weights, float(self.size))
            chance = chance + logits.softmax(-1)[..., :-1] / len(self.stages)
        boxes, scores, labels = self._select(boxes, chance)
        if not self.masks:
            return boxes, scores, labels
        masks = self.mask(levels, boxes, labels, self.size).sigmoid()
        side = int(masks.shape[-1])
        return boxes, scores, labels, masks.reshape(-1, self.keep, side, side)

    def _select(self, boxes: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best (box, class) pairs, overlapping ones of a class left out."""
        pairs = self.proposals * self.classes
        scores, index = chance.reshape(-1, pairs).topk(min(pairs, 3 * self.keep), dim=1)
        row = torch.div(index, self.classes, rounding_mode="trunc")
        labels = index - row * self.classes
        boxes = take(boxes, row)
        # Boxes of different classes are moved apart, so that they do not suppress each other.
        apart = boxes + (labels * (2 * self.size)).to(boxes.dtype).unsqueeze(-1)
        scores, order = suppress(apart, scores, 0.5).topk(self.keep, dim=1)
        return take(boxes, order), scores, labels.gather(1, order)
