"""The generator: reproducible, and its boxes, masks and labels agree."""

from dataclasses import replace

import numpy as np
import pytest

from frostline_models.clips import draw_clip, letterbox_clip, pose, render_clip
from frostline_models.dataset import Scenes, generate, load_scenes, scene_batch
from frostline_models.labels import FRAMES, IGNORE, MOTIONS, SCENE_NAMES, STUFF, mirrored
from frostline_models.scenes import draw_scene, letterbox, render

pytestmark = pytest.mark.usefixtures("font")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, font) -> Scenes:
    root = tmp_path_factory.mktemp("data")
    generate(root, "scenes", "train", 12, workers=1)
    return load_scenes(root, "train")


def test_a_seed_gives_one_scene():
    first, second = (letterbox(render(draw_scene(5, "train"))) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.instances, second.instances)
    other = letterbox(render(draw_scene(5, "heldout")))
    assert (first.image != other.image).any()


@pytest.mark.parametrize("seed", range(8))
def test_boxes_masks_and_labels_agree(seed):
    made = letterbox(render(draw_scene(seed, "train")))
    for label, number, (x0, y0, x1, y1) in zip(made.classes, made.numbers, made.boxes):
        mask = made.instances == number + 1
        assert set(made.labels[mask]) == {len(STUFF) + label}
        assert not mask[:y0].any() and not mask[y1:].any()
        assert not mask[:, :x0].any() and not mask[:, x1:].any()
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any()
    inside = made.labels != IGNORE
    assert made.labels[inside].max() < len(SCENE_NAMES)
    assert (made.image[~inside] == 114).all()


def test_a_scene_is_the_same_at_any_size():
    scene = draw_scene(3, "train")
    small, large = render(scene, 128), render(scene, 512)
    assert small.classes == large.classes
    np.testing.assert_allclose(np.array(large.boxes) / 4, np.array(small.boxes), atol=2.5)


def test_generation_is_skipped_when_done_and_independent_of_workers(tmp_path):
    one = generate(tmp_path / "a", "scenes", "heldout", 4, workers=1)
    two = generate(tmp_path / "b", "scenes", "heldout", 4, workers=2)
    for name in ("images", "labels", "boxes"):
        assert (one / f"{name}.npy").read_bytes() == (two / f"{name}.npy").read_bytes()
    before = (one / "images.npy").stat().st_mtime_ns
    generate(tmp_path / "a", "scenes", "heldout", 4)
    assert (one / "images.npy").stat().st_mtime_ns == before


def test_augmented_boxes_still_bound_their_masks(scenes):
    batch = scene_batch(scenes, np.arange(12), np.random.default_rng(1))
    assert (batch["instances"] != scenes.instances[:12]).any(), "nothing was flipped"
    for i, j in zip(*np.nonzero(batch["classes"] >= 0)):
        cols = np.flatnonzero((batch["instances"][i] == batch["numbers"][i, j]).any(0))
        assert (cols[0], cols[-1] + 1) == tuple(batch["boxes"][i, j, [0, 2]])


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_actors_do_what_the_label_says(motion):
    clip = replace(draw_clip(3, "train"), motion=motion)
    things = [pose(clip, frame) for frame in range(FRAMES)]
    x, y, size = (np.array([getattr(t, k) for t in things]) for k in ("x", "y", "size"))
    name = MOTIONS[motion]
    moved = {"moves left": -np.diff(x), "moves right": np.diff(x), "moves up": -np.diff(y),
             "moves down": np.diff(y), "grows": np.diff(size), "shrinks": -np.diff(size)}  # fmt: skip
    if name in moved:
        assert (moved[name] > 0).all()
    elif name == "blinks":
        assert len({t.visible for t in things}) == 2
    elif name == "bounces":
        assert (np.diff(np.sign(np.diff(y))) != 0).any()
    elif name == "spins":
        assert abs(things[-1].angle - things[0].angle) > 90
    else:
        assert len(set(things)) == 1


def test_mirrored_motions():
    names = [MOTIONS[mirrored(i)] for i in range(len(MOTIONS))]
    assert names[:3] == ["moves right", "moves left", "moves up"]


def test_clips_are_reproducible_and_letterboxed():
    frames = letterbox_clip(render_clip(draw_clip(1, "heldout")))
    assert frames.shape == (FRAMES, 128, 128, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, letterbox_clip(render_clip(draw_clip(1, "heldout"))))
