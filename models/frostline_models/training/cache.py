"""Feature maps of rows, computed once by the exported backbone and kept on disk as fp16.

The cache has a bound in bytes: rows beyond it are computed again whenever they are needed.
Its files are allocated whole when it is made, so that a full disk is an error then and not a
crash later; a row counts only once its flag is set, so a run may be killed at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ..errors import InputError, at
from ..taskheads.spec import Spec, read_manifest

LARGEST_FP16 = np.float32(np.finfo(np.float16).max)


class Extractor:
    """``backbone.onnx`` of a model repository, on one provider."""

    def __init__(self, repository: Path, names: tuple[str, ...], provider: str | None = None, threads: int = 0):
        manifest = read_manifest(repository / "backbone.toml")
        graph = repository / manifest["file"]
        self.fingerprint: str = manifest["sha256"]
        actual = hashlib.sha256(graph.read_bytes()).hexdigest()
        if actual != self.fingerprint:
            raise at(repository / "backbone.toml", f"sha256: is {self.fingerprint}, but {graph.name} hashes to {actual}")
        self.names = list(names)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3
        have = ort.get_available_providers()
        chosen = provider or ("CUDAExecutionProvider" if "CUDAExecutionProvider" in have else "CPUExecutionProvider")
        if chosen not in have:
            raise InputError(f"provider {chosen}: this ONNX Runtime has {', '.join(have)}")
        self.session = ort.InferenceSession(str(graph), settings, providers=[chosen])
        self.input = manifest["input"]["name"]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Maps of uint8 ``[B, S, S, 3]``, as fp16."""
        maps = self.session.run(self.names, {self.input: images})
        return [np.clip(m, -LARGEST_FP16, LARGEST_FP16).astype(np.float16) for m in maps]


class FeatureCache:
    """Rows of feature maps by number."""

    def __init__(
        self, root: Path, extractor: Extractor, spec: Spec, rows: int, fingerprint: str,
        pixels: Callable[[int], np.ndarray], max_bytes: int, batch: int = 8, threads: int = 2,
    ):  # fmt: skip
        """``pixels(row)`` is uint8 ``[S, S, 3]`` or ``[T, S, S, 3]``; ``fingerprint`` is of
        everything that decides it."""
        self.extractor, self.pixels, self.batch = extractor, pixels, batch
        self.lead = (spec.frames,) if spec.frames > 1 else ()
        self.shapes = [(*self.lead, *shape) for shape in spec.shapes().values()]
        self.row_bytes = 2 * sum(int(np.prod(s)) for s in self.shapes)
        self.rows, self.kept = rows, min(rows, max(0, max_bytes) // self.row_bytes)
        recipe = {
            "backbone": extractor.fingerprint, "features": extractor.names, "rows": fingerprint,
            "kept": self.kept,
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = root / f"features-{key}"
        self.pool = ThreadPoolExecutor(threads)
        self.maps: list[np.ndarray] = []
        if self.kept:
            self._open(recipe)

    def _open(self, recipe: dict) -> None:
        done = self.folder / "recipe.json"
        if not done.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            for name, shape in zip(self.extractor.names, self.shapes):
                self._allocate(self.folder / f"{name}.f16", 2 * self.kept * int(np.prod(shape)))
            self._allocate(self.folder / "ready.u8", self.kept)
            done.write_text(json.dumps(recipe))
        for name, shape in zip(self.extractor.names, self.shapes):
            file = self.folder / f"{name}.f16"
            self.maps.append(np.memmap(file, np.float16, "r+", shape=(self.kept, *shape)))
        self.ready = np.memmap(self.folder / "ready.u8", np.uint8, "r+", shape=(self.kept,))

    def _allocate(self, path: Path, size: int) -> None:
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            free = shutil.disk_usage(self.folder).free
            shutil.rmtree(self.folder, ignore_errors=True)
            if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise at(path, f"cannot be written: {error.strerror}") from None
            raise at(
                path,
                f"the disk is full: the feature cache needs {self.kept * self.row_bytes / 1e9:.2f} GB "
                f"and {free / 1e9:.2f} GB are free (lower train.cache_gb)",
            ) from None

    def count(self) -> int:
        """Rows that are there."""
        return int(self.ready.sum()) if self.kept else 0

    def read(self, rows: list[int]) -> list[np.ndarray]:
        """The maps of the rows, fp16 ``[len(rows), ...]``; computes those that are not there."""
        out = [np.empty((len(rows), *shape), np.float16) for shape in self.shapes]
        missing = []
        for place, row in enumerate(rows):
            if row < self.kept and self.ready[row]:
                for target, source in zip(out, self.maps):
                    target[place] = source[row]
            else:
                missing.append((place, row))
        per = max(1, self.batch // (self.lead[0] if self.lead else 1))
        for start in range(0, len(missing), per):
            self._compute(missing[start : start + per], out)
        return out

    def _compute(self, chunk: list[tuple[int, int]], out: list[np.ndarray]) -> None:
        images = np.stack(list(self.pool.map(self.pixels, [row for _, row in chunk])))
        maps = self.extractor(images.reshape(-1, *images.shape[-3:]))
        maps = [m.reshape(len(chunk), *shape) for m, shape in zip(maps, self.shapes)]
        for i, (place, row) in enumerate(chunk):
            for target, source in zip(out, maps):
                target[place] = source[i]
            if row < self.kept:
                for kept, source in zip(self.maps, maps):
                    kept[row] = source[i]
                self.ready[row] = 1
