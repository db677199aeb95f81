"""Heads for whole images: classes, and vectors that say how alike two images are.

``linear`` is a linear probe: averages (and maxima) of each map, standardized by the training
set's own statistics, and one linear map.  ``attentive`` reads the maps' cells with learnt
queries, as attentive probes do (Bardes et al. 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .action import FrameTokens
from .parts import Attention, feed_forward, sine_position
from .spec import Spec

#: What cosines are multiplied by before their softmax while an embedding is learnt.
SCALE = 16.0


class Pooled(nn.Module):
    """Maps to one vector ``[N, D]``: the average of each, and its maximum with ``pool = "both"``."""

    def __init__(self, spec: Spec, pool: str):
        super().__init__()
        if pool not in ("average", "both"):
            raise ValueError(f"pool {pool!r}: must be average or both")
        self.both = pool == "both"
        self.width = sum(spec.channels) * (2 if self.both else 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        rows = [m.mean((2, 3)) for m in maps]
        return torch.cat(rows + [m.amax((2, 3)) for m in maps] if self.both else rows, 1)


class Classifier(nn.Module):
    """What the forms share."""

    task, outputs = "classification", ("logits",)

    def __init__(self, spec: Spec):
        super().__init__()
        self.features = spec.features

    def serve(self, maps: list[Tensor]) -> Tensor:
        return self(maps)


class LinearClassifier(Classifier):
    """Pooled features and one linear map."""

    def __init__(self, spec: Spec, pool: str = "both", dropout: float = 0.0):
        super().__init__(spec)
        self.pooled = Pooled(spec, pool)
        self.norm, self.dropout = nn.BatchNorm1d(self.pooled.width, affine=False), nn.Dropout(dropout)
        self.logits = nn.Linear(self.pooled.width, spec.classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.logits(self.dropout(self.norm(self.pooled(maps))))


class MlpClassifier(Classifier):
    """The same with a hidden layer."""

    def __init__(self, spec: Spec, pool: str = "both", width: int = 512, dropout: float = 0.5):
        super().__init__(spec)
        self.pooled = Pooled(spec, pool)
        self.norm = nn.BatchNorm1d(self.pooled.width, affine=False)
        self.layers = nn.Sequential(
            nn.Linear(self.pooled.width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, spec.classes)
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.layers(self.norm(self.pooled(maps)))


class AttentiveClassifier(Classifier):
    """Learnt queries that read the cells of all maps, beside the pooled features."""

    def __init__(
        self, spec: Spec, width: int = 256, queries: int = 4, heads: int = 8, cells: int = 7, dropout: float = 0.5,
        pool: str = "both",
    ):  # fmt: skip
        super().__init__(spec)
        self.tokens = FrameTokens(spec, width, cells)
        place = torch.cat([sine_position(s, width) for s in self.tokens.sides], 1)
        self.register_buffer("place", place, persistent=False)
        self.query = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        self.attention, self.mlp = Attention(width, heads), feed_forward(width, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.pooled = Pooled(spec, pool)
        self.norm = nn.BatchNorm1d(self.pooled.width, affine=False)
        self.dropout, self.read = nn.Dropout(dropout), queries * width
        self.logits = nn.Linear(self.pooled.width + self.read, spec.classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        cells = self.norms[0](self.tokens(maps) + self.place)
        x = self.query + 0 * cells[:, :1]
        x = x + self.attention(self.norms[1](x), cells, cells)
        x = (x + self.mlp(self.norms[2](x))).reshape(-1, self.read)
        return self.logits(self.dropout(torch.cat((self.norm(self.pooled(maps)), x), 1)))


class Embedding(nn.Module):
    """What the forms share: vectors of length 1, whose product is how alike two images are."""

    task, outputs = "embedding", ("embedding",)

    def __init__(self, spec: Spec):
        super().__init__()
        self.features = spec.features

    def serve(self, maps: list[Tensor]) -> Tensor:
        x = self(maps)
        return x / (x * x).sum(1, keepdim=True).clamp(min=1e-12).sqrt()


class PooledEmbedding(Embedding):
    """The backbone's own: each map's averages, standardized; nothing is learnt but statistics."""

    def __init__(self, spec: Spec, pool: str = "average"):
        super().__init__(spec)
        self.pooled = Pooled(spec, pool)
        self.norm = nn.BatchNorm1d(self.pooled.width, affine=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.norm(self.pooled(maps))


class LinearEmbedding(Embedding):
    """A linear map in which images of a class lie together (NormFace, Wang et al. 2017)."""

    def __init__(self, spec: Spec, pool: str = "both", width: int = 128):
        super().__init__(spec)
        self.pooled = Pooled(spec, pool)
        self.norm = nn.BatchNorm1d(self.pooled.width, affine=False)
        self.project = nn.Linear(self.pooled.width, width, bias=False)
        self.centres = nn.Parameter(torch.randn(spec.classes, width))

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.project(self.norm(self.pooled(maps)))


def loss(head: nn.Module, maps: list[Tensor], classes: Tensor) -> Tensor:
    """Cross-entropy of the classes; of an embedding, on its cosines to a learnt centre of each."""
    if isinstance(head, Classifier):
        return F.cross_entropy(head(maps), classes)
    x = head(maps)
    if isinstance(head, PooledEmbedding):
        return 0 * x.sum() + torch.zeros((), device=x.device, requires_grad=True)
    cosines = F.normalize(x) @ F.normalize(head.centres).T
    return F.cross_entropy(SCALE * cosines, classes)
