"""Where a backbone comes from: SwinV2 by name, or any timm model that gives feature maps.

Every source is a module from uint8 ``[B, H, W, 3]`` RGB to a list of NCHW maps, with its
``strides``, ``channels``, ``size`` and a line that describes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, at
from ..swinv2 import SwinV2
from . import checkpoint
from .variants import describe, swinv2_config


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    name: str
    size: int
    window: int = 8
    pretrained_size: int | None = None
    pretrained_window: int | None = None
    checkpoint: Path | None = None
    seed: int | None = None  # of random weights, when there is no checkpoint


@dataclass
class Backbone:
    """A loaded backbone, ready for export."""

    module: nn.Module
    name: str  # for the manifest
    size: int  # pixels a side
    strides: list[int]
    channels: list[int]
    architecture: str
    weights: str  # where they are from

    def names(self) -> list[str]:
        return [f"stride{s}" for s in self.strides]


def cells(size: int, stride: int) -> int:
    """Cells a side of a map: the last may lie in part beyond the picture, where the backbone pads
    ("SAME"), as 8 cells of 32 pixels do over 240."""
    return -(-size // stride)


def load(request: Request) -> Backbone:
    """The backbone with its weights."""
    if (request.checkpoint is None) == (request.seed is None):
        raise InputError("weights: give either --checkpoint FILE or --random SEED")
    if request.name.startswith("swinv2-"):
        return _swinv2(request)
    return _timm(request)


def _origin(request: Request, layout: str = "") -> str:
    if request.checkpoint is None:
        return f"random, seed {request.seed}"
    return request.checkpoint.name + (f" ({layout} layout)" if layout else "")


def weights_file(path: Path) -> Path:
    """The weights of a checkpoint given as a file or as a Hugging Face folder."""
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    raise at(path, "holds neither model.safetensors nor pytorch_model.bin")


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that exercise everything: a check on them is not vacuous.

    Published initial values make SwinV2's blocks the identity (their last gain is 0) and its
    position bias constant.  Here gains spread around 0.5, biases around 0, and matrices keep
    the variance of what passes through.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    for name, parameter in module.named_parameters():
        if "logit_scale" in name:
            normal(parameter, 0.3, 2.3)
        elif "cpb_mlp" in name:
            normal(parameter, 0.7 if parameter.shape[-1] == 2 else 0.05)
        elif parameter.ndim == 1 and name.endswith("weight"):
            normal(parameter, 0.15, 0.5)
        elif parameter.ndim == 1:
            normal(parameter, 0.1)
        elif parameter.ndim >= 2 and name.endswith("weight"):
            normal(parameter, parameter[0].numel() ** -0.5)
        else:
            normal(parameter, 0.02)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            normal(buffer, 0.2)
    return module


def _swinv2(request: Request) -> Backbone:
    cfg = swinv2_config(
        request.name, request.size, request.window, request.pretrained_size,
        request.pretrained_window,
    )  # fmt: skip
    model, layout = SwinV2(cfg).eval(), ""
    if request.checkpoint is None:
        randomize(model, request.seed)
    else:
        layout = checkpoint.load_into(model, weights_file(request.checkpoint))
    return Backbone(
        model, f"{request.name}-{request.size}-w{request.window}", request.size, cfg.strides(),
        cfg.channels(), describe(cfg), _origin(request, layout),
    )  # fmt: skip


# === timm ===


class TimmBackbone(nn.Module):
    """A timm ``features_only`` model behind uint8 NHWC input; maps leave as NCHW."""

    def __init__(self, model: nn.Module, mean: tuple, std: tuple, nhwc: bool, pyramid: bool):
        super().__init__()
        self.model, self.nhwc, self.pyramid = model, nhwc, pyramid
        mean, std = (torch.tensor(v).mul(255).reshape(1, 1, 1, 3) for v in (mean, std))
        self.register_buffer("pixel_scale", 1 / std)
        self.register_buffer("pixel_offset", -mean / std)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = image.to(self.pixel_scale.dtype) * self.pixel_scale + self.pixel_offset
        maps = list(self.model(x.permute(0, 3, 1, 2)))
        if self.nhwc:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return simple_pyramid(maps[-1]) if self.pyramid else maps


def simple_pyramid(x: Tensor) -> list[Tensor]:
    """Strides 4, 8, 16, 32 from one stride-16 map, without weights (they belong to the heads).

    As in ViTDet every level comes from the last map: upsampled, itself, and pooled.
    """
    fine = [F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False) for s in (4.0, 2.0)]
    return [*fine, x, F.max_pool2d(x, 2)]


def _timm(request: Request) -> Backbone:
    try:
        import timm
    except ImportError:
        raise InputError(
            f"backbone {request.name!r} is not a SwinV2 (swinv2-t, ...), and timm is not "
            "installed: pip install 'frostline-models[timm]'"
        ) from None
    name = request.name.removeprefix("timm:")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:5])
        raise InputError(f"backbone {name!r} is no timm model" + (f"; near it: {near}" if near else ""))
    model = _create(timm, name, request.size)
    info = model.feature_info
    strides, channels = list(info.reduction()), list(info.channels())
    single = len(set(strides)) == 1
    if single and strides[0] != 16:
        raise InputError(f"backbone {name!r}: all its maps have stride {strides[0]}; only 16 is handled")
    if not single and len(set(strides)) != len(strides):
        raise InputError(f"backbone {name!r}: several maps share a stride: {strides}")
    default = getattr(model, "default_cfg", None) or timm.get_pretrained_cfg(name).to_dict()
    # Of these numbers only the shapes are looked at.
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, request.size, request.size))
    nhwc = maps[-1].shape[-1] == channels[-1] != maps[-1].shape[1]
    if request.checkpoint is None:
        randomize(model, request.seed)
    else:
        _load_timm(model, name, weights_file(request.checkpoint))
    module = TimmBackbone(model, default["mean"], default["std"], nhwc, single).eval()
    if single:
        strides, channels = [4, 8, 16, 32], [channels[-1]] * 4
    with torch.no_grad():
        got = [tuple(m.shape) for m in module(torch.zeros(1, request.size, request.size, 3))]
    wanted = [(1, c, s, s) for c, s in zip(channels, (cells(request.size, s) for s in strides))]
    if got != wanted:
        odd = f": {request.size} is no multiple of {max(strides)}, its coarsest stride" if request.size % max(strides) else ""
        raise InputError(f"backbone {name!r} at {request.size}: maps are {got}, expected {wanted}{odd}")
    text = f"timm {timm.__version__} {name}" + (", simple feature pyramid" if single else "")
    return Backbone(
        module, f"{name}-{request.size}".replace("/", "-"), request.size, strides, channels, text,
        _origin(request),
    )  # fmt: skip


def _create(timm, name: str, size: int) -> nn.Module:
    """The model at the size; those built for one size take it as an argument."""
    problem: Exception | None = None
    for extra in ({"img_size": size}, {}):
        try:
            return timm.create_model(name, features_only=True, pretrained=False, **extra).eval()
        except TypeError as error:
            problem = error
        except (AssertionError, ValueError, RuntimeError) as error:
            raise InputError(f"backbone {name!r} at {size} pixels: {error}") from None
    raise InputError(f"backbone {name!r} gives no feature maps: {problem}")


def in_order(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A port's checkpoint under timm's names: where it lists as many tensors as timm's whole model,
    in the same order and of the same shapes, they are the same; else as it came."""
    import timm

    own = timm.create_model(name, pretrained=False).state_dict()
    shapes = lambda table: [tuple(v.shape) for v in table.values()]  # noqa: E731
    if set(own) & set(state) or shapes(own) != shapes(state):
        return state
    return dict(zip(own, state.values()))


def _load_timm(model: nn.Module, timm_name: str, path: Path) -> None:
    """Loads a timm checkpoint of the whole model or of its ``features_only`` form, or a port's."""
    state = in_order(checkpoint.read(path), timm_name)
    wanted = model.state_dict()
    prefix = "model." if all(k.startswith("model.") for k in wanted) else ""

    def flat(key: str) -> str:
        # features_only turns stages.0.x into stages_0.x where the stage is a returned layer.
        return prefix + key

    aliases = {k.replace("_", "."): k for k in wanted}
    weights = {}
    for key, value in state.items():
        name = flat(key)
        name = name if name in wanted else aliases.get(name.replace("_", "."), name)
        if name in wanted:
            weights[name] = value
    missing = [k for k in wanted if k not in weights]
    if missing:
        raise at(path, f"missing keys: {checkpoint._some(missing)} (its keys: {checkpoint._some(state)})")
    for key, value in wanted.items():
        if weights[key].shape != value.shape:
            raise at(
                path, f"{key} is {list(weights[key].shape)}, the model's is {list(value.shape)}"
            )
    model.load_state_dict(weights)
