"""A repository with one graph twice: as a keypoints head, `pose`, and as a head of raw outputs, `raw`."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DEMO = Path(__file__).resolve().parents[2] / "models/demo"
SIZE = 128
BODIES, POINTS = 24, 5
LABELS = ["nose", "left hand", "right hand", "left foot", "right foot"]
BONES = [[0, 1], [0, 2], [0, 3], [0, 4]]
MOST, THRESHOLD = 9, 0.3


def graph(channels: int) -> bytes:
    """Points that depend on the picture: within the input and beyond. Some points of each body have the score 0 and lie
    nowhere, and some bodies have only such."""
    rng = np.random.default_rng(7)
    there = (rng.uniform(size=(1, BODIES, POINTS, 1)) < 0.75) & (rng.uniform(size=(1, BODIES, 1, 1)) < 0.8)
    constants = {
        "weights": rng.normal(size=(channels, BODIES * POINTS * 3)) * 0.02,
        "bias": rng.normal(size=BODIES * POINTS * 3),
        "scale": np.array([SIZE * 1.4, SIZE * 1.4, 1.0]),
        "shift": np.array([-SIZE * 0.2, -SIZE * 0.2, 0.0]),
        # Of a point that is none: no numbers for x and y, and 0 for the score.
        "void": np.where(there, 0.0, np.array([np.nan, np.inf, 0.0])).reshape(1, BODIES, POINTS, 3),
        "kept": np.where(there, 1.0, np.array([1.0, 1.0, 0.0])).reshape(1, BODIES, POINTS, 3),
    }
    shape = numpy_helper.from_array(np.array([-1, BODIES, POINTS, 3]), "shape")
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    nodes = [
        helper.make_node("GlobalAveragePool", ["stride32"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["mixed"]),
        helper.make_node("Sigmoid", ["mixed"], ["shares"]),
        helper.make_node("Reshape", ["shares", "shape"], ["points"]),
        helper.make_node("Mul", ["points", "scale"], ["wide"]),
        helper.make_node("Add", ["wide", "shift"], ["placed"]),
        helper.make_node("Mul", ["placed", "kept"], ["known"]),
        helper.make_node("Add", ["known", "void"], ["keypoints"]),
    ]
    inputs = [helper.make_tensor_value_info("stride32", TensorProto.FLOAT, ["N", channels, "h", "w"])]
    outputs = [helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, ["N", BODIES, POINTS, 3])]
    made = helper.make_graph(nodes, "points", inputs, outputs, [*tensors, shape])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def write(root: Path, resize: str = "letterbox"):
    backbone = onnx.load(DEMO / "backbone.onnx")
    (feature,) = [output for output in backbone.graph.output if output.name == "stride32"]
    channels = feature.type.tensor_type.shape.dim[1].dim_value
    text = (DEMO / "backbone.toml").read_text()
    shutil.copy(DEMO / "backbone.onnx", root)
    (root / "backbone.toml").write_text(text.replace('resize = "letterbox"', f'resize = "{resize}"'))
    data = graph(channels)
    for name, task in (("pose", "keypoints"), ("raw", "tensor")):
        folder = root / "heads" / name
        folder.mkdir(parents=True)
        (folder / "head.onnx").write_bytes(data)
        post = f"[postprocess]\nscore_threshold = {THRESHOLD}\nmax_detections = {MOST}\nskeleton = {BONES}\n"
        (folder / "head.toml").write_text(
            f'name = "{name}"\nversion = "1"\ntask = "{task}"\nfile = "head.onnx"\n'
            f'sha256 = "{hashlib.sha256(data).hexdigest()}"\nfeatures = ["stride32"]\ninput_size = [{SIZE}, {SIZE}]\n'
            f'backbone = "{hashlib.sha256((DEMO / "backbone.onnx").read_bytes()).hexdigest()}"\n'
            + (f"labels = {json.dumps(LABELS)}\n{post}" if task == "keypoints" else "")
        )
