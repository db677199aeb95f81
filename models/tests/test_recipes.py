"""Recipes: each from checkpoint to a checked head on a tiny data set of its format; the way
through the server; and what is refused."""

import csv
import json

import datasets
import pytest
import serving
import torch

from frostline_models import cli, recipes
from frostline_models.backbones import sources
from frostline_models.backbones.variants import check_size, swinv2_config
from frostline_models.errors import InputError
from frostline_models.swinv2 import SwinV2
from frostline_models.taskheads.spec import read_manifest

#: A backbone and heads that train in seconds; everything else is the recipe's own.
SMALL = [
    "backbone.name=swinv2-n", "backbone.size=64", "backbone.window=8", "backbone.pretrained_size=64",
    "backbone.pretrained_window=4", "backbone.precision=fp32", "train.steps=3", "train.batch=2",
    "train.views=2", "train.log_every=1",
]  # fmt: skip
BY_FORMAT = {
    "coco": (datasets.coco, ["head.options.width=8", "head.options.hidden=16", "head.options.depth=1", "head.options.proposals=12"]),
    "ade20k": (datasets.ade20k, ["head.options.width=16", "head.options.queries=6", "head.options.layers=2", "data.train.classes=4", "data.validation.classes=4"]),
    "kinetics": (datasets.kinetics, ["head.options.width=16", "head.options.heads=2", "head.options.layers=1", "train.frames=3", "train.frame_stride=2"]),
    "photos": (datasets.photos, []),
    "voc": (datasets.voc, ["head.options.width=8", "data.train.tile=48", "data.train.overlap=8", "data.validation.tile=48", "data.validation.overlap=8"]),
}  # fmt: skip
METRICS = {"voc": {"box_map", "box_map50"}, "photos": {"top1", "top5", "mean_class_top1"}, "coco": {"box_map", "box_map50", "mask_map", "mask_map50"}, "ade20k": {"miou", "pixel_accuracy"}, "kinetics": {"top1", "top5"}}


def changes(recipe: recipes.Recipe) -> list[str]:
    words = []
    for change in SMALL + BY_FORMAT[recipe.data.format][1]:
        words += ["--set", change]
    return words


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr("sys.argv", ["frostline-models", *map(str, words)])
    cli.main()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {k: make(tmp_path_factory.mktemp(k)) for k, (make, _) in BY_FORMAT.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint in the official layout, of the small backbone at the size it was trained at."""
    model = sources.randomize(SwinV2(swinv2_config("swinv2-n", 64, 4)), 0)
    file = tmp_path_factory.mktemp("checkpoint") / "swinv2_nano.pth"
    torch.save({"model": model.state_dict()}, file)
    return file


@pytest.mark.parametrize("name", recipes.known())
def test_a_recipe_goes_from_checkpoint_to_a_checked_head(tmp_path, monkeypatch, capsys, data, checkpoint, name):
    recipe, repository = recipes.load(name), tmp_path / "repository"
    kind, small = recipe.data.format, changes(recipe)
    run(monkeypatch, "backbone", "export", "--recipe", name, *small, "--checkpoint", checkpoint, "--out", repository)
    run(
        monkeypatch, "train", name, *small, "--data", data[kind], "--repository", repository,
        "--validate", 4, "--threads", 1, *(["--tensorboard"] if kind == "ade20k" else []),
    )  # fmt: skip
    head = read_head(repository, recipe.name)
    assert head["backbone"] == read_manifest(repository / "backbone.toml")["sha256"]
    assert set(head["metrics"]) == METRICS[kind] and all(0 <= v <= 1 for v in head["metrics"].values())
    assert head["trained"]["recipe"].startswith(name) and head["task"] == recipe.head.task
    curve = tmp_path / "repository-training" / recipe.name / "curve.csv"
    assert [r["step"] for r in csv.DictReader(curve.open())] == ["1", "2", "3"]
    assert kind != "ade20k" or list((curve.parent / "events").glob("events.*"))
    if not name.endswith(("-b", "-lite0")):
        serving.check(repository)
        return
    # The rest of the way, once for each format: checked, served, evaluated through the server.
    assert recipe.name in serving.check(repository)
    with serving.serve(repository) as address:
        out = tmp_path / "out"
        run(
            monkeypatch, "evaluate", recipe.name, "--server", address, "--recipe", name, *small,
            "--data", data[kind], "--limit", 4, "--out", out,
        )  # fmt: skip
    report = json.loads((out / "evaluation.json").read_text())
    assert set(report["metrics"]) == METRICS[kind] and report["backbone_runs"] > 0
    assert (out / "cases.png").stat().st_size > 1000
    if kind == "kinetics":
        assert report["views"] == "3 frames x 4 clips x 3 crops"
    for key, value in head["metrics"].items():
        # The server decodes JPEG itself; ties of an untrained head may fall otherwise.
        assert report["metrics"][key] == pytest.approx(value, abs=0.3)


def read_head(repository, name) -> dict:
    import tomllib

    return tomllib.loads((repository / "heads" / name / "head.toml").read_text())


def test_fine_tuning_writes_its_own_backbone(tmp_path, monkeypatch, capsys, data, checkpoint):
    recipe = recipes.load("ade20k-swinv2-b")
    words = ["train", "ade20k-swinv2-b", *changes(recipe), "--data", data["ade20k"], "--fine-tune",
             "--checkpoint", checkpoint, "--validate", 2, "--threads", 1]  # fmt: skip
    run(monkeypatch, *words, "--repository", tmp_path / "tuned")
    manifest = read_manifest(tmp_path / "tuned" / "backbone.toml")
    assert "fine-tuned for ade20k" in manifest["source"]["checkpoint"]
    assert read_head(tmp_path / "tuned", "ade20k")["backbone"] == manifest["sha256"]
    serving.check(tmp_path / "tuned")
    # A frozen repository is not overwritten: its other heads would lose their backbone.
    run(monkeypatch, "backbone", "export", "swinv2-n", "--size", 64, "--random", 0, "--out", tmp_path / "frozen")
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--repository", tmp_path / "frozen")
    assert "holds another backbone" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipes.known())
def test_recipes_ask_for_what_exists(name):
    recipe = recipes.load(name)
    b = recipe.backbone
    if not b.name.startswith("swinv2-"):
        import timm

        assert timm.is_model(b.name) and "measured" in recipe.cost.basis and b.checkpoint
        return
    check_size(b.size, b.window)
    config = swinv2_config(b.name, b.size, b.window, b.pretrained_size, b.pretrained_window)
    assert config.pretrained_windows == (12, 12, 12, 6)
    assert recipe.cost.gpu_hours > 0 and "estimated" in recipe.cost.basis
    assert recipe.cost.disk_gb <= recipe.train.cache_gb
    assert bool(b.checkpoint) != b.name.endswith("-g")  # the G weights are not public


@pytest.mark.parametrize(
    "words", [["stretch", "--filter", "bicubic"], ["center_crop", "--crop-fraction", "0.875"], ["letterbox", "--pad", "0"]]
)  # fmt: skip
def test_a_head_is_trained_and_measured_as_its_backbone_is_fed(tmp_path, monkeypatch, data, words):
    """To the end, on what the server will show it: the checked head's own measure is the server's."""
    name, repository = "ade20k-swinv2-b", tmp_path / "repository"
    small = changes(recipes.load(name))
    run(monkeypatch, "backbone", "export", "swinv2-n", "--size", 64, "--random", 0, "--out", repository, "--resize", *words)
    table = read_manifest(repository / "backbone.toml")["input"]
    assert table["resize"] == words[0] and str(list(table.values())).count(words[2]) == 1
    run(
        monkeypatch, "train", name, *small, "--data", data["ade20k"], "--repository", repository,
        "--validate", 4, "--threads", 1,
    )  # fmt: skip
    serving.check(repository)
    out = tmp_path / "out"
    with serving.serve(repository) as address:
        run(
            monkeypatch, "evaluate", "ade20k", "--server", address, "--recipe", name, *small,
            "--data", data["ade20k"], "--limit", 4, "--out", out,
        )  # fmt: skip
    report = json.loads((out / "evaluation.json").read_text())
    for key, value in read_head(repository, "ade20k")["metrics"].items():
        assert report["metrics"][key] == pytest.approx(value, abs=0.02), key


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("ade20k-swinv2-b", "train.frames=3", "train.frames and train.frame_stride: have no meaning for the task segm"),
        ("kinetics400-swinv2-b", "train.frame_stride=0", "train.frame_stride: is 0, must be from 1 to 1024"),
        ("coco-swinv2-b", "head.postprocess.nms_iuo=0.5", "head.postprocess.nms_iuo: cannot be set.*nms_iou"),
        ("coco-swinv2-b", "head.postprocess.nms_iou=1.5", "head.postprocess.nms_iou: is 1.5, must be a number from 0 to 1"),
        ("coco-swinv2-b", "head.postprocess.max_detections=2.5", "is 2.5, must be a whole number"),
        ("kinetics400-swinv2-b", "head.postprocess.frames=4", "head.postprocess.frames: cannot be set"),
        ("coco-swinv2-b", "backbone.resize=squash", "backbone.resize 'squash'"),
        ("coco-swinv2-b", "backbone.crop_fraction=0.875", "backbone.crop_fraction 0.875: has no meaning"),
    ],
)
def test_what_could_not_be_served_is_refused_before_training(name, change, says):
    with pytest.raises(InputError, match=says):
        recipes.load(name, [change])


def test_a_clip_that_is_the_whole_video_is_one(tmp_path):
    good = (recipes.FOLDER / "kinetics400-swinv2-b.toml").read_text()
    file = tmp_path / "whole.toml"
    file.write_text(good.replace("frame_stride = 4\n", ""))
    with pytest.raises(InputError, match="evaluate.clips: must be 1 without train.frame_stride"):
        recipes.load(str(file))
    assert recipes.load(str(file), ["evaluate.clips=1"]).train.frame_stride is None


@pytest.mark.parametrize(
    "line, says",
    [
        ('resize = "squash"', "backbone.toml: input.resize 'squash'"),
        ('resize = "stretch"\ncrop_fraction = 0.875', "backbone.toml: input.crop_fraction 0.875"),
        ('resize = "letterbox"\nmean = 3', "backbone.toml: input.mean: is no key"),
    ],
)
def test_a_manifest_that_training_cannot_follow_is_refused_before(tmp_path, monkeypatch, capsys, data, line, says):
    name = "ade20k-swinv2-b"
    run(monkeypatch, "backbone", "export", "swinv2-n", "--size", 64, "--random", 0, "--out", tmp_path / "r")
    file = tmp_path / "r" / "backbone.toml"
    file.write_text(file.read_text().replace('resize = "letterbox"', line))
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", name, *changes(recipes.load(name)), "--data", data["ade20k"], "--repository", tmp_path / "r")
    assert says in capsys.readouterr().err
    assert not (tmp_path / "r" / "heads").exists() and not (tmp_path / "r-training").exists()


def test_recipes_are_listed(monkeypatch, capsys):
    run(monkeypatch, "recipes")
    out = capsys.readouterr().out
    assert all(name in out for name in recipes.known()) and len(recipes.known()) == 11


def test_bad_recipes_are_refused_by_file_and_key(tmp_path):
    good = (recipes.FOLDER / "coco-swinv2-b.toml").read_text()
    file = tmp_path / "mine.toml"
    for text, message in (
        (good.replace("steps = ", "setps = "), r"mine.toml: train.setps: is no key"),
        (good.replace('task = "detection"', "task = 3"), "head.task: is 3, must be str"),
        (good.replace("batch = 16", 'batch = "16"'), "train.batch: is '16', must be int"),
        (good.replace("batch = 16", ""), "train: missing 1 required .* 'batch'"),
        (good.replace("[cost]", "[costs]"), "costs: is no key of a recipe"),
        (good.replace("[head]", "[head"), "mine.toml: is not TOML"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            recipes.load(str(file))
    with pytest.raises(InputError, match="nowhere.toml: cannot be read"):
        recipes.load(str(tmp_path / "nowhere.toml"))
    with pytest.raises(InputError, match="recipe 'coco': there are ade20k-swinv2-b"):
        recipes.load("coco")
    with pytest.raises(InputError, match="SECTION.KEY=VALUE"):
        recipes.load("coco-swinv2-b", ["steps=3"])
    changed = recipes.load("coco-swinv2-b", ["train.steps=3", "head.options.width=32", "backbone.name=swinv2-t"])
    assert (changed.train.steps, changed.head.options["width"], changed.backbone.name) == (3, 32, "swinv2-t")


def test_options_that_do_not_go_together_are_refused(tmp_path, monkeypatch, capsys, data):
    for words, message in (
        (["backbone", "export", "swinv2-n", "--random", 0, "--out", tmp_path], "needs its name and --size"),
        (["backbone", "export", "swinv2-n", "--recipe", "coco-swinv2-b", "--random", 0, "--out", tmp_path], "not both"),
        (["train", "coco-swinv2-b", "--data", data["coco"], "--repository", tmp_path, "--random", 0], "belong to --fine-tune"),
        (["train", "coco-swinv2-b", "--data", data["coco"], "--repository", tmp_path], "backbone.toml: cannot be read"),
        (["train", "coco-swinv2-b", "--data", tmp_path / "none", "--repository", tmp_path], "no such folder"),
        (["evaluate", "x", "--server", "127.0.0.1:1", "--data", tmp_path], "give --format"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, *words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err, words
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            run(monkeypatch, "train", "coco-swinv2-b", "--data", data["coco"], "--repository", tmp_path, "--device", "cuda")
        assert "sees no GPU" in capsys.readouterr().err


