"""Foreign models cut, and served: the halves are the whole, and the server's answers are those of
the libraries that the models come from."""

import contextlib
import io
import json

import foreign
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import serving
import torch
from torchvision.ops import batched_nms, box_convert

from frostline_models import cli
from frostline_models.backbones.parity import pictures
from frostline_models.errors import InputError
from frostline_models.measure.remote import Remote

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def split(*words) -> str:
    """The command with these arguments; what it printed."""
    printed = io.StringIO()
    arguments = cli.parser().parse_args(["split", *map(str, words)])
    with contextlib.redirect_stdout(printed):
        arguments.run(arguments)
    return printed.getvalue()


def normalized(image: np.ndarray) -> torch.Tensor:
    x = (image[None].astype(np.float64) / 255 - MEAN) / STD
    return torch.from_numpy(x.astype(np.float32).transpose(0, 3, 1, 2).copy())


def run(path, image: np.ndarray) -> list[np.ndarray]:
    """The file as it came, on normalized pixels."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: normalized(image).numpy()})


@contextlib.contextmanager
def served(repository, head: str):
    with serving.serve(repository) as address:
        remote = Remote(address, head)
        yield remote
        remote.close()


def check_detections(got, boxes, scores, labels, size: int, threshold: float, iou: float | None = 0.5):
    """The server's detections beside rows of xyxy boxes, suppressed by torchvision."""
    boxes, scores, labels = (torch.as_tensor(np.asarray(v)) for v in (boxes, scores, labels))
    boxes = boxes.clamp(0, size)
    keep = (scores >= threshold) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    order = scores.argsort(descending=True, stable=True)
    if iou is not None:
        order = batched_nms(boxes.float(), scores.float(), labels, iou)
    order = order[:100]
    assert len(got) == len(order) > 3
    for found, row in zip(got, order):
        assert found.label == int(labels[row])
        assert found.score == pytest.approx(float(scores[row]), abs=1e-5)
        np.testing.assert_allclose(found.box, boxes[row], atol=2e-3)


# === served = whole ===


@pytest.mark.parametrize("batch, size", [("batch", 64), (None, 64), ("batch", 76)])
def test_a_resnet_serves_as_pytorch_computes(tmp_path, batch, size):
    """Of 76 pixels, 16 make 5 cells and 32 make 3, the last of which lie in part beyond the picture."""
    path, model = foreign.resnet(tmp_path / "resnet.onnx", batch, size)
    said = split(path, "--out", tmp_path / "r", "--normalize", "imagenet", "--labels", "numbers")
    assert "bit for bit" in said and "form classification" in said
    assert "resnet" in serving.check(tmp_path / "r")
    image = pictures(1, size, seed=9)[0]
    with torch.no_grad():
        wanted = model(normalized(image)).softmax(1)[0].numpy()
    with served(tmp_path / "r", "resnet") as remote:
        got = remote.classify(image)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert wanted.max() - wanted.min() > 0.01


@pytest.mark.parametrize("raw", [False, True])
def test_a_yolov8_serves_what_its_own_decoding_gives(tmp_path, raw):
    path, model = foreign.yolo(tmp_path / "yolo.onnx", raw)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    said = split(path, "--out", tmp_path / "r", "--normalize", "imagenet", "--labels", tmp_path / "names.txt",
                 "--score-threshold", 0.4)  # fmt: skip
    assert "bit for bit" in said and ("yolov8-raw" in said) == raw
    image = pictures(1, 128, seed=9)[0]
    with torch.no_grad():
        rows = model(normalized(image))
        rows = (foreign.decode(rows, 128) if raw else rows)[0].T
    boxes, (scores, labels) = box_convert(rows[:, :4], "cxcywh", "xyxy"), rows[:, 4:].max(1)
    best = scores.topk(300).indices if len(scores) > 300 else slice(None)
    with served(tmp_path / "r", "yolo") as remote:
        assert remote.labels == ["a", "b", "c", "d", "e"]
        check_detections(remote.detect(image), boxes[best], scores[best], labels[best], 128, 0.4)


def test_an_rtdetr_serves_what_transformers_postprocesses(tmp_path):
    from transformers.models.rt_detr.image_processing_rt_detr import RTDetrImageProcessor
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrObjectDetectionOutput

    path, model = foreign.rtdetr(tmp_path / "rtdetr.onnx")
    said = split(path, "--out", tmp_path / "r", "--normalize", "unit", "--labels", "numbers", "--score-threshold", 0.3)
    assert said.count("bit for bit") == 2 and "form detr" in said
    image = pictures(1, 128, seed=9)[0]
    with torch.no_grad():
        logits, boxes = model(torch.from_numpy(image[None].transpose(0, 3, 1, 2) / np.float32(255)))
    output = RTDetrObjectDetectionOutput(logits=logits, pred_boxes=boxes)
    wanted = RTDetrImageProcessor().post_process_object_detection(output, 0.0, torch.tensor([[128, 128]]))[0]
    with served(tmp_path / "r", "rtdetr") as remote:
        got = remote.detect(image)
    # The reference keeps as many pairs as there are queries, the head up to 300.
    check_detections(got[: len(wanted["scores"])], wanted["boxes"], wanted["scores"], wanted["labels"], 128, 0.3, None)


@pytest.mark.parametrize("kind", ["segformer", "deeplab"])
def test_segmentation_serves_the_label_map_of_pytorch(tmp_path, kind):
    path, model = getattr(foreign, kind)(tmp_path / "model.onnx")
    said = split(path, "--out", tmp_path / "r", "--normalize", "imagenet", "--labels", "numbers", "--name", kind)
    assert "bit for bit" in said and "form segmentation" in said
    image = pictures(1, 64, seed=9)[0]
    with torch.no_grad():
        logits = model(normalized(image))[0]
        wanted = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)[0].argmax(0)
    with served(tmp_path / "r", kind) as remote:
        got = remote.segment(image)
    assert (got == wanted.numpy()).mean() > 0.999 and len(np.unique(got)) > 1  # ties within rounding


# === the cut ===


def test_every_cut_that_is_listed_gives_the_whole(tmp_path):
    from frostline_models.split import build, graph as graphs
    from frostline_models.split.assemble import open_model

    path, _ = foreign.yolo(tmp_path / "yolo.onnx")
    arguments = cli.parser().parse_args(["split", str(path)])
    model = open_model(path, arguments)
    cuts = model.finder.all()
    assert len(cuts) > 40 and any(len(c.maps) == 3 for c in cuts) and any(c.dominates for c in cuts)
    image, how = pictures(1, 128, seed=9), build.normalization("unit", False)
    wanted = graphs.session(path).run(None, {"images": how.apply(image, model.image)})
    for cut in cuts[:: len(cuts) // 20]:
        features = build.features(cut.maps, model.size)
        trunk = build.backbone(model.graph, model.image, how, features)
        head = build.head(model.graph, features, trunk)
        maps = graphs.session(trunk).run([f.name for f in features], {"image": image})
        got = graphs.session(head).run(None, {f.name: m for f, m in zip(features, maps)})
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5, atol=1e-3)
        assert all(m.shape[1:] == f.row() for f, m in zip(features, maps))


def test_the_table_counts_work_and_marks_what_dominates(tmp_path):
    path, model = foreign.resnet(tmp_path / "resnet.onnx")
    counted = []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda m, i, o: counted.append(o.numel() * m.weight[0].numel()))
    model(torch.zeros(1, 3, 64, 64))
    said = split(path)
    total = float(said.split(" G multiply-adds")[0].split()[-1])
    assert total == pytest.approx(sum(counted) / 1e9, rel=0.05)
    row = next(line for line in said.splitlines() if "4 (64): one tensor that dominates" in line)
    before = float(row.split("%")[0].split()[-1])
    stem = 100 * sum(counted[:5]) / sum(counted)  # the first convolution and layer1's four
    assert before == pytest.approx(stem, abs=2)
    assert "nothing is written" in said and not (tmp_path / "backbone.onnx").exists()


def test_the_suggestion_is_what_the_libraries_call_the_backbone(tmp_path):
    for kind, channels in (("segformer", (16, 32, 48, 64)), ("yolo", (32, 64, 64))):
        said = split(getattr(foreign, kind)(tmp_path / f"{kind}.onnx")[0])
        row = next(line for line in said.splitlines() if line.startswith("*"))
        if "suggested" in row:
            said = split(tmp_path / f"{kind}.onnx", "--all")
            row = next(line for line in said.splitlines() if line.startswith("*"))
        assert [int(c.split(")")[0]) for c in row.split("(")[1:]] == list(channels)


def test_a_vision_transformers_tokens_become_maps(tmp_path):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=3, pretrained=False).eval()
    foreign.randomize(model, 6)
    path = foreign.export(model, tmp_path / "vit.onnx", ["x"], ["y"], 64)
    said = split(path, "--out", tmp_path / "r", "--normalize", "imagenet", "--labels", "numbers")
    image = pictures(1, 64, seed=9)[0]
    with torch.no_grad():
        wanted = model(normalized(image)).softmax(1)[0].numpy()
    with served(tmp_path / "r", "vit") as remote:
        np.testing.assert_allclose(remote.classify(image), wanted, atol=1e-5)
        maps = remote.features(image)
    assert maps["stride16"].shape[-3:] == (4, 4, 192) and maps["stride16_tokens"].size == 192
    assert "backbone" in said


# === several models ===


def test_models_with_a_frozen_trunk_share_one_backbone(tmp_path):
    a, first = foreign.resnet(tmp_path / "a.onnx")
    from torchvision.models import resnet18

    second = resnet18(weights=None, num_classes=3).eval()
    foreign.randomize(second, 8)
    trunk = {k: v for k, v in first.state_dict().items() if not k.startswith(("layer4", "fc"))}
    second.load_state_dict(trunk, strict=False)
    # Other names for the same tensors, and its output in probabilities.
    b = foreign.export(torch.nn.Sequential(second, torch.nn.Softmax(1)), tmp_path / "b.onnx", ["pixels"], ["p"], 64)
    said = split(a, b, "--out", tmp_path / "r", "--normalize", "imagenet", "--labels", "numbers")
    assert "/layer3/layer3.1/relu_1/Relu_output_0" in said and said.count("bit for bit") == 2
    image = pictures(1, 64, seed=9)[0]
    with served(tmp_path / "r", "a") as remote, torch.no_grad():
        np.testing.assert_allclose(remote.classify(image), first(normalized(image)).softmax(1)[0], atol=1e-5)
        other = Remote(remote.channel._channel.target().decode(), "b")
        np.testing.assert_allclose(other.classify(image), second(normalized(image)).softmax(1)[0], atol=1e-5)
        other.close()


def test_models_without_a_common_trunk_are_refused(tmp_path):
    a, _ = foreign.resnet(tmp_path / "a.onnx")
    from torchvision.models import resnet18

    b = foreign.export(foreign.randomize(resnet18(num_classes=7), 12), tmp_path / "b.onnx", ["input"], ["output"], 64)
    with pytest.raises(InputError, match=r"b.onnx: shares no feature map with a.onnx"):
        split(a, b, "--out", tmp_path / "r", "--normalize", "unit", "--labels", "numbers")


# === inputs ===


@pytest.mark.parametrize("layout, kind", [("NHWC", "float"), ("NHWC", "uint8"), ("NCHW", "float16")])
def test_any_picture_input_becomes_uint8_nhwc(tmp_path, layout, kind):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.Conv2d(8, 6, 3, 1, 1)

        def forward(self, x):
            if layout == "NHWC":
                x = x.permute(0, 3, 1, 2)
            x = x.to(self.a.weight.dtype) / (255 if kind == "uint8" else 1)
            return self.b(self.a(x).relu())

    model = foreign.randomize(Net(), 1).eval()
    model = model.half() if kind == "float16" else model
    shape = (2, 64, 64, 3) if layout == "NHWC" else (2, 3, 64, 64)
    element = {"float": torch.float32, "uint8": torch.uint8, "float16": torch.float16}[kind]
    with torch.no_grad():
        torch.onnx.export(model, (torch.zeros(shape, dtype=element),), str(tmp_path / "m.onnx"), dynamo=False,
                          input_names=["image"], output_names=["stride4.map:0"], dynamic_axes={"image": {0: "n"}})  # fmt: skip
    how = [] if kind == "uint8" else ["--normalize", "0.5,0.4,0.3,0.2,0.3,0.4"]
    said = split(tmp_path / "m.onnx", "--out", tmp_path / "r", *how, "--bgr", "--labels", "numbers")
    assert kind == "float16" or "bit for bit" in said
    image = pictures(1, 64, seed=9)[0]
    x = image[None, :, :, ::-1].copy()
    if kind != "uint8":
        x = ((x / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]).astype(np.float32)
    x = torch.from_numpy(x if layout == "NHWC" else x.transpose(0, 3, 1, 2).copy()).to(element)
    with torch.no_grad():
        logits = model(x).float()
        wanted = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)[0].argmax(0)
    with served(tmp_path / "r", "m") as remote:
        assert (remote.segment(image) == wanted.numpy()).mean() > (0.98 if kind == "float16" else 0.999)


def test_label_files_of_every_kind(tmp_path):
    from frostline_models.split import labels

    for name, text in (
        ("a.txt", "cat\n dog \n\n"), ("b.json", '["cat", "dog"]'), ("c.json", '{"1": "dog", "0": "cat"}'),
        ("config.json", json.dumps({"id2label": {"0": "cat", "1": "dog"}})),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert labels.read(tmp_path / name) == ["cat", "dog"]
    for name, text, said in (
        ("d.txt", "cat\n\ndog\n", "line 2 is empty"), ("e.json", '{"1": "dog"}', "from 0 on without a gap"),
        ("f.json", "{", "is not JSON"), ("g.json", "[1]", "list of names"), ("h.txt", b"\xff\xfe", "UTF-8"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=said):
            labels.read(tmp_path / name)


def test_a_model_of_more_than_two_gigabytes_keeps_its_weights_outside(tmp_path, monkeypatch):
    """The limit is lowered, so that a small model crosses it."""
    from frostline_models.split import graph as graphs

    path, model = foreign.resnet(tmp_path / "resnet.onnx")
    whole = onnx.load(path)
    (tmp_path / "big").mkdir()
    onnx.save(whole, tmp_path / "big" / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    monkeypatch.setattr(graphs, "EMBED_LIMIT", 1 << 20)
    split(tmp_path / "big" / "m.onnx", "--out", tmp_path / "r", "--normalize", "imagenet", "--labels", "numbers")
    assert (tmp_path / "r" / "backbone.onnx.data").stat().st_size > 10 << 20
    image = pictures(1, 64, seed=9)[0]
    with served(tmp_path / "r", "m") as remote, torch.no_grad():
        np.testing.assert_allclose(remote.classify(image), model(normalized(image)).softmax(1)[0], atol=1e-5)
    (tmp_path / "big" / "m.weights").unlink()
    with pytest.raises(InputError, match=r"tensor '.*' lies in 'm.weights', which is missing; put the file beside"):
        split(tmp_path / "big" / "m.onnx")
