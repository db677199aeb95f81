"""ADE20K as SceneParse150 unpacks: ``images/<split>/*.jpg``, ``annotations/<split>/*.png``.

In the PNGs 0 is "other objects" and is ignored; 1 to 150 become 0 to 149.  Names come from
``objectInfo150.txt`` where it is there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import at
from .base import IGNORE, Images, folder, read_image, read_labels

INFO = "objectInfo150.txt"


class Ade20k(Images):
    tasks = ("segmentation",)

    def __init__(self, root: Path, split: str, classes: int = 150):
        root = Path(root)
        self.images = folder(root / "images" / split, "ADE20K images")
        self.maps = folder(root / "annotations" / split, "ADE20K label images")
        self.files = sorted(self.images.glob("*.jpg"))
        if not self.files:
            raise at(self.images, "holds no *.jpg")
        if not 1 <= classes < IGNORE:
            raise at(root, f"classes {classes}: must be from 1 to {IGNORE - 1}")
        for file in self.files:
            if not self._map(file).is_file():
                raise at(self._map(file), f"no such label image (for {file.name})")
        self.labels = _names(root / INFO, classes)

    def _map(self, file: Path) -> Path:
        return self.maps / f"{file.stem}.png"

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        return self.files[index].name

    def fingerprint(self) -> str:
        text = "\n".join(f.name for f in self.files)
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, index: int) -> Path:
        return self.files[index]

    def image(self, index: int) -> np.ndarray:
        return read_image(self.files[index])

    def size(self, index: int) -> tuple[int, int]:
        path = self._map(self.files[index])
        try:
            with Image.open(path) as image:
                return image.size
        except OSError as error:
            raise at(path, f"is not a readable image: {error}") from None

    def label_map(self, index: int) -> np.ndarray:
        path = self._map(self.files[index])
        raw = read_labels(path)
        if raw.max() > len(self.labels):
            raise at(path, f"holds label {raw.max()}; there are {len(self.labels)} classes")
        # 0 wraps to 255: ignored.
        return (raw.astype(np.int16) - 1).astype(np.uint8)


def _names(path: Path, classes: int) -> list[str]:
    """The first name of each row of the tab-separated table."""
    if not path.is_file():
        return [f"class {i + 1}" for i in range(classes)]
    rows = path.read_text(encoding="utf-8").splitlines()[1:]
    names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()]
    if len(names) < classes:
        raise at(path, f"names {len(names)} classes, {classes} are wanted")
    return names[:classes]
