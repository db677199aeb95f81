"""A TensorFlow.js graph of convolutions to ONNX: NHWC outside, NCHW inside.

For the kinds of node that MobileNetV3 with a CenterNet head is made of.  Convolutions pad as
TensorFlow's SAME does (ONNX's ``SAME_UPPER``); bilinear resizing is asymmetric, as TensorFlow's
was before half-pixel centres.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import at

ELEMENTWISE = {"Mul": "Mul", "Add": "Add", "AddV2": "Add", "Sub": "Sub", "Relu": "Relu", "Sigmoid": "Sigmoid"}


def load(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Nodes by name, and the weights; quantized ones as float32."""
    table = json.loads(path.read_text())
    nodes = {n["name"]: n for n in table["modelTopology"]["node"]}
    weights = {}
    for group in table["weightsManifest"]:
        data, offset = b"".join((path.parent / p).read_bytes() for p in group["paths"]), 0
        for entry in group["weights"]:
            stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            size = np.dtype(stored).itemsize
            if offset + count * size > len(data):
                raise at(path, f"weight {entry['name']!r} ends beyond its file; fetch the package again")
            array = np.frombuffer(data, stored, count, offset).reshape(entry["shape"])
            weights[entry["name"]] = array.astype(entry["dtype"])
            offset += count * size
    return nodes, weights


def convert(path: Path, outputs: dict[str, str], image: str) -> onnx.ModelProto:
    """The graph from the placeholder ``image`` to ``outputs`` (its name here by the graph's), as
    float NHWC ``[N, H, W, 3]`` to NCHW maps."""
    nodes, weights = load(path)
    maker = _Maker(path, nodes, weights)
    size = [int(d["size"]) for d in nodes[image]["attr"]["shape"]["shape"]["dim"]]
    maker.made[image] = maker.node("Transpose", "pictures", perm=[0, 3, 1, 2])
    made = {ours: maker.tensor(theirs) for theirs, ours in outputs.items()}
    maker.nodes += [helper.make_node("Identity", [name], [ours]) for ours, name in made.items()]
    graph = helper.make_graph(
        maker.nodes, path.stem,
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", *size[1:]])],
        [helper.make_tensor_value_info(ours, TensorProto.FLOAT, ["batch", None, None, None]) for ours in made],
        maker.weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="frostline-models")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


class _Maker:
    def __init__(self, path: Path, nodes: dict, values: dict[str, np.ndarray]):
        self.path, self.source, self.values = path, nodes, values
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.made: dict[str, str] = {}
        self.count = 0

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        self.count += 1
        name = f"{kind.lower()}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def value(self, array: np.ndarray) -> str:
        self.count += 1
        name = f"weight_{self.count}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def tensor(self, name: str) -> str:
        """The tensor of a node of the source, made when it is asked for."""
        stack = [name]
        while stack:
            top = stack[-1]
            node = self.source[top]
            missing = [i for i in self._inputs(node) if i not in self.made and i not in self.values]
            if missing:
                stack += missing
                continue
            stack.pop()
            if top not in self.made and top not in self.values:
                self.made[top] = self._make(node)
                if self.nodes[-1].output[0] == self.made[top]:  # keeps its name, to cut at
                    self.nodes[-1].output[0] = self.made[top] = top
        return self.made[name]

    @staticmethod
    def _inputs(node: dict) -> list[str]:
        return [i.split(":")[0] for i in node.get("input", []) if not i.startswith("^")]

    def _map(self, name: str) -> str:
        """A tensor, or a constant that spreads over channels."""
        if name in self.made:
            return self.made[name]
        array = self.values[name]
        return self.value(array.reshape(-1, 1, 1) if array.ndim == 1 else array)

    def _make(self, node: dict) -> str:
        kind, inputs = node["op"], self._inputs(node)
        attributes = node.get("attr", {})
        if kind in ELEMENTWISE:
            return self.node(ELEMENTWISE[kind], *(self._map(i) for i in inputs))
        if kind == "Relu6":
            return self._activate("Relu6", self._map(inputs[0]))
        if kind == "Identity":
            return self.made[inputs[0]]
        if kind in ("Conv2D", "_FusedConv2D", "DepthwiseConv2dNative", "FusedDepthwiseConv2dNative"):
            return self._convolution(kind, inputs, attributes)
        if kind == "Mean" and self.values[inputs[1]].tolist() == [1, 2]:
            return self.node("ReduceMean", self._map(inputs[0]), axes=[2, 3], keepdims=1)
        if kind == "ConcatV2" and int(self.values[inputs[-1]]) in (3, -1):
            return self.node("Concat", *(self._map(i) for i in inputs[:-1]), axis=1)
        if kind == "ResizeBilinear" and not attributes.get("align_corners", {}).get("b"):
            half = attributes.get("half_pixel_centers", {}).get("b")
            return self._resize(inputs, "half_pixel" if half else "asymmetric")
        raise at(self.path, f"tensor {node['name']!r} comes from {kind}, which is not converted here; use tf2onnx")

    def _convolution(self, kind: str, inputs: list[str], attributes: dict) -> str:
        strides = [int(v) for v in attributes["strides"]["list"]["i"]][1:3]
        padding = base64.b64decode(attributes["padding"]["s"]).decode()
        kernel, groups = self.values[inputs[1]], 1
        if "Depthwise" in kind:
            h, w, channels, times = kernel.shape
            kernel, groups = kernel.reshape(h, w, 1, channels * times), channels
        more = [self.value(kernel.transpose(3, 2, 0, 1))]
        if len(inputs) > 2:
            more.append(self.value(self.values[inputs[2]]))
        last = self.node(
            "Conv", self._map(inputs[0]), *more, strides=strides, group=groups,
            auto_pad="SAME_UPPER" if padding == "SAME" else "VALID",
        )  # fmt: skip
        fused = attributes.get("fused_ops", {}).get("list", {}).get("s", [])
        for step in (base64.b64decode(s).decode() for s in fused):
            if step != "BiasAdd":
                last = self._activate(step, last)
        return last

    def _activate(self, kind: str, x: str) -> str:
        if kind == "Relu6":
            return self.node("Clip", x, self.value(np.float32(0)), self.value(np.float32(6)))
        if kind == "Relu":
            return self.node("Relu", x)
        raise at(self.path, f"the fused operator {kind} is not converted here; use tf2onnx")

    def _resize(self, inputs: list[str], where: str) -> str:
        height, width = (int(v) for v in np.asarray(self.values[inputs[1]]).reshape(-1))
        shape = self.node("Shape", self._map(inputs[0]))
        first = self.node("Slice", shape, *(self.value(np.array([v], np.int64)) for v in (0, 2)))
        wanted = self.node("Concat", first, self.value(np.array([height, width], np.int64)), axis=0)
        return self.node(
            "Resize", self._map(inputs[0]), "", "", wanted, mode="linear", coordinate_transformation_mode=where
        )
