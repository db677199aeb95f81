"""How far an exported backbone is from the PyTorch one, per level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

#: What a precision must reach: largest error over the level's standard deviation, least cosine.
GATES = {
    "fp32": (1e-3, 0.99999),
    "fp16": (None, 0.999),
    "bf16": (None, 0.995),
    "int8": (None, 0.98),
}


@dataclass(frozen=True)
class Level:
    """One feature map's agreement over all images."""

    name: str
    max_abs: float  # largest absolute difference
    scale: float  # standard deviation of the PyTorch map
    cosine: float  # least over the images, each map flattened

    @property
    def relative(self) -> float:
        return self.max_abs / max(self.scale, 1e-12)


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 ``[count, size, size, 3]``: smooth colour fields with edges and a little noise.

    White noise would look the same to every window; these have structure at all scales.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size), indexing="ij")
    out = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        image = np.zeros((size, size, 3))
        for octave in (1, 2, 4, 8, 16, 32):
            a, b, phase = rng.normal(0, octave, 3), rng.normal(0, octave, 3), rng.uniform(0, 6.3, 3)
            wave = np.sin(2 * np.pi * (x[..., None] * a + y[..., None] * b) + phase)
            image += wave * 70 / octave**0.5
        for _ in range(6):
            cy, cx, radius = rng.uniform(0, 1, 2).tolist() + [rng.uniform(0.03, 0.25)]
            image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] += rng.uniform(-120, 120, 3)
        image += rng.normal(0, 6, image.shape)
        out[i] = np.clip(image + rng.uniform(70, 180, 3), 0, 255)
    return out


def features(module: nn.Module, images: np.ndarray) -> list[np.ndarray]:
    """PyTorch's maps, one image at a time (memory, not speed, is scarce)."""
    rows = []
    with torch.no_grad():
        for image in images:
            rows.append([m.float().numpy() for m in module(torch.from_numpy(image[None]))])
    return [np.concatenate(level) for level in zip(*rows)]


def compare(
    names: list[str], wanted: list[np.ndarray], session: ort.InferenceSession, images: np.ndarray
) -> list[Level]:
    """Agreement of a session with PyTorch's maps ``wanted`` on the same images."""
    feed = session.get_inputs()[0].name
    rows = [session.run(names, {feed: image[None]}) for image in images]
    return [
        agreement(name, reference, np.concatenate([row[i] for row in rows]))
        for i, (name, reference) in enumerate(zip(names, wanted))
    ]


def agreement(name: str, wanted: np.ndarray, got: np.ndarray) -> Level:
    """Compares two stacks of maps ``[N, ...]``."""
    a = wanted.reshape(len(wanted), -1).astype(np.float64)
    b = got.reshape(len(got), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(norms, 1e-30)
    return Level(name, float(np.abs(a - b).max()), float(a.std()), float(cosine.min()))


def failures(levels: list[Level], precision: str) -> list[str]:
    """What misses the precision's gate, in words."""
    relative, cosine = GATES[precision]
    missed = []
    for level in levels:
        if not np.isfinite(level.max_abs) or not np.isfinite(level.cosine):
            missed.append(f"{level.name} is not finite")
        elif relative is not None and level.relative > relative:
            missed.append(f"{level.name} is off by {level.relative:.2g} of its scale (> {relative:g})")
        elif level.cosine < cosine:
            missed.append(f"{level.name} has cosine {level.cosine:.4f} (< {cosine})")
    return missed


def table(levels: list[Level]) -> str:
    """For people: one line a level."""
    lines = [f"{'level':<10}{'max abs':>12}{'of scale':>12}{'cosine':>12}"]
    lines += [
        f"{v.name:<10}{v.max_abs:>12.3g}{v.relative:>12.3g}{v.cosine:>12.7f}" for v in levels
    ]
    return "\n".join(lines)


def metrics(levels: list[Level]) -> dict[str, float]:
    """For the manifest's ``[metrics]``."""
    out = {}
    for level in levels:
        out[f"{level.name}_max_abs"] = level.max_abs
        out[f"{level.name}_relative"] = level.relative
        out[f"{level.name}_cosine"] = level.cosine
    return out
