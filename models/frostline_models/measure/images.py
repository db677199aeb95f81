"""Accuracy of classifiers and embeddings on labelled photographs, and the picture of what is
taken for what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..readers.base import Images
from .metrics import Result, each_sample, sample

NEIGHBOURS = 5
CELL, MARGIN = 34, 150


def classification(predictor, dataset: Images, count: int, workers: int = 1) -> Result:
    """Top-1, top-5 and the mean of the classes' own top-1."""
    chances = each_sample(count, lambda i: predictor.classify(sample(predictor, dataset, i)), workers)
    return score_classification(chances, [dataset.target(i) for i in range(count)])


def score_classification(chances: list[np.ndarray], targets: list[int]) -> Result:
    """The same for probabilities that are there; a tie counts against the label."""
    ranks = np.array([int((c >= c[t]).sum()) - 1 for c, t in zip(chances, targets)])
    table = confusion(np.argmax(chances, 1), targets, len(chances[0]))
    present = table.sum(1) > 0
    metrics = {
        "top1": float((ranks < 1).mean()),
        "top5": float((ranks < 5).mean()),
        "mean_class_top1": float((np.diag(table)[present] / table.sum(1)[present]).mean()),
    }
    return Result(metrics, [float(c[t]) for c, t in zip(chances, targets)], list(chances))


def confusion(found, targets, classes: int) -> np.ndarray:
    """``[truth, answer]`` counts."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (np.asarray(targets), np.asarray(found)), 1)
    return table


def embedding(predictor, dataset: Images, count: int, workers: int = 1, gallery: Images | None = None) -> Result:
    """Top-1 of a vote of the nearest neighbours by cosine, among ``gallery``'s photographs or, unset,
    the other ones of the set; and how often the nearest has the class."""
    one = lambda data: lambda i: np.asarray(predictor.embed(sample(predictor, data, i)), np.float64)  # noqa: E731
    rows = np.stack(each_sample(count, one(dataset), workers))
    targets = np.array([dataset.target(i) for i in range(count)])
    if gallery is None:
        return score_neighbours(rows, targets, rows, targets, len(dataset.labels), same=True)
    known = np.stack(each_sample(len(gallery), one(gallery), workers))
    theirs = np.array([gallery.target(i) for i in range(len(gallery))])
    return score_neighbours(rows, targets, known, theirs, len(dataset.labels))


def score_neighbours(rows, targets, known, theirs, classes: int, same: bool = False) -> Result:
    """The same for vectors that are there; votes weigh as much as their cosine."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)  # noqa: E731
    cosines = unit(rows) @ unit(known).T
    if same:
        np.fill_diagonal(cosines, -np.inf)
    near = np.argsort(-cosines, 1, kind="stable")[:, : min(NEIGHBOURS, cosines.shape[1] - same)]
    votes = np.zeros((len(rows), classes))
    for k in range(near.shape[1]):
        np.add.at(votes, (np.arange(len(rows)), theirs[near[:, k]]), np.take_along_axis(cosines, near[:, k : k + 1], 1)[:, 0] + 1)
    chances = votes / np.maximum(votes.sum(1, keepdims=True), 1e-12)
    metrics = {
        f"knn{NEIGHBOURS}_top1": float((votes.argmax(1) == targets).mean()),
        "nearest_top1": float((theirs[near[:, 0]] == targets).mean()),
    }
    return Result(metrics, [float(c[t]) for c, t in zip(chances, targets)], list(chances))


def save_confusion(path: Path, result: Result, dataset: Images) -> None:
    """A row for each class, a column for each answer, darker for more of the row; the diagonal green."""
    targets = [dataset.target(i) for i in range(len(result.predictions))]
    table = confusion(np.argmax(result.predictions, 1), targets, len(dataset.labels))
    classes = len(dataset.labels)
    side = MARGIN + CELL * classes
    sheet = Image.new("RGB", (side + 4, side + 4), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for r in range(classes):
        total = max(1, int(table[r].sum()))
        draw.text((4, MARGIN + r * CELL + CELL // 2 - 6), f"{dataset.labels[r][:18]} {table[r].sum()}", fill=(0, 0, 0))
        for c in range(classes):
            share = table[r, c] / total
            light = int(255 * (1 - share))
            fill = (light, 255 - (255 - light) // 3, light) if r == c else (255, light, light)
            x, y = MARGIN + c * CELL, MARGIN + r * CELL
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=fill, outline=(220, 220, 220))
            if table[r, c]:
                draw.text((x + 4, y + CELL // 2 - 6), str(table[r, c]), fill=(0, 0, 0))
    for c, name in enumerate(dataset.labels):
        text = Image.new("RGB", (MARGIN - 8, 14), (255, 255, 255))
        ImageDraw.Draw(text).text((0, 1), name[:20], fill=(0, 0, 0))
        sheet.paste(text.rotate(90, expand=True), (MARGIN + c * CELL + CELL // 2 - 7, 4))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
