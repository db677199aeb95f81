"""Where a graph can be cut, and how much of the work lies before each cut.

A cut is the boundary of everything that one tensor needs: take all ancestors of the tensor, and
what they hand to the rest of the graph.  It separates when all of that is feature maps and the
picture itself is not among it.  Where the boundary is the one tensor, the tensor dominates all
that follows; detectors have several, one a stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from ..errors import at
from .freeze import free
from .graph import Graph, Image

#: A cut with more maps than this is no interface.
MOST_MAPS = 8
#: Tokens in front of those that tile the picture (class token, registers).
MOST_EXTRA = 8
UPSAMPLING = {"Resize", "Upsample", "ConvTranspose"}


@dataclass(frozen=True)
class Map:
    """A tensor as a feature map of the contract.

    ``form``: ``NCHW`` and ``NHWC`` are as they are; ``tokens`` is ``[N, extra + h * w, C]``;
    ``vector`` is ``[N, C]`` or ``[N, C, 1, 1]``, one cell for the whole picture.
    """

    tensor: str
    form: str
    stride: int
    channels: int
    rows: int
    columns: int
    extra: int = 0

    @property
    def values(self) -> int:
        """Of one picture."""
        return (self.rows * self.columns + self.extra) * self.channels


@dataclass(frozen=True)
class Cut:
    """``before``: share of the multiply-adds that every head saves; ``nodes`` are the backbone's."""

    maps: tuple[Map, ...]
    before: float
    nodes: frozenset[int]
    upsampled: bool
    joined: bool = False  # a map is nothing but others side by side

    @property
    def tensors(self) -> list[str]:
        return [m.tensor for m in self.maps]

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(m.stride for m in self.maps)

    @property
    def width(self) -> int:
        return sum(m.channels for m in self.maps)

    @property
    def dominates(self) -> bool:
        return len(self.maps) == 1


def stride_of(size: tuple[int, int], cells: tuple[int, int]) -> int | None:
    """Pixels per cell where cells tile the picture, or, by halvings that round up, cover it (19 of 16
    pixels over 300)."""
    exact = size[0] // cells[0]
    if exact and all(side == exact * count for side, count in zip(size, cells)):
        return exact
    halved = (1 << k for k in range(1, 8))
    return next((s for s in halved if all(-(-side // s) == count for side, count in zip(size, cells))), None)


def as_map(tensor: str, shape: tuple[int, ...], size: tuple[int, int]) -> Map | None:
    """The tensor as a feature map at the input ``size``; ``None`` where it is none."""
    height, width = size
    if len(shape) == 4 and shape[0] == 1:
        for form, (c, h, w) in (("NCHW", shape[1:]), ("NHWC", (shape[3], *shape[1:3]))):
            stride = stride_of(size, (h, w)) if min(c, h, w) > 0 else None
            if stride:
                return Map(tensor, form, stride, c, h, w)
    if len(shape) == 3 and shape[0] == 1:
        for stride in (4, 8, 14, 16, 28, 32, 64):
            if height % stride or width % stride:
                continue
            rows, columns = height // stride, width // stride
            extra = shape[1] - rows * columns
            if extra == 0 or (0 < extra <= min(MOST_EXTRA, rows * columns // 2) and height == width):
                return Map(tensor, "tokens", stride, shape[2], rows, columns, extra)
    if len(shape) == 2 and shape[0] == 1 and height == width:
        return Map(tensor, "vector", height, shape[1], 1, 1)
    return None


# === work ===


def work(graph: Graph, shapes: dict[str, tuple[int, ...]]) -> list[float]:
    """Multiply-adds of each node for one picture; of others the values they write."""
    return [_macs(node, shapes) for node in graph.nodes]


def _macs(node, shapes: dict[str, tuple[int, ...]]) -> float:
    out = [float(np.prod(shapes.get(o, ()), dtype=float)) for o in node.output if o]
    total = out[0] if out else 0.0
    kinds = [shapes.get(name, ()) for name in node.input if name]
    name = node.op_type.removeprefix("Fused").removeprefix("Q").removeprefix("N").removesuffix("Integer")
    if name.startswith("Conv") and not name.startswith("ConvTranspose"):
        weight = next((k for k in kinds[1:] if len(k) >= 3), ())
        return total * float(np.prod(weight[1:], dtype=float)) if weight else total
    if name.startswith("ConvTranspose"):
        weight = kinds[1] if len(kinds) > 1 else ()
        return float(np.prod(kinds[0], dtype=float) * np.prod(weight[1:], dtype=float)) if weight else total
    if name.startswith(("MatMul", "LinearMatMul", "Gemm")) and kinds and kinds[0]:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return total * kinds[0][-2 if transposed else -1]
    if "Attention" in name and len(kinds) > 1 and kinds[0]:
        return total * max(kinds[0][-1], kinds[1][-1]) * 2
    if name == "Einsum" and len(kinds) > 1:
        return total * max(max(k, default=1) for k in kinds)
    return total


# === cuts ===


class Finder:
    """All cuts of a frozen graph."""

    def __init__(self, graph: Graph, image: Image, size: tuple[int, int], shapes: dict[str, tuple[int, ...]]):
        self.graph, self.input, self.size, self.shapes = graph, image.name, size, shapes
        self.free = free(graph)
        self.work = work(graph, shapes)
        self.total = sum(w for i, w in enumerate(self.work) if i not in self.free) or 1.0
        self.types = _element_types(graph)
        self.above = self._closures()

    def _closures(self) -> list[int]:
        """For each node the set of nodes it needs and itself, as bits; those without a picture left out."""
        above = []
        for i, node in enumerate(self.graph.nodes):
            bits = 0
            if i not in self.free:
                bits = 1 << i
                for name in node.input:
                    if (made := self.graph.producer.get(name)) is not None:
                        bits |= above[made]
            above.append(bits)
        return above

    def boundary(self, inside: int) -> list[str]:
        """Tensors that the nodes in ``inside`` hand on, and the picture if somebody else reads it."""
        graph, found = self.graph, []
        outside = ~inside
        for i in bits(inside):
            for name in graph.nodes[i].output:
                readers = graph.readers.get(name, ())
                if name in graph.outputs or any(outside >> r & 1 and r not in self.free for r in readers):
                    found.append(name)
        if any(outside >> r & 1 and r not in self.free for r in graph.readers.get(self.input, ())):
            found.append(self.input)
        return found

    def map(self, name: str) -> Map | None:
        if name not in self.shapes or self.types.get(name, TensorProto.FLOAT) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            return None
        return as_map(name, self.shapes[name], self.size)

    def cut(self, inside: int, boundary: list[str]) -> Cut | None:
        maps = [self.map(name) for name in boundary]
        if not 0 < len(maps) <= MOST_MAPS or None in maps or self.input in boundary:
            return None
        if any(name in self.graph.outputs for name in boundary):
            return None
        nodes = bits(inside)
        before = sum(self.work[i] for i in nodes) / self.total
        upsampled = any(self.graph.nodes[i].op_type in UPSAMPLING for i in nodes)
        ordered = tuple(sorted(maps, key=lambda m: m.stride))
        joined = any(self.graph.make(m.tensor).op_type == "Concat" for m in maps)
        return Cut(ordered, before, frozenset(nodes), upsampled, joined)

    def all(self) -> list[Cut]:
        """Every cut that separates, least work first."""
        found: dict[tuple[str, ...], Cut] = {}
        for i, node in enumerate(self.graph.nodes):
            if i in self.free or not any(self.map(o) for o in node.output if o):
                continue
            boundary = self.boundary(self.above[i])
            if (cut := self.cut(self.above[i], boundary)) is not None:
                found.setdefault(tuple(cut.tensors), cut)
        return sorted(found.values(), key=lambda c: c.before)

    def at(self, names: list[str]) -> Cut:
        """The cut at named tensors."""
        graph, inside = self.graph, 0
        for name in names:
            made = graph.producer.get(name)
            if made is None or made in self.free:
                near = ", ".join(repr(t) for t in self._near(name)) or "frostline-models split FILE lists them"
                raise at(graph.source, f"--cut {name}: the graph computes no such tensor; there is {near}")
            if name in graph.outputs:
                raise at(graph.source, f"--cut {name}: it is the model's own output, so that nothing is left for a head; cut earlier")
            if self.map(name) is None:
                shape = list(self.shapes.get(name, ()))
                raise at(graph.source, f"--cut {name}: it is {shape}, which does not tile the input {list(self.size)}; cut at a feature map [1, C, h, w]")
            inside |= self.above[made]
        boundary = self.boundary(inside)
        for name in boundary:
            if name in names:
                continue
            if name == self.input:
                reader = next(graph.nodes[r] for r in graph.readers[name] if not inside >> r & 1 and r not in self.free)
                raise at(graph.source, f"--cut {','.join(names)} does not separate: the picture goes round it to {reader.output[0]!r}; cut behind that tensor")
            if name in graph.outputs:
                raise at(graph.source, f"--cut {','.join(names)}: output {name!r} lies before it; leave it out with --outputs, or cut earlier")
            reader = next(graph.nodes[r] for r in graph.readers[name] if not inside >> r & 1)
            raise at(
                graph.source,
                f"--cut {','.join(names)} does not separate: {name!r} goes round it to {reader.output[0]!r}; name it too, "
                f"or cut earlier (--cut {','.join([*names, name])})",
            )
        idle = [name for name in names if name not in boundary]
        if idle:
            raise at(graph.source, f"--cut {idle[0]}: nothing behind the cut reads it; leave it out")
        return self.cut(inside, names)

    def _near(self, name: str) -> list[str]:
        last = name.split("/")[-1].split(".")[-1].lower()
        return [t for t in self.graph.producer if last and last in t.lower()][:4]


def bits(value: int) -> list[int]:
    """Positions of the ones."""
    text = bin(value)[:1:-1]
    return [i for i, c in enumerate(text) if c == "1"]


def _element_types(graph: Graph) -> dict[str, int]:
    """Of tensors that are not float for sure: integers and booleans."""
    integer = {"Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Equal", "Greater", "Less", "Not", "And", "Or"}
    types = {}
    for node in graph.nodes:
        if node.op_type in integer:
            types |= dict.fromkeys(node.output, TensorProto.INT64)
        elif node.op_type == "Cast":
            types[node.output[0]] = helper.get_node_attr_value(node, "to")
        elif node.op_type in ("QuantizeLinear", "QLinearConv", "QLinearMatMul"):
            types |= dict.fromkeys(node.output, TensorProto.UINT8)
        elif node.op_type == "TopK":
            types[node.output[1]] = TensorProto.INT64
    return types


def stages(cuts: list[Cut]) -> list[Cut]:
    """The last cut of each set of strides, with and without upsampling before it; one map a
    stride where there are such cuts (``--all`` shows those through the middle of a block too)."""
    last: dict[tuple, Cut] = {}
    for cut in [c for c in cuts if len(set(c.strides)) == len(c.strides)] or cuts:
        last[cut.strides, cut.upsampled] = cut
    return sorted(last.values(), key=lambda c: c.before)


def suggest(cuts: list[Cut]) -> Cut | None:
    """What is usually called the backbone: as deep as it goes before anything is upsampled, one
    map a stride, maps before a single vector; and of the cuts at those strides the last with the
    most channels, since heads begin by narrowing them."""
    plain = [c for c in cuts if len(set(c.strides)) == len(c.strides)] or cuts
    for keep in (
        lambda c: not c.upsampled and all(m.form != "vector" and m.rows * m.columns > 1 for m in c.maps),
        lambda c: all(m.form != "vector" for m in c.maps),
        lambda c: True,
    ):
        if kept := [c for c in plain if keep(c)]:
            deepest = max(kept, key=lambda c: c.before).strides
            kept = [c for c in kept if c.strides == deepest]
            kept = [c for c in kept if not c.joined] or kept
            width = max(c.width for c in kept)
            last = max((c for c in kept if c.width == width), key=lambda c: c.before)
            near = [c for c in kept if c.width == width and c.before > last.before - 0.02]
            return max(near, key=lambda c: (all(m.form != "tokens" for m in c.maps), c.before))
    return None
