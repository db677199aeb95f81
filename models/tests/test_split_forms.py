"""Decodings of known detectors and maps, beside PyTorch code written from their papers."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torchvision.ops import box_convert

from frostline_models.split import forms
from frostline_models.split.graph import Graph, session

SIZE = (64, 96)  # height, width


def decoded(tmp_path, raw: dict[str, np.ndarray], wanted=None, labels=None, last: str = "Identity", opset=17, **options):
    """The server's outputs for raw ones, through the graph; the form."""
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(f"{n}_in", kinds[v.dtype.kind], v.shape) for n, v in raw.items()]
    # Behind the last operator stands an Identity, as exporters leave it.
    nodes = [helper.make_node(last if v.dtype.kind == "f" else "Identity", [f"{n}_in"], [f"{n}_own"]) for n, v in raw.items()]
    nodes += [helper.make_node("Identity", [f"{n}_own"], [n]) for n in raw]
    outputs = [helper.make_tensor_value_info(n, kinds[v.dtype.kind], v.shape) for n, v in raw.items()]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    graph = Graph(made, tmp_path / "m.onnx")
    types = {n: "tensor(float)" if v.dtype.kind == "f" else "tensor(int64)" for n, v in raw.items()}
    form = forms.recognize(graph, {n: v.shape for n, v in raw.items()}, types, SIZE, wanted, labels)
    forms.append(form, graph, SIZE, **options)
    run = session(graph.model)
    names = [o.name for o in run.get_outputs()]
    return dict(zip(names, run.run(names, {f"{n}_in": v for n, v in raw.items()}))), form


def rng(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def rows(got, boxes, scores, labels):
    """The rows of ``got`` are those, best first."""
    order = np.argsort(-scores, kind="stable")[: got["scores"].shape[1]]
    np.testing.assert_allclose(got["scores"][0], scores[order], atol=1e-6)
    np.testing.assert_allclose(got["boxes"][0], boxes[order], atol=1e-3, rtol=1e-5)
    assert got["labels"].dtype == np.int64 and (got["labels"][0] == labels[order]).all()


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_detr_with_a_class_for_nothing(tmp_path, opset):
    logits, boxes = rng(1, 10, 5), rng(1, 10, 4, seed=1).clip(-1, 1) * 0.2 + 0.4
    got, form = decoded(tmp_path, {"pred_logits": logits, "pred_boxes": boxes}, labels=4, opset=opset)
    assert form.name == "detr" and form.classes == 4
    chances, label = torch.from_numpy(logits).softmax(-1)[0, :, :-1].max(-1)
    wanted = box_convert(torch.from_numpy(boxes)[0], "cxcywh", "xyxy") * torch.tensor([96, 64, 96, 64])
    rows(got, wanted.numpy(), chances.numpy(), label.numpy())


def test_detr_with_a_sigmoid_for_each_class(tmp_path):
    logits, boxes = rng(1, 10, 5), rng(1, 10, 4, seed=1).clip(-1, 1) * 0.2 + 0.4
    got, form = decoded(tmp_path, {"logits": logits, "pred_boxes": boxes}, labels=5)
    flat = torch.from_numpy(logits).sigmoid().flatten()
    wanted = box_convert(torch.from_numpy(boxes)[0], "cxcywh", "xyxy") * torch.tensor([96, 64, 96, 64])
    rows(got, wanted.repeat_interleave(5, 0).numpy(), flat.numpy(), np.tile(np.arange(5), 10))


@pytest.mark.parametrize("form", ["yolov5", "yolox"])
@pytest.mark.parametrize("opset", [11, 18])
def test_yolo_with_objectness(tmp_path, form, opset):
    cells = [(s, 64 // s, 96 // s) for s in (8, 16, 32)]
    count = sum(h * w for _, h, w in cells) * (3 if form == "yolov5" else 1)
    raw = rng(1, count, 5 + 3)
    raw[..., 4:] = 1 / (1 + np.exp(-raw[..., 4:]))
    got, found = decoded(tmp_path, {"out": raw}, form if form == "yolox" else None, opset=opset)
    assert found.name == form and found.classes == 3
    x = torch.from_numpy(raw[0])
    if form == "yolox":
        grid, strides = [], []
        for s, h, w in cells:
            for y in range(h):
                for col in range(w):
                    grid.append([col, y])
                    strides.append([s])
        grid, strides = torch.tensor(grid), torch.tensor(strides)
        x = torch.cat([(x[:, :2] + grid) * strides, x[:, 2:4].exp() * strides, x[:, 4:]], 1)
    scores, label = (x[:, 5:] * x[:, 4:5]).max(1)
    rows(got, box_convert(x[:, :4], "cxcywh", "xyxy").numpy(), scores.numpy(), label.numpy())


def test_yolox_or_decoded_is_asked_for(tmp_path):
    count = sum((64 // s) * (96 // s) for s in (8, 16, 32))
    with pytest.raises(ValueError, match="give --form yolox .*or --form yolov5"):
        decoded(tmp_path, {"out": rng(1, count, 8)})


def test_yolo_boxes_from_zero_to_one(tmp_path):
    count = sum((64 // s) * (96 // s) for s in (8, 16, 32))
    raw = np.abs(rng(1, 4 + 2, count)) / 10
    got, _ = decoded(tmp_path, {"out": raw}, normalized=True)
    boxes = box_convert(torch.from_numpy(raw[0, :4].T.copy()), "cxcywh", "xyxy").numpy() * [96, 64, 96, 64]
    rows(got, boxes, raw[0, 4:].max(0), raw[0, 4:].argmax(0))


@pytest.mark.parametrize("sides", [2, 4])
@pytest.mark.parametrize("last", ["Sigmoid", "Identity"])
def test_centernet_and_ttfnet(tmp_path, sides, last):
    heat, size, offset = rng(1, 3, 16, 24), np.abs(rng(1, sides, 16, 24, seed=1)) * 3, rng(1, 2, 16, 24, seed=2) * 0.1
    raw = {"hm": heat, "wh": size} | ({"reg": offset} if sides == 2 else {})
    got, form = decoded(tmp_path, raw, last=last)
    assert form.name == "centernet" and form.classes == 3
    heat, size, offset = (torch.from_numpy(v) for v in (heat, size, offset))
    if last == "Sigmoid":  # the graph's own, on every output
        size, offset = size.sigmoid(), offset.sigmoid()
    heat = heat.sigmoid()
    heat = heat * (torch.nn.functional.max_pool2d(heat, 3, 1, 1) == heat)
    wanted = []
    for c in range(3):
        for y in range(16):
            for x in range(24):
                s = size[0, :, y, x]
                if sides == 4:
                    box = [x * 4 - s[0], y * 4 - s[1], x * 4 + s[2], y * 4 + s[3]]
                else:
                    cx, cy = x + offset[0, 0, y, x], y + offset[0, 1, y, x]
                    box = [(cx - s[0] / 2) * 4, (cy - s[1] / 2) * 4, (cx + s[0] / 2) * 4, (cy + s[1] / 2) * 4]
                wanted.append([*box, heat[0, c, y, x], c])
    wanted = np.array(wanted, np.float64)
    count = int((got["scores"] > 0).sum())
    assert count > 20
    got = {k: v[:, :count] for k, v in got.items()}
    rows(got, wanted[:, :4], wanted[:, 4], wanted[:, 5].astype(int))


def test_a_classifiers_own_softmax_is_taken_back(tmp_path):
    raw = rng(1, 6)
    got, form = decoded(tmp_path, {"p": raw}, last="Softmax")
    assert form.name == "classification" and form.postprocess == {"top_k": 5}
    np.testing.assert_array_equal(got["logits"], raw)


def test_maps_of_one_channel_and_of_labels(tmp_path):
    raw = rng(1, 1, 16, 24)
    got, form = decoded(tmp_path, {"mask": raw}, last="Sigmoid", threshold=0.3)
    assert form.classes == 2
    chance = 1 / (1 + np.exp(-raw))
    assert ((got["logits"].argmax(1) == 1) == (chance[:, 0] > 0.3)).all()
    whole, _ = decoded(tmp_path, {"mask": (raw[:, 0] > 0).astype(np.int64)}, labels=2)
    assert (whole["label_map"][0] == (raw[0, 0] > 0)).all()


def test_outputs_that_are_the_contract_already(tmp_path):
    boxes, scores, labels = rng(1, 7, 4), np.abs(rng(1, 7)), np.arange(7)[None] % 3
    got, form = decoded(tmp_path, {"dets": boxes, "conf": scores, "cls": labels}, labels=3)
    assert form.name == "boxes"
    for name, value in (("boxes", boxes), ("scores", scores), ("labels", labels)):
        np.testing.assert_array_equal(got[name], value)
