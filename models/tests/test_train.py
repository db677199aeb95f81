"""The trainer stops on time, resumes where it was and keeps its ranks together."""

import numpy as np
import torch
from torch import nn

from frostline_models.train import Job, Schedule, load, parameter_groups, rate, train
from frostline_models.repository import make_backbone


def line(slope: float) -> Job:
    def loss(model, rng):
        x = torch.from_numpy(rng.normal(size=(8, 1)).astype(np.float32))
        value = (model(x) - slope * x).square().mean()
        return value, {"loss": value.item()}

    return Job(nn.Linear(1, 1), loss)


def test_training_learns_and_resumes(tmp_path):
    path = tmp_path / "line.pt"
    first = train(path, line, (2.0,), Schedule(0.03, 0.05, warmup_steps=5), workers=2)
    state = load(path)
    assert state["done"] and abs(float(first["weight"]) - 2) < 0.2
    state["done"] = False
    torch.save(state, path)
    train(path, line, (2.0,), Schedule(0.04, 0.05, warmup_steps=5), workers=1)
    assert load(path)["step"] > state["step"]
    train(path, line, (5.0,), Schedule(10, 0.05), workers=1)  # done: returns at once


def test_rate_warms_up_and_decays():
    schedule = Schedule(1, 1.0, warmup_steps=10)
    assert rate(0, 0, schedule) < rate(0, 9, schedule) == 1.0
    assert rate(1, 99, schedule) < 0.02


def test_gains_biases_and_position_tables_do_not_decay():
    model = make_backbone()
    decayed, plain = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all("weight" in names[id(p)] and "norm" not in names[id(p)] for p in decayed["params"])
    assert any("cpb_mlp" in names[id(p)] for p in plain["params"])
