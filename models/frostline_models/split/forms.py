"""What a foreign model's outputs are, and the nodes that make the server's of them.

Sources of the decodings: DETR (Carion et al. 2020, softmax with a last class "no object") and
RT-DETR (sigmoid per class, best pairs of query and class); YOLOv5 (objectness times class),
YOLOX (grid and exponent), YOLOv8 (one score a class; distances as distributions, Li et al. 2020);
CenterNet (Zhou et al. 2019) and TTFNet (Liu et al. 2020: distances to four sides).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError, at
from .cuts import stride_of
from .graph import Graph
from .ops import Ops, rename

#: Bins of a distance's distribution.
BINS = 16
#: Rows that a decoded detector keeps.
MOST = 300
PEAKS = 100

Shape = tuple[int, ...]


@dataclass
class Form:
    """``inputs`` are the raw outputs it reads, by role; ``classes`` how many labels it needs
    (0: none); ``task`` and ``postprocess`` are for the manifest."""

    name: str
    task: str
    classes: int
    inputs: dict[str, str]
    postprocess: dict = field(default_factory=dict)
    notes: dict = field(default_factory=dict)


NAMES = (
    "boxes", "detr", "yolov5", "yolox", "yolov8", "yolov8-raw", "centernet", "segmentation",
    "classification", "embedding", "tensor",
)  # fmt: skip


def recognize(
    graph: Graph, shapes: dict[str, Shape], types: dict[str, str], size: tuple[int, int],
    wanted: str | None = None, labels: int | None = None,
) -> Form:  # fmt: skip
    """The form of the graph's outputs; ``wanted`` insists on one, ``labels`` helps to tell."""
    if wanted is not None and wanted not in NAMES:
        raise InputError(f"--form {wanted!r}: must be one of {', '.join(NAMES)}")
    outs = {name: shapes[name] for name in graph.outputs}
    for form in [wanted] if wanted else NAMES:
        if found := _MATCHERS[form](graph, outs, types, size, labels, wanted is not None):
            return found
    listed = ", ".join(f"{n!r} {['N', *s[1:]]}" for n, s in outs.items())
    raise at(graph.source, f"outputs {listed} are not of the form {wanted}; give another --form, or pick outputs with --outputs")


def cells(size: tuple[int, int], strides=(8, 16, 32)) -> list[tuple[int, int, int]]:
    """``(stride, rows, columns)`` of each level."""
    return [(s, -(-size[0] // s), -(-size[1] // s)) for s in strides]


def _anchors(size: tuple[int, int]) -> int:
    return sum(r * c for _, r, c in cells(size))


DETECTION = {"score_threshold": 0.25, "max_detections": 100}
SUPPRESSED = {**DETECTION, "nms_iou": 0.5}


def _boxes(graph, outs, types, size, labels, insisted):
    for boxes, b in outs.items():
        if len(b) != 3 or b[2] != 4:
            continue
        flat = [n for n, s in outs.items() if len(s) == 2 and s[1] == b[1]]
        whole = [n for n in flat if "int" in types[n]]
        scores = [n for n in flat if "float" in types[n]]
        if len(whole) == 1 and len(scores) == 1:
            roles = {"boxes": boxes, "scores": scores[0], "labels": whole[0]}
            return Form("boxes", "detection", labels or -1, roles, dict(DETECTION))
    return None


def _detr(graph, outs, types, size, labels, insisted):
    three = {n: s for n, s in outs.items() if len(s) == 3}
    boxes = [n for n, s in three.items() if s[2] == 4 and "logit" not in n and "class" not in n]
    for box in boxes:
        others = [n for n, s in three.items() if n != box and s[1] == three[box][1]]
        if len(others) == 1:
            classes = three[others[0]][2]
            softmax = labels is not None and classes == labels + 1
            notes = {"scores": "softmax" if softmax else "sigmoid", "queries": three[box][1]}
            roles = {"boxes": box, "logits": others[0]}
            return Form("detr", "detection", classes - softmax, roles, dict(DETECTION), notes)
    return None


def _yolov8(graph, outs, types, size, labels, insisted):
    for name, s in outs.items():
        if len(s) == 3 and s[1] > 4 and (s[2] == _anchors(size) or (insisted and s[2] > s[1])):
            return Form("yolov8", "detection", s[1] - 4, {"rows": name}, dict(SUPPRESSED), {"rows": s[2]})
    return None


def _yolov5(graph, outs, types, size, labels, insisted):
    for name, s in outs.items():
        if len(s) == 3 and s[2] > 5 and (s[1] == 3 * _anchors(size) or insisted):
            return Form("yolov5", "detection", s[2] - 5, {"rows": name}, dict(SUPPRESSED), {"rows": s[1]})
    return None


def _yolox(graph, outs, types, size, labels, insisted):
    for name, s in outs.items():
        if len(s) == 3 and s[2] > 5 and s[1] == _anchors(size):
            if not insisted:
                raise at(
                    graph.source,
                    f"output {name!r} {['N', *s[1:]]} may hold decoded boxes or YOLOX's offsets; give --form yolox "
                    "(offsets) or --form yolov5 (decoded)",
                )
            return Form("yolox", "detection", s[2] - 5, {"rows": name}, dict(SUPPRESSED), {"rows": s[1]})
    return None


def _yolov8_raw(graph, outs, types, size, labels, insisted):
    maps = {n: s for n, s in outs.items() if len(s) == 4 and s[1] > 4 * BINS}
    if len(maps) < 2 or len({s[1] for s in maps.values()}) != 1 or len({s[2] for s in maps.values()}) != len(maps):
        return None
    ordered = sorted(maps, key=lambda n: -maps[n][2])
    notes = {"shapes": [maps[n] for n in ordered]}
    roles = {f"level{i}": n for i, n in enumerate(ordered)}
    return Form("yolov8-raw", "detection", maps[ordered[0]][1] - 4 * BINS, roles, dict(SUPPRESSED), notes)


def _centernet(graph, outs, types, size, labels, insisted):
    maps = {n: s for n, s in outs.items() if len(s) == 4}
    if len({s[2:] for s in maps.values()}) != 1 or len(maps) not in (2, 3):
        return None
    told = {n: n.lower() for n in maps}
    heat = [n for n in maps if any(w in told[n] for w in ("hm", "heat", "keypoint", "center", "cls", "score"))]
    heat = heat or [n for n, s in maps.items() if s[1] not in (2, 4)]
    if len(heat) != 1:
        return None
    rest = [n for n in maps if n != heat[0]]
    offset = [n for n in rest if any(w in told[n] for w in ("reg", "off"))]
    sizes = [n for n in rest if n not in offset[:1]] if len(rest) == 2 else rest
    if len(rest) == 2 and not offset:
        sizes, offset = rest[:1], rest[1:]
    width = maps[sizes[0]][1]
    if width not in (2, 4) or (len(rest) == 2 and maps[offset[0]][1] != 2):
        return None
    shape = maps[heat[0]]
    roles = {"heat": heat[0], "size": sizes[0]} | ({"offset": offset[0]} if len(rest) == 2 else {})
    notes = {"shape": shape, "width": width, "stride": stride_of(size, (shape[2], shape[3])) or size[0] / shape[2]}
    return Form("centernet", "detection", shape[1], roles, {**DETECTION, "nms_iou": 0.5}, notes)


def _segmentation(graph, outs, types, size, labels, insisted):
    for name, s in outs.items():
        if "int" in types[name] and len(s) in (3, 4) and (len(s) == 3 or s[1] == 1):
            return Form("segmentation", "segmentation", labels or -1, {"map": name}, {}, {"shape": s})
        if "float" in types[name] and len(s) == 4 and min(s[2:]) > 1:
            return Form("segmentation", "segmentation", max(s[1], 2), {"logits": name}, {}, {"shape": s})
    return None


def _classification(graph, outs, types, size, labels, insisted):
    for name, s in outs.items():
        flat = len(s) == 2 or (len(s) == 4 and s[2:] == (1, 1))
        if "float" in types[name] and flat and (len(outs) == 1 or insisted or s[1] == labels):
            return Form("classification", "classification", s[1], {"logits": name}, {"top_k": min(5, s[1])})
    return None


def _raw(task):
    def match(graph, outs, types, size, labels, insisted):
        return Form(task, task, 0, {name: name for name in outs})

    return match


_MATCHERS = {
    "boxes": _boxes, "detr": _detr, "yolov8": _yolov8, "yolov5": _yolov5, "yolox": _yolox,
    "yolov8-raw": _yolov8_raw, "centernet": _centernet, "segmentation": _segmentation,
    "classification": _classification, "embedding": _raw("embedding"), "tensor": _raw("tensor"),
}  # fmt: skip


# === the server's outputs ===


def append(form: Form, graph: Graph, size: tuple[int, int], threshold: float = 0.5, normalized: bool = False) -> None:
    """Adds what turns the raw outputs into the contract's, in place, and makes those the graph's
    outputs.  ``threshold`` is a one-channel mask's; ``normalized``: YOLO boxes from 0 to 1."""
    made = _WRITERS[form.name](form, graph, Ops(graph.model), size, threshold, normalized)
    del graph.model.graph.output[:]
    for name, tensor in made.items():
        rename(graph.model, tensor, name)
        graph.model.graph.output.add().name = name
    graph.index()
    graph.prune()


def _pixels(ops: Ops, boxes: str, size: tuple[int, int]) -> str:
    scale = np.array([size[1], size[0], size[1], size[0]], np.float32)
    return ops.node("Mul", boxes, ops.value(scale))


def _best(ops: Ops, boxes: str, scores: str, rows: int) -> dict[str, str]:
    """The best class of each row of ``boxes [N, A, 4]``, ``scores [N, A, C]``; the best rows."""
    value = ops.reduce("ReduceMax", scores, 2)
    label = ops.node("ArgMax", scores, axis=2, keepdims=0)
    top, places = ops.top(value, min(rows, MOST))
    return {"boxes": ops.pick(boxes, places, 4), "scores": top, "labels": ops.pick(label, places)}


def _write_boxes(form, graph, ops, size, threshold, normalized):
    boxes = ops.floats(form.inputs["boxes"])
    if normalized:
        boxes = _pixels(ops, boxes, size)
    return {
        "boxes": boxes, "scores": ops.floats(form.inputs["scores"]),
        "labels": ops.integers(form.inputs["labels"]),
    }  # fmt: skip


def _write_detr(form, graph, ops, size, threshold, normalized):
    logits = ops.floats(form.inputs["logits"])
    boxes = _pixels(ops, ops.corners(ops.floats(form.inputs["boxes"])), size)
    classes, queries = form.classes, form.notes["queries"]
    if form.notes["scores"] == "softmax":
        chances = ops.slice(ops.node("Softmax", logits, axis=2), 2, 0, classes)
        return _best(ops, boxes, chances, queries)
    flat = ops.reshape(ops.node("Sigmoid", logits), [0, -1])
    top, places = ops.top(flat, min(MOST, queries * classes))
    width = ops.value(np.int64(classes))
    query = ops.node("Div", places, width)
    label = ops.node("Sub", places, ops.node("Mul", query, width))
    return {"boxes": ops.pick(boxes, query, 4), "scores": top, "labels": label}


def _write_yolov8(form, graph, ops, size, threshold, normalized):
    rows = ops.transpose(ops.floats(form.inputs["rows"]), 0, 2, 1)
    boxes = ops.corners(ops.slice(rows, 2, 0, 4))
    if normalized:
        boxes = _pixels(ops, boxes, size)
    return _best(ops, boxes, ops.slice(rows, 2, 4, 4 + form.classes), form.notes["rows"])


def _write_yolov5(form, graph, ops, size, threshold, normalized):
    rows = ops.floats(form.inputs["rows"])
    boxes = ops.corners(ops.slice(rows, 2, 0, 4))
    if normalized:
        boxes = _pixels(ops, boxes, size)
    scores = ops.node("Mul", ops.slice(rows, 2, 5, 5 + form.classes), ops.slice(rows, 2, 4, 5))
    return _best(ops, boxes, scores, form.notes["rows"])


def _write_yolox(form, graph, ops, size, threshold, normalized):
    rows = ops.floats(form.inputs["rows"])
    grid, strides = [], []
    for stride, height, width in cells(size):
        y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        grid.append(np.stack([x, y], -1).reshape(1, -1, 2))
        strides.append(np.full((1, height * width, 1), stride))
    grid, strides = (ops.value(np.concatenate(v, 1).astype(np.float32)) for v in (grid, strides))
    centre = ops.node("Mul", ops.node("Add", ops.slice(rows, 2, 0, 2), grid), strides)
    extent = ops.node("Mul", ops.node("Exp", ops.slice(rows, 2, 2, 4)), strides)
    boxes = ops.corners(ops.concat(2, centre, extent))
    scores = ops.node("Mul", ops.slice(rows, 2, 5, 5 + form.classes), ops.slice(rows, 2, 4, 5))
    return _best(ops, boxes, scores, form.notes["rows"])


def _write_yolov8_raw(form, graph, ops, size, threshold, normalized):
    boxes, scores, count = [], [], 0
    for i, (_, channels, height, width) in enumerate(form.notes["shapes"]):
        level, stride = ops.floats(form.inputs[f"level{i}"]), stride_of(size, (height, width)) or size[0] // height
        flat = ops.transpose(ops.reshape(level, [0, channels, -1]), 0, 2, 1)
        bins = ops.reshape(ops.slice(flat, 2, 0, 4 * BINS), [0, -1, 4, BINS])
        weights = ops.value(np.arange(BINS, dtype=np.float32))
        sides = ops.reduce("ReduceSum", ops.node("Mul", ops.node("Softmax", bins, axis=3), weights), 3)
        y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
        centre = ops.value(np.stack([x, y], -1).reshape(1, -1, 2).astype(np.float32))
        low = ops.node("Sub", centre, ops.slice(sides, 2, 0, 2))
        high = ops.node("Add", centre, ops.slice(sides, 2, 2, 4))
        boxes.append(ops.number("Mul", ops.concat(2, low, high), stride))
        scores.append(ops.node("Sigmoid", ops.slice(flat, 2, 4 * BINS, channels)))
        count += height * width
    return _best(ops, ops.concat(1, *boxes), ops.concat(1, *scores), count)


def _write_centernet(form, graph, ops, size, threshold, normalized):
    _, classes, height, width = form.notes["shape"]
    stride, area = float(form.notes["stride"]), height * width
    heat = ops.floats(form.inputs["heat"])
    if not _is_chance(graph, form.inputs["heat"]):
        heat = ops.node("Sigmoid", heat)
    highest = ops.node("MaxPool", heat, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    peaks = ops.node("Mul", heat, ops.floats(ops.node("Equal", heat, highest)))
    top, places = ops.top(ops.reshape(peaks, [0, -1]), min(PEAKS, classes * area))
    per, row = ops.value(np.int64(area)), ops.value(np.int64(width))
    label = ops.node("Div", places, per)
    cell = ops.node("Sub", places, ops.node("Mul", label, per))
    y = ops.node("Div", cell, row)
    x = ops.node("Sub", cell, ops.node("Mul", y, row))
    centre = ops.floats(ops.concat(2, ops.reshape(x, [0, -1, 1]), ops.reshape(y, [0, -1, 1])))

    def at_cells(role: str, channels: int) -> str:
        rows = ops.transpose(ops.reshape(ops.floats(form.inputs[role]), [0, channels, -1]), 0, 2, 1)
        return ops.pick(rows, cell, channels)

    if "offset" in form.inputs:
        centre = ops.node("Add", centre, at_cells("offset", 2))
    if form.notes["width"] == 4:  # distances to the four sides, in pixels
        sides = at_cells("size", 4)
        centre = ops.number("Mul", centre, stride)
        low = ops.node("Sub", centre, ops.slice(sides, 2, 0, 2))
        boxes = ops.concat(2, low, ops.node("Add", centre, ops.slice(sides, 2, 2, 4)))
    else:  # width and height, in cells
        boxes = ops.number("Mul", ops.corners(ops.concat(2, centre, at_cells("size", 2))), stride)
    return {"boxes": boxes, "scores": top, "labels": label}


def _before(graph: Graph, name: str, rank: int) -> str:
    """What a last Softmax over axis 1 was made of: the server applies its own.  A classifier's
    may stand before a change of shape."""
    passed = ("Identity", "Reshape", "Flatten", "Squeeze", "Cast") if rank == 2 else ("Identity", "Cast")
    tensor = name
    while (made := graph.make(tensor)) is not None:
        if made.op_type in ("Softmax", "LogSoftmax"):
            said = next((a.i for a in made.attribute if a.name == "axis"), -1 if graph.opset() >= 13 else 1)
            return made.input[0] if rank == 2 or said % rank == 1 else name
        if made.op_type not in passed:
            break
        tensor = made.input[0]
    return name


def _is_chance(graph: Graph, name: str) -> bool:
    """Whether the graph has put a tensor between 0 and 1 itself, shapes and names aside."""
    while (made := graph.make(name)) is not None:
        if made.op_type in ("Sigmoid", "HardSigmoid", "Clip"):
            return True
        if made.op_type not in ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Resize"):
            return False
        name = made.input[0]
    return False


def _write_segmentation(form, graph, ops, size, threshold, normalized):
    shape = form.notes["shape"]
    if "map" in form.inputs:
        flat = form.inputs["map"]
        return {"label_map": ops.integers(ops.reshape(flat, [0, *shape[-2:]]))}
    name = form.inputs["logits"]
    if shape[1] > 1:
        return {"logits": ops.floats(_before(graph, name, len(shape)))}
    chance = ops.floats(name)
    if not _is_chance(graph, name):
        chance = ops.node("Sigmoid", chance)
    rest = ops.node("Sub", ops.value(np.float32(2 * threshold)), chance)
    return {"logits": ops.concat(1, rest, chance)}


def _write_classification(form, graph, ops, size, threshold, normalized):
    name = _before(graph, form.inputs["logits"], 2)
    return {"logits": ops.reshape(ops.floats(name), [0, form.classes])}


def _write_raw(form, graph, ops, size, threshold, normalized):
    return {name: ops.node("Identity", name) for name in form.inputs}


_WRITERS = {
    "boxes": _write_boxes, "detr": _write_detr, "yolov8": _write_yolov8, "yolov5": _write_yolov5,
    "yolox": _write_yolox, "yolov8-raw": _write_yolov8_raw, "centernet": _write_centernet,
    "segmentation": _write_segmentation, "classification": _write_classification,
    "embedding": _write_raw, "tensor": _write_raw,
}  # fmt: skip
