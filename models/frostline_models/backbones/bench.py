"""Speed of an exported backbone beside PyTorch eager and the plain exporter's graph.

All contenders take turns within one run, so that other load on the machine falls on all of
them; ratios are of medians.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..swinv2 import SwinV2
from . import export, parity, sources
from .checkpoint import to_official


def run(
    request: sources.Request, precisions: list[str], attentions: list[str], batch: int, rounds: int,
    threads: int, calibration: np.ndarray | None = None,
) -> dict[str, float]:  # fmt: skip
    """Milliseconds per image (median) of each contender, by name."""
    torch.set_num_threads(threads)
    images = parity.pictures(batch, request.size, seed=2)
    contenders: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        eager, plain = _references(request)
        tensor = torch.from_numpy(images)

        def run_eager() -> None:
            with torch.inference_mode():
                eager(tensor)

        contenders["pytorch eager"] = run_eager
        raw = Path(folder) / "plain.onnx"
        _plain_export(plain, images, raw)
        contenders["plain exporter"] = _runner(raw, images, threads)
        for precision in precisions:
            for attention in attentions:
                backbone = sources.load(request)
                out = Path(folder) / f"{precision}-{attention}"
                options = export.Options(
                    precision=precision, attention=attention, threads=threads, force=True
                )
                export.export(backbone, out, options, calibration, say=lambda _: None)
                contenders[f"{precision} {attention}"] = _runner(
                    out / "backbone.onnx", images, threads
                )
                del backbone
        times = {name: [] for name in contenders}
        for _ in range(rounds + 1):
            for name, call in contenders.items():
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
    return {k: 1000 * float(np.median(v[1:])) / batch for k, v in times.items()}


def _references(request: sources.Request) -> tuple[nn.Module, nn.Module]:
    """The model as PyTorch runs it, and as the plain exporter gets it: timm's where it can be."""
    backbone = sources.load(request)
    if not isinstance(backbone.module, SwinV2):
        return backbone.module, backbone.module
    try:
        model = timm_twin(backbone.module)
    except ImportError:
        return backbone.module, backbone.module
    return model, model


def timm_twin(backbone: SwinV2) -> nn.Module:
    """timm's SwinV2 with the same weights, behind the same uint8 input."""
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    cfg = backbone.cfg
    if cfg.extra_norm_every:
        raise ImportError("timm has no SwinV2 with extra norms")
    model = SwinTransformerV2(
        img_size=cfg.image_size, embed_dim=cfg.dim, depths=cfg.depths, num_heads=cfg.heads,
        window_size=cfg.window, mlp_ratio=cfg.mlp_ratio, num_classes=0,
        pretrained_window_sizes=cfg.pretrained_windows,
    ).eval()  # fmt: skip
    state = {}
    for key in model.state_dict():
        official = to_official({key: torch.empty(0)}, "timm")
        state[key] = backbone.state_dict()[next(iter(official))] if official else None
    model.load_state_dict({k: v for k, v in state.items() if v is not None}, strict=False)
    return sources.TimmBackbone(
        _Stages(model), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False, False
    ).eval()


class _Stages(nn.Module):
    """All four maps of a timm SwinV2, NCHW."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")


def _plain_export(module: nn.Module, images: np.ndarray, path: Path) -> None:
    """``torch.onnx.export`` as it comes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            export._Maps(module).eval(), (torch.from_numpy(images),), str(path), dynamo=False,
            opset_version=18, input_names=["image"], dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip


def _runner(path: Path, images: np.ndarray, threads: int) -> Callable[[], object]:
    session = export.open_session(path, export.Options(threads=threads))
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})


def table(times: dict[str, float]) -> str:
    """Milliseconds and ratios, for people."""
    eager, plain = times["pytorch eager"], times["plain exporter"]
    fp32 = min((v for k, v in times.items() if k.startswith("fp32")), default=None)
    lines = [f"{'':<20}{'ms/image':>10}{'x eager':>10}{'x plain':>10}{'x fp32':>10}"]
    for name, value in times.items():
        last = f"{fp32 / value:>10.2f}" if fp32 else ""
        lines.append(f"{name:<20}{value:>10.1f}{eager / value:>10.2f}{plain / value:>10.2f}{last}")
    return "\n".join(lines)
