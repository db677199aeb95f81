"""The steps of ``split``: open, find cuts, build, prove, write."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from ..backbones.export import file_sha256
from ..errors import InputError, at
from ..geometry import Input
from ..taskheads.spec import read_manifest
from . import build, common, forms, graph as graphs, labels, prove
from .command import fixed, postprocess, size_of
from .cuts import Cut, Finder, stages, suggest
from .freeze import example, freeze
from .graph import Graph, Image


@dataclass
class Model:
    """One opened model, frozen at a size."""

    path: Path
    graph: Graph
    image: Image
    size: tuple[int, int]
    finder: Finder
    done: list[str]
    fixed: dict[str, np.ndarray]
    types: dict[str, str]


def open_model(path: Path, arguments: argparse.Namespace) -> Model:
    constants = fixed(arguments.fix)
    graph = graphs.load(path, constants)
    if arguments.outputs:
        _choose(graph, arguments.outputs.split(","))
    image = graphs.picture(graph, arguments.layout)
    size = size_of(arguments.size) or (image.height, image.width)
    if None in size:
        raise at(path, f"input {image.name!r} has an open height or width; give --size, the pixels it was trained at")
    done = freeze(graph, image, size)
    shapes = graphs.shapes(graph, example(image, 1, size))
    run = graphs.session(graph.model, plain=True)
    types = {o.name: o.type for o in run.get_outputs()}
    return Model(path, graph, image, size, Finder(graph, image, size, shapes), done, constants, types)


def _choose(graph: Graph, names: list[str]) -> None:
    for name in names:
        if name not in graph.producer:
            raise at(graph.source, f"--outputs {name}: there is no such tensor; it gives {', '.join(graph.outputs)}")
    known = {o.name: o for o in graph.model.graph.output}
    del graph.model.graph.output[:]
    for name in names:
        graph.model.graph.output.add().CopyFrom(known.get(name) or _bare(name))
    graph.index()
    graph.prune()


def _bare(name: str):
    return onnx.ValueInfoProto(name=name)


# === showing ===


def describe(model: Model, everything: bool) -> str:
    """The table of cuts, for people."""
    finder, cuts = model.finder, model.finder.all()
    height, width = model.size
    lines = [
        f"{model.path.name}: {len(model.graph.nodes)} nodes, input {model.image.name!r} {model.image.layout} "
        f"{height}x{width}, {finder.total / 1e9:.2f} G multiply-adds",
        *(f"  {text}" for text in model.done),
    ]
    if not cuts:
        return "\n".join([*lines, "  no cut separates: no feature map on which all that follows depends"])
    best, shown = suggest(cuts), cuts if everything else stages(cuts)
    lines.append(f"{'':2}{'before':>8}{'after':>8}{'KB':>8}  strides (channels), and the tensors to name with --cut")
    for cut in shown:
        strides = " ".join(f"{m.stride} ({m.channels})" for m in cut.maps)
        size = sum(m.values for m in cut.maps) * 4 / 1024
        mark = "*" if cut is best else " "
        kind = "one tensor that dominates the rest" if cut.dominates else f"{len(cut.maps)} maps"
        lines.append(f"{mark:2}{100 * cut.before:>7.1f}%{100 * (1 - cut.before):>7.1f}%{size:>8.0f}  {strides}: {kind}")
        lines.append(f"{'':28}{','.join(cut.tensors)}")
    if best not in shown:
        lines.append(f"* suggested: {','.join(best.tensors)}")
    return "\n".join(lines)


# === writing ===


def write(models: list[Model], arguments: argparse.Namespace) -> None:
    """Builds, proves and writes one backbone and a head for each model."""
    first = models[0]
    for other in models[1:]:
        if other.size != first.size or other.image.layout != first.image.layout or other.image.element != first.image.element:
            raise at(other.path, f"takes {other.size} {other.image.layout}, {first.path.name} {first.size} {first.image.layout}; one backbone has one input")
    how = _normalization(first, arguments)
    cuts = choose(models, arguments)
    names, all_forms, all_labels = _heads(models, arguments)
    features = build.features(cuts[0].maps, first.size)
    with tempfile.TemporaryDirectory(prefix="frostline-split-") as folder:
        trunk = build.backbone(first.graph, first.image, how, features)
        build.write_model(trunk, Path(folder) / "backbone.onnx")
        session = graphs.session(Path(folder) / "backbone.onnx")
        pictures = prove.given(arguments.pictures, first.size)
        halves, proofs, read = [], [], []
        for model, cut, name, form in zip(models, cuts, names, all_forms):
            mine = common.read(model.finder, cut)
            own = [f for f in build.features(cut.maps, model.size) if f.map in mine]
            read.append(own)
            raw = build.head(model.graph, own, trunk)
            proof = _prove(model, how, session, raw, pictures, arguments, name)
            proofs.append(proof)
            forms.append(form, model.graph, model.size, arguments.threshold, arguments.normalized_boxes)
            file = Path(folder) / name / "head.onnx"
            build.write_model(build.head(model.graph, own, trunk), file)
            halves.append(prove.Halves(session, graphs.session(file)))
            _finish(model, how, halves[-1], pictures, name, arguments)
        full = build.whole(first.graph, first.image, how)
        times = prove.measure(full, session, halves, pictures[0])
        print(prove.savings(times))
        _place(models, arguments, Path(folder), trunk, features, names, all_forms, all_labels, read, proofs, cuts)


def choose(models: list[Model], arguments: argparse.Namespace) -> list[Cut]:
    """The cut of each model."""
    wanted = [t for t in arguments.cut.split(",") if t] if arguments.cut else None
    if len(models) > 1:
        cuts = common.shared([m.finder for m in models], wanted)
        print(f"\ncommon to all: {100 * cuts[0].before:.1f}% of {models[0].path.name}, cut at {','.join(cuts[0].tensors)}")
        return cuts
    if wanted:
        cuts = [models[0].finder.at(wanted)]
    elif (best := suggest(models[0].finder.all())) is not None:
        cuts = [best]
    else:
        raise at(models[0].path, "no cut separates: there is no feature map on which all that follows depends; name tensors with --cut")
    print(f"\ncut at {','.join(cuts[0].tensors)}")
    return cuts


def _normalization(model: Model, arguments: argparse.Namespace) -> build.Normalization:
    if arguments.normalize is None and model.image.element != TensorProto.UINT8:
        known = ", ".join(build.NORMALIZATIONS)
        raise at(model.path, f"input {model.image.name!r} is float: say what it wants of pixels with --normalize ({known}, or six numbers)")
    return build.normalization(arguments.normalize or "none", arguments.bgr)


def _heads(models: list[Model], arguments: argparse.Namespace):
    """Names, forms and labels of the heads."""
    names = list(arguments.name) or [re.sub(r"[^A-Za-z0-9._-]+", "-", m.path.stem).strip("-._")[:64] for m in models]
    if len(names) != len(models) or len(set(names)) != len(names):
        raise InputError(f"--name: {len(models)} models need as many different names, not {', '.join(names)}")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise InputError(f"--name {name!r}: must be 1 to 64 letters, digits, '-', '_' or '.'")
    files = arguments.labels * len(models) if len(arguments.labels) == 1 else arguments.labels
    if files and len(files) != len(models):
        raise InputError(f"--labels: give one for all {len(models)} models or one for each, not {len(files)}")
    found_forms, found_labels = [], []
    for i, model in enumerate(models):
        given = None if not files or files[i] == "numbers" else labels.read(Path(files[i]))
        form = forms.recognize(
            model.graph, {n: model.finder.shapes[n] for n in model.graph.outputs}, model.types, model.size,
            arguments.form, None if given is None else len(given),
        )  # fmt: skip
        print(f"{model.path.name}: outputs are of the form {form.name} ({form.task})")
        if form.classes and not files:
            raise at(model.path, f"a head for {form.task} names its {form.classes if form.classes > 0 else ''} labels: give --labels FILE (or 'numbers')".replace("  ", " "))
        if given is None and form.classes:
            if form.classes < 0:
                raise at(model.path, f"tensor {next(iter(form.inputs.values()))!r} does not tell how many labels there are; give --labels FILE")
            given = [str(k) for k in range(form.classes)]
        said = form.postprocess | postprocess(arguments, form.task)
        form.postprocess = {k: v for k, v in said.items() if v is not None}
        found_forms.append(form)
        found_labels.append(labels.fit(files[i], given, form, model.path) if form.classes else [])
    return names, found_forms, found_labels


def _prove(model: Model, how, backbone: ort.InferenceSession, raw, pictures: np.ndarray, arguments, name: str):
    """The halves' raw outputs beside those of the file as it came."""
    outputs = model.graph.outputs
    source = graphs.load(model.path, model.fixed)
    if arguments.outputs:
        _choose(source, arguments.outputs.split(","))
    original = graphs.session(source.model)
    feed = original.get_inputs()[0].name
    halves = prove.Halves(backbone, graphs.session(raw))
    found = prove.compare(
        lambda x: original.run(outputs, {feed: how.apply(x, model.image)}), halves, outputs, pictures
    )
    drawn = 4
    print(f"{name}: the halves beside {model.path.name} on {drawn} random and {len(pictures) - drawn} given pictures")
    for o in found:
        print(f"  {o.name}: " + ("bit for bit" if o.exact else f"within {o.max_abs:.2g} (largest value {o.scale:.3g})"))
    if (missed := prove.misses(found, halves)) and not arguments.force:
        raise at(model.path, f"the halves do not give what the whole gives: {'; '.join(missed)} (--force writes them all the same)")
    return found


def _finish(model: Model, how, halves: prove.Halves, pictures: np.ndarray, name: str, arguments) -> None:
    """The finished halves beside the finished whole, and in a batch."""
    full = graphs.session(build.whole(model.graph, model.image, how))
    outputs = halves.outputs
    found = prove.compare(lambda x: full.run(outputs, {build.IMAGE: x}), halves, outputs, pictures)
    missed = prove.misses(found, halves) + prove.batch_misses(halves, pictures)
    if missed and not arguments.force:
        raise at(model.path, f"head {name} does not give what the whole gives: {'; '.join(missed)} (--force writes it all the same)")


def _place(models, arguments, folder, trunk, features, names, all_forms, all_labels, read, proofs, cuts) -> None:
    out, first = arguments.out, models[0]
    sha = file_sha256(folder / "backbone.onnx")
    _check_place(out, sha, names)
    origin = ", ".join(f"{m.path.name} ({file_sha256(m.path)[:12]})" for m in models)
    producer = " ".join(v for v in (first.graph.model.producer_name, first.graph.model.producer_version) if v)
    about = {
        "name": arguments.backbone_name or f"{names[0]}-trunk", "version": arguments.version,
        "architecture": f"ONNX graph{' of ' + producer if producer else ''}, cut at {', '.join(cuts[0].tensors)}",
        "checkpoint": origin, "licence": arguments.licence, "size": first.size,
        "input": Input(*reversed(first.size), arguments.resize, arguments.filter, arguments.pad, arguments.crop_fraction),
        "metrics": {"share_of_work": cuts[0].before},
    }  # fmt: skip
    table = build.backbone_manifest(folder / "backbone.onnx", trunk, features, about)
    for file in sorted(folder.glob("backbone.onnx*"), reverse=True):
        _move(file, out / file.name)
    build.write_table(out / "backbone.toml", table)
    for i, (model, name) in enumerate(zip(models, names)):
        facts = {f"split_{re.sub(r'[^A-Za-z0-9_-]', '_', o.name)}_max_abs": o.max_abs for o in proofs[i]}
        mine = {
            "version": arguments.version, "backbone": sha, "size": model.size, "postprocess": {},
            "checkpoint": f"{model.path.name} ({file_sha256(model.path)[:12]})",
            "recipe": f"frostline-models split: outputs of the form {all_forms[i].name}", "metrics": facts,
        }  # fmt: skip
        target = out / "heads" / name
        head = build.head_manifest(folder / name / "head.onnx", name, all_forms[i], all_labels[i], read[i], mine)
        for file in sorted((folder / name).glob("head.onnx*"), reverse=True):
            _move(file, target / file.name)
        build.write_table(target / "head.toml", head)
    print(f"wrote {out / 'backbone.toml'} and heads/{', heads/'.join(names)}; next: frostline check {out}")


def _check_place(out: Path, sha: str, names: list[str]) -> None:
    """Heads that are there already must be of the same backbone."""
    if not (out / "backbone.toml").exists() or read_manifest(out / "backbone.toml")["sha256"] == sha:
        return
    others = sorted(p.parent.name for p in (out / "heads").glob("*/head.toml") if p.parent.name not in names)
    if others:
        raise at(out, f"holds another backbone, to which {', '.join(others)} belong; give another folder to --out")


def _move(file: Path, target: Path) -> None:
    """Across file systems, and never half there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(file, partial)
    partial.rename(target)
