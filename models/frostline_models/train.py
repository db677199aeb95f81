"""Wall-clock-budgeted, resumable training on a few CPU processes.

Each process runs PyTorch on one thread and gradients are averaged once a step:
on a busy machine this loses far less than one process on several threads, which
meets at a barrier in every operator.  A checkpoint keeps the weights, their moving
average, the optimizer and the time used, so a stopped run goes on where it was.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

#: Large pages and no return of memory to the system: a quarter faster on CPU.
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


@dataclass
class Job:
    """What is trained: a model and the loss of a random batch of it."""

    model: nn.Module
    loss: Callable[[nn.Module, np.random.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Schedule:
    minutes: float
    lr: float
    seed: int = 0
    warmup_steps: int = 150
    weight_decay: float = 0.05
    average: float = 0.998  # of the moving average of the weights
    save_seconds: float = 60.0


def train(
    checkpoint: Path, make: Callable[..., Job], args: tuple, schedule: Schedule, workers: int
) -> dict[str, Tensor]:
    """Trains ``make(*args)`` for the schedule's minutes; returns the averaged weights."""
    state = load(checkpoint)
    if state is None or not state["done"]:
        os.environ.update(WORKER_ENV)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        port = 20000 + os.getpid() % 20000
        mp.spawn(_work, (workers, port, checkpoint, make, args, schedule), nprocs=workers)
        state = load(checkpoint)
    return state["average"]


def load(checkpoint: Path) -> dict | None:
    if not checkpoint.exists():
        return None
    return torch.load(checkpoint, map_location="cpu", weights_only=True)


def rate(progress: float, step: int, schedule: Schedule) -> float:
    """Learning rate: linear warm-up by step, then cosine by share of the time used."""
    warm = min(1.0, (step + 1) / schedule.warmup_steps)
    return schedule.lr * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def parameter_groups(model: nn.Module, decay: float) -> list[dict]:
    """Matrices decay; gains, biases, temperatures and the position MLP do not."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        still = parameter.ndim < 2 or "logit_scale" in name or "cpb_mlp" in name
        (plain if still else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def _work(rank: int, world: int, port: int, checkpoint: Path, make, args, schedule) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    torch.manual_seed(schedule.seed)
    job: Job = make(*args)
    model = job.model.train()
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, schedule.weight_decay), lr=schedule.lr, betas=(0.9, 0.98),
        fused=True,
    )  # fmt: skip
    step, used = 0, 0.0
    if (state := load(checkpoint)) is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, used = state["step"], state["used"]
    rng = np.random.default_rng((schedule.seed, rank, step))
    torch.manual_seed(schedule.seed * 1000 + rank + step)
    parameters = [p for p in model.parameters() if p.requires_grad]
    began, saved = time.monotonic() - used, time.monotonic()
    progress, seen = used / (60 * schedule.minutes), {}

    def save(done: bool) -> None:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "used": time.monotonic() - began,
            "done": done,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(checkpoint)

    while progress < 1:
        loss, parts = job.loss(model, rng)
        loss.backward()
        # The clock of rank 0 rides along, so that all ranks agree on when to stop.
        clock = (time.monotonic() - began) / (60 * schedule.minutes) if rank == 0 else 0.0
        grads = torch.cat([p.grad.flatten() for p in parameters] + [torch.tensor([clock * world])])
        dist.all_reduce(grads)
        grads /= world
        progress = float(grads[-1])
        grads[:-1] *= min(1.0, 2.0 / (float(grads[:-1].norm()) + 1e-6))
        for parameter, grad in zip(parameters, grads.split([p.numel() for p in parameters] + [1])):
            parameter.grad.copy_(grad.view_as(parameter))
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, step, schedule)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if rank == 0:
            _average(average, model, min(schedule.average, (1 + step) / (10 + step)))
            for name, value in parts.items():
                seen[name] = 0.98 * seen.get(name, value) + 0.02 * value
            if step % 50 == 0:
                report = " ".join(f"{k} {v:.3f}" for k, v in seen.items())
                print(f"{checkpoint.stem} step {step} at {progress:.1%}: {report}", flush=True)
            if time.monotonic() - saved > schedule.save_seconds:
                save(done=False)
                saved = time.monotonic()
    if rank == 0:
        save(done=True)
    dist.barrier()
    dist.destroy_process_group()


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, keep: float) -> None:
    for a, b in zip(average.state_dict().values(), model.state_dict().values()):
        if a.dtype.is_floating_point:
            a.lerp_(b, 1 - keep)
        else:
            a.copy_(b)
