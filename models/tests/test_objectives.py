"""Assignment and matching by known answers; every head form learns a handful of examples."""

import numpy as np
import pytest
import torch
from test_taskheads import FORMS, OPTIONS

from frostline_models.losses import box_iou_pairs, mask_loss
from frostline_models.taskheads import objectives, registry
from frostline_models.taskheads.spec import Spec

SPEC = Spec(("stride4", "stride8", "stride16"), (8, 12, 16), (4, 8, 16), 64, 3, 2)


def maps_of(labels: torch.Tensor, spec: Spec, seed: int = 0) -> list[torch.Tensor]:
    """Feature maps that hold the labels ``[N, S, S]``, through a random linear map."""
    generator = torch.Generator().manual_seed(seed)
    onehot = torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    maps = []
    for channels, stride in zip(spec.channels, spec.strides):
        mix = torch.randn(channels, 4, generator=generator)
        maps.append(torch.einsum("oc,nchw->nohw", mix, torch.nn.functional.avg_pool2d(onehot, stride)))
    return maps


def scenes() -> tuple[list[torch.Tensor], dict]:
    """Four images with one or two squares of classes 0 to 2 on ground 3."""
    rng = np.random.default_rng(0)
    labels = torch.full((4, 64, 64), 3)
    truth = {"boxes": [], "classes": [], "masks": []}
    for i in range(4):
        boxes, classes, masks = [], [], []
        for j in range(1 + i % 2):
            side, x, y = int(rng.integers(12, 26)), int(rng.integers(0, 6)) + 32 * j, int(rng.integers(0, 36))
            kind = int(rng.integers(0, 3))
            labels[i, y : y + side, x : x + side] = kind
            mask = torch.zeros(64, 64)
            mask[y : y + side, x : x + side] = 1
            boxes.append([x, y, x + side, y + side])
            classes.append(kind)
            masks.append(mask)
        truth["boxes"].append(torch.tensor(boxes, dtype=torch.float32))
        truth["classes"].append(torch.tensor(classes))
        truth["masks"].append(torch.stack(masks))
    return maps_of(labels, SPEC), truth | {"labels": torch.where(labels == 3, 255, labels)}


def learn(head, maps, truth, steps: int, rate: float = 3e-3) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(head.train().parameters(), rate)
    history = []
    for _ in range(steps):
        loss = sum(objectives.objective(head, maps, truth).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 2.0)
        optimizer.step()
        history.append(loss.item())
    return history[0], float(np.mean(history[-3:]))


@pytest.mark.parametrize("form", list(registry.FORMS["detection"]))
def test_detection_heads_find_what_they_were_shown(form, monkeypatch):
    monkeypatch.setattr(objectives, "SAMPLED_ROIS", 32)  # a quarter of the time
    maps, truth = scenes()
    options = OPTIONS[form] | {"keep": 10}
    head = registry.build("detection", form, SPEC, options)
    learn(head, maps, truth, 120 if form == "single-stage" else 50)
    with torch.no_grad():
        boxes, scores, labels, masks = head.train().serve(maps)
    for i, (things, classes) in enumerate(zip(truth["boxes"], truth["classes"])):
        overlap, at = objectives.geometry.iou(things, boxes[i][scores[i] > 0.2]).max(1)
        assert (overlap > 0.6).all(), (form, i, overlap)
        assert (labels[i][scores[i] > 0.2][at] == classes).all()


@pytest.mark.parametrize("form", list(registry.FORMS["segmentation"]))
def test_segmentation_heads_label_what_they_were_shown(form):
    maps, truth = scenes()
    head = registry.build("segmentation", form, SPEC, OPTIONS.get(form))
    learn(head, maps, truth, 60)
    with torch.no_grad():
        logits = head.train().serve(maps)
    labels = truth["labels"][:, 2::4, 2::4]
    known = labels != objectives.IGNORE
    assert (logits.argmax(1)[known] == labels[known]).float().mean() > 0.9


@pytest.mark.parametrize("form", list(registry.FORMS["action"]))
def test_action_heads_tell_clips_apart(form):
    torch.manual_seed(0)
    maps = registry.example_maps(SPEC, clip=True, batch=6)
    truth = {"classes": torch.tensor([0, 1, 2, 0, 1, 2])}
    head = registry.build("action", form, SPEC, OPTIONS.get(form))
    first, last = learn(head, maps, truth, 40)
    assert last < 0.6 * first
    with torch.no_grad():
        assert (head.eval().serve(maps).argmax(1) == truth["classes"]).float().mean() > 0.8


def test_boxes_belong_to_the_level_of_their_size_and_get_a_cell():
    head = registry.build("detection", "single-stage", Spec(("a", "b", "c"), (4, 4, 4), (8, 16, 32), 256, 2))
    dense = head.dense
    boxes = torch.tensor([[10.0, 10, 50, 40], [0, 0, 120, 90], [0, 0, 250, 250], [101, 101, 103, 103]])
    there = torch.ones(1, 4, dtype=torch.bool)
    owner = objectives.assign(dense, boxes[None], there)[0]
    for thing, stride in enumerate((8, 16, 32, 8)):
        assert (owner == thing).any(), "every box has a cell"
        assert set(dense.steps[owner == thing].tolist()) == {float(stride)}
    assert (objectives.assign(dense, boxes[None], ~there) == -1).all()
    # A batch is its images one by one, whatever the padding.
    truth = {"boxes": [boxes[:1], boxes[:0], boxes], "classes": [torch.zeros(n).long() for n in (1, 0, 4)]}
    padded, _, there = objectives.pad(truth)
    each = objectives.assign(dense, padded, there)
    assert torch.equal(each[2], owner) and (each[1] == -1).all()
    assert torch.equal(each[0], torch.where(owner == 0, 0, -1))


def image_by_image(head, raw: dict, truth: dict) -> dict[str, float]:
    """The single stage's losses as their definition reads: sums over images, then over cells."""
    score, box, mask, count = 0.0, [], [], 0
    scale = head.size // head.side
    for i, (boxes, classes, masks) in enumerate(zip(truth["boxes"], truth["classes"], truth["masks"])):
        owner = objectives.assign(head.dense, *objectives.pad({"boxes": [boxes], "classes": [classes]})[::2])[0]
        target, each = torch.zeros_like(raw["logits"][i]), []
        for cell in (owner >= 0).nonzero()[:, 0].tolist():
            thing = int(owner[cell])
            iou, giou = box_iou_pairs(raw["boxes"][i, cell][None], boxes[thing][None])
            target[cell, classes[thing]] = iou.clamp(min=0.05)[0]
            box.append(1 - giou[0])
            logits = torch.einsum("c,chw->hw", raw["coefficients"][i, cell], raw["prototypes"][i])
            small = torch.nn.functional.avg_pool2d(masks[thing][None], scale)
            each.append(mask_loss(logits[None], small, boxes[thing][None] / scale))
            count += 1
        gap = torch.where(target > 0, target, 0.75 * raw["logits"][i].sigmoid() ** 2)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(raw["logits"][i], target, reduction="none")
        score += (entropy * gap).sum()
        mask += [torch.stack(each).mean()] if each else []
    return {"score": 3 * score / count, "box": 2 * torch.stack(box).mean(), "mask": torch.stack(mask).mean()}


def test_a_batch_is_worth_its_images_one_by_one():
    maps, truth = scenes()
    for key, empty in (("boxes", (0, 4)), ("masks", (0, 64, 64))):
        truth[key][1] = torch.zeros(empty)
    truth["classes"][1] = torch.zeros(0, dtype=torch.int64)
    torch.manual_seed(2)
    head = registry.build("detection", "single-stage", SPEC, {"width": 16, "depth": 1, "prototypes": 8, "keep": 10})
    with torch.no_grad():
        for p in head.parameters():
            p += 0.2 * torch.randn_like(p)
        raw = head(maps)
        got, want = objectives.single_stage(head, raw, truth), image_by_image(head, raw, truth)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_masks_are_drawn_from_every_image_up_to_a_bound():
    chosen = torch.rand(3, 40) < torch.tensor([[0.9], [0.05], [0.0]])
    row, column, slot, counts = objectives._some(chosen, 5)
    assert counts.tolist() == [5, min(5, int(chosen[1].sum())), 0] and chosen[row, column].all()
    assert len({(int(r), int(c)) for r, c in zip(row, column)}) == len(row) == int(counts.sum())
    assert slot[row == 0].tolist() == list(range(5))
    every = objectives._some(chosen, 40)
    assert int(every[3].sum()) == int(chosen.sum())


@pytest.mark.parametrize("task, form", FORMS)
def test_images_without_anything_give_finite_losses(task, form):
    head = registry.build(task, form, SPEC, OPTIONS.get(form)).train()
    maps = registry.example_maps(SPEC, task == "action")
    truth = {
        "boxes": [torch.zeros(0, 4)] * 2, "classes": [torch.zeros(0, dtype=torch.int64)] * 2,
        "masks": [torch.zeros(0, 64, 64)] * 2, "labels": torch.full((2, 64, 64), 255),
    }  # fmt: skip
    if task in ("action", "classification", "embedding"):
        truth["classes"] = torch.tensor([0, 1])
    losses = objectives.objective(head, maps, truth)
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()


def test_matching_pairs_queries_with_their_classes():
    labels = torch.full((1, 8, 8), 255)
    labels[0, :4], labels[0, 4:] = 2, 0
    logits = torch.full((1, 3, 4), -5.0)
    logits[0, 0, 0], logits[0, 1, 3], logits[0, 2, 2] = 5, 5, 5
    maps = torch.full((1, 3, 8, 8), -8.0)
    maps[0, 0, 4:], maps[0, 2, :4] = 8, 8
    losses = objectives.mask_former([(logits, maps)], labels, 3)
    assert sum(losses.values()) < 0.05
    wrong = objectives.mask_former([(logits, -maps)], labels, 3)
    assert sum(wrong.values()) > 5
