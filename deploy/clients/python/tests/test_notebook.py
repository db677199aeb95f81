"""The notebook from its first cell to its last, as Jupyter runs it; its pictures show what is in the photos."""

import base64
import io
import json
import os
import re
import shutil

import nbformat
import numpy as np
from conftest import PACKAGE, ROOT, SAMPLES
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = PACKAGE / "examples/photos.ipynb"
KEPT = ROOT / "target/notebook"
"""Where the pictures are left, to be looked at."""


def outputs(cell, kind):
    """What a cell shows, of a MIME type."""
    return [out["data"][kind] for out in cell.outputs if kind in out.get("data", {})]


def said(cell):
    return "".join(out["text"] for out in cell.outputs if out["output_type"] == "stream" and out["name"] == "stdout")


def keep(name, data):
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / name).write_bytes(data)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_the_notebook(server, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in SAMPLES.glob("scene-*.jpg"):
        shutil.copy(path, photos)
    (photos / "scene-9.jpg").write_bytes((SAMPLES / "scene-1.jpg").read_bytes()[:200])
    monkeypatch.setenv("FROSTLINE_ADDRESS", server)
    monkeypatch.setenv("FROSTLINE_PHOTOS", str(photos))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert len(book.cells) == 10 and not any(cell.get("outputs") for cell in book.cells)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = book.cells

    assert "9 photos; swinv2-nano-128" in said(cells[1])
    assert all(name in outputs(cells[2], "text/html")[0] for name in ("objects", "scene", "motion", "box_map"))

    one = outputs(cells[3], "text/html")[0]
    drawn = keep("one.png", base64.b64decode(outputs(cells[3], "image/png")[0]))
    plain = np.asarray(Image.open(photos / "scene-1.jpg").convert("RGB")).astype(int)
    assert "football" in one and drawn.shape == plain.shape
    # The football is tinted where the truth has it, and the corner, where nothing is, is as it was.
    truth = json.loads((SAMPLES / "truth.json").read_text())["pictures"][0]
    x_min, y_min, x_max, y_max = next(thing["box"] for thing in truth["objects"] if thing["label"] == "football")
    ball = np.s_[(y_min + y_max) // 2 - 20 : (y_min + y_max) // 2 + 20, (x_min + x_max) // 2 - 20 : (x_min + x_max) // 2 + 20]
    assert np.abs(drawn[ball] - plain[ball]).mean() > 20 and (drawn[-20:, :20] == plain[-20:, :20]).all()

    both = outputs(cells[4], "text/html")[0]
    keep("both.jpg", base64.b64decode(re.search(r'base64,([^"]+)"', both)[1]))
    assert both.count("<table>") == 2

    assert "8 answered, 1 failed ['scene-9.jpg: " in said(cells[5])
    assert any("9/9" in out.get("text", "") for out in cells[5].outputs), "a bar"
    assert "scene-1.jpg" in outputs(cells[6], "text/html")[0]
    assert "elephant" in outputs(cells[7], "text/html")[0]
    sheet = keep("sheet.png", base64.b64decode(outputs(cells[8], "image/png")[0]))
    assert sheet.shape == (640, 1280, 3) and sheet.std() > 30
    assert "results; image_id, category_id, bbox, score" in said(cells[9])
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["image_id"] for row in rows} == set(range(1, 9))
    shown = [outputs(cell, "text/html") for cell in cells if cell.cell_type == "code"]
    (KEPT / "tables.html").write_text("\n".join(html[0] for html in shown if html))
    assert os.path.getsize(NOTEBOOK) < 20_000
