"""Kinetics-style videos: one folder per class, or a CSV file that lists them.

CSV columns: ``path,label``, or Kinetics' own ``label,youtube_id,time_start,time_end,split``
with files ``<youtube_id>_<start>_<end>.mp4`` (six digits each) or ``<youtube_id>.mp4``.  A
"video" may also be a folder of frames, taken in the order of their names.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from ..errors import InputError, at
from ..geometry import positions
from .base import Clips, folder, read_image

VIDEOS = {".mp4", ".mkv", ".webm", ".avi", ".mov"}
FRAMES = {".jpg", ".jpeg", ".png"}


class Kinetics(Clips):
    def __init__(
        self, root: Path, videos: str = ".", csv: str | None = None, labels: list[str] | None = None
    ):
        """``videos`` below ``root`` holds a folder per class, or, with ``csv``, the files it
        lists.  ``labels`` fixes names and order (of the training set, for validation)."""
        root = Path(root)
        self.root = folder(root / videos, "videos")
        self.source = root / csv if csv else self.root
        found = self._from_csv() if csv else self._from_folders()
        if not found:
            raise at(self.source, "lists no videos")
        names = sorted({label for _, label in found})
        self.labels = list(labels) if labels else names
        unknown = [n for n in names if n not in self.labels]
        if unknown:
            raise at(self.source, f"label {unknown[0]!r} is not among the {len(self.labels)} known")
        number = {name: i for i, name in enumerate(self.labels)}
        self.videos = [(path, number[label]) for path, label in found]

    def _from_folders(self) -> list[tuple[Path, str]]:
        found = []
        for child in sorted(p for p in self.root.iterdir() if p.is_dir()):
            for file in sorted(child.iterdir()):
                if file.suffix.lower() in VIDEOS or file.is_dir():
                    found.append((file, child.name))
        return found

    def _from_csv(self) -> list[tuple[Path, str]]:
        try:
            with self.source.open(newline="") as file:
                rows = csv.DictReader(file)
                columns = rows.fieldnames or []
                own = {"label", "youtube_id", "time_start", "time_end"} <= set(columns)
                if not own and not {"path", "label"} <= set(columns):
                    raise at(
                        self.source,
                        f"columns are {columns}; need path,label or "
                        "label,youtube_id,time_start,time_end",
                    )
                return [self._row(row, i + 2, own) for i, row in enumerate(rows)]
        except FileNotFoundError:
            raise at(self.source, "no such CSV file") from None

    def _row(self, row: dict, line: int, own: bool) -> tuple[Path, str]:
        if not row["label"]:
            raise at(self.source, f"line {line}: label is empty")
        if not own:
            names = [row["path"]]
        else:
            try:
                span = f"{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            except (TypeError, ValueError):
                raise at(self.source, f"line {line}: time_start or time_end is no number") from None
            stems = [f"{row['youtube_id']}_{span}", row["youtube_id"]]
            lead = ("", f"{row['label']}/", f"{row.get('split') or ''}/")
            names = [f"{a}{stem}.mp4" for stem in stems for a in lead]
        for name in names:
            if (self.root / name).exists():
                return self.root / name, row["label"]
        raise at(self.source, f"line {line}: there is no {self.root / names[0]}")

    def __len__(self) -> int:
        return len(self.videos)

    def key(self, index: int) -> str:
        return str(self.videos[index][0].relative_to(self.root))

    def fingerprint(self) -> str:
        text = "\n".join(f"{p.relative_to(self.root)} {label}" for p, label in self.videos)
        return hashlib.sha256(text.encode()).hexdigest()

    def target(self, index: int) -> int:
        return self.videos[index][1]

    def frames(self, index: int, count: int, stride: int | None, place: float) -> list[np.ndarray]:
        path = self.videos[index][0]
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in FRAMES)
            if not files:
                raise at(path, "holds no frames (*.jpg, *.png)")
            return [read_image(files[i]) for i in positions(len(files), count, stride, place)]
        return _decode(path, count, stride, place)


def _decode(path: Path, count: int, stride: int | None, place: float) -> list[np.ndarray]:
    """Frames of a video file.  Counted first: containers often misstate their length."""
    try:
        import av
    except ImportError:
        raise InputError(
            f"{path}: reading videos needs the package av (pip install 'frostline-models[video]')"
        ) from None
    try:
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        if not total:
            raise at(path, "holds no frames")
        wanted = positions(total, count, stride, place)
        kept: dict[int, np.ndarray] = {}
        with av.open(str(path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in wanted:
                    kept[i] = frame.to_ndarray(format="rgb24")
                if i >= wanted[-1]:
                    break
        return [kept[i] for i in wanted]
    except InputError:
        raise
    except (av.FFmpegError, IndexError, KeyError, OSError) as error:
        raise at(path, f"is not a readable video: {error}") from None
