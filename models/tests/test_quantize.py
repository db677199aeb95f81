"""A served repository at int8, heads and all."""

import tomllib

import numpy as np
import onnxruntime as ort
import pytest
import serving

from frostline_models import geometry
from frostline_models.backbones import command, parity
from frostline_models.backbones.quantize import HELD_OUT, quantize
from frostline_models.errors import InputError


def test_a_quantized_repository_passes_check_with_the_heads_it_had(tmp_path, demo):
    images = parity.pictures(12, 128, seed=4)
    levels = quantize(demo, tmp_path / "int8", images, say=lambda _: None)
    assert min(level.cosine for level in levels) >= 0.98
    table = tomllib.loads((tmp_path / "int8" / "backbone.toml").read_text())
    assert table["precision"] == "int8" and table["name"].endswith("-int8")
    assert table["metrics"]["stride8_cosine"] == pytest.approx(levels[1].cosine, rel=1e-6)
    for head in ("motion", "objects", "scene"):
        old, new = (tomllib.loads((r / "heads" / head / "head.toml").read_text()) for r in (demo, tmp_path / "int8"))
        assert new.pop("backbone") == table["sha256"] != old.pop("backbone")
        assert new == old
    # It is int8 that runs, and it is not fp32's answer.
    runs = [
        ort.InferenceSession(str(r / "backbone.onnx"), providers=["CPUExecutionProvider"]).run(None, {"image": images[:1]})
        for r in (demo, tmp_path / "int8")
    ]
    assert np.abs(runs[0][0] - runs[1][0]).max() > 1e-3
    shown = serving.check(tmp_path / "int8")
    assert "int8" in shown and all(head in shown for head in ("motion", "objects", "scene"))


def test_what_cannot_be_quantized_is_refused(tmp_path, demo):
    images = parity.pictures(HELD_OUT + 2, 128, seed=4)
    with pytest.raises(InputError, match="repository itself"):
        quantize(demo, demo, images)
    with pytest.raises(InputError, match=f"{HELD_OUT} images"):
        quantize(demo, tmp_path / "few", images[:HELD_OUT])
    quantize(demo, tmp_path / "int8", images, say=lambda _: None)
    with pytest.raises(InputError, match="precision is int8"):
        quantize(tmp_path / "int8", tmp_path / "again", images)


def test_generated_scenes_calibrate_without_a_trace(tmp_path, font, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = command.calibration_images("generated-scenes", geometry.Input(128, 128), 3)
    assert images.shape == (3, 128, 128, 3) and images.dtype == np.uint8
    assert images[0].std() > 5 and not list(tmp_path.iterdir())
