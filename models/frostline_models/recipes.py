"""Recipes: one TOML file from a checkpoint and a data set to a served, evaluated head.

A recipe names the backbone (size, window, what the checkpoint was trained at), the head, the
data set's layout, how to train and how to evaluate, and what that costs.  Unknown keys are
refused; ``--set section.key=value`` changes single values.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from . import geometry
from .errors import InputError, at

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True)
class BackbonePart:
    """``[backbone]``: what ``backbone export`` makes; sizes in pixels, windows in tokens."""

    name: str
    size: int
    window: int = 8
    pretrained_size: int | None = None
    pretrained_window: int | None = None
    checkpoint: str = ""  # the file's published name, for people
    precision: str = "fp32"
    attention: str = "matmul"
    resize: str = "letterbox"
    filter: str = "bilinear"
    pad: int = geometry.PAD
    crop_fraction: float = 1.0

    def input(self) -> geometry.Input:
        """How images are fitted."""
        return geometry.Input(self.size, self.size, self.resize, self.filter, self.pad, self.crop_fraction)


@dataclass(frozen=True)
class HeadPart:
    """``[head]``; ``options`` are those of the form, ``features`` unset means all."""

    task: str
    form: str
    features: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataPart:
    """``[data]``: the reader's format, and its options for each split."""

    format: str
    train: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainPart:
    """``[train]``: optimizer steps and the rest of the loop's plan; ``cache_gb`` bounds the
    features on disk, ``views`` counts the augmented views of each sample.  ``frames`` of a clip
    are ``frame_stride`` apart in the video; unset: spread over all of it."""

    steps: int
    batch: int
    lr: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.05
    views: int = 4
    cache_gb: float = 100.0
    frames: int = 1
    frame_stride: int | None = None
    seed: int = 0
    save_every: float = 60.0
    log_every: int = 50


@dataclass(frozen=True)
class EvaluatePart:
    """``[evaluate]``: views of a video."""

    clips: int = 1
    crops: int = 1


@dataclass(frozen=True)
class CostPart:
    """``[cost]``: what to expect, and how that is known."""

    gpu_hours: float
    gpu_memory_gb: float
    disk_gb: float
    basis: str


@dataclass(frozen=True)
class Recipe:
    name: str  # of the head
    about: str
    backbone: BackbonePart
    head: HeadPart
    data: DataPart
    train: TrainPart
    cost: CostPart
    evaluate: EvaluatePart = EvaluatePart()

    def request(self, checkpoint: Path | None, seed: int | None):
        """The backbone as :func:`.backbones.sources.load` takes it."""
        from .backbones.sources import Request

        b = self.backbone
        return Request(
            b.name, b.size, b.window, b.pretrained_size, b.pretrained_window, checkpoint, seed
        )


SECTIONS = {
    "backbone": BackbonePart, "head": HeadPart, "data": DataPart, "train": TrainPart,
    "evaluate": EvaluatePart, "cost": CostPart,
}  # fmt: skip


def known() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def load(source: str, changes: list[str] = ()) -> Recipe:
    """The recipe at a path or of a known name, with ``section.key=value`` changes."""
    path = Path(source)
    if path.suffix != ".toml":
        path = FOLDER / f"{source}.toml"
        if not path.is_file():
            raise InputError(f"recipe {source!r}: there are {', '.join(known())}; or give a .toml file")
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise at(path, f"cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise at(path, f"is not TOML: {error}") from None
    for change in changes:
        _change(table, change)
    parts = {}
    for name, value in table.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise at(path, f"{name}: must be a table")
            parts[name] = _part(path, name, SECTIONS[name], value)
        else:
            parts[name] = value
    recipe = _part(path, "", Recipe, parts)
    _check(path, recipe)
    return recipe


#: What ``[head.postprocess]`` may set, by task: least and greatest value.
POSTPROCESS = {
    "detection": {
        "score_threshold": (0, 1), "nms_iou": (0, 1), "max_detections": (1, 10_000),
        "mask_threshold": (0, 1),
    },
    "action": {"top_k": (1, 100_000)},
}  # fmt: skip
COUNTS = ("max_detections", "top_k")
MOST_FRAMES = 1024


def _check(path: Path, recipe: Recipe) -> None:
    """Refuses what no head could be served with, before anything is made or trained."""
    try:
        recipe.backbone.input()
    except InputError as error:
        raise at(path, f"backbone.{error}") from None
    t, task = recipe.train, recipe.head.task
    if task != "action" and (t.frames != 1 or t.frame_stride is not None):
        raise at(path, f"train.frames and train.frame_stride: have no meaning for the task {task}")
    for key, value in (("frames", t.frames), ("frame_stride", t.frame_stride)):
        if value is not None and not 1 <= value <= MOST_FRAMES:
            raise at(path, f"train.{key}: is {value}, must be from 1 to {MOST_FRAMES}")
    if task == "action" and t.frame_stride is None and recipe.evaluate.clips > 1:
        raise at(path, "evaluate.clips: must be 1 without train.frame_stride: each clip is the whole video")
    known = POSTPROCESS.get(task, {})
    for key, value in recipe.head.postprocess.items():
        where = f"head.postprocess.{key}"
        if key not in known:
            may = ", ".join(known) or "none"
            raise at(path, f"{where}: cannot be set for the task {task}; these can: {may}")
        kinds = int if key in COUNTS else (int, float)
        least, most = known[key]
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            kind = "a whole number" if key in COUNTS else "a number"
            raise at(path, f"{where}: is {value!r}, must be {kind} from {least} to {most}")


def _change(table: dict, change: str) -> None:
    key, separator, text = change.partition("=")
    *sections, last = key.split(".")
    if not separator or not last or not sections:
        raise InputError(f"--set {change!r}: must be SECTION.KEY=VALUE")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {change!r}: {section} is no table")
    table[last] = value


#: What a value of a field's annotated type may be; an integer passes for a number.
KINDS = {
    "str": (str,), "int": (int,), "float": (int, float), "int | None": (int,),
    "dict[str, Any]": (dict,), "list[str] | None": (list,),
}  # fmt: skip


def _part(path: Path, section: str, made: type, table: dict):
    where = lambda key: f"{section}.{key}" if section else key  # noqa: E731
    wanted = {f.name: f for f in fields(made)}
    for key, value in table.items():
        if key not in wanted:
            raise at(path, f"{where(key)}: is no key of a recipe; there are {', '.join(wanted)}")
        kinds = KINDS.get(str(wanted[key].type))
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise at(path, f"{where(key)}: is {value!r}, must be {wanted[key].type}")
    try:
        return made(**table)
    except TypeError as error:
        raise at(path, f"{section or 'recipe'}: {str(error).split('__init__() ')[-1]}") from None
