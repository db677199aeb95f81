"""``frostline-models evaluate``: a data set through a running server, or a repository run here."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from .. import recipes
from ..errors import InputError
from ..readers import FORMATS, NAMED, open_dataset
from . import precisions


def add(groups) -> None:
    parser = groups.add_parser(
        "evaluate", help="accuracy of a head on a data set, through the running server"
    )
    parser.add_argument("head", help="name of the head")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--server", metavar="HOST:PORT", help="a running server")
    where.add_argument("--repository", type=Path, help="a model repository, run here")
    parser.add_argument(
        "--precision", nargs="+", metavar="NAME", default=[],
        help=f"with --repository: through a server at each of these, side by side ({', '.join(precisions.SETTINGS)})",
    )  # fmt: skip
    parser.add_argument("--binary", type=Path, default=Path("target/release/frostline"), help="--precision: the server")
    parser.add_argument("--format", help=", ".join(FORMATS))
    parser.add_argument("--recipe", help="take format, validation data and views from a recipe")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes",
        help="change a value of the recipe",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set's format"
    )
    parser.add_argument(
        "--gallery", action="append", default=[], metavar="KEY=VALUE",
        help="embedding: options of the photographs among which the nearest are looked for (unset: the set's others)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, help="only the first so many samples")
    parser.add_argument("--workers", type=int, default=4, help="calls in flight")
    parser.add_argument("--clips", type=int, help="action: clips per video (1)")
    parser.add_argument("--crops", type=int, help="action: crops per clip (1)")
    parser.add_argument("--frame-stride", type=int, help="action: in the video's frames (the head's)")
    parser.add_argument("--token", help="bearer token, where the server asks for one")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and cases.png")
    parser.set_defaults(run=run)


def parse_options(pairs: list[str]) -> dict:
    """``key=value`` pairs; numbers and true/false become such."""
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise InputError(f"--option {pair!r}: must be KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def settle(arguments: argparse.Namespace) -> dict:
    """The data set's options; fills in what a recipe says and what nobody said."""
    options: dict = {}
    if arguments.recipe:
        recipe = recipes.load(arguments.recipe, arguments.changes)
        arguments.format = arguments.format or recipe.data.format
        options |= recipe.data.validation
        said = {"clips": recipe.evaluate.clips, "crops": recipe.evaluate.crops}
    elif arguments.format is None:
        raise InputError(f"give --format ({', '.join(FORMATS)}) or --recipe")
    else:
        said = {"clips": 1, "crops": 1}
    for key, value in said.items():
        if getattr(arguments, key) is None:
            setattr(arguments, key, value)
    return options | parse_options(arguments.option)


def run(arguments: argparse.Namespace) -> None:
    if arguments.precision:
        reports = precisions.run(arguments, lambda address: measure(arguments, address)[0])
        print(precisions.show(reports))
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "evaluation.json").write_text(json.dumps({"precisions": reports}, indent=2) + "\n")
            print(f"wrote {arguments.out / 'evaluation.json'}")
        return
    report, result, dataset, predictor = measure(arguments, arguments.server)
    print(show(report))
    if arguments.out:
        from . import gallery

        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
        gallery.save(arguments.out / "cases.png", result, dataset, predictor.task, predictor.frames, predictor.frame_stride)
        drawn = "cases.png"
        if predictor.task == "classification":
            from .images import save_confusion

            save_confusion(arguments.out / "confusion.png", result, dataset)
            drawn += ", confusion.png"
        print(f"wrote {arguments.out / 'evaluation.json'}, {drawn}")


def measure(arguments: argparse.Namespace, server: str | None):
    """The report, the result with its cases, the data set and what was measured: through a server, or here."""
    options = settle(arguments)
    if server:
        from .remote import Remote

        predictor = Remote(server, arguments.head, token=arguments.token)
        where = server
    else:
        from .local import Local

        predictor = Local(arguments.repository, arguments.head)
        where = str(arguments.repository)
    if arguments.format == "generated-scenes" and predictor.task == "segmentation":
        options.setdefault("task", "segmentation")
    if arguments.format in NAMED and predictor.labels:
        options.setdefault("labels", predictor.labels)
    dataset = open_dataset(arguments.format, arguments.data, **options)
    known = None
    if arguments.gallery:
        if predictor.task != "embedding":
            raise InputError(f"--gallery is for embeddings; head {arguments.head!r} is for {predictor.task}")
        said = options | {"labels": dataset.labels} | parse_options(arguments.gallery)
        known = open_dataset(arguments.format, arguments.data, **said)
    report, result = evaluate(predictor, dataset, arguments, where, known)
    return report, result, dataset, predictor


def evaluate(predictor, dataset, arguments: argparse.Namespace, where: str, known=None):
    """The report as a table of plain values, and the result with its cases; ``known`` are the
    photographs among which an embedding looks for the nearest."""
    from . import metrics

    if predictor.task not in dataset.tasks:
        has = ", ".join(dataset.tasks)
        raise InputError(f"head {arguments.head!r} is for {predictor.task}, the data set for {has}")
    if predictor.task != "embedding" and list(dataset.labels) != list(predictor.labels):
        raise InputError(
            f"the head's {len(predictor.labels)} labels are not the data set's {len(dataset.labels)}: "
            f"{_difference(predictor.labels, dataset.labels)}"
        )
    frames, stride = predictor.frames, arguments.frame_stride or predictor.frame_stride
    began = time.monotonic()
    result = metrics.run(
        predictor, dataset, predictor.task, arguments.limit, frames, stride,
        arguments.clips, arguments.crops, arguments.workers, known,
    )  # fmt: skip
    seconds = time.monotonic() - began
    report = {
        "head": arguments.head, "task": predictor.task, "where": where,
        "samples": len(result.scores), "metrics": result.metrics,
        "seconds": round(seconds, 2), "samples_per_second": round(len(result.scores) / seconds, 2),
        "backbone_runs": predictor.rows,
    }  # fmt: skip
    if predictor.task == "action":
        report["views"] = f"{frames} frames x {arguments.clips} clips x {arguments.crops} crops"
    return report, result


def _difference(head: list[str], data: list[str]) -> str:
    for i, (a, b) in enumerate(zip(head, data)):
        if a != b:
            return f"number {i} is {a!r} there and {b!r} here"
    return "one list is longer"


def show(report: dict) -> str:
    """For people."""
    lines = [
        f"{report['head']} ({report['task']}) on {report['samples']} samples from {report['where']}"
    ]
    if "views" in report:
        lines.append(f"  {report['views']}")
    lines += [f"  {name:<16}{100 * value:7.2f}" for name, value in report["metrics"].items()]
    lines.append(
        f"  {report['samples_per_second']} samples/s, {report['backbone_runs']} backbone rows, "
        f"{report['seconds']} s"
    )
    return "\n".join(lines)
