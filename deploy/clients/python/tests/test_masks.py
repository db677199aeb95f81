"""The decoders of masks in deploy/clients/masks, and the formats of masks, against pycocotools and Pillow."""

import io
import re
import shutil
import subprocess

import grpc
import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from frostline.v1 import types_pb2, vision_pb2, vision_pb2_grpc
from PIL import Image
from pycocotools import mask as coco

MASKS = ROOT / "deploy/clients/masks"


def masks() -> list[np.ndarray]:
    """Noise, blocks, stripes, all, nothing, one pixel, and one with runs longer than five bits say."""
    random = np.random.default_rng(7)
    made = [(random.random(shape) < share).astype(np.uint8) for shape in ((1, 1), (7, 5), (12, 31)) for share in (0.2, 0.7)]
    made += [np.zeros((4, 6), np.uint8), np.ones((5, 3), np.uint8), np.eye(9, dtype=np.uint8)]
    large = np.zeros((97, 83), np.uint8)
    large[10:90, 3:80] = 1
    large[40:44, 20:60] = 0
    return [*made, large, np.repeat(made[4], 3, axis=0)]


PROGRAMS = {
    "python": (["python3", "masks.py"], None),
    "go": (["./masks-go"], ["go", "build", "-o", "masks-go", "masks.go"]),
    "java": (["java", "-cp", ".", "Masks"], ["javac", "-d", ".", "Masks.java"]),
    "npx": (["node", "masks.js"], ["npx", "--yes", "--package", "typescript@5.9.3", "tsc", "--strict", "--target", "es2022", "masks.ts"]),
    "g++": (["./masks-cpp"], ["g++", "-std=c++17", "-Wall", "-Werror", "-o", "masks-cpp", "masks.cpp"]),
    "rustc": (["./masks-rs"], ["rustc", "--edition", "2024", "-o", "masks-rs", "masks.rs"]),
}


@pytest.mark.parametrize("tool", PROGRAMS)
def test_decoders_read_what_pycocotools_writes(tool, tmp_path):
    command, build = PROGRAMS[tool]
    if not shutil.which("python3" if tool == "python" else tool):
        pytest.skip(f"there is no {tool}")
    for source in MASKS.iterdir():
        if source.is_file():
            shutil.copy(source, tmp_path)
    if build:
        subprocess.run(build, cwd=tmp_path, check=True, timeout=300)
    for mask in masks():
        counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
        said = subprocess.run(
            [*command, *map(str, mask.shape), counts], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
        )
        rows = [[int(digit) for digit in line] for line in said.stdout.split()]
        assert rows == mask.tolist()


@pytest.mark.parametrize("source", sorted(p.name for p in MASKS.iterdir() if p.is_file()))
def test_decoders_are_short_and_on_the_page(source):
    text = (MASKS / source).read_text()
    decoder = re.search(r"[/#]+ decoder\n(.*?)\n *[/#]+ end\n", text, re.DOTALL).group(1)
    lines = [line for line in decoder.splitlines() if line.strip() and line.strip(" {}") and not re.match(r"\s*(//|\"\"\"|/\*)", line)]
    assert len(lines) <= 24, source
    page = (ROOT / "deploy/clients/LANGUAGES.md").read_text()
    assert f"masks/{source}" in page


def filled(polygons: list[list[tuple[int, int]]], height: int, width: int) -> np.ndarray:
    """Even-odd: the centers to the right of an odd number of upright edges."""
    crossings = np.zeros((height, width + 1), int)
    for points in polygons:
        for (x, y), (to_x, to_y) in zip(points, points[1:] + points[:1]):
            assert (x == to_x) != (y == to_y), "along the edges of pixels"
            if x == to_x:
                crossings[min(y, to_y) : max(y, to_y), x] += 1
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def test_a_masks_formats_have_the_same_pixels(server):
    picture = types_pb2.Image(encoded=(SAMPLES / "scene-1.jpg").read_bytes())
    with grpc.insecure_channel(server) as channel:
        vision = vision_pb2_grpc.VisionServiceStub(channel)

        def ask(format_):
            options = vision_pb2.DetectionOptions(score_threshold=0.05, mask_format=format_)
            return vision.Detect(vision_pb2.DetectRequest(image=picture, options=options)).result.detections

        by_default, rle = ask(types_pb2.MASK_FORMAT_UNSPECIFIED), ask(types_pb2.MASK_FORMAT_RLE)
        assert by_default == rle and len(rle) > 3
        crops, outlines = ask(types_pb2.MASK_FORMAT_PNG_CROP), ask(types_pb2.MASK_FORMAT_POLYGONS)
        with pytest.raises(grpc.RpcError) as refused:
            ask(9)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "options.mask_format" in refused.value.details()
    seen = 0
    for one, crop, outline in zip(rle, crops, outlines, strict=True):
        mask = one.mask
        pixels = coco.decode({"size": [mask.height, mask.width], "counts": mask.counts}).astype(bool)
        assert not crop.mask.counts and not outline.mask.counts
        again = np.zeros_like(pixels)
        if crop.mask.HasField("png_crop"):
            at = crop.mask.png_crop
            png = Image.open(io.BytesIO(at.png))
            assert png.mode == "1"
            again[at.y : at.y + png.height, at.x : at.x + png.width] = np.asarray(png)
            # It is the bounding rectangle that pycocotools tells.
            assert coco.toBbox({"size": [mask.height, mask.width], "counts": mask.counts}).tolist() == [at.x, at.y, *png.size]
        assert (again == pixels).all()
        polygons = [list(zip(p.points[::2], p.points[1::2])) for p in outline.mask.polygons]
        assert (filled(polygons, mask.height, mask.width) == pixels).all()
        seen += pixels.any()
    assert seen > 3
