"""Compares the halves with the whole, and times them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image as Pictures
from PIL import UnidentifiedImageError

from ..backbones.parity import pictures as drawn
from ..errors import at
from .build import IMAGE
from .graph import session

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
#: Largest difference that passes, over the larger of 1 and the output's largest value.
TOLERANCE = 1e-5
#: The same where the maps are fp16: a cut rounds what a whole keeps between fused operators.
HALF_TOLERANCE = 5e-3
MOST_PICTURES = 32


@dataclass(frozen=True)
class Output:
    """How far one output of the halves is from the whole's over all pictures."""

    name: str
    max_abs: float
    scale: float  # largest absolute value of the whole's
    exact: bool

    @property
    def relative(self) -> float:
        return self.max_abs / max(1.0, self.scale)


def given(folder: Path | None, size: tuple[int, int]) -> np.ndarray:
    """Pictures to compare on: random ones, and those of a folder stretched to the size."""
    height, width = size
    side = max(size)
    rows = [row[:height, :width] for row in drawn(3, side, seed=5)]
    rows.append(np.random.default_rng(5).integers(0, 256, (height, width, 3)).astype(np.uint8))
    if folder is not None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else [folder]
        if not files:
            raise at(folder, "holds no pictures to compare on")
        for file in files[:MOST_PICTURES]:
            try:
                with Pictures.open(file) as picture:
                    small = picture.convert("RGB").resize((width, height), Pictures.Resampling.BILINEAR)
                    rows.append(np.asarray(small))
            except (OSError, UnidentifiedImageError, ValueError) as error:
                raise at(file, f"is not a readable picture: {error}") from None
    return np.stack(rows)


class Halves:
    """A backbone and a head as the server runs them."""

    def __init__(self, backbone: ort.InferenceSession, head: ort.InferenceSession):
        self.backbone, self.head = backbone, head
        self.names = [i.name for i in head.get_inputs()]
        self.outputs = [o.name for o in head.get_outputs()]

    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        maps = self.backbone.run(self.names, {IMAGE: pictures})
        return self.head.run(self.outputs, dict(zip(self.names, maps)))


def compare(whole, halves, names: list[str], pictures: np.ndarray) -> list[Output]:
    """Two functions from pictures to outputs, one picture at a time."""
    worst, scale, exact = ([0.0] * len(names) for _ in range(3))
    exact = [True] * len(names)
    for picture in pictures:
        for i, (a, b) in enumerate(zip(whole(picture[None]), halves(picture[None]))):
            if a.shape != b.shape:
                worst[i], exact[i] = float("inf"), False
                continue
            exact[i] &= bool(np.array_equal(a, b, equal_nan=True))
            a, b = a.astype(np.float64), b.astype(np.float64)
            if a.size:
                worst[i] = max(worst[i], float(np.abs(a - b).max()))
                scale[i] = max(scale[i], float(np.abs(a).max()))
    return [Output(*row) for row in zip(names, worst, scale, exact)]


def misses(outputs: list[Output], halves: Halves) -> list[str]:
    """What does not agree, in words."""
    half = any("float16" in i.type for i in halves.head.get_inputs())
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    return [
        f"output {o.name!r} is off by {o.max_abs:.3g} where the largest value is {o.scale:.3g}"
        for o in outputs
        if not o.relative <= tolerance
    ]


def batch_misses(halves: Halves, pictures: np.ndarray) -> list[str]:
    """Rows of a batch beside the same pictures alone; near ties may swap."""
    together, wrong = halves(pictures[:3]), []
    for row in range(len(pictures[:3])):
        for name, many, one in zip(halves.outputs, together, halves(pictures[row : row + 1])):
            if len(many) != len(pictures[:3]):
                wrong.append(f"output {name!r} has {len(many)} rows for {len(pictures[:3])} pictures")
                continue
            scale = max(1.0, float(np.abs(one).max())) if one.size else 1.0
            if one.dtype.kind == "f" and np.isclose(many[row], one[0], atol=1e-3 * scale).mean() < 0.95:
                wrong.append(f"output {name!r} of a picture changes with its batch")
    return sorted(set(wrong))


@dataclass(frozen=True)
class Times:
    """Milliseconds for one picture on one thread: each one's fastest of turns taken in one run."""

    whole: float
    backbone: float
    heads: tuple[float, ...]


def measure(whole: onnx.ModelProto, backbone: ort.InferenceSession, heads: list[Halves], picture: np.ndarray, rounds: int = 15) -> Times:
    """Times of the whole model, the backbone and each head."""
    full = session(whole)
    names = [o.name for o in backbone.get_outputs()]
    maps = dict(zip(names, backbone.run(None, {IMAGE: picture[None]})))
    calls = [lambda: full.run(None, {IMAGE: picture[None]}), lambda: backbone.run(None, {IMAGE: picture[None]})]
    for half in heads:
        feed = {name: maps[name] for name in half.names}
        calls.append(lambda half=half, feed=feed: half.head.run(None, feed))
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, times in zip(calls, taken):
            began = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - began))
    least = [min(t[1:]) for t in taken]
    return Times(least[0], least[1], tuple(least[2:]))


def savings(times: Times) -> str:
    """What sharing saves: n models apart beside one backbone and n such heads."""
    head = sum(times.heads) / len(times.heads)
    lines = [
        f"one thread, one picture: whole {times.whole:.1f} ms, backbone {times.backbone:.1f} ms, "
        f"head {', '.join(f'{h:.1f}' for h in times.heads)} ms",
        f"{'heads':>7}{'apart':>12}{'shared':>12}{'saved':>9}",
    ]
    for n in (1, 2, 4, 8):
        apart, shared = n * times.whole, times.backbone + n * head
        lines.append(f"{n:>7}{apart:>9.1f} ms{shared:>9.1f} ms{100 * (1 - shared / apart):>8.0f}%")
    return "\n".join(lines)
