"""``frostline-models study``: every cell, then the table and the plot."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from .. import export as common
from ..errors import InputError, at

ROOT = Path(__file__).resolve().parents[2]


def add(groups) -> None:
    parser = groups.add_parser(
        "study", help="pretraining x head capacity x backbone size, frozen against fine-tuned"
    )
    parser.add_argument("--budget", type=float, default=180.0, help="minutes, about, on two idle cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="backbones at a time, a thread each")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "study", help="scratch folder")
    parser.add_argument("--out", type=Path, default=ROOT, help="for STUDY.md, study.json, study.png")
    parser.add_argument(
        "--report", action="store_true", help="only write the report, of the cells that are done"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from . import plan as plans
    from . import report

    plan = plans.plan(arguments.budget, arguments.seed)
    if arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers}: must be at least 1")
    _claim(arguments.work, plan.to_dict())
    if not arguments.report:
        _compute(plan, arguments.work, arguments.workers)
    report.write(arguments.out, plan, report.read(arguments.work / "cells"))
    print(f"wrote {arguments.out / 'STUDY.md'}, study.json and study.png")


def _claim(work: Path, recipe: dict) -> None:
    """A scratch folder belongs to one budget and seed; another's cells are not mixed in."""
    file = work / "recipe.json"
    if file.exists():
        if json.loads(file.read_text()) != recipe:
            raise at(file, "is of a study with another budget or seed; give another --work")
        return
    common.write(file, json.dumps(recipe, indent=1) + "\n")


def _compute(plan, work: Path, workers: int) -> None:
    from ..train import WORKER_ENV
    from . import cells, data
    from .plan import units

    began = time.monotonic()
    data.make(work / "data", plan, workers)
    waiting = units()
    # One thread each; spawned, since PyTorch does not fork well, and so that this reaches them.
    os.environ |= WORKER_ENV
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {pool.submit(cells.run, unit, plan, work): unit for unit in waiting}
        for count, job in enumerate(as_completed(jobs), 1):
            job.result()
            minutes = (time.monotonic() - began) / 60
            print(
                f"study: {count} of {len(jobs)} backbones ({jobs[job].name}) after {minutes:.1f} min",
                flush=True,
            )
