"""The committed model repository: hashes, manifests, graphs and samples fit together."""

import hashlib
import json
import tomllib

import numpy as np
import pytest
from PIL import Image

from frostline_models import export
from frostline_models.evaluate import Server
from frostline_models.geometry import Input, fit
from frostline_models.labels import FRAMES
from frostline_models.readers.base import read_image
from frostline_models.repository import LABELS

HEAD_KEYS = {
    "name", "version", "task", "file", "sha256", "backbone", "input_size", "features", "labels",
    "postprocess", "trained", "metrics",
}  # fmt: skip
BACKBONE_KEYS = {"name", "version", "file", "sha256", "precision", "source", "input", "features"}


def read(path) -> dict:
    return tomllib.loads(path.read_text())


def test_backbone_manifest(demo):
    manifest = read(demo / "backbone.toml")
    assert set(manifest) == BACKBONE_KEYS
    data = (demo / manifest["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == manifest["sha256"]
    session = export.session(demo / manifest["file"])
    assert [i.name for i in session.get_inputs()] == [manifest["input"]["name"]]
    maps = session.run(None, {"image": np.zeros((2, 128, 128, 3), np.uint8)})
    for output, value, feature in zip(session.get_outputs(), maps, manifest["features"]):
        side = 128 // feature["stride"]
        assert output.name == feature["name"]
        assert value.shape == (2, feature["channels"], side, side)


@pytest.mark.parametrize("name", list(LABELS))
def test_head_manifest(demo, name):
    manifest = read(demo / "heads" / name / "head.toml")
    assert set(manifest) == HEAD_KEYS
    data = (demo / "heads" / name / manifest["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == manifest["sha256"]
    assert manifest["backbone"] == read(demo / "backbone.toml")["sha256"]
    assert manifest["labels"] == list(LABELS[name])
    session = export.session(data)
    assert [i.name for i in session.get_inputs()] == manifest["features"]


@pytest.mark.parametrize("name", list(LABELS))
def test_head_rows_do_not_depend_on_the_batch(demo, name):
    pictures = [fit(read_image(p), Input(128, 128)) for p in sorted((demo / "samples").glob("*.jpg"))]
    images = np.stack(pictures[:8])
    if name == "motion":
        images = np.stack([np.roll(images, i, 0) for i in range(3)])
        assert images.shape[1] == FRAMES
    server = Server(
        export.session(demo / "backbone.onnx"), export.session(demo / "heads" / name / "head.onnx")
    )
    for row in range(len(images)):
        for alone, together in zip(server(images[row : row + 1]), server(images)):
            np.testing.assert_allclose(alone[0], together[row], atol=2e-3, rtol=1e-3)


def test_the_repository_is_small(demo):
    assert sum(p.stat().st_size for p in demo.rglob("*.onnx")) < 12e6
    assert sum(p.stat().st_size for p in (demo / "samples").rglob("*")) < 1.5e6


def test_samples_are_what_truth_says(demo):
    truth = json.loads((demo / "samples" / "truth.json").read_text())
    assert len(truth["pictures"]) >= 6 and len(truth["clips"]) >= 2
    for picture in truth["pictures"]:
        with Image.open(demo / "samples" / picture["file"]) as image:
            assert image.size == (picture["width"], picture["height"])
        for thing in picture["objects"]:
            x0, y0, x1, y1 = thing["box"]
            assert 0 <= x0 < x1 <= picture["width"] and 0 <= y0 < y1 <= picture["height"]
    for clip in truth["clips"]:
        assert len(clip["frames"]) == FRAMES
        assert all((demo / "samples" / frame).exists() for frame in clip["frames"])


def test_metrics_report_matches_the_manifests(demo):
    metrics = json.loads((demo / "metrics.json").read_text())
    for name, values in metrics["frozen"].items():
        assert read(demo / "heads" / name / "head.toml")["metrics"] == pytest.approx(values, abs=1e-3)
