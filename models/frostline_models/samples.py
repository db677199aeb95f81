"""Held-out pictures and clips at viewing size, with their truth."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .clips import Clip, draw_clip, render_clip
from .dataset import FIRST_SEED
from .export import write
from .labels import MOTIONS, THING_NAMES
from .scenes import Scene, crowds, draw_scene, render

#: (aspect, longer side in pixels) of the pictures.
PICTURES = (
    (4 / 3, 640), (3 / 4, 640), (1.0, 512), (16 / 9, 640),
    (4 / 3, 640), (1.0, 512), (3 / 4, 640), (4 / 3, 640),
)  # fmt: skip
CLIPS = ("moves left", "bounces", "grows")
#: Seeds of the held-out split that evaluation does not reach.
SAMPLE_SEED = FIRST_SEED["heldout"] + 500_000


def _jpeg(pixels, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def write_samples(folder: Path) -> None:
    """Pictures ``scene-N.jpg``, clips ``clip-N/frame-M.jpg`` and ``truth.json``."""
    truth: dict[str, list] = {"pictures": [], "clips": []}
    seed = SAMPLE_SEED
    for number, (aspect, longest) in enumerate(PICTURES, 1):
        scene = _composed(seed, aspect)
        seed = scene.seed
        made = render(scene, longest)
        name = f"scene-{number}.jpg"
        write(folder / name, _jpeg(made.image, 86))
        truth["pictures"].append({
            "file": name, "width": made.image.shape[1], "height": made.image.shape[0],
            "objects": [
                {"label": THING_NAMES[c], "box": list(b)}
                for c, b in zip(made.classes, made.boxes)
            ],
        })  # fmt: skip
        seed += 1
    for number, motion in enumerate(CLIPS, 1):
        clip = _clip_of(motion, seed)
        seed = clip.scene.seed + 1
        frames = render_clip(clip, 256)
        names = [f"clip-{number}/frame-{i}.jpg" for i in range(len(frames))]
        for name, frame in zip(names, frames):
            write(folder / name, _jpeg(frame, 85))
        truth["clips"].append({
            "frames": names, "width": frames.shape[2], "height": frames.shape[1],
            "motion": motion, "actor": THING_NAMES[clip.actor.label],
        })  # fmt: skip
    write(folder / "truth.json", json.dumps(truth, indent=1) + "\n")


def _composed(seed: int, aspect: float) -> Scene:
    """The next scene with three things or more that are neither tiny, cut off nor piled up."""
    while True:
        scene = replace(draw_scene(seed, "heldout"), aspect=aspect)
        pairs = itertools.combinations(scene.things, 2)
        whole = all(
            t.size > 0.22 and 0.12 < t.x < 0.88 and 0.12 < t.y < 0.88 for t in scene.things
        )
        if len(scene.things) >= 3 and whole and not any(crowds(a, b, aspect, 0.2) for a, b in pairs):
            return scene
        seed += 1


def _clip_of(motion: str, seed: int) -> Clip:
    """The next 4:3 clip that shows ``motion`` with its actor well inside the picture."""
    while True:
        clip = draw_clip(seed, "heldout")
        centred = 0.25 < clip.actor.x < 0.75 and 0.3 < clip.actor.y < 0.7
        if MOTIONS[clip.motion] == motion and centred and abs(clip.scene.aspect - 4 / 3) < 0.01:
            return clip
        seed += 1
