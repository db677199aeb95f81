"""One picture of the best and worst cases of an evaluation."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .metrics import Result

TILE, BAR = 224, 30


def colour(label: int) -> tuple[int, int, int]:
    """Far apart for neighbouring labels."""
    r, g, b = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 0.95)
    return int(255 * r), int(255 * g), int(255 * b)


def save(
    path: Path, result: Result, dataset, task: str, frames: int = 1, stride: int | None = None, each: int = 6,
) -> None:  # fmt: skip
    """The worst cases in the first row, the best in the second."""
    ranked = np.argsort(result.scores, kind="stable")
    rows = [ranked[:each], ranked[::-1][:each]]
    sheet = Image.new("RGB", (TILE * max(map(len, rows)), 2 * (TILE + BAR)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, index in enumerate(int(i) for i in row):
            tile, text = _tile(dataset, task, index, result.predictions[index], frames, stride)
            x, y = c * TILE, r * (TILE + BAR)
            tile.thumbnail((TILE, TILE))
            sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
            draw.text((x + 4, y + TILE + 2), f"{'worst' if r == 0 else 'best'} {result.scores[index]:.2f}")
            draw.text((x + 4, y + TILE + 15), text[:36])
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _tile(dataset, task: str, index: int, found, frames: int, stride: int | None) -> tuple[Image.Image, str]:
    if task == "action":
        best, truth = int(np.argmax(found)), dataset.target(index)
        image = Image.fromarray(dataset.frames(index, frames, stride, 0.5)[frames // 2])
        return image, f"{dataset.labels[best]} ({dataset.labels[truth]})"
    if task in ("classification", "embedding"):
        best, truth = int(np.argmax(found)), dataset.target(index)
        return Image.fromarray(dataset.image(index)), f"{dataset.labels[best]} ({dataset.labels[truth]})"
    pixels = dataset.image(index).astype(np.float32)
    if task == "segmentation":
        shade = np.zeros_like(pixels)
        for label in np.unique(found):
            shade[found == label] = colour(int(label))
        return Image.fromarray((0.45 * pixels + 0.55 * shade).astype(np.uint8)), dataset.key(index)
    sure = [d for d in found if d.score >= 0.3]
    for d in sure:
        if d.mask is not None:
            pixels[d.mask] = 0.5 * pixels[d.mask] + 0.5 * np.array(colour(d.label))
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for box in dataset.things(index).boxes:
        draw.rectangle([float(v) for v in box], outline=(255, 255, 255))
    for d in sure:
        draw.rectangle([float(v) for v in d.box], outline=colour(d.label), width=2)
    return image, ", ".join(dataset.labels[d.label] for d in sure)
