"""SwinV2 in the form that is exported: everything that follows from weights alone is a constant.

``prepare`` turns a trained backbone into one whose attention layers hold their position
bias, temperature and qkv bias as tensors.  Two forms of attention exist, equal in value:

* ``matmul``: MatMul, Add, Softmax, MatMul, on ``[B, windows, heads, tokens, dim]``;
* ``fused``: ONNX's ``Attention`` operator (opset 23) with windows and heads on one axis,
  ``[B, windows * heads, tokens, dim]``, so that the shift mask is part of its bias.

The shift mask is one matrix per window.  Added to the bias it makes one tensor of
``windows * heads * tokens^2`` values a block, which for large inputs outgrows the weights;
past :data:`MERGE_BYTES` mask and bias stay apart and cost one more addition.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..swinv2 import Block, SwinV2, WindowAttention, length, merge, partition

#: Ways to write attention.
FORMS = ("matmul", "fused", "mha")

#: Largest bias with the mask added in, per block.
MERGE_BYTES = 32 << 20
#: Domain of the operators while they pass through the exporter; see ``export.finish``.
FUSED_DOMAIN = "frostline"
#: Where each of them belongs, and the first version of that domain that has it.
DOMAINS = {"Attention": "", "MultiHeadAttention": "com.microsoft"}
VERSIONS = {"Attention": 23, "MultiHeadAttention": 1}


class _Fused(torch.autograd.Function):
    """``softmax(q k' + bias) v`` on ``[B, heads, tokens, dim]``, exported as one operator."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v

    @staticmethod
    def symbolic(g, q, k, v, bias):
        out = g.op(f"{FUSED_DOMAIN}::Attention", q, k, v, bias, scale_f=1.0)
        out.setType(q.type())
        return out


class _MultiHead(torch.autograd.Function):
    """``softmax(q k' + bias) v`` on ``[B, tokens, heads * dim]``, exported as one operator."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return ((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g, q, k, v, bias, heads):
        none = g.op("prim::Constant")
        none.setType(torch._C.OptionalType.ofTensor())
        # Inputs 3 and 4 are a projection bias and a key mask.
        out = g.op(
            f"{FUSED_DOMAIN}::MultiHeadAttention", q, k, v, none, none, bias,
            num_heads_i=heads, scale_f=1.0,
        )  # fmt: skip
        out.setType(q.type())
        return out


class ExportAttention(nn.Module):
    """A :class:`WindowAttention` with its constants taken, ``[B, windows, tokens, C]`` to the same."""

    def __init__(self, source: WindowAttention, windows: int, form: str):
        super().__init__()
        self.heads, self.window, self.windows = source.heads, source.window, windows
        self.qkv, self.proj = source.qkv, source.proj
        mask, source.mask = source.mask, None
        with torch.no_grad():
            bias, scale, qkv_bias = (t.detach().clone() for t in source.constants())
        small = windows * bias.numel() * 4 <= MERGE_BYTES
        shifted = mask is not None
        if shifted and small:
            bias, mask = bias + mask.unsqueeze(1), None
        self.fused = form == "fused" and small
        # With one bias for all windows their number does not matter.
        self.many = form == "mha" and (small or not shifted)
        self.apart = self.many and shifted
        if self.fused or self.apart:
            bias = bias.expand(windows, -1, -1, -1).reshape(1, -1, *bias.shape[2:]).contiguous()
        self.register_buffer("bias", bias)
        self.register_buffer("mask", None if mask is None else mask.unsqueeze(1))
        self.register_buffer("scale", scale)
        self.register_buffer("qkv_bias", qkv_bias)

    def on_map(self, x: Tensor, size: int) -> Tensor:
        """As :meth:`WindowAttention.on_map`."""
        if not self.many:
            return merge(self(partition(x, self.window)), size, self.window)
        if not self.apart:
            rows = partition(x, self.window).reshape(-1, self.window**2, int(x.shape[-1]))
            return merge(self._many(rows, self.heads), size, self.window)
        c, w, n = int(x.shape[-1]), self.window, size // self.window
        # [row, y, column, x, C] to [y, x, (row, column, C)] and back.
        x = x.reshape(-1, n, w, n, w, c).permute(0, 2, 4, 1, 3, 5)
        x = self._many(x.reshape(-1, w * w, n * n, c), n * n * self.heads)
        return x.reshape(-1, w, w, n, n, c).permute(0, 3, 1, 4, 2, 5).reshape(-1, size, size, c)

    def _many(self, x: Tensor, heads: int) -> Tensor:
        """``[B, tokens, C]`` or ``[B, tokens, windows, C]`` with ``heads`` over all windows."""
        shape, each = [-1, *(int(v) for v in x.shape[1:])], int(x.shape[-1]) // self.heads
        tokens, width = shape[1], heads * each
        q, k, v = F.linear(x, self.qkv.weight, self.qkv_bias).split(int(x.shape[-1]), -1)
        q, k = (t.reshape(*shape[:-1], self.heads, each) for t in (q, k))
        q = q * (self.scale.reshape(self.heads, 1) / length(q))
        k = k / length(k)
        rows = [t.reshape(-1, tokens, width) for t in (q, k, v)]
        return self.proj(_MultiHead.apply(*rows, self.bias, heads).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, dim = (int(v) for v in x.shape[1:])
        each = dim // self.heads
        q, k, v = (
            part.reshape(-1, windows, tokens, self.heads, each).transpose(2, 3)
            for part in F.linear(x, self.qkv.weight, self.qkv_bias).split(dim, -1)
        )
        q = q * (self.scale / length(q))
        k = k / length(k)
        if self.fused:
            out = self._fused(q, k, v, windows, tokens, each)
        else:
            scores = q @ k.transpose(-2, -1) + self.bias
            if self.mask is not None:
                scores = scores + self.mask
            out = scores.softmax(-1) @ v
        return self.proj(out.transpose(2, 3).reshape(-1, windows, tokens, dim))

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, windows: int, tokens: int, each: int) -> Tensor:
        flat = [t.reshape(-1, windows * self.heads, tokens, each) for t in (q, k, v)]
        out = _Fused.apply(*flat, self.bias)
        return out.reshape(-1, windows, self.heads, tokens, each)


def prepare(backbone: SwinV2, form: str = "matmul") -> SwinV2:
    """Rewrites the backbone's attention for export, in place (a large one has no room for two)."""
    backbone.float().eval()
    for block in backbone.modules():
        if isinstance(block, Block):
            windows = (block.size // block.window) ** 2
            block.attn = ExportAttention(block.attn, windows, form)
    return backbone
