"""``frostline-models backbone``: export, measure, list sizes."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from .. import geometry, recipes
from ..errors import InputError, at
from ..readers.base import read_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def add(groups) -> None:
    group = groups.add_parser("backbone", help="export a backbone to a model repository")
    commands = group.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("export", help="checkpoint or name to backbone.onnx, checked")
    _weights(one)
    one.add_argument("--out", type=Path, required=True, help="model repository to write into")
    one.add_argument("--precision", help="fp32 (unset), fp16, bf16 or int8")
    one.add_argument("--attention", help="matmul (unset), fused (ONNX Attention) or mha (MultiHeadAttention)")
    one.add_argument("--resize", help="letterbox (unset), stretch or center_crop")
    one.add_argument("--filter", help="bilinear (unset) or bicubic")
    one.add_argument("--pad", type=int, help=f"gray level around a letterboxed image ({geometry.PAD})")
    one.add_argument(
        "--crop-fraction", type=float, help="center_crop: share of each side that is seen (1); timm's crop_pct"
    )
    one.add_argument("--features", metavar="NAME,...", help="maps to give out (unset: those of stride 4 and more)")
    one.add_argument("--licence", default="unknown", help="of the weights, for the manifest")
    one.add_argument("--version", default="1", help="for the manifest")
    one.add_argument("--provider", default="CPUExecutionProvider", help="that checks the graph")
    one.add_argument("--force", action="store_true", help="write even if parity misses its gate")
    _calibration(one)
    one.set_defaults(run=_export)

    two = commands.add_parser("bench", help="speed against PyTorch and the plain exporter's graph")
    _weights(two)
    two.add_argument("--precisions", default="fp32,int8")
    two.add_argument("--attentions", default="matmul,fused")
    two.add_argument("--batch", type=int, default=1)
    two.add_argument("--rounds", type=int, default=15)
    _calibration(two)
    two.set_defaults(run=_bench)

    four = commands.add_parser("quantize", help="a served repository at int8, heads and all")
    four.add_argument("repository", type=Path, help="model repository with an fp32 backbone")
    four.add_argument("--out", type=Path, required=True, help="model repository to write into")
    four.add_argument("--force", action="store_true", help="write even if it misses its gate")
    _calibration(four, required=True)
    four.set_defaults(run=_quantize)

    three = commands.add_parser("sizes", help="input sizes that a SwinV2 window takes")
    three.add_argument("--window", type=int, required=True)
    three.add_argument("--most", type=int, default=2048, help="largest size in pixels")
    three.set_defaults(run=_sizes)


def _weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="swinv2-{n,t,s,b,l,h,g}, or any timm model with feature maps"
    )
    parser.add_argument("--recipe", help="take name, sizes, windows and precision from a recipe")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes",
        help="change a value of the recipe",
    )  # fmt: skip
    parser.add_argument("--size", type=int, help="input side in pixels")
    parser.add_argument("--window", type=int, default=8, help="SwinV2: tokens a side")
    parser.add_argument("--pretrained-size", type=int, help="SwinV2: pixels at pretraining")
    parser.add_argument("--pretrained-window", type=int, help="SwinV2: window at pretraining")
    parser.add_argument("--checkpoint", type=Path, help="weights file, or Hugging Face folder")
    parser.add_argument("--random", type=int, metavar="SEED", help="random weights instead")
    parser.add_argument("--threads", type=int, default=1)


def _calibration(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--calibration", metavar="FOLDER", required=required,
        help="int8: images to take ranges from, or 'generated', or 'generated-scenes'",
    )
    parser.add_argument("--calibration-count", type=int, default=32)
    parser.add_argument("--percentile", type=float, help="int8: of activations; unset: all of them")


def request(arguments: argparse.Namespace):
    """What the options or the recipe ask for; fills in what export takes from a recipe too."""
    from .sources import Request

    if arguments.recipe:
        if arguments.name:
            raise InputError("give a backbone's name or --recipe, not both")
        recipe = recipes.load(arguments.recipe, arguments.changes)
        arguments.size = recipe.backbone.size
        for key in ("precision", "attention", "resize", "filter", "pad", "crop_fraction"):
            if getattr(arguments, key, None) is None:
                setattr(arguments, key, getattr(recipe.backbone, key))
        return recipe.request(arguments.checkpoint, arguments.random)
    if arguments.name is None or arguments.size is None:
        raise InputError("a backbone needs its name and --size, or --recipe")
    return Request(
        name=arguments.name,
        size=arguments.size,
        window=arguments.window,
        pretrained_size=arguments.pretrained_size,
        pretrained_window=arguments.pretrained_window,
        checkpoint=arguments.checkpoint,
        seed=arguments.random,
    )


def calibration_images(source: str | None, to: geometry.Input, count: int) -> np.ndarray | None:
    """uint8 ``[N, H, W, 3]``, read and fitted as the server does; ``None`` without a source."""
    from .parity import pictures

    if source is None:
        return None
    if source == "generated":
        return pictures(count, to.height, seed=3)
    if source == "generated-scenes":
        from ..readers import open_dataset

        with tempfile.TemporaryDirectory() as folder:
            scenes = open_dataset(source, Path(folder), split="train", count=count)
            return np.stack([geometry.fit(scenes.image(i), to) for i in range(count)])
    folder = Path(source)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise at(folder, "holds no images to calibrate on")
    chosen = files[:: max(1, len(files) // count)][:count]
    return np.stack([geometry.fit(read_image(file), to) for file in chosen])


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from . import export, sources

    torch.set_num_threads(arguments.threads)
    wanted = request(arguments)
    options = export.Options(
        precision=arguments.precision or "fp32",
        attention=arguments.attention or "matmul",
        resize=arguments.resize or "letterbox",
        filter=arguments.filter or "bilinear",
        pad=geometry.PAD if arguments.pad is None else arguments.pad,
        crop_fraction=1.0 if arguments.crop_fraction is None else arguments.crop_fraction,
        licence=arguments.licence,
        version=arguments.version,
        provider=arguments.provider,
        threads=arguments.threads,
        percentile=arguments.percentile,
        force=arguments.force,
        features=tuple(f.strip() for f in arguments.features.split(",") if f.strip()) if arguments.features else None,
    )
    to = options.input(arguments.size)
    backbone = sources.load(wanted)
    images = calibration_images(arguments.calibration, to, arguments.calibration_count)
    export.export(backbone, arguments.out, options, images)
    print(f"wrote {arguments.out / 'backbone.onnx'} and backbone.toml")


def _quantize(arguments: argparse.Namespace) -> None:
    from ..taskheads.spec import read_manifest
    from .quantize import quantize

    manifest = arguments.repository / "backbone.toml"
    to = geometry.from_manifest(manifest, read_manifest(manifest))
    images = calibration_images(arguments.calibration, to, arguments.calibration_count)
    quantize(arguments.repository, arguments.out, images, arguments.percentile, arguments.force)
    print(f"wrote {arguments.out / 'backbone.onnx'}, backbone.toml and heads/")


def _bench(arguments: argparse.Namespace) -> None:
    from . import bench

    wanted = request(arguments)
    to = geometry.Input(arguments.size, arguments.size)
    images = calibration_images(arguments.calibration or "generated", to, arguments.calibration_count)
    times = bench.run(
        wanted, arguments.precisions.split(","), arguments.attentions.split(","),
        arguments.batch, arguments.rounds, arguments.threads, images,
    )  # fmt: skip
    print(bench.table(times))


def _sizes(arguments: argparse.Namespace) -> None:
    from .variants import fits

    if arguments.window < 2:
        raise InputError(f"--window {arguments.window}: must be at least 2")
    sizes = [s for s in range(32, arguments.most + 1, 32) if fits(s, arguments.window)]
    print(" ".join(map(str, sizes)))
