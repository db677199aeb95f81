"""Swin Transformer V2 backbone, parameter-compatible with the official release.

Parameter names are those of the official checkpoints (``patch_embed.proj``,
``layers.0.blocks.0.attn.cpb_mlp.0`` ...), so such a checkpoint loads with
``load_state_dict`` once ``norm``, ``head`` and the ``relative_*``/``attn_mask``
buffers are dropped.  Two things differ from the official *code*, not its numbers:

* windows keep their own axis (``[B, windows, heads, tokens, dim]``), so the
  shifted-window mask is part of the bias and needs no reshape of the batch;
* every reshape names constant sizes and one ``-1`` for the batch, so that an
  exported graph computes no shapes at run time.

Maps are NHWC inside and NCHW on return.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Largest attention temperature, ln(1 / 0.01), as in the paper.
MAX_LOGIT_SCALE = math.log(100.0)
#: Added to attention logits between tokens that a cyclic shift made neighbours; the
#: official value, finite so that a row never loses all its tokens.
MASKED = -100.0

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SwinV2Config:
    """Shape of a SwinV2: ``image_size`` in pixels (square), widths per stage double."""

    image_size: int = 128
    dim: int = 32
    depths: tuple[int, ...] = (1, 2, 4, 1)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    window: int = 8
    mlp_ratio: float = 4.0
    pretrained_windows: tuple[int, ...] = (0, 0, 0, 0)
    drop_path: float = 0.0
    #: A third norm, on the residual branch itself, after every so many blocks of a stage;
    #: 0 for none.  The paper adds it to H and G "at every 6 layers".
    extra_norm_every: int = 0

    def channels(self) -> list[int]:
        return [self.dim * 2**i for i in range(len(self.depths))]

    def strides(self) -> list[int]:
        return [4 * 2**i for i in range(len(self.depths))]

    def to_dict(self) -> dict:
        return asdict(self)


def relative_coords_table(window: int, pretrained: int = 0) -> Tensor:
    """Log-spaced relative offsets ``[(2w-1)^2, 2]``, the input of the position MLP."""
    span = torch.arange(-(window - 1), window, dtype=torch.float32)
    table = torch.stack(torch.meshgrid(span, span, indexing="ij"), dim=-1)
    table = table * 8 / max((pretrained or window) - 1, 1)
    table = torch.sign(table) * torch.log2(table.abs() + 1) / math.log2(8)
    return table.reshape(-1, 2)


def relative_position_index(window: int) -> Tensor:
    """Row of the offset table for each (query, key) pair, ``[w*w, w*w]``."""
    grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    flat = grid.flatten(1)
    offset = flat[:, :, None] - flat[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """Additive mask ``[windows, w*w, w*w]`` that keeps shifted regions apart."""
    region = torch.zeros(size, size)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, cols in enumerate(bands):
            region[rows, cols] = i * len(bands) + j
    ids = partition(region[None, :, :, None], window)[0, :, :, 0]
    return torch.where(ids[:, None, :] == ids[:, :, None], 0.0, MASKED)


def partition(x: Tensor, window: int) -> Tensor:
    """``[B, H, W, C]`` to ``[B, windows, window*window, C]``."""
    _, h, w, c = (int(v) for v in x.shape)
    rows, cols = h // window, w // window
    if rows == cols == 1:
        return x.reshape(-1, 1, window * window, c)
    x = x.reshape(-1, rows, window, cols, window * c).transpose(2, 3)
    return x.reshape(-1, rows * cols, window * window, c)


def merge(x: Tensor, size: int, window: int) -> Tensor:
    """Inverse of :func:`partition` for a square map of ``size``."""
    c, n = int(x.shape[-1]), size // window
    if n == 1:
        return x.reshape(-1, size, size, c)
    x = x.reshape(-1, n, n, window, window * c).transpose(2, 3)
    return x.reshape(-1, size, size, c)


def length(x: Tensor) -> Tensor:
    """Euclidean length of the last axis, kept; as in ``F.normalize``, never zero.

    Spelt out because the exporter turns ``F.normalize`` into shape arithmetic.
    """
    return x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


class WindowAttention(nn.Module):
    """Scaled cosine attention within windows, with log-spaced continuous position bias."""

    def __init__(self, dim: int, heads: int, window: int, pretrained: int, mask: Tensor | None):
        super().__init__()
        self.heads, self.window = heads, window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, heads, bias=False)
        )
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        table, index = relative_coords_table(window, pretrained), relative_position_index(window)
        self.register_buffer("coords_table", table, persistent=False)
        self.register_buffer("position_index", index.reshape(-1), persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        self.baked: tuple[Tensor, Tensor, Tensor] | None = None

    def position_bias(self) -> Tensor:
        """``[1 or windows, heads, tokens, tokens]``: position bias plus the shift mask."""
        tokens = self.window**2
        table = self.cpb_mlp(self.coords_table)
        bias = table[self.position_index].reshape(tokens, tokens, self.heads).permute(2, 0, 1)
        bias = 16 * torch.sigmoid(bias).unsqueeze(0)
        return bias if self.mask is None else bias + self.mask.unsqueeze(1)

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on weights alone: attention bias, temperature, qkv bias."""
        if self.baked is not None:
            return self.baked
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        # The key bias is zero: cosine attention without it is what was trained.
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        return self.position_bias(), scale, qkv_bias

    def bake(self) -> None:
        """Freezes :meth:`constants` into tensors, for export."""
        self.baked = None
        with torch.no_grad():
            self.baked = tuple(t.detach().clone() for t in self.constants())

    def on_map(self, x: Tensor, size: int) -> Tensor:
        """Attention within the windows of a square map ``[B, size, size, C]``."""
        return merge(self(partition(x, self.window)), size, self.window)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, windows, tokens, C]`` to the same shape."""
        bias, scale, qkv_bias = self.constants()
        windows, tokens, dim = (int(v) for v in x.shape[1:])
        q, k, v = (
            part.reshape(-1, windows, tokens, self.heads, dim // self.heads).transpose(2, 3)
            for part in F.linear(x, self.qkv.weight, qkv_bias).split(dim, -1)
        )
        # Temperature over length is one small tensor: cheaper than scaling a unit query.
        q = q * (scale / length(q))
        k = k / length(k)
        attention = (q @ k.transpose(-2, -1) + bias).softmax(-1)
        out = (attention @ v).transpose(2, 3).reshape(-1, windows, tokens, dim)
        return self.proj(out)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """``x + norm1(attention(x))`` then ``x + norm2(mlp(x))``, on ``[B, H, W, C]``."""

    def __init__(
        self, cfg: SwinV2Config, dim: int, heads: int, size: int, odd: bool, pre: int,
        extra_norm: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.window = min(cfg.window, size)
        if size % self.window:
            raise ValueError(f"a {size}x{size} map is not made of {self.window}x{self.window} windows")
        self.size = size
        self.shift = self.window // 2 if odd and size > self.window else 0
        mask = shift_mask(size, self.window, self.shift) if self.shift else None
        self.attn = WindowAttention(dim, heads, self.window, pre, mask)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * cfg.mlp_ratio))
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim) if extra_norm else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attn.on_map(y, self.size)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + self.norm1(y)
        x = x + self.norm2(self.mlp(x))
        return x if self.norm3 is None else self.norm3(x)


class PatchMerging(nn.Module):
    """2x2 neighbours to one token of twice the width; the norm comes after, as in V2."""

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.half = size // 2
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        c, n = int(x.shape[-1]), self.half
        # [row, 2, col, 2, C] to [row, col, (col parity, row parity, C)]: the official order.
        x = x.reshape(-1, n, 2, n, 2, c).permute(0, 1, 3, 4, 2, 5)
        return self.norm(self.reduction(x.reshape(-1, n, n, 4 * c)))


class Stage(nn.Module):
    def __init__(self, cfg: SwinV2Config, index: int):
        super().__init__()
        dim, size = cfg.channels()[index], cfg.image_size // cfg.strides()[index]
        pre, heads = cfg.pretrained_windows[index], cfg.heads[index]
        every = cfg.extra_norm_every
        self.blocks = nn.ModuleList(
            Block(cfg, dim, heads, size, bool(j % 2), pre, bool(every) and (j + 1) % every == 0)
            for j in range(cfg.depths[index])
        )
        last = index + 1 == len(cfg.depths)
        self.downsample = None if last else PatchMerging(dim, size)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinV2(nn.Module):
    """uint8 ``[B, H, W, 3]`` RGB in, one NCHW map per stage out (strides 4, 8, 16, 32)."""

    def __init__(self, cfg: SwinV2Config, norm_gain: float = 0.0):
        """``norm_gain`` starts the residual branches; the official 0 makes blocks the identity."""
        super().__init__()
        self.cfg = cfg
        self.patch_embed = PatchEmbed(cfg.dim)
        self.layers = nn.ModuleList(Stage(cfg, i) for i in range(len(cfg.depths)))
        mean = torch.tensor(IMAGENET_MEAN).mul(255).reshape(1, 1, 1, 3)
        std = torch.tensor(IMAGENET_STD).mul(255).reshape(1, 1, 1, 3)
        self.register_buffer("pixel_scale", 1 / std, persistent=False)
        self.register_buffer("pixel_offset", -mean / std, persistent=False)
        self._init(norm_gain)

    def _init(self, norm_gain: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02 if module.in_features > 2 else 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.constant_(module.norm1.weight, norm_gain)
                nn.init.constant_(module.norm2.weight, norm_gain)

    def bake(self) -> SwinV2:
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.bake()
        return self

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 to zero mean and unit deviation (ImageNet's), NHWC as it came."""
        return image.to(self.pixel_scale.dtype) * self.pixel_scale + self.pixel_offset

    def stages(self, x: Tensor) -> list[Tensor]:
        """Embedded patches ``[B, H/4, W/4, C]`` to the maps."""
        maps = []
        for stage in self.layers:
            for block in stage.blocks:
                x = block(x)
            maps.append(x.permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.stages(self.patch_embed(self.normalize(image).permute(0, 3, 1, 2)))
