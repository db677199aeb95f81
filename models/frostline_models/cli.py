"""``frostline-models``: makes, trains and measures the models that Frostline serves."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from . import newhead
from .backbones import command as backbones
from .demo import Demo, Settings
from .errors import InputError
from .measure import command as measure
from .real import demo as real
from .split import command as split
from .study import command as study
from .training import command as training

ROOT = Path(__file__).resolve().parent.parent

STAGES = {
    "data": (Demo.make_data, "generate scenes and clips"),
    "pretrain": (Demo.pretrain, "train the backbone on scenes"),
    "export": (Demo.export, "freeze the backbone into backbone.onnx"),
    "heads": (Demo.heads, "train and publish the heads on frozen features"),
    "finetune": (Demo.finetune, "train the fine-tuned ceiling"),
    "samples": (Demo.samples, "render held-out pictures and clips to try the models on"),
    "evaluate": (Demo.evaluate, "measure on held-out data; write METRICS.md and metrics.json"),
    "all": (Demo.run_all, "everything above, skipping what is done"),
}

#: Command groups beside ``demo``; each adds its own parsers.
GROUPS = (backbones, split, newhead, training, measure, study, real)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="frostline-models", description=__doc__)
    groups = top.add_subparsers(required=True, metavar="GROUP")
    demo = groups.add_parser("demo", help="the small model repository that ships with the server")
    stages = demo.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, (_, text) in STAGES.items():
        stage = stages.add_parser(name, help=text)
        stage.add_argument("--work", type=Path, default=ROOT / ".cache", help="scratch folder")
        stage.add_argument("--out", type=Path, default=ROOT / "demo", help="model repository")
        stage.add_argument("--budget-minutes", type=float, default=90.0, help="for the recipe")
        stage.add_argument("--from-scratch", action="store_true", help="heads start from nothing")
        for option in ("seed", "workers", "scenes", "heldout-scenes", "clips", "heldout-clips"):
            stage.add_argument(f"--{option}", type=int, default=_default(option))
        stage.set_defaults(run=_demo)
    for group in GROUPS:
        group.add(groups)
    return top


def _demo(arguments: argparse.Namespace) -> None:
    settings = {k: v for k, v in vars(arguments).items() if k != "run"}
    run, _ = STAGES[settings.pop("stage")]
    run(Demo(Settings(**settings)))


def _default(option: str) -> int:
    return next(f.default for f in fields(Settings) if f.name == option.replace("-", "_"))


def main() -> None:
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
