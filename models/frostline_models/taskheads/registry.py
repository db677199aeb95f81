"""Heads by task and form, their example inputs, and their export."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import export as common
from ..errors import InputError
from .action import ActionHead, AttentiveProbe, LinearAction, TemporalTransformer
from .classification import (
    AttentiveClassifier, LinearClassifier, LinearEmbedding, MlpClassifier, PooledEmbedding,
)  # fmt: skip
from .detection import RoiHead, SingleStage
from .segmentation import LinearSegmentation, MaskFormer, UperNet
from .spec import Spec

#: ``task -> form -> (class, fixed options, what it is)``; the first form is the light one.
FORMS: dict[str, dict[str, tuple[type, dict, str]]] = {
    "detection": {
        "single-stage": (SingleStage, {}, "FPN, anchor-free, prototype masks"),
        "mask-rcnn": (RoiHead, {"stages": 1}, "FPN, proposals, RoIAlign box and mask heads"),
        "cascade": (RoiHead, {"stages": 3}, "the same with three box stages"),
    },
    "segmentation": {
        "linear": (LinearSegmentation, {}, "one linear map on normalized features"),
        "upernet": (UperNet, {}, "pyramid pooling and a fused FPN"),
        "mask2former": (MaskFormer, {}, "queries with masked attention"),
    },
    "action": {
        "linear": (LinearAction, {}, "one linear map on averages over space and time"),
        "attentive-probe": (AttentiveProbe, {}, "a query that attends to all frames' tokens"),
        "temporal-transformer": (TemporalTransformer, {}, "a transformer over all frames' tokens"),
    },
    "classification": {
        "linear": (LinearClassifier, {}, "one linear map on averages and maxima of each map"),
        "mlp": (MlpClassifier, {}, "the same with a hidden layer"),
        "attentive": (AttentiveClassifier, {}, "learnt queries that read the maps' cells, beside the same"),
    },
    "embedding": {
        "pooled": (PooledEmbedding, {}, "the maps' averages, standardized: nothing to learn but statistics"),
        "linear": (LinearEmbedding, {}, "a linear map in which images of a class lie together"),
    },
}


def build(task: str, form: str, spec: Spec, options: dict | None = None) -> nn.Module:
    """The head, untrained; ``options`` are its constructor's, unknown ones refused."""
    if task not in FORMS:
        raise InputError(f"task {task!r}: must be one of {', '.join(FORMS)}")
    if form not in FORMS[task]:
        raise InputError(f"form {form!r}: {task} has {', '.join(FORMS[task])}")
    made, fixed, _ = FORMS[task][form]
    known = [p for p in inspect.signature(made).parameters if p != "spec" and p not in fixed]
    for key in options or {}:
        if key not in known:
            raise InputError(f"head option {key!r}: {form} has {', '.join(known) or 'none'}")
    try:
        return made(spec, **fixed, **(options or {}))
    except ValueError as error:
        raise InputError(f"{task} head {form!r}: {error}") from None


def example_maps(spec: Spec, clip: bool, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Random maps of the shapes a head reads."""
    generator = torch.Generator().manual_seed(seed)
    lead = (batch, spec.frames) if clip else (batch,)
    return [torch.randn(*lead, *shape, generator=generator) for shape in spec.shapes().values()]


def graph(head: nn.Module, spec: Spec) -> bytes:
    """The head's ``serve`` as an ONNX file."""
    return common.head_bytes(head, example_maps(spec.only(head.features), head.task == "action"))


class _Part(nn.Module):
    """One half of an action head, as a head of its own for export."""

    def __init__(self, head: ActionHead, features: tuple[str, ...], output: str, part):
        super().__init__()
        self.head, self.features, self.outputs, self.part = head, features, (output,), part

    def serve(self, maps: list[Tensor]) -> Tensor:
        return self.part(self.head, maps)


def action_parts(head: ActionHead, spec: Spec) -> tuple[bytes, bytes]:
    """The frame part (maps to ``tokens [N, P, D]``) and the clip part (``tokens [N, T, P, D]``
    to ``logits``) as two ONNX files: a stream computes each frame's tokens once."""
    head = copy.deepcopy(head).float().eval()
    maps = example_maps(spec, clip=False)
    with torch.no_grad():
        tokens = head.frame(maps)
    frame = _Part(head, spec.features, "tokens", lambda h, m: h.frame(m))
    clip = _Part(head, ("tokens",), "logits", lambda h, m: h.clip(m[0]))
    clips = tokens.unsqueeze(1).repeat(1, spec.frames, 1, 1)
    return common.head_bytes(frame, maps), common.head_bytes(clip, [clips])


def postprocess(head: nn.Module, options: dict | None = None) -> dict:
    """The manifest's ``[postprocess]``; ``options`` override."""
    if head.task == "detection":
        table = {"score_threshold": 0.3, "nms_iou": 0.5, "max_detections": min(100, head.keep)}
        if "mask_threshold" in (options or {}) and not head.masks:
            raise InputError("head.postprocess.mask_threshold: the head has boxes alone")
        if head.masks:
            table |= {"mask": head.mask_space, "mask_threshold": 0.5}
    elif head.task == "action":
        table = {"frames": head.frames, "top_k": 5}
    elif head.task == "classification":
        table = {"top_k": 5}
    else:
        table = {}
    return table | (options or {})


def publish(
    repository: Path, name: str, head: nn.Module, spec: Spec, labels: list[str], backbone: str,
    trained: dict[str, str], metrics: dict[str, float], post: dict | None = None, version: str = "1",
) -> Path:  # fmt: skip
    """Writes ``heads/<name>/head.onnx`` and ``head.toml``; returns the folder."""
    if head.task == "embedding":
        labels = []  # classes only taught it
    elif len(labels) != spec.classes:
        raise InputError(f"labels: {len(labels)} names for {spec.classes} classes")
    data = graph(head, spec)
    folder = repository / "heads" / name
    table = {
        "name": name,
        "version": version,
        "task": head.task,
        "file": "head.onnx",
        "sha256": common.sha256(data),
        "backbone": backbone,
        "input_size": [spec.size, spec.size],
        "features": list(head.features),
        "labels": labels,
        "postprocess": postprocess(head, post),
        "trained": trained,
        "metrics": metrics,
    }
    common.write(folder / "head.onnx", data)
    common.write(folder / "head.toml", common.manifest(table))
    return folder
