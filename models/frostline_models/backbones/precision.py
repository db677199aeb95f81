"""fp32 graphs to fp16, bf16 and calibrated int8.  Inputs and outputs keep their types.

fp16 computes everything in half precision except what squares or sums many values (norms,
lengths).  bf16 computes the matrix products alone.  int8 quantizes the products with
weights, activations by ranges seen on calibration images; products of two activations
(attention itself) stay fp32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
#: Kept in fp32 by fp16: sums of squares overflow it, norms lose the small features.
KEEP_FP32 = ("LayerNormalization", "ReduceL2", "ReduceMean", "Clip", "Resize")
PRODUCTS = ("MatMul", "Gemm", "Conv")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision between the image's cast and the outputs, which stay fp32."""
    types = element_types(model)
    graph = model.graph
    half: dict[str, str] = {}  # fp32 name -> its fp16 name, as casts or constants are made
    wide: dict[str, str] = {}  # fp16 name -> its fp32 name
    is_half: set[str] = set()
    weights = {t.name: t for t in graph.initializer}
    outputs = {o.name for o in graph.output}
    nodes: list[onnx.NodeProto] = []

    def cast(name: str, to: int, made: dict[str, str]) -> str:
        if name not in made:
            made[name] = f"{name}_{'half' if to == TensorProto.FLOAT16 else 'float'}"
            nodes.append(_cast(name, made[name], to))
        return made[name]

    for node in graph.node:
        keep = node.op_type in KEEP_FP32 or node.op_type == "Cast"
        if node.op_type == "Constant":
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT:
                continue
            if keep and name in is_half:
                node.input[i] = cast(name, TensorProto.FLOAT, wide)
            elif not keep and name in weights:
                if name not in half:
                    half[name] = f"{name}_half"
                    graph.initializer.append(_half(weights[name], half[name]))
                node.input[i] = half[name]
            elif not keep and name not in is_half:
                node.input[i] = cast(name, TensorProto.FLOAT16, half)
        nodes.append(node)
        if keep:
            continue
        for i, name in enumerate(node.output):
            if types.get(name) != TensorProto.FLOAT:
                continue
            if name in outputs:
                node.output[i] = f"{name}_half"
                nodes.append(_cast(node.output[i], name, TensorProto.FLOAT))
                half[name] = node.output[i]
            else:
                is_half.add(name)
    _replace(graph, nodes)
    return model


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)


def _half(tensor: TensorProto, name: str) -> TensorProto:
    limit = np.finfo(np.float16).max
    values = np.clip(numpy_helper.to_array(tensor), -limit, limit).astype(np.float16)
    return numpy_helper.from_array(values, name)


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """New nodes; constants that none of them reads go, and so do the old types."""
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the graph, by name."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(model) if model.ByteSize() < 1 << 30 else _skeleton(model, skeleton)
    graph = onnx.shape_inference.infer_shapes(skeleton).graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        if node.op_type == "Constant":
            types[node.output[0]] = next(
                (a.t.data_type for a in node.attribute if a.name == "value"), 0
            )
    return types


def _skeleton(model: onnx.ModelProto, out: onnx.ModelProto) -> None:
    """The model without the values of large tensors, whose types are all that is wanted."""
    out.ir_version = model.ir_version
    out.opset_import.extend(model.opset_import)
    out.graph.name = model.graph.name
    out.graph.node.extend(model.graph.node)
    out.graph.input.extend(model.graph.input)
    out.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= 1 << 16:
            out.graph.initializer.append(tensor)
        else:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            out.graph.input.append(info)


def to_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matrix products in bf16: weights stored so, activations cast before and after."""
    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if not name:
                continue
            short = f"{name}_bf16"
            if name in weights and short not in done:
                graph.initializer.append(_bf16(weights[name], short))
            elif short not in done:
                nodes.append(_cast(name, short, TensorProto.BFLOAT16))
            done[short] = name
            node.input[i] = short
        wide, node.output[0] = node.output[0], f"{node.output[0]}_bf16_out"
        nodes += [node, _cast(node.output[0], wide, TensorProto.FLOAT)]
    _replace(graph, nodes)
    return model


def _bf16(tensor: TensorProto, name: str) -> TensorProto:
    """Rounded to nearest even."""
    bits = numpy_helper.to_array(tensor).astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return helper.make_tensor(
        name, TensorProto.BFLOAT16, tensor.dims, rounded.tobytes(), raw=True
    )


class _Images:
    """Calibration images one by one, as the quantizer asks for them."""

    def __init__(self, name: str, images: Iterable[np.ndarray]):
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image[None]}


def to_int8(
    source: Path, target: Path, images: np.ndarray, percentile: float | None = None,
    external: bool = False,
) -> None:  # fmt: skip
    """Quantizes ``source`` into ``target`` with ranges from uint8 ``images [N, H, W, 3]``.

    Weights are symmetric per output channel; activations are asymmetric, their range the
    smallest that holds everything seen, or ``percentile`` of it.
    """
    from onnxruntime.quantization import (
        CalibrationMethod, QuantFormat, QuantType, quantize_static,
    )  # fmt: skip

    model = onnx.load(source, load_external_data=False)
    weights = {t.name for t in model.graph.initializer}
    image = model.graph.input[0].name
    pixels = {o for n in model.graph.node if image in n.input for o in n.output}
    excluded = []
    for i, node in enumerate(model.graph.node):
        if node.op_type in PRODUCTS:
            # Products of two activations: their ranges follow the image, not the weights.
            if not any(name in weights for name in node.input) or set(node.input) & pixels:
                excluded.append(node.name)
    if any(not n.name for n in model.graph.node if n.op_type in PRODUCTS):
        raise ValueError("every product in the graph must have a name")
    options = {"ActivationSymmetric": False, "WeightSymmetric": True}
    method = CalibrationMethod.MinMax
    if percentile is not None:
        method = CalibrationMethod.Percentile
        options["CalibPercentile"] = percentile
    # The quantizer asks for its own graph optimizer first; the graph is already folded.
    logging.getLogger().addFilter(_no_advice)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".calibrate-") as folder:
        partial = Path(folder) / "quantized.onnx"
        quantize_static(
            str(source),
            str(partial),
            _Images(image, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            # Without VNNI, u8 x s8 products of 8-bit weights saturate 16-bit sums.
            reduce_range=not has_vnni(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=method,
            use_external_data_format=external,
            extra_options=options,
        )
        for file in Path(folder).iterdir():
            if file.name.startswith("quantized"):
                file.rename(target.parent / file.name.replace("quantized.onnx", target.name))


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def has_vnni() -> bool:
    """Whether this CPU adds 8-bit products without saturation."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "vnni" in flags


def takes(provider: str, model: bytes | str) -> str | None:
    """Why ``provider`` cannot run the graph, or ``None`` if it can."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's errors share no public base
        return str(error).strip().splitlines()[0]
    return None
