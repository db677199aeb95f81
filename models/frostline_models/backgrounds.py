"""Procedural stuff: sky, grass, water, sand and road, in a layout that makes sense.

Everything is described in units of the canvas, so one description renders at
any size.  The held-out split draws from other palettes and texture scales than
the training split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .labels import STUFF

SKY, GRASS, WATER, SAND, ROAD = range(len(STUFF))

#: RGB anchors per stuff; colours are mixtures of two anchors.  Held-out anchors are others.
PALETTES: dict[str, dict[int, list[tuple[int, int, int]]]] = {
    "train": {
        SKY: [(120, 180, 240), (170, 210, 245), (90, 140, 220), (240, 180, 140), (205, 215, 230)],
        GRASS: [(70, 140, 50), (110, 170, 70), (50, 100, 40), (140, 160, 70)],
        WATER: [(30, 90, 150), (40, 130, 160), (20, 70, 110), (70, 150, 170)],
        SAND: [(225, 200, 150), (240, 220, 180), (200, 170, 120), (215, 185, 140)],
        ROAD: [(90, 90, 95), (120, 120, 120), (65, 65, 72), (105, 100, 95)],
    },
    "heldout": {
        SKY: [(140, 190, 235), (105, 160, 235), (225, 195, 165), (185, 205, 235)],
        GRASS: [(90, 150, 60), (60, 120, 50), (125, 165, 65)],
        WATER: [(30, 110, 150), (35, 80, 130), (55, 140, 175)],
        SAND: [(230, 210, 165), (210, 180, 130), (220, 195, 155)],
        ROAD: [(80, 80, 85), (110, 110, 112), (98, 95, 95)],
    },
}
#: Cells per canvas of the coarse and fine noise, by split: (low, high).
GRAIN = {"train": ((3, 9), (24, 64)), "heldout": ((4, 8), (30, 56))}


@dataclass
class Background:
    """One drawn background: parameters only, no pixels."""

    split: str
    horizon: float  # height of the sky as a share of the canvas; below 0: no sky
    ground: int
    second: int | None  # a further stuff in the ground, or None
    shape: str  # how the second one lies: "road", "band" or "side"
    wave: np.ndarray  # [6]: phases and heights of the boundary waves
    place: np.ndarray  # [4]: where the second stuff lies
    seed: int


def draw_background(rng: np.random.Generator, split: str) -> Background:
    layout = rng.random()
    ground = int(rng.choice([GRASS, WATER, SAND, ROAD], p=[0.35, 0.22, 0.23, 0.2]))
    horizon = float(rng.uniform(0.2, 0.65))
    if layout < 0.15:  # looking down, or up
        horizon = -1.0 if rng.random() < 0.7 else 2.0
    second, shape = None, "band"
    if rng.random() < 0.6:
        second = int(rng.choice([s for s in (GRASS, WATER, SAND, ROAD) if s != ground]))
        shape = "road" if second == ROAD else str(rng.choice(["band", "side"]))
    return Background(
        split, horizon, ground, second, shape, rng.uniform(0, 1, 6), rng.uniform(0, 1, 4),
        int(rng.integers(2**31)),
    )  # fmt: skip


def layout(bg: Background, width: int, height: int) -> np.ndarray:
    """Stuff label per pixel, uint8 ``[height, width]``."""
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    a, b, c, d, e, f = bg.wave
    ridge = bg.horizon + 0.04 * a * np.sin(6.3 * (x * (1 + 2 * b) + c))
    labels = np.where(y < ridge, SKY, bg.ground).astype(np.uint8)
    if bg.second is None:
        return labels
    p, q, r, s = bg.place
    top = max(bg.horizon, 0.0)
    depth = (y - top) / max(1 - top, 1e-3)
    if bg.shape == "road":
        centre = 0.2 + 0.6 * p + (q - 0.5) * 0.9 * depth
        inside = np.abs(x - centre) < 0.04 + (0.12 + 0.25 * r) * depth
    elif bg.shape == "band":
        edge = 0.25 + 0.4 * p + 0.07 * d * np.sin(6.3 * (x * (0.7 + 2 * e) + f))
        inside = (depth > edge) if q < 0.6 else (depth < edge)
    else:
        edge = 0.3 + 0.4 * p + (q - 0.5) * 0.5 * depth + 0.06 * d * np.sin(6.3 * (y * 2 * e + f))
        inside = (x < edge) if r < 0.5 else (x > edge)
    labels[(y >= ridge) & inside] = bg.second
    return labels


def noise(rng: np.random.Generator, cols: int, rows: int, width: int, height: int) -> np.ndarray:
    """Smooth noise of about -1..1, ``[height, width]``, from a ``rows x cols`` grid."""
    grid = rng.uniform(-1, 1, (max(rows, 2), max(cols, 2))).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _texture(
    rng: np.random.Generator, stuff: int, split: str, width: int, height: int
) -> np.ndarray:
    """One stuff's pixels over the whole canvas, float32 RGB in 0..255."""
    anchors = np.array(PALETTES[split][stuff], np.float32)
    one, two = anchors[rng.permutation(len(anchors))[:2]]
    base = one + (two - one) * rng.random() * 0.6
    drift = (two - one) * 0.35
    (low, high), (fine_low, fine_high) = GRAIN[split]
    coarse_cells, fine_cells = int(rng.integers(low, high)), int(rng.integers(fine_low, fine_high))
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    if stuff == SKY:
        puffs = noise(rng, coarse_cells, coarse_cells * 2, width, height)
        clouds = np.clip(puffs * 1.6 - rng.uniform(0.1, 1.2), 0, 0.8)[..., None]
        out = base * (0.88 + 0.2 * y[..., None]) + drift * y[..., None]
        return out + (np.float32(245) - out) * clouds
    if stuff == WATER:
        tone = 14 * noise(rng, coarse_cells, fine_cells, width, height)
        tone += 6 * noise(rng, fine_cells // 3, fine_cells * 2, width, height)
    elif stuff == GRASS:
        tone = 16 * noise(rng, fine_cells * 2, fine_cells, width, height)
        tone += 10 * noise(rng, coarse_cells, coarse_cells, width, height)
    elif stuff == SAND:
        tone = 9 * noise(rng, fine_cells * 2, fine_cells * 2, width, height)
        tone += 7 * noise(rng, coarse_cells, coarse_cells * 2, width, height)
    else:
        tone = 8 * noise(rng, fine_cells * 2, fine_cells * 2, width, height)
        tone += 5 * noise(rng, coarse_cells, coarse_cells, width, height)
    patch = 0.5 + 0.5 * noise(rng, coarse_cells, coarse_cells, width, height)[..., None]
    return base + drift * patch + tone[..., None]


def paint(bg: Background, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The background's pixels (float32 RGB, 0..255) and its stuff labels (uint8)."""
    labels = layout(bg, width, height)
    image = np.zeros((height, width, 3), np.float32)
    for stuff in range(len(STUFF)):
        inside = labels == stuff
        if inside.any():
            rng = np.random.default_rng((bg.seed, stuff))
            np.copyto(image, _texture(rng, stuff, bg.split, width, height), where=inside[..., None])
    return image, labels
