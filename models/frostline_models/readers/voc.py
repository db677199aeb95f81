"""Pascal VOC's XML: a file for each picture, as VOC, labelImg, CVAT and others write them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from ..errors import InputError, at
from .base import folder
from .boxes import Boxed, Picture, clipped, upright_size
from .photos import SUFFIXES

#: An annotation file beyond this is none.
MOST_BYTES = 16 << 20
MOST_SIDE = 1 << 20
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Voc(Boxed):
    """``root/<annotations>/*.xml`` and the pictures that they name below ``root/<images>``."""

    def __init__(
        self, root: Path, images: str = "JPEGImages", annotations: str = "Annotations", names: str = "*.xml",
        split: str | None = None, labels: list[str] | None = None, label: str | None = None, first: int = 0,
        with_empty: bool = False,
    ):  # fmt: skip
        """``names`` is a pattern of the annotation files; ``split`` a file that lists their stems
        (``ImageSets/Main/train.txt``).  ``labels`` fixes names and order (of the training set, for
        validation); ``label`` calls everything by one name.  ``first`` is the number of the first
        pixel: corners are taken as they are, or, with 1, as VOC's own numbers, whose boxes hold
        their last pixel too.  ``with_empty`` keeps pictures without objects.  Difficult objects are
        ignored."""
        root = Path(root)
        self.images, self.xml = folder(root / images, "VOC images"), folder(root / annotations, "VOC annotations")
        if first not in (0, 1):
            raise InputError(f"first {first!r}: must be 0 or 1, the number of the first pixel")
        self.first, self.label = first, label
        files = self._listed(root / split) if split else sorted(self.xml.glob(names))
        if not files:
            raise at(self.xml, f"holds no {names}")
        read = [self._read(file) for file in files]
        found = sorted({row[0] for picture in read for row in picture.rows + picture.ignored})
        self.labels = list(labels) if labels else found
        if unknown := [name for name in found if name not in self.labels]:
            where = next(p.file for p in read if any(r[0] == unknown[0] for r in p.rows + p.ignored))
            raise at(where, f"object name {unknown[0]!r} is not among the {len(self.labels)} known")
        number = {name: i for i, name in enumerate(self.labels)}
        for picture in read:
            picture.rows, picture.ignored = (
                [(number[name], *box) for name, *box in rows] for rows in (picture.rows, picture.ignored)
            )
        self.pictures = [p for p in read if with_empty or p.rows]
        if not self.pictures or not self.labels:
            raise at(self.xml, "none of its files has an object")

    def _listed(self, file: Path) -> list[Path]:
        try:
            stems = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
        except FileNotFoundError:
            raise at(file, "no such list of pictures") from None
        except UnicodeDecodeError as error:
            raise at(file, f"is not text: {error}") from None
        found = [self.xml / f"{stem}.xml" for stem in stems]
        for path in found:
            if not path.is_file():
                raise at(path, f"no such annotation file (listed in {file.name})")
        return found

    def _read(self, file: Path) -> Picture:
        try:
            if file.stat().st_size > MOST_BYTES:
                raise at(file, f"is of {file.stat().st_size} bytes; an annotation file has at most {MOST_BYTES}")
            tree = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of odd encodings
            raise at(file, f"is not XML: {error}") from None
        if tree.tag != "annotation":
            raise at(file, f"is no VOC annotation: its root is <{tree.tag}>")
        path = self._picture(file, (tree.findtext("filename") or "").strip())
        width, height = (tree.findtext(f"size/{key}") for key in ("width", "height"))
        size = upright_size(path)
        if width and height and width.strip() != "0":
            sides = [self._number(file, f"size/{k}", v) for k, v in (("width", width), ("height", height))]
            if not all(1 <= side <= MOST_SIDE and side == int(side) for side in sides):
                raise at(file, f"size: is {width}x{height}, must be whole numbers from 1 to {MOST_SIDE}")
            size = (int(sides[0]), int(sides[1]))
        picture = Picture(path, size, file)
        for i, thing in enumerate(tree.iter("object")):
            name = self.label or (thing.findtext("name") or "").strip()
            if not name:
                raise at(file, f"object {i + 1}: has no name")
            corners = [self._number(file, f"object {i + 1}: bndbox/{k}", thing.findtext(f"bndbox/{k}")) for k in CORNERS]
            box = clipped([corners[0] - self.first, corners[1] - self.first, *corners[2:]], size)
            if isinstance(box, str):
                raise at(file, f"object {i + 1}: {box}")
            difficult = (thing.findtext("difficult") or "0").strip() == "1"
            (picture.ignored if difficult else picture.rows).append((name, *box))
        return picture

    def _picture(self, file: Path, named: str) -> Path:
        # A name may carry a path of the machine that wrote it.
        bare = named.replace("\\", "/").rsplit("/", 1)[-1]
        stems = [Path(bare).stem, file.stem]
        for path in [self.images / bare] if Path(bare).suffix.lower() in SUFFIXES else []:
            if path.is_file():
                return path
        for stem in filter(None, stems):
            for suffix in sorted(SUFFIXES):
                for path in (self.images / f"{stem}{suffix}", self.images / f"{stem}{suffix.upper()}"):
                    if path.is_file():
                        return path
        raise at(file, f"names the picture {bare or file.stem!r}, which is not in {self.images}")

    def _number(self, file: Path, where: str, text: str | None) -> float:
        try:
            return float(text)
        except (TypeError, ValueError):
            raise at(file, f"{where}: is {text!r}, must be a number") from None
