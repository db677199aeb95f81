"""The three light heads that read the frozen backbone's feature maps.

Each head is a module over a list of NCHW maps, finest first, as named by its
``features``; ``forward`` gives what the losses need and ``serve`` gives the
tensors of the exported graph (see ``models/README.md`` for the contract).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(cin: int, cout: int, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the norm is folded into the weights at export."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
    )


def lateral(cin: int, cout: int) -> nn.Sequential:
    """1x1 projection of a raw backbone map, whose scale differs from level to level."""
    return nn.Sequential(nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))


def up2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Pyramid(nn.Module):
    """Top-down sum of lateral projections; one map per input level, finest first."""

    def __init__(self, channels: list[int], widths: list[int]):
        super().__init__()
        self.laterals = nn.ModuleList(lateral(c, w) for c, w in zip(channels, widths))
        self.narrow = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1) if coarse != fine else nn.Identity()
            for fine, coarse in zip(widths, widths[1:])
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = F.relu(self.laterals[-1](maps[-1]))
        out = [x]
        for level in range(len(maps) - 2, -1, -1):
            x = F.relu(self.laterals[level](maps[level]) + up2(self.narrow[level](x)))
            out.append(x)
        return out[::-1]


class ObjectsHead(nn.Module):
    """Anchor-free detection on the stride-8 map, masks as prototypes times coefficients.

    Every stride-8 cell scores every class (the score is trained towards the IoU of
    the cell's box, so it ranks boxes as well), gives its distances to the four box
    sides, and the coefficients that mix 16 stride-4 prototypes into a mask.
    """

    task = "detection"
    features = ("stride4", "stride8", "stride16", "stride32")

    def __init__(self, channels: list[int], classes: int, image: int = 128, keep: int = 64):
        super().__init__()
        self.classes, self.image, self.keep, self.prototypes = classes, image, keep, 16
        width, fine = 64, 32
        self.pyramid = Pyramid(channels, [fine, width, width, width])
        self.tower = nn.Sequential(conv(width, width), conv(width, width))
        self.class_logits = nn.Conv2d(width, classes, 1)
        self.box_sides = nn.Conv2d(width, 4, 1)
        self.coefficients = nn.Conv2d(width, self.prototypes, 1)
        self.proto = nn.Sequential(conv(fine, fine), nn.Conv2d(fine, self.prototypes, 1))
        nn.init.constant_(self.class_logits.bias, -math.log(99.0))
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.constant_(self.box_sides.bias, 0.7)
        cells = image // 8
        axis = (torch.arange(cells, dtype=torch.float32) + 0.5) * 8
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("centres", torch.stack((x, y), -1).reshape(-1, 2), persistent=False)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Raw outputs: class logits ``[B,L,C]``, boxes ``[B,L,4]``, coefficients, prototypes."""
        fine, middle = self.pyramid(maps)[:2]
        x = self.tower(middle)
        sides = self.box_sides(x).flatten(2).transpose(1, 2)
        # exp keeps distances positive; the clamp keeps an untrained head finite.
        near, far = (8 * sides.clamp(max=3.5).exp()).split(2, -1)
        return {
            "logits": self.class_logits(x).flatten(2).transpose(1, 2),
            "boxes": torch.cat((self.centres - near, self.centres + far), -1),
            "coefficients": torch.tanh(self.coefficients(x)).flatten(2).transpose(1, 2),
            "prototypes": self.proto(fine),
        }

    def serve(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``boxes [N,K,4]``, ``scores [N,K]``, ``labels [N,K]``, ``masks [N,K,h,w]``."""
        raw = self.forward(maps)
        scores = raw["logits"].reshape(-1, len(self.centres) * self.classes)
        scores, index = scores.topk(self.keep, dim=1)
        cell = torch.div(index, self.classes, rounding_mode="trunc")
        labels = index - cell * self.classes
        # One gather for boxes and coefficients; repeat, since expand exports as shape arithmetic.
        rows = torch.cat((raw["boxes"].clamp(0, float(self.image)), raw["coefficients"]), -1)
        rows = rows.gather(1, cell.unsqueeze(-1).repeat(1, 1, 4 + self.prototypes))
        boxes, mix = rows.split((4, self.prototypes), -1)
        side = self.image // 4
        masks = mix @ raw["prototypes"].reshape(-1, self.prototypes, side * side)
        masks = torch.sigmoid(masks).reshape(-1, self.keep, side, side)
        return boxes, torch.sigmoid(scores), labels, masks

    outputs = ("boxes", "scores", "labels", "masks")


class SceneHead(nn.Module):
    """Semantic segmentation: a pyramid fused at stride 4, logits ``[N, C, 32, 32]``."""

    task = "segmentation"
    features = ("stride4", "stride8", "stride16", "stride32")
    outputs = ("logits",)

    def __init__(self, channels: list[int], classes: int):
        super().__init__()
        self.pyramid = Pyramid(channels, [32, 64, 64, 64])
        self.fuse = conv(32, 32)
        self.logits = nn.Conv2d(32, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.logits(self.fuse(self.pyramid(maps)[0]))

    serve = forward


class MotionHead(nn.Module):
    """Action recognition: per-frame maps, then convolutions over space and time.

    Takes ``[N, T, C, h, w]`` maps.  Convolutions see local displacement wherever it
    happens, which a small clip set teaches sooner than attention over tokens would.
    """

    task = "action"
    features = ("stride8", "stride16", "stride32")
    outputs = ("logits",)

    def __init__(self, channels: list[int], classes: int, frames: int = 8):
        super().__init__()
        self.frames = frames
        self.pyramid = Pyramid(channels[1:], [32, 32, 32])
        self.local = nn.Sequential(
            nn.Conv3d(32, 48, 3, stride=(1, 2, 2), padding=1, bias=False),
            nn.BatchNorm3d(48),
            nn.ReLU(inplace=True),
            nn.Conv3d(48, 64, 3, stride=(2, 2, 2), padding=1, bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
        )
        self.clip = nn.Sequential(
            nn.Conv1d(128, 96, 3, padding=1, bias=False), nn.BatchNorm1d(96), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(0.2)
        self.logits = nn.Linear(96, classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        flat = [m.reshape(-1, *(int(v) for v in m.shape[2:])) for m in maps]
        x = self.pyramid(flat)[0]
        size = int(x.shape[-1])
        x = self.local(x.reshape(-1, self.frames, 32, size, size).transpose(1, 2))
        x = x.reshape(-1, *(int(v) for v in x.shape[1:3]), int(x.shape[3]) * int(x.shape[4]))
        x = self.clip(torch.cat((x.mean(3), x.amax(3)), 1)).mean(2)
        return self.logits(self.dropout(x))

    serve = forward
