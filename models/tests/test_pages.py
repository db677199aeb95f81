"""The pages "your first head in ten minutes": every file and command of theirs, as a newcomer types them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import serving
from PIL import Image

PAGES = Path(__file__).resolve().parents[1] / "first-head"


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)


def shell(command: str, folder: Path) -> str:
    """The command, where ``frostline`` and ``frostline-models`` are found; what it printed."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name, target in (("frostline", serving.binary()), ("python", Path(sys.executable))):
        if not (tools / name).exists():
            (tools / name).write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
            (tools / name).chmod(0o755)
    if not (tools / "frostline-models").exists():
        (tools / "frostline-models").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m frostline_models "$@"\n')
        (tools / "frostline-models").chmod(0o755)
    environment = serving.environment() | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page, heads", [("pytorch", "kinds"), ("timm", "resnet18"), ("onnx", "mine")])
def test_a_page_does_what_it_says(tmp_path, page, heads):
    folder = tmp_path / "work"
    folder.mkdir()
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
    small.resize((320, 240), Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
    printed, last = "", ""
    for language, text in blocks(PAGES / f"{page}.md"):
        if language == "python":
            (folder / re.match(r"# (\S+\.py)\n", text)[1]).write_text(text)
            continue
        for line in text.splitlines():
            if line.startswith("pip "):  # what it installs is here
                continue
            last = shell(line, folder)
            printed += last
    assert (folder / "repository" / "heads" / heads / "head.toml").is_file()
    labels = (folder / "names.txt").read_text().split()
    assert heads in printed and any(label in last for label in labels), last


def test_the_pages_name_each_other_and_what_there_is():
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
    assert {p.stem for p in PAGES.glob("*.md")} == {"pytorch", "timm", "onnx", "keras"}
