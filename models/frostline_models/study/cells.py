"""One backbone of the study: pretrain, export, cache features, then every head.

Each finished cell is a JSON file, so that a study which was stopped goes on with the next;
within a cell the training loop resumes from its last checkpoint.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import export as common
from ..backbones import export as backbones
from ..labels import FRAMES
from ..measure import metrics, served
from ..geometry import Input, placement
from ..taskheads import registry
from ..training import frozen, loop
from ..training.cache import Extractor, FeatureCache
from ..training.samples import Samples
from . import data, pretrain
from .plan import HEADS, PIXELS, Cell, Plan, Unit, cells

EVALUATION_BATCH = 16
CACHE_BYTES = 4 << 30


def run(unit: Unit, plan: Plan, work: Path) -> None:
    """Everything of one backbone that is not done yet."""
    torch.set_num_threads(1)
    done = work / "cells"
    waiting = [c for c in cells(unit) if not (done / f"{c.name}.json").exists()]
    if not waiting:
        return
    started = time.process_time()
    folder = work / "backbones" / unit.name
    body, images = _pretrained(unit, plan, work, folder)
    bench = Bench(unit, plan, work, folder, body)
    for cell in waiting:
        began = time.process_time()
        value, parameters, steps = bench.fine_tuned(cell) if cell.tuned else bench.frozen(cell)
        record = {
            "pretraining": cell.pretraining, "size": cell.size, "task": cell.task,
            "capacity": cell.capacity, "setting": "fine-tuned" if cell.tuned else "frozen",
            "metrics": value, "head_parameters": parameters, "steps": steps,
            "backbone_parameters": sum(p.numel() for p in body.parameters()),
            "pretraining_images": images, "cpu_seconds": round(time.process_time() - began, 1),
        }  # fmt: skip
        common.write(done / f"{cell.name}.json", json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder / cell.name, ignore_errors=True)
        print(f"{cell.name}: {value}", flush=True)
    shutil.rmtree(folder / "features", ignore_errors=True)
    spent = time.process_time() - started
    print(f"{unit.name}: {spent:.0f} s of processor time with its pretraining", flush=True)


def _pretrained(unit: Unit, plan: Plan, work: Path, folder: Path):
    dataset = data.StudyScenes(data.files(work / "data", plan)["pretrain"][0])
    body, images = pretrain.run(unit, plan, dataset, folder / "pretrain")
    body.eval()
    if not (folder / "repository" / "backbone.toml").exists():
        made = pretrain.for_export(copy.deepcopy(body), unit, plan.seed)
        backbones.export(made, folder / "repository", backbones.Options(), say=lambda _: None)
    return body, images


class Bench:
    """The data of the three tasks, seen by one backbone."""

    def __init__(self, unit: Unit, plan: Plan, work: Path, folder: Path, body: nn.Module):
        self.unit, self.plan, self.folder, self.body = unit, plan, folder, body
        self.files = {k: v[0] for k, v in data.files(work / "data", plan).items()}
        self.caches: dict[tuple[str, bool], FeatureCache] = {}

    def dataset(self, task: str, heldout: bool):
        prefix = "heldout-" if heldout else ""
        if task == "action":
            return data.StudyClips(self.files[f"{prefix}clips"])
        return data.StudyScenes(self.files[f"{prefix}scenes"], task)

    def samples(self, task: str, heldout: bool) -> Samples:
        dataset = self.dataset(task, heldout)
        spec = pretrain.spec(self.unit.size, len(dataset.labels), FRAMES if task == "action" else 1)
        return Samples(dataset, task, spec, 1 if heldout else 2, self.plan.seed)

    def cache(self, samples: Samples, heldout: bool) -> FeatureCache:
        """Features from ``backbone.onnx``; detection and segmentation share them."""
        key = ("clips" if samples.task == "action" else "scenes", heldout)
        if key not in self.caches:
            extractor = Extractor(
                self.folder / "repository", samples.spec.features, "CPUExecutionProvider", threads=1
            )
            self.caches[key] = FeatureCache(
                self.folder / "features", extractor, samples.spec, len(samples),
                samples.fingerprint(), samples.pixels, CACHE_BYTES, batch=16, threads=1,
            )  # fmt: skip
        return self.caches[key]

    def head(self, cell: Cell, samples: Samples) -> nn.Module:
        form, options = HEADS[cell.task][cell.capacity]
        torch.manual_seed(self.plan.seed)
        return registry.build(cell.task, form, samples.spec, dict(options))

    def steps(self, cell: Cell) -> loop.Plan:
        p = self.plan
        steps, batch, lr = {
            "detection": (p.detection_steps, p.detection_batch, p.detection_lr),
            "segmentation": (p.head_steps, p.batch, p.head_lr),
            "action": (p.head_steps, p.clip_batch, p.head_lr),
        }[cell.task]  # fmt: skip
        return loop.Plan(steps=steps, batch=batch, lr=lr, seed=p.seed, log_every=20)

    def frozen(self, cell: Cell) -> tuple[dict, int, int]:
        """The head's metrics, parameters and steps; PyTorch does not run the backbone."""
        samples = self.samples(cell.task, False)
        head = self.head(cell, samples)
        plan, cache = self.steps(cell), self.cache(samples, False)
        head.load_state_dict(
            frozen.train_head(head, samples, cache, plan, self.folder / cell.name)
        )
        held = self.samples(cell.task, True)
        kept = self.cache(held, True)
        chunks = (
            [torch.from_numpy(m).float() for m in kept.read(rows)] for rows in _chunks(len(held))
        )
        return score(head, held, chunks), parameters(head), plan.steps

    def fine_tuned(self, cell: Cell) -> tuple[dict, int, int]:
        """The same head and data with a copy of the backbone that moves too."""
        samples = self.samples(cell.task, False)
        head, body = self.head(cell, samples), copy.deepcopy(self.body)
        plan, names = self.steps(cell), list(samples.spec.features)
        scratch = self.unit.pretraining == "none"
        rate = self.plan.scratch_rate if scratch else self.plan.tuned_rate
        tuned, weights = frozen.fine_tune(
            body, names, head, samples, plan, self.folder / cell.name, backbone_rate=rate
        )
        body.load_state_dict(tuned)
        head.load_state_dict(weights)
        held = self.samples(cell.task, True)
        whole = frozen.Whole(body.eval(), names, head)
        chunks = (
            whole.maps(torch.from_numpy(np.stack([held.pixels(r) for r in rows])))
            for rows in _chunks(len(held))
        )
        return score(head, held, chunks), parameters(head), plan.steps


def parameters(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


def _chunks(count: int) -> Iterator[list[int]]:
    for start in range(0, count, EVALUATION_BATCH):
        yield list(range(start, min(start + EVALUATION_BATCH, count)))


@torch.no_grad()
def score(head: nn.Module, held: Samples, chunks: Iterator[list[Tensor]]) -> dict[str, float]:
    """Metrics on held-out samples, with the served postprocessing."""
    head.eval()
    where, found = placement(PIXELS, PIXELS, Input(PIXELS, PIXELS)), []
    post = registry.postprocess(head) | {"score_threshold": metrics.LOW_SCORE}
    for maps in chunks:
        out = head.serve(maps)
        if held.task == "detection":
            names = dict(zip(head.outputs, (v.numpy() for v in out)))
            for i in range(len(out[0])):
                row = {k: v[i] for k, v in names.items()}
                found.append(served.detections(row, where, post)[: metrics.MOST])
        elif held.task == "segmentation":
            found += [served.label_map(row, where) for row in out.numpy()]
        else:
            found += list(served.probabilities(out.numpy()))
    scored = {
        "detection": metrics.score_detection, "segmentation": metrics.score_segmentation,
        "action": metrics.score_action,
    }[held.task]  # fmt: skip
    return {k: round(v, 4) for k, v in scored(found, held.dataset).metrics.items()}
