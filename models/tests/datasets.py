"""Tiny data sets in the formats that users have, drawn here: coloured squares and moving ones."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 80, 230))
NAMES = ("red", "green", "blue")


def picture(rng, width=96, height=64) -> tuple[np.ndarray, list]:
    """An image and its squares ``(class, x, y, side)``."""
    image = np.full((height, width, 3), 120, np.uint8)
    image += rng.integers(0, 20, image.shape).astype(np.uint8)
    squares = []
    for j in range(2):
        kind, side = int(rng.integers(3)), int(rng.integers(16, 28))
        x, y = int(rng.integers(0, 20)) + 46 * j, int(rng.integers(0, height - side))
        image[y : y + side, x : x + side] = COLOURS[kind]
        squares.append((kind, x, y, side))
    return image, squares


def coco(root: Path, splits=("train2017", "val2017"), count=6) -> Path:
    for s, split in enumerate(splits):
        rng = np.random.default_rng(s)
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            image, squares = picture(rng)
            name = f"{i:012d}.jpg"
            Image.fromarray(image).save(root / split / name, quality=95)
            images.append({"id": 100 + i, "file_name": name, "width": 96, "height": 64})
            for kind, x, y, side in squares:
                corners = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": 100 + i, "category_id": (1, 3, 7)[kind],
                    "bbox": [x, y, side, side], "area": side * side, "iscrowd": 0,
                    "segmentation": [corners],
                })  # fmt: skip
        table = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": c, "name": n} for c, n in zip((1, 3, 7), NAMES)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(table))
    return root


def voc(root: Path, splits=("train", "validation"), count=4) -> Path:
    """Pictures and their XML side by side, as labelImg leaves them."""
    for s, split in enumerate(splits):
        rng = np.random.default_rng(40 + s)
        (root / split).mkdir(parents=True)
        for i in range(count):
            image, squares = picture(rng)
            Image.fromarray(image).save(root / split / f"{i}.jpg", quality=95)
            things = "".join(
                f"<object><name>{NAMES[kind]}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + side}</xmax>"
                f"<ymax>{y + side}</ymax></bndbox></object>"
                for kind, x, y, side in squares
            )
            (root / split / f"{i}.xml").write_text(
                f"<annotation><filename>{i}.jpg</filename><size><width>96</width><height>64</height><depth>3</depth></size>"
                f"{things}</annotation>"
            )
    return root


def yolo(root: Path, splits=("train", "val"), count=4, outlines=False) -> Path:
    """``images/<split>``, ``labels/<split>`` and ``data.yaml``, as Ultralytics has them."""
    for s, split in enumerate(splits):
        rng = np.random.default_rng(40 + s)
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, squares = picture(rng)
            Image.fromarray(image).save(root / "images" / split / f"{i}.jpg", quality=95)
            rows = []
            for kind, x, y, side in squares:
                box = [(x + side / 2) / 96, (y + side / 2) / 64, side / 96, side / 64]
                corners = [v for a, b in ((x, y), (x + side, y), (x + side, y + side), (x, y + side)) for v in (a / 96, b / 64)]
                rows.append(" ".join([str(kind), *(f"{v:.6f}" for v in (corners if outlines else box))]))
            (root / "labels" / split / f"{i}.txt").write_text("\n".join(rows) + "\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(NAMES)))
    return root


def ade20k(root: Path, splits=("training", "validation"), count=6) -> Path:
    for s, split in enumerate(splits):
        rng = np.random.default_rng(10 + s)
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, squares = picture(rng)
            labels = np.full(image.shape[:2], 4, np.uint8)
            labels[:4] = 0
            for kind, x, y, side in squares:
                labels[y : y + side, x : x + side] = kind + 1
            Image.fromarray(image).save(root / "images" / split / f"ADE_{i:08d}.jpg", quality=95)
            Image.fromarray(labels).save(root / "annotations" / split / f"ADE_{i:08d}.png")
    return root


def write_video(path: Path, frames: np.ndarray) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def moving_square(rng, direction: int, frames: int = 12) -> np.ndarray:
    out = np.full((frames, 64, 96, 3), 110, np.uint8)
    start, y = (8 if direction > 0 else 64), int(rng.integers(4, 40))
    for i in range(frames):
        x = start + direction * 4 * i
        out[i, y : y + 16, x : x + 16] = COLOURS[0]
    return out


def kinetics(root: Path, splits=("train", "val"), count=3) -> Path:
    """Videos with Kinetics' own CSV beside them."""
    for s, split in enumerate(splits):
        rng = np.random.default_rng(20 + s)
        (root / split).mkdir(parents=True)
        rows = []
        for label, direction in (("moving left", -1), ("moving right", 1)):
            for i in range(count):
                name = f"{label[7:]}{i}"
                write_video(root / split / f"{name}_000000_000010.mp4", moving_square(rng, direction))
                rows.append([label, name, 0, 10, split])
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            writer.writerows(rows)
    return root


def photos(root: Path, splits=("train", "validation"), count=4) -> Path:
    """A folder per colour, of pictures with one square of it."""
    for s, split in enumerate(splits):
        rng = np.random.default_rng(20 + s)
        for kind, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.full((64, 96, 3), 120, np.uint8) + rng.integers(0, 20, (64, 96, 3)).astype(np.uint8)
                x, y = int(rng.integers(20, 50)), int(rng.integers(4, 32))
                image[y : y + 28, x : x + 28] = COLOURS[kind]
                Image.fromarray(image).save(root / split / name / f"{i}.jpg", quality=95)
    return root
