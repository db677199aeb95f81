"""Labelled photographs: one folder per class, or a CSV file that lists them (``path,label``)."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from ..errors import at
from .base import Images, folder, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Photos(Images):
    """Samples with one class each."""

    tasks = ("classification", "embedding")

    def __init__(
        self, root: Path, images: str = ".", csv: str | None = None, labels: list[str] | None = None,
        path_column: str = "path", label_column: str = "label",
    ):  # fmt: skip
        """``images`` below ``root`` holds a folder per class, or, with ``csv``, the files it
        lists.  ``labels`` fixes names and order (of the training set, for validation)."""
        root = Path(root)
        self.root = folder(root / images, "photographs")
        self.source = root / csv if csv else self.root
        found = self._from_csv(path_column, label_column) if csv else self._from_folders()
        if not found:
            raise at(self.source, f"holds no photographs ({', '.join(sorted(SUFFIXES))} in a folder for each class)")
        names = sorted({label for _, label in found})
        self.labels = list(labels) if labels else names
        unknown = [n for n in names if n not in self.labels]
        if unknown:
            raise at(self.source, f"label {unknown[0]!r} is not among the {len(self.labels)} known")
        if len(self.labels) < 2:
            raise at(self.source, f"has one class alone, {names[0]!r}; a head needs two or more")
        number = {name: i for i, name in enumerate(self.labels)}
        self.photos = [(path, number[label]) for path, label in found]

    def _from_folders(self) -> list[tuple[Path, str]]:
        found = []
        for child in sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            files = [p for p in sorted(child.rglob("*")) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
            if not files:
                raise at(child, "holds no photographs; remove the folder, or fill it")
            found += [(file, child.name) for file in files]
        return found

    def _from_csv(self, path_column: str, label_column: str) -> list[tuple[Path, str]]:
        try:
            with self.source.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                for column in (path_column, label_column):
                    if column not in (rows.fieldnames or []):
                        raise at(self.source, f"columns are {rows.fieldnames}; there is no {column!r}")
                found = [self._row(row, i + 2, path_column, label_column) for i, row in enumerate(rows)]
        except FileNotFoundError:
            raise at(self.source, "no such CSV file") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise at(self.source, f"is not a CSV file in UTF-8: {error}") from None
        seen: dict[Path, int] = {}
        for i, (path, _) in enumerate(found):
            if path in seen:
                raise at(self.source, f"line {i + 2}: {path.name} is listed in line {seen[path]} already")
            seen[path] = i + 2
        return found

    def _row(self, row: dict, line: int, path_column: str, label_column: str) -> tuple[Path, str]:
        name, label = row[path_column], row[label_column]
        if not name or not label:
            raise at(self.source, f"line {line}: {path_column if not name else label_column} is empty")
        path = self.root / name
        if not path.is_file():
            raise at(self.source, f"line {line}: there is no {path}")
        return path, label

    def __len__(self) -> int:
        return len(self.photos)

    def key(self, index: int) -> str:
        path = self.photos[index][0]
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else path.name

    def fingerprint(self) -> str:
        """Of names, labels and sizes of the files."""
        text = "\n".join(f"{p} {label} {p.stat().st_size}" for p, label in self.photos)
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, index: int) -> Path:
        return self.photos[index][0]

    def image(self, index: int) -> np.ndarray:
        return read_image(self.photos[index][0])

    def target(self, index: int) -> int:
        """The photograph's class."""
        return self.photos[index][1]
