"""Served outputs equal the reference's, on images of many formats, sizes and aspect ratios."""

import io

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from reference import Reference, decode

DEMO = ROOT / "models/demo"


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(index: int, size: tuple[int, int]) -> Image.Image:
    """A sample picture at `size`; lossless from here on."""
    pictures = sorted(p for p in (DEMO / "samples").iterdir() if p.suffix in (".jpg", ".png"))
    with Image.open(pictures[index % len(pictures)]) as picture:
        return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def oriented(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, "JPEG", quality=95, exif=exif)


def images() -> dict[str, bytes]:
    rgba = scene(3, (333, 257)).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    deep = Image.fromarray((np.asarray(scene(4, (300, 200)).convert("L")).astype(np.uint16) * 257))
    cases = {
        "jpeg 640x480": encode(scene(0, (640, 480)), "JPEG", quality=90),
        "jpeg 480x640 4:4:4": encode(scene(1, (480, 640)), "JPEG", quality=90, subsampling=0),
        "jpeg 1920x1080 progressive": encode(scene(2, (1920, 1080)), "JPEG", progressive=True),
        "jpeg 333x217 4:2:2": encode(scene(5, (333, 217)), "JPEG", quality=80, subsampling=1),
        "jpeg gray": encode(scene(3, (500, 375)).convert("L"), "JPEG", quality=90),
        "jpeg cmyk": encode(scene(0, (320, 320)).convert("CMYK"), "JPEG", quality=95),
        "png 128x128": encode(scene(1, (128, 128)), "PNG"),
        "png 127x129": encode(scene(2, (127, 129)), "PNG"),
        "png 1000x100": encode(scene(3, (1000, 100)), "PNG"),
        "png 90x700": encode(scene(4, (90, 700)), "PNG"),
        "png 64x48": encode(scene(5, (64, 48)), "PNG"),
        "png 1x1": encode(scene(0, (1, 1)), "PNG"),
        "png alpha": encode(rgba, "PNG"),
        "png palette": encode(scene(5, (320, 240)).quantize(64), "PNG"),
        "png 16-bit gray": encode(deep, "PNG"),
        "webp lossy": encode(scene(0, (640, 360)), "WEBP", quality=90),
        "webp lossless": encode(scene(1, (399, 301)), "WEBP", lossless=True),
        "bmp": encode(scene(2, (201, 303)), "BMP"),
        "gif": encode(scene(3, (256, 192)).quantize(128), "GIF"),
    }
    for orientation in (2, 3, 5, 6, 8):
        cases[f"jpeg orientation {orientation}"] = oriented(scene(orientation, (360, 240)), orientation)
    return cases


IMAGES = images()
assert len(IMAGES) >= 20


@pytest.fixture(scope="module")
def reference():
    return Reference(DEMO)


def message(proto, data: bytes):
    return proto.types.Image(encoded=data)


@pytest.mark.parametrize("name", IMAGES)
def test_detections_equal(name, vision, proto, reference):
    image = decode(IMAGES[name])
    expected = reference.detect(image, "objects")
    answer = vision.Detect(proto.vision.DetectRequest(image=message(proto, IMAGES[name]), head="objects"))
    found = list(answer.result.detections)
    near, far = 1e-3, 0.5
    # Scores closer to each other or to the threshold than the tolerance may change places or drop out.
    threshold = reference.heads["objects"][0]["postprocess"]["score_threshold"]
    sure = [e for e in expected if e["score"] > threshold + near]
    assert len(sure) <= len(found) <= len(expected) + sum(f.score < threshold + near for f in found)
    for want in sure:
        same = [f for f in found if f.class_index == want["label"] and abs(f.score - want["score"]) <= near]
        boxes = np.array([[f.bbox.x_min, f.bbox.y_min, f.bbox.x_max, f.bbox.y_max] for f in same])
        assert len(same), f"no {want['label']} of score {want['score']:.4f}"
        errors = np.abs(boxes - want["box"]).max(axis=1)
        best = int(errors.argmin())
        assert errors[best] <= far
        got = same[best].mask
        rle = {"size": [got.height, got.width], "counts": got.counts}
        assert (got.height, got.width) == (image.height, image.width)
        if want["mask"].any():
            overlap = coco_mask.iou([rle], [want["rle"]], [0])[0, 0]
            assert overlap >= 0.99
        # What the server encoded is what pycocotools encodes from the same pixels, byte for byte.
        assert coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)))["counts"] == got.counts.encode()


@pytest.mark.parametrize("name", IMAGES)
def test_label_maps_equal(name, vision, proto, reference):
    image = decode(IMAGES[name])
    expected = reference.segment(image, "scene")
    answer = vision.Segment(proto.vision.SegmentRequest(image=message(proto, IMAGES[name]), head="scene"))
    got = np.asarray(Image.open(io.BytesIO(answer.result.png)))
    assert got.shape == expected.shape
    share = (got == expected).mean()
    assert share >= 0.999, share
    counts = {segment.class_index: segment.pixels for segment in answer.result.segments}
    assert counts == dict(zip(*(a.tolist() for a in np.unique(got, return_counts=True))))
    rle = vision.Segment(
        proto.vision.SegmentRequest(
            image=message(proto, IMAGES[name]),
            options=proto.vision.SegmentationOptions(format=proto.types.LABEL_MAP_FORMAT_RLE),
        )
    )
    for segment in rle.result.segments:
        mask = coco_mask.decode({"size": [segment.mask.height, segment.mask.width], "counts": segment.mask.counts})
        assert (mask.astype(bool) == (got == segment.class_index)).all()


CLIPS = sorted((DEMO / "samples").glob("clip-*"))


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
@pytest.mark.parametrize("take", [1, 3, 8], ids=lambda take: f"{take} frames")
def test_actions_equal(clip, take, vision, proto, reference):
    paths = sorted(clip.iterdir())[:take]
    frames = [path.read_bytes() for path in paths]
    expected = reference.recognize([decode(frame) for frame in frames], "motion")
    request = proto.vision.RecognizeActionRequest(
        clip=proto.types.Clip(frames=[message(proto, frame) for frame in frames]),
        options=proto.vision.ClassificationOptions(top_k=len(expected)),
    )
    top = vision.RecognizeAction(request).result.top
    got = np.zeros(len(expected))
    for scored in top:
        got[scored.class_index] = scored.probability
    assert np.abs(got - expected).max() <= 1e-3
    assert [s.probability for s in top] == sorted((s.probability for s in top), reverse=True)


def test_features_equal(vision, proto, reference):
    data = IMAGES["png 127x129"]
    expected, _ = reference.features(decode(data))
    answer = vision.ExtractFeatures(proto.vision.ExtractFeaturesRequest(image=message(proto, data)))
    assert {tensor.name for tensor in answer.maps} == set(expected)
    for tensor in answer.maps:
        got = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
        scale = np.abs(expected[tensor.name]).max()
        assert np.abs(got - expected[tensor.name][0]).max() <= 1e-3 * scale
