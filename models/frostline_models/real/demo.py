"""``frostline-models real``: builds, serves and measures the pretrained models on real photographs."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image

from ..errors import InputError
from ..measure.precisions import serve
from ..measure.remote import Remote
from . import models, packages

#: VOC's names that COCO spells otherwise.
COCO_NAMES = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip


def add(groups) -> None:
    parser = groups.add_parser("real", help="pretrained weights from packages: build, serve, measure (make demo-real)")
    parser.add_argument("--work", type=Path, default=Path("target/real"), help="folder for packages, models, pictures")
    parser.add_argument("--binary", type=Path, default=Path("target/release/frostline"), help="the server")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    began, work = time.monotonic(), arguments.work.resolve()
    if not arguments.binary.is_file():
        raise InputError(f"{arguments.binary}: no such file; build the server first (make build), or give --binary")
    repositories = models.build(work)
    report = {}
    for name, measure in (("imagenet", imagenet), ("text", text), ("coco", coco)):
        if name in repositories:
            with serve(arguments.binary, repositories[name]) as address:
                report[name] = measure(work, address)
                annotate(arguments.binary, address, name, work)
    report["seconds"] = round(time.monotonic() - began, 1)
    (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(show(report, work))


def annotate(binary: Path, address: str, name: str, work: Path) -> None:
    """Annotated pictures, by the command line's own drawing."""
    command = {"imagenet": "analyze", "text": "segment", "coco": "detect"}[name]
    out = work / "pictures" / name
    out.mkdir(parents=True, exist_ok=True)
    photos = imagenet_photos(work) if name == "imagenet" else [p for p, _ in voc_photos(work)]
    if not photos:
        return
    words = [str(binary), command, "--addr", f"http://{address}", "--out", str(out), *map(str, photos)]
    if name != "imagenet":
        words[2:2] = ["--head", name]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise InputError(f"frostline {command}: {done.stderr.strip()[-300:]}")


# === ImageNet ===


def imagenet_photos(work: Path) -> list[Path]:
    """foolbox's photographs; the label is the last number of the name."""
    folder = packages.fetch(packages.FOOLBOX, work)
    return sorted(folder.rglob("imagenet_*_*.jpg"))


def crop(path: Path) -> torch.Tensor:
    """The picture as timm crops it: shortest side to 256, bicubic, the middle 224; -1 to 1."""
    wide = round(models.SIZE / models.CROP)
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        scale = wide / min(picture.size)
        picture = picture.resize(tuple(max(wide, round(side * scale)) for side in picture.size), Image.Resampling.BICUBIC)
    left, top = ((side - models.SIZE) // 2 for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + models.SIZE, top + models.SIZE)))
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


@torch.no_grad()
def imagenet(work: Path, address: str) -> dict:
    """Top-1 and top-5 on foolbox's photographs, and logits beside PyTorch's on every photograph."""
    network = models.lite0(packages.fetch(packages.LITE0, work))
    classify, raw = Remote(address, "imagenet"), Remote(address, "logits")
    first = fifth = 0
    cosines = []
    photos = imagenet_photos(work)
    for path in photos:
        label = int(path.stem.split("_")[2])
        order = np.argsort(-classify.classify(path), kind="stable")
        first += order[0] == label
        fifth += label in order[:5]
    for path in [*photos, *(p for p, _ in voc_photos(work))]:
        served, own = next(iter(raw.tensors(path).values())).ravel(), network(crop(path))[0].numpy()
        cosines.append(float(served @ own / np.linalg.norm(served) / np.linalg.norm(own)))
    classify.close(), raw.close()
    return {
        "photos": len(photos), "top1": int(first), "top5": int(fifth), "compared": len(cosines), "least_cosine": min(cosines)
    }  # fmt: skip


# === COCO ===


def voc_photos(work: Path) -> list[tuple[Path, list]]:
    """labelme's VOC photographs with the boxes of their outlines; none where the package cannot be had."""
    folder = packages.fetch(packages.LABELME, work)
    found = []
    for path in sorted(folder.rglob("instance_segmentation/data_annotated/*.json")) if folder else []:
        outlines: dict[tuple, list] = {}
        for i, shape in enumerate(packages.read_json(path)["shapes"]):
            group = shape.get("group_id")  # the outlines of one object
            outlines.setdefault((shape["label"], i if group is None else f"group {group}"), []).extend(shape["points"])
        boxes = [
            (name, [*np.min(points, 0), *np.max(points, 0)])
            for (name, _), points in outlines.items() if not name.startswith("__")
        ]  # fmt: skip
        found.append((path.with_suffix(".jpg"), boxes))
    return found


def coco(work: Path, address: str) -> dict:
    """Labelled objects that the detector finds: same name, IoU of one half or more, each once."""
    remote, found, total, rows = Remote(address, "coco"), 0, 0, []
    for path, boxes in voc_photos(work):
        got = remote.detect(path)
        free = set(range(len(got)))
        for name, box in boxes:
            total += 1
            wanted = COCO_NAMES.get(name, name)
            match = next(
                (i for i in sorted(free) if remote.labels[got[i].label] == wanted and iou(got[i].box, box) >= 0.5), None
            )
            if match is not None:
                free.remove(match)
                found += 1
        rows.append(len(got))
    remote.close()
    return {"photos": len(rows), "objects": total, "found": found, "detections": sum(rows)}


def iou(a, b) -> float:
    a, b = np.asarray(a, float), np.asarray(b, float)
    side = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = side.prod()
    return both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both)


# === text ===


def text(work: Path, address: str) -> dict:
    """Pixels that the server calls text beside those of the package's own graph and threshold."""
    path = packages.find(packages.fetch(packages.TEXT, work), "ch_PP-OCRv4_det_infer.onnx")
    original, remote = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), Remote(address, "text")
    pictures, differ, pixels = 0, 0, 0
    for photo in [*(p for p, _ in voc_photos(work)), *imagenet_photos(work)[:4]]:
        with Image.open(photo) as picture:
            side = (models.TEXT_SIZE, models.TEXT_SIZE)
            image = np.asarray(picture.convert("RGB").resize(side, Image.Resampling.BILINEAR))
        x = (image[None, :, :, ::-1].astype(np.float32) / 255 - 0.5) / 0.5
        chance = original.run(None, {original.get_inputs()[0].name: x.transpose(0, 3, 1, 2)})[0][0, 0]
        got = remote.segment(image)
        pictures, pixels = pictures + 1, pixels + int((chance > 0.3).sum())
        differ += int(((chance > 0.3) != (got == 1)).sum())
    remote.close()
    return {"photos": pictures, "text_pixels": pixels, "pixels_that_differ": differ}


def show(report: dict, work: Path) -> str:
    """For people."""
    lines = []
    if found := report.get("imagenet"):
        lines.append(
            f"ImageNet, {found['photos']} photographs of foolbox: top-1 {found['top1']}, top-5 {found['top5']}; logits beside "
            f"PyTorch's on {found['compared']}: cosine at least {found['least_cosine']:.7f}"
        )
    if found := report.get("text"):
        lines.append(
            f"text, {found['photos']} photographs: {found['pixels_that_differ']} of {found['text_pixels']} text pixels differ "
            "from the package's own graph"
        )
    if found := report.get("coco"):
        lines.append(f"COCO, {found['photos']} VOC photographs: {found['found']} of {found['objects']} labelled objects found")
    lines.append(f"{report['seconds']} s; annotated pictures are in {work / 'pictures'}")
    return "\n".join(lines)
