"""Settles what a graph works out anew at each run: its input's size, shapes, constants.

After :func:`freeze` the graph takes pictures of one size in batches of any number.  Values that
follow from shapes alone are constants, and those that hang on the batch follow from one tensor,
:data:`BATCH`, so that both halves of a cut can work them out for themselves.  What the values
are is not derived but measured: the graph runs at three batches, and an entry is
``start + step * batch``, or the graph is refused.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import at
from .graph import DATA_SIZED, Graph, Image, constant, described, evaluate

#: The batch, int64 ``[1]``.
BATCH = "frostline_batch"
#: Larger constants than this stay computed.
FOLD_BYTES = 64 << 20
BATCHES = (1, 2, 3)
#: Made of a small integer and a scale: folded they would be four times as large.
KEPT = {"DequantizeLinear", "QuantizeLinear", "DequantizeBFP"}
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def example(image: Image, batch: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Input of the model's own type: noise around its middle."""
    rng = np.random.default_rng(seed)
    shape = (batch, 3, *size) if image.layout == "NCHW" else (batch, *size, 3)
    if image.element == TensorProto.UINT8:
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.normal(0, 1, shape).astype(helper.tensor_dtype_to_np_dtype(image.element))


def freeze(graph: Graph, image: Image, size: tuple[int, int]) -> list[str]:
    """Freezes the graph in place at ``(height, width)``; returns what was done, for people."""
    done = []
    _pin(graph, image, size)
    try:
        shaped = _fold(graph, image, size)
    except _Batch as problem:
        if changed := _loosen(graph, image, size):
            done.append(f"freed the batch of {changed} fixed shapes")
        try:
            shaped = _fold(graph, image, size)
        except _Batch:
            raise at(
                graph.source,
                f"runs for one picture alone ({problem}); export it with a dynamic batch "
                "(torch.onnx.export(..., dynamic_axes={input: {0: 'batch'}}))",
            ) from None
    if shaped:
        done.append(f"folded {shaped} tensors that follow from shapes and constants")
    _check_rows(graph, image, size)
    return done


class _Batch(Exception):
    """The graph does not run at another batch than its own."""


def _pin(graph: Graph, image: Image, size: tuple[int, int]) -> None:
    for wanted, own, axis in zip(size, (image.height, image.width), ("height", "width")):
        if own and own != wanted:
            raise at(graph.source, f"input {image.name!r} has a fixed {axis} of {own}, not {wanted}; leave --size out, or export it at that size")
    proto = graph.model.graph
    dims = proto.input[0].type.tensor_type.shape.dim
    shape = ("batch", 3, *size) if image.layout == "NCHW" else ("batch", *size, 3)
    for dim, value in zip(dims, shape):
        dim.Clear()
        if isinstance(value, str):
            dim.dim_param = value
        else:
            dim.dim_value = value
    del proto.value_info[:]
    for output in proto.output:  # what is declared there may be of another size
        output.type.tensor_type.ClearField("shape")
    graph.index()


# === constants and shapes ===


def _kinds(graph: Graph) -> dict[str, str]:
    """``const``, ``shape`` (follows from shapes) or ``data`` for every tensor."""
    kinds = dict.fromkeys(graph.weights, "const") | {graph.inputs[0].name: "data"}
    for node in graph.nodes:
        made = {kinds.get(name, "const") for name in node.input if name}
        if node.op_type in RANDOM:
            kind = "data"
        elif node.op_type in ("Shape", "Size"):
            kind = "shape" if made & {"data", "shape"} else "const"
        else:
            kind = next((k for k in ("data", "shape") if k in made), "const")
        for name in node.output:
            kinds[name] = kind
    return kinds


def free(graph: Graph) -> set[int]:
    """Nodes that need no picture: either half of a cut may have its own."""
    kinds = _kinds(graph)
    kinds[BATCH] = "shape"
    return {i for i, n in enumerate(graph.nodes) if all(kinds.get(o, "const") != "data" for o in n.output)}


def _fold(graph: Graph, image: Image, size: tuple[int, int]) -> int:
    kinds = _kinds(graph)
    kept = {o for n in graph.nodes if n.op_type in KEPT for o in n.output}
    wanted = []
    for i, node in enumerate(graph.nodes):
        for name in node.output:
            if not name or kinds[name] == "data" or name in kept:
                continue
            # Roots, and what the rest of the graph reads of the others.
            root = node.op_type in ("Shape", "Size") and kinds[name] == "shape"
            readers = graph.readers.get(name, [])
            read = name in graph.outputs or any(kinds[o] == "data" for r in readers for o in graph.nodes[r].output)
            to_kept = any(graph.nodes[r].op_type in KEPT for r in readers)
            if root or read or to_kept:
                wanted.append(name)
    values, rows = {}, {}
    for batch in BATCHES:
        try:
            found = evaluate(graph, example(image, batch, size), [*wanted, *graph.outputs])
        except Exception as error:  # ONNX Runtime's own kinds
            if batch == 1:
                raise at(graph.source, f"does not run at {size[0]}x{size[1]}: {_reason(error)}") from None
            raise _Batch(_reason(error)) from None
        values[batch] = found[: len(wanted)]
        rows[batch] = [np.shape(value)[:1] for value in found[len(wanted) :]]
        for name, one, now in zip(graph.outputs, rows[1], rows[batch]):
            if one == (1,) and now != (batch,):
                raise _Batch(f"output {name!r} has {now[0]} rows for {batch} pictures")
    return _replace(graph, wanted, values)


def _replace(graph: Graph, wanted: list[str], values: dict[int, list[np.ndarray]]) -> int:
    """Puts constants for what is the same at every batch, and the rule for roots that are not."""
    constants, ruled, before = {}, {}, []
    for k, name in enumerate(wanted):
        one, two, three = (np.asarray(values[b][k]) for b in BATCHES)
        same = one.shape == two.shape == three.shape
        if same and np.array_equal(one, two) and np.array_equal(two, three):
            if one.nbytes <= FOLD_BYTES:
                constants[name] = one
        elif graph.make(name).op_type in ("Shape", "Size"):
            step = two.astype(np.int64) - one
            if not same or not np.array_equal(three - two, step):
                raise at(graph.source, f"{described(graph.make(name))} and does not follow the batch; export it at a fixed size")
            ruled[name] = (one - step, step)
    if ruled:
        before = _batch_nodes(graph)
        for name, (start, step) in ruled.items():
            before += _rule(graph, name, start, step)
    gone = {graph.producer[name] for name in constants | ruled}
    partly = {i for i in gone if any(o and o not in constants and o not in ruled for o in graph.nodes[i].output)}
    kept = []
    for i, node in enumerate(graph.nodes):
        if i in partly:  # the other outputs of a node that stays
            for k, name in enumerate(node.output):
                if name in constants:
                    node.output[k] = f"{name}_unused"
        if i not in gone or i in partly:
            kept.append(node)
    proto = graph.model.graph
    del proto.node[:]
    proto.node.extend([*before, *kept])
    proto.initializer.extend(constant(name, value) for name, value in constants.items())
    graph.index()
    graph.prune()
    return len(constants) + len(ruled)


def _batch_nodes(graph: Graph) -> list[onnx.NodeProto]:
    return batch_nodes(graph.inputs[0].name, graph.model)


def batch_nodes(source: str, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The batch, read off the first axis of the tensor ``source``."""
    first = f"{BATCH}_axis"
    if first not in {w.name for w in model.graph.initializer}:
        model.graph.initializer.append(constant(first, np.array([0], np.int64)))
    return [
        helper.make_node("Shape", [source], [f"{BATCH}_shape"], name=f"{BATCH}_shape"),
        helper.make_node("Gather", [f"{BATCH}_shape", first], [BATCH], name=BATCH, axis=0),
    ]


def _rule(graph: Graph, name: str, start: np.ndarray, step: np.ndarray) -> list[onnx.NodeProto]:
    """``name = start + step * batch``, int64, of ``start``'s shape."""
    parts = {"step": step.reshape(-1), "start": start.reshape(-1), "shape": np.array(start.shape, np.int64)}
    for key, value in parts.items():
        graph.model.graph.initializer.append(constant(f"{name}_{key}", value.astype(np.int64)))
    return [
        helper.make_node("Mul", [BATCH, f"{name}_step"], [f"{name}_scaled"]),
        helper.make_node("Add", [f"{name}_scaled", f"{name}_start"], [f"{name}_flat"]),
        helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [name]),
    ]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split("Status Message: ")[-1][-240:]


# === the batch ===


def _loosen(graph: Graph, image: Image, size: tuple[int, int]) -> int:
    """Frees the batch where constants of a model for one picture hold it: Reshape and Expand."""
    from .graph import shapes

    known, changed = shapes(graph, example(image, 1, size)), 0
    constants = {n.output[0]: n for n in graph.nodes if n.op_type == "Constant"}
    for node in list(graph.nodes):
        if node.op_type != "Reshape":
            continue
        shape = _shape_of(graph, node.input[1], constants)
        before, after = known.get(node.input[0]), known.get(node.output[0])
        if shape is None or not before or not after or len(shape) != len(after):
            continue
        if any(a.name == "allowzero" and a.i for a in node.attribute):
            continue
        # A picture's rows first, then one open axis for the batch that is merged into it.
        new = [after[k] if v == 0 and k else v for k, v in enumerate(shape.tolist())]
        if shape[0] == 1 and before[0] == 1:
            new = [0, *new[1:]]
        elif shape[0] > 1 and before[0] in (1, shape[0]):
            new = [-1, *after[1:]]
        else:
            continue
        name = f"{node.output[0]}_shape_freed"
        graph.model.graph.initializer.append(constant(name, np.array(new, np.int64)))
        node.input[1] = name
        changed += 1
    graph.index()
    return changed


def _shape_of(graph: Graph, name: str, constants: dict[str, onnx.NodeProto]) -> np.ndarray | None:
    if name in graph.weights:
        return numpy_helper.to_array(graph.weights[name])
    return _value(constants[name]) if name in constants else None


def _value(node: onnx.NodeProto) -> np.ndarray | None:
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    return None


def _check_rows(graph: Graph, image: Image, size: tuple[int, int]) -> None:
    """Every output has a row for each picture, of the same shape for any picture, and a row does
    not change with the batch."""
    many = [example(image, 3, size, seed) for seed in (1, 2)]
    try:
        first, second = (evaluate(graph, rows, graph.outputs) for rows in many)
        alone = evaluate(graph, many[0][1:2], graph.outputs)
    except Exception as error:
        raise at(graph.source, f"does not run in a batch of 3: {_reason(error)}") from None
    for name, a, b, one in zip(graph.outputs, first, second, alone):
        if a.shape != b.shape or not a.shape or a.shape[0] != 3 or one.shape != (1, *a.shape[1:]):
            upstream = [graph.nodes[i] for i in graph.upstream([name])]
            found = next((n for n in upstream if n.op_type in DATA_SIZED), None)
            why = f": {described(found)}" if found else ""
            raise at(
                graph.source,
                f"output {name!r} is {list(a.shape)} for 3 pictures, not one row of a fixed shape for each{why}; "
                "export the model without its own suppression (the server has nms_iou), or pick others with --outputs",
            )
        # Near ties in a graph's own TopK may swap; one that mixes pictures changes nearly everything.
        close = np.isclose(a[1], one[0], atol=1e-3 * max(1.0, float(np.abs(one).max())), rtol=1e-3)
        if a.dtype.kind == "f" and close.mean() < 0.95:
            raise at(
                graph.source,
                f"output {name!r} of a picture changes with the batch it is in; export the model in eval mode with a "
                "dynamic batch",
            )
