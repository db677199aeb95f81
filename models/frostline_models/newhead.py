"""``frostline-models new-head``: a commented ``head.toml`` from an ONNX file's inputs and outputs.

The graph is as somebody exported it; here it is only read, matched with the repository's backbone,
and put beside a manifest in which every key says what it is for.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from . import export as common
from .errors import InputError, at
from .split import labels as label_files
from .taskheads.spec import read_manifest

TASKS = ("detection", "segmentation", "action", "classification", "keypoints", "embedding", "tensor")
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True)
class Port:
    """An input or output: its element type, and its shape with ``None`` for what is open."""

    name: str
    element: int
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        kind = TensorProto.DataType.Name(self.element).lower()
        return f"{self.name} {kind} [{', '.join('?' if d is None else str(d) for d in self.shape)}]"


def add(groups) -> None:
    parser = groups.add_parser("new-head", help="a commented head.toml from an ONNX file's inputs and outputs")
    parser.add_argument("graph", type=Path, metavar="HEAD.onnx")
    parser.add_argument("--repository", type=Path, required=True, help="model repository, with its backbone")
    parser.add_argument("--name", help="of the head (unset: the file's)")
    parser.add_argument("--task", help=f"unset: by the outputs; {', '.join(TASKS)}")
    parser.add_argument("--labels", type=Path, help="label names, one a line or JSON (unset: numbers, to be filled in)")
    parser.add_argument("--force", action="store_true", help="write over a manifest that is there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    path, repository = arguments.graph, arguments.repository
    inputs, outputs, data = read(path)
    backbone = read_manifest(repository / "backbone.toml")
    clip = match(path, inputs, backbone)
    name = arguments.name or re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise InputError(f"--name {name!r}: must be 1 to 64 letters, digits, '-', '_' or '.'")
    task = task_of(path, outputs, clip is not None, arguments.task)
    folder = repository / "heads" / name
    if (folder / "head.toml").exists() and not arguments.force:
        raise at(folder / "head.toml", "is there already; give another --name, or --force to write over it")
    names = [] if task in ("embedding", "tensor") else labels_of(path, outputs, task, arguments.labels)
    text = manifest(name, task, data, backbone, inputs, outputs, names, clip)
    common.write(folder / "head.onnx", data)
    common.write(folder / "head.toml", text)
    print(f"wrote {folder / 'head.toml'} ({task}) and head.onnx; read it through, then: frostline check {repository}")


# === the graph ===


def read(path: Path) -> tuple[list[Port], list[Port], bytes]:
    """Inputs, outputs and the file's bytes."""
    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
    except OSError as error:
        raise at(path, f"cannot be read: {error.strerror}") from None
    except Exception as error:  # protobuf's own kinds
        raise at(path, f"is not an ONNX model: {error}") from None
    if not model.graph.output:
        raise at(path, "is not an ONNX model: it has no outputs")
    outside = next((w for w in model.graph.initializer if w.data_location == TensorProto.EXTERNAL), None)
    if outside is not None:
        raise at(path, f"tensor {outside.name!r} lies outside the file; save the head in one file (onnx.save does)")
    weights = {w.name for w in model.graph.initializer}
    inputs = [_port(i) for i in model.graph.input if i.name not in weights]
    return inputs, [_port(o) for o in model.graph.output], data


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Port(value.name, kind.elem_type, shape)


def match(path: Path, inputs: list[Port], backbone: dict) -> int | None:
    """Checks that each input is one of the backbone's maps; a clip's frames, ``None`` for an image."""
    size, known = backbone["input"]["sizes"][0], {f["name"]: f for f in backbone["features"]}
    frames: set[int | None] = set()
    if not inputs:
        raise at(path, f"has no inputs; a head reads some of {', '.join(known)}")
    for port in inputs:
        feature = known.get(port.name)
        if feature is None:
            raise at(
                path,
                f"input {port.name!r} is none of the backbone's maps ({', '.join(known)}); export it with "
                "input_names=[...] from these",
            )
        cells = [-(-side // feature["stride"]) for side in size]
        row = (feature["channels"], *cells) if feature["layout"] == "NCHW" else (*cells, feature["channels"])
        own = port.shape[-3:]
        if len(port.shape) not in (4, 5) or any(a is not None and a != b for a, b in zip(own, row)):
            raise at(path, f"input {port} does not fit the map: {list(row)} for each picture at {size}, behind the batch")
        if port.shape[0] is not None:
            raise at(path, f"input {port} has a fixed batch; export it with dynamic_axes={{{port.name!r}: {{0: 'batch'}}}}")
        frames.add(port.shape[1] if len(port.shape) == 5 else 0)
    if len(frames) != 1:
        raise at(path, "some inputs have frames (5 axes) and some have none; all must be alike")
    count = frames.pop()
    if count is None:
        raise at(path, "the number of frames is open; export the head for a fixed number")
    return count or None


def task_of(path: Path, outputs: list[Port], clip: bool, wanted: str | None) -> str:
    """The task by the outputs' names and shapes, or the wanted one if they are its."""
    have = {o.name: o for o in outputs}
    fits = {
        "detection": {"boxes", "scores", "labels"} <= set(have),
        "segmentation": "label_map" in have or ("logits" in have and len(have["logits"].shape) == 4),
        "action": clip and "logits" in have and len(have["logits"].shape) == 2,
        "classification": not clip and "logits" in have and len(have["logits"].shape) == 2,
        "keypoints": "keypoints" in have and len(have["keypoints"].shape) == 4,
        "embedding": len(outputs) == 1, "tensor": True,
    }  # fmt: skip
    wants = {
        "detection": "boxes [N, K, 4], scores [N, K] and labels [N, K]", "segmentation": "logits [N, C, h, w] or label_map [N, h, w]",
        "action": "logits [N, C] from maps with frames [N, T, ...]", "classification": "logits [N, C]", "keypoints": "keypoints [N, K, P, 3]",
        "embedding": "one output",
    }  # fmt: skip
    if wanted is not None:
        if wanted not in TASKS:
            raise InputError(f"--task {wanted!r}: must be one of {', '.join(TASKS)}")
        if not fits[wanted]:
            raise at(path, f"gives {'; '.join(map(str, outputs))}; {wanted} needs {wants[wanted]}: name the outputs so when exporting")
        return wanted
    found = next(task for task in TASKS if fits[task])
    if found == "embedding" and outputs[0].name != "embedding":
        return "tensor"
    return found


def labels_of(path: Path, outputs: list[Port], task: str, file: Path | None) -> list[str]:
    """The names, as many as the outputs say where they do."""
    have = {o.name: o for o in outputs}
    tensor, axis = ("keypoints", 2) if task == "keypoints" else ("logits", 1)
    count = have[tensor].shape[axis] if tensor in have and task != "detection" else None
    if file is not None:
        names = label_files.read(file)
        if not names or (count is not None and len(names) != count):
            raise at(file, f"has {len(names)} names, but tensor {tensor!r} of {path.name} has {count} classes; give a name for each")
        return names
    if count is None:
        raise at(path, f"does not tell how many labels a head for {task} has; give --labels FILE")
    return [f"label {i}" for i in range(count)]


# === the manifest ===


def manifest(
    name: str, task: str, data: bytes, backbone: dict, inputs: list[Port], outputs: list[Port], names: list[str],
    frames: int | None,
) -> str:  # fmt: skip
    """``head.toml`` with a comment at each key."""
    toml = common._toml
    lines = [
        f"# {name}: {task}. Every key is in models/MANIFEST.md.",
        "# The graph gives: " + "; ".join(map(str, outputs)),
        f"name = {toml(name)} # the folder's, by which callers ask for it",
        'version = "1" # told with every answer: change it with the graph',
        f"task = {toml(task)}",
        'file = "head.onnx"',
        f"sha256 = {toml(hashlib.sha256(data).hexdigest())} # of the file; `sha256sum head.onnx`",
        f"backbone = {toml(backbone['sha256'])} # of the backbone that it was trained on",
        f"input_size = {toml(list(backbone['input']['sizes'][0]))} # height and width that it was trained at",
        f"features = {toml([p.name for p in inputs])} # the maps that it reads",
    ]
    if names:
        lines.append(f"labels = {toml(names)} # by index")
    lines += ["", "[postprocess]", *_postprocess(task, outputs, frames)]
    lines += ["", "[trained] # free text, for people", 'data = ""', 'recipe = ""', "", "[metrics] # numbers, for people", "# top1 = 0.9"]
    return "\n".join(lines) + "\n"


def _postprocess(task: str, outputs: list[Port], frames: int | None) -> list[str]:
    if task == "detection":
        lines = [
            "score_threshold = 0.3 # callers may ask for another",
            "nms_iou = 0.5 # boxes of a label that overlap by more are one; leave it out if the graph has seen to it",
            "max_detections = 100",
        ]
        if any(o.name == "masks" for o in outputs):
            lines += ['mask = "image" # what a mask\'s grid covers: the whole "image", or the "box"', "mask_threshold = 0.5"]
        return lines
    if task == "action":
        return [
            f"frames = {frames} # that one call reads",
            "# frame_stride = 2 # distance of the frames in the video; unset: spread over the whole clip",
            "top_k = 5 # labels in an answer",
        ]
    if task == "keypoints":
        return [
            "score_threshold = 0.3 # of the mean of a body's points; callers may ask for another",
            "max_detections = 100 # bodies in an answer",
            "# skeleton = [[0, 1], [0, 2]] # labels whose points are joined in pictures",
        ]
    if task == "classification":
        return ["top_k = 5 # labels in an answer; callers may ask for another number"]
    return []
