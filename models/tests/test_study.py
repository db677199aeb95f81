"""The study: its plan, one backbone through every cell, resumed, and the report's verdicts."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from frostline_models import cli
from frostline_models.errors import InputError
from frostline_models.study import cells, data, plan, pretrain, report

TINY = dataclasses.replace(
    plan.plan(plan.LEAST_BUDGET, seed=3), pretrain_images=20, scenes=12, clips=8, heldout_scenes=6,
    heldout_clips=6, pretrain_steps=3, head_steps=2, detection_steps=2, pretrain_batch=8, batch=4,
    detection_batch=4, clip_batch=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory, font):
    folder = tmp_path_factory.mktemp("study")
    data.make(folder / "data", TINY, 1)
    return folder


def test_a_budget_decides_steps_and_data():
    small, full = plan.plan(6, 0), plan.plan(plan.FULL_BUDGET, 0)
    assert full.head_steps == 30 * small.head_steps and full.scenes > 10 * small.scenes
    with pytest.raises(InputError, match="--budget 0.1: must be at least"):
        plan.plan(0.1, 0)
    with pytest.raises(InputError, match="--budget nan"):
        plan.plan(float("nan"), 0)
    every = [c for unit in plan.units() for c in plan.cells(unit)]
    assert len({c.name for c in every}) == len(every) == 4 * 3 * (3 * 3 + 3)


def test_backbones_and_heads_grow():
    sizes = [sum(p.numel() for p in pretrain.backbone(s, 0).parameters()) for s in plan.SIZES]
    assert sizes == sorted(set(sizes))
    for task in plan.TASKS:
        counts = []
        for form, options in plan.HEADS[task].values():
            frames = 8 if task == "action" else 1
            head = cells.registry.build(task, form, pretrain.spec("small", 10, frames), dict(options))
            counts.append(cells.parameters(head))
        assert counts == sorted(set(counts)), task


@pytest.mark.parametrize("kind", ["classification", "dense", "masked"])
def test_pretraining_learns(work, kind):
    dataset = data.StudyScenes(data.files(work / "data", TINY)["pretrain"][0])
    body = pretrain.backbone("small", 0)
    model = {
        "classification": lambda: pretrain.Classification(body), "masked": lambda: pretrain.Masked(body),
        "dense": lambda: pretrain.DenseSupervision(body, "small"),
    }[kind]()  # fmt: skip
    images, truth = pretrain.sample(dataset, [0, 4, 8, 12], 0, kind == "dense")
    before = body.layers[0].blocks[0].attn.qkv.weight.detach().clone()
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(25):
        torch.manual_seed(0)  # the same squares are hidden each time
        loss = sum(model.loss(images, truth).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(before, body.layers[0].blocks[0].attn.qkv.weight)


def test_what_is_hidden_cannot_be_seen(work):
    """Pixels of hidden squares change the target, not the prediction: only the loss's truth."""
    body = pretrain.backbone("small", 0)
    model = pretrain.Masked(body)
    images = torch.randint(0, 256, (1, plan.PIXELS, plan.PIXELS, 3), dtype=torch.uint8)
    seen = []
    model.backbone.stages = lambda tokens: seen.append(tokens) or [torch.zeros(1, 128, 2, 2)]
    side = plan.PIXELS // pretrain.SQUARE
    torch.manual_seed(5)
    hidden = torch.rand(1, side * side).argsort(1).argsort(1) < round(pretrain.HIDDEN * side * side)
    for change in (0, 90):
        torch.manual_seed(5)
        changed = images.clone()
        for index in hidden[0].nonzero()[:, 0].tolist():
            y, x = divmod(index, side)
            s = pretrain.SQUARE
            changed[:, y * s : (y + 1) * s, x * s : (x + 1) * s] += change
        model.loss(changed, {})
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert 9 <= int(hidden.sum()) <= 10


def test_a_backbone_goes_through_every_cell_and_resumes(work, tmp_path):
    unit = plan.Unit("masked", "small")
    cells.run(unit, TINY, work)
    files = {c.name: work / "cells" / f"{c.name}.json" for c in plan.cells(unit)}
    first = {name: file.read_text() for name, file in files.items()}
    records = [json.loads(text) for text in first.values()]
    assert len(records) == 12 and {r["setting"] for r in records} == {"frozen", "fine-tuned"}
    for record in records:
        assert plan.METRIC[record["task"]] in record["metrics"] and record["steps"] == 2
        assert record["pretraining_images"] == 24
    assert not (work / "backbones" / unit.name / "features").exists()
    again = [n for n in files if "segmentation-light" in n or "action-strong-tuned" in n]
    for name in again:
        files[name].unlink()
    kept = {n: f.stat().st_mtime_ns for n, f in files.items() if n not in again}
    cells.run(unit, TINY, work)
    assert {n: f.stat().st_mtime_ns for n, f in files.items() if n not in again} == kept
    for name in again:  # the same numbers, from the seed
        assert json.loads(files[name].read_text())["metrics"] == json.loads(first[name])["metrics"]
    report.write(tmp_path, TINY, report.read(work / "cells"))
    page = (tmp_path / "STUDY.md").read_text()
    assert "**12 of 144 cells are done**" in page and "not measured" in page
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.width > 600
    assert json.loads((tmp_path / "study.json").read_text())["cells_done"] == 12


def made(value) -> list[dict]:
    """Records of all cells, their metric from ``value(cell)``."""
    return [
        {
            "pretraining": c.pretraining, "size": c.size, "task": c.task, "capacity": c.capacity,
            "setting": "fine-tuned" if c.tuned else "frozen", "metrics": {plan.METRIC[c.task]: value(c)},
            "head_parameters": 1000, "backbone_parameters": 10**6, "steps": 1,
        }
        for unit in plan.units() for c in plan.cells(unit)
    ]  # fmt: skip


def paper(cell: plan.Cell) -> float:
    """A world in which all findings of the paper hold."""
    pretraining = {"none": 0, "masked": 1, "dense": 2, "classification": 3}[cell.pretraining]
    value = 0.2 + 0.05 * pretraining + 0.05 * plan.CAPACITIES.index(cell.capacity)
    size = list(plan.SIZES).index(cell.size)
    return value + 0.02 * size + (0.05 - 0.02 * size if cell.tuned else 0)


def test_verdicts_follow_the_numbers(tmp_path):
    agreeing = report.compare(report.Table(made(paper)))
    assert [f.verdict for f in agreeing] == ["agrees"] * 5
    opposite = report.compare(report.Table(made(lambda c: 1 - paper(c))))
    assert [f.verdict for f in opposite] == ["does not agree"] * 5
    mixed = report.compare(report.Table(made(lambda c: paper(c) if c.task == "action" else 1 - paper(c))))
    assert {f.verdict for f in mixed} == {"mixed"}
    assert "linear -> light -> strong" in agreeing[2].measured
    text = report.page(TINY, report.Table(made(paper)), agreeing, 144)
    assert "| classification | large | 39.0 | 44.0 | 49.0 | 50.0 | 1.0 |" in text
    assert "within 2 points of fine-tuning (or ahead) in 3 of 9" in text


def test_the_command_keeps_studies_apart(tmp_path, monkeypatch, capsys):
    words = ["frostline-models", "study", "--report", "--work", str(tmp_path), "--out", str(tmp_path)]
    for extra, message in (
        ([], "no cell is done yet"),
        (["--budget", "9"], "recipe.json: is of a study with another budget or seed"),
        (["--workers", "0"], "--workers 0"),
    ):
        monkeypatch.setattr("sys.argv", words + extra)
        with pytest.raises(SystemExit):
            cli.main()
        assert message in capsys.readouterr().err
