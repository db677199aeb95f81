"""A loaded backbone to ``backbone.onnx`` and ``backbone.toml``, checked against PyTorch.

Steps: trace at batch 2 with a dynamic batch; tidy the graph; convert the precision; compare
every level with PyTorch on held-out pictures; only then put the files in place.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from .. import export as common
from .. import geometry
from ..errors import InputError
from ..swinv2 import SwinV2
from ..split import freeze as settle
from ..split.graph import Graph, Image
from . import graph, parity, precision
from .sources import Backbone, cells

OPSET = 20
#: protobuf's limit, less room for the graph itself.
EMBED_LIMIT = (2 << 30) - (64 << 20)
PARITY_IMAGES = 2
LEAST_STRIDE = 4


@dataclass(frozen=True)
class Options:
    """How to export."""

    precision: str = "fp32"
    attention: str = "matmul"
    resize: str = "letterbox"
    filter: str = "bilinear"
    pad: int = geometry.PAD
    crop_fraction: float = 1.0
    licence: str = "unknown"
    version: str = "1"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    percentile: float | None = None
    #: Weights beyond this many bytes go to ``backbone.onnx.data``.
    embed_limit: int = EMBED_LIMIT
    #: Writes the files even when parity misses its gate.
    force: bool = False
    #: Names of the maps to give out; unset: those of stride 4 and more, finer ones no head here reads.
    features: tuple[str, ...] | None = None

    def input(self, size: int) -> geometry.Input:
        """How images are fitted to an input of that side."""
        try:
            return geometry.Input(size, size, self.resize, self.filter, self.pad, self.crop_fraction)
        except InputError as error:
            raise InputError(f"--{str(error).replace('_', '-', 1) if 'crop_fraction' in str(error) else error}") from None


class _Maps(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, image):
        return tuple(self.module(image))


def export(
    backbone: Backbone, out: Path, options: Options, calibration: np.ndarray | None = None,
    say: Callable[[str], None] = print,
) -> list[parity.Level]:  # fmt: skip
    """Writes the backbone into the model repository ``out``; returns its parity per level.

    ``calibration`` is uint8 ``[N, size, size, 3]``, needed by int8.  The backbone's module
    is rewritten in place.
    """
    _check(options, calibration)
    kept = chosen(backbone, options.features)
    out.mkdir(parents=True, exist_ok=True)
    images = parity.pictures(PARITY_IMAGES, backbone.size, seed=1)
    every = parity.features(backbone.module, images)
    names, wanted = [backbone.names()[i] for i in kept], [every[i] for i in kept]
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        plain, final = Path(folder) / "fp32.onnx", Path(folder) / "backbone.onnx"
        say(f"tracing {backbone.architecture} at {backbone.size}x{backbone.size}")
        if isinstance(backbone.module, SwinV2):
            graph.prepare(backbone.module, options.attention)
        trace(backbone, plain, options)
        if options.precision != "fp32":
            say(f"converting to {options.precision}")
        convert(plain, final, options, calibration)
        if problem := precision.takes(options.provider, str(final)):
            raise InputError(
                f"--precision {options.precision}: {options.provider} does not take it: {problem}"
            )
        session = open_session(final, options)
        levels = parity.compare(names, wanted, session, images)
        del session
        say(parity.table(levels))
        missed = parity.failures(levels, options.precision)
        if missed and not options.force:
            raise InputError(
                f"the exported graph does not agree with PyTorch at {options.precision}: "
                f"{'; '.join(missed)} (--force writes it all the same)"
            )
        table = manifest(backbone, final, options, levels)
        for file in sorted(Path(folder).glob("backbone.onnx*"), reverse=True):
            file.replace(out / file.name)  # the data before the graph that names it
        common.write(out / "backbone.toml", common.manifest(table))
    return levels


def _check(options: Options, calibration: np.ndarray | None) -> None:
    for name, value, known in (
        ("--precision", options.precision, precision.PRECISIONS),
        ("--attention", options.attention, graph.FORMS),
    ):
        if value not in known:
            raise InputError(f"{name} {value!r}: must be one of {', '.join(known)}")
    options.input(1)
    if options.precision == "int8" and (calibration is None or not len(calibration)):
        raise InputError("--precision int8: needs calibration images (--calibration FOLDER)")
    if options.provider not in ort.get_available_providers():
        have = ", ".join(ort.get_available_providers())
        raise InputError(f"--provider {options.provider}: not in this ONNX Runtime, which has {have}")


def chosen(backbone: Backbone, features: tuple[str, ...] | None) -> list[int]:
    """Places of the maps to give out."""
    names = backbone.names()
    if features is None:
        return [i for i, s in enumerate(backbone.strides) if s >= LEAST_STRIDE] or list(range(len(names)))
    for name in features:
        if name not in names:
            raise InputError(f"--features: there is no {name!r}; the backbone has {', '.join(names)}")
    if not features:
        raise InputError(f"--features: names no map; the backbone has {', '.join(names)}")
    return [i for i, name in enumerate(names) if name in features]


def open_session(path: Path, options: Options) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    return ort.InferenceSession(str(path), settings, providers=[options.provider])


def trace(backbone: Backbone, path: Path, options: Options) -> None:
    """The fp32 graph of the module, with external data where it is large."""
    size = backbone.size
    example = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    names = backbone.names()
    domain = {graph.FUSED_DOMAIN: 1} if options.attention != "matmul" else None
    module = _Maps(backbone.module).eval()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = Path(folder) / "raw.onnx"
        with torch.no_grad():
            torch.onnx.export(
                module, (example,), str(raw), dynamo=False, opset_version=OPSET,
                input_names=["image"], output_names=names, custom_opsets=domain,
                dynamic_axes={name: {0: "batch"} for name in ["image", *names]},
            )  # fmt: skip
        model = onnx.load(raw)
    kept = chosen(backbone, options.features)
    outputs = [model.graph.output[i] for i in kept]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    if not isinstance(backbone.module, SwinV2):
        settled(model, size)
    finish(model, backbone, kept)
    save(model, path, options.embed_limit)


def settled(model: onnx.ModelProto, size: int) -> None:
    """Works out what follows from the input's size now rather than at each run (shapes, timm's "SAME"
    padding), and leaves out what no output needs."""
    made = Graph(model, Path("backbone.onnx"))
    made.prune()
    if model.ByteSize() < EMBED_LIMIT and any(n.op_type in ("Shape", "Size") for n in made.nodes):
        settle.freeze(made, Image("image", onnx.TensorProto.UINT8, "NHWC", 0, size, size), (size, size))
    merge_pads(made)


def merge_pads(made: Graph) -> None:
    """Zeros that a Pad puts around a convolution's input become the convolution's own."""
    constants = {n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in made.nodes if n.op_type == "Constant" and n.attribute[0].name == "value"}
    constants |= {k: onnx.numpy_helper.to_array(w) for k, w in made.weights.items()}
    for node in made.nodes:
        pad = made.make(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.op_type != "Pad" or pad.output[0] in made.outputs or len(made.readers[pad.output[0]]) > 1:
            continue
        attributes = {a.name: a for a in node.attribute}
        automatic = attributes.get("auto_pad")
        mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
        sides = constants.get(pad.input[1]) if len(pad.input) > 1 else None
        value = constants.get(pad.input[2], 1) if len(pad.input) > 2 and pad.input[2] else 0
        if mode != b"constant" or sides is None or len(pad.input) > 3 or np.any(value) or (automatic and automatic.s not in (b"", b"NOTSET")):
            continue
        axes = len(sides) // 2
        outer = [*sides[:2], *sides[axes : axes + 2]]  # of the batch and the channels
        if any(outer) or (sides < 0).any():
            continue
        own = list(attributes["pads"].ints) if "pads" in attributes else [0] * 2 * (axes - 2)
        added = [a + int(b) for a, b in zip(own, [*sides[2:axes], *sides[axes + 2 :]])]
        if "pads" in attributes:
            node.attribute.remove(attributes["pads"])
        node.attribute.append(onnx.helper.make_attribute("pads", added))
        node.input[0] = pad.input[0]
    made.index()
    made.prune()


def finish(model: onnx.ModelProto, backbone: Backbone, kept: list[int] | None = None) -> None:
    """Names every node and output shape; brings the fused operator to its own domain."""
    model.producer_name, model.producer_version = "frostline-models", "1"
    fused: dict[str, int] = {}  # domain -> least version
    for i, node in enumerate(model.graph.node):
        if node.domain == graph.FUSED_DOMAIN:
            node.domain = graph.DOMAINS[node.op_type]
            fused[node.domain] = graph.VERSIONS[node.op_type]
            if node.domain:
                # Nobody infers types through another's operator.
                info = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
                model.graph.value_info.append(info)
        node.name = node.name or f"{node.op_type}_{i}"
    own = {o.domain: o.version for o in model.opset_import if o.domain != graph.FUSED_DOMAIN}
    del model.opset_import[:]
    model.opset_import.extend(
        onnx.helper.make_opsetid(domain, version) for domain, version in (own | fused).items()
    )
    for value, i in zip(model.graph.output, kept or range(len(backbone.strides))):
        side = cells(backbone.size, backbone.strides[i])
        wanted = ["batch", backbone.channels[i], side, side]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, wanted))


def save(model: onnx.ModelProto, path: Path, embed_limit: int = EMBED_LIMIT) -> None:
    """One file, or one file and ``<name>.data``.

    The manifest's hash is of the graph file, so the data's own hash is written into it:
    other weights make another fingerprint.
    """
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    if model.ByteSize() <= embed_limit:
        onnx.save(model, path)
        onnx.checker.check_model(str(path), full_check=True)
        return
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True,
        location=data.name, size_threshold=1024,
    )  # fmt: skip
    onnx.checker.check_model(str(path))
    seal(path)


def seal(path: Path) -> None:
    """Writes the SHA-256 of a graph's external data into the graph."""
    data = path.with_name(path.name + ".data")
    if not data.exists():
        return
    model = onnx.load(path, load_external_data=False)
    kept = [p for p in model.metadata_props if p.key != "data_sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key, entry.value = "data_sha256", file_sha256(data)
    onnx.save(model, path)


def convert(plain: Path, final: Path, options: Options, calibration: np.ndarray | None) -> None:
    """``plain`` at the wanted precision, as ``final``."""
    if options.precision == "fp32":
        plain_data = plain.with_name(plain.name + ".data")
        if plain_data.exists():
            # The graph names its data: renaming both means writing the graph again.
            save(onnx.load(plain), final, options.embed_limit)
            plain_data.unlink()
        else:
            shutil.move(plain, final)
        return
    if options.precision == "int8":
        size = plain.stat().st_size + sum(
            p.stat().st_size for p in plain.parent.glob(plain.name + ".data")
        )
        external = size > options.embed_limit
        precision.to_int8(plain, final, calibration, options.percentile, external)
        seal(final)
        return
    model = onnx.load(plain)
    model = precision.to_fp16(model) if options.precision == "fp16" else precision.to_bf16(model)
    if model.ByteSize() <= options.embed_limit:
        onnx.save(model, final)
    else:
        save(model, final, options.embed_limit)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(backbone: Backbone, file: Path, options: Options, levels: list[parity.Level]) -> dict:
    """``backbone.toml`` as a table; ``metrics`` holds the parity with PyTorch."""
    return {
        "name": backbone.name if options.precision == "fp32" else f"{backbone.name}-{options.precision}",
        "version": options.version,
        "file": "backbone.onnx",
        "sha256": file_sha256(file),
        "precision": options.precision,
        "source": {
            "architecture": backbone.architecture,
            "checkpoint": backbone.weights,
            "licence": options.licence,
        },
        "input": {
            "name": "image",
            "sizes": [[backbone.size, backbone.size]],
            **options.input(backbone.size).manifest(),
        },
        "features": [
            {"name": f"stride{s}", "stride": s, "channels": c, "layout": "NCHW"}
            for s, c in ((backbone.strides[i], backbone.channels[i]) for i in chosen(backbone, options.features))
        ],
        "metrics": parity.metrics(levels),
    }
