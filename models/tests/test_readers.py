"""Readers give what the files say, and name the file and key of what is wrong."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from frostline_models import geometry
from frostline_models.backbones import command
from frostline_models.errors import InputError
from frostline_models.readers import open_dataset, views
from frostline_models.readers.base import IGNORE, Things, read_image

COCO = {"images": "train2017", "annotations": "annotations/instances_train2017.json"}


def test_coco(tmp_path):
    data = open_dataset("coco", datasets.coco(tmp_path), **COCO)
    assert len(data) == 6 and data.labels == list(datasets.NAMES)
    image, truth = data.image(0), data.things(0)
    assert image.shape == (64, 96, 3) and truth.masks.shape == (2, 64, 96)
    for (x0, y0, x1, y1), kind, mask in zip(truth.boxes.astype(int), truth.classes, truth.masks):
        assert mask[y0:y1, x0:x1].all() and mask.sum() == (x1 - x0) * (y1 - y0)
        middle = image[(y0 + y1) // 2, (x0 + x1) // 2].astype(int)
        assert np.abs(middle - datasets.COLOURS[kind]).max() < 40
    assert data.category_id(2) == 7 and data.image_id(0) == 100


def test_coco_names_what_is_wrong(tmp_path):
    datasets.coco(tmp_path)
    file = tmp_path / COCO["annotations"]
    good = file.read_text()

    def broken(change, *words):
        table = json.loads(good)
        change(table)
        file.write_text(json.dumps(table))
        with pytest.raises(InputError) as error:
            open_dataset("coco", tmp_path, **COCO)
        for word in words:
            assert word in str(error.value), str(error.value)

    def set_in(name, row, key, value):
        return lambda table: table[name][row].__setitem__(key, value)

    path = "instances_train2017.json"
    broken(set_in("annotations", 3, "category_id", 99), path, "annotations[3] (id 4)", "category_id 99")
    broken(set_in("annotations", 2, "image_id", 5), "annotations[2]", "image_id 5")
    broken(set_in("annotations", 1, "segmentation", []), "annotations[1]", "segmentation is empty")
    broken(set_in("annotations", 1, "bbox", [1, 2]), "bbox [1, 2]")
    broken(set_in("annotations", 1, "id", 1), "annotations[1]", "twice")
    broken(set_in("images", 0, "file_name", "gone.jpg"), "gone.jpg", "no such image", path)
    broken(lambda t: t["images"][1].pop("width"), "images[1]: has no width")
    broken(lambda t: t.pop("categories"), "categories: is missing")
    file.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        open_dataset("coco", tmp_path, **COCO)
    file.unlink()
    with pytest.raises(InputError, match="no such annotation file"):
        open_dataset("coco", tmp_path, **COCO)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset("coco", tmp_path, images="none", annotations="x")


def test_coco_checks_images_and_masks_when_they_are_read(tmp_path):
    data = open_dataset("coco", datasets.coco(tmp_path), **COCO)
    data.path(0).write_bytes(b"\xff\xd8 not a picture")
    Image.new("RGB", (10, 10)).save(data.path(1))
    with pytest.raises(InputError, match="000000000000.jpg: is not a readable image"):
        data.image(0)
    with pytest.raises(InputError, match="is 10x10, but instances_train2017.json says 96x64"):
        data.image(1)
    data.annotations[102][0]["segmentation"] = {"size": [3, 3], "counts": [1, 8]}
    with pytest.raises(InputError, match="segmentation cannot be read.*size"):
        data.things(2)


def test_ade20k(tmp_path):
    data = open_dataset("ade20k", datasets.ade20k(tmp_path), split="training", classes=4)
    labels = data.label_map(0)
    assert labels.shape == data.image(0).shape[:2] and data.size(0) == (96, 64)
    assert (labels[:2, :2] == IGNORE).all() or labels[0].min() < 4
    assert set(np.unique(labels)) <= {0, 1, 2, 3, IGNORE}
    assert data.labels == ["class 1", "class 2", "class 3", "class 4"]
    rows = ["Idx\tRatio\tTrain\tVal\tName"] + [f"{i}\t0\t1\t1\tthing {i}, other" for i in range(4)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    data = open_dataset("ade20k", tmp_path, split="training", classes=4)
    assert data.labels[1] == "thing 1"
    with pytest.raises(InputError, match="names 4 classes, 150 are wanted"):
        open_dataset("ade20k", tmp_path, split="training")
    (tmp_path / "objectInfo150.txt").unlink()
    with pytest.raises(InputError, match="ADE_00000000.png: holds label 4; there are 3"):
        open_dataset("ade20k", tmp_path, split="training", classes=3).label_map(0)
    Image.new("RGB", (96, 64)).save(tmp_path / "annotations/training/ADE_00000001.png")
    with pytest.raises(InputError, match="mode RGB"):
        data.label_map(1)
    (tmp_path / "annotations/training/ADE_00000002.png").unlink()
    with pytest.raises(InputError, match="no such label image .for ADE_00000002.jpg"):
        open_dataset("ade20k", tmp_path, split="training", classes=4)


@pytest.mark.parametrize("layout", ["csv", "pairs", "folders", "frames"])
def test_kinetics_in_any_layout(tmp_path, layout):
    datasets.kinetics(tmp_path, splits=("train",), count=2)
    options = {"videos": "train", "csv": "train.csv"}
    if layout == "pairs":
        rows = ["path,label", "left0_000000_000010.mp4,moving left", "right1_000000_000010.mp4,moving right"]
        (tmp_path / "train.csv").write_text("\n".join(rows))
    elif layout == "folders":
        for kind in ("left", "right"):
            (tmp_path / "by" / f"moving {kind}").mkdir(parents=True)
            for file in (tmp_path / "train").glob(f"{kind}*"):
                file.rename(tmp_path / "by" / f"moving {kind}" / file.name)
        options = {"videos": "by"}
    elif layout == "frames":
        frames = datasets.moving_square(np.random.default_rng(0), 1)
        for kind in ("left", "right"):
            folder = tmp_path / "fr" / f"moving {kind}" / "clip"
            folder.mkdir(parents=True)
            for i, frame in enumerate(frames[:: -1 if kind == "left" else 1]):
                Image.fromarray(frame).save(folder / f"{i:03d}.png")
        options = {"videos": "fr"}
    data = open_dataset("kinetics", tmp_path, **options)
    assert data.labels == ["moving left", "moving right"]
    assert len(data) == {"csv": 4, "pairs": 2, "folders": 4, "frames": 2}[layout]
    for index in range(len(data)):
        frames = data.frames(index, 4, 3, 0.0)
        assert len(frames) == 4 and frames[0].shape == (64, 96, 3)
        x = [np.nonzero(f[..., 0].astype(int) - f[..., 1] > 80)[1].mean() for f in frames]
        assert (np.diff(x) > 0).all() == (data.target(index) == 1)


def test_kinetics_names_what_is_wrong(tmp_path):
    datasets.kinetics(tmp_path, splits=("train",), count=1)
    options = {"videos": "train", "csv": "train.csv"}
    data = open_dataset("kinetics", tmp_path, **options)
    data.videos[0][0].write_bytes(b"no video")
    with pytest.raises(InputError, match="left0_000000_000010.mp4: is not a readable video"):
        data.frames(0, 4, 1, 0.0)
    data.videos[0][0].unlink()
    with pytest.raises(InputError, match="train.csv: line 2: there is no"):
        open_dataset("kinetics", tmp_path, **options)
    with pytest.raises(InputError, match="'moving left' is not among the 1 known"):
        datasets.kinetics(tmp_path / "b", splits=("train",), count=1)
        open_dataset("kinetics", tmp_path / "b", **options, labels=["running"])
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns are"):
        open_dataset("kinetics", tmp_path, **options)
    with pytest.raises(InputError, match="no such CSV"):
        open_dataset("kinetics", tmp_path, videos="train", csv="none.csv")


def test_unknown_formats_and_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="coco, voc, yolo, ade20k"):
        open_dataset("openimages", tmp_path)
    with pytest.raises(InputError, match="data format 'ade20k'.*splitt"):
        open_dataset("ade20k", tmp_path, splitt="x")


# === reading ===


def deep_png(path, levels: np.ndarray) -> None:
    """A PNG of 16 bits a channel: ``[H, W]`` or ``[H, W, C]``; Pillow writes none with colours."""
    import struct
    import zlib

    height, width = levels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if levels.ndim == 2 else levels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.mark.parametrize("channels", [None, 2, 3, 4])
def test_16_bits_become_the_nearest_of_256_levels(tmp_path, channels):
    if channels is not None:
        pytest.importorskip("torchvision")
    shape = (40, 60) if channels is None else (40, 60, channels)
    levels = np.random.default_rng(0).integers(0, 65536, shape)
    deep_png(tmp_path / "deep.png", levels)
    colours = levels if channels is None else levels[..., 0] if channels == 2 else levels[..., :3]
    wanted = np.round(colours / 257).astype(np.uint8)
    wanted = wanted if wanted.ndim == 3 else wanted[..., None].repeat(3, -1)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), wanted)


def test_transparency_and_palettes_give_the_colours_that_are_there(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    plain = Image.fromarray(colours).quantize(32)
    plain.save(tmp_path / "a.gif")
    plain.save(tmp_path / "b.gif", transparency=3)
    np.testing.assert_array_equal(read_image(tmp_path / "b.gif"), read_image(tmp_path / "a.gif"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.asarray(plain.convert("RGB")))
    clear = Image.fromarray(np.concatenate((colours, np.zeros((30, 40, 1), np.uint8)), -1))
    clear.save(tmp_path / "c.png")
    np.testing.assert_array_equal(read_image(tmp_path / "c.png"), colours)


def test_calibration_sees_images_upright_and_as_the_backbone_is_fed(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(pixels, -1)
    for to in INPUTS:
        (got,) = command.calibration_images(str(tmp_path), to, 1)
        np.testing.assert_array_equal(got, geometry.fit(np.ascontiguousarray(upright), to))


# === views ===


INPUTS = [
    geometry.Input(128, 128), geometry.Input(128, 128, "letterbox", "bicubic", 0), geometry.Input(128, 128, "stretch"),
    geometry.Input(128, 128, "center_crop"), geometry.Input(128, 128, "center_crop", "bicubic", crop_fraction=0.875),
]  # fmt: skip


@pytest.mark.parametrize("to", INPUTS)
@pytest.mark.parametrize("width, height", [(90, 50), (512, 338), (60, 200)])
def test_the_plain_view_is_what_the_server_does(to, width, height):
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    at = views.view(width, height, to, seed=0, index=3, number=0)
    np.testing.assert_array_equal(views.pixels(image, at), geometry.fit(image, to))


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("to", [i for i in INPUTS if i.resize != "letterbox"])
def test_views_show_padding_only_where_the_server_does(to, number):
    image = np.full((70, 100, 3), 200, np.uint8)
    at = views.view(100, 70, to, seed=4, index=2, number=number)
    plain = views.pixels(image, replace(at, colour=None))
    assert (plain == 200).all()


@pytest.mark.parametrize("to", INPUTS)
@pytest.mark.parametrize("number", range(8))
def test_truth_moves_with_the_pixels(number, to):
    """A mask painted into the image is found where the view says it is."""
    mask = np.zeros((1, 60, 100), bool)
    mask[0, 15:45, 30:80] = True
    image = np.where(mask[0, ..., None], np.uint8(255), np.uint8(0)).repeat(3, -1)
    truth = Things(np.array([[30, 15, 80, 45]], np.float32), np.array([2]), mask)
    at = views.view(100, 60, to, seed=1, index=5, number=number)
    seen, moved = views.pixels(image, at), views.things(truth, at)
    bright = seen.mean(-1) > 160
    assert len(moved.boxes) == 1
    both, either = (moved.masks[0] & bright).sum(), (moved.masks[0] | bright).sum()
    assert both / either > 0.9
    x0, y0, x1, y1 = moved.boxes[0]
    rows, columns = np.nonzero(moved.masks[0])
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array([x0, y0, x1, y1]) - edges).max() <= 1.5
    labels = views.label_map(np.where(mask[0], 7, 1).astype(np.uint8), at)
    np.testing.assert_array_equal(labels == 7, moved.masks[0])


SMALL = geometry.Input(64, 64)


def test_views_are_repeatable_and_differ():
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    made = [views.pixels(image, views.view(90, 60, SMALL, 0, 1, n)) for n in (0, 1, 2, 3, 2)]
    np.testing.assert_array_equal(made[2], made[4])
    assert all((made[0] != m).any() for m in made[1:])
    assert all(not views.view(90, 60, SMALL, 0, 1, n, mirror=False).mirror for n in range(9))


def test_a_cut_thing_is_dropped():
    truth = Things(np.array([[0, 0, 1, 1]], np.float32), np.array([0]), np.ones((1, 200, 200), bool))
    assert not len(views.things(truth, views.view(200, 200, geometry.Input(32, 32), 0, 0, 0)).boxes)
    empty = Things(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros((0, 20, 20), bool))
    assert not len(views.things(empty, views.view(20, 20, geometry.Input(32, 32), 0, 0, 3)).boxes)


@pytest.mark.usefixtures("font")
def test_generated_data_reads_like_the_rest(tmp_path):
    scenes = open_dataset("generated-scenes", tmp_path, split="heldout", count=3)
    truth = scenes.things(0)
    assert len(truth.boxes) == len(truth.classes) == len(truth.masks) and truth.masks.any((1, 2)).all()
    assert scenes.label_map(0).shape == scenes.image(0).shape[:2]
    clips = open_dataset("generated-clips", tmp_path, split="heldout", count=2)
    assert len(clips.frames(0, 8, 1, 0.0)) == 8 and 0 <= clips.target(1) < len(clips.labels)
