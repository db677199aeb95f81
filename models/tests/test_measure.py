"""Metrics on answers that are known; the server's postprocessing for both kinds of masks."""

import argparse
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import serving
import torch
from PIL import Image

from frostline_models import geometry
from frostline_models.errors import InputError
from frostline_models.measure import command, gallery, metrics, served
from frostline_models.measure.local import Local
from frostline_models.readers import open_dataset

ROOT = Path(__file__).resolve().parents[2]
COCO = {"images": "val2017", "annotations": "annotations/instances_val2017.json"}


class Oracle:
    """Answers with the truth, or with something else."""

    rows = 0

    def __init__(self, dataset, task, wrong=False):
        self.dataset, self.task, self.labels, self.wrong = dataset, task, dataset.labels, wrong
        self.at = {dataset.image(i).tobytes(): i for i in range(len(dataset))} if task != "action" else {}

    def detect(self, image, threshold=None):
        truth = self.dataset.things(self.at[image.tobytes()])
        shift = 60 if self.wrong else 0
        return [
            served.Detection(int(k), 0.9, b + shift, ~m if self.wrong else m)
            for b, k, m in zip(truth.boxes, truth.classes, truth.masks)
        ]

    def segment(self, image):
        labels = self.dataset.label_map(self.at[image.tobytes()]).astype(int)
        return (labels + 1) % 4 if self.wrong else np.where(labels == 255, 0, labels)

    def recognize(self, frames):
        x = [np.nonzero(f[..., 0].astype(int) - f[..., 1] > 80)[1].mean() for f in frames]
        right = (x[-1] > x[0]) != self.wrong
        return np.array([0.1, 0.9] if right else [0.9, 0.1])


@pytest.mark.parametrize("wrong", [False, True])
def test_protocols_score_the_truth_one_and_nonsense_zero(tmp_path, wrong):
    wanted = 0.0 if wrong else 1.0
    coco = open_dataset("coco", datasets.coco(tmp_path / "c", splits=("val2017",)), **COCO)
    found = metrics.run(Oracle(coco, "detection", wrong), coco, "detection", workers=2)
    assert set(found.metrics) == {"box_map", "box_map50", "mask_map", "mask_map50"}
    ade = open_dataset("ade20k", datasets.ade20k(tmp_path / "a"), split="validation", classes=4)
    segmented = metrics.run(Oracle(ade, "segmentation", wrong), ade, "segmentation")
    kinetics = open_dataset("kinetics", datasets.kinetics(tmp_path / "k"), videos="val", csv="val.csv")
    seen = metrics.run(Oracle(kinetics, "action", wrong), kinetics, "action", frames=3, stride=2, clips=2)
    with pytest.raises(InputError, match="clips 2: a head without frame_stride"):
        metrics.run(Oracle(kinetics, "action", wrong), kinetics, "action", frames=3, clips=2)
    for result in (found, segmented):
        assert all(v == pytest.approx(wanted, abs=0.02) for v in result.metrics.values()), result.metrics
    assert seen.metrics == {"top1": wanted, "top5": 1.0}
    for result, data, task in ((found, coco, "detection"), (segmented, ade, "segmentation"), (seen, kinetics, "action")):
        assert len(result.scores) == len(data)
        gallery.save(tmp_path / "cases.png", result, data, task, frames=3)
        with Image.open(tmp_path / "cases.png") as sheet:
            assert sheet.size == (6 * gallery.TILE, 2 * (gallery.TILE + gallery.BAR))


def test_a_limit_counts_only_its_images(tmp_path):
    coco = open_dataset("coco", datasets.coco(tmp_path, splits=("val2017",)), **COCO)
    result = metrics.run(Oracle(coco, "detection"), coco, "detection", limit=2)
    assert result.metrics["box_map"] == pytest.approx(1.0) and len(result.scores) == 2


@pytest.mark.parametrize("resize, share", [("letterbox", 1.0), ("stretch", 1.0), ("center_crop", 1.0), ("center_crop", 0.8)])
def test_detections_are_torchvisions(resize, share):
    """Clip, drop, suppress within a class, most: torchvision's own operators in RoIHeads' order."""
    boxes_of = pytest.importorskip("torchvision.ops")
    rng, to = np.random.default_rng(0), geometry.Input(96, 128, resize, crop_fraction=share)
    where = geometry.placement(210, 133, to)
    low = rng.uniform(-40, 120, (80, 2))
    outputs = {
        "boxes": np.concatenate((low, low + rng.uniform(1, 60, (80, 2))), 1).astype(np.float32),
        "scores": rng.permutation(80).astype(np.float32) / 80, "labels": rng.integers(0, 2, 80),
    }  # fmt: skip
    post = {"score_threshold": 0.2, "nms_iou": 0.45, "max_detections": 20}
    # Into the original, then to what the input shows of it.
    scale, offset = np.array([where.scale_x, where.scale_y] * 2), np.array([where.left, where.top] * 2)
    boxes = torch.from_numpy((outputs["boxes"] - offset) / scale)
    edges = lambda new, left, count, size: (max(0, -left / new * count), min(count, (size - left) / new * count))  # noqa: E731
    x0, x1 = edges(where.new_width, where.left, 210, 96)
    y0, y1 = edges(where.new_height, where.top, 133, 128)
    boxes[:, 0::2], boxes[:, 1::2] = boxes[:, 0::2].clamp(x0, x1), boxes[:, 1::2].clamp(y0, y1)
    scores, labels = torch.from_numpy(outputs["scores"]), torch.from_numpy(outputs["labels"])
    sound = (scores >= 0.2) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores, labels = boxes[sound], scores[sound], labels[sound]
    kept = boxes_of.batched_nms(boxes.float(), scores, labels, 0.45)[:20]
    found = served.detections(outputs, where, post)
    assert sound.sum() < 64 and len(found) == len(kept) > 10
    assert [d.label for d in found] == labels[kept].tolist()
    np.testing.assert_allclose([d.box for d in found], boxes[kept], atol=1e-6)
    np.testing.assert_allclose([d.score for d in found], scores[kept])


@pytest.mark.parametrize("classes, hole", [(3, 255), (300, 65535)])
def test_what_a_centre_crop_cuts_away_has_no_label_and_counts_as_wrong(classes, hole):
    to = geometry.Input(64, 64, "center_crop", crop_fraction=0.8)
    where = geometry.placement(150, 100, to)
    logits = np.zeros((classes, 16, 16), np.float32)
    logits[2] = 1
    # Covered are 80x80: 120x80 at 0.8 a pixel, 64x64 of them from (28, 8).
    inside = np.zeros((100, 150), bool)
    inside[10:90, 35:115] = True
    found = served.label_map(logits, where)
    np.testing.assert_array_equal(found, np.where(inside, 2, hole))
    np.testing.assert_array_equal(served.cell_labels(np.full((16, 16), 2), where, classes), found)

    class Truth:
        labels = [str(i) for i in range(classes)]

        def label_map(self, index):
            return np.full((100, 150), 2, np.uint8)

    scored = metrics.score_segmentation([found], Truth()).metrics
    assert scored["pixel_accuracy"] == pytest.approx(6400 / 15000)
    assert scored["miou"] == pytest.approx(6400 / 15000)


def test_box_masks_are_stretched_over_their_box():
    where = geometry.placement(64, 64, geometry.Input(64, 64))
    mask = np.zeros((28, 28), np.float32)
    mask[:, :14] = 1
    post = {"mask": "box", "mask_threshold": 0.5}
    box = np.array([10.0, 20, 30, 60])
    out = served.paste(mask, box, box, where, post)
    assert out[20:60, 10:20].all() and out.sum() == 40 * 10


def test_heads_that_do_not_fit_the_data_are_refused(tmp_path, demo):
    coco = open_dataset("coco", datasets.coco(tmp_path, splits=("val2017",)), **COCO)
    arguments = argparse.Namespace(head="objects", limit=1, frame_stride=None, clips=1, crops=1, workers=1)
    with pytest.raises(InputError, match="22 labels are not the data set's 3: number 0 is 'cat'"):
        command.evaluate(Local(demo, "objects"), coco, arguments, "here")
    with pytest.raises(InputError, match="is for segmentation, the data set for detection"):
        command.evaluate(Local(demo, "scene"), coco, arguments, "here")
    with pytest.raises(InputError, match="no such head; there are motion, objects, scene"):
        Local(demo, "poses")
    with pytest.raises(InputError, match="KEY=VALUE"):
        command.parse_options(["x"])
    assert command.parse_options(["a=1", "b=true", "c=x/y"]) == {"a": 1, "b": True, "c": "x/y"}


# === through a server ===


@pytest.fixture(scope="module")
def server():
    """The demo models on a free port."""
    pytest.importorskip("grpc_tools")
    with serving.serve(ROOT / "models" / "demo") as address:
        yield address


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("head, kind", [("objects", "generated-scenes"), ("scene", "generated-scenes"), ("motion", "generated-clips")])
def test_the_server_measures_as_the_graphs_do(tmp_path, server, demo, head, kind, monkeypatch, capsys):
    from frostline_models import cli

    reports = []
    for source in (("--server", server), ("--repository", str(demo))):
        out = tmp_path / source[0]
        monkeypatch.setattr("sys.argv", [
            "frostline-models", "evaluate", head, *source, "--format", kind, "--data", str(tmp_path),
            "--option", "split=heldout", "--option", "count=12", "--workers", "2", "--out", str(out),
        ])  # fmt: skip
        cli.main()
        reports.append(json.loads((out / "evaluation.json").read_text()))
        assert (out / "cases.png").exists()
    for name, value in reports[1]["metrics"].items():
        assert reports[0]["metrics"][name] == pytest.approx(value, abs=5e-3), name
    frames = 8 if head == "motion" else 1
    assert reports[0]["samples"] == 12 and reports[1]["backbone_runs"] == 12 * frames
    assert 0 < reports[0]["backbone_runs"] <= 12 * frames
    assert "samples/s" in capsys.readouterr().out


@pytest.mark.usefixtures("font")
def test_precisions_are_measured_side_by_side(tmp_path, server, demo, monkeypatch, capsys):
    from frostline_models import cli

    monkeypatch.setenv("ORT_DYLIB_PATH", serving.environment()["ORT_DYLIB_PATH"])

    def measured(*words: str) -> dict:
        monkeypatch.setattr("sys.argv", [
            "frostline-models", "evaluate", "scene", *words, "--format", "generated-scenes", "--data", str(tmp_path),
            "--option", "split=heldout", "--option", "count=6", "--workers", "2", "--out", str(tmp_path / "out"),
        ])  # fmt: skip
        cli.main()
        return json.loads((tmp_path / "out" / "evaluation.json").read_text())

    def at(*precisions: str) -> dict:
        own = ("--repository", str(demo), "--binary", str(serving.binary()))
        return measured(*own, "--precision", *precisions)["precisions"]

    served = measured("--server", server)
    assert at("fp32")["fp32"]["metrics"] == pytest.approx(served["metrics"], abs=1e-6)
    capsys.readouterr()
    # A processor that computes in bf16 and is Intel's, or a sentence that says which of these it is not.
    try:
        both = at("fp32", "bf16")
    except SystemExit as refused:
        said = f"{refused} {capsys.readouterr()}"
        assert "openvino:cpu cannot be used" in said, said
    else:
        table = capsys.readouterr().out
        assert list(both) == ["fp32", "bf16"] and "miou" in table and "(" in table
        for name, value in both["fp32"]["metrics"].items():
            assert both["bf16"]["metrics"][name] == pytest.approx(value, abs=0.01), name
    for words, wanted in [
        (("--server", server, "--precision", "fp32"), "needs --repository"),
        (("--repository", str(demo), "--precision", "fp33", "--binary", str(serving.binary())), "must be one of"),
        (("--repository", str(demo), "--precision", "fp32", "--binary", str(tmp_path / "none")), "no such file"),
    ]:
        with pytest.raises(SystemExit) as refused:
            measured(*words)
        assert wanted in f"{refused.value} {capsys.readouterr()}"


@pytest.mark.usefixtures("font")
def test_served_features_are_the_backbones(server, demo):
    import onnxruntime as ort

    from frostline_models.measure.remote import Remote

    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    remote = Remote(server, "objects")
    maps = remote.features(image)
    session = ort.InferenceSession(str(demo / "backbone.onnx"), providers=["CPUExecutionProvider"])
    for name, wanted in zip([o.name for o in session.get_outputs()], session.run(None, {"image": image[None]})):
        np.testing.assert_allclose(maps[name].reshape(wanted.shape), wanted, atol=1e-3, rtol=1e-3)
    remote.close()
    with pytest.raises(InputError, match="there is no head 'poses'; it serves motion, objects, scene"):
        Remote(server, "poses")
    with pytest.raises(InputError, match="the server said UNAVAILABLE"):
        Remote("127.0.0.1:1", "objects", timeout=2)
