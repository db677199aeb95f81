"""Pictures with boxes alone: COCO, VOC and YOLO files, large pictures in pieces, heads without masks."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_objectives import learn, scenes
from test_recipes import run
from test_taskheads import OPTIONS, SPEC
from torchvision.datasets import VOCDetection

from frostline_models import export, recipes
from frostline_models.errors import InputError
from frostline_models.measure import metrics, served
from frostline_models.readers import open_dataset, views
from frostline_models.readers.base import Things
from frostline_models.readers.tiles import Tiles, _starts
from frostline_models.taskheads import objectives, registry

COCO = {"images": "train2017", "annotations": "annotations/instances_train2017.json"}
VOC = {"images": "train", "annotations": "train"}


def shows_its_boxes(data) -> None:
    """In the middle of each box is its class's colour, and just outside it is not."""
    count = 0
    for index in range(len(data)):
        image, truth = data.image(index).astype(int), data.things(index)
        assert truth.boxes.dtype == np.float32 and (data.size(index)[1], data.size(index)[0]) == image.shape[:2]
        for (x0, y0, x1, y1), kind in zip(truth.boxes.round().astype(int), truth.classes):
            colour = np.array(datasets.COLOURS[datasets.NAMES.index(data.labels[kind])])
            assert np.abs(image[(y0 + y1) // 2, (x0 + x1) // 2] - colour).max() < 40
            if x0 > 4:
                assert np.abs(image[(y0 + y1) // 2, x0 - 4] - colour).max() > 60
            count += 1
    assert count > 3


# === readers ===


def test_coco_with_boxes_alone(tmp_path):
    whole = open_dataset("coco", datasets.coco(tmp_path), **COCO)
    file = tmp_path / COCO["annotations"]
    table = json.loads(file.read_text())
    for i, entry in enumerate(table["annotations"]):
        del entry["area"], entry["iscrowd"]
        entry.pop("segmentation") if i % 2 else entry.update(segmentation=[])
    table["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(table))
    data = open_dataset("coco", tmp_path, **COCO, with_empty=True)
    assert not data.masks and data.things(1).masks is None and whole.masks
    np.testing.assert_array_equal(data.things(1).boxes, whole.things(1).boxes)
    np.testing.assert_array_equal(data.ignored(0).boxes, whole.things(0).boxes[:1])
    shows_its_boxes(data)
    assert not open_dataset("coco", tmp_path, **COCO, boxes=True).masks
    for box in (["1", 2, 3, 4], [1, 2, 3, None], [1, float("nan"), 3, 4]):
        file.write_text(json.dumps(table | {"annotations": [table["annotations"][1] | {"bbox": box}]}))
        with pytest.raises(InputError, match=r"annotations\[0\] \(id 2\): bbox .* is not \[x, y, width, height\]"):
            open_dataset("coco", tmp_path, **COCO)
    table["annotations"][2]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    file.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"annotations\[1\] \(id 2\): segmentation is empty or missing.*boxes=true"):
        open_dataset("coco", tmp_path, **COCO)
    assert not open_dataset("coco", tmp_path, **COCO, boxes=True).masks


def test_voc_is_what_torchvision_reads(tmp_path):
    from xml.etree import ElementTree

    root = datasets.voc(tmp_path)
    data = open_dataset("voc", root, **VOC)
    assert data.labels == sorted(datasets.NAMES) and len(data) == 4 and not data.masks
    shows_its_boxes(data)
    for index in range(4):
        parsed = VOCDetection.parse_voc_xml(ElementTree.parse(root / "train" / f"{index}.xml").getroot())["annotation"]
        wanted = [[float(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for o in parsed["object"]]
        np.testing.assert_array_equal(data.things(index).boxes, wanted)
        assert [data.labels[c] for c in data.things(index).classes] == [o["name"] for o in parsed["object"]]
    # VOC's own numbers begin with 1 and hold the last pixel.
    first = open_dataset("voc", root, **VOC, first=1)
    np.testing.assert_array_equal(first.things(0).boxes, (data.things(0).boxes - [1, 1, 0, 0]).clip(0))
    (root / "list.txt").write_text("2\n0 1\n")
    listed = open_dataset("voc", root, **VOC, split="list.txt", labels=["green", "red", "blue"])
    assert [listed.key(i) for i in range(2)] == ["2.jpg", "0.jpg"] and listed.labels[0] == "green"
    assert open_dataset("voc", root, **VOC, label="square").labels == ["square"]


def test_voc_names_what_is_wrong(tmp_path):
    root = datasets.voc(tmp_path)
    file = root / "train" / "1.xml"
    good = file.read_text()

    def refused(said: str, old: str = "", new: str = "", **options):
        assert old in good
        file.write_text(good.replace(old, new, 1))
        with pytest.raises(InputError, match=said):
            open_dataset("voc", root, **VOC | options)

    name = good.split("<name>")[1].split("<")[0]
    xmin = good.split("<xmin>")[1].split("<")[0]
    refused("1.xml: is not XML", "</annotation>", "")
    refused("1.xml: is no VOC annotation: its root is <boxes>", good, "<boxes/>")
    refused("1.xml: object 1: has no name", f"<name>{name}</name>", "")
    refused("1.xml: object 1: bndbox/xmin: is 'x', must be a number", f"<xmin>{xmin}</xmin>", "<xmin>x</xmin>")
    refused("1.xml: object 1: bndbox/xmin: is None", f"<xmin>{xmin}</xmin>", "")
    refused("1.xml: object 1: box .* is not finite", f"<xmin>{xmin}</xmin>", "<xmin>nan</xmin>")
    refused("1.xml: object 1: box .* has no area", f"<xmin>{xmin}</xmin>", "<xmin>95</xmin>")
    refused("1.xml: size: is -5x64, must be whole numbers from 1", "<width>96", "<width>-5")
    refused("1.xml: size: is infx64", "<width>96", "<width>inf")
    refused("1.xml: is not XML", good, '<?xml version="1.0" encoding="utf-77"?>' + good)
    bomb = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    refused("1.xml: is not XML", good, f'<!DOCTYPE x [<!ENTITY a0 "x">{bomb}]><annotation><filename>&a9;</filename></annotation>')
    refused(r"1.xml: object name 'zebra' is not among the 3 known", name, "zebra", labels=list(datasets.NAMES))
    refused("first 2: must be 0 or 1", first=2)
    refused("no such list of pictures", split="none.txt")
    refused(r"train: holds no \*.txt", names="*.txt")
    (root / "some.txt").write_text("7\n")
    refused("7.xml: no such annotation file .listed in some.txt", split="some.txt")
    file.write_text(good.replace("<width>96", "<width>90"))
    with pytest.raises(InputError, match="1.jpg: is 96x64, but 1.xml says 90x64"):
        open_dataset("voc", root, **VOC).image(1)
    file.write_text(good)
    (root / "train" / "1.jpg").unlink()
    refused("1.xml: names the picture '1.jpg', which is not in")


@pytest.mark.parametrize("outlines", [False, True])
def test_yolo(tmp_path, outlines):
    root = datasets.yolo(tmp_path, outlines=outlines)
    data = open_dataset("yolo", root)
    assert data.labels == list(datasets.NAMES) and len(data) == 4 and data.masks == outlines
    shows_its_boxes(data)
    if outlines:
        for index in range(4):
            truth = data.things(index)
            for (x0, y0, x1, y1), mask in zip(truth.boxes.round().astype(int), truth.masks):
                assert mask.sum() == mask[y0:y1, x0:x1].sum() == (x1 - x0) * (y1 - y0)
    # A picture that is stored on its side: labels are of the upright one.
    upright = Image.fromarray(data.image(0))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(root / "images" / "train" / "0.jpg", quality=95, exif=exif)
    shows_its_boxes(open_dataset("yolo", root))
    (root / "labels" / "train" / "3.txt").unlink()
    assert len(open_dataset("yolo", root)) == 3 and len(open_dataset("yolo", root, with_empty=True)) == 4


def test_yolo_names_what_is_wrong(tmp_path):
    root = datasets.yolo(tmp_path)
    file = root / "labels" / "train" / "2.txt"

    def refused(said: str, text: str = "0 0.5 0.5 0.1 0.1\n", **options):
        file.write_text(text)
        with pytest.raises(InputError, match=said):
            open_dataset("yolo", root, **options)

    refused("2.txt: line 1: must be a class and numbers", "red 0.5 0.5 0.1 0.1")
    refused("2.txt: line 2: class 3 has no name; there are 3", "0 0.5 0.5 0.1 0.1\n3 0.5 0.5 0.1 0.1")
    refused("2.txt: line 1: has 5 numbers; a box has 4", "0 0.5 0.5 0.1 0.1 0.9")
    refused("2.txt: line 1: numbers must be shares of the picture", "0 40 30 12 12")
    refused("2.txt: line 1: numbers must be shares", "0 nan 0.5 0.1 0.1")
    refused("2.txt: line 1: box .* has no area", "0 0.5 0.5 0 0.1")
    refused("labels: give the folder of the label files", images="labels/train")
    refused("no such folder", images="images/none")
    (root / "labels" / "train" / "9.txt").write_text("")
    refused("9.txt: belongs to no picture in")
    (root / "labels" / "train" / "9.txt").unlink()
    for text, said in (
        ("names: 3", "names: must be a list"), ("names: {0: a, 2: b}", "numbered from 0 to 1"), ("a: [", "is not YAML"),
        ("- 1", "names: must be a list"),
    ):  # fmt: skip
        (root / "data.yaml").write_text(text)
        refused(f"data.yaml: .*{said}")
    (root / "data.yaml").unlink()
    refused("names: give the file with the classes' names; there is none of data.yaml")
    (root / "classes.txt").write_text("\n".join(datasets.NAMES))
    file.write_text("1 0.5 0.5 0.1 0.1\n")
    assert open_dataset("yolo", root).labels[1] == "green"
    refused("none.txt: no such file", names="none.txt")


# === pieces ===


def test_pieces_cover_a_picture_and_its_things(tmp_path):
    whole = open_dataset("voc", datasets.voc(tmp_path), **VOC)
    pieces = open_dataset("voc", tmp_path, **VOC, tile=40, overlap=12, with_empty=True)
    assert len(pieces) == 4 * len(_starts(96, 40, 12)) * len(_starts(64, 40, 12)) == 4 * 3 * 2
    seen = np.zeros((4, 64, 96), int)
    found = [set() for _ in range(4)]
    for index in range(len(pieces)):
        picture, x, y = pieces.places[index]
        image, truth, cut = pieces.image(index), pieces.things(index), pieces.ignored(index)
        assert image.shape == (40, 40, 3) and pieces.size(index) == (40, 40)
        np.testing.assert_array_equal(image, whole.image(picture)[y : y + 40, x : x + 40])
        seen[picture, y : y + 40, x : x + 40] += 1
        for boxes, share in ((truth.boxes, (0.4, 1.01)), (cut.boxes, (1e-6, 0.4))):
            for box in boxes:
                at = box + [x, y, x, y]
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in whole.things(picture).boxes]
                assert (box >= 0).all() and (box <= 40).all()
                ratios = [
                    np.prod((np.minimum(at[2:], b[2:]) - np.maximum(at[:2], b[:2])).clip(0)) / a
                    for b, a in zip(whole.things(picture).boxes, areas)
                ]
                assert share[0] <= max(ratios) < share[1]
                if boxes is truth.boxes and max(ratios) > 0.99:
                    found[picture].add(int(np.argmax(ratios)))
    assert (seen > 0).all() and seen.max() > 1
    assert sum(map(len, found)) >= 4  # the overlap shows things whole
    assert len(open_dataset("voc", tmp_path, **VOC, tile=40, overlap=12)) == sum(len(pieces.things(i).boxes) > 0 for i in range(24))
    assert len(Tiles(whole, 200)) == 4 and Tiles(whole, 200).size(0) == (96, 64)
    keys = {pieces.key(i) for i in range(24)}
    assert len(keys) == 24 and pieces.fingerprint() != whole.fingerprint()


def test_pieces_that_make_no_sense_are_refused(tmp_path):
    datasets.voc(tmp_path)
    for options, said in (
        ({"tile": 0}, "tile 0: must be a whole number from 1 to 8192"), ({"tile": 40.5}, "tile 40.5"),
        ({"tile": 40, "overlap": 40}, "overlap 40: must be a whole number from 0 to 39"),
        ({"overlap": 4}, "overlap: needs tile"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            open_dataset("voc", tmp_path, **VOC, **options)
    with pytest.raises(InputError, match="tile and overlap are for pictures with boxes"):
        open_dataset("photos", datasets.photos(tmp_path / "p"), images="train", tile=32)


def test_views_of_boxes_are_those_of_outlines(tmp_path):
    data = open_dataset("coco", datasets.coco(tmp_path), **COCO)
    to = recipes.geometry.Input(64, 64)
    for number in range(6):
        at = views.view(96, 64, to, 0, 1, number)
        whole = data.things(1)
        a, b = views.things(whole, at), views.things(Things(whole.boxes, whole.classes, None), at)
        assert b.masks is None
        np.testing.assert_array_equal(a.boxes, b.boxes)


# === heads and measures ===


@pytest.mark.parametrize("form", list(registry.FORMS["detection"]))
def test_heads_without_masks_learn_boxes_and_export(form, monkeypatch):
    monkeypatch.setattr(objectives, "SAMPLED_ROIS", 32)
    maps, truth = scenes()
    del truth["masks"]
    spec = registry.Spec(("stride4", "stride8", "stride16"), (8, 12, 16), (4, 8, 16), 64, 3, 2)
    head = registry.build("detection", form, spec, OPTIONS[form] | {"keep": 10, "masks": False})
    maps = [m for m, f in zip(maps, spec.features) if f in head.features]  # boxes alone need no stride 4
    assert (form == "single-stage") == ("stride4" not in head.features)
    assert not any("proto" in n or n.startswith("mask") for n, _ in head.named_parameters())
    learn(head, maps, truth, 120 if form == "single-stage" else 50)
    with torch.no_grad():
        boxes, scores, labels = head.train().serve(maps)
    for i, (things, classes) in enumerate(zip(truth["boxes"], truth["classes"])):
        overlap, at = objectives.geometry.iou(things, boxes[i][scores[i] > 0.2]).max(1)
        assert (overlap > 0.6).all(), (form, i, overlap)
        assert (labels[i][scores[i] > 0.2][at] == classes).all()
    head.eval()
    session = export.session(registry.graph(head, spec))
    assert [o.name for o in session.get_outputs()] == ["boxes", "scores", "labels"]
    with torch.no_grad():
        wanted = head.serve(maps)
    for a, b in zip(wanted, session.run(None, dict(zip(head.features, (m.numpy() for m in maps))))):
        np.testing.assert_allclose(b, a.numpy(), atol=1e-2, rtol=1e-3)
    assert "mask" not in registry.postprocess(head)
    with pytest.raises(InputError, match="mask_threshold: the head has boxes alone"):
        registry.postprocess(head, {"mask_threshold": 0.4})


def test_masks_need_a_finest_map_that_tiles_the_input():
    odd = registry.Spec(("stride4",), (8,), (8,), 300, 2)
    with pytest.raises(InputError, match="38 cells do not tile 300 pixels"):
        registry.build("detection", "single-stage", odd)
    head = registry.build("detection", "single-stage", odd, {"masks": False, "width": 8})
    assert head.serve([torch.zeros(1, 8, 38, 38)])[0].shape == (1, 100, 4)
    assert SPEC.sides() == [32, 16, 8, 4]


def test_what_is_difficult_is_neither_asked_for_nor_blamed(tmp_path):
    root = datasets.voc(tmp_path)
    for file in (root / "train").glob("*.xml"):
        file.write_text(file.read_text().replace("</name>", "</name><difficult>1</difficult>", 1))
    data = open_dataset("voc", root, **VOC, with_empty=True)
    assert all(len(data.ignored(i).boxes) == 1 for i in range(4))
    every = [
        [served.Detection(int(c), 0.9, b, None) for t in (data.ignored(i), data.things(i)) for b, c in zip(t.boxes, t.classes)]
        for i in range(4)
    ]
    result = metrics.score_detection(every, data)
    assert result.metrics == {"box_map": pytest.approx(1.0), "box_map50": pytest.approx(1.0)}
    for picture in data.pictures:  # the same answers, had they been forgotten
        picture.ignored = []
    assert metrics.score_detection(every, data).metrics["box_map50"] < 0.9
    assert metrics.score_detection([[]] * 4, data).metrics == {"box_map": 0.0, "box_map50": 0.0}


def test_a_recipe_that_wants_masks_of_boxes_is_refused(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "backbone", "export", "swinv2-n", "--size", 64, "--random", 0, "--out", tmp_path / "r")
    words = ["train", "boxes-lite0", "--data", datasets.voc(tmp_path / "d"), "--repository", tmp_path / "r"]
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--set", "head.options.masks=true")
    assert "head.options.masks: the data set has boxes alone" in capsys.readouterr().err
