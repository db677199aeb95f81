"""Action heads over the frames of a clip, each with a frame part and a clip part.

``frame`` works on single frames' maps ``[B, C, h, w]`` and gives tokens ``[B, P, D]``;
``clip`` takes the tokens of ``T`` frames, ``[N, T, P, D]``, to logits ``[N, C]``.  In a
stream the frame part runs once for each frame; ``serve`` runs both on ``[N, T, C, h, w]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .parts import (
    Attention, EncoderLayer, Resample, feed_forward, pool_matrix, sine_position, sine_time,
)  # fmt: skip
from .spec import Spec

#: What a frame's difference from the clip's mean is multiplied by before training.
START_GAIN = 2.0


class ActionHead(nn.Module, ABC):
    """What the forms share: folding frames into the batch and back."""

    task, outputs = "action", ("logits",)

    def __init__(self, spec: Spec):
        super().__init__()
        self.features, self.frames = spec.features, spec.frames

    @abstractmethod
    def frame(self, maps: list[Tensor]) -> Tensor:
        """Tokens ``[B, P, D]`` of single frames."""

    @abstractmethod
    def clip(self, tokens: Tensor) -> Tensor:
        """Logits ``[N, C]`` of clips' tokens ``[N, T, P, D]``."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        tokens = self.frame([m.reshape(-1, *(int(v) for v in m.shape[2:])) for m in maps])
        return self.clip(tokens.reshape(-1, self.frames, int(tokens.shape[1]), int(tokens.shape[2])))

    def serve(self, maps: list[Tensor]) -> Tensor:
        return self.forward(maps)


class LinearAction(ActionHead):
    """Averages over space and time, then one linear map."""

    def __init__(self, spec: Spec, dropout: float = 0.1):
        super().__init__(spec)
        total = sum(spec.channels)
        self.norm, self.dropout = nn.BatchNorm1d(total), nn.Dropout(dropout)
        self.logits = nn.Linear(total, spec.classes)

    def frame(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([m.mean((2, 3)) for m in maps], 1).unsqueeze(1)

    def clip(self, tokens: Tensor) -> Tensor:
        return self.logits(self.dropout(self.norm(tokens.mean((1, 2)))))


class FrameTokens(nn.Module):
    """Maps of one frame to ``P`` tokens of one width: each level pooled and projected."""

    def __init__(self, spec: Spec, width: int, cells: int):
        super().__init__()
        sides = [min(cells, s) for s in spec.sides()]
        self.pools = nn.ModuleList(
            nn.Identity() if s == t else Resample(pool_matrix(s, t))
            for s, t in zip(spec.sides(), sides)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in spec.channels)
        self.projections = nn.ModuleList(nn.Linear(c, width) for c in spec.channels)
        self.sides, self.count = sides, sum(s * s for s in sides)

    def forward(self, maps: list[Tensor]) -> Tensor:
        tokens = []
        for i, x in enumerate(maps):
            x = self.pools[i](x).flatten(2).transpose(1, 2)
            tokens.append(self.projections[i](self.norms[i](x)))
        return torch.cat(tokens, 1)


class ClipTokens(nn.Module):
    """Tokens of all frames ``[N, T, P, D]`` to ``[N, (T + 1) * P, D]``: the clip's mean, then what
    each frame differs from it by, all told where and when they are.

    Frames of a clip are much alike, so that what moves is a small part of each token; with the
    mean apart it is seen from the first step on, and the mean still says what there is to see.
    """

    def __init__(self, frames: int, sides: list[int], width: int):
        super().__init__()
        place = torch.cat([sine_position(s, width) for s in sides], 1)
        level = torch.cat([torch.full((s * s,), i) for i, s in enumerate(sides)])
        self.register_buffer("place", place, persistent=False)  # [1, P, D]
        self.register_buffer("level_of", level, persistent=False)
        self.level = nn.Parameter(torch.randn(len(sides), width) * 0.02)
        self.time = nn.Parameter(sine_time(frames, width)[None, :, None])
        self.mean = nn.Parameter(torch.randn(1, 1, 1, width) * 0.02)
        self.gain = nn.Parameter(torch.full((width,), START_GAIN))
        self.width, self.count = width, (frames + 1) * len(level)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(1, keepdim=True)
        x = torch.cat((mean + self.mean, (tokens - mean) * self.gain + self.time), 1)
        x = x + (self.place + self.level[self.level_of])
        return x.reshape(-1, self.count, self.width)


class TemporalTransformer(ActionHead):
    """A transformer over the tokens of all frames, read out by its class token."""

    def __init__(
        self, spec: Spec, width: int = 256, layers: int = 2, heads: int = 8, cells: int = 4,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__(spec)
        self.tokens = FrameTokens(spec, width, cells)
        self.clips = ClipTokens(spec.frames, self.tokens.sides, width)
        self.read = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm, self.logits = nn.LayerNorm(width), nn.Linear(width, spec.classes)

    def frame(self, maps: list[Tensor]) -> Tensor:
        return self.tokens(maps)

    def clip(self, tokens: Tensor) -> Tensor:
        x = self.clips(tokens)
        x = torch.cat((self.read + 0 * x[:, :1], x), 1)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x = layer(x, first=1 if i == last else None)  # only the class token is read out
        return self.logits(self.norm(x[:, 0]))


class AttentiveProbe(ActionHead):
    """Layers in which one learnt query reads the tokens of all frames; the tokens stay as they are."""

    def __init__(
        self, spec: Spec, width: int = 256, layers: int = 2, heads: int = 8, cells: int = 7,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__(spec)
        self.tokens = FrameTokens(spec, width, cells)
        self.clips = ClipTokens(spec.frames, self.tokens.sides, width)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(feed_forward(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.key_norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, spec.classes)

    def frame(self, maps: list[Tensor]) -> Tensor:
        return self.tokens(maps)

    def clip(self, tokens: Tensor) -> Tensor:
        cells = self.key_norm(self.clips(tokens))
        x = self.query + 0 * cells[:, :1]
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps)):
            x = x + attention(self.norms[2 * i](x), cells, cells)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.logits(self.dropout(self.norm(x[:, 0])))
