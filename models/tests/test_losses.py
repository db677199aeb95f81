"""Assignment, and proof that the losses teach what they should."""

import numpy as np
import pytest
import torch

from frostline_models import jobs, losses
from frostline_models.dataset import generate, load_scenes, scene_batch
from frostline_models.repository import make_head


def test_cells_answer_for_the_smallest_box_near_them():
    centres = make_head("objects").centres
    boxes = torch.tensor([[[0.0, 0, 128, 128], [52, 52, 76, 76], [1, 1, 3, 3], [0, 0, 0, 0]]])
    owner = losses.assign(centres, boxes, torch.tensor([[True, True, True, False]]))[0]
    assert owner[centres.sub(60).abs().sum(1) == 0] == 1, "the small box wins its centre"
    assert owner[0] == 2, "a box smaller than a cell gets the nearest one"
    assert set(owner.tolist()) == {-1, 1, 2}, "the large box's centre is taken by the small one"


def test_iou_and_giou():
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    b = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    iou, giou = losses.box_iou_pairs(a, b)
    torch.testing.assert_close(iou, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(giou, torch.tensor([1.0, -1 / 3]))


def test_a_perfect_mask_costs_little():
    target = torch.zeros(1, 32, 32)
    target[:, 8:16, 8:16] = 1
    box = torch.tensor([[8.0, 8, 16, 16]])
    assert losses.mask_loss((target - 0.5) * 40, target, box) < 0.01
    assert losses.mask_loss((0.5 - target) * 40, target, box) > 1


@pytest.mark.usefixtures("font")
def test_a_handful_of_scenes_is_learnt(tmp_path):
    generate(tmp_path, "scenes", "train", 6, workers=1)
    truth = jobs.tensors(scene_batch(load_scenes(tmp_path, "train"), np.arange(6)))
    model = jobs.Pretraining().train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98))
    history = []
    for _ in range(45):
        maps = model.backbone(truth["images"])
        objects = losses.objects_loss(model.objects, model.objects(maps), truth)
        scene = losses.scene_loss(model.scene(maps), truth["labels"])
        (objects + scene).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append((objects.item(), scene.item()))
    start, end = np.mean(history[:3], 0), np.mean(history[-3:], 0)
    assert (end < 0.5 * start).all(), (start, end)
