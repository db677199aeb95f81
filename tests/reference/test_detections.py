"""What becomes of a head's boxes, against an independent implementation of torchvision's steps on the same raw outputs.

The repository holds the demo's detection head twice: as it is, and as a head of raw outputs, so that both sides start from
the same numbers and the answers must be equal, not near.
"""

import io
import shutil

import numpy as np
import pytest
from conftest import ROOT, serve
from PIL import Image

DEMO = ROOT / "models/demo"
SIZE = 128
NMS_IOU = 0.3


def picture(seed: int, width: int, height: int) -> bytes:
    """A PNG: samples side by side, as many as fit, something to find in every part; or nothing to find at all, so that
    what scores best lies anywhere, the padding included."""
    whole = Image.new("RGB", (width, height), (114,) * 3)
    if seed % 3 == 1:
        whole = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    if seed % 3 == 2:
        samples = sorted((DEMO / "samples").glob("scene-*.jpg"))
        side = min(width, height)
        for place, at in enumerate(range(0, max(width, height), side)):
            with Image.open(samples[(seed + place) % len(samples)]) as sample:
                whole.paste(sample.convert("RGB").resize((side, side)), (at, 0) if width >= height else (0, at))
    out = io.BytesIO()
    whole.save(out, "PNG")
    return out.getvalue()


SIZES = [(128, 128), (640, 480), (1000, 100), (90, 700), (257, 64), (33, 200)]


@pytest.fixture(scope="module", params=["letterbox", "stretch", "center_crop"])
def resize(request):
    return request.param


@pytest.fixture(scope="module")
def vision(resize, proto, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(DEMO / "backbone.onnx", root)
    text = (DEMO / "backbone.toml").read_text()
    assert 'resize = "letterbox"' in text
    (root / "backbone.toml").write_text(text.replace('resize = "letterbox"', f'resize = "{resize}"'))
    shutil.copytree(DEMO / "heads/objects", root / "heads/objects")
    manifest = (DEMO / "heads/objects/head.toml").read_text()
    before, after = manifest.split("[postprocess]")
    after = after.split("[trained]")[1]
    post = f'[postprocess]\nscore_threshold = 0.0\nnms_iou = {NMS_IOU}\nmax_detections = 64\nmask = "image"\n\n[trained]'
    (root / "heads/objects/head.toml").write_text(before + post + after)
    shutil.copytree(DEMO / "heads/objects", root / "heads/raw")
    raw = before.replace('name = "objects"', 'name = "raw"').replace('task = "detection"', 'task = "tensor"')
    (root / "heads/raw/head.toml").write_text(raw)
    with serve("--repository", str(root)) as channel:
        yield proto.services.VisionServiceStub(channel)


def seen(resize: str, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale and shift from the original to the input, and the part of the original that is in it."""
    original, ratio = np.array([width, height], float), SIZE / np.array([width, height], float)
    if resize == "stretch":
        resized = np.array([SIZE, SIZE])
    else:
        scale = ratio.min() if resize == "letterbox" else ratio.max()
        resized = np.maximum(np.floor(original * scale + 0.5), 1)
    shift = np.floor((SIZE - resized) / 2) if resize == "letterbox" else -np.floor((resized - SIZE) / 2)
    scale = resized / original
    low, high = np.clip(np.concatenate((-shift / scale, (SIZE - shift) / scale)), 0, np.tile(original, 2)).reshape(2, 2)
    return scale, shift, np.concatenate((low, high))


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.clip(high - low, 0, None))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def postprocess(raw: dict, resize: str, width: int, height: int, threshold: float, most: int):
    """`RoIHeads.postprocess_detections`, in the original's pixels: clip, threshold, drop, batched NMS, the best."""
    scale, shift, window = seen(resize, width, height)
    boxes = (raw["boxes"].astype(float) - np.tile(shift, 2)) / np.tile(scale, 2)
    boxes = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
    boxes = boxes.astype(np.float32).astype(float)
    keep = (raw["scores"] >= threshold) & (raw["scores"] > 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = [i for i in np.argsort(-raw["scores"], kind="stable") if keep[i]]
    stay: list[int] = []
    for i in order:
        same = (j for j in stay if raw["labels"][j] == raw["labels"][i])
        if all(box_iou(boxes[i], boxes[j]) <= NMS_IOU for j in same):
            stay.append(i)
    return [(int(raw["labels"][i]), float(raw["scores"][i]), boxes[i]) for i in stay[:most]], len(order)


def raw_outputs(vision, proto, image) -> dict[str, np.ndarray]:
    answer = vision.Analyze(proto.vision.AnalyzeRequest(image=image, heads=["raw"]))
    kinds = {"boxes": np.float32, "scores": np.float32, "labels": np.int64}
    tensors = {t.name: t for t in answer.results[0].tensor.outputs}
    return {n: np.frombuffer(tensors[n].data, kind).reshape(tensors[n].shape) for n, kind in kinds.items()}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_answers_are_torchvisions(size, resize, vision, proto):
    dropped = 0
    for seed in range(3):
        image = proto.types.Image(encoded=picture(seed, *size))
        raw = raw_outputs(vision, proto, image)
        for threshold in (0.0, 0.3):
            for most in (1, 11, 64):
                wanted, visible = postprocess(raw, resize, *size, threshold, most)
                options = proto.vision.DetectionOptions(
                    score_threshold=threshold, max_detections=most, omit_masks=True
                )
                request = proto.vision.DetectRequest(image=image, head="objects", options=options)
                found = vision.Detect(request).result.detections
                boxes = [np.array([d.bbox.x_min, d.bbox.y_min, d.bbox.x_max, d.bbox.y_max]) for d in found]
                assert [(d.class_index, d.score) for d in found] == [(label, score) for label, score, _ in wanted]
                for box, (_, _, right) in zip(boxes, wanted):
                    np.testing.assert_allclose(box, right, rtol=1e-6, atol=1e-5)
                pairs = [(i, j) for i in range(len(found)) for j in range(i) if found[i].class_index == found[j].class_index]
                assert all(box_iou(boxes[i], boxes[j]) <= NMS_IOU for i, j in pairs)
                if threshold == 0:
                    dropped += len(raw["scores"]) - visible
    # Where there is padding, some boxes lie in it, or the cases show nothing.
    if resize == "letterbox" and max(size) > 4 * min(size):
        assert dropped > 0
