"""Clips: one actor that moves, grows, shrinks, spins, blinks or bounces, among bystanders."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .backgrounds import paint
from .labels import FRAMES, MOTIONS, STUFF
from .scenes import PAD, Scene, Thing, canvas_size, draw_scene, draw_thing, finish, paste


@dataclass(frozen=True)
class Clip:
    scene: Scene  # its things are the bystanders, which stay where they are
    actor: Thing
    motion: int
    amount: float  # how far or how much, 0..1
    phase: float


def draw_clip(seed: int, split: str) -> Clip:
    """The clip of a seed.  Bystanders are few and the actor is drawn over them."""
    scene = draw_scene(seed, split, most=6)
    rng = np.random.default_rng((seed, 2 if split == "train" else 3))
    actor = replace(draw_thing(rng), size=float(rng.uniform(0.22, 0.5)))
    motion, amount = int(rng.integers(len(MOTIONS))), float(rng.uniform(0.25, 1))
    if MOTIONS[motion] == "spins" and actor.label in ROUND:
        actor = replace(actor, label=int(rng.choice(NOT_ROUND)))
    bystanders = [replace(t, size=min(t.size, 0.3)) for t in scene.things]
    scene = replace(scene, things=tuple(bystanders[: int(rng.integers(0, 3))]))
    return Clip(scene, actor, motion, amount, float(rng.random()))


#: Things that look the same whichever way they are turned.
ROUND = (20,)
NOT_ROUND = tuple(i for i in range(20))


def pose(clip: Clip, frame: int, frames: int = FRAMES) -> Thing:
    """The actor in one frame."""
    actor, name = clip.actor, MOTIONS[clip.motion]
    t = frame / (frames - 1)
    if name.startswith("moves"):
        travel = 0.25 + 0.4 * clip.amount
        dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[name[6:]]
        x = 0.5 - dx * travel / 2 if dx else actor.x
        y = 0.5 - dy * travel / 2 if dy else actor.y
        # Off the centre line by a little, so that where it starts does not give it away.
        x, y = x + dx * (clip.phase - 0.5) * 0.3, y + dy * (clip.phase - 0.5) * 0.3
        return replace(actor, x=x + dx * travel * t, y=y + dy * travel * t)
    if name in ("grows", "shrinks"):
        ratio = 1.5 + 0.9 * clip.amount
        start = min(actor.size, 0.32)
        when = t if name == "grows" else 1 - t
        return replace(actor, size=start * ratio**when)
    if name == "spins":
        turn = (150 + 210 * clip.amount) * (1 if clip.phase < 0.5 else -1)
        return replace(actor, angle=actor.angle + turn * t)
    if name == "blinks":
        period = 2 if clip.amount < 0.5 else 4
        return replace(actor, visible=(frame + int(clip.phase * 4)) % period < period / 2)
    if name == "bounces":
        lift = abs(np.sin(np.pi * (t * (1.5 + 0.7 * clip.amount) + 0.3 * clip.phase)))
        height = 0.22 + 0.18 * clip.amount
        return replace(actor, y=0.72 - height * float(lift))
    return actor


def render_clip(clip: Clip, longest: int = 128) -> np.ndarray:
    """uint8 RGB frames ``[FRAMES, H, W, 3]``; the background and bystanders are drawn once."""
    width, height = canvas_size(clip.scene.aspect, longest)
    base, labels = paint(clip.scene.background, width, height)
    instances = np.zeros((height, width), np.uint8)
    for number, thing in enumerate(clip.scene.things):
        paste(base, labels, instances, thing, number)
    rng = np.random.default_rng((clip.scene.seed, 9))
    level = rng.uniform(0, 4)
    frames = []
    for frame in range(FRAMES):
        image = base.copy()
        paste(image, labels, instances, pose(clip, frame), len(clip.scene.things))
        grain = rng.normal(0, level, (height, width, 1)).astype(np.float32)
        frames.append(finish(image, clip.scene.light, grain))
    return np.stack(frames)


def letterbox_clip(frames: np.ndarray, size: int = 128) -> np.ndarray:
    """Centres frames whose longer side is ``size`` on squares with bars of ``PAD``."""
    count, height, width = frames.shape[:3]
    x, y = (size - width) // 2, (size - height) // 2
    out = np.full((count, size, size, 3), PAD, np.uint8)
    out[:, y : y + height, x : x + width] = frames
    return out
