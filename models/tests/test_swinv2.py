"""SwinV2 against a reference written from the paper, without windows or rolls."""

import math

import numpy as np
import pytest
import torch

from frostline_models import swinv2
from frostline_models.repository import make_backbone, randomize
from frostline_models.swinv2 import Block, PatchMerging, SwinV2Config


def reference_attention(attn, x: np.ndarray, window: int, shift: int) -> np.ndarray:
    """Token by token: who may attend to whom follows from positions alone."""
    weights = {k: v.detach().double().numpy() for k, v in attn.named_parameters()}
    size, dim = x.shape[0], x.shape[-1]
    heads = weights["logit_scale"].shape[0]
    bias = np.concatenate((weights["q_bias"], np.zeros(dim), weights["v_bias"]))
    q, k, v = np.split(x @ weights["qkv.weight"].T + bias, 3, axis=-1)
    scale = np.exp(np.minimum(weights["logit_scale"][:, 0, 0], math.log(100)))

    def position_bias(dy: int, dx: int) -> np.ndarray:
        offset = np.array([dy, dx]) * 8 / (window - 1)
        offset = np.sign(offset) * np.log2(np.abs(offset) + 1) / math.log2(8)
        hidden = np.maximum(weights["cpb_mlp.0.weight"] @ offset + weights["cpb_mlp.0.bias"], 0)
        return 16 / (1 + np.exp(-(weights["cpb_mlp.2.weight"] @ hidden)))

    def place(y: int, x: int):
        sy, sx = (y - shift) % size, (x - shift) % size
        return (sy // window, sx // window), (y < shift, x < shift), (sy, sx)

    out = np.zeros_like(x)
    for y in range(size):
        for col in range(size):
            window_a, wrapped_a, at_a = place(y, col)
            keys, logits = [], []
            for ky in range(size):
                for kx in range(size):
                    window_b, wrapped_b, at_b = place(ky, kx)
                    if window_a != window_b or wrapped_a != wrapped_b:
                        continue
                    keys.append((ky, kx))
                    query = q[y, col].reshape(heads, -1)
                    key = k[ky, kx].reshape(heads, -1)
                    cosine = (query * key).sum(-1)
                    cosine /= np.linalg.norm(query, axis=-1) * np.linalg.norm(key, axis=-1)
                    step = position_bias(at_a[0] - at_b[0], at_a[1] - at_b[1])
                    logits.append(cosine * scale + step)
            chance = np.exp(np.array(logits) - np.max(logits, axis=0))
            chance /= chance.sum(0)
            values = np.array([v[ky, kx].reshape(heads, -1) for ky, kx in keys])
            mixed = (chance[..., None] * values).sum(0).reshape(-1)
            out[y, col] = mixed @ weights["proj.weight"].T + weights["proj.bias"]
    return out


@pytest.mark.parametrize("odd", [False, True])
def test_block_agrees_with_the_reference(odd):
    block = Block(SwinV2Config(window=4, mlp_ratio=2.0), 8, 2, 8, odd, 0)
    randomize(block, 3).double().eval()
    if not odd:
        # Beyond the clamp.  Not with a mask: its -100, as official, is finite, and
        # cosines at the largest temperature reach as far.
        block.attn.logit_scale.data[0] = 9.0
    assert block.shift == (2 if odd else 0)
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    attended = torch.from_numpy(reference_attention(block.attn, x[0].numpy(), 4, block.shift))
    y = x + block.norm1(attended[None])
    wanted = y + block.norm2(block.mlp(y))
    torch.testing.assert_close(block(x), wanted)


def test_patch_merging_keeps_the_official_order():
    merging = randomize(PatchMerging(6, 8), 1).eval()
    x = torch.randn(2, 8, 8, 6)
    parts = x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]
    wanted = merging.norm(merging.reduction(torch.cat(parts, -1)))
    torch.testing.assert_close(merging(x), wanted)


def test_partition_and_merge_are_inverse():
    x = torch.randn(2, 12, 12, 3)
    windows = swinv2.partition(x, 4)
    torch.testing.assert_close(windows[1, 5], x[1, 4:8, 8:12].reshape(16, 3))
    torch.testing.assert_close(swinv2.merge(windows, 12, 4), x)


def test_baking_changes_nothing():
    backbone = randomize(make_backbone(), 1).eval()
    image = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        before = backbone(image)
        after = backbone.bake()(image)
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b)


def test_parameters_have_their_official_names():
    names = set(make_backbone().state_dict())
    for suffix in (
        "attn.logit_scale", "attn.q_bias", "attn.v_bias", "attn.cpb_mlp.0.weight",
        "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight", "attn.qkv.weight", "attn.proj.weight",
        "attn.proj.bias", "norm1.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc2.bias",
    ):  # fmt: skip
        assert f"layers.1.blocks.1.{suffix}" in names
    assert {"patch_embed.proj.weight", "patch_embed.norm.bias"} <= names
    assert {"layers.0.downsample.reduction.weight", "layers.2.downsample.norm.bias"} <= names
    assert not any("mask" in n or "index" in n or "table" in n for n in names)


def test_a_map_that_windows_do_not_tile_is_refused():
    with pytest.raises(ValueError, match="12x12 map"):
        Block(SwinV2Config(window=8), 8, 1, 12, False, 0)
