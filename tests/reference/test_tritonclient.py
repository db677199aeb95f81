"""The Open Inference Protocol through the client that its users have: `tritonclient`, from its wheel."""

import asyncio
import io
import json

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from conftest import ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from tritonclient.utils import InferenceServerException

SAMPLES = ROOT / "models/demo/samples"
SCENES = sorted(SAMPLES.glob("scene-*.jpg"))
CLIPS = sorted(SAMPLES.glob("clip-*"))


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server) as client:
        yield client


@pytest.fixture(scope="module")
def backbone(client):
    """The backbone's name as a model."""
    return client.get_model_repository_index(as_json=True)["models"][0]["name"]


def files(name: str, paths: list, shape: list[int]):
    """Image files as an input tensor."""
    tensor = triton.InferInput(name, shape, "BYTES")
    tensor.set_data_from_numpy(np.array([path.read_bytes() for path in paths], dtype=object).reshape(shape))
    return tensor


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_server_and_models_tell_of_themselves(client, backbone):
    assert client.is_server_live() and client.is_server_ready()
    assert client.get_server_metadata().name == "frostline"
    index = client.get_model_repository_index().models
    assert [model.name for model in index] == [backbone, "motion", "objects", "scene"]
    for model in index:
        assert model.state == "READY" and client.is_model_ready(model.name, model.version)
        about = client.get_model_metadata(model.name)
        config = client.get_model_config(model.name).config
        assert [i.name for i in config.input] == [i.name for i in about.inputs]
        assert [list(i.dims) for i in config.input] == [list(i.shape) for i in about.inputs]
        assert [list(o.dims) for o in config.output] == [list(o.shape) for o in about.outputs]
    assert not client.is_model_ready("nobody") and not client.is_model_ready("objects", "99")


@pytest.mark.parametrize("count", [1, 3])
def test_detections_agree_with_the_own_api(count, client, vision, proto):
    answer = client.infer("objects", [files("image", SCENES[:count], [count])], request_id="seven")
    assert answer.get_response().id == "seven"
    found, boxes = answer.as_numpy("num_detections"), answer.as_numpy("boxes")
    scores, labels = answer.as_numpy("scores"), answer.as_numpy("labels")
    names, masks = answer.as_numpy("label_names"), answer.as_numpy("masks")
    for row, path in enumerate(SCENES[:count]):
        image = proto.types.Image(encoded=path.read_bytes())
        own = vision.Detect(proto.vision.DetectRequest(image=image, head="objects")).result.detections
        assert found[row] == len(own) > 0
        for slot, want in enumerate(own):
            box = [want.bbox.x_min, want.bbox.y_min, want.bbox.x_max, want.bbox.y_max]
            assert boxes[row, slot].tolist() == box
            assert (scores[row, slot], labels[row, slot]) == (np.float32(want.score), want.class_index)
            assert names[row, slot].decode() == want.label
            mask = json.loads(masks[row, slot])
            theirs = {"size": [want.mask.height, want.mask.width], "counts": want.mask.counts}
            assert (coco_mask.decode(mask) == coco_mask.decode(theirs)).all()
        assert (labels[row, len(own) :] == -1).all()


def test_pixels_in_and_masks_out_as_arrays(client, vision, proto):
    image = pixels(SCENES[0])
    tensor = triton.InferInput("image", [1, *image.shape], "UINT8")
    tensor.set_data_from_numpy(image[None])
    outputs = [triton.InferRequestedOutput(name) for name in ("masks_dense", "num_detections")]
    answer = client.infer("objects", [tensor], outputs=outputs, parameters={"max_detections": 2})
    raw = proto.types.RawImage(width=image.shape[1], height=image.shape[0], rgb=image.tobytes())
    own = vision.Detect(
        proto.vision.DetectRequest(
            image=proto.types.Image(raw=raw), options=proto.vision.DetectionOptions(max_detections=2)
        )
    ).result.detections
    dense = answer.as_numpy("masks_dense")
    assert dense.shape == (1, len(own), *image.shape[:2]) and answer.as_numpy("num_detections") == [len(own)]
    for got, want in zip(dense[0], own):
        theirs = {"size": [want.mask.height, want.mask.width], "counts": want.mask.counts}
        assert (got == coco_mask.decode(theirs)).all()


def test_label_maps_agree_with_the_own_api(client, vision, proto):
    path = SCENES[1]
    png = vision.Segment(proto.vision.SegmentRequest(image=proto.types.Image(encoded=path.read_bytes()))).result.png
    expected = np.asarray(Image.open(io.BytesIO(png)))
    answer = client.infer("scene", [files("image", [path, path], [2])])
    got = answer.as_numpy("label_map")
    assert got.dtype == np.uint16 and got.shape == (2, *expected.shape)
    assert (got == expected).all()
    outputs = [triton.InferRequestedOutput("label_map_png")]
    answer = client.infer("scene", [files("image", [path], [1])], outputs=outputs)
    assert answer.as_numpy("label_map_png")[0] == png


def test_actions_agree_with_the_own_api(client, vision, proto):
    frames = [sorted(clip.iterdir()) for clip in CLIPS[:2]]
    answer = client.infer("motion", [files("clip", sum(frames, []), [2, 8])])
    chances, labels = answer.as_numpy("probabilities"), answer.as_numpy("labels")
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    classes = client.infer("motion", [files("clip", sum(frames, []), [2, 8])], outputs=outputs)
    for row, paths in enumerate(frames):
        clip = proto.types.Clip(frames=[proto.types.Image(encoded=path.read_bytes()) for path in paths])
        options = proto.vision.ClassificationOptions(top_k=chances.shape[1])
        top = vision.RecognizeAction(proto.vision.RecognizeActionRequest(clip=clip, options=options)).result.top
        for scored in top:
            assert chances[row, scored.class_index] == np.float32(scored.probability)
        assert labels[row].tolist() == [scored.class_index for scored in top[:5]]
        probability, label, name = classes.as_numpy("probabilities")[row, 0].decode().split(":")
        assert (int(label), name) == (top[0].class_index, top[0].label)
        assert abs(float(probability) - top[0].probability) < 1e-5


def test_features_agree_with_the_own_api(client, backbone, vision, proto):
    image = proto.types.Image(encoded=SCENES[2].read_bytes())
    own = vision.ExtractFeatures(proto.vision.ExtractFeaturesRequest(image=image)).maps
    answer = client.infer(backbone, [files("image", [SCENES[2]], [1, 1])])
    for want in own:
        got = answer.as_numpy(want.name)
        assert list(got.shape[1:]) == list(want.shape) and got.tobytes() == want.data
    one = client.infer(
        backbone, [files("image", [SCENES[2]], [1])], outputs=[triton.InferRequestedOutput(own[0].name)]
    )
    assert [output.name for output in one.get_response().outputs] == [own[0].name]


def test_asyncio(server, client):
    async def several():
        async with triton_aio.InferenceServerClient(server) as client:
            calls = [client.infer("objects", [files("image", [path], [1])]) for path in SCENES]
            return await asyncio.gather(*calls)

    for path, answer in zip(SCENES, asyncio.run(several())):
        alone = client.infer("objects", [files("image", [path], [1])])
        assert (answer.as_numpy("boxes") == alone.as_numpy("boxes")).all()


def test_heads_come_and_go(client):
    client.unload_model("scene")
    assert not client.is_model_ready("scene")
    states = {model.name: model.state for model in client.get_model_repository_index().models}
    assert states["scene"] == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.infer("scene", [files("image", SCENES[:1], [1])])
    client.load_model("scene")
    assert client.is_model_ready("scene")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.load_model("nobody")


def test_refusals_and_deadlines(client):
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT.*inputs\\[0\\].name"):
        client.infer("objects", [files("picture", SCENES[:1], [1])])
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
        client.infer("objects", [files("image", SCENES[:1], [1])], timeout=1)
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED|Deadline"):
        client.infer("objects", [files("image", SCENES[:1], [1])], client_timeout=1e-4)
    assert len(client.infer("objects", [files("image", SCENES[:1], [1])], priority=1).as_numpy("scores"))
