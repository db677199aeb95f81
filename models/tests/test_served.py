"""Every form of head, as the server serves it, beside PyTorch on the same features; and the
features themselves, of every implementation and precision."""

import shutil

import numpy as np
import onnxruntime as ort
import pytest
import serving
import test_readers
import torch
from PIL import Image
from references import huggingface_maps, timm_maps

from frostline_models import geometry
from frostline_models.backbones import export, parity, sources
from frostline_models.geometry import Input, placement
from frostline_models.labels import SCENE_NAMES, THING_NAMES
from frostline_models.measure import metrics, served
from frostline_models.measure.local import Local
from frostline_models.measure.remote import Remote
from frostline_models.readers.base import Images, Things, read_image
from frostline_models.repository import randomize
from frostline_models.scenes import draw_scene, render
from frostline_models.taskheads import registry
from frostline_models.taskheads.spec import from_manifest, read_manifest

SIZE, CLASSES, FRAMES = 64, 5, 3
SMALL = {
    "single-stage": {"width": 16, "prototypes": 8, "keep": 20},
    "mask-rcnn": {"width": 16, "hidden": 32, "depth": 1, "proposals": 20, "keep": 20},
    "cascade": {"width": 16, "hidden": 32, "depth": 1, "proposals": 20, "keep": 20, "bifpn": True},
    "upernet": {"width": 16},
    "mask2former": {"width": 16, "queries": 8, "layers": 2, "heads": 4},
    "attentive-probe": {"width": 16, "heads": 2},
    "attentive": {"width": 16, "heads": 2},
    "temporal-transformer": {"width": 16, "heads": 2},
}
FORMS = [(task, form) for task, forms in registry.FORMS.items() for form in forms]
POST = {"detection": {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 20}}


def name_of(task: str, form: str) -> str:
    return f"{task}-{form}"


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A repository with a random backbone and every form, its address, and the PyTorch heads."""
    repository, made = tmp_path_factory.mktemp("every-form"), {}
    request = sources.Request("swinv2-n", SIZE, seed=0)
    export.export(sources.load(request), repository, export.Options(), say=lambda _: None)
    manifest = repository / "backbone.toml"
    labels, sha = [f"kind {i}" for i in range(CLASSES)], read_manifest(manifest)["sha256"]
    for task, form in FORMS:
        torch.manual_seed(1)
        spec = from_manifest(manifest, CLASSES, frames=FRAMES if task == "action" else 1)
        head = registry.build(task, form, spec, SMALL.get(form))
        with torch.no_grad():
            for key, parameter in head.named_parameters():
                if parameter.ndim > 1 and "delta" not in key:
                    parameter.mul_(1.5)  # spread scores: their order must not hang on rounding
                if key.endswith(("class_logits.bias", "label.bias")):
                    parameter.zero_()
        made[task, form] = randomize(head, 1).eval()
        registry.publish(
            repository, name_of(task, form), made[task, form], spec, labels, sha, {}, {}, POST.get(task)
        )
    table = serving.check(repository)
    assert all(name_of(task, form) in table for task, form in FORMS)
    with serving.serve(repository) as address:
        yield address, made


@pytest.mark.parametrize("task, form", FORMS)
@torch.no_grad()
def test_every_form_serves_what_pytorch_computes(heads, task, form):
    address, made = heads
    head, remote = made[task, form], Remote(address, name_of(task, form))
    images = parity.pictures(FRAMES, SIZE, seed=4)
    frames = [remote.features(image) for image in images]
    maps = [torch.from_numpy(np.stack([f[n].reshape(f[n].shape[-3:]) for f in frames])) for n in head.features]
    where = placement(SIZE, SIZE, Input(SIZE, SIZE))
    if task == "action":
        wanted = served.probabilities(head.serve([m[None] for m in maps])[0].numpy())
        np.testing.assert_allclose(remote.recognize(list(images)), wanted, atol=1e-3)
        assert wanted.max() - wanted.min() > 1e-3
        return
    outputs = head.serve([m[:1] for m in maps])
    if task == "classification":
        wanted = served.probabilities(outputs[0].numpy())
        np.testing.assert_allclose(remote.classify(images[0]), wanted, atol=1e-3)
        assert wanted.max() - wanted.min() > 1e-3
        return
    if task == "embedding":
        got = remote.embed(images[0])
        np.testing.assert_allclose(got, outputs[0].numpy().ravel(), atol=1e-3)
        assert np.linalg.norm(got) == pytest.approx(1, abs=1e-5) and got.std() > 1e-3
        return
    if task == "segmentation":
        wanted = served.label_map(outputs[0].numpy(), where)
        # Random queries all lean to one class; their masks are compared in test_taskheads.
        assert form == "mask2former" or len(np.unique(wanted)) > 1
        assert (remote.segment(images[0]) == wanted).mean() > 0.998  # ties within rounding
        return
    post = registry.postprocess(head, POST[task])
    row = {k: v[0].numpy() for k, v in zip(head.outputs, outputs)}
    wanted, got = served.detections(row, where, post), remote.detect(images[0])
    assert len(wanted) == len(got) > 1
    for a, b in zip(wanted, got):
        assert a.label == b.label and b.score == pytest.approx(a.score, abs=1e-3)
        np.testing.assert_allclose(b.box, a.box, atol=0.05)
        assert (a.mask != b.mask).mean() < 0.01
    remote.close()


def implementations(request: sources.Request, image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The maps of PyTorch: ours (official names), timm's and Hugging Face's."""
    model, tensor = sources.load(request).module, torch.from_numpy(image[None])
    with torch.no_grad():
        maps = {"official": model(tensor), "timm": timm_maps(model, tensor), "huggingface": huggingface_maps(model, tensor)}
    return {k: [m.numpy() for m in v] for k, v in maps.items()}


def parity_table(request: sources.Request, folder, precisions: tuple[str, ...]) -> list[tuple]:
    """``(what, worst difference over the level's deviation, least cosine)`` against PyTorch,
    of ONNX Runtime and of the running server at each precision."""
    import onnxruntime as ort

    image = parity.pictures(1, request.size, seed=6)[0]
    every = implementations(request, image)
    wanted, rows = every.pop("official"), []

    def add(what: str, got: list[np.ndarray]) -> None:
        levels = [parity.agreement("", a, b.reshape(a.shape)) for a, b in zip(wanted, got)]
        rows.append((what, max(v.relative for v in levels), min(v.cosine for v in levels)))

    for name, maps in every.items():
        add(name, maps)
    calibration = parity.pictures(8, request.size, seed=3)
    for precision in precisions:
        out = folder / precision
        backbone = sources.load(request)
        export.export(backbone, out, export.Options(precision=precision), calibration, say=lambda _: None)
        session = ort.InferenceSession(str(out / "backbone.onnx"), providers=["CPUExecutionProvider"])
        add(f"onnxruntime {precision}", session.run(backbone.names(), {"image": image[None]}))
        spec = from_manifest(out / "backbone.toml", CLASSES)
        head = randomize(registry.build("segmentation", "linear", spec), 1)
        sha = read_manifest(out / "backbone.toml")["sha256"]
        labels = [f"kind {i}" for i in range(CLASSES)]
        registry.publish(out, "plain", head, spec, labels, sha, {}, {})
        with serving.serve(out) as address:
            remote = Remote(address, "plain", timeout=300)
            maps = remote.features(image)
            add(f"served {precision}", [maps[n] for n in backbone.names()])
            remote.close()
    return rows


def check_parity(rows: list[tuple]) -> None:
    for what, relative, cosine in rows:
        print(f"{what:<20} max abs / scale {relative:.2e}   cosine {cosine:.7f}")
    for what, relative, cosine in rows:
        precision = what.split()[-1]
        limit, least = parity.GATES[precision if precision in parity.GATES else "fp32"]
        assert limit is None or relative <= limit, what
        assert cosine >= least, what


def test_served_features_equal_every_implementation(tmp_path):
    request = sources.Request("swinv2-n", SIZE, 4, seed=2)
    check_parity(parity_table(request, tmp_path, ("fp32", "fp16", "int8")))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size, window, pretrained", [("swinv2-t", 256, 8, (None, None)), ("swinv2-b", 384, 24, (192, 12))]
)  # fmt: skip
def test_full_size_parity(tmp_path, name, size, window, pretrained):
    """``pytest -m slow -s -k full_size_parity`` prints the table."""
    request = sources.Request(name, size, window, *pretrained, seed=0)
    check_parity(parity_table(request, tmp_path, ("fp32", "fp16", "int8")))


# === the demo's models, fed otherwise ===


class Rendered(Images):
    """Held-out scenes at sizes of their own, as they are painted: no bars, no square."""

    tasks = ("detection", "segmentation")

    def __init__(self, count: int, task: str):
        self.made = [render(draw_scene(9_400_000 + i, "heldout"), 150 + 23 * (i % 7)) for i in range(count)]
        self.labels = list(THING_NAMES if task == "detection" else SCENE_NAMES)

    def __len__(self) -> int:
        return len(self.made)

    def key(self, index: int) -> str:
        return f"scene-{index}"

    def fingerprint(self) -> str:
        return "rendered"

    def image_id(self, index: int) -> int:
        return index

    def category_id(self, label: int) -> int:
        return label

    def image(self, index: int) -> np.ndarray:
        return self.made[index].image

    def things(self, index: int) -> Things:
        made = self.made[index]
        masks = made.instances[None] == np.array(made.numbers, np.uint8).reshape(-1, 1, 1) + 1
        return Things(np.array(made.boxes, np.float32).reshape(-1, 4), np.array(made.classes, np.int64), masks)

    def label_map(self, index: int) -> np.ndarray:
        return self.made[index].labels


WAYS = [
    'resize = "letterbox"\nfilter = "bilinear"\npad = 114',
    'resize = "letterbox"\nfilter = "bicubic"\npad = 0',
    'resize = "stretch"\nfilter = "bilinear"\npad = 114',
    'resize = "center_crop"\nfilter = "bilinear"\npad = 114',
    'resize = "center_crop"\nfilter = "bicubic"\npad = 114\ncrop_fraction = 0.875',
]


def fed(demo, folder, way: str):
    """The demo's repository, whose backbone is fed in another way."""
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("samples"))
    file = folder / "backbone.toml"
    text = file.read_text()
    assert WAYS[0] in text
    file.write_text(text.replace(WAYS[0], way))
    return folder


@pytest.mark.usefixtures("font")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.replace("\n", " "))
def test_the_server_and_the_graphs_agree_however_the_backbone_is_fed(tmp_path, demo, way):
    repository, count = fed(demo, tmp_path / "fed", way), 24
    with serving.serve(repository) as address:
        for head, task in (("objects", "detection"), ("scene", "segmentation")):
            dataset, remote, local = Rendered(count, task), Remote(address, head), Local(repository, head)
            sizes = {dataset.size(i) for i in range(count)}
            assert len(sizes) > 8
            got = metrics.run(remote, dataset, task, workers=2)
            wanted = metrics.run(local, dataset, task)
            for name, value in wanted.metrics.items():
                print(f"{head} {name}: here {100 * value:.2f}, served {100 * got.metrics[name]:.2f}")
                assert got.metrics[name] == pytest.approx(value, abs=5e-3), name
            assert max(wanted.metrics.values()) > 0.5
            if task == "segmentation":
                for a, b in zip(got.predictions, wanted.predictions):
                    assert (a == b).mean() > 0.995
                    np.testing.assert_array_equal(a == 255, b == 255)
                assert any((b == 255).any() for b in wanted.predictions) == ("center_crop" in way)
            else:
                for a, b in zip(got.predictions, wanted.predictions):
                    assert abs(len(a) - len(b)) <= 1
            remote.close()


@pytest.mark.parametrize("line", ["", "frame_stride = 1\n", "frame_stride = 3\n"])
def test_whole_clips_are_sampled_alike(tmp_path, demo, line):
    """The server takes a clip as it is; here its frames are chosen before."""
    repository = fed(demo, tmp_path / "fed", WAYS[0])
    file = repository / "heads" / "motion" / "head.toml"
    file.write_text(file.read_text().replace("frames = 8\n", f"frames = 8\n{line}"))
    rng = np.random.default_rng(0)
    with serving.serve(repository) as address:
        remote, local = Remote(address, "motion"), Local(repository, "motion")
        assert (remote.frames, remote.frame_stride) == (local.frames, local.frame_stride)
        chances = []
        for count in (1, 3, 7, 8, 9, 16, 21, 22, 23, 40, 64):
            clip = list(rng.integers(0, 256, (count, 30, 40, 3)).astype(np.uint8))
            chances.append(local.recognize(clip))
            np.testing.assert_allclose(remote.recognize(clip), chances[-1], atol=2e-3, err_msg=f"{count} frames")
            read = geometry.positions(count, remote.frames, remote.frame_stride)
            np.testing.assert_allclose(remote.recognize([clip[i] for i in read]), chances[-1], atol=2e-3)
        assert np.ptp(chances, axis=0).max() > 0.01
        remote.close()


def test_files_are_read_as_the_server_reads_them(tmp_path, demo):
    """By the features of files that are easily read otherwise."""
    rng = np.random.default_rng(5)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((160, 120)))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(smooth).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(smooth[..., 0].astype(np.uint16) * 201).save(tmp_path / "deep.png")
    test_readers.deep_png(tmp_path / "deep-colour.png", smooth.astype(np.uint16) * 257 - smooth[..., :1] // 3)
    palette = Image.fromarray(smooth).quantize(64)
    palette.save(tmp_path / "palette.gif")
    palette.save(tmp_path / "clear.gif", transparency=5)
    Image.fromarray(np.dstack((smooth, smooth[..., 0]))).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack((smooth, smooth[..., 0]))).save(tmp_path / "alpha.webp", lossless=True, exact=True)
    session = ort.InferenceSession(str(demo / "backbone.onnx"), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    with serving.serve(demo) as address:
        remote = Remote(address, "objects")
        for file in sorted(tmp_path.iterdir()):
            maps = remote.features(file)
            pixels = geometry.fit(read_image(file), Input(128, 128))
            for name, wanted in zip(names, session.run(names, {"image": pixels[None]})):
                got = maps[name].reshape(wanted.shape)
                assert np.abs(got - wanted).max() < 2e-3 * np.abs(wanted).max(), f"{file.name} {name}"
        remote.close()
