"""``frostline-models train``: a recipe on a data set, to a head in a model repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import recipes
from ..errors import InputError, at
from ..readers import NAMED, open_dataset


def add(groups) -> None:
    parser = groups.add_parser("train", help="a head on the frozen features of a repository's backbone")
    parser.add_argument("recipe", help=f"a .toml file, or one of {', '.join(recipes.known())}")
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--repository", type=Path, required=True, help="model repository to publish into")
    parser.add_argument("--name", help="of the head; unset: the recipe's")
    parser.add_argument("--work", type=Path, help="features and checkpoints; unset: beside the repository")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes")
    parser.add_argument("--device", help="cpu or cuda; unset: cuda where there is one")
    parser.add_argument("--provider", help="ONNX Runtime's, for the features; unset: CUDA's where there is one")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch and ONNX Runtime; 0: all cores")
    parser.add_argument("--tensorboard", action="store_true", help="curves for TensorBoard beside curve.csv")
    parser.add_argument(
        "--validate", type=int, default=200, metavar="N",
        help="measure on the first N validation samples and write it into the manifest; 0: do not",
    )  # fmt: skip
    tuned = parser.add_argument_group("fine-tuning, the baseline that the frozen backbone is compared with")
    tuned.add_argument(
        "--fine-tune", action="store_true",
        help="train the backbone too and write it with the head into --repository",
    )  # fmt: skip
    tuned.add_argument("--checkpoint", type=Path, help="the backbone's weights")
    tuned.add_argument("--random", type=int, metavar="SEED", help="random weights instead")
    tuned.add_argument("--backbone-rate", type=float, default=0.1, help="its learning rate over the head's")
    parser.set_defaults(run=run)
    show = groups.add_parser("recipes", help="the recipes that come with the project, and what they cost")
    show.set_defaults(run=_list)


def _list(_: argparse.Namespace) -> None:
    print(f"{'recipe':<24}{'backbone':<22}{'head':<34}{'GPU h':>7}{'GPU GB':>8}{'disk GB':>9}")
    for name in recipes.known():
        r = recipes.load(name)
        backbone = f"{r.backbone.name} {r.backbone.size}/w{r.backbone.window}"
        head = f"{r.head.task} {r.head.form}"
        cost = f"{r.cost.gpu_hours:>7g}{r.cost.gpu_memory_gb:>8g}{r.cost.disk_gb:>9g}"
        print(f"{name:<24}{backbone:<22}{head:<34}{cost}")


def run(arguments: argparse.Namespace) -> None:
    import torch

    recipe = recipes.load(arguments.recipe, arguments.changes)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: PyTorch sees no GPU here")
    if arguments.fine_tune:
        folder = _fine_tune(recipe, arguments, device)
    else:
        if arguments.checkpoint or arguments.random is not None:
            raise InputError("--checkpoint and --random belong to --fine-tune; a frozen backbone is the repository's")
        folder = _frozen(recipe, arguments, device)
    print(f"wrote {folder / 'head.onnx'} and head.toml")
    print(f"next: frostline check {arguments.repository}")


def _work(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.work or arguments.repository.with_name(f"{arguments.repository.name}-training") / name


def _samples(recipe: recipes.Recipe, data: Path, spec_of):
    from .samples import Samples

    options = dict(recipe.data.train)
    dataset = open_dataset(recipe.data.format, data, **options)
    train = recipe.train
    return Samples(
        dataset, recipe.head.task, spec_of(len(dataset.labels)), train.views, train.seed,
        train.frame_stride,
    )  # fmt: skip


def _head(recipe: recipes.Recipe, samples):
    import torch

    from ..taskheads import registry

    spec, dataset = samples.spec, samples.dataset
    options = dict(recipe.head.options)
    if recipe.head.task == "detection" and not dataset.masks:
        if options.setdefault("masks", False):
            raise InputError("head.options.masks: the data set has boxes alone; leave it out, or say false")
    torch.manual_seed(recipe.train.seed)
    head = registry.build(recipe.head.task, recipe.head.form, spec, options)
    registry.postprocess(head, recipe.head.postprocess)  # what does not fit is said before the training
    samples.spec = spec.only(head.features)
    return head


def _plan(recipe: recipes.Recipe, arguments: argparse.Namespace, device: str):
    from .loop import Plan

    t = recipe.train
    return Plan(
        steps=t.steps, batch=t.batch, lr=t.lr, warmup=t.warmup, weight_decay=t.weight_decay,
        seed=t.seed, save_every=t.save_every, log_every=t.log_every, device=device,
        tensorboard=arguments.tensorboard,
    )  # fmt: skip


def _frozen(recipe: recipes.Recipe, arguments: argparse.Namespace, device: str) -> Path:
    from ..taskheads.spec import from_manifest, read_manifest
    from . import frozen
    from .cache import Extractor, FeatureCache

    manifest = arguments.repository / "backbone.toml"
    name, work = arguments.name or recipe.name, _work(arguments, arguments.name or recipe.name)
    samples = _samples(
        recipe, arguments.data,
        lambda classes: from_manifest(manifest, classes, recipe.head.features, recipe.train.frames),
    )  # fmt: skip
    head = _head(recipe, samples)
    extractor = Extractor(
        arguments.repository, samples.spec.features, arguments.provider, arguments.threads
    )
    cache = FeatureCache(
        work.parent, extractor, samples.spec, len(samples), samples.fingerprint(), samples.pixels,
        int(recipe.train.cache_gb * 1e9),
    )  # fmt: skip
    print(
        f"{name}: {len(samples.dataset)} samples in {samples.views} views, features of "
        f"{cache.row_bytes / 1e6:.2f} MB each, {cache.kept} of {len(samples)} kept in {cache.folder}"
    )
    weights = frozen.train_head(head, samples, cache, _plan(recipe, arguments, device), work)
    head.load_state_dict(weights)
    sha = read_manifest(manifest)["sha256"]
    return _publish(recipe, arguments, name, head, samples, sha, "frozen backbone")


def _fine_tune(recipe: recipes.Recipe, arguments: argparse.Namespace, device: str) -> Path:
    from ..backbones import export, sources
    from ..taskheads.spec import Spec
    from . import frozen

    if (arguments.repository / "backbone.toml").exists() and not (arguments.repository / "fine-tuned").exists():
        raise at(
            arguments.repository, "holds another backbone already; fine-tuning writes its own, so "
            "give a folder of its own",
        )  # fmt: skip
    backbone = sources.load(recipe.request(arguments.checkpoint, arguments.random))
    name, work = arguments.name or recipe.name, _work(arguments, arguments.name or recipe.name)
    chosen = recipe.head.features or [n for n, s in zip(backbone.names(), backbone.strides) if s >= 4]
    table = {n: (c, s) for n, c, s in zip(backbone.names(), backbone.channels, backbone.strides)}
    for feature in chosen:
        if feature not in table:
            raise InputError(f"head.features: there is no {feature!r}; the backbone has {', '.join(table)}")
    samples = _samples(
        recipe, arguments.data,
        lambda classes: Spec(
            tuple(chosen), tuple(table[n][0] for n in chosen), tuple(table[n][1] for n in chosen),
            backbone.size, classes, recipe.train.frames, recipe.backbone.input(),
        ),
    )  # fmt: skip
    head = _head(recipe, samples)
    body, weights = frozen.fine_tune(
        backbone.module, backbone.names(), head, samples, _plan(recipe, arguments, device), work,
        backbone_rate=arguments.backbone_rate,
    )  # fmt: skip
    backbone.module.cpu().load_state_dict(body)
    backbone.module.eval()
    head.cpu().load_state_dict(weights)
    backbone.weights += f", fine-tuned for {name}"
    b = recipe.backbone
    options = export.Options(
        attention=b.attention, resize=b.resize, filter=b.filter, pad=b.pad,
        crop_fraction=b.crop_fraction, threads=max(1, arguments.threads),
        features=tuple(n for n, (_, s) in table.items() if s >= export.LEAST_STRIDE or n in chosen),
    )  # fmt: skip
    export.export(backbone, arguments.repository, options)
    (arguments.repository / "fine-tuned").touch()
    from ..taskheads.spec import read_manifest

    sha = read_manifest(arguments.repository / "backbone.toml")["sha256"]
    return _publish(recipe, arguments, name, head, samples, sha, "fine-tuned with its backbone")


def _publish(recipe, arguments, name: str, head, samples, sha: str, how: str) -> Path:
    from ..taskheads import registry

    head.cpu().eval()
    post = dict(recipe.head.postprocess)
    if recipe.train.frame_stride is not None:
        post["frame_stride"] = recipe.train.frame_stride
    trained = {
        "data": f"{recipe.data.format}, {len(samples.dataset)} samples",
        "recipe": f"{Path(arguments.recipe).stem}: {recipe.head.form}, {recipe.train.steps} steps of "
        f"{recipe.train.batch}, {how}",
    }
    labels = list(samples.dataset.labels)
    make = lambda metrics: registry.publish(  # noqa: E731
        arguments.repository, name, head, samples.spec, labels, sha, trained, metrics, post
    )
    folder = make({})
    if arguments.validate:
        measured = _validate(recipe, arguments, name)
        print("validation: " + ", ".join(f"{k} {100 * v:.2f}" for k, v in measured.items()))
        folder = make(measured)
    return folder


def _validate(recipe, arguments, name: str) -> dict[str, float]:
    """The head as published, run here on validation data."""
    from ..measure import metrics
    from ..measure.local import Local

    options = dict(recipe.data.validation)
    predictor = Local(arguments.repository, name, threads=arguments.threads)
    if recipe.data.format in NAMED and predictor.labels:
        options.setdefault("labels", predictor.labels)
    dataset = open_dataset(recipe.data.format, arguments.data, **options)
    t, e = recipe.train, recipe.evaluate
    gallery = None
    if predictor.task == "embedding":  # the nearest are looked for among what it was taught with
        gallery = open_dataset(recipe.data.format, arguments.data, **recipe.data.train)
    return metrics.run(
        predictor, dataset, predictor.task, arguments.validate, t.frames, t.frame_stride, e.clips,
        e.crops, gallery=gallery,
    ).metrics  # fmt: skip
