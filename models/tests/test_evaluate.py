"""Postprocessing and metrics on answers that are known."""

import numpy as np
import pytest
from PIL import Image

from frostline_models import evaluate
from frostline_models.dataset import generate, load_scenes
from frostline_models.labels import IGNORE, SCENE_NAMES
from frostline_models.geometry import Input, fit, placement, sampling
from frostline_models.measure.served import Detection, detections, label_map

DEMO = Input(128, 128)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, font):
    root = tmp_path_factory.mktemp("data")
    generate(root, "scenes", "heldout", 8, workers=1)
    return load_scenes(root, "heldout")


def truth_as_detections(scenes, image):
    for j in np.flatnonzero(scenes.classes[image] >= 0):
        mask = scenes.instances[image] == scenes.numbers[image, j]
        yield Detection(int(scenes.classes[image, j]), 0.9, scenes.boxes[image, j], mask)


def test_truth_as_predictions_scores_one(scenes):
    results = [
        evaluate.coco_result(i, d) for i in range(len(scenes)) for d in truth_as_detections(scenes, i)
    ]
    metrics = evaluate.coco_metrics(evaluate.coco_truth(scenes), results)
    assert all(v == pytest.approx(1.0) for v in metrics.values()), metrics


def test_wrong_labels_score_zero(scenes):
    results = [
        evaluate.coco_result(i, Detection((d.label + 1) % 22, d.score, d.box + 60, ~d.mask))
        for i in range(len(scenes)) for d in truth_as_detections(scenes, i)
    ]  # fmt: skip
    metrics = evaluate.coco_metrics(evaluate.coco_truth(scenes), results)
    assert max(metrics.values()) < 0.05
    assert evaluate.coco_metrics(evaluate.coco_truth(scenes), [])["box_map"] == 0


def test_true_labels_as_logits_score_one(scenes):
    def server(images):
        at = next(i for i in range(len(scenes)) if (scenes.images[i] == images[0]).all())
        labels = scenes.labels[at : at + len(images)]
        return [(labels[:, None] == np.arange(len(SCENE_NAMES))[:, None, None]).astype(np.float32)]

    assert (scenes.labels == IGNORE).any()
    assert evaluate.scene_metrics(server, scenes)["miou"] == pytest.approx(1.0)


def test_sampling_follows_half_pixel_centres():
    np.testing.assert_allclose(sampling(4, 32, 0, 4, 128), np.eye(4), atol=1e-6)
    weights = sampling(8, 16, 0, 4, 128)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights[1], [0.75, 0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(weights[0], [1, 0, 0, 0], atol=1e-6)


def test_placement_centres_the_image():
    where = placement(640, 480, DEMO)
    assert (where.new_width, where.new_height, where.left, where.top) == (128, 96, 0, 16)
    boxed = fit(Image.new("RGB", (640, 480), (10, 20, 30)), DEMO)
    assert (boxed[:16] == 114).all() and (boxed[112:] == 114).all()
    assert (boxed[16:112] == (10, 20, 30)).all()


def test_detections_are_thresholded_suppressed_and_mapped_back():
    boxes = np.array([[32, 48, 64, 80], [33, 48, 64, 80], [33, 48, 64, 80], [0, 0, 9, 9]], float)
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 1, 2, 1])
    masks = np.ones((4, 32, 32), np.float32)
    outputs = {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}
    post = {"score_threshold": 0.3, "nms_iou": 0.5, "max_detections": 10, "mask": "image"}
    found = detections(outputs, placement(640, 480, DEMO), post)
    assert [(d.label, d.score) for d in found] == [(1, 0.9), (2, 0.7)]
    np.testing.assert_allclose(found[0].box, [160, 160, 320, 320])
    assert found[0].mask.shape == (480, 640) and found[0].mask.sum() == 160 * 160


def test_label_maps_come_back_at_the_original_size():
    logits = np.zeros((3, 32, 32), np.float32)
    logits[2, :, 16:] = 1
    labels = label_map(logits, placement(200, 100, DEMO))
    assert labels.shape == (100, 200) and (labels[:, 104:] == 2).all() and (labels[:, :96] == 0).all()
