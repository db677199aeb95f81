"""Writes ``cases.json``: what :doc:`GEOMETRY.md` says of some hundred images and clips.

usage: python generate.py [FILE]

Written from the page alone: exact fractions for sizes, Pillow for resampling, numpy for the rest.  Nothing is imported
from the server or from ``frostline_models``, which are both tested against the file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
from PIL import Image

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
HALF = Fraction(1, 2)

#: Sizes of images (width, height): one size in eight at long side 512 into 128 is a tie; slivers; equal to the input.
SIZES = [
    (512, 338), (338, 512), (512, 342), (512, 346), (510, 338), (640, 480), (480, 640), (500, 375), (333, 217),
    (427, 640), (128, 128), (127, 129), (129, 127), (200, 128), (128, 200), (64, 48), (31, 17), (1, 1), (2, 1), (1, 3),
    (700, 90), (90, 700), (300, 2), (1, 400), (256, 171), (171, 256), (97, 101), (768, 33), (20, 26), (100, 241),
]  # fmt: skip
#: Ways to fit, as ``[input]`` of a manifest says them.
WAYS = [
    {"resize": "letterbox"},
    {"resize": "letterbox", "filter": "bicubic", "pad": 0},
    {"resize": "stretch"},
    {"resize": "stretch", "filter": "bicubic"},
    {"resize": "center_crop"},
    {"resize": "center_crop", "crop_fraction": 0.875},
    {"resize": "center_crop", "crop_fraction": 0.9, "filter": "bicubic"},
]
#: Inputs (width, height).
INPUTS = [(128, 128), (96, 64), (64, 96), (224, 224), (33, 47)]
EXTRA = [
    {"resize": "letterbox", "pad": 255},
    {"resize": "center_crop", "crop_fraction": 0.1},
    {"resize": "center_crop", "crop_fraction": 0.95},
    {"resize": "center_crop", "crop_fraction": 1.0, "filter": "bicubic"},
]


def half_up(value: Fraction) -> int:
    return floor(value + HALF)


def picture(width: int, height: int) -> np.ndarray:
    """uint8 ``[H, W, 3]`` that any language can make: slopes, edges and some noise."""
    x = np.arange(width, dtype=np.uint64)[None, :, None]
    y = np.arange(height, dtype=np.uint64)[:, None, None]
    c = np.arange(3, dtype=np.uint64)[None, None]
    mixed = (x * 2654435761 + y * 40503 + c * 97) % 4294967296
    slope = x * 3 + y * 5 + c * 85 + (x // 7 + y // 5) % 2 * 90
    return ((slope + (mixed >> 16) % 32) % 256).astype(np.uint8)


def place(w: int, h: int, W: int, H: int, way: dict) -> tuple[int, int, int, int]:
    """``(resized width, resized height, left, top)``."""
    across, down = Fraction(W, w), Fraction(H, h)
    if way["resize"] == "stretch":
        return W, H, 0, 0
    if way["resize"] == "letterbox":
        scale = min(across, down)
        rw, rh = max(1, half_up(w * scale)), max(1, half_up(h * scale))
        return rw, rh, (W - rw) // 2, (H - rh) // 2
    share = way.get("crop_fraction", 1.0)
    scale = max(Fraction(floor(W / share), w), Fraction(floor(H / share), h))
    rw, rh = max(1, half_up(w * scale)), max(1, half_up(h * scale))
    return rw, rh, -((rw - W) // 2), -((rh - H) // 2)


def seen(count: int, resized: int, offset: int, cells: int) -> list[int]:
    """First pixel whose centre lies in the input, and one past the last: how many lie before its edges."""
    centres = [(i + HALF) * resized / count + offset for i in range(count)]
    return [sum(c < 0 for c in centres), sum(c < cells for c in centres)]


def image_case(w: int, h: int, W: int, H: int, way: dict) -> dict:
    rw, rh, left, top = place(w, h, W, H, way)
    whole = Image.fromarray(picture(w, h)).resize((rw, rh), FILTERS[way.get("filter", "bilinear")])
    ground = np.full((H, W, 3), way.get("pad", 114), np.uint8)
    pixels = np.asarray(whole)[max(0, -top) : max(0, -top) + H, max(0, -left) : max(0, -left) + W]
    ground[max(0, top) : max(0, top) + pixels.shape[0], max(0, left) : max(0, left) + pixels.shape[1]] = pixels
    return {
        "image": [w, h], "input": [W, H], **way, "resized": [rw, rh], "offset": [left, top],
        "seen": [*seen(w, rw, left, W), *seen(h, rh, top, H)],
        "mean": round(float(ground.mean()), 6), "sha256": hashlib.sha256(ground.tobytes()).hexdigest(),
    }  # fmt: skip


def frames(n: int, count: int, stride: int | None) -> list[int]:
    span = None if stride is None else (count - 1) * stride + 1
    if span is not None and n >= span:
        start = half_up((n - span) * HALF)
        return [start + i * stride for i in range(count)]
    return [floor(Fraction(2 * i + 1, 2 * count) * n) for i in range(count)]


def cases() -> dict:
    images = [image_case(w, h, 128, 128, way) for way in WAYS for w, h in SIZES]
    few = SIZES[::4]
    images += [image_case(w, h, W, H, way) for W, H in INPUTS[1:] for way in WAYS[:1] + WAYS[4:6] for w, h in few]
    images += [image_case(w, h, 128, 128, way) for way in EXTRA for w, h in few]
    clips = [
        {"clip": n, "frames": count, "frame_stride": stride, "read": frames(n, count, stride)}
        for count in (1, 2, 3, 8, 16)
        for stride in (None, 1, 2, 4, 8)
        for n in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 29, 30, 31, 32, 61, 62, 64, 121, 300)
    ]
    return {"images": images, "clips": clips}


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("cases.json")
    table = cases()
    parts = []
    for name, rows in table.items():
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        parts.append(f' "{name}": [\n{lines}\n ]')
    out.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
