"""Answers as pictures, as short texts, and as what a notebook shows."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

from .images import ImageLike, picture

if TYPE_CHECKING:
    from PIL import Image

_NOTEBOOK_SIDE = 800
"""Longest side of a notebook's picture in pixels."""
_ROWS = 20
"""Rows of a notebook's table."""


class Drawn:
    """Answers about an image: what shows them."""

    image: Any

    def draw(self, image: ImageLike | None = None, *, masks: bool = True, labels: bool = True) -> Image.Image:
        """The image with what was found on it, as a PIL image.

        Args:
            image: what was analyzed; without it the image that the answer remembers.
            masks: whether masks and label maps are laid over it.
            labels: whether boxes and areas are named.

        Raises:
            ValueError: no image is known (the answer is about a clip, was pickled, or the client does not remember), or
                it is another one, by its size.
        """
        from . import drawing

        return drawing.draw(self, self._picture(image), masks=masks, labels=labels)

    def _picture(self, image: ImageLike | None) -> Image.Image:
        of = self.image if image is None else image
        if of is None:
            raise ValueError("the answer knows no image: draw(image) takes the one that was analyzed")
        return picture(of)

    def __repr__(self) -> str:
        return f"<{_told(self)}>"

    def _repr_png_(self) -> bytes | None:
        drawn = _shown(self)
        if drawn is None:
            return None
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(_told(self))}</p>"]
        drawn = _shown(self)
        if drawn is not None:
            file = io.BytesIO()
            drawn.save(file, "JPEG", quality=88)
            data = base64.b64encode(file.getvalue()).decode("ascii")
            parts.append(f'<img src="data:image/jpeg;base64,{data}" width="{drawn.width}" alt="{html.escape(_told(self))}">')
        parts += [_table(*table) for table in _tables(self)]
        return "\n".join(parts)


def _shown(answer: Drawn) -> Image.Image | None:
    """A picture for a notebook; none where there is no image any more, or nothing to draw with."""
    if answer.image is None:
        return None
    try:
        drawn = answer.draw()
    except (ImportError, OSError, TypeError, ValueError):
        return None
    drawn.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
    return drawn


def _told(answer: Any, most: int = 3) -> str:
    """An answer in one short line."""
    from . import results

    if isinstance(answer, results.Detections):
        names = [f"{d.label} {d.score:.2f}" for d in answer[:most]]
        return f"{answer.head}: {len(answer)} found{_listed(names, len(answer))}"
    if isinstance(answer, results.Segmentation):
        by_size = sorted(answer.segments, key=lambda segment: -segment.pixels)
        pixels = answer.size[0] * answer.size[1]
        names = [f"{s.label} {s.pixels / pixels:.0%}" for s in by_size[:most]]
        return f"{answer.head}: {answer.size[1]}x{answer.size[0]}{_listed(names, len(by_size))}"
    if isinstance(answer, results.Classification):
        names = [f"{s.label} {s.probability:.0%}" for s in answer.top[:most]]
        return f"{answer.head}{_listed(names, len(answer.top))}"
    if isinstance(answer, results.Poses):
        names = [f"{pose.score:.2f}" for pose in answer[:most]]
        return f"{answer.head}: {len(answer)} poses{_listed(names, len(answer))}"
    if isinstance(answer, results.Analysis):
        return "; ".join(_told(result, 2) for result in answer.results.values()) or "no heads"
    if isinstance(answer, results.HeadFailure):
        return f"{answer.head}: failed, {answer.message}"
    return f"{answer.head}: {', '.join(answer.raw)}"


def _listed(names: list[str], of: int) -> str:
    return (": " if names else "") + ", ".join(names) + (", …" if of > len(names) else "")


def _tables(answer: Any) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and rows of what a notebook shows below the picture."""
    from . import results

    if isinstance(answer, results.Detections):
        rows = [
            [d.label, f"{d.score:.3f}", ", ".join(f"{edge:.1f}" for edge in d.box), str(d.mask.area) if d.mask else ""]
            for d in answer
        ]
        return [(["label", "score", "box", "pixels"], rows)]
    if isinstance(answer, results.Segmentation):
        return [(["label", "pixels"], [[s.label, str(s.pixels)] for s in answer.segments])]
    if isinstance(answer, results.Classification):
        return [(["label", "probability"], [[s.label, f"{s.probability:.3f}"] for s in answer.top])]
    if isinstance(answer, results.Poses):
        poses = [
            [f"{pose.score:.3f}", ", ".join(f"{p.label} {p.x:.0f},{p.y:.0f}" for p in pose.keypoints if p.score > 0)]
            for pose in answer
        ]
        return [(["score", "points"], poses)]
    if isinstance(answer, results.Analysis):
        return [table for result in answer.results.values() for table in _tables(result)]
    return []


def _table(headings: list[str], rows: list[list[str]]) -> str:
    shown = [_row("td", row) for row in rows[:_ROWS]]
    if len(rows) > _ROWS:
        shown.append(f'<tr><td colspan="{len(headings)}">{len(rows) - _ROWS} more</td></tr>')
    return f"<table><thead>{_row('th', headings)}</thead><tbody>{''.join(shown)}</tbody></table>"


def _row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
