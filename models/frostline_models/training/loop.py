"""The training loop: a number of steps, the same for the same seed, resumed where it stopped.

A step's batch and its random numbers follow from the seed and the step alone, so a run that
was stopped and resumed ends with the weights of one that was not (on a CPU; GPU kernels may
add in another order).
"""

from __future__ import annotations

import copy
import csv
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, at
from ..train import parameter_groups

Batch = Any
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """How to train; times in seconds, ``steps`` of the optimizer."""

    steps: int
    batch: int
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 2.0
    average: float = 0.999  # of the moving average of the weights, which is what is kept
    seed: int = 0
    save_every: float = 60.0
    log_every: int = 10
    device: str = "cpu"
    amp: bool = True  # bf16 autocast, on a GPU
    tensorboard: bool = False  # curves as event files too, in the folder's ``events``

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch", 1), ("log_every", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise InputError(f"train.{name} {getattr(self, name)}: must be at least {least}")
        if not self.lr > 0:
            raise InputError(f"train.lr {self.lr}: must be above 0")

    def rate(self, step: int) -> float:
        """Linear warm-up, then cosine to a hundredth."""
        warm = min(1.0, (step + 1) / max(1, min(self.warmup, self.steps // 5)))
        fall = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.lr * warm * fall


class Stopped(Exception):
    """The run was asked to stop after a number of steps (used by tests of resuming)."""


def run(
    model: nn.Module, batch: Callable[[int], Batch], loss: Callable[[nn.Module, Batch], Losses],
    plan: Plan, folder: Path, groups: Callable[[nn.Module], list[dict]] | None = None,
    stop_after: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Trains ``model`` in ``folder`` (``state.pt``, ``curve.csv``); returns averaged weights.

    ``batch(step)`` runs one step ahead in a thread of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "state.pt"
    model.to(plan.device).train()
    average = copy.deepcopy(model).eval()
    made = groups(model) if groups else parameter_groups(model, plan.weight_decay)
    for group in made:
        group["scale"] = group.pop("lr_scale", 1.0)
    optimizer = torch.optim.AdamW(made, lr=plan.lr, fused=True)
    step = _restore(file, model, average, optimizer, plan)
    curve = Curve(folder / "curve.csv", step, folder / "events" if plan.tensorboard else None)
    bar = Bar(plan.steps, step)
    saved = time.monotonic()
    parameters = [p for p in model.parameters() if p.requires_grad]
    pairs = list(zip(average.state_dict().values(), model.state_dict().values()))
    sums: dict[str, float] = {}
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(batch, step) if step < plan.steps else None
        while step < plan.steps:
            data = waiting.result()
            if step + 1 < plan.steps:
                waiting = ahead.submit(batch, step + 1)
            torch.manual_seed(plan.seed * 1_000_003 + step)
            rate = plan.rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            with torch.autocast("cuda", torch.bfloat16, plan.amp and plan.device.startswith("cuda")):
                parts = loss(model, data)
                total = sum(parts.values())
            if not torch.isfinite(total):
                values = {k: float(v) for k, v in parts.items()}
                raise InputError(f"the loss is not finite at step {step}: {values}; lower train.lr")
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(parameters, plan.clip)
            optimizer.step()
            step += 1
            _average(pairs, min(plan.average, (1 + step) / (10 + step)))
            for name, value in {"loss": total, **parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            done = step == plan.steps
            if step % plan.log_every == 0 or done:
                count = (step - 1) % plan.log_every + 1
                curve.add(step, rate, {k: v / count for k, v in sums.items()})
                bar.show(step, sums["loss"] / count)
                sums = {}
            if done or step == stop_after or time.monotonic() - saved > plan.save_every:
                _save(file, model, average, optimizer, step, plan)
                saved = time.monotonic()
            if step == stop_after and not done:
                waiting.cancel()
                raise Stopped
    bar.end()
    curve.close()
    return {k: v.cpu() for k, v in average.state_dict().items()}


def _identity(plan: Plan) -> dict:
    """What a checkpoint must agree on to be resumed."""
    return {"steps": plan.steps, "batch": plan.batch, "lr": plan.lr, "seed": plan.seed}


def _restore(file: Path, model, average, optimizer, plan: Plan) -> int:
    if not file.exists():
        return 0
    try:
        state = torch.load(file, map_location=plan.device, weights_only=True)
    except Exception as error:  # a damaged archive has many types of error
        raise at(file, f"cannot be resumed from ({error}); remove it to start afresh") from None
    if state["plan"] != _identity(plan):
        raise at(file, f"is of another run ({state['plan']}); remove it to start afresh")
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise at(file, f"is of another head ({first}); remove it to start afresh") from None
    return state["step"]


def _save(file: Path, model, average, optimizer, step: int, plan: Plan) -> None:
    state = {
        "model": model.state_dict(), "average": average.state_dict(),
        "optimizer": optimizer.state_dict(), "step": step, "plan": _identity(plan),
    }  # fmt: skip
    partial = file.with_suffix(".partial")
    try:
        torch.save(state, partial)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise at(file, f"the checkpoint cannot be written: {error}") from None
    partial.rename(file)


@torch.no_grad()
def _average(pairs: list[tuple[Tensor, Tensor]], keep: float) -> None:
    """Moves the first of each pair towards the second; counters are copied."""
    real = [p for p in pairs if p[0].dtype.is_floating_point]
    torch._foreach_lerp_([a for a, _ in real], [b for _, b in real], 1 - keep)
    for a, b in pairs:
        if not a.dtype.is_floating_point:
            a.copy_(b)


class Curve:
    """``curve.csv``: step, seconds, learning rate and the mean losses since the last row."""

    def __init__(self, path: Path, step: int, events: Path | None = None):
        self.path, self.began = path, time.monotonic()
        self.names: list[str] | None = None
        self.writer = _writer(events, step) if events else None
        if not path.exists():
            return
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [r for r in rows if r["step"].isdigit() and int(r["step"]) <= step]
        path.unlink()
        if kept:
            # What came after the checkpoint is trained, and written, again.
            self.began -= float(kept[-1]["seconds"])
            self.names = list(kept[0])
            self._write([self.names, *([r[n] for n in self.names] for r in kept)])

    def _write(self, rows: list[list]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)

    def add(self, step: int, rate: float, losses: dict[str, float]) -> None:
        row = {"step": step, "seconds": f"{time.monotonic() - self.began:.1f}", "lr": f"{rate:.3g}"}
        row |= {k: f"{v:.5g}" for k, v in losses.items()}
        if self.names is None:
            self.names = list(row)
            self._write([self.names])
        self._write([[row.get(n, "") for n in self.names]])
        if self.writer:
            for key, value in {"lr": rate, **losses}.items():
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _writer(folder: Path, step: int):
    """TensorBoard's; what an earlier run wrote beyond ``step`` is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "curves for TensorBoard need the package tensorboard (pip install 'frostline-models[curves]')"
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


class Bar:
    """Progress on one line of a terminal, or a line now and then elsewhere."""

    def __init__(self, steps: int, step: int):
        self.steps, self.first, self.began = steps, step, time.monotonic()
        self.terminal, self.shown = sys.stderr.isatty(), 0.0

    def show(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if not self.terminal and now - self.shown < 30 and step < self.steps:
            return
        self.shown = now
        left = (now - self.began) / max(1, step - self.first) * (self.steps - step)
        filled = 24 * step // self.steps
        text = f"[{'#' * filled}{'.' * (24 - filled)}] {step}/{self.steps} loss {loss:.4f} {left:.0f} s left"
        print(f"\r{text:<78}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
