"""Writes the demo model repository: graphs, their hashes and manifests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from . import export
from .heads import MotionHead, ObjectsHead, SceneHead
from .labels import FRAMES, MOTIONS, SCENE_NAMES, THING_NAMES
from .swinv2 import SwinV2, SwinV2Config

CONFIG = SwinV2Config(
    image_size=128, dim=32, depths=(1, 2, 2, 1), heads=(1, 2, 4, 8), window=8, mlp_ratio=3.0
)
SIZE = CONFIG.image_size
PAD = 114

LABELS = {"objects": THING_NAMES, "scene": SCENE_NAMES, "motion": MOTIONS}
POSTPROCESS: dict[str, dict] = {
    "objects": {
        "score_threshold": 0.35,
        "nms_iou": 0.5,
        "max_detections": 50,
        "mask": "image",
        "mask_threshold": 0.5,
    },
    "scene": {},
    # Learned from clips that show a motion from beginning to end, so whole clips are what it reads.
    "motion": {"frames": FRAMES, "top_k": 5},
}


def make_backbone() -> SwinV2:
    return SwinV2(CONFIG, norm_gain=0.2)


def make_head(name: str) -> nn.Module:
    channels = CONFIG.channels()
    if name == "objects":
        return ObjectsHead(channels, len(THING_NAMES), SIZE)
    if name == "scene":
        return SceneHead(channels, len(SCENE_NAMES))
    return MotionHead(channels, len(MOTIONS), FRAMES)


def example_maps(head: nn.Module, batch: int = 2) -> list[torch.Tensor]:
    """Random maps of the shapes a head reads, to trace it with."""
    levels = {f"stride{s}": (c, SIZE // s) for s, c in zip(CONFIG.strides(), CONFIG.channels())}
    lead = (batch, FRAMES) if head.task == "action" else (batch,)
    return [torch.randn(*lead, c, s, s) for c, s in (levels[f] for f in head.features)]


def publish_backbone(demo: Path, backbone: SwinV2, checkpoint: str) -> str:
    """Exports the backbone and its manifest; returns the graph's SHA-256."""
    data = export.backbone_bytes(backbone)
    cfg = CONFIG
    table = {
        "name": f"swinv2-nano-{SIZE}",
        "version": "1",
        "file": "backbone.onnx",
        "sha256": export.sha256(data),
        "precision": "fp32",
        "source": {
            "architecture": f"SwinV2, dim {cfg.dim}, depths {'-'.join(map(str, cfg.depths))}, "
            f"heads {'-'.join(map(str, cfg.heads))}, window {cfg.window}",
            "checkpoint": checkpoint,
            "licence": "Apache-2.0",
        },
        "input": {
            "name": "image",
            "sizes": [[SIZE, SIZE]],
            "resize": "letterbox",
            "filter": "bilinear",
            "pad": PAD,
        },
        "features": [
            {"name": f"stride{s}", "stride": s, "channels": c, "layout": "NCHW"}
            for s, c in zip(cfg.strides(), cfg.channels())
        ],
    }
    export.write(demo / "backbone.onnx", data)
    export.write(demo / "backbone.toml", export.manifest(table))
    return table["sha256"]


def publish_head(
    demo: Path, name: str, head: nn.Module, backbone_sha: str, trained: dict, metrics: dict
) -> None:
    """Exports one head with its manifest beside it."""
    data = export.head_bytes(head, example_maps(head))
    table = {
        "name": name,
        "version": "1",
        "task": head.task,
        "file": "head.onnx",
        "sha256": export.sha256(data),
        "backbone": backbone_sha,
        "input_size": [SIZE, SIZE],
        "features": list(head.features),
        "labels": list(LABELS[name]),
        "postprocess": POSTPROCESS[name],
        "trained": trained,
        "metrics": metrics,
    }
    export.write(demo / "heads" / name / "head.onnx", data)
    export.write(demo / "heads" / name / "head.toml", export.manifest(table))


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Gives every gain, bias and statistic a random value, so that checks are not vacuous."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    return module
