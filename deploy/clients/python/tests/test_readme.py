"""Each example of the page runs as it stands, but for the address."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import PACKAGE, SAMPLES

README = (PACKAGE / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    """What the examples find beside them."""
    shutil.copy(SAMPLES / "scene-1.jpg", tmp_path / "street.jpg")
    for number, frame in enumerate(sorted((SAMPLES / "clip-1").iterdir())[:3], 1):
        shutil.copy(frame, tmp_path / f"{number}.jpg")
    (tmp_path / "photos").mkdir()
    for name in ("scene-2.jpg", "scene-3.jpg"):
        shutil.copy(SAMPLES / name, tmp_path / "photos")
    (tmp_path / "photos/torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return tmp_path


SAYS = [
    ["football 0.9", "(480, 640)", "football "],
    ["objects: 4 found: football 0.9"],
    ["photos/scene-2.jpg ['elephant'", "photos/torn.jpg got no answer: INVALID_ARGUMENT"],
    ["[", "objects: 3 found", "INVALID_ARGUMENT"],
    ["INVALID_ARGUMENT INVALID_IMAGE", "image.encoded", "job-17"],
    [],
]


def test_the_page_has_the_examples_that_are_known():
    assert len(EXAMPLES) == len(SAYS)


@pytest.mark.parametrize("number", range(len(SAYS)))
def test_examples_of_the_page(server, folder, number):
    script = folder / "example.py"
    script.write_text(EXAMPLES[number].replace("127.0.0.1:8461", server))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", script], cwd=folder, capture_output=True,
        text=True, timeout=120, env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in SAYS[number]:
        assert text in done.stdout, done.stdout
    if number == 0:
        assert (folder / "street-found.png").stat().st_size > 10_000
    if number == 2:
        assert "3/3" in done.stderr, "the bar"
