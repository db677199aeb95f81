"""Both halves of a cut as files: uint8 NHWC pictures in, the contract's names between and behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from .. import export as common
from ..backbones.export import file_sha256, save
from ..errors import InputError
from . import graph as graphs
from .cuts import Map
from .freeze import BATCH, batch_nodes
from .graph import Graph, Image, constant
from .ops import Ops, rename

ELEMENTS = {"tensor(float)": TensorProto.FLOAT, "tensor(float16)": TensorProto.FLOAT16}
#: The backbone's input.
IMAGE = "image"
PAD = 114


@dataclass(frozen=True)
class Normalization:
    """Of float inputs: ``(pixel / 255 - mean) / std`` by channel, in the model's own order."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def scale(self) -> np.ndarray:
        return (1 / (255 * np.array(self.std))).astype(np.float32)

    def offset(self) -> np.ndarray:
        return (-np.array(self.mean) / np.array(self.std)).astype(np.float32)

    def apply(self, pictures: np.ndarray, image: Image) -> np.ndarray:
        """The model's own input, made of uint8 ``[N, H, W, 3]`` RGB as the backbone does."""
        x = pictures[..., ::-1] if self.bgr else pictures
        if image.element != TensorProto.UINT8:
            x = x.astype(np.float32) * self.scale() + self.offset()
            x = x.astype(helper.tensor_dtype_to_np_dtype(image.element))
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if image.layout == "NCHW" else x)


#: ``--normalize`` by name.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # -1 to 1
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # 0 to 1
    "none": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),  # 0 to 255
}


def normalization(text: str, bgr: bool) -> Normalization:
    """A name, or ``mean,mean,mean,std,std,std`` in units of 0 to 1."""
    if text in NORMALIZATIONS:
        return Normalization(*NORMALIZATIONS[text], bgr)
    try:
        numbers = tuple(float(v) for v in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 6 or not all(np.isfinite(numbers)) or min(numbers[3:]) <= 0:
        names = ", ".join(NORMALIZATIONS)
        raise InputError(f"--normalize {text!r}: must be {names}, or three means and three deviations of pixels from 0 to 1")
    return Normalization(numbers[:3], numbers[3:], bgr)


# === the halves ===


def _part(graph: Graph, nodes: list[int], outputs: list[str]) -> onnx.ModelProto:
    """A model of some of the nodes, without inputs yet."""
    model = onnx.ModelProto(ir_version=graph.model.ir_version)
    model.producer_name, model.producer_version = "frostline-models", "1"
    model.opset_import.extend(graph.model.opset_import)
    model.graph.name = graph.model.graph.name or "graph"
    model.graph.node.extend(graph.nodes[i] for i in nodes)
    used = {name for node in model.graph.node for name in node.input} | set(outputs)
    model.graph.initializer.extend(w for w in graph.model.graph.initializer if w.name in used)
    for name in outputs:
        model.graph.output.add().name = name
    return model


def whole(graph: Graph, image: Image, how: Normalization) -> onnx.ModelProto:
    """The uncut graph behind the uint8 input."""
    model = _part(graph, list(range(len(graph.nodes))), graph.outputs)
    _prefix(model, image, how, graph)
    return model


def backbone(graph: Graph, image: Image, how: Normalization, features: list[Feature]) -> onnx.ModelProto:
    """Pictures to the features; their element types are those that ONNX Runtime finds."""
    tensors = list(dict.fromkeys(f.map.tensor for f in features))
    model = _part(graph, graph.upstream(tensors), [])
    _prefix(model, image, how, graph)
    plain = [f for f in features if f.part == "plain"]
    for feature in features:
        if feature.part != "plain":
            _leave(model, feature)
    for feature in plain:
        rename(model, feature.map.tensor, feature.name)
    for feature in features:
        model.graph.output.add().name = feature.name
    types = {o.name: o.type for o in graphs.session(model, plain=True).get_outputs()}
    for value, feature in zip(model.graph.output, features):
        shape = ["batch", *feature.row()]
        value.CopyFrom(helper.make_tensor_value_info(feature.name, ELEMENTS[types[feature.name]], shape))
    return model


def head(graph: Graph, features: list[Feature], backbone: onnx.ModelProto) -> onnx.ModelProto:
    """The features, as ``backbone`` gives them, to the graph's outputs."""
    tensors = list(dict.fromkeys(f.map.tensor for f in features))
    # The batch is read off the head's own input.
    model = _part(graph, graph.upstream(graph.outputs, {*tensors, BATCH}), graph.outputs)
    declared = {o.name: o for o in backbone.graph.output}
    before: list[onnx.NodeProto] = []
    for feature in features:
        if feature.part == "plain":
            rename(model, feature.map.tensor, feature.name)
        else:
            rename(model, feature.name, f"{feature.name}_inner")  # where the model has such a name
        model.graph.input.append(declared[feature.name])
    for tensor in tensors:
        parts = [f for f in features if f.map.tensor == tensor and f.part != "plain"]
        if parts:
            before += _enter(model, parts)
    if any(BATCH in node.input for node in model.graph.node):
        before += batch_nodes(features[0].name, model)
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *kept])
    _declare(model)
    return model


def _declare(model: onnx.ModelProto) -> None:
    """States the outputs' types and shapes, as a run finds them."""
    run = graphs.session(model, plain=True)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 1 for d in kind.shape.dim]
        feeds[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    names = [o.name for o in model.graph.output]
    for value, found in zip(model.graph.output, run.run(names, feeds)):
        element = helper.np_dtype_to_tensor_dtype(found.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, element, ["batch", *found.shape[1:]]))


# === features ===


@dataclass(frozen=True)
class Feature:
    """An output of the backbone.  ``part``: ``plain`` is the tensor itself, ``grid`` its tokens
    that tile the picture, ``extra`` those in front of them, ``vector`` one cell."""

    name: str
    map: Map
    part: str
    size: tuple[int, int]

    @property
    def stride(self) -> int:
        return self.size[0] if self.part in ("extra", "vector") else self.map.stride

    @property
    def layout(self) -> str:
        return "NHWC" if self.part == "grid" or self.map.form == "NHWC" else "NCHW"

    @property
    def channels(self) -> int:
        return self.map.channels * (self.map.extra if self.part == "extra" else 1)

    def row(self) -> tuple[int, int, int]:
        """The shape of one picture's."""
        height, width = (-(-side // self.stride) for side in self.size)
        c = self.channels
        return (height, width, c) if self.layout == "NHWC" else (c, height, width)


def features(maps: list[Map] | tuple[Map, ...], size: tuple[int, int]) -> list[Feature]:
    """The maps by their strides' names."""
    made: list[Feature] = []
    for m in maps:
        name = "vector" if m.form == "vector" else f"stride{m.stride}"
        same = sum(f.name == name or f.name.startswith(f"{name}_") for f in made)
        name += f"_{same + 1}" if same else ""
        if m.form == "tokens":
            made.append(Feature(name, m, "grid", size))
            if m.extra:
                made.append(Feature(f"{name}_tokens", m, "extra", size))
        else:
            made.append(Feature(name, m, "vector" if m.form == "vector" else "plain", size))
    return made


def _leave(model: onnx.ModelProto, feature: Feature) -> None:
    """Adds the feature to the backbone, in the contract's shape."""
    ops, tensor, m = Ops(model, f"{feature.name}_leave"), feature.map.tensor, feature.map
    if feature.part == "vector":
        made = ops.reshape(tensor, [0, m.channels, 1, 1])
    elif feature.part == "extra":
        made = ops.reshape(ops.slice(tensor, 1, 0, m.extra), [0, m.extra * m.channels, 1, 1])
    else:
        grid = ops.slice(tensor, 1, m.extra, m.extra + m.rows * m.columns) if m.extra else tensor
        made = ops.reshape(grid, [0, m.rows, m.columns, m.channels])
    rename(model, made, feature.name)


def _enter(model: onnx.ModelProto, parts: list[Feature]) -> list[onnx.NodeProto]:
    """Puts the model's own tensor together again."""
    m, before = parts[0].map, len(model.graph.node)
    ops = Ops(model, f"{parts[0].name}_enter")
    if parts[0].part == "vector":
        made = ops.reshape(parts[0].name, [0, m.channels])
    else:
        grid = ops.reshape(parts[0].name, [0, m.rows * m.columns, m.channels])
        extra = [ops.reshape(p.name, [0, m.extra, m.channels]) for p in parts if p.part == "extra"]
        made = ops.concat(1, *extra, grid)
    nodes = list(model.graph.node)[before:]
    del model.graph.node[before:]
    for node in nodes:
        for i, name in enumerate(node.output):
            node.output[i] = m.tensor if name == made else name
    return nodes


def _prefix(model: onnx.ModelProto, image: Image, how: Normalization, graph: Graph) -> None:
    """uint8 ``[N, H, W, 3]`` RGB to the model's own input."""
    if any(IMAGE in (*n.input, *n.output) for n in model.graph.node):
        rename(model, IMAGE, f"{IMAGE}_inner")
    own = f"{IMAGE}_inner" if image.name == IMAGE else image.name
    dims = graph.model.graph.input[0].type.tensor_type.shape.dim
    height, width = [d.dim_value for d in dims][2 if image.layout == "NCHW" else 1 :][:2]
    model.graph.input.append(helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", height, width, 3]))
    nodes, last = [], IMAGE

    def step(kind: str, *others: str, **attributes) -> None:
        nonlocal last
        name = f"{IMAGE}_{kind.lower()}"
        nodes.append(helper.make_node(kind, [last, *others], [name], name=name, **attributes))
        last = name

    def value(key: str, array: np.ndarray) -> str:
        model.graph.initializer.append(constant(f"{IMAGE}_{key}", array))
        return f"{IMAGE}_{key}"

    if how.bgr:
        step("Gather", value("bgr", np.array([2, 1, 0], np.int64)), axis=3)
    if image.element != TensorProto.UINT8:
        step("Cast", to=TensorProto.FLOAT)
        if np.any(how.scale() != 1):
            step("Mul", value("scale", how.scale()))
        if np.any(how.offset() != 0):
            step("Add", value("offset", how.offset()))
    if image.layout == "NCHW":
        step("Transpose", perm=[0, 3, 1, 2])
    if image.element not in (TensorProto.UINT8, TensorProto.FLOAT):
        nodes.append(helper.make_node("Cast", [last], [own], to=image.element))
    else:
        nodes.append(helper.make_node("Identity", [last], [own]))
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])


# === files ===


def backbone_manifest(file: Path, model: onnx.ModelProto, features: list[Feature], about: dict) -> dict:
    """``backbone.toml`` as a table.  ``about``: name, version, architecture, checkpoint, licence,
    size, input, metrics."""
    kinds = {w.data_type for w in model.graph.initializer if len(w.dims) > 1}
    quantized = any(n.op_type in ("DequantizeLinear", "ConvInteger", "QLinearConv", "MatMulInteger") for n in model.graph.node)
    precision = "int8" if quantized else "fp16" if TensorProto.FLOAT16 in kinds else "fp32"
    return {
        "name": about["name"],
        "version": about["version"],
        "file": file.name,
        "sha256": file_sha256(file),
        "precision": precision,
        "source": {key: about[key] for key in ("architecture", "checkpoint", "licence")},
        "input": {
            "name": IMAGE, "sizes": [list(about["size"])], **about["input"].manifest(),
        },
        "features": [
            {"name": f.name, "stride": f.stride, "channels": f.channels, "layout": f.layout} for f in features
        ],
        "metrics": about["metrics"],
    }  # fmt: skip


def head_manifest(file: Path, name: str, form, labels: list[str], features: list[Feature], about: dict) -> dict:
    """``head.toml`` as a table.  ``about``: version, backbone, size, checkpoint, recipe, metrics, postprocess."""
    return {
        "name": name,
        "version": about["version"],
        "task": form.task,
        "file": file.name,
        "sha256": file_sha256(file),
        "backbone": about["backbone"],
        "input_size": list(about["size"]),
        "features": [f.name for f in features],
        "labels": labels,
        "postprocess": form.postprocess | about["postprocess"],
        "trained": {"checkpoint": about["checkpoint"], "recipe": about["recipe"]},
        "metrics": about["metrics"],
    }


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """The graph beside its final place, its data outside where it is large, then by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path, graphs.EMBED_LIMIT)


def write_table(path: Path, table: dict) -> None:
    common.write(path, common.manifest(table))
