"""The demo recipe: data, pretraining, export, heads, fine-tuned ceiling, evaluation.

Every stage leaves a file that says it is done and is skipped when it finds it, so
the recipe can be stopped at any time and run again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch

from . import export, jobs, report, repository
from .dataset import generate, load_clips, load_scenes
from .evaluate import METRICS, Server
from .features import compute
from .repository import CONFIG, SIZE
from .samples import write_samples
from .train import Schedule, load, train

HEADS = ("objects", "scene", "motion")
#: Images (clips for the motion head) per step and process.
BATCH = {"pretrain": 16, "objects": 16, "scene": 16, "motion": 16}
FINE_TUNING_BATCH = {"objects": 16, "scene": 16, "motion": 3}
#: Share of the budget each training stage gets; the rest is data, features, evaluation.
SHARE = {
    "pretrain": 0.50,
    "objects": 0.07, "scene": 0.05, "motion": 0.06,
    "tuned-objects": 0.08, "tuned-scene": 0.05, "tuned-motion": 0.06,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    work: Path  # scratch: data, features, checkpoints
    out: Path  # the model repository
    budget_minutes: float = 90.0
    seed: int = 0
    workers: int = 2
    scenes: int = 12000
    heldout_scenes: int = 1000
    clips: int = 2400
    heldout_clips: int = 400
    from_scratch: bool = False  # heads do not start from their pretraining weights

    def command(self) -> str:
        """The command line that gives these settings; folders are left out."""
        words = ["frostline-models demo all"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("work", "out") or (value == field.default and field.name != "seed"):
                continue
            flag = "--" + field.name.replace("_", "-")
            words.append(flag if value is True else f"{flag} {value:g}")
        return " ".join(words)


class Demo:
    def __init__(self, settings: Settings):
        self.settings = settings
        self.data, self.runs = settings.work / "data", settings.work / "runs"
        self.cache = settings.work / "features"
        # A whole repository is made here and copied out at once, so that the published
        # one never has heads of another backbone for longer than the copy takes.
        self.staged = settings.work / "repository"

    # Stages, in order.

    def make_data(self) -> None:
        s = self.settings
        for kind, split, count in (
            ("scenes", "heldout", s.heldout_scenes), ("scenes", "train", s.scenes),
            ("clips", "heldout", s.heldout_clips), ("clips", "train", s.clips),
        ):  # fmt: skip
            generate(self.data, kind, split, count, s.workers)
            print(f"data: {count} {kind} for {split}", flush=True)

    def pretrain(self) -> None:
        self._train("pretrain", 2e-3, jobs.pretraining, (self.data, BATCH["pretrain"]))

    def export(self) -> None:
        """Freezes the backbone: ``backbone.onnx`` and its manifest."""
        state = load(self._checkpoint("pretrain"))
        backbone = repository.make_backbone()
        backbone.load_state_dict(part(state["average"], "backbone."))
        repository.publish_backbone(self.staged, backbone, self._provenance("pretrain"))

    def heads(self) -> None:
        """Trains the heads on the exported backbone's features and publishes each."""
        self._features()
        for name in HEADS:
            start = None
            if name != "motion" and not self.settings.from_scratch:
                start = part(self._average("pretrain"), f"{name}.")
            args = (name, self.data, self.cache, BATCH[name], start)
            self._train(name, 5e-4 if start else 2e-3, jobs.frozen_head, args)
        for name in HEADS:
            self.publish(name, {})
        self.release()

    def finetune(self) -> None:
        """The ceiling: each head again, with a backbone of its own that may move."""
        backbone = part(self._average("pretrain"), "backbone.")
        for name in HEADS:
            args = (name, self.data, FINE_TUNING_BATCH[name], backbone, self._average(name))
            self._train(f"tuned-{name}", 5e-4, jobs.fine_tuning, args)

    def evaluate(self) -> None:
        """Measures frozen and fine-tuned graphs on held-out data; writes the reports."""
        out = self.staged
        scenes, clips = load_scenes(self.data, "heldout"), load_clips(self.data, "heldout")
        truth = {"objects": scenes, "scene": scenes, "motion": clips}
        backbone = export.session(out / "backbone.onnx")
        frozen, tuned = {}, {}
        for name in HEADS:
            head = export.session(out / "heads" / name / "head.onnx")
            frozen[name] = METRICS[name](Server(backbone, head), truth[name])
            print(f"frozen {name}: {frozen[name]}", flush=True)
            self.publish(name, frozen[name])
            state = load(self._checkpoint(f"tuned-{name}"))
            if state is not None and state["done"]:
                tuned[name] = METRICS[name](tuned_server(name, state["average"]), truth[name])
                print(f"fine-tuned {name}: {tuned[name]}", flush=True)
        report.write(out, self._record(frozen, tuned))
        self.release()

    def samples(self) -> None:
        write_samples(self.settings.out / "samples")

    def run_all(self) -> None:
        for stage in (
            self.make_data, self.pretrain, self.export, self.heads, self.samples,
            self.evaluate, self.finetune, self.evaluate,
        ):  # fmt: skip
            stage()

    def release(self) -> None:
        """Copies the staged repository to where it is served from."""
        for path in sorted(p for p in self.staged.rglob("*") if p.is_file()):
            export.write(self.settings.out / path.relative_to(self.staged), path.read_bytes())

    def publish(self, name: str, metrics: dict[str, float]) -> None:
        """Stages one head's graph and manifest against the staged backbone."""
        head = repository.make_head(name)
        head.load_state_dict(self._average(name))
        sha = export.sha256((self.staged / "backbone.onnx").read_bytes())
        count = self.settings.clips if name == "motion" else self.settings.scenes
        kind = "clips, and the same mirrored" if name == "motion" else "scenes"
        trained = {
            "data": f"{count} generated {kind}",
            "recipe": self._provenance(name) + self._start(name),
        }
        repository.publish_head(self.staged, name, head, sha, trained, metrics)

    # Parts of stages.

    def _checkpoint(self, stage: str) -> Path:
        return self.runs / f"{stage}.pt"

    def _average(self, stage: str) -> dict[str, torch.Tensor]:
        state = load(self._checkpoint(stage))
        if state is None:
            raise SystemExit(f"{self._checkpoint(stage)} is missing: run that stage first")
        return state["average"]

    def _train(self, stage: str, lr: float, make, args: tuple) -> None:
        s = self.settings
        minutes = s.budget_minutes * SHARE[stage]
        train(self._checkpoint(stage), make, args, Schedule(minutes, lr, s.seed), s.workers)

    def _features(self) -> None:
        levels = {f"stride{s}": (c, SIZE // s, SIZE // s) for s, c in self._levels}
        graph, workers = self.staged / "backbone.onnx", self.settings.workers
        images = self.data / "scenes-train" / "images.npy"
        compute(self.cache / "scenes-train", graph, images, levels, workers=workers)
        read = {n: levels[n] for n in repository.make_head("motion").features}
        frames = self.data / "clips-train" / "frames.npy"
        compute(self.cache / "clips-train", graph, frames, read, mirror=True, workers=workers)

    @cached_property
    def _levels(self) -> list[tuple[int, int]]:
        return list(zip(CONFIG.strides(), CONFIG.channels()))

    def _provenance(self, stage: str) -> str:
        state = load(self._checkpoint(stage))
        used, steps = state["used"] / 60, state["step"]
        return (
            f"{self.settings.command()} ({stage}: {steps} steps in {used:.1f} min, "
            f"averaged weights{'' if state['done'] else ', still training'})"
        )

    def _start(self, name: str) -> str:
        warm = name != "motion" and not self.settings.from_scratch
        return "; starts from its weights in the joint pretraining" if warm else "; from scratch"

    def _record(self, frozen: dict, tuned: dict) -> dict:
        """Everything the reports say, as one JSON object."""
        stages = {}
        for stage in SHARE:
            if (state := load(self._checkpoint(stage))) is not None:
                batch = FINE_TUNING_BATCH[stage[6:]] if stage[:5] == "tuned" else BATCH[stage]
                stages[stage] = {
                    "minutes": round(state["used"] / 60, 1),
                    "steps": state["step"],
                    "samples": state["step"] * batch * self.settings.workers,
                    "finished": state["done"],
                }
        s = asdict(self.settings)
        return {
            "command": self.settings.command(),
            "settings": {k: v for k, v in s.items() if k not in ("work", "out")},
            "backbone": {
                "config": CONFIG.to_dict(),
                "parameters": sum(p.numel() for p in repository.make_backbone().parameters()),
            },
            "heads": {
                name: {
                    "parameters": sum(p.numel() for p in repository.make_head(name).parameters()),
                    "start": self._start(name).removeprefix("; "),
                }
                for name in HEADS
            },
            "training": stages,
            "frozen": frozen,
            "fine_tuned": tuned,
            "speed": report.speed(self.staged),
            "files": report.sizes(self.staged),
        }


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries of a state that begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def tuned_server(name: str, state: dict[str, torch.Tensor]) -> Server:
    """A fine-tuned backbone and head as sessions of exported graphs."""
    model = jobs.Whole(name)
    model.load_state_dict(state)
    maps = repository.example_maps(model.head)
    return Server(
        export.session(export.backbone_bytes(model.backbone)),
        export.session(export.head_bytes(model.head, maps)),
    )


