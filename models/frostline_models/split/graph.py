"""A foreign ONNX model with fast look-ups, and everything that is refused at the door."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from ..errors import InputError, at

#: Opsets that the suffixes of ``forms`` are written for; older models are converted first.
LEAST_OPSET = 11
#: Domains whose operators ONNX Runtime brings along.
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
#: Operators whose output has as many rows as they find.
DATA_SIZED = {"NonMaxSuppression", "NonZero", "Unique", "Compress"}
#: protobuf's limit, less room for the graph itself.
EMBED_LIMIT = (2 << 30) - (64 << 20)
#: Weights smaller than this stay in the graph when shapes are inferred: they may be shapes.
SHAPE_BYTES = 4096
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


@dataclass(frozen=True)
class Image:
    """The model's picture input: ``layout`` is ``NCHW`` or ``NHWC``, ``batch`` 0 where it is free."""

    name: str
    element: int
    layout: str
    batch: int
    height: int | None
    width: int | None


class Graph:
    """Nodes in topological order with who makes and who reads each tensor."""

    def __init__(self, model: onnx.ModelProto, source: Path):
        self.model, self.source = model, source
        self.index()

    def index(self) -> None:
        """Reads the nodes again, after they were changed."""
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.weights = {w.name: w for w in graph.initializer}
        self.outputs = [o.name for o in graph.output]
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in node.output:
                if name:
                    self.producer[name] = i
            for name in node.input:
                if name:
                    self.readers.setdefault(name, []).append(i)

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [i for i in self.model.graph.input if i.name not in self.weights]

    def opset(self) -> int:
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 1)

    def make(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor."""
        i = self.producer.get(name)
        return None if i is None else self.nodes[i]

    def upstream(self, wanted: list[str], given: set[str] = frozenset()) -> list[int]:
        """Nodes that ``wanted`` need when the tensors ``given`` are there, in order."""
        seen: set[int] = set()
        stack = [name for name in wanted if name not in given]
        while stack:
            i = self.producer.get(stack.pop())
            if i is None or i in seen:
                continue
            seen.add(i)
            stack += [name for name in self.nodes[i].input if name and name not in given]
        return sorted(seen)

    def prune(self) -> None:
        """Drops nodes and weights that no output needs."""
        kept = [self.nodes[i] for i in self.upstream(self.outputs)]
        used = {name for node in kept for name in node.input} | set(self.outputs)
        graph = self.model.graph
        weights = [w for w in graph.initializer if w.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(kept)
        graph.initializer.extend(weights)
        self.index()


def constant(name: str, value) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def described(node: onnx.NodeProto) -> str:
    """A node by what it makes: names of nodes are often empty."""
    return f"tensor {(list(node.output) or [node.name])[0]!r} comes from {node.op_type}"


# === reading ===


def load(path: Path, fixed: dict[str, np.ndarray] | None = None) -> Graph:
    """The model, checked: one picture input, no control flow, only operators that are known."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise at(path, f"cannot be read: {error.strerror}") from None
    except Exception as error:  # protobuf's own kinds
        raise at(path, f"is not an ONNX model: {error}") from None
    if not model.graph.node:
        raise at(path, "is not an ONNX model: it has no nodes")
    _check_external(model, path)
    onnx.load_external_data_for_model(model, str(path.parent))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    # From 8 on weights are no inputs; the newest that ONNX Runtime may not know yet adds nothing used here.
    model.ir_version = min(max(model.ir_version, 8), 10)
    weights = {w.name for w in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for node in model.graph.node:
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    graph = Graph(model, path)
    _check_operators(graph)
    _fix(graph, fixed or {})
    if graph.opset() < LEAST_OPSET:
        graph = _convert(graph)
    return graph


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    """Weights kept outside: there, beside the model, and long enough."""
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entry = {e.key: e.value for e in tensor.external_data}
        place = entry.get("location", "")
        file = path.parent / place
        if not place or Path(place).is_absolute() or ".." in Path(place).parts:
            raise at(path, f"tensor {tensor.name!r} lies in {place!r}, which is not beside the model; save it again with external data in its folder")
        if not file.is_file():
            raise at(path, f"tensor {tensor.name!r} lies in {place!r}, which is missing; put the file beside the model")
        end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
        if end > file.stat().st_size:
            raise at(path, f"tensor {tensor.name!r} ends at byte {end} of {place!r}, which has {file.stat().st_size}; fetch the file again")


def _check_operators(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op_type in CONTROL or any(a.type in (5, 10) for a in node.attribute):
            raise at(
                graph.source,
                f"{described(node)} (control flow), which cannot be cut; export the model in eval mode at a fixed "
                "size, so that the branch is settled, or simplify it (onnxsim) first",
            )
        known = node.domain in DOMAINS and (node.domain != "" or onnx.defs.has(node.op_type))
        if not known:
            raise at(
                graph.source,
                f"{described(node)} of the domain {node.domain or 'ai.onnx'!r}, an operator that ONNX Runtime does not "
                "have; export the model without it, or cut with --outputs before it",
            )


def _fix(graph: Graph, fixed: dict[str, np.ndarray]) -> None:
    """Turns inputs into constants."""
    inputs = {i.name: i for i in graph.inputs}
    for name, value in fixed.items():
        if name not in inputs:
            raise at(graph.source, f"--fix {name}: there is no such input; it has {', '.join(inputs)}")
        kind = inputs[name].type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        array = value.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if len(dims) != array.ndim:
            array = array.reshape([1] * (len(dims) - 1) + [-1] if dims else [])
        graph.model.graph.initializer.append(constant(name, array))
    kept = [i for i in graph.model.graph.input if i.name not in fixed]
    del graph.model.graph.input[:]
    graph.model.graph.input.extend(kept)
    graph.index()


def _convert(graph: Graph) -> Graph:
    try:
        return Graph(onnx.version_converter.convert_version(graph.model, 17), graph.source)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise at(
            graph.source,
            f"is of opset {graph.opset()}, and cannot be brought to 17 ({reason}); export it with opset 13 or later",
        ) from None


def picture(graph: Graph, layout: str | None = None) -> Image:
    """The one input, which must be a picture."""
    inputs = graph.inputs
    if len(inputs) != 1:
        names = ", ".join(repr(i.name) for i in inputs) or "none"
        raise at(
            graph.source,
            f"has {len(inputs)} inputs ({names}), but a backbone takes one picture; make the others constants with "
            "--fix NAME=VALUES",
        )
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    dims = [d.dim_value for d in kind.shape.dim]
    if kind.elem_type not in FLOATS | {TensorProto.UINT8} or len(dims) != 4:
        what = TensorProto.DataType.Name(kind.elem_type).lower()
        raise at(graph.source, f"input {name!r} is {what} {dims}, but must be a picture: float or uint8, 4 axes")
    if layout is None:
        found = [form for form, axis in (("NCHW", 1), ("NHWC", 3)) if dims[axis] == 3]
        if len(found) != 1:
            raise at(graph.source, f"input {name!r} is {dims}: which axis holds its 3 channels is not clear; give --layout NCHW or NHWC")
        layout = found[0]
    if layout not in ("NCHW", "NHWC"):
        raise InputError(f"--layout {layout!r}: must be NCHW or NHWC")
    height, width = dims[2:] if layout == "NCHW" else dims[1:3]
    return Image(name, kind.elem_type, layout, dims[0], height or None, width or None)


# === running ===


def session(model: onnx.ModelProto | Path, plain: bool = False, threads: int = 1) -> ort.InferenceSession:
    """A CPU session; ``plain`` leaves every node as it is."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = ["CPUExecutionProvider"]
    if isinstance(model, Path):
        return ort.InferenceSession(str(model), options, providers=providers)
    if model.ByteSize() < EMBED_LIMIT:
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder) / "model.onnx", onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location="model.onnx.data")
        return ort.InferenceSession(str(path), options, providers=providers)


def evaluate(graph: Graph, image: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """Values of any tensors for a batch of input pictures, nothing optimized away."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    kept = [graph.nodes[i] for i in graph.upstream(names)]
    del model.graph.node[:], model.graph.output[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | set(names)
    weights = [w for w in model.graph.initializer if w.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    run = session(model, plain=True)
    feeds = {run.get_inputs()[0].name: image} if run.get_inputs() else {}
    return run.run(names, feeds)


def shapes(graph: Graph, example: np.ndarray) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for ``example``: inferred, and measured where inference ends.

    Large weights are declared as inputs for this, so that no copy of them is made.
    """
    slim = onnx.ModelProto()
    slim.CopyFrom(_without_weights(graph.model))
    for w in graph.weights.values():
        if _bytes(w) > SHAPE_BYTES:
            slim.graph.input.append(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims))
        else:
            slim.graph.initializer.append(w)
    dims = slim.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, example.shape):
        dim.dim_value = size
    known: dict[str, tuple[int, ...]] = {w.name: tuple(w.dims) for w in graph.weights.values()}
    try:
        inferred = onnx.shape_inference.infer_shapes(slim, data_prop=True)
    except Exception:
        inferred = slim
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    for value in values:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            known.setdefault(value.name, tuple(d.dim_value for d in kind.shape.dim))
    missing = [o for node in graph.nodes for o in node.output if o and o not in known]
    if missing:
        for name, value in zip(missing, evaluate(graph, example, missing)):
            known[name] = tuple(np.shape(value))
    return known


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    slim = onnx.ModelProto(ir_version=model.ir_version)
    slim.opset_import.extend(model.opset_import)
    slim.graph.name = model.graph.name or "graph"
    slim.graph.node.extend(model.graph.node)
    slim.graph.input.extend(model.graph.input)
    slim.graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.graph.output)
    for value, output in zip(slim.graph.output, model.graph.output):
        value.type.tensor_type.elem_type = output.type.tensor_type.elem_type
    return slim


def _bytes(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64)) * 8 if tensor.dims else 8
