"""COCO's compressed run lengths: how masks travel.

A mask is read column by column, as runs of unset and set pixels in turn, the first of unset ones. A run's length is
written in groups of five bits, low ones first, each as a printable character from ``0`` (48); 32 says that more follow,
16 in the last group that the number is negative. From the fourth run on, what is written is the difference from the
run before the last.
"""

from __future__ import annotations


def runs(counts: bytes, pixels: int) -> list[int]:
    """Lengths of the runs, whose sum is `pixels`.

    Raises:
        ValueError: `counts` is not the run lengths of so many pixels.
    """
    lengths: list[int] = []
    value = shift = 0
    for byte in counts:
        group = byte - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("a mask's run lengths are damaged")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift or min(lengths, default=0) < 0 or sum(lengths) != pixels:
        raise ValueError(f"a mask's run lengths are damaged: they give {sum(lengths)} pixels of {pixels}")
    return lengths
