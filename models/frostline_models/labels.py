"""What the demo world contains: things (emoji), stuff (backgrounds) and motions."""

from __future__ import annotations

#: Thing label to the emoji that draws it.  Chosen to differ in colour and outline.
THINGS: dict[str, str] = {
    "cat": "\U0001f408",
    "dog": "\U0001f415",
    "elephant": "\U0001f418",
    "turtle": "\U0001f422",
    "octopus": "\U0001f419",
    "butterfly": "\U0001f98b",
    "penguin": "\U0001f427",
    "frog": "\U0001f438",
    "car": "\U0001f697",
    "bus": "\U0001f68c",
    "bicycle": "\U0001f6b2",
    "rocket": "\U0001f680",
    "sailboat": "\u26f5",
    "apple": "\U0001f34e",
    "banana": "\U0001f34c",
    "pizza": "\U0001f355",
    "watermelon": "\U0001f349",
    "hammer": "\U0001f528",
    "scissors": "\u2702",
    "umbrella": "\u2614",
    "football": "\u26bd",
    "balloon": "\U0001f388",
}
STUFF: tuple[str, ...] = ("sky", "grass", "water", "sand", "road")
MOTIONS: tuple[str, ...] = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "spins",
    "blinks",
    "bounces",
    "stays still",
)

THING_NAMES: tuple[str, ...] = tuple(THINGS)
#: Segmentation classes: stuff first, then things, so a thing's class is ``len(STUFF) + label``.
SCENE_NAMES: tuple[str, ...] = STUFF + THING_NAMES
#: Label-map value of pixels that count for nothing (the letterbox bars).
IGNORE = 255
#: Frames in a clip.
FRAMES = 8


def mirrored(motion: int) -> int:
    """The motion a clip shows when its frames are flipped left to right."""
    return {0: 1, 1: 0}.get(motion, motion)
