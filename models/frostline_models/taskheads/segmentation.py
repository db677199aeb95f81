"""Semantic segmentation heads: linear, UperNet-like, Mask2Former-like.  Output ``logits [N, C, h, w]``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..heads import conv
from .parts import (
    Attention, EncoderLayer, Fpn, Mlp, Resample, feed_forward, pool_matrix, resize, sine_position,
)  # fmt: skip
from .spec import Spec

#: Added to the logits of attention outside a query's mask.  Finite: a query whose mask is
#: empty attends everywhere alike, as Mask2Former asks.
OUTSIDE = -1e4


class LinearSegmentation(nn.Module):
    """Every level normalized, brought to the finest and classified by one linear map."""

    task, outputs = "segmentation", ("logits",)

    def __init__(self, spec: Spec):
        super().__init__()
        self.features = spec.features
        sides = spec.sides()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in spec.channels)
        self.parts = nn.ModuleList(
            nn.Conv2d(c, spec.classes, 1, bias=i == 0) for i, c in enumerate(spec.channels)
        )
        self.ups = nn.ModuleList(resize(s, sides[0]) for s in sides)

    def forward(self, maps: list[Tensor]) -> Tensor:
        # A linear map and resampling commute: classify first, on the few cells.
        parts = (up(part(norm(m))) for up, part, norm, m in zip(self.ups, self.parts, self.norms, maps))
        return sum(parts)

    serve = forward


class UperNet(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid, all levels fused at the finest."""

    task, outputs = "segmentation", ("logits",)

    def __init__(self, spec: Spec, width: int = 256, scales: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        self.features = spec.features
        sides, last = spec.sides(), spec.channels[-1]
        scales = tuple(s for s in scales if s <= sides[-1])
        self.pools = nn.ModuleList(Resample(pool_matrix(sides[-1], s)) for s in scales)
        # Linear with ReLU: batch statistics of a single cell would be noise.
        self.pool_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(last, width, 1), nn.ReLU(inplace=True)) for _ in scales
        )
        self.pool_ups = nn.ModuleList(resize(s, sides[-1]) for s in scales)
        self.bottleneck = conv(last + len(scales) * width, width)
        self.norm = nn.BatchNorm2d(last)
        self.fpn = Fpn([*spec.channels[:-1], width], sides, width)
        self.ups = nn.ModuleList(resize(s, sides[0]) for s in sides)
        self.fuse = conv(len(sides) * width, width)
        self.logits = nn.Conv2d(width, spec.classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        last = self.norm(maps[-1])
        pooled = [
            up(layer(pool(last)))
            for up, layer, pool in zip(self.pool_ups, self.pool_convs, self.pools)
        ]
        top = self.bottleneck(torch.cat((last, *pooled), 1))
        levels = self.fpn([*maps[:-1], top])
        return self.logits(self.fuse(torch.cat([up(m) for up, m in zip(self.ups, levels)], 1)))

    serve = forward


class DecoderLayer(nn.Module):
    """Queries attend to their masks' cells, then to each other."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.cross, self.own = Attention(width, heads), Attention(width, heads)
        self.mlp = feed_forward(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, place: Tensor, cells: Tensor, at: Tensor, bias: Tensor) -> Tensor:
        x = self.norms[0](x + self.cross(x + place, cells + at, cells, bias))
        y = x + place
        x = self.norms[1](x + self.own(y, y, x))
        return self.norms[2](x + self.mlp(x))


class MaskFormer(nn.Module):
    """Mask2Former-like: queries with masked attention over the pyramid's coarse levels.

    Each query gives a class (or none) and a mask; ``serve`` sums masks weighted by class
    probability into per-class scores.
    """

    task, outputs = "segmentation", ("logits",)

    def __init__(
        self, spec: Spec, width: int = 256, queries: int = 100, layers: int = 6, heads: int = 8,
        encoder_layers: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.features, self.classes = spec.features, spec.classes
        sides = spec.sides()
        self.fpn = Fpn(spec.channels, sides, width)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads) for _ in range(encoder_layers))
        self.mask_features = nn.Conv2d(width, width, 1)
        self.query = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        coarse = list(range(len(sides) - 1, 0, -1)) or [0]  # coarsest first; the finest has the masks
        self.order = [coarse[i % len(coarse)] for i in range(layers)]
        self.level = nn.Parameter(torch.randn(len(sides), width) * 0.02)
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.label = nn.Linear(width, spec.classes + 1)
        self.embed = Mlp(width, width, width, width)
        self.shrink = nn.ModuleList(
            nn.Identity() if s == sides[0] else Resample(pool_matrix(sides[0], s)) for s in sides
        )
        self.sides = sides
        for i, side in enumerate(sides):
            self.register_buffer(f"position{i}", sine_position(side, width), persistent=False)

    def _predict(self, x: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        side = self.sides[0]
        masks = self.embed(x) @ pixels  # [N, Q, h*w]
        return self.label(x), masks.reshape(-1, int(x.shape[1]), side, side)

    def forward(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Every layer's ``(labels [N, Q, C+1], mask logits [N, Q, h, w])``, the last one last."""
        levels = self.fpn(maps)
        cells = [m.flatten(2).transpose(1, 2) for m in levels]
        top = cells[-1] + getattr(self, f"position{len(cells) - 1}")
        for layer in self.encoder:
            top = layer(top)
        cells[-1] = top
        pixels = self.mask_features(levels[0]).flatten(2)
        # Queries for every row of the batch, without asking for its size.
        x = self.query + 0 * cells[-1][:, :1]
        out = [self._predict(x, pixels)]
        for i, layer in zip(self.order, self.layers):
            inside = self.shrink[i](out[-1][1].detach().sigmoid()).flatten(2)
            bias = (inside < 0.5).to(x.dtype).unsqueeze(1) * OUTSIDE
            at = getattr(self, f"position{i}") + self.level[i]
            x = layer(x, self.place, cells[i], at, bias)
            out.append(self._predict(x, pixels))
        return out

    def serve(self, maps: list[Tensor]) -> Tensor:
        labels, masks = self.forward(maps)[-1]
        chance = labels.softmax(-1)[..., :-1].transpose(1, 2)  # [N, C, Q]
        side = self.sides[0]
        queries = int(labels.shape[1])
        return (chance @ masks.sigmoid().reshape(-1, queries, side * side)).reshape(
            -1, self.classes, side, side
        )
