"""Data sets as users have them: COCO, VOC, YOLO, ADE20K, Kinetics-style, folders of photographs, and the
generated world.

Every reader checks its files when it is opened and names the file and key of what is wrong.
Image readers give an image and its truth in the image's own pixels; :mod:`.views` brings both
into the model's input.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .ade20k import Ade20k
from .base import Dataset, Images
from .coco import Coco
from .generated import GeneratedClips, GeneratedScenes
from .kinetics import Kinetics
from .photos import Photos
from .tiles import Tiles
from .voc import Voc
from .yolo import Yolo

FORMATS = {
    "coco": Coco,
    "voc": Voc,
    "yolo": Yolo,
    "ade20k": Ade20k,
    "kinetics": Kinetics,
    "photos": Photos,
    "generated-scenes": GeneratedScenes,
    "generated-clips": GeneratedClips,
}


#: Formats whose files name the classes but do not number them: a head's own order is theirs.
NAMED = ("kinetics", "photos", "voc")


def open_dataset(kind: str, root: Path, **options) -> Dataset:
    """The data set of format ``kind`` under the folder ``root``; of images, ``tile`` and ``overlap``
    cut it into :class:`.tiles.Tiles`."""
    if kind not in FORMATS:
        raise InputError(f"data format {kind!r}: must be one of {', '.join(FORMATS)}")
    tile, overlap = options.pop("tile", None), options.pop("overlap", 0)
    try:
        data = FORMATS[kind](root, **options)
    except TypeError as error:
        if "unexpected keyword" in str(error) or "missing" in str(error):
            raise InputError(f"data format {kind!r}: {error}") from None
        raise
    if tile is None and not overlap:
        return data
    if not isinstance(data, Images) or set(data.tasks) & {"classification", "embedding"}:
        raise InputError(f"data format {kind!r}: tile and overlap are for pictures with boxes, outlines or label maps")
    if tile is None:
        raise InputError("overlap: needs tile, the pieces' side in pixels")
    return Tiles(data, tile, overlap, options.get("with_empty", False))
