"""Feature maps of a data set, computed by the exported backbone, kept as fp16 on disk."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from . import export

CHUNK = 32


class Features:
    """Rows of feature maps by name, read as float32."""

    def __init__(self, folder: Path):
        names = json.loads((folder / "done.json").read_text())["names"]
        self.maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def __len__(self) -> int:
        return len(next(iter(self.maps.values())))

    def read(self, name: str, index: np.ndarray) -> np.ndarray:
        return self.maps[name][index].astype(np.float32)


def _fill(
    folder: Path, graph: Path, source: Path, names: list[str], mirror: bool, span: tuple[int, int]
) -> None:  # fmt: skip
    """Computes rows ``span`` of every map."""
    images = np.load(source, mmap_mode="r")
    outputs = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in names}
    session = export.session(graph)
    lead = images.shape[1:-3]  # (T,) for clips
    for start in range(*span, CHUNK):
        stop = min(start + CHUNK, span[1])
        rows = np.arange(start, stop)
        pixels = images[rows % len(images)]
        if mirror:
            flip = rows >= len(images)
            pixels[flip] = pixels[flip][..., ::-1, :]
        flat = np.ascontiguousarray(pixels).reshape(-1, *images.shape[-3:])
        for name, value in zip(names, session.run(names, {"image": flat})):
            outputs[name][start:stop] = value.reshape(stop - start, *lead, *value.shape[1:])


def compute(
    folder: Path, graph: Path, source: Path, shapes: dict[str, tuple[int, ...]],
    mirror: bool = False, workers: int | None = None,
) -> Path:  # fmt: skip
    """Runs ``graph`` over the images of ``source`` (``[N, ..., H, W, 3]``) into ``folder``.

    With ``mirror``, the images flipped left to right follow as N further rows.
    """
    names = list(shapes)
    recipe = {"backbone": export.sha256(graph.read_bytes()), "names": names, "mirror": mirror}
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text()) == recipe:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    images = np.load(source, mmap_mode="r")
    rows, lead = len(images) * (2 if mirror else 1), images.shape[1:-3]
    for name, shape in shapes.items():
        open_memmap(folder / f"{name}.npy", "w+", "float16", (rows, *lead, *shape)).flush()
    step = 20 * CHUNK
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = [
            pool.submit(_fill, folder, graph, source, names, mirror, (a, min(a + step, rows)))
            for a in range(0, rows, step)
        ]
        for job in jobs:
            job.result()
    done.write_text(json.dumps(recipe))
    return folder
