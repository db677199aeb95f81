"""COCO instances: a folder of images and one JSON file, with outlines or with boxes alone.

Categories are numbered 0.. in the order of their ids, as COCO's own tools do.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from ..errors import InputError, at
from .base import Images, Things, folder, read_image

#: What each entry must hold.
KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class Coco(Images):
    """``root/<images>`` and ``root/<annotations>``, as COCO unpacks."""

    tasks = ("detection",)

    def __init__(self, root: Path, images: str, annotations: str, with_empty: bool = False, boxes: bool = False):
        """``with_empty`` keeps images that have no instances; ``boxes`` takes no notice of outlines,
        as does a file in which nothing has one."""
        root = Path(root)
        self.folder = folder(root / images, "COCO images")
        self.file = root / annotations
        table = self._read()
        self.categories = sorted(table["categories"], key=lambda c: c["id"])
        self.labels = [c["name"] for c in self.categories]
        self._class = {c["id"]: i for i, c in enumerate(self.categories)}
        things = [e for e in table["annotations"] if not e.get("iscrowd")]
        self.masks = not boxes and (any(e.get("segmentation") for e in things) or not things)
        by_image: dict[int, list[dict]] = {entry["id"]: [] for entry in table["images"]}
        self.crowds: dict[int, list[dict]] = {}
        self._check(table, by_image)
        self.entries = [e for e in table["images"] if with_empty or by_image[e["id"]]]
        if not self.entries:
            raise at(self.file, "images: none of them has an instance")
        self.annotations = by_image

    def _read(self) -> dict:
        try:
            table = json.loads(self.file.read_text())
        except FileNotFoundError:
            raise at(self.file, "no such annotation file") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise at(self.file, f"is not JSON: {error}") from None
        for name, keys in KEYS.items():
            if not isinstance(table, dict) or not isinstance(table.get(name), list):
                raise at(self.file, f"{name}: is missing or no list")
            for i, entry in enumerate(table[name]):
                for key in keys:
                    if not isinstance(entry, dict) or key not in entry:
                        raise at(self.file, f"{name}[{i}]: has no {key}")
        return table

    def _check(self, table: dict, by_image: dict[int, list[dict]]) -> None:
        if len(by_image) != len(table["images"]):
            raise at(self.file, "images: an id occurs twice")
        seen: set[int] = set()
        for i, entry in enumerate(table["annotations"]):
            where = f"annotations[{i}] (id {entry['id']})"
            if entry["id"] in seen:
                raise at(self.file, f"{where}: the id occurs twice")
            seen.add(entry["id"])
            if entry["image_id"] not in by_image:
                raise at(self.file, f"{where}: image_id {entry['image_id']} is not among the images")
            if entry["category_id"] not in self._class:
                raise at(
                    self.file,
                    f"{where}: category_id {entry['category_id']} is not among the categories",
                )
            box = entry["bbox"]
            numbers = isinstance(box, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
            if not numbers or len(box) != 4:
                raise at(self.file, f"{where}: bbox {box!r} is not [x, y, width, height]")
            # Crowds are regions to ignore, not instances to learn.
            if entry.get("iscrowd"):
                self.crowds.setdefault(entry["image_id"], []).append(entry)
            else:
                if self.masks and not entry.get("segmentation"):
                    raise at(self.file, f"{where}: segmentation is empty or missing, and others have one; add it, or take boxes alone (boxes=true)")
                by_image[entry["image_id"]].append(entry)
        for entry in table["images"]:
            if not (self.folder / entry["file_name"]).is_file():
                raise at(
                    self.folder / entry["file_name"],
                    f"no such image (named by {self.file.name}, images id {entry['id']})",
                )

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        return self.entries[index]["file_name"]

    def fingerprint(self) -> str:
        text = "\n".join(f"{e['id']} {e['file_name']}" for e in self.entries)
        return hashlib.sha256(text.encode()).hexdigest()

    def image_id(self, index: int) -> int:
        return self.entries[index]["id"]

    def category_id(self, label: int) -> int:
        return self.categories[label]["id"]

    def path(self, index: int) -> Path:
        return self.folder / self.entries[index]["file_name"]

    def size(self, index: int) -> tuple[int, int]:
        entry = self.entries[index]
        return entry["width"], entry["height"]

    def image(self, index: int) -> np.ndarray:
        pixels = read_image(self.path(index))
        width, height = self.size(index)
        if pixels.shape[:2] != (height, width):
            raise at(
                self.path(index),
                f"is {pixels.shape[1]}x{pixels.shape[0]}, but {self.file.name} says {width}x{height}",
            )
        return pixels

    def things(self, index: int) -> Things:
        width, height = self.size(index)
        boxes, classes, masks = [], [], []
        for entry in self.annotations[self.entries[index]["id"]]:
            mask = self._mask(entry, height, width) if self.masks else None
            x, y, w, h = (float(v) for v in entry["bbox"])
            box = [max(0.0, x), max(0.0, y), min(width, x + w), min(height, y + h)]
            if box[2] - box[0] < 1 or box[3] - box[1] < 1 or (self.masks and not mask.any()):
                continue  # COCO has a few of less than a pixel
            boxes.append(box)
            classes.append(self._class[entry["category_id"]])
            masks.append(mask)
        return Things(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(classes, np.int64),
            np.array(masks, bool).reshape(-1, height, width) if self.masks else None,
        )

    def ignored(self, index: int) -> Things:
        """Crowds, by their boxes."""
        entries = self.crowds.get(self.entries[index]["id"], [])
        rows = [[x, y, x + w, y + h] for x, y, w, h in (e["bbox"] for e in entries)]
        classes = [self._class[e["category_id"]] for e in entries]
        return Things(np.array(rows, np.float32).reshape(-1, 4), np.array(classes, np.int64), None)

    def _mask(self, entry: dict, height: int, width: int) -> np.ndarray:
        shape = entry["segmentation"]
        try:
            if isinstance(shape, list):
                code = rle.merge(rle.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):
                code = rle.frPyObjects(shape, height, width)
            else:
                code = shape
            if list(code["size"]) != [height, width]:
                raise ValueError(f"its size is {code['size']}, the image's [{height}, {width}]")
            return rle.decode(code).astype(bool)
        except InputError:
            raise
        except Exception as error:  # pycocotools raises bare exceptions
            raise at(
                self.file, f"annotation id {entry['id']}: segmentation cannot be read: {error}"
            ) from None
