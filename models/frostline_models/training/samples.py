"""A data set as rows: every sample in several views, as model input and truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .. import geometry
from ..errors import InputError
from ..readers import views
from ..readers.base import Clips, Dataset, Images
from ..taskheads.spec import Spec


@dataclass
class Samples:
    """Row ``i`` is view ``i % views`` of sample ``i // views``.

    ``task`` chooses the truth; ``frame_stride`` is the distance of a clip's frames in the
    video, unset: they are spread over all of it.
    """

    dataset: Dataset
    task: str
    spec: Spec
    views: int = 1
    seed: int = 0
    frame_stride: int | None = None

    def __post_init__(self):
        if self.task not in self.dataset.tasks:
            has = ", ".join(self.dataset.tasks)
            raise InputError(f"the data set has truth for {has}, not for {self.task}")
        if self.views < 1:
            raise InputError(f"views {self.views}: must be at least 1")
        if len(self.dataset.labels) != self.spec.classes:
            raise InputError(
                f"the data set has {len(self.dataset.labels)} labels, the head {self.spec.classes}"
            )

    def __len__(self) -> int:
        return len(self.dataset) * self.views

    def fingerprint(self) -> str:
        """Of everything that decides the rows' pixels."""
        parts = [
            geometry.RULES, self.dataset.fingerprint(), type(self.dataset).__name__,
            asdict(self.spec.input), self.views, self.seed, self.spec.frames, self.frame_stride,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _view(self, row: int, width: int, height: int) -> views.View:
        index, number = divmod(row, self.views)
        mirror = not getattr(self.dataset, "mirrored_classes", False)
        return views.view(width, height, self.spec.input, self.seed, index, number, mirror)

    def pixels(self, row: int) -> np.ndarray:
        """uint8 ``[S, S, 3]``; of a clip ``[T, S, S, 3]``."""
        index, number = divmod(row, self.views)
        if isinstance(self.dataset, Images):
            image = self.dataset.image(index)
            return views.pixels(image, self._view(row, image.shape[1], image.shape[0]))
        assert isinstance(self.dataset, Clips)
        place = 0.5 if number < 2 else np.random.default_rng((self.seed, row)).random()
        frames = self.dataset.frames(index, self.spec.frames, self.frame_stride, place)
        at = self._view(row, frames[0].shape[1], frames[0].shape[0])
        return np.stack([views.pixels(f, at) for f in frames])

    def truth(self, row: int) -> dict[str, np.ndarray]:
        """What the objective asks for, of one row."""
        index = row // self.views
        if self.task in ("action", "classification", "embedding"):
            return {"classes": np.int64(self.dataset.target(index))}
        at = self._view(row, *self.dataset.size(index))
        if self.task == "segmentation":
            return {"labels": views.label_map(self.dataset.label_map(index), at).astype(np.int64)}
        seen = views.things(self.dataset.things(index), at)
        truth = {"boxes": seen.boxes, "classes": seen.classes}
        if seen.masks is not None:
            truth["masks"] = seen.masks.astype(np.float32)
        return truth

    def truths(self, rows: list[int]) -> dict:
        """A batch's truth, as the objectives take it."""
        each = [self.truth(row) for row in rows]
        if self.task == "detection":
            return {k: [torch.from_numpy(t[k]) for t in each] for k in each[0]}
        return {k: torch.from_numpy(np.stack([t[k] for t in each])) for k in each[0]}


def order(count: int, views_each: int, batch: int, step: int, seed: int) -> list[int]:
    """The rows of a step: each epoch visits every sample once, in one of its views."""
    rows = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        permutation, chosen = _epoch(count, views_each, epoch, seed)
        index = int(permutation[place])
        rows.append(index * views_each + int(chosen[index]))
    return rows


_kept: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}


def _epoch(count: int, views_each: int, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    key = (count, views_each, epoch, seed)
    if key not in _kept:
        if len(_kept) > 3:
            _kept.clear()
        rng = np.random.default_rng((seed, epoch))
        _kept[key] = (rng.permutation(count), rng.integers(views_each, size=count))
    return _kept[key]
