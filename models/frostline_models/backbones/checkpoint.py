"""SwinV2 weights of any layout, brought to the official names.

Three layouts exist.  The official one is the target.  timm moves each downsampling from the
end of stage i to the start of stage i+1 (and ``features_only`` flattens ``layers.0`` to
``layers_0``).  Hugging Face renames everything and splits qkv.  What the backbone does not
use (classifier, final norm, index tables) is dropped; anything else unknown is an error.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from ..errors import at
from ..swinv2 import SwinV2

State = dict[str, Tensor]

#: Buffers that follow from the configuration, and layers after the last feature map.
UNUSED = re.compile(
    r"(^|\.)(relative_coords_table|relative_position_index|attn_mask|mask)$"
    r"|^(norm|head|fc_norm|decoder|mask_token)(\.|$)"
    r"|^(layernorm|classifier|pooler)(\.|$)|mask_token$|^hidden_states_norms\."
)
#: Hugging Face's name of a block's part, and the official one; qkv is handled apart.
HF_BLOCK = {
    "attention.self.logit_scale": "attn.logit_scale",
    "attention.self.continuous_position_bias_mlp.0.weight": "attn.cpb_mlp.0.weight",
    "attention.self.continuous_position_bias_mlp.0.bias": "attn.cpb_mlp.0.bias",
    "attention.self.continuous_position_bias_mlp.2.weight": "attn.cpb_mlp.2.weight",
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "layernorm_before.weight": "norm1.weight",
    "layernorm_before.bias": "norm1.bias",
    "layernorm_after.weight": "norm2.weight",
    "layernorm_after.bias": "norm2.bias",
    "intermediate.dense.weight": "mlp.fc1.weight",
    "intermediate.dense.bias": "mlp.fc1.bias",
    "output.dense.weight": "mlp.fc2.weight",
    "output.dense.bias": "mlp.fc2.bias",
    "attention.self.query.bias": "attn.q_bias",
    "attention.self.value.bias": "attn.v_bias",
}
HF_STEM = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.norm": "patch_embed.norm",
}


def read(path: Path) -> State:
    """The tensors of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file, as named there."""
    if not path.is_file():
        raise at(path, "no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        data = _load_legacy(path)
    except (pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise at(path, _unreadable(error)) from None
    key = next((k for k in ("model", "state_dict", "model_state_dict") if k in data), None)
    if key is not None and isinstance(data[key], dict):
        data = data[key]
    state = {k.removeprefix("module."): v for k, v in data.items() if isinstance(v, Tensor)}
    if not state:
        raise at(path, f"holds no tensors; its keys are {_some(data)}")
    return state


def _load_legacy(path: Path):
    """Files from before PyTorch 1.6, which cannot be mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise at(path, _unreadable(error)) from None


def _unreadable(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"is not a checkpoint of plain tensors ({first}); if it holds other objects, save its "
        "state dict alone"
    )


def _read_safetensors(path: Path) -> State:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise at(path, "reading it needs the package safetensors (pip install safetensors)") from None
    try:
        return load_file(path)
    except Exception as error:  # the library's own error type is not public
        raise at(path, f"is not a safetensors file: {error}") from None


def layout(state: State) -> str | None:
    """``official``, ``timm`` or ``huggingface``; ``None`` if it is none of them."""
    keys = list(state)
    if any("encoder.layers." in k or "embeddings.patch_embeddings" in k for k in keys):
        return "huggingface"
    if any(k.startswith("layers_") for k in keys):
        return "timm"
    if not any(re.match(r"layers\.\d+\.blocks\.\d+\.", k) for k in keys):
        return None
    moved = any(re.match(r"layers\.[123]\.downsample\.", k) for k in keys)
    return "timm" if moved and "layers.0.downsample.reduction.weight" not in state else "official"


def to_official(state: State, kind: str, where: str = "checkpoint") -> State:
    """The same weights under the official names, without what the backbone does not use."""
    if kind == "huggingface":
        state = _from_huggingface(state, where)
    elif kind == "timm":
        state = {_from_timm(k): v for k, v in state.items()}
    return {k: v for k, v in state.items() if not UNUSED.search(k)}


def _from_timm(key: str) -> str:
    key = re.sub(r"^layers_(\d+)\.", r"layers.\1.", key)
    return re.sub(
        r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", key
    )


def _from_huggingface(state: State, where: str) -> State:
    out: State = {}
    for key, value in state.items():
        name = key.removeprefix("swinv2.").removeprefix("backbone.")
        stem = next((s for s in HF_STEM if name.startswith(s + ".")), None)
        block = re.match(r"encoder\.(layers\.\d+\.blocks\.\d+)\.(.+)$", name)
        if stem:
            out[HF_STEM[stem] + name[len(stem) :]] = value
        elif block is None:
            out[name.removeprefix("encoder.")] = value
        elif block[2] in HF_BLOCK:
            out[f"{block[1]}.{HF_BLOCK[block[2]]}"] = value
        elif match := re.match(r"attention\.self\.(query|key|value)\.weight$", block[2]):
            # Written when all three have been seen; the order in the file is free.
            parts = [f"{key[: key.rindex('.self.')]}.self.{p}.weight" for p in ("query", "key", "value")]
            missing = [p for p in parts if p not in state]
            if missing:
                raise at(where, f"{missing[0]} is missing beside {match[1]}")
            out[f"{block[1]}.attn.qkv.weight"] = torch.cat([state[p] for p in parts])
        else:
            out[f"{block[1]}.{block[2]}"] = value
    return out


def load_into(model: SwinV2, path: Path) -> str:
    """Loads the file's weights into the model; returns the layout they had.

    Every parameter must be there, with its shape, and nothing unknown beside them.
    """
    state = read(path)
    kind = layout(state)
    if kind is None:
        raise at(
            path,
            f"is no SwinV2 checkpoint: no layers.<i>.blocks.<j> (official, timm) or "
            f"encoder.layers.<i> (Hugging Face) among its keys {_some(state)}",
        )
    weights = to_official(state, kind, str(path))
    wanted = model.state_dict()
    problems = []
    if missing := [k for k in wanted if k not in weights]:
        problems.append(f"missing keys: {_some(missing)}")
    if unknown := [k for k in weights if k not in wanted]:
        problems.append(f"unknown keys: {_some(unknown)}")
    shapes = [
        f"{k} is {list(weights[k].shape)}, the backbone's is {list(v.shape)}"
        for k, v in wanted.items()
        if k in weights and weights[k].shape != v.shape
    ]
    if shapes:
        problems.append(f"{_some(shapes)}: is it of another size than was named?")
    if problems:
        raise at(path, f"({kind} layout) does not fit the backbone; " + "; ".join(problems))
    bad = [k for k, v in weights.items() if not torch.isfinite(v).all()]
    if bad:
        raise at(path, f"weights that are not finite: {_some(bad)}")
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return kind


def _some(items, most: int = 4) -> str:
    items = [str(i) for i in items]
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
