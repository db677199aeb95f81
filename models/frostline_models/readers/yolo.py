"""YOLO's text labels: for each picture a file of rows ``class x y width height`` (centre and sides as
shares of the picture), or ``class x y x y x y ...`` (an outline)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import yaml
from pycocotools import mask as rle

from ..errors import InputError, at
from .base import Things, folder
from .boxes import Boxed, Picture, clipped, upright_size
from .photos import SUFFIXES

#: Where the classes' names are looked for.
NAMES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
#: Shares may pass the border by rounding.
SLACK = 1e-3


class Yolo(Boxed):
    """``root/<images>`` and ``root/<labels>`` with a ``.txt`` of the same name for each picture that
    has objects."""

    def __init__(
        self, root: Path, images: str = "images/train", labels: str | None = None, names: str | None = None,
        with_empty: bool = False,
    ):  # fmt: skip
        """``labels`` unset: ``images`` with that word replaced, as Ultralytics does.  ``names`` is
        the file with the classes' names: YAML with ``names``, or one a line.  Outlines are masks
        where every object has one.  ``with_empty`` keeps pictures without objects."""
        root = Path(root)
        self.folder = folder(root / images, "YOLO images")
        self.text = folder(root / (labels or _beside(images)), "YOLO labels")
        self.labels = _names(root, names)
        found = [p for p in sorted(self.folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
        if not found:
            raise at(self.folder, f"holds no pictures ({', '.join(sorted(SUFFIXES))})")
        own = {self._file(path) for path in found}
        for file in sorted(self.text.rglob("*.txt")):
            if file not in own and file.name not in NAMES:
                raise at(file, f"belongs to no picture in {self.folder}")
        self._outlines: dict[Path, list] = {}
        read = [self._read(path) for path in found]
        self.pictures = [p for p in read if with_empty or p.rows]
        if not any(p.rows for p in read):
            raise at(self.text, f"no picture in {self.folder} has an object")
        self.masks = all(len(self._outlines[p.path]) == len(p.rows) for p in read)

    def _file(self, path: Path) -> Path:
        return (self.text / path.relative_to(self.folder)).with_suffix(".txt")

    def _read(self, path: Path) -> Picture:
        file, size = self._file(path), upright_size(path)
        picture, outlines = Picture(path, size, file), []
        self._outlines[path] = outlines
        if not file.is_file():
            return picture
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise at(file, f"is not text: {error}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                picture.rows.append(self._row(file, number, line.split(), size, outlines))
        return picture

    def _row(self, file: Path, number: int, words: list[str], size: tuple[int, int], outlines: list) -> tuple:
        where = f"line {number}"
        try:
            kind, values = int(words[0]), [float(w) for w in words[1:]]
        except ValueError:
            raise at(file, f"{where}: must be a class and numbers") from None
        if not 0 <= kind < len(self.labels):
            raise at(file, f"{where}: class {kind} has no name; there are {len(self.labels)}")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise at(file, f"{where}: has {len(values)} numbers; a box has 4, an outline 3 points or more")
        if not all(math.isfinite(v) and -SLACK <= v <= 1 + SLACK for v in values):
            raise at(file, f"{where}: numbers must be shares of the picture, from 0 to 1")
        if len(values) == 4:
            x, y, w, h = values
            corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        else:
            corners = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
            outlines.append([v * side for v, side in zip(values, size * (len(values) // 2))])
        box = clipped([v * side for v, side in zip(corners, size * 2)], size)
        if isinstance(box, str):
            raise at(file, f"{where}: {box}")
        return (kind, *box)

    def things(self, index: int) -> Things:
        found, picture = super().things(index), self.pictures[index]
        if self.masks:
            width, height = picture.size
            masks = [rle.decode(rle.merge(rle.frPyObjects([o], height, width))) for o in self._outlines[picture.path]]
            found.masks = np.array(masks, bool).reshape(-1, height, width)
            seen = found.masks.any((1, 2))  # an outline of less than a pixel has none
            found = Things(found.boxes[seen], found.classes[seen], found.masks[seen])
        return found


def _beside(images: str) -> str:
    parts = images.split("/")
    if "images" not in parts:
        raise InputError(f"labels: give the folder of the label files; {images!r} does not tell it")
    place = len(parts) - 1 - parts[::-1].index("images")
    return "/".join([*parts[:place], "labels", *parts[place + 1 :]])


def _names(root: Path, given: str | None) -> list[str]:
    found = [root / given] if given else [p for p in (root / n for n in NAMES) if p.is_file()]
    if not found:
        raise at(root, f"names: give the file with the classes' names; there is none of {', '.join(NAMES)}")
    path = found[0]
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise at(path, "no such file of classes' names") from None
    except UnicodeDecodeError as error:
        raise at(path, f"is not text: {error}") from None
    if path.suffix.lower() not in (".yaml", ".yml"):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            table = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise at(path, f"is not YAML: {' '.join(str(error).split())[:200]}") from None
        names = table.get("names") if isinstance(table, dict) else None
        if isinstance(names, dict):
            if sorted(names, key=str) != sorted(range(len(names)), key=str):
                raise at(path, f"names: must be numbered from 0 to {len(names) - 1}")
            names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise at(path, "names: must be a list of the classes' names")
    return names
