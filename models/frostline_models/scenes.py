"""Scenes: things on stuff, with exact boxes, masks and label maps.

A :class:`Scene` is a description in units of the canvas and renders at any size:
at 128 px to train on, at 640 px for people to look at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from .backgrounds import Background, draw_background, paint
from .labels import IGNORE, STUFF, THING_NAMES
from .sprites import posed

#: Width over height of scenes; all but the first leave letterbox bars.
ASPECTS = (1.0, 4 / 3, 3 / 4, 3 / 2, 16 / 9, 9 / 16)
ASPECT_WEIGHTS = (0.35, 0.25, 0.15, 0.1, 0.1, 0.05)
#: An instance with fewer visible pixels at 128 px than this is not annotated.
MIN_PIXELS = 40
PAD = 114
LEAST = 0.19


@dataclass(frozen=True)
class Thing:
    """One object; ``x``, ``y`` in canvas widths and heights, ``size`` in shorter sides."""

    label: int
    x: float
    y: float
    size: float
    angle: float
    flip: bool
    gain: tuple[float, float, float]  # light per channel
    slope: float  # light falling off across the object
    shadow: float  # darkness of its shadow, 0 for none
    visible: bool = True


@dataclass(frozen=True)
class Scene:
    aspect: float
    background: Background
    things: tuple[Thing, ...]
    light: tuple[float, float, float]
    seed: int


@dataclass
class Rendered:
    """Pixels and truth: ``image`` uint8 RGB, ``labels`` uint8 scene classes, ``instances``
    uint8 (0 or thing number + 1), and per annotated instance its class, number and box."""

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    classes: list[int]
    numbers: list[int]
    boxes: list[tuple[int, int, int, int]]


def draw_thing(rng: np.random.Generator, label: int | None = None, least: float = LEAST) -> Thing:
    """``least``: size of the smallest things, in shorter sides of the canvas."""
    if label is None:
        label = int(rng.integers(len(THING_NAMES)))
    size = float(np.exp(rng.uniform(np.log(least), np.log(0.62))))
    gain = rng.uniform(0.72, 1.2) * rng.uniform(0.93, 1.07, 3)
    turned = rng.random() < 0.35
    angle = float(rng.uniform(-180, 180) if turned else rng.uniform(-20, 20))
    shadow = float(rng.uniform(0.2, 0.5)) if rng.random() < 0.6 else 0.0
    x, y = rng.uniform(0.08, 0.92, 2)
    return Thing(
        label, float(x), float(y), size, angle, bool(rng.random() < 0.5),
        tuple(float(g) for g in gain), float(rng.uniform(-0.35, 0.35)), shadow,
    )  # fmt: skip


def crowds(a: Thing, b: Thing, aspect: float, limit: float) -> bool:
    """Whether two things overlap by more than ``limit`` of the smaller one's square."""
    width, height = (aspect, 1.0) if aspect >= 1 else (1.0, 1 / aspect)
    reach = (a.size + b.size) / 2 * 0.85
    over_x = reach - abs(a.x - b.x) * width
    over_y = reach - abs(a.y - b.y) * height
    if over_x <= 0 or over_y <= 0:
        return False
    small = min(a.size, b.size) * 0.85
    return min(over_x, small) * min(over_y, small) > limit * small**2


def draw_scene(seed: int, split: str, most: int = 6, least: float = LEAST) -> Scene:
    """The scene of a seed; the same arguments give the same scene for ever."""
    rng = np.random.default_rng((seed, 0 if split == "train" else 1))
    aspect = float(rng.choice(ASPECTS, p=ASPECT_WEIGHTS))
    background = draw_background(rng, split)
    things: list[Thing] = []
    for _ in range(int(rng.integers(1, most + 1))):
        for _attempt in range(6):
            thing = draw_thing(rng, least=least)
            if not any(crowds(thing, other, aspect, 0.4) for other in things):
                things.append(thing)
                break
    light = rng.uniform(0.8, 1.15) * rng.uniform(0.95, 1.05, 3)
    return Scene(aspect, background, tuple(things), tuple(map(float, light)), seed)


def canvas_size(aspect: float, longest: int) -> tuple[int, int]:
    """(width, height) of a canvas whose longer side is ``longest`` pixels."""
    if aspect >= 1:
        return longest, max(1, round(longest / aspect))
    return max(1, round(longest * aspect)), longest


def paste(
    image: np.ndarray, labels: np.ndarray, instances: np.ndarray, thing: Thing, number: int
) -> None:
    """Draws a thing over the canvas, in place, and enters it in the label maps."""
    if not thing.visible:
        return
    height, width = labels.shape
    short = min(width, height)
    pixels = posed(thing.label, thing.size * short, thing.angle, thing.flip)
    h, w = pixels.shape[:2]
    x0, y0 = round(thing.x * width - w / 2), round(thing.y * height - h / 2)
    if thing.shadow:
        _shade(image, pixels[..., 3], x0, y0, thing.shadow, short)
    cut_x, cut_y = max(0, -x0), max(0, -y0)
    pixels = pixels[cut_y : height - y0, cut_x : width - x0]
    h, w = pixels.shape[:2]
    if not (h and w):
        return
    area = np.s_[max(y0, 0) : max(y0, 0) + h, max(x0, 0) : max(x0, 0) + w]
    alpha = pixels[..., 3:]
    fall = 1 + thing.slope * np.linspace(-0.5, 0.5, w, dtype=np.float32)[None, :, None]
    colour = pixels[..., :3] * (255 * np.array(thing.gain, np.float32)) * fall
    image[area] += (colour - image[area]) * alpha
    solid = alpha[..., 0] > 0.5
    labels[area][solid] = len(STUFF) + thing.label
    instances[area][solid] = number + 1


def _shade(
    image: np.ndarray, alpha: np.ndarray, x: int, y: int, dark: float, short: int
) -> None:
    """A soft shadow a little down and to the right of a thing."""
    blur = max(1, round(short * 0.015))
    pad = 2 * blur
    mask = Image.fromarray((np.pad(alpha, pad) * 255).astype(np.uint8))
    soft = np.asarray(mask.filter(ImageFilter.BoxBlur(blur)), np.float32) / 255 * dark
    x, y = x - pad + blur * 2, y - pad + blur * 2
    height, width = image.shape[:2]
    soft = soft[max(0, -y) : height - y, max(0, -x) : width - x]
    h, w = soft.shape
    if h and w:
        image[max(y, 0) : max(y, 0) + h, max(x, 0) : max(x, 0) + w] *= 1 - soft[..., None]


def finish(image: np.ndarray, light: tuple[float, float, float], grain: np.ndarray) -> np.ndarray:
    """Global light and sensor grain; float to uint8."""
    return np.clip(image * np.array(light, np.float32) + grain, 0, 255).astype(np.uint8)


def grain_for(scene: Scene, width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng((scene.seed, 7))
    return rng.normal(0, rng.uniform(0, 4), (height, width, 1)).astype(np.float32)


def annotate(image: np.ndarray, labels: np.ndarray, instances: np.ndarray, scene: Scene) -> Rendered:
    """Boxes from what is visible of each thing (pixel-edge coordinates, xyxy)."""
    height, width = labels.shape
    least = MIN_PIXELS * (max(width, height) / 128) ** 2
    out = Rendered(image, labels, instances, [], [], [])
    for number, thing in enumerate(scene.things):
        mask = instances == number + 1
        if np.count_nonzero(mask) < least:
            continue
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        out.classes.append(thing.label)
        out.numbers.append(number)
        out.boxes.append((int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1))
    return out


def render(scene: Scene, longest: int = 128) -> Rendered:
    """The scene on a canvas whose longer side is ``longest`` pixels."""
    width, height = canvas_size(scene.aspect, longest)
    image, labels = paint(scene.background, width, height)
    instances = np.zeros((height, width), np.uint8)
    for number, thing in enumerate(scene.things):
        paste(image, labels, instances, thing, number)
    image = finish(image, scene.light, grain_for(scene, width, height))
    return annotate(image, labels, instances, scene)


def letterbox(rendered: Rendered, size: int = 128) -> Rendered:
    """Centres a rendering whose longer side is ``size`` on a square with bars of ``PAD``."""
    height, width = rendered.labels.shape
    x, y = (size - width) // 2, (size - height) // 2
    area = np.s_[y : y + height, x : x + width]
    image = np.full((size, size, 3), PAD, np.uint8)
    labels = np.full((size, size), IGNORE, np.uint8)
    instances = np.zeros((size, size), np.uint8)
    image[area], labels[area], instances[area] = (
        rendered.image, rendered.labels, rendered.instances,
    )  # fmt: skip
    boxes = [(a + x, b + y, c + x, d + y) for a, b, c, d in rendered.boxes]
    return replace(rendered, image=image, labels=labels, instances=instances, boxes=boxes)
