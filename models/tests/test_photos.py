"""Labelled photographs: the reader, what classifiers and embeddings reach beside scikit-learn on
the same features, and the whole way of an embedding."""

import json
import os
import tomllib
from pathlib import Path

import datasets
import numpy as np
import pytest
import serving
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_recipes import SMALL, run

from frostline_models import geometry
from frostline_models.errors import InputError
from frostline_models.measure import images
from frostline_models.readers import open_dataset
from frostline_models.taskheads import objectives, registry
from frostline_models.taskheads.spec import Spec, from_manifest
from frostline_models.training import loop
from frostline_models.training.cache import Extractor

# === the reader ===


def test_folders_and_a_csv_give_the_same_photographs(tmp_path):
    root = datasets.photos(tmp_path)
    folders = open_dataset("photos", root, images="train")
    assert folders.labels == ["blue", "green", "red"] and len(folders) == 12
    rows = [f"{folders.key(i)},{folders.labels[folders.target(i)]}" for i in range(12)]
    (root / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    listed = open_dataset("photos", root, images="train", csv="list.csv")
    assert [listed.target(i) for i in range(12)] == [folders.target(i) for i in range(12)]
    assert (listed.image(3) == folders.image(3)).all() and listed.fingerprint() == folders.fingerprint()
    assert open_dataset("photos", root, images="train", labels=["red", "green", "blue"]).target(0) == 2


def test_what_is_wrong_with_photographs_is_named(tmp_path):
    root = datasets.photos(tmp_path / "a")

    def refused(said: str, **options):
        with pytest.raises(InputError, match=said):
            open_dataset("photos", root, **options)

    refused("nothing: no such folder", images="nothing")
    refused("label 'blue' is not among the 1 known", images="train", labels=["red"])
    (root / "train" / "empty").mkdir()
    refused("empty: holds no photographs; remove the folder", images="train")
    for text, said in (
        ("file,label\nx.jpg,red\n", "there is no 'path'"), ("path,label\nx.jpg,red\n", "line 2: there is no"),
        ("path,label\nred/0.jpg,\n", "line 2: label is empty"),
        ("path,label\nred/0.jpg,red\nred/0.jpg,blue\n", r"line 3: 0.jpg is listed in line 2 already"),
        ("path,label\nred/0.jpg,red\n", "has one class alone, 'red'"), ("path,label\n", "holds no photographs"),
    ):  # fmt: skip
        (root / "list.csv").write_text(text)
        refused(said, images="train", csv="list.csv")
    refused("no such CSV file", csv="none.csv")
    (root / "train" / "empty" / "broken.jpg").write_bytes(b"\xff\xd8no")
    broken = open_dataset("photos", root, images="train")
    index = next(i for i in range(len(broken)) if broken.key(i).startswith("empty"))
    with pytest.raises(InputError, match="broken.jpg: is not a readable image"):
        broken.image(index)


# === heads beside scikit-learn ===

SPEC = Spec(("stride16", "stride32"), (12, 20), (16, 32), 128, 4)


def features(count: int, seed: int, spread: float = 0.13) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps whose average leans to one of four directions, and the direction."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 4
    maps = []
    for channels, side in zip(SPEC.channels, SPEC.sides()):
        means = torch.randn(4, channels, generator=torch.Generator().manual_seed(channels)) * spread
        noise = torch.randn(count, channels, side, side, generator=generator)
        drift = torch.randn(count, channels, 1, 1, generator=generator) * 0.3
        maps.append((noise + drift + means[classes][:, :, None, None]) * 3 + 5)
    return maps, classes


def pooled(maps: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([m.mean((2, 3)) for m in maps] + [m.amax((2, 3)) for m in maps], 1).numpy()


def trained(task: str, form: str, folder, options=None, spread: float = 0.13, steps: int = 400, rate: float = 1e-2):
    maps, classes = features(1600, 0, spread)
    torch.manual_seed(0)
    head = registry.build(task, form, SPEC, options)

    def batch(step: int):
        rows = torch.randperm(1600, generator=torch.Generator().manual_seed(step))[:64]
        return [m[rows] for m in maps], {"classes": classes[rows]}

    plan = loop.Plan(steps=steps, batch=64, lr=rate, warmup=10, weight_decay=0.3, average=0.99)
    head.load_state_dict(loop.run(head, batch, lambda m, d: objectives.objective(m, *d), plan, folder))
    return head.eval()


@torch.no_grad()
def test_a_linear_head_is_as_good_as_logistic_regression(tmp_path):
    maps, classes = features(1600, 0)
    held, truth = features(1000, 1)
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(pooled(maps), classes)
        for c in (1e-3, 1e-2, 1e-1)
    ]
    reference = max(f.score(pooled(held), truth) for f in fitted)
    with torch.enable_grad():
        head = trained("classification", "linear", tmp_path, steps=1500, rate=3e-3)
    mine = float((head(held).argmax(1) == truth).float().mean())
    assert 0.5 < reference < 0.98 and mine >= reference - 0.01


@torch.no_grad()
def test_a_learnt_embedding_brings_classes_together(tmp_path):
    held, truth = features(400, 1, 0.2)
    with torch.enable_grad():
        learnt = trained("embedding", "linear", tmp_path / "a", {"width": 32}, 0.2)
        plain = trained("embedding", "pooled", tmp_path / "b", spread=0.2)
    scores = {}
    for name, head in (("learnt", learnt), ("plain", plain)):
        rows = head.serve(held).numpy().astype(np.float64)
        result = images.score_neighbours(rows, truth.numpy(), rows, truth.numpy(), 4, same=True)
        scores[name] = result.metrics["nearest_top1"]
    assert scores["learnt"] > scores["plain"] + 0.03 > 0.6


def test_neighbours_and_confusion_are_scikit_learns():
    rng = np.random.default_rng(0)
    known, rows = rng.normal(size=(60, 6)), rng.normal(size=(40, 6))
    theirs, targets = rng.integers(0, 4, 60), rng.integers(0, 4, 40)
    result = images.score_neighbours(rows, targets, known, theirs, 4)
    # A vote weighs 1 + cosine, which is 2 - distance.
    reference = KNeighborsClassifier(5, metric="cosine", weights=lambda d: 2 - d).fit(known, theirs)
    np.testing.assert_allclose(np.array(result.predictions), reference.predict_proba(rows), atol=1e-9)
    assert result.metrics["knn5_top1"] == pytest.approx(reference.score(rows, targets))
    nearest = KNeighborsClassifier(1, metric="cosine").fit(known, theirs)
    assert result.metrics["nearest_top1"] == pytest.approx(nearest.score(rows, targets))
    found = np.argmax(result.predictions, 1)
    assert (images.confusion(found, targets, 4) == confusion_matrix(targets, found, labels=range(4))).all()


def test_a_tie_counts_against_the_label():
    scored = images.score_classification([np.array([0.5, 0.5]), np.array([0.2, 0.8])], [0, 1])
    assert scored.metrics["top1"] == 0.5 and scored.metrics["top5"] == 1.0


# === the whole way ===


def test_an_embedding_goes_from_photographs_to_the_server(tmp_path, monkeypatch):
    root, repository = datasets.photos(tmp_path / "photos"), tmp_path / "repository"
    small = [w for change in SMALL for w in ("--set", change)]
    run(monkeypatch, "backbone", "export", "--recipe", "photos-lite0", *small, "--random", 0, "--out", repository)
    for task, form in (("embedding", "pooled"), ("classification", "mlp")):
        changes = ["--set", f"head.task={task}", "--set", f"head.form={form}", "--set", "train.steps=30", "--set", "head.options={}"]
        run(monkeypatch, "train", "photos-lite0", *small, *changes, "--data", root, "--repository", repository, "--name", form)
    with serving.serve(repository) as address:
        words = ["evaluate", "pooled", "--server", address, "--format", "photos", "--data", root, "--option", "images=validation"]
        run(monkeypatch, *words, "--gallery", "images=train", "--out", tmp_path / "out")
        report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert set(report["metrics"]) == {"knn5_top1", "nearest_top1"} and report["backbone_runs"] == 24
        run(monkeypatch, *words[:1], "mlp", *words[2:], "--out", tmp_path / "classes")
        report = json.loads((tmp_path / "classes" / "evaluation.json").read_text())
        assert report["metrics"]["top1"] >= 1 / 3
        with pytest.raises(SystemExit):
            run(monkeypatch, *words[:1], "mlp", *words[2:], "--gallery", "images=train")
    with Image.open(tmp_path / "classes" / "confusion.png") as picture:
        assert min(picture.size) > 150


# === real photographs ===


@pytest.mark.slow
def test_forms_on_real_photographs(tmp_path, monkeypatch, capsys):
    """The recipe's forms beside logistic regression on the same features, its penalty the best of five
    on the photographs that it is scored on: ``FROSTLINE_PHOTOS=folder FROSTLINE_LITE0=checkpoint pytest -m slow
    -s -k real_photographs`` prints the table of ``REAL.md``."""
    if not os.environ.get("FROSTLINE_PHOTOS") or not os.environ.get("FROSTLINE_LITE0"):
        pytest.skip("FROSTLINE_PHOTOS and FROSTLINE_LITE0 are not set")
    root, repository = Path(os.environ["FROSTLINE_PHOTOS"]), tmp_path / "repository"
    run(monkeypatch, "backbone", "export", "--recipe", "photos-lite0", "--checkpoint", os.environ["FROSTLINE_LITE0"], "--out", repository)
    spec = from_manifest(repository / "backbone.toml", 2, ["stride16", "stride32"])
    extractor, rows = Extractor(repository, spec.features, threads=1), {}
    for split in ("train", "validation"):
        data = open_dataset("photos", root, images=split)
        maps = [extractor(geometry.fit(data.image(i), spec.input)[None]) for i in range(len(data))]
        found = [torch.from_numpy(np.concatenate(level)).float() for level in zip(*maps)]
        rows[split] = pooled(found), np.array([data.target(i) for i in range(len(data))])
    scores = {}
    for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=3000)).fit(*rows["train"])
        scores[f"scikit-learn, C = {c:g}"] = fitted.score(*rows["validation"])
    reference = max(scores.values())
    count = len(rows["validation"][1])
    for form in ("linear", "mlp", "attentive"):
        change = ["--set", f"head.form={form}", "--name", form, "--threads", 1, "--validate", count]
        run(monkeypatch, "train", "photos-lite0", *change, "--data", root, "--repository", repository)
        table = tomllib.loads((repository / "heads" / form / "head.toml").read_text())
        scores[form] = table["metrics"]["top1"]
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:<24}{100 * value:6.2f}" for name, value in scores.items()))
    assert scores["linear"] >= reference - 0.01 and max(scores["mlp"], scores["attentive"]) > scores["linear"]
