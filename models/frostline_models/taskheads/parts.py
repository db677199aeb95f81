"""Building blocks that heads share: projections, pyramids, resampling, attention."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads import conv, lateral


def resize_matrix(source: int, target: int) -> Tensor:
    """Bilinear weights ``[target, source]`` between cell centres, edges held: a constant of the
    graph, so that any size to any size is two matrix products on every provider."""
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.minimum(at.astype(int), max(source - 2, 0))
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), low] = 1 - (at - low)
    if source > 1:
        weights[np.arange(target), low + 1] += at - low
    return torch.from_numpy(weights)


def pool_matrix(source: int, target: int) -> Tensor:
    """Adaptive average pooling ``[target, source]``, as PyTorch divides the cells."""
    weights = torch.zeros(target, source)
    for i in range(target):
        start, stop = i * source // target, -(-(i + 1) * source // target)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


class Resample(nn.Module):
    """``[N, C, s, s]`` to ``[N, C, t, t]`` by a constant matrix on each axis."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix @ x @ self.matrix.t()


def resize(source: int, target: int) -> nn.Module:
    """Bilinear from ``source`` to ``target`` cells a side; nothing where they are equal."""
    if source == target:
        return nn.Identity()
    return Resample(resize_matrix(source, target))


class Fpn(nn.Module):
    """Feature pyramid: one width for every level, each with its smoothing convolution.

    ``sides`` are the maps' cells a side, finest first; neighbours need not differ by two.
    """

    def __init__(self, channels: list[int], sides: list[int], width: int):
        super().__init__()
        self.laterals = nn.ModuleList(lateral(c, width) for c in channels)
        self.ups = nn.ModuleList(resize(b, a) for a, b in zip(sides, sides[1:]))
        self.smooth = nn.ModuleList(conv(width, width) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = self.laterals[-1](maps[-1])
        out = [x]
        for level in range(len(maps) - 2, -1, -1):
            x = self.laterals[level](maps[level]) + self.ups[level](x)
            out.append(x)
        return [smooth(x) for smooth, x in zip(self.smooth, out[::-1])]


class BiFpn(nn.Module):
    """Rounds of top-down and bottom-up fusion with learnt positive weights, on an :class:`Fpn`."""

    def __init__(self, channels: list[int], sides: list[int], width: int, rounds: int = 2):
        super().__init__()
        self.fpn = Fpn(channels, sides, width)
        self.rounds, self.levels = rounds, len(channels)
        self.ups = nn.ModuleList(resize(b, a) for a, b in zip(sides, sides[1:]))
        self.downs = nn.ModuleList(
            Resample(pool_matrix(a, b)) for a, b in zip(sides, sides[1:])
        )
        count = rounds * 2 * (self.levels - 1)
        self.mix = nn.Parameter(torch.ones(count, 2))
        self.fuse = nn.ModuleList(conv(width, width) for _ in range(count))

    def _join(self, index: int, a: Tensor, b: Tensor) -> Tensor:
        weight = F.relu(self.mix[index])
        weight = weight / (weight.sum() + 1e-4)
        return self.fuse[index](a * weight[0] + b * weight[1])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = self.fpn(maps)
        index = 0
        for _ in range(self.rounds):
            for level in range(self.levels - 2, -1, -1):
                x[level] = self._join(index, x[level], self.ups[level](x[level + 1]))
                index += 1
            for level in range(1, self.levels):
                x[level] = self._join(index, x[level], self.downs[level - 1](x[level - 1]))
                index += 1
        return x


class Attention(nn.Module):
    """Multi-head attention from ``[N, Q, D]`` to ``[N, K, D]``, in plain matrix products."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide {width} channels")
        self.heads, self.each = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, int(x.shape[1]), self.heads, self.each).transpose(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """``bias`` is added to the logits, broadcast to ``[N, heads, Q, K]``."""
        q, k, v = self._split(self.q(query)), self._split(self.k(key)), self._split(self.v(value))
        scores = q @ k.transpose(-2, -1) * self.each**-0.5
        if bias is not None:
            scores = scores + bias
        out = scores.softmax(-1) @ v
        return self.out(out.transpose(1, 2).reshape(-1, int(query.shape[1]), self.heads * self.each))


def feed_forward(width: int, ratio: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer, ``[N, K, D]`` to the same."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), feed_forward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """``first``: only that many tokens are wanted (they still read all of them)."""
        y = self.norm1(x)
        wanted, query = (x, y) if first is None else (x[:, :first], y[:, :first])
        x = wanted + self.dropout(self.attention(query, y, y))
        return x + self.dropout(self.mlp(self.norm2(x)))


def sine_position(side: int, width: int) -> Tensor:
    """Fixed 2-D position code ``[1, side * side, width]``, as DETR's."""
    if width % 4:
        raise ValueError(f"{width} channels are no multiple of 4")
    axis = (torch.arange(side, dtype=torch.float32) + 0.5) / side * 2 * torch.pi
    rate = 10000 ** (-torch.arange(width // 4, dtype=torch.float32) * 4 / width)
    code = axis[:, None] * rate
    code = torch.cat((code.sin(), code.cos()), 1)  # [side, width / 2]
    y = code[:, None].expand(side, side, -1)
    x = code[None].expand(side, side, -1)
    return torch.cat((y, x), -1).reshape(1, side * side, width)


def sine_time(count: int, width: int) -> Tensor:
    """1-D position code ``[count, width]``, one turn over all positions at the fastest rate."""
    axis = (torch.arange(count, dtype=torch.float32) + 0.5) / count * 2 * torch.pi
    rate = 10000 ** (-torch.arange(width // 2, dtype=torch.float32) * 2 / width)
    code = axis[:, None] * rate
    return torch.cat((code.sin(), code.cos()), 1)


class Mlp(nn.Sequential):
    """Linear layers with ReLU between."""

    def __init__(self, *widths: int):
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])
