"""``frostline-models split``: a foreign ONNX model to a served backbone and heads."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..errors import InputError
from .forms import NAMES


def add(groups) -> None:
    parser = groups.add_parser(
        "split", help="cut any ONNX model into a backbone and heads",
        description="Without --out it shows where the graph can be cut. Several models that share a frozen trunk "
        "become one backbone and a head each.",
    )  # fmt: skip
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--out", type=Path, help="model repository to write into")
    parser.add_argument("--cut", metavar="TENSOR,...", help="tensors to cut at (unset: the suggestion)")
    parser.add_argument("--all", action="store_true", help="show every cut, not one of each kind")
    given = parser.add_argument_group("the model")
    given.add_argument("--size", metavar="PIXELS|HxW", help="of the input, where the model leaves it open")
    given.add_argument("--layout", help="NCHW or NHWC, where the input's shape does not tell")
    given.add_argument(
        "--normalize", metavar="HOW",
        help="what the model wants of pixels: imagenet, half (-1 to 1), unit (0 to 1), none (0 to 255), or "
        "mean,mean,mean,std,std,std in units of 0 to 1; a uint8 input needs none",
    )  # fmt: skip
    given.add_argument("--bgr", action="store_true", help="the model wants blue first")
    given.add_argument("--fix", action="append", default=[], metavar="INPUT=V,V,...", help="make an input constant")
    given.add_argument("--outputs", metavar="NAME,...", help="the outputs that count (unset: all)")
    given.add_argument("--form", help=f"of the outputs (unset: recognized): {', '.join(NAMES)}")
    given.add_argument("--normalized-boxes", action="store_true", help="YOLO boxes are from 0 to 1, not in pixels")
    given.add_argument("--threshold", type=float, default=0.5, help="segmentation in one channel: least probability")
    manifest = parser.add_argument_group("the manifests")
    manifest.add_argument("--labels", action="append", default=[], metavar="FILE", help="label names, one a line or JSON; 'numbers' for none (one for each model, or one for all)")
    manifest.add_argument("--name", action="append", default=[], help="of a head (unset: the file's)")
    manifest.add_argument("--backbone-name", help="unset: the first file's")
    manifest.add_argument("--version", default="1")
    manifest.add_argument("--licence", default="unknown", help="of the weights")
    manifest.add_argument("--resize", default="letterbox", choices=("letterbox", "stretch", "center_crop"))
    manifest.add_argument("--filter", default="bilinear", choices=("bilinear", "bicubic"))
    manifest.add_argument("--pad", type=int, default=114, help="gray around a letterboxed picture")
    manifest.add_argument("--crop-fraction", type=float, default=1.0, help="center_crop: share of each side that is seen")
    manifest.add_argument("--score-threshold", type=float)
    manifest.add_argument("--nms-iou", type=float, help="above 1: the model has seen to it")
    manifest.add_argument("--max-detections", type=int)
    manifest.add_argument("--top-k", type=int)
    proof = parser.add_argument_group("the proof")
    proof.add_argument("--pictures", type=Path, help="a picture or a folder of them to compare on, beside random ones")
    proof.add_argument("--force", action="store_true", help="write even if the halves differ from the whole")
    parser.set_defaults(run=run)


def size_of(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(s.isdigit() and 0 < int(s) <= 8192 for s in sides):
        raise InputError(f"--size {text!r}: must be pixels a side, or HEIGHTxWIDTH, up to 8192")
    return int(sides[0]), int(sides[-1])


def fixed(pairs: list[str]) -> dict[str, np.ndarray]:
    """``name=v,v,...`` as arrays."""
    found = {}
    for pair in pairs:
        name, separator, values = pair.rpartition("=")
        try:
            found[name] = np.array([float(v) for v in values.split(",")])
        except ValueError:
            separator = ""
        if not separator:
            raise InputError(f"--fix {pair!r}: must be INPUT=VALUE,VALUE,...")
    return found


def postprocess(arguments: argparse.Namespace, task: str) -> dict:
    """What the options say of a task's ``[postprocess]``; ``None`` takes a key out."""
    keys = {"detection": ("score_threshold", "nms_iou", "max_detections"), "classification": ("top_k",)}.get(task, ())
    said = {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None}
    for key, most in (("score_threshold", 1), ("nms_iou", None), ("max_detections", 10_000), ("top_k", 100_000)):
        value = said.get(key)
        if value is not None and (value < 0 or (most and value > most)):
            raise InputError(f"--{key.replace('_', '-')} {value}: must be from 0 to {most or 1}")
    if said.get("nms_iou", 0) > 1:
        said["nms_iou"] = None
    return said


def run(arguments: argparse.Namespace) -> None:
    from . import assemble

    opened = [assemble.open_model(path, arguments) for path in arguments.models]
    print("\n\n".join(assemble.describe(model, arguments.all) for model in opened))
    if arguments.out is None:
        print("\nnothing is written: give --out REPOSITORY, and --cut for another cut than the suggested one")
        return
    assemble.write(opened, arguments)
