"""PyTorch modules to ONNX graphs and TOML manifests: the model repository.

The backbone is exported with everything that depends on weights alone baked in
(position bias, attention temperature, qkv bias), so the graph is the same work
on every runtime.  Files appear by rename, never half written.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import warnings
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from .swinv2 import SwinV2

OPSET = 20  # the first with Gelu as one operator


class _Backbone(nn.Module):
    def __init__(self, backbone: SwinV2):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor):
        return tuple(self.backbone(image))


class _Head(nn.Module):
    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, *maps: Tensor):
        return self.head.serve(list(maps))


def feature_names(backbone: SwinV2) -> list[str]:
    return [f"stride{s}" for s in backbone.cfg.strides()]


def backbone_bytes(backbone: SwinV2) -> bytes:
    """The backbone as an ONNX file: ``image`` uint8 NHWC to one output per stage."""
    baked = copy.deepcopy(backbone).float().eval().bake()
    size = backbone.cfg.image_size
    example = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    return _export(_Backbone(baked), (example,), ["image"], feature_names(backbone))


def head_bytes(head: nn.Module, maps: list[Tensor]) -> bytes:
    """A head as an ONNX file; ``maps`` are example inputs, one per feature it reads."""
    frozen = copy.deepcopy(head).float().eval()
    return _export(_Head(frozen), tuple(maps), list(head.features), list(head.outputs))


def _export(module: nn.Module, args: tuple, inputs: list[str], outputs: list[str]) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = module.eval()(*args)
        torch.onnx.export(
            module,
            args,
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in inputs + outputs},
        )
    model = onnx.load_from_string(buffer.getvalue())
    model.producer_name, model.producer_version = "frostline-models", "1"
    _name_shapes(model, made if isinstance(made, tuple) else (made,))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _name_shapes(model: onnx.ModelProto, outputs: tuple[Tensor, ...]) -> None:
    """States every output's shape, batch aside, where shape inference lost it."""
    for value, tensor in zip(model.graph.output, outputs):
        for dim, size in list(zip(value.type.tensor_type.shape.dim, tensor.shape))[1:]:
            dim.dim_value = size


def session(path: Path | bytes, threads: int = 1) -> ort.InferenceSession:
    """A CPU session on ``threads`` threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes | str) -> None:
    """Writes a file in one step: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    partial.rename(path)


def _toml(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, float):
        text = f"{value:.7g}"
        return text if set(text) & set(".einf") else text + ".0"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return str(value)


def manifest(table: dict) -> str:
    """A manifest as TOML: plain keys, then sub-tables, then arrays of tables."""
    plain = {k: v for k, v in table.items() if not _is_table(v)}
    lines = [f"{k} = {_toml(v)}" for k, v in plain.items()]
    for key, value in table.items():
        if not _is_table(value):
            continue
        for entry in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{key}]]" if isinstance(value, list) else f"[{key}]"]
            lines += [f"{k} = {_toml(v)}" for k, v in entry.items()]
    return "\n".join(lines) + "\n"


def _is_table(value) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )
