"""The three pretrained models as ONNX files with their labels, and cut into repositories."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch

from ..backbones import checkpoint
from ..backbones.sources import in_order
from ..errors import InputError
from . import packages, tfjs

SIZE = 224
CROP = 0.875
TEXT_SIZE = 640


def lite0(folder: Path) -> torch.nn.Module:
    """The whole classifier in PyTorch, on pixels from -1 to 1: the package lists timm's tensors
    under other names, in the same order."""
    import timm

    path = packages.find(folder, "efficientnet-lite0-57934424.pth")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    model.load_state_dict(in_order(checkpoint.read(path), "tf_efficientnet_lite0"))
    return model


def imagenet_labels() -> list[str]:
    """The thousand names, as timm has them."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(1000)]


def coco_labels() -> list[str]:
    """The eighty names that have pictures, as torchvision has them."""
    from torchvision.models._meta import _COCO_CATEGORIES

    return [name for name in _COCO_CATEGORIES if name not in ("__background__", "N/A")]


def export_lite0(folder: Path, path: Path) -> None:
    """The classifier as ``torch.onnx.export`` gives it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            lite0(folder), (torch.zeros(2, 3, SIZE, SIZE),), str(path), dynamo=False, opset_version=17,
            input_names=["pixels"], output_names=["logits"],
            dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip


def export_centernet(folder: Path, path: Path) -> None:
    """The COCO detector's network, up to its heat map and distances."""
    graph = packages.find(folder, "centernet.json")
    outputs = {"tower_0/keypoints": "heatmap", "tower_0/wh": "distances"}
    onnx.save(tfjs.convert(graph, outputs, "tower_0/images"), path)


def split(*words) -> None:
    """``frostline-models split`` with these words."""
    from ..cli import parser

    arguments = parser().parse_args(["split", *map(str, words)])
    print("$ frostline-models split", *(f"'{w}'" if " " in str(w) else w for w in words))
    arguments.run(arguments)
    print()


def build(work: Path) -> dict[str, Path]:
    """A repository for each model that can be had: ``imagenet``, ``text`` and, with npm, ``coco``."""
    made: dict[str, Path] = {}
    files, out = work / "files", work / "repositories"
    files.mkdir(parents=True, exist_ok=True)
    folder = packages.fetch(packages.LITE0, work)
    export_lite0(folder, files / "lite0.onnx")
    (files / "imagenet.txt").write_text("\n".join(imagenet_labels()) + "\n")
    common = ["--out", out / "imagenet", "--normalize", "half", "--resize", "center_crop", "--crop-fraction", CROP, "--filter", "bicubic", "--licence", "Apache-2.0"]
    split(files / "lite0.onnx", *common, "--name", "imagenet", "--labels", files / "imagenet.txt", "--backbone-name", "efficientnet-lite0")
    # The same head once more, for its logits as they are.
    split(files / "lite0.onnx", *common, "--name", "logits", "--form", "tensor", "--backbone-name", "efficientnet-lite0")
    made["imagenet"] = out / "imagenet"

    detector = packages.find(packages.fetch(packages.TEXT, work), "ch_PP-OCRv4_det_infer.onnx")
    (files / "text.txt").write_text("background\ntext\n")
    split(detector, "--out", out / "text", "--size", TEXT_SIZE, "--normalize", "half", "--bgr", "--threshold", 0.3, "--name",
          "text", "--labels", files / "text.txt", "--licence", "Apache-2.0 (the package's)", "--backbone-name", "pp-lcnetv3")  # fmt: skip
    made["text"] = out / "text"

    if (folder := packages.fetch(packages.CENTERNET, work)) is None:
        print("the COCO detector is left out: @vladmandic/human cannot be fetched (is npm there?)")
        return made
    export_centernet(folder, files / "centernet.onnx")
    labels = coco_labels()
    if len(labels) != 80:
        raise InputError(f"torchvision lists {len(labels)} COCO names, not 80")
    (files / "coco.txt").write_text("\n".join(labels) + "\n")
    split(files / "centernet.onnx", "--out", out / "coco", "--normalize", "none", "--resize", "stretch", "--name", "coco",
          "--labels", files / "coco.txt", "--score-threshold", 0.2, "--licence", "unknown (for tests)",
          "--backbone-name", "mobilenetv3-centernet")  # fmt: skip
    made["coco"] = out / "coco"
    return made
