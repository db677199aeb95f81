"""Appends nodes to a graph, with operators whose form no opset from 11 on has changed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graph import constant


class Ops:
    """Methods take and give tensor names."""

    def __init__(self, model: onnx.ModelProto, prefix: str = "frostline"):
        self.model, self.prefix, self.count = model, prefix, 0
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 13)

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{self.prefix}_{kind}_{self.count}"

    def value(self, array) -> str:
        name = self._name("value")
        self.model.graph.initializer.append(constant(name, array))
        return name

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        names = [self._name(kind.lower()) for _ in range(outputs)]
        made = helper.make_node(kind, list(inputs), names, name=names[0], **attributes)
        self.model.graph.node.append(made)
        return names[0] if outputs == 1 else names

    def floats(self, x: str) -> str:
        return self.node("Cast", x, to=TensorProto.FLOAT)

    def integers(self, x: str) -> str:
        return self.node("Cast", x, to=TensorProto.INT64)

    def number(self, kind: str, x: str, value: float) -> str:
        return self.node(kind, x, self.value(np.float32(value)))

    def reshape(self, x: str, shape: list[int]) -> str:
        """0 keeps an axis; the batch is always first."""
        return self.node("Reshape", x, self.value(np.array(shape, np.int64)))

    def transpose(self, x: str, *order: int) -> str:
        return self.node("Transpose", x, perm=list(order))

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        ends = [self.value(np.array([v], np.int64)) for v in (start, stop, axis)]
        return self.node("Slice", x, *ends)

    def concat(self, axis: int, *parts: str) -> str:
        return self.node("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]

    def reduce(self, kind: str, x: str, axis: int, keep: bool = False) -> str:
        as_input = self.opset >= (13 if kind == "ReduceSum" else 18)
        if as_input:
            return self.node(kind, x, self.value(np.array([axis], np.int64)), keepdims=int(keep))
        return self.node(kind, x, axes=[axis], keepdims=int(keep))

    def top(self, scores: str, count: int) -> tuple[str, str]:
        """Of ``[N, A]`` the best ``count`` and where they are."""
        values, places = self.node("TopK", scores, self.value(np.array([count], np.int64)), outputs=2, axis=1)
        return values, places

    def pick(self, rows: str, places: str, width: int | None = None) -> str:
        """``[N, A]`` or ``[N, A, width]`` at ``places`` ``[N, K]``."""
        if width is None:
            return self.node("GatherElements", rows, places, axis=1)
        column = self.reshape(places, [0, -1, 1])
        return self.node("GatherElements", rows, self.concat(2, *[column] * width), axis=1)

    def corners(self, boxes: str) -> str:
        """``[N, A, 4]`` centre and size to left, top, right, bottom."""
        centre, size = self.slice(boxes, 2, 0, 2), self.slice(boxes, 2, 2, 4)
        half = self.number("Mul", size, 0.5)
        return self.concat(2, self.node("Sub", centre, half), self.node("Add", centre, half))

    def rename(self, old: str, new: str) -> None:
        """The tensor ``old`` as ``new``, wherever it stands."""
        rename(self.model, old, new)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Gives a tensor another name; whatever had that name before steps aside."""
    if old == new:
        return
    taken = {o for n in model.graph.node for o in n.output} | {i.name for i in model.graph.input}
    taken |= {w.name for w in model.graph.initializer}
    moves = {old: new} | ({new: f"{new}_inner"} if new in taken else {})
    graph = model.graph
    for node in graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                side[i] = moves.get(name, name)
    for value in [*graph.input, *graph.output, *graph.initializer]:
        value.name = moves.get(value.name, value.name)
