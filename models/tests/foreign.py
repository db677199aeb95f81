"""Foreign models to cut: random weights, exported by the libraries that define them.

The YOLOv8-shaped detector is written out here: CSP blocks, SPPF, a path-aggregation neck, and
three decoupled heads whose distances are distributions, decoded in the graph or not.
"""

import warnings

import torch
from torch import nn

from frostline_models.backbones.sources import randomize


def export(module: nn.Module, path, inputs, outputs, size: int, batch: str | None = "batch", opset: int = 17):
    """As a user would with ``torch.onnx.export``; ``batch`` unset: for one picture alone."""
    example = torch.randn(2 if batch else 1, 3, size, size)
    axes = {name: {0: batch} for name in [*inputs, *outputs]} if batch else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (example,), str(path), dynamo=False, opset_version=opset,
            input_names=inputs, output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
    return path


# === a YOLOv8-shaped detector ===


class Conv(nn.Sequential):
    def __init__(self, a: int, b: int, k: int = 1, s: int = 1):
        super().__init__(nn.Conv2d(a, b, k, s, k // 2, bias=False), nn.BatchNorm2d(b), nn.SiLU())


class C2f(nn.Module):
    def __init__(self, a: int, b: int, shortcut: bool):
        super().__init__()
        self.half, self.shortcut = b // 2, shortcut
        self.first, self.last = Conv(a, b), Conv(b // 2 * 3, b)
        self.block = nn.Sequential(Conv(b // 2, b // 2, 3), Conv(b // 2, b // 2, 3))

    def forward(self, x):
        one, two = self.first(x).split(self.half, 1)
        three = self.block(two) + two if self.shortcut else self.block(two)
        return self.last(torch.cat([one, two, three], 1))


class SPPF(nn.Module):
    def __init__(self, a: int):
        super().__init__()
        self.first, self.last, self.pool = Conv(a, a // 2), Conv(a * 2, a), nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        rows = [self.first(x)]
        for _ in range(3):
            rows.append(self.pool(rows[-1]))
        return self.last(torch.cat(rows, 1))


class Yolo(nn.Module):
    """``raw``: gives the three maps ``[N, 64 + C, h, w]``; else ``[N, 4 + C, A]``, decoded."""

    def __init__(self, classes: int = 5, width: int = 8, raw: bool = False):
        super().__init__()
        w, self.classes, self.raw = width, classes, raw
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, True))
        self.p3 = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, True))
        self.p4 = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, True))
        self.p5 = nn.Sequential(Conv(8 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, True), SPPF(8 * w))
        self.up4, self.up3 = C2f(16 * w, 8 * w, False), C2f(12 * w, 4 * w, False)
        self.down3, self.down4 = Conv(4 * w, 4 * w, 3, 2), Conv(8 * w, 8 * w, 3, 2)
        self.out4, self.out5 = C2f(12 * w, 8 * w, False), C2f(16 * w, 8 * w, False)
        widths = (4 * w, 8 * w, 8 * w)
        self.box = nn.ModuleList(nn.Sequential(Conv(c, 16, 3), nn.Conv2d(16, 64, 1)) for c in widths)
        self.cls = nn.ModuleList(nn.Sequential(Conv(c, 16, 3), nn.Conv2d(16, classes, 1)) for c in widths)

    def forward(self, x):
        maps = [torch.cat([b(m), c(m)], 1) for b, c, m in zip(self.box, self.cls, self.neck(x))]
        return tuple(maps) if self.raw else decode(maps, x.shape[-1])

    def neck(self, x):
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        up = nn.functional.interpolate
        n4 = self.up4(torch.cat([up(p5, scale_factor=2.0), p4], 1))
        n3 = self.up3(torch.cat([up(n4, scale_factor=2.0), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        return n3, n4, self.out5(torch.cat([self.down4(n4), p5], 1))


def decode(maps, size: int):
    """``[N, 4 + C, A]``: centre, size in pixels, and a probability a class."""
    rows = []
    for m in maps:
        side = m.shape[-1]
        stride = size / side
        bins, scores = m.flatten(2).split([64, m.shape[1] - 64], 1)
        sides = (bins.unflatten(1, (4, 16)).softmax(2) * torch.arange(16.0).view(1, 1, 16, 1)).sum(2)
        y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
        centre = torch.stack([x, y]).flatten(1)[None]
        low, high = centre - sides[:, :2], centre + sides[:, 2:]
        rows.append(torch.cat([(low + high) / 2 * stride, (high - low) * stride, scores.sigmoid()], 1))
    return torch.cat(rows, 2)


def yolo(path, raw: bool = False, batch: str | None = "batch", size: int = 128):
    model = randomize(Yolo(raw=raw), 1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.mul_(3)  # or pictures hardly matter in the end
        # Boxes of some cells, scores that spread and do not saturate.
        for m, box, cls in zip(model.eval().neck(torch.randn(1, 3, size, size)), model.box, model.cls):
            for branch in (box, cls):
                out = branch(m)
                branch[1].weight.div_(out.std())
                branch[1].bias.sub_(out.mean() / out.std())
            box[1].bias.view(4, 16).sub_(torch.arange(16.0) * 0.7)
    names = ["p3", "p4", "p5"] if raw else ["output0"]
    return export(model, path, ["images"], names, size, batch), model


# === models of libraries ===


class Picked(nn.Module):
    """A library's model with the outputs that count, in order."""

    def __init__(self, model: nn.Module, *keys: str):
        super().__init__()
        self.model, self.keys = model, keys

    def forward(self, x):
        out = self.model(x)
        return tuple(out[key] for key in self.keys)


def resnet(path, batch: str | None = "batch", size: int = 64, classes: int = 7):
    from torchvision.models import resnet18

    model = randomize(resnet18(weights=None, num_classes=classes), 2).eval()
    return export(model, path, ["input"], ["output"], size, batch), model


def deeplab(path, size: int = 64, classes: int = 6):
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    model = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)
    model = Picked(randomize(model, 3), "out").eval()
    return export(model, path, ["input"], ["out"], size), model


def segformer(path, size: int = 64, classes: int = 9):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=32, num_labels=classes,
    )  # fmt: skip
    model = Picked(randomize(SegformerForSemanticSegmentation(config), 4), "logits").eval()
    return export(model, path, ["pixel_values"], ["logits"], size), model


def rtdetr(path, size: int = 128, classes: int = 6):
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="bottleneck",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[24, 32, 48], encoder_ffn_dim=32,
        d_model=32, num_queries=20, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=2,
        decoder_attention_heads=4, encoder_attention_heads=4, num_labels=classes, anchor_image_size=[size, size],
        num_denoising=0,
    )  # fmt: skip
    model = Picked(randomize(RTDetrForObjectDetection(config), 5), "logits", "pred_boxes").eval()
    return export(model, path, ["pixel_values"], ["logits", "pred_boxes"], size), model
