"""What the server makes of files of every kind equals what Pillow makes of them, level for level."""

from pathlib import Path

import numpy as np
import pytest
from decoder import decode_files
from pictures import Case
from pictures_bmp import bmps
from pictures_gif import gifs
from pictures_jpeg import jpegs
from pictures_png import pngs
from pictures_webp import webps
from reference import decode

CASES = Path(__file__).parent / "cases"
PICTURES = jpegs() | pngs() | webps() | gifs() | bmps()
# The files of `cases`: what other programs wrote and what this folder cannot make.
KEPT = {
    "stray-byte-before-dqt.jpg": None,
    "scan-markers-in-trailer.jpg": None,
    "cmyk-without-adobe.jpg": None,
    "webp-exif-prefix.webp": None,
    "arithmetic.jpg": None,
    "large-99-scans.jpg": "image is 7000 x 7000 pixels in 99 scans, limit is 20 scans of so many pixels",
    "12bit.jpg": "unsupported jpeg image: 12-bit samples; those of 8 bits are read",
}
PICTURES |= {name: Case((CASES / name).read_bytes(), error=error) for name, error in KEPT.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All pictures, decoded in one go."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, case in enumerate(PICTURES.values()):
        paths.append(folder / str(number))
        paths[-1].write_bytes(case.data)
    return dict(zip(PICTURES, decode_files(paths, folder)))


@pytest.mark.parametrize("name", PICTURES)
def test_decoding_equals_pillow(name, answers):
    case, answer = PICTURES[name], answers[name]
    if case.error:
        assert case.error in answer.get("error", ""), answer
        return
    assert "error" not in answer, answer["error"]
    expected = np.asarray(decode(case.data)) if case.pixels is None else case.pixels
    got = answer["pixels"]
    assert (answer["probe"]["height"], answer["probe"]["width"]) == expected.shape[:2]
    assert got.shape == expected.shape
    wrong = (got != expected).any(axis=2)
    assert not wrong.any(), f"{wrong.mean():.2%} of the pixels, by up to {np.abs(got.astype(int) - expected).max()}"


def test_scans_are_counted_in_the_picture_alone(answers):
    assert answers["jpeg 99 scans"]["probe"]["scans"] == 99
    assert answers["scan-markers-in-trailer.jpg"]["probe"]["scans"] == 1
    assert answers["jpeg progressive then scan markers"]["probe"]["scans"] < 20
    assert answers["jpeg sampling 4:1:1 three scans"]["probe"]["scans"] == 3
