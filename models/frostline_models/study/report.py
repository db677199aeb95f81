"""The study's numbers as JSON, a page with tables, and a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import export as common
from ..errors import InputError
from .plan import (
    CAPACITIES, HEADS, METRIC, METRIC_NAMES, PIXELS, PRETRAININGS, SIZES, TASKS, Plan, cells, units,
)  # fmt: skip

TITLES = {
    "none": "none (initial weights)", "masked": "masked images", "classification": "classification",
    "dense": "dense supervision",
}  # fmt: skip


#: A task whose best cell is below this many points has not been learnt: ten motions are guessed
#: right one time in ten, and a mean of precisions near nothing ranks nothing.
LEARNT = {"detection": 5.0, "segmentation": 5.0, "action": 20.0}


class Table:
    """Cells by their factors; values in points (0 to 100)."""

    def __init__(self, records: list[dict]):
        self.records = {
            (r["pretraining"], r["size"], r["task"], r["capacity"], r["setting"] == "fine-tuned"): r
            for r in records
        }

    def value(self, pretraining: str, size: str, task: str, capacity: str, tuned: bool = False):
        """The cell's metric, or ``None`` if it is not there."""
        record = self.records.get((pretraining, size, task, capacity, tuned))
        return None if record is None else 100 * record["metrics"][METRIC[task]]

    def gap(self, pretraining: str, size: str, task: str):
        """Points that fine-tuning is ahead of the frozen backbone, both with strong heads."""
        pair = [self.value(pretraining, size, task, "strong", t) for t in (True, False)]
        return None if None in pair else pair[0] - pair[1]

    def learnt(self) -> list[str]:
        """The tasks that say something."""
        best: dict[str, float] = {}
        for (_, _, task, _, _), record in self.records.items():
            best[task] = max(best.get(task, 0.0), 100 * record["metrics"][METRIC[task]])
        return [t for t in TASKS if best.get(t, 0.0) >= LEARNT[t]]

    def mean(self, values) -> float | None:
        there = [v for v in values if v is not None]
        return float(np.mean(there)) if there else None


def read(folder: Path) -> list[dict]:
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    if not records:
        raise InputError(f"{folder}: no cell is done yet")
    return records


def write(out: Path, plan: Plan, records: list[dict]) -> None:
    table = Table(records)
    findings = compare(table)
    wanted = sum(len(cells(u)) for u in units())
    document = {
        "plan": plan.to_dict(), "cells_done": len(records), "cells_planned": wanted,
        "backbones": {k: {"dim": d, "depths": p, "heads": h} for k, (d, p, h) in SIZES.items()},
        "heads": HEADS, "findings": [f.to_dict() for f in findings], "cells": records,
    }  # fmt: skip
    common.write(out / "study.json", json.dumps(document, indent=1) + "\n")
    common.write(out / "STUDY.md", page(plan, table, findings, wanted))
    plot(out / "study.png", table)


# === against the paper ===


@dataclass
class Finding:
    """One statement of the paper beside what was measured."""

    claim: str
    measured: str
    verdict: str  # agrees, mixed, does not agree, not measured

    def to_dict(self) -> dict:
        return self.__dict__


def _verdict(holds: list[bool]) -> str:
    if not holds:
        return "not measured"
    if all(holds):
        return "agrees"
    return "mixed" if any(holds) else "does not agree"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def compare(table: Table) -> list[Finding]:
    """The paper's findings in direction: each holds or not per task, on means over the rest."""
    return [_pretraining(table), _order(table), _capacity(table), _scale(table), _closeness(table)]


def _strong(table: Table, task: str, pretraining: str) -> float | None:
    """Mean over the sizes that every pretraining has, so that a stopped study compares like with like."""
    sizes = [s for s in SIZES if all(table.value(p, s, task, "strong") is not None for p in PRETRAININGS)]
    return table.mean(table.value(pretraining, s, task, "strong") for s in sizes)


def _pretraining(table: Table) -> Finding:
    holds, texts = [], []
    for task in table.learnt():
        a, b = (_strong(table, task, p) for p in ("classification", "masked"))
        if a is not None and b is not None:
            holds.append(a > b)
            texts.append(f"{task} {_show(a)} against {_show(b)}")
    return Finding(
        "Frozen, supervised pretraining does better than masked image modelling",
        "classification against masked images, strong heads, mean over sizes: " + ", ".join(texts),
        _verdict(holds),
    )


def _order(table: Table) -> Finding:
    holds, texts = [], []
    for task in table.learnt():
        values = {p: _strong(table, task, p) for p in PRETRAININGS}
        if None in values.values():
            continue
        best = max(values, key=values.get)
        holds.append(best == "classification")
        texts.append(f"{task}: " + ", ".join(f"{p} {_show(v)}" for p, v in values.items()))
    return Finding(
        "Of all pretrainings compared, supervised classification (ImageNet-22K) suits freezing best",
        "strong heads, mean over sizes; " + "; ".join(texts), _verdict(holds),
    )  # fmt: skip


def _capacity(table: Table) -> Finding:
    holds, texts = [], []
    for task in table.learnt():
        values = [
            table.mean(table.value(p, s, task, c) for p in PRETRAININGS if p != "none" for s in SIZES)
            for c in CAPACITIES
        ]
        if None in values:
            continue
        holds.append(values[0] < values[1] < values[2])
        texts.append(f"{task} " + " -> ".join(map(_show, values)))
    return Finding(
        "More parameters in the head help a frozen backbone",
        "linear -> light -> strong, mean over pretrained backbones: " + ", ".join(texts),
        _verdict(holds),
    )


def _whole(value) -> list[str]:
    """The supervised pretrainings for which ``value(pretraining, size)`` is there at every size."""
    return [p for p in ("classification", "dense") if all(value(p, s) is not None for s in SIZES)]


def _scale(table: Table) -> Finding:
    holds, texts, names = [], [], list(SIZES)
    for task in table.learnt():
        chosen = _whole(lambda p, s: table.value(p, s, task, "strong"))
        values = [table.mean(table.value(p, s, task, "strong") for p in chosen) for s in names]
        if None in values:
            continue
        holds.append(values[-1] > values[0])
        texts.append(f"{task} " + " -> ".join(map(_show, values)))
    return Finding(
        "Larger frozen backbones do better",
        f"{' -> '.join(names)}, supervised pretrainings, strong heads: " + ", ".join(texts),
        _verdict(holds),
    )


def _closeness(table: Table) -> Finding:
    holds, texts, names = [], [], list(SIZES)
    for task in table.learnt():
        chosen = _whole(lambda p, s: table.gap(p, s, task))
        values = [table.mean(table.gap(p, s, task) for p in chosen) for s in names]
        if None in values:
            continue
        holds.append(values[-1] < values[0])
        texts.append(f"{task} " + " -> ".join(map(_show, values)))
    return Finding(
        "The larger the backbone, the closer frozen comes to fine-tuned",
        f"points that fine-tuning is ahead, {' -> '.join(names)}, supervised pretrainings: "
        + ", ".join(texts),
        _verdict(holds),
    )


# === the page ===


def page(plan: Plan, table: Table, findings: list[Finding], wanted: int) -> str:
    done = len(table.records)
    lines = [
        "# The study: what a frozen backbone needs",
        "",
        f"Written by `frostline-models study --budget {plan.budget:g} --seed {plan.seed}`; the same "
        "numbers, each cell's cost and every setting are in `study.json`.",
        "",
        f"**Scale.** This is a small experiment on generated data: {PIXELS} x {PIXELS} pixels, "
        f"backbones of {_millions(table)} million parameters, {plan.pretrain_images} images of one "
        f"thing to pretrain on for {plan.pretrain_steps} steps of {plan.pretrain_batch}; then "
        f"{plan.scenes} scenes and {plan.clips} clips to train heads on for {plan.head_steps} steps "
        f"of {plan.batch} (detection: {plan.detection_steps} of {plan.detection_batch}; clips of "
        f"{plan.clip_batch}), one seed, "
        f"measured on {plan.heldout_scenes} held-out scenes and {plan.heldout_clips} held-out clips "
        "of other palettes and textures. "
        + (
            f"The budget was {plan.budget:g}; the default is 180: everything here is far from "
            "trained out, and a point or two between cells is noise. "
            if plan.budget < 180
            else ""
        )
        + "It shows directions, not the accuracy that any of this can reach.",
        "",
        "**What is compared.** The backbone is pretrained on one of four tasks over the same "
        "images (the names of things; boxes, masks and label maps; hidden pixels; nothing), "
        "exported to ONNX and frozen. Heads of three capacities are trained on the features that "
        "ONNX Runtime gives. *Fine-tuned* is the strong head on the same data for the same steps "
        "with the backbone moving too (at a quarter of the head's learning rate; without "
        "pretraining, at the full rate).",
        "",
    ]
    if missed := [t for t in TASKS if t not in table.learnt()]:
        lines += [
            f"**Not learnt at this budget: {', '.join(missed)}.** Their best cells are below "
            + ", ".join(f"{LEARNT[t]:g} points ({t})" for t in missed)
            + ", as good as guessing: their tables show no effect of anything, their gaps to "
            "fine-tuning are those between two untrained heads, and they are left out of the "
            "comparison with the paper.",
            "",
        ]
    if done < wanted:
        lines += [f"**{done} of {wanted} cells are done**; `-` marks those that are not.", ""]
    lines += ["![strong heads by pretraining and size, and head capacity](study.png)", ""]
    for task in TASKS:
        lines += _task(table, task)
    lines += ["## Beside the paper", ""]
    lines += ["| finding of the paper | here | |", "|---|---|---|"]
    lines += [f"| {f.claim} | {f.measured} | **{f.verdict}** |" for f in findings]
    lines += ["", *_closing(table), ""]
    return "\n".join(lines)


def _millions(table: Table) -> str:
    sizes = sorted({r["backbone_parameters"] for r in table.records.values()})
    return ", ".join(f"{s / 1e6:.2f}" for s in sizes)


def _task(table: Table, task: str) -> list[str]:
    lines = [f"## {task.capitalize()}: {METRIC_NAMES[task]}", ""]
    lines += [
        "| pretraining | backbone | linear | light | strong | strong, fine-tuned | frozen behind by |",
        "|---|---|---|---|---|---|---|",
    ]
    for pretraining in PRETRAININGS:
        for size in SIZES:
            values = [table.value(pretraining, size, task, c) for c in CAPACITIES]
            values += [table.value(pretraining, size, task, "strong", True), table.gap(pretraining, size, task)]
            shown = " | ".join(map(_show, values))
            lines.append(f"| {TITLES[pretraining]} | {size} | {shown} |")
    heads = []
    for capacity in CAPACITIES:
        counts = [r["head_parameters"] for k, r in table.records.items() if k[2:4] == (task, capacity)]
        if counts:
            span = f"{min(counts) / 1e3:.0f}" + (f" to {max(counts) / 1e3:.0f}" if max(counts) > min(counts) else "")
            heads.append(f"{capacity} = {HEADS[task][capacity][0]} ({span} k parameters)")
    return [*lines, "", f"Heads: {'; '.join(heads)}.", ""]


def _closing(table: Table) -> list[str]:
    """How far frozen strong heads are from fine-tuning, the aim being two points."""
    lines = []
    for task in table.learnt():
        gaps = [
            (table.gap(p, s, task), p, s) for p in PRETRAININGS if p != "none" for s in SIZES
            if table.gap(p, s, task) is not None
        ]  # fmt: skip
        if not gaps:
            continue
        near = sum(1 for g, *_ in gaps if g <= 2)
        low, high = min(gaps), max(gaps)
        lines.append(
            f"- {task}: frozen strong heads are within 2 points of fine-tuning (or ahead) in {near} of "
            f"{len(gaps)} pretrained backbones; from {low[0]:+.1f} ({low[1]}, {low[2]}) to "
            f"{high[0]:+.1f} ({high[1]}, {high[2]}) points in fine-tuning's favour"
        )
    return lines


# === the picture ===


def plot(path: Path, table: Table) -> None:
    """Each task a row: head capacity on the left, frozen against fine-tuned by size on the right."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "the plot needs matplotlib (pip install 'frostline-models[study]')"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(PRETRAININGS, ("#8a8a8a", "#c77b22", "#2a6fb0", "#3a8f5c")))
    figure, axes = pyplot.subplots(len(TASKS), 2, figsize=(9, 9), sharey="row", layout="constrained")
    for row, task in zip(axes, TASKS):
        left, right = row
        for pretraining in PRETRAININGS:
            colour = colours[pretraining]
            means = [table.mean(table.value(pretraining, s, task, c) for s in SIZES) for c in CAPACITIES]
            left.plot(CAPACITIES, _gaps(means), "o-", color=colour, label=TITLES[pretraining])
            frozen = [table.value(pretraining, s, task, "strong") for s in SIZES]
            tuned = [table.value(pretraining, s, task, "strong", True) for s in SIZES]
            right.plot(list(SIZES), _gaps(frozen), "o-", color=colour)
            right.plot(list(SIZES), _gaps(tuned), "s:", color=colour, markerfacecolor="none")
        left.set_ylabel(f"{task}: {METRIC_NAMES[task]}, points")
        for axis in row:
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_ylim(bottom=0)
    axes[0][0].set_title("frozen: head capacity (mean over sizes)", fontsize=10)
    axes[0][1].set_title("strong head: frozen (solid), fine-tuned (dotted)", fontsize=10)
    axes[-1][0].set_xlabel("capacity of the head")
    axes[-1][1].set_xlabel("size of the backbone")
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if v is None else v for v in values]
