"""Answers as sequences, tables, pictures and COCO's results; against numpy, pycocotools, pandas and Pillow."""

import base64
import copy
import io
import json
import pickle
import re

import grpc
import numpy as np
import pandas
import pytest
import supervision
from conftest import SAMPLES
from frostline_client import (
    Analysis, Classification, Client, Detection, Detections, FrostlineError, HeadFailure, Mask, Provenance, ScoredLabel,
    Segmentation, Tensor, Tensors, convert, pictures,
)  # fmt: skip
from frostline.v1 import types_pb2, vision_pb2
from frostline_client.drawing import color
from google.rpc import error_details_pb2, status_pb2
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCENE = SAMPLES / "scene-1.jpg"
TRUTH = json.loads((SAMPLES / "truth.json").read_text())["pictures"]
RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def client(server):
    with Client(server) as client:
        yield client


@pytest.fixture(scope="module")
def found(client):
    return client.detect(SCENE, "objects")


@pytest.fixture(scope="module")
def both(client):
    return client.analyze(SCENE, heads=["objects", "scene"])


def encoded(pixels: np.ndarray) -> Mask:
    rle = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return Mask(*rle["size"], rle["counts"])


def test_masks_are_what_pycocotools_makes_of_them():
    shapes = [(1, 1), (1, 7), (9, 1), (37, 53), (480, 640), (900, 2000)]
    for height, width in shapes:
        blocks = RNG.random((height // 40 + 1, width // 40 + 1)) < 0.4
        for pixels in (
            np.zeros((height, width), bool), np.ones((height, width), bool), RNG.random((height, width)) < 0.5,
            np.kron(blocks, np.ones((40, 40), bool))[:height, :width],
        ):  # fmt: skip
            mask = encoded(pixels)
            assert mask.array().dtype == bool and (mask.array() == pixels).all()
            assert mask.area == pixels.sum() and mask == encoded(pixels) and hash(mask) == hash(encoded(pixels))


@pytest.mark.parametrize("counts", [b"", b"\x00", b"oooooooooooooooooo", b"5", b"o", b"~", b"1" * 9, "ä".encode()])
def test_damaged_masks_are_told_so(counts):
    for use in (Mask.array, lambda mask: mask.area):
        with pytest.raises(ValueError, match="damaged"):
            use(Mask(4, 5, counts))


def test_detections_are_a_sequence(found):
    every = list(found)
    assert len(every) == len(found) == 4 and found[0] is every[0] and found[-1] is every[-1]
    assert isinstance(found[1:], Detections) and list(found[1:]) == every[1:] and found[::2].head == "objects"
    assert every[2] in found and found.index(every[2]) == 2 and list(reversed(found)) == every[::-1]
    assert found.labels() == [one.label for one in every]
    assert (found.class_indices() == [one.class_index for one in every]).all()
    with pytest.raises(IndexError):
        found[4]
    with pytest.raises(TypeError):
        found["football"]
    assert not found[4:] and found[4:].boxes().shape == (0, 4) and found[4:].scores().shape == (0,)


def test_answers_are_equal_where_what_was_found_is(client, found, both):
    again, both_again = client.detect(SCENE.read_bytes(), "objects"), client.analyze(SCENE, heads=["objects", "scene"])
    assert found == again and hash(found) == hash(again) and found.request_id != again.request_id
    assert both == both_again and hash(both) == hash(both_again)
    assert len({found, again, found[1:]}) == 2 and found != found[1:] and found != list(found)
    scene = both.segmentation()
    assert scene == client.segment(SCENE) and hash(scene) == hash(client.segment(SCENE))
    assert scene != client.segment(SAMPLES / "scene-2.jpg") and scene != 7
    # Another encoder's PNG of the same map is the same answer; another map of the same labels is another.
    assert scene == Segmentation(*scene._key(), png(scene.label_map, compress_level=1), scene.provenance)
    other = scene.label_map[::-1]
    assert scene != Segmentation(*scene._key(), png(other), scene.provenance)
    features = client.features(SCENE, ["stride32"])
    assert features == client.features(SCENE, ["stride32"]) != client.features(SAMPLES / "scene-2.jpg", ["stride32"])
    assert isinstance(hash(features), int) and isinstance(hash(found.provenance), int)


def png(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def test_answers_are_pickled_and_copied(client, found, both):
    with Image.open(SCENE) as opened:
        by_pixels = client.analyze(opened.convert("RGB"))
    clip = client.recognize(pictures(SAMPLES / "clip-1"))
    for answer in (found, both, both.segmentation(), by_pixels, clip, client.features(SCENE), client.backbone()):
        for again in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer), copy.copy(answer)):
            assert again == answer and type(again) is type(answer)
    assert pickle.loads(pickle.dumps(found)).image == SCENE
    assert len(pickle.dumps(by_pixels)) < 60_000, "pixels stay at home"
    with pytest.raises(ValueError, match="knows no image"):
        pickle.loads(pickle.dumps(by_pixels)).draw()
    error = FrostlineError(
        grpc.StatusCode.INVALID_ARGUMENT, "message", reason="R", field="f", retry_after=1.5,
        details={"limit": "7"}, request_id="id", attempts=3, source=io.BytesIO(),
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), repr(again)) == (str(error), repr(error)) and again.source is None
    assert {**again.__dict__, "source": 0} == {**error.__dict__, "source": 0}


def test_texts_are_short(client, found, both):
    assert re.fullmatch(r"<objects: 4 found: football 0\.\d\d, turtle 0\.\d\d, hammer 0\.\d\d, …>", repr(found))
    assert re.fullmatch(r"<football 0\.\d\d at \d+, \d+, \d+, \d+>", repr(found[0]))
    for answer in (found, both, both.segmentation(), client.features(SCENE), client.recognize(pictures(SAMPLES / "clip-1"))):
        assert len(repr(answer)) < 500 and "\n" not in repr(answer), repr(answer)
    assert repr(found[4:]) == "<objects: 0 found>" and repr(found[0].mask) == "<Mask 640x480>"


def test_tables(found, both):
    table = found.to_pandas()
    assert list(table.columns) == [
        "image", "head", "label", "class_index", "score", "x_min", "y_min", "x_max", "y_max", "area"
    ]  # fmt: skip
    assert len(table) == 4 and (table.image == str(SCENE)).all() and list(table.label) == found.labels()
    assert np.allclose(table[["x_min", "y_min", "x_max", "y_max"]], found.boxes()) and np.allclose(table.score, found.scores())
    assert list(table.area) == [one.mask.array().sum() for one in found]
    empty = found[4:].to_pandas()
    assert len(empty) == 0 and (empty.dtypes == table.dtypes).all()
    assert (pandas.concat([table, empty, table]).dtypes == table.dtypes).all()
    shares = both.segmentation().to_pandas()
    values, counts = np.unique(both.segmentation().label_map, return_counts=True)
    assert list(shares.class_index) == list(values) and list(shares.pixels) == list(counts)
    assert shares.share.sum() == pytest.approx(1.0)


def test_tables_without_masks_and_of_clips(client):
    table = client.detect(SCENE, "objects", masks=False).to_pandas()
    assert table.area.isna().all() and len(table) == 4
    top = client.recognize(pictures(SAMPLES / "clip-1"), top_k=3).to_pandas()
    assert len(top) == 3 and top.probability.is_monotonic_decreasing and top.image.isna().all()


def test_supervision_takes_them(client, found):
    taken = found.to_supervision()
    assert isinstance(taken, supervision.Detections) and len(taken) == 4
    assert np.array_equal(taken.xyxy, found.boxes()) and np.array_equal(taken.confidence, found.scores())
    assert list(taken["class_name"]) == found.labels()
    assert all((taken.mask[i] == coco.decode(one.mask.coco())).all() for i, one in enumerate(found))
    # Its own functions work on it.
    assert len(taken[taken.confidence > found[1].score]) == 1
    assert np.array_equal(taken.area, [one.mask.area for one in found])
    nothing = found[4:].to_supervision()
    assert len(nothing) == 0 and nothing.is_empty()
    assert client.detect(SCENE, "objects", masks=False).to_supervision().mask is None


def test_cocos_tools_take_them(client, tmp_path):
    """The samples as a data set of COCO's: its evaluation finds the objects where the truth says."""
    names = sorted({thing["label"] for picture in TRUTH for thing in picture["objects"]})
    categories = {name: 100 + i for i, name in enumerate(names)}
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for n, i in categories.items()]}
    results = []
    for number, picture in enumerate(TRUTH, 1):
        truth["images"].append({"id": number, "width": picture["width"], "height": picture["height"]})
        for thing in picture["objects"]:
            x_min, y_min, x_max, y_max = thing["box"]
            box = [x_min, y_min, x_max - x_min, y_max - y_min]
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": categories[thing["label"]],
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
        found = [one for one in client.detect(SAMPLES / picture["file"], "objects") if one.label in categories]
        found = Detections("objects", "1", tuple(found), None)
        results += found.to_coco(number, categories=categories)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    data = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(data, data.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[1] > 0.8, "AP at 0.5"
    for row in results:
        assert coco.area(row["segmentation"]) == row["area"]
    assert client.detect(SCENE, "objects").to_coco()[0]["category_id"] == client.detect(SCENE, "objects")[0].class_index
    with pytest.raises(KeyError, match="football"):
        client.detect(SCENE, "objects").to_coco(categories={"cat": 1})


def test_drawings(client, found, both):
    """Lines where the boxes are, tints where the masks are, and nothing elsewhere."""
    with Image.open(SCENE) as opened:
        plain = np.asarray(opened.convert("RGB")).astype(int)
    drawn = np.asarray(found.draw(labels=False)).astype(int)
    assert drawn.shape == plain.shape
    touched = np.zeros(plain.shape[:2], bool)
    for one in found:
        x_min, y_min, x_max, y_max = (int(edge) for edge in one.box)
        middle = (y_min + y_max) // 2
        assert tuple(drawn[middle, x_min]) == color(one.class_index)
        touched |= one.mask.array()
        touched[y_min : y_max + 2, x_min : x_max + 2] |= True
    assert (drawn[~touched] == plain[~touched]).all()
    alone = found[0].mask.array().copy()
    for one in found[1:]:
        x_min, y_min, x_max, y_max = (int(edge) for edge in one.box)
        alone[y_min : y_max + 2, x_min : x_max + 2] = False
    rows, columns = np.nonzero(alone)
    y, x = rows[len(rows) // 2], columns[len(rows) // 2]
    wanted = plain[y, x] * 0.55 + np.array(color(found[0].class_index)) * 0.45
    assert np.abs(drawn[y, x] - wanted).max() <= 1
    bare = np.asarray(found.draw(masks=False, labels=False)).astype(int)
    assert (bare[y, x] == plain[y, x]).all()
    map_only = np.asarray(both.segmentation().draw(labels=False)).astype(int)
    tints = np.array([color(i) for i in range(64)])[both.segmentation().label_map]
    assert np.abs(map_only - (plain + tints) / 2).max() <= 1
    assert (np.asarray(found.draw()) != drawn).any(), "names"
    assert both.draw().size == (640, 480)
    # Of what was given, in whatever form; another picture is refused by its size.
    pixels = plain.astype(np.uint8)
    assert np.array_equal(np.asarray(client.detect(pixels, "objects").draw(pixels)), np.asarray(found.draw(pixels)))
    with pytest.raises(ValueError, match="not of 480x640"):
        found.draw(SAMPLES / "scene-2.jpg")


def test_drawings_at_every_size(client):
    for size in ((16, 16), (64, 2000), (2000, 64), (1, 300), (1500, 1000)):
        with Image.open(SCENE) as opened:
            picture = opened.convert("RGB").resize(size)
        assert client.analyze(picture, score_threshold=0.02).draw().size == size


def test_notebooks_show_a_picture_and_a_table(client, found, both):
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.format == "PNG" and shown.size == (640, 480)
    page = both._repr_html_()
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (640, 480)
    assert page.count("<tr>") == 1 + 4 + 1 + len(both.segmentation().segments)
    with Image.open(SCENE) as opened:
        large = client.detect(opened.convert("RGB").resize((1600, 1200)), "objects")
    assert max(Image.open(io.BytesIO(large._repr_png_())).size) == 800
    clip = client.recognize(pictures(SAMPLES / "clip-1"))
    assert clip._repr_png_() is None and "<img" not in clip._repr_html_() and clip.top[0].label in clip._repr_html_()


def test_what_notebooks_show_survives_what_is_gone_and_what_is_hostile(client, tmp_path):
    gone = tmp_path / "gone.jpg"
    gone.write_bytes(SCENE.read_bytes())
    found = client.detect(gone, "objects")
    gone.unlink()
    assert found._repr_png_() is None and "<img" not in found._repr_html_() and "football" in found._repr_html_()
    made = Provenance("", "computed", 1, 1, {})
    nasty = Detection((0, 0, 1, 1), 0.5, "<script>alert(1)</script>", 0, None)
    many = Detections("<b>", "1", (nasty,) * 30, made)
    page = many._repr_html_()
    assert "<script" not in page and "<b>" not in page and "10 more" in page


def test_a_client_need_not_remember(server):
    with Client(server, remember=False) as client:
        found = client.detect(SCENE)
        assert found.image is None and found.draw(SCENE).size == (640, 480)
        with pytest.raises(ValueError, match="knows no image"):
            found.draw()


def test_each_heads_answer_has_its_type(client, both):
    assert both.detections("objects") is both["objects"] is both.detections()
    assert both.segmentation("scene") is both.segmentation() and set(both) == {"objects", "scene"} and len(both) == 2
    assert "scene" in both and "nobody" not in both
    with pytest.raises(TypeError, match="the head scene gave Segmentation, not Detections"):
        both.detections("scene")
    with pytest.raises(KeyError, match="nobody"):
        both.detections("nobody")
    with pytest.raises(KeyError, match="0 heads of objects, scene gave Classification"):
        both.classification()
    clip = client.analyze(frames=pictures(SAMPLES / "clip-1"))
    assert isinstance(clip.classification("motion"), Classification)


def test_answers_that_a_server_may_give_one_day():
    """A head that failed, kinds and numbers that are not known yet."""
    failed = status_pb2.Status(code=13, message="NaN")
    failed.details.add().Pack(error_details_pb2.ErrorInfo(reason="HEAD_FAILED", metadata={"output": "boxes"}))
    answer = vision_pb2.AnalyzeResponse(
        results=[
            vision_pb2.HeadResult(head="a", version="1", error=failed),
            vision_pb2.HeadResult(head="b", version="1"),
            vision_pb2.HeadResult(
                head="c", version="1", tensor=types_pb2.TensorResult(
                    outputs=[types_pb2.Tensor(name="t", data_type=99, shape=[1], data=b"1234"),
                             types_pb2.Tensor(name="v", data_type=types_pb2.DATA_TYPE_FLOAT32, shape=[1], data=b"\0\0\x80?")])),
        ],
        provenance=types_pb2.Provenance(feature_source=77),
    )  # fmt: skip
    read = convert.analysis(answer, convert.About("id"))
    assert read.provenance.feature_source == "unknown_77"
    assert [failure.head for failure in read.failures()] == ["a", "b"]
    with pytest.raises(FrostlineError, match="INTERNAL: a: NaN") as raised:
        read.detections("a")
    assert (raised.value.reason, raised.value.request_id) == ("HEAD_FAILED", "id")
    assert raised.value.details == {"output": "boxes"}
    with pytest.raises(FrostlineError):
        read.detections()
    assert isinstance(read["b"], HeadFailure) and isinstance(read.tensors(), Tensors)
    with pytest.raises(ValueError, match="does not know"):
        read.tensors("c").raw["t"].array()
    assert read.tensors("c").raw["v"].array().tolist() == [1.0]
    assert "failed, NaN" in repr(read) and isinstance(read, Analysis)
    assert isinstance(hash(ScoredLabel("a", 1, 0.5)), int) and Tensor("<f4", (1,), b"") != Tensor("<f4", (2,), b"")
