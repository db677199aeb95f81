"""Independent implementations of SwinV2 with a backbone's weights: timm's and Hugging Face's."""

import torch

from frostline_models.backbones.bench import _Stages, timm_twin
from frostline_models.swinv2 import IMAGENET_MEAN, IMAGENET_STD, SwinV2


def normalized(image: torch.Tensor) -> torch.Tensor:
    """uint8 NHWC to the NCHW floats that the references take."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((image.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def timm_model(backbone: SwinV2) -> torch.nn.Module:
    return timm_twin(backbone).model.model


def timm_maps(backbone: SwinV2, image: torch.Tensor) -> list[torch.Tensor]:
    return _Stages(timm_model(backbone))(normalized(image))


def huggingface_model(backbone: SwinV2) -> torch.nn.Module:
    from transformers import Swinv2Backbone, Swinv2Config

    cfg = backbone.cfg
    model = Swinv2Backbone(
        Swinv2Config(
            image_size=cfg.image_size, embed_dim=cfg.dim, depths=list(cfg.depths),
            num_heads=list(cfg.heads), window_size=cfg.window, mlp_ratio=cfg.mlp_ratio,
            pretrained_window_sizes=list(cfg.pretrained_windows), drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    ).eval()  # fmt: skip
    state = backbone.state_dict()
    new = {}
    for key in model.state_dict():
        name = key.removeprefix("encoder.")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.norm", "patch_embed.norm")
        for theirs, ours in (
            ("attention.self.continuous_position_bias_mlp", "attn.cpb_mlp"),
            ("attention.self.logit_scale", "attn.logit_scale"),
            ("attention.output.dense", "attn.proj"),
            ("attention.self.query.bias", "attn.q_bias"),
            ("attention.self.value.bias", "attn.v_bias"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(theirs, ours)
        for i, part in enumerate(("query", "key", "value")):
            if name.endswith(f"attention.self.{part}.weight"):
                qkv = state[name.replace(f"attention.self.{part}.weight", "attn.qkv.weight")]
                new[key] = qkv.chunk(3)[i]
        if key not in new:
            new[key] = state[name]
    model.load_state_dict(new)
    return model


def huggingface_maps(backbone: SwinV2, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(huggingface_model(backbone)(normalized(image)).feature_maps)
