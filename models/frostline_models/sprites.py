"""Emoji glyphs as RGBA sprites, drawn once from the Noto Color Emoji font."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .labels import THINGS

FONTS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
)
#: The only size the font's bitmaps have, in pixels per em.
GLYPH_SIZE = 109


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    for path in FONTS:
        if Path(path).exists():
            return ImageFont.truetype(path, GLYPH_SIZE)
    raise FileNotFoundError("Noto Color Emoji not found (Debian: fonts-noto-color-emoji)")


@functools.cache
def sprite(label: int) -> Image.Image:
    """The thing's picture, cropped to what is visible and centred on a square canvas."""
    glyph = Image.new("RGBA", (160, 160))
    text = list(THINGS.values())[label]
    ImageDraw.Draw(glyph).text((10, 10), text, font=_font(), embedded_color=True)
    glyph = glyph.crop(glyph.getchannel("A").getbbox())
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square


def posed(label: int, size: float, angle: float, flip: bool) -> np.ndarray:
    """The sprite scaled so that its longer side is ``size`` pixels, turned by ``angle``
    degrees counter-clockwise, as float32 RGBA ``[h, w, 4]`` in 0..1, cropped to its alpha."""
    image = sprite(label)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if angle % 360:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    scale = size / sprite(label).width
    side = max(2, round(image.width * scale))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) / 255
    rows, cols = (np.flatnonzero(pixels[..., 3].max(a) > 0.02) for a in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
