"""What was found, drawn on its picture with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import results
from .extras import need

if TYPE_CHECKING:
    from PIL import Image

# Tableau 10 and lighter ones of the same hues: what the server's own drawings use.
_PALETTE = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194),
    (188, 189, 34), (23, 190, 207), (127, 127, 127), (255, 187, 120), (152, 223, 138), (255, 152, 150), (197, 176, 213),
    (196, 156, 148), (247, 182, 210), (219, 219, 141), (158, 218, 229), (174, 199, 232), (199, 199, 199),
)  # fmt: skip
_MASK, _MAP = 0.45, 0.5
"""Opacity of a mask and of a label map."""


def color(index: int) -> tuple[int, int, int]:
    """The color of a label's index; the first twenty differ."""
    return _PALETTE[index % len(_PALETTE)]


def draw(drawn: Any, picture: Image.Image, *, masks: bool, labels: bool) -> Image.Image:
    """An answer on a picture, which stays as it is. Label maps lie below boxes, whatever the heads' order."""
    many = list(drawn.results.values()) if isinstance(drawn, results.Analysis) else [drawn]
    canvas = Canvas(picture.copy())
    maps = [part for part in many if isinstance(part, results.Segmentation)]
    boxes = [part for part in many if isinstance(part, results.Detections)]
    for answer in maps:
        canvas.label_map(answer, masks)
    for found in boxes:
        canvas.detections(found, masks)
    for poses in (part for part in many if isinstance(part, results.Poses)):
        canvas.poses(poses)
    if labels:
        # Names lie above all else; those of boxes choose their places first.
        for found in boxes:
            canvas.name_boxes(found)
        for answer in maps:
            canvas.name_areas(answer)
        canvas.caption([part for part in many if isinstance(part, results.Classification) and part.top])
    return canvas.picture


class Canvas:
    """A picture, with lines and letters of a size that fits it."""

    def __init__(self, picture: Image.Image):
        self.picture = picture
        side = max(picture.size)
        self.line = max(2, round(side / 320))
        self.font = need("PIL.ImageFont", "draw").load_default(size=max(12, round(side / 45)))
        self.taken: list[tuple[int, int, int, int]] = []

    def _same(self, size: tuple[int, int]) -> None:
        if size != (self.picture.height, self.picture.width):
            raise ValueError(
                f"the answer is about an image of {size[1]}x{size[0]} pixels, not of {self.picture.width}x{self.picture.height}"
            )

    def label_map(self, answer: results.Segmentation, masks: bool) -> None:
        """A label map's colors."""
        self._same(answer.size)
        numpy, pillow = need("numpy", "draw"), need("PIL.Image", "draw")
        if masks:
            colors = numpy.array([color(i) for i in range(int(answer.label_map.max(initial=0)) + 1)], numpy.uint8)
            over = pillow.fromarray(colors[answer.label_map])
            self.picture = pillow.blend(self.picture, over, _MAP)

    def name_areas(self, answer: results.Segmentation) -> None:
        """The name of each label's area, the largest first."""
        for segment in sorted(answer.segments, key=lambda s: -s.pixels):
            self._name_area(answer.label_map == segment.class_index, segment.label, color(segment.class_index))

    def _name_area(self, area: Any, label: str, tint: tuple[int, int, int]) -> None:
        """A name in the widest stretch of an area, if it has room for it."""
        numpy = need("numpy", "draw")
        row = int(area.sum(axis=1).argmax())
        edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], area[row].astype(numpy.int8), [0]])))
        starts, ends = edges[::2], edges[1::2]
        if not len(starts):
            return
        longest = int((ends - starts).argmax())
        left, right = int(starts[longest]), int(ends[longest])
        width, height = self._measure(label)
        if right - left >= width:
            self._tag(label, ((left + right - width) // 2, row - height // 2), tint, below=row)

    def detections(self, found: results.Detections, masks: bool) -> None:
        """Masks and boxes."""
        numpy, pillow = need("numpy", "draw"), need("PIL.Image", "draw")
        if masks:
            pixels = numpy.asarray(self.picture).astype(numpy.float32)
            # The best on top.
            for one in reversed(found):
                if one.mask:
                    self._same((one.mask.height, one.mask.width))
                    area = one.mask.array()
                    pixels[area] += (numpy.array(color(one.class_index), numpy.float32) - pixels[area]) * _MASK
            self.picture = pillow.fromarray(pixels.round().astype(numpy.uint8))
        pen = need("PIL.ImageDraw", "draw").Draw(self.picture)
        for one in reversed(found):
            self._inside(one.box)
            pen.rectangle(one.box, outline=color(one.class_index), width=self.line)

    def poses(self, found: results.Poses) -> None:
        """Bones and points, a color for each pose, the best on top."""
        pen = need("PIL.ImageDraw", "draw").Draw(self.picture)
        radius = self.line * 1.5
        for index in reversed(range(len(found))):
            tint, points = color(index), found[index].keypoints
            for pair in found.skeleton:
                ends = [points[end] for end in pair if end < len(points) and points[end].score > 0]
                if len(ends) == 2:
                    pen.line([(end.x, end.y) for end in ends], fill=tint, width=self.line)
            for point in points:
                if point.score > 0:
                    place = (point.x - radius, point.y - radius, point.x + radius, point.y + radius)
                    pen.ellipse(place, fill=tint, outline="white")

    def name_boxes(self, found: results.Detections) -> None:
        """The name and score of each box, the best first."""
        for one in found:
            text = f"{one.label} {one.score:.2f}"
            left, top, bottom = int(one.box[0]), int(one.box[1]), int(one.box[3])
            self._tag(text, (left, top - self._measure(text)[1]), color(one.class_index), below=bottom)

    def _inside(self, box: tuple[float, float, float, float]) -> None:
        if box[2] > self.picture.width + 1 or box[3] > self.picture.height + 1:
            raise ValueError(f"a box reaches beyond the image of {self.picture.width}x{self.picture.height} pixels")

    def _measure(self, text: str) -> tuple[int, int]:
        left, _, right, _ = self.font.getbbox(text)
        ascent, descent = self.font.getmetrics()
        return int(right - left) + 6, int(ascent + descent) + 2

    def _tag(self, text: str, at: tuple[int, int], tint: tuple[int, int, int], below: int) -> None:
        """Text on its color near `at`, within the picture, and beside other tags: above, below, or where there is room."""
        width, height = self._measure(text)
        x = min(max(at[0], 0), max(self.picture.width - width, 0))
        bottom = max(self.picture.height - height, 0)
        tries = [at[1], at[1] + height, below, *range(at[1] + 2 * height, below, height)]
        places = [(x, min(max(y, 0), bottom)) for y in tries]
        free = [p for p in places if not self._covered(p, width, height)]
        x, y = (free or places)[0]
        self.taken.append((x, y, x + width, y + height))
        dark = sum(part * share for part, share in zip(tint, (0.299, 0.587, 0.114))) < 150
        pen = need("PIL.ImageDraw", "draw").Draw(self.picture)
        pen.rectangle((x, y, x + width - 1, y + height - 1), fill=tint)
        pen.text((x + 3, y + 1), text, fill="white" if dark else "black", font=self.font)

    def _covered(self, at: tuple[int, int], width: int, height: int) -> bool:
        x, y = at
        return any(x < r and l < x + width and y < b and t < y + height for l, t, r, b in self.taken)  # noqa: E741

    def caption(self, said: list[results.Classification]) -> None:
        """What is said of the whole picture, in its lower left corner."""
        for answer in said:
            line = f"{answer.head}: {answer.top[0].label} {answer.top[0].probability:.0%}"
            height = self._measure(line)[1]
            self._tag(line, (0, self.picture.height - height), (0, 0, 0), below=0)
