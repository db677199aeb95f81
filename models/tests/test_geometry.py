"""The cases of GEOMETRY.md, which the server's tests read too, and the rules behind them."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frostline_models import geometry
from frostline_models.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "geometry"
CASES = json.loads((FOLDER / "cases.json").read_text())


def generator():
    spec = importlib.util.spec_from_file_location("geometry_cases", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_image_of_the_specification_is_fitted_to_the_bit():
    assert len(CASES["images"]) >= 300
    make = generator().picture
    for case in CASES["images"]:
        keys = {k: case[k] for k in ("resize", "filter", "pad", "crop_fraction") if k in case}
        to = geometry.Input(*case["input"], **keys)
        where = geometry.placement(*case["image"], to)
        assert [where.new_width, where.new_height] == case["resized"], case
        assert [where.left, where.top] == case["offset"], case
        rows, columns = where.seen()
        assert [columns.start, columns.stop, rows.start, rows.stop] == case["seen"], case
        pixels = geometry.fit(make(*case["image"]), to)
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == case["sha256"], case


def test_every_clip_of_the_specification_is_read_alike():
    assert len(CASES["clips"]) >= 300
    for case in CASES["clips"]:
        assert geometry.positions(case["clip"], case["frames"], case["frame_stride"]) == case["read"], case


def test_the_cases_are_what_the_generator_writes():
    assert json.loads(json.dumps(generator().cases())) == CASES


@pytest.mark.parametrize("long, short, rows", [(512, 338, 85), (512, 342, 86), (512, 346, 87), (510, 338, 85)])
def test_halves_round_up(long, short, rows):
    where = geometry.placement(long, short, geometry.Input(128, 128))
    assert (where.new_width, where.new_height) == (128, rows)
    where = geometry.placement(short, long, geometry.Input(128, 128))
    assert (where.new_width, where.new_height) == (rows, 128)


def test_a_centre_crop_is_torchvisions_to_a_pixel():
    """Resize to floor(size / crop_fraction), then CenterCrop, as ImageNet's classifiers are measured: equal to the bit
    where the long side comes out whole and the overhang even."""
    transforms = pytest.importorskip("torchvision.transforms")
    chain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    rng = np.random.default_rng(0)
    for width, height in [(512, 512), (640, 512), (384, 768), (300, 300)]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        got = geometry.fit(image, geometry.Input(224, 224, "center_crop", crop_fraction=0.875))
        np.testing.assert_array_equal(got, np.asarray(chain(image)))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"resize": "squash"}, "resize 'squash'.*letterbox"),
        ({"filter": "lanczos"}, "filter 'lanczos'.*bicubic"),
        ({"pad": 256}, "pad 256.*255"),
        ({"pad": 0.5}, "pad 0.5"),
        ({"resize": "center_crop", "crop_fraction": 1.2}, "crop_fraction 1.2.*0.1 to 1"),
        ({"crop_fraction": 0.875}, "crop_fraction.*letterbox"),
    ],
)
def test_what_no_backbone_can_say_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        geometry.Input(64, 64, **change)


def test_clips_are_placed_from_the_first_frame_to_the_last():
    assert geometry.positions(10, 4, 2, 0.0) == [0, 2, 4, 6]
    assert geometry.positions(10, 4, 2, 1.0) == [3, 5, 7, 9]
    assert geometry.positions(3, 4, 2) == geometry.positions(3, 4, None) == [0, 1, 1, 2]
