"""Training on frozen features: bounded cache, resumable, repeatable, and it learns."""

import csv
import errno
import os
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch

from frostline_models import export as common
from frostline_models.backbones import export, sources
from frostline_models.errors import InputError
from frostline_models.readers import open_dataset
from frostline_models.swinv2 import SwinV2, SwinV2Config
from frostline_models.taskheads import registry
from frostline_models.taskheads.spec import from_manifest
from frostline_models.training import frozen, loop
from frostline_models.training.cache import Extractor, FeatureCache
from frostline_models.training.samples import Samples, order

CONFIG = SwinV2Config(64, 8, (1, 1, 1, 1), (1, 1, 2, 2), window=8)


def backbone(seed: int = 0) -> SwinV2:
    return sources.randomize(SwinV2(CONFIG), seed).eval()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    made = sources.Backbone(
        backbone(), "tiny", 64, CONFIG.strides(), CONFIG.channels(), "tiny", "random"
    )
    export.export(made, folder, export.Options(), say=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    root = datasets.ade20k(tmp_path_factory.mktemp("ade"))
    return open_dataset("ade20k", root, split="training", classes=4)


@pytest.fixture
def samples(repository, ade):
    spec = from_manifest(repository / "backbone.toml", 4)
    return Samples(ade, "segmentation", spec, views=3)


def make_cache(root, repository, samples, max_bytes=1 << 30) -> FeatureCache:
    extractor = Extractor(repository, samples.spec.features)
    return FeatureCache(
        root, extractor, samples.spec, len(samples), samples.fingerprint(), samples.pixels, max_bytes
    )


PLAN = dict(batch=3, lr=5e-3, warmup=4, log_every=2, average=0.9)


def head_for(samples, form="linear", seed=0):
    torch.manual_seed(seed)
    return registry.build(samples.task, form, samples.spec)


# === the cache ===


def test_features_are_the_backbones_and_are_computed_once(tmp_path, repository, samples):
    cache = make_cache(tmp_path, repository, samples)
    first = cache.read([0, 4, 7])
    with torch.no_grad():
        images = torch.from_numpy(np.stack([samples.pixels(r) for r in (0, 4, 7)]))
        for a, b in zip(first, backbone()(images)):
            assert a.dtype == np.float16
            assert np.abs(a - b.numpy()).max() <= 2e-3 * np.abs(b.numpy()).max()
    assert cache.count() == 3
    again = make_cache(tmp_path, repository, samples)
    again.pixels = None  # a second run must not need the images
    for a, b in zip(first, again.read([0, 4, 7])):
        np.testing.assert_array_equal(a, b)


def test_the_cache_keeps_its_bound(tmp_path, repository, samples):
    cache = make_cache(tmp_path, repository, samples, max_bytes=1)
    assert cache.kept == 0 and not cache.folder.exists()
    bound = 5 * cache.row_bytes + 10
    cache = make_cache(tmp_path, repository, samples, bound)
    cache.read(list(range(len(samples))))
    assert cache.count() == cache.kept == 5
    used = sum(f.stat().st_size for f in cache.folder.glob("*.f16"))
    assert used <= bound
    whole = make_cache(tmp_path / "b", repository, samples).read([2, 9])
    for a, b in zip(cache.read([2, 9]), whole):
        np.testing.assert_array_equal(a, b)


def test_other_backbones_views_and_data_have_other_caches(tmp_path, repository, samples, ade):
    folders = {make_cache(tmp_path, repository, samples).folder}
    for other in (
        Samples(ade, "segmentation", samples.spec, views=2),
        Samples(ade, "segmentation", samples.spec, views=3, seed=1),
    ):
        folders.add(make_cache(tmp_path, repository, other).folder)
    # How images are fitted to the input decides the pixels as well.
    for change in ({"resize": "stretch"}, {"resize": "center_crop"}, {"resize": "center_crop", "crop_fraction": 0.875}, {"filter": "bicubic"}, {"pad": 0}):
        spec = replace(samples.spec, input=replace(samples.spec.input, **change))
        folders.add(make_cache(tmp_path, repository, Samples(ade, "segmentation", spec, views=3)).folder)
    assert len(folders) == 8


def test_a_full_disk_is_an_error_that_says_how_much_is_needed(tmp_path, repository, samples, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"stride4.f16: the disk is full.*GB are free.*cache_gb"):
        make_cache(tmp_path, repository, samples)
    assert not list(tmp_path.glob("features-*"))


def test_a_changed_backbone_file_is_refused(tmp_path, repository, samples):
    for name in ("backbone.toml", "backbone.onnx"):
        (tmp_path / name).write_bytes((repository / name).read_bytes())
    with (tmp_path / "backbone.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="backbone.toml: sha256"):
        Extractor(tmp_path, samples.spec.features)


# === the loop ===


def test_every_epoch_visits_every_sample_once():
    rows = [r for step in range(4) for r in order(8, 3, 4, step, seed=5)]
    assert sorted(r // 3 for r in rows[:16]) == sorted([*range(8)] * 2)
    assert sorted(r // 3 for r in rows[:8]) == list(range(8))
    assert rows == [r for step in range(4) for r in order(8, 3, 4, step, seed=5)]
    assert rows != [r for step in range(4) for r in order(8, 3, 4, step, seed=6)]


def test_a_stopped_run_ends_like_one_that_was_not(tmp_path, repository, samples):
    plan = loop.Plan(steps=9, **PLAN)
    whole = frozen.train_head(
        head_for(samples), samples, make_cache(tmp_path / "a", repository, samples), plan, tmp_path / "1"
    )
    cache = make_cache(tmp_path / "b", repository, samples)
    for stop in (4, 7):
        with pytest.raises(loop.Stopped):
            frozen.train_head(head_for(samples, seed=stop - 4), samples, cache, plan, tmp_path / "2", stop)
    resumed = frozen.train_head(head_for(samples, seed=9), samples, cache, plan, tmp_path / "2")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    curves = [list(csv.DictReader((tmp_path / n / "curve.csv").open())) for n in "12"]
    assert [r["step"] for r in curves[0]] == ["2", "4", "6", "8", "9"]
    assert [r["loss"] for r in curves[0]][:2] == [r["loss"] for r in curves[1]][:2]
    assert [r["step"] for r in curves[1]] == [r["step"] for r in curves[0]]


def test_a_head_learns_from_files_alone(tmp_path, repository, samples):
    plan = loop.Plan(steps=60, **PLAN)
    cache = make_cache(tmp_path, repository, samples)
    frozen.train_head(head_for(samples, "linear"), samples, cache, plan, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").open()))
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path, repository, samples):
    cache = make_cache(tmp_path, repository, samples)
    run = tmp_path / "run"
    frozen.train_head(head_for(samples), samples, cache, loop.Plan(steps=2, **PLAN), run)
    with pytest.raises(InputError, match="state.pt: is of another run"):
        frozen.train_head(head_for(samples), samples, cache, loop.Plan(steps=3, **PLAN), run)
    other = registry.build("segmentation", "upernet", samples.spec, {"width": 8})
    with pytest.raises(InputError, match="state.pt: is of another head"):
        frozen.train_head(other, samples, cache, loop.Plan(steps=2, **PLAN), run)
    (run / "state.pt").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="state.pt: cannot be resumed"):
        frozen.train_head(head_for(samples), samples, cache, loop.Plan(steps=2, **PLAN), run)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="not finite at step 0.*lower train.lr"):
        loop.run(
            model, lambda step: torch.ones(1, 1), lambda m, x: {"loss": (m(x) / 0).sum()},
            loop.Plan(steps=2, batch=1), tmp_path,
        )  # fmt: skip
    for key in ({"steps": 0}, {"batch": 0}, {"lr": 0.0}):
        with pytest.raises(InputError, match=f"train.{next(iter(key))}"):
            loop.Plan(**({"steps": 1, "batch": 1} | key))


def test_fine_tuning_changes_the_backbone_and_resumes(tmp_path, samples):
    plan = loop.Plan(steps=4, **PLAN)

    def tune(folder, stop=None):
        return frozen.fine_tune(
            backbone(), [f"stride{s}" for s in CONFIG.strides()], head_for(samples), samples, plan,
            folder, stop,
        )  # fmt: skip

    body, head = tune(tmp_path / "a")
    assert set(body) == set(backbone().state_dict()) and set(head) == set(head_for(samples).state_dict())
    before = backbone().state_dict()["layers.0.blocks.0.attn.qkv.weight"]
    assert (body["layers.0.blocks.0.attn.qkv.weight"] != before).any()
    with pytest.raises(loop.Stopped):
        tune(tmp_path / "b", 2)
    again, _ = tune(tmp_path / "b")
    for name, value in body.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_trained_heads_export_and_agree(tmp_path, repository, samples):
    cache = make_cache(tmp_path, repository, samples)
    head = head_for(samples)
    weights = frozen.train_head(head, samples, cache, loop.Plan(steps=3, **PLAN), tmp_path / "run")
    head.load_state_dict(weights)
    head.eval()
    session = common.session(registry.graph(head, samples.spec))
    maps = [m.astype(np.float32) for m in cache.read([0, 1])]
    with torch.no_grad():
        wanted = head.serve([torch.from_numpy(m) for m in maps])
    got = session.run(None, dict(zip(samples.spec.features, maps)))[0]
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4, rtol=1e-4)
