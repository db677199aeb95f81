"""SwinV2 by name, and the input sizes at which every implementation of it agrees.

The official code, timm and Hugging Face treat a map that windows do not tile in three
different ways (assertion, padding with and without a mask), and the features then drift by
2 to 33 %.  Such sizes are refused here, with the nearest that work.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..swinv2 import SwinV2Config

STRIDES = (4, 8, 16, 32)
LARGEST_SIZE = 8192  # as the server's manifest


@dataclass(frozen=True)
class Variant:
    """Widths and depths of one published size."""

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    extra_norm_every: int = 0


#: T to L as released; H and G as the paper gives them (widths, depths, 32 channels a head, a
#: norm on the main branch every 6 blocks).  N is the demo's size, for trying things out.
VARIANTS = {
    "n": Variant(32, (1, 2, 2, 1), (1, 2, 4, 8)),
    "t": Variant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": Variant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": Variant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l": Variant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "h": Variant(352, (2, 2, 18, 2), (11, 22, 44, 88), 6),
    "g": Variant(512, (2, 2, 42, 4), (16, 32, 64, 128), 6),
}
LONG_NAMES = {
    "nano": "n", "tiny": "t", "small": "s", "base": "b", "large": "l", "huge": "h", "giant": "g",
}  # fmt: skip


def swinv2_config(
    name: str,
    size: int,
    window: int,
    pretrained_size: int | None = None,
    pretrained_window: int | None = None,
) -> SwinV2Config:
    """The configuration of ``swinv2-<letter or word>`` at ``size`` pixels and ``window`` tokens.

    ``pretrained_size`` and ``pretrained_window`` say what the checkpoint was trained at; its
    position bias is defined relative to the windows it saw then.  Unset: as now.
    """
    letter = name.lower().replace("_", "-").removeprefix("swinv2-")
    letter = LONG_NAMES.get(letter, letter)
    if letter not in VARIANTS:
        known = ", ".join(f"swinv2-{k}" for k in VARIANTS)
        raise InputError(f"backbone {name!r} is not a SwinV2: use one of {known}")
    check_size(size, window)
    variant = VARIANTS[letter]
    pretrained = (0, 0, 0, 0)
    if pretrained_window:
        check_size(pretrained_size or size, pretrained_window)
        pretrained = stage_windows(pretrained_size or size, pretrained_window)
    return SwinV2Config(
        image_size=size,
        dim=variant.dim,
        depths=variant.depths,
        heads=variant.heads,
        window=window,
        pretrained_windows=pretrained,
        extra_norm_every=variant.extra_norm_every,
    )


def stage_windows(size: int, window: int) -> tuple[int, ...]:
    """The window of each stage in tokens: a map smaller than a window is one window."""
    return tuple(min(window, size // stride) for stride in STRIDES)


def fits(size: int, window: int) -> bool:
    """Whether windows tile every stage's map, or hold it whole."""
    sides = [size // stride for stride in STRIDES]
    return size % 32 == 0 and all(side <= window or side % window == 0 for side in sides)


def check_size(size: int, window: int) -> None:
    """Refuses what implementations disagree on; the message names sizes and windows that work."""
    if window < 2:
        raise InputError(f"window {window}: must be at least 2 tokens")
    if not 32 <= size <= LARGEST_SIZE:
        raise InputError(f"size {size}: must be from 32 to {LARGEST_SIZE} pixels")
    if fits(size, window):
        return
    sizes = sorted(
        (s for s in range(32, LARGEST_SIZE + 1, 32) if fits(s, window)), key=lambda s: abs(s - size)
    )[:4]
    windows = [w for w in range(4, 33) if fits(size, w)]
    hint = f"sizes that work with window {window}: {', '.join(map(str, sorted(sizes)))}"
    if windows:
        hint += f"; windows that work at {size}: {', '.join(map(str, windows))}"
    sides = "x".join(str(size // s) if size % s == 0 else f"{size / s:g}" for s in STRIDES)
    raise InputError(
        f"size {size} with window {window}: the stages' maps are {sides} tokens a side, and "
        f"windows of {window} do not tile them, where implementations pad differently; {hint}"
    )


def describe(cfg: SwinV2Config) -> str:
    """One line for the manifest."""
    text = (
        f"SwinV2, dim {cfg.dim}, depths {'-'.join(map(str, cfg.depths))}, "
        f"heads {'-'.join(map(str, cfg.heads))}, window {cfg.window}"
    )
    if any(cfg.pretrained_windows):
        text += f", pretrained windows {'-'.join(map(str, cfg.pretrained_windows))}"
    return text
