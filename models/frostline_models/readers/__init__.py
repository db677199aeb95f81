"""Data sets as users have them: COCO, ADE20K, Kinetics-style, and the generated world.

Every reader checks its files when it is opened and names the file and key of what is wrong.
Image readers give an image and its truth in the image's own pixels; :mod:`.views` brings both
into the model's input.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .ade20k import Ade20k
from .base import Dataset
from .coco import Coco
from .generated import GeneratedClips, GeneratedScenes
from .kinetics import Kinetics

FORMATS = {
    "coco": Coco,
    "ade20k": Ade20k,
    "kinetics": Kinetics,
    "generated-scenes": GeneratedScenes,
    "generated-clips": GeneratedClips,
}


def open_dataset(kind: str, root: Path, **options) -> Dataset:
    """The data set of format ``kind`` under the folder ``root``."""
    if kind not in FORMATS:
        raise InputError(f"data format {kind!r}: must be one of {', '.join(FORMATS)}")
    try:
        return FORMATS[kind](root, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error) or "missing" in str(error):
            raise InputError(f"data format {kind!r}: {error}") from None
        raise
