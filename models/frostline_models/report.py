"""METRICS.md and metrics.json of the demo, from measured numbers only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from . import export
from .evaluate import Server
from .labels import FRAMES
from .repository import SIZE

#: Metric, its name for people, head, and the demo's aim (None: no aim was set).
ROWS = (
    ("box_map50", "box mAP50", "objects", 0.85),
    ("box_map", "box mAP50:95", "objects", None),
    ("mask_map50", "mask mAP50", "objects", 0.80),
    ("mask_map", "mask mAP50:95", "objects", None),
    ("miou", "mIoU", "scene", 0.75),
    ("pixel_accuracy", "pixel accuracy", "scene", None),
    ("top1", "top-1", "motion", 0.95),
)


def median_ms(run: Callable[[], object], repeats: int = 30) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def speed(out: Path) -> dict[str, dict[str, float]]:
    """Milliseconds on one thread at batch 1 and 8 (clips count as one), and load times."""
    start = time.perf_counter()
    backbone = export.session(out / "backbone.onnx")
    result = {"backbone": {"load_ms": round((time.perf_counter() - start) * 1e3, 1)}}
    rng = np.random.default_rng(0)
    for batch in (1, 8):
        image = rng.integers(0, 256, (batch, SIZE, SIZE, 3)).astype(np.uint8)
        took = median_ms(lambda: backbone.run(None, {"image": image}))
        result["backbone"][f"batch_{batch}_ms"] = round(took, 2)
    for path in sorted((out / "heads").glob("*/head.onnx")):
        start = time.perf_counter()
        head = export.session(path)
        entry = {"load_ms": round((time.perf_counter() - start) * 1e3, 1)}
        server = Server(backbone, head)
        clip = len(head.get_inputs()[0].shape) == 5
        for batch in (1, 8):
            lead = (batch, FRAMES) if clip else (batch,)
            image = rng.integers(0, 256, (*lead, SIZE, SIZE, 3)).astype(np.uint8)
            feeds = _features(server, image)
            entry[f"batch_{batch}_ms"] = round(median_ms(lambda: head.run(None, feeds)), 2)
        result[path.parent.name] = entry
    return result


def _features(server: Server, images: np.ndarray) -> dict[str, np.ndarray]:
    maps = server.backbone.run(server.features, {"image": images.reshape(-1, *images.shape[-3:])})
    if images.ndim == 5:
        maps = [m.reshape(*images.shape[:2], *m.shape[1:]) for m in maps]
    return dict(zip(server.features, maps))


def sizes(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*.onnx"))}


def write(out: Path, record: dict) -> None:
    export.write(out / "metrics.json", json.dumps(record, indent=1) + "\n")
    export.write(out / "METRICS.md", markdown(record))


def markdown(record: dict) -> str:
    settings, training = record["settings"], record["training"]
    backbone = record["backbone"]
    lines = [
        "# The demo models, measured",
        "",
        f"Written by `{record['command']}`; the same numbers are in `metrics.json`.",
        "",
        f"Held-out data: {settings['heldout_scenes']} scenes and {settings['heldout_clips']} clips"
        " from other seeds, other background palettes and other texture scales than training."
        " Predictions come from the exported graphs through ONNX Runtime and the served"
        " postprocessing, at 128 x 128 letterboxed input; box and mask AP by pycocotools"
        " (maxDets 100), mIoU over all classes with intersections and unions summed over the set.",
        "",
        "| metric | frozen backbone | fine-tuned | aim |",
        "|---|---|---|---|",
    ]
    for key, title, head, aim in ROWS:
        values = (record[kind].get(head, {}).get(key) for kind in ("frozen", "fine_tuned"))
        cells = ["not measured" if v is None else f"{v:.3f}" for v in values]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {aim or ''} |")
    lines += [
        "",
        "*Frozen*: one backbone for all three heads, which read the features that"
        " `backbone.onnx` gives. *Fine-tuned*: for each head a copy of the backbone trained"
        " further together with it; those weights are not published. Fine-tuning starts from the frozen"
        " result. For `objects` and `scene` that is the end of the joint pretraining on the same"
        " images and losses, and few steps follow: where the two columns differ by under a"
        " thousandth, the second is no independent ceiling.",
        "",
        "## Training",
        "",
        f"Backbone: SwinV2, {backbone['parameters'] / 1e6:.2f} M parameters, pretrained on"
        f" {settings['scenes']} scenes by detection, masks and segmentation together, then frozen.",
        "",
        "| stage | minutes | steps | images or clips seen |",
        "|---|---|---|---|",
    ]
    for stage, entry in training.items():
        note = "" if entry["finished"] else " (still training)"
        lines.append(
            f"| {stage}{note} | {entry['minutes']} | {entry['steps']} | {entry['samples']} |"
        )
    lines += ["", "How each head began:", ""]
    for name, entry in record["heads"].items():
        lines.append(f"- {name} ({entry['parameters'] / 1e3:.0f} k parameters): {entry['start']}")
    lines += [
        "",
        "## Speed and size",
        "",
        f"ONNX Runtime {ort.__version__}, one CPU thread, on the machine that trained"
        " (which may have been busy); the motion head takes clips of 8 frames.",
        "",
        "| graph | load, ms | batch 1, ms | batch 8, ms | bytes |",
        "|---|---|---|---|---|",
    ]
    for name, entry in record["speed"].items():
        file = "backbone.onnx" if name == "backbone" else f"heads/{name}/head.onnx"
        lines.append(
            f"| {name} | {entry['load_ms']} | {entry['batch_1_ms']} | {entry['batch_8_ms']} "
            f"| {record['files'][file]} |"
        )
    return "\n".join(lines) + "\n"
