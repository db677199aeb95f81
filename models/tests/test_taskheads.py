"""Every head form: exported graphs equal PyTorch at any batch; parts equal known answers."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from frostline_models import export
from frostline_models.errors import InputError
from frostline_models.repository import randomize
from frostline_models.taskheads import boxes, parts, registry
from frostline_models.taskheads.spec import Spec, from_manifest

SPEC = Spec(
    ("stride4", "stride8", "stride16", "stride32"), (16, 24, 32, 40), (4, 8, 16, 32), 128, 5, 4
)
#: Widths that keep tests fast; the shapes are those of the full heads.
OPTIONS = {
    "single-stage": {"width": 32, "prototypes": 8, "keep": 20},
    "mask-rcnn": {"width": 32, "hidden": 64, "depth": 1, "proposals": 30, "keep": 20},
    "cascade": {"width": 32, "hidden": 64, "depth": 1, "proposals": 30, "keep": 20, "bifpn": True},
    "upernet": {"width": 32},
    "mask2former": {"width": 32, "queries": 10, "layers": 3, "heads": 4},
    "attentive-probe": {"width": 32, "heads": 4},
    "attentive": {"width": 32, "heads": 4},
    "temporal-transformer": {"width": 32, "heads": 4},
}
FORMS = [(task, form) for task, forms in registry.FORMS.items() for form in forms]


def make(task: str, form: str, seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    head = registry.build(task, form, SPEC, OPTIONS.get(form))
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1 and "delta" not in name:
                # Confident, spread scores: the order of the best must not hang on rounding.
                parameter.mul_(1.5)
    return randomize(head, seed).eval()


@pytest.mark.parametrize("task, form", FORMS)
def test_exported_heads_equal_pytorch_at_any_batch(task, form):
    head = make(task, form)
    data = registry.graph(head, SPEC)
    session = export.session(data)
    assert [i.name for i in session.get_inputs()] == list(SPEC.features)
    assert [o.name for o in session.get_outputs()] == list(head.outputs)
    for batch in (1, 3):
        maps = registry.example_maps(SPEC, task == "action", batch, seed=batch)
        with torch.no_grad():
            wanted = head.serve(maps)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        got = session.run(None, dict(zip(SPEC.features, (m.numpy() for m in maps))))
        for name, a, b in zip(head.outputs, wanted, got):
            assert a.shape == b.shape and a.shape[0] == batch
            tolerance = 1e-2 if name == "boxes" else 1e-3
            np.testing.assert_allclose(b, a.numpy(), atol=tolerance, rtol=1e-3, err_msg=name)
        if task == "detection":
            assert got[2].dtype == np.int64 and got[2].min() >= 0 and got[2].max() < SPEC.classes
            assert (got[0] >= 0).all() and (got[0] <= SPEC.size).all()
            assert (got[1] >= 0).all() and (got[1] <= 1).all() and (got[3] <= 1).all()
            assert len(set(got[2].ravel().tolist())) > 1, "one label only: a vacuous check"


@pytest.mark.parametrize("task, form", FORMS)
def test_graphs_hold_only_common_operators(task, form):
    model = onnx.load_from_string(registry.graph(make(task, form), SPEC))
    assert {o.domain for o in model.opset_import} <= {""}
    kinds = {n.op_type for n in model.graph.node}
    assert not kinds & {"Loop", "If", "NonZero", "NonMaxSuppression", "ScatterND"}, kinds


@pytest.mark.parametrize("form", list(registry.FORMS["action"]))
def test_action_heads_split_into_a_frame_part_and_a_clip_part(form):
    head = make("action", form)
    frame, clip = (export.session(data) for data in registry.action_parts(head, SPEC))
    maps = registry.example_maps(SPEC, clip=True, batch=2)
    with torch.no_grad():
        wanted = head.serve(maps).numpy()
    tokens = [
        frame.run(None, {f: m[:, t].numpy() for f, m in zip(SPEC.features, maps)})[0]
        for t in range(SPEC.frames)
    ]
    got = clip.run(None, {"tokens": np.stack(tokens, 1)})[0]
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-3)


# === parts ===


@pytest.mark.parametrize("source, target", [(8, 32), (7, 20), (16, 6), (1, 4)])
def test_resize_matrix_is_bilinear(source, target):
    x = torch.randn(2, 3, source, source)
    wanted = F.interpolate(x, size=(target, target), mode="bilinear", align_corners=False)
    torch.testing.assert_close(parts.resize(source, target)(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source, target", [(8, 3), (7, 6), (12, 1), (4, 4)])
def test_pool_matrix_is_adaptive_pooling(source, target):
    x = torch.randn(2, 3, source, source)
    wanted = F.adaptive_avg_pool2d(x, target)
    torch.testing.assert_close(parts.Resample(parts.pool_matrix(source, target))(x), wanted)


def test_attention_equals_torchs():
    ours, theirs = parts.Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.q, ours.k, ours.v)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.q, ours.k, ours.v)]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(query, key, key), theirs(query, key, key)[0])


def test_roi_align_equals_torchvisions():
    from torchvision.ops import roi_align

    values = torch.randn(2, 3, 16, 16)
    corner = torch.rand(2, 9, 2) * 80
    rois = torch.cat((corner, corner + torch.rand(2, 9, 2) * 47 + 1), -1)
    wanted = roi_align(values, list(rois), 7, 16 / 128, boxes.SAMPLES, aligned=True)
    torch.testing.assert_close(boxes.roi_align(values, rois, 7, 128), wanted, atol=1e-4, rtol=1e-4)


def test_boxes_go_to_the_level_of_their_size():
    levels = [torch.full((1, 1, 128 // s, 128 // s), float(i)) for i, s in enumerate((4, 8, 16, 32))]
    rois = torch.tensor([[[0, 0, side, side] for side in (20.0, 111, 112, 120)]])
    out = boxes.pyramid_align(levels, rois, 2, 128)[:, 0, 0, 0]
    assert out.tolist() == [0, 0, 1, 1]
    whole = torch.tensor([[[0, 0, 500.0, 500], [0, 0, 230, 230]]])
    levels = [torch.full((1, 1, 512 // s, 512 // s), float(i)) for i, s in enumerate((4, 8, 16, 32))]
    assert boxes.pyramid_align(levels, whole, 2, 512)[:, 0, 0, 0].tolist() == [3, 2]


def test_coding_of_boxes_is_undone_by_decoding():
    a = torch.tensor([[10.0, 10, 50, 90], [0, 0, 8, 8]])
    b = torch.tensor([[20.0, 5, 60, 70], [2, 2, 12, 9]])
    torch.testing.assert_close(boxes.decode(a, boxes.encode(a, b, (10, 5)), (10, 5), 128.0), b)


def test_suppression_keeps_the_better_of_two_that_overlap():
    rows = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]]])
    scores = torch.tensor([[0.5, 0.9, 0.1]])
    kept, values = boxes.best(rows, scores, 0.5, 3)
    assert values[0, 2] < 1e-3 * values[0, 1]
    kept, values = kept[:, :2], values[:, :2]
    assert kept[0].tolist() == [[1, 0, 11, 10], [40, 40, 50, 50]]
    torch.testing.assert_close(values, torch.tensor([[0.9, 0.1]]))


def test_an_empty_mask_lets_a_query_attend_everywhere():
    head = make("segmentation", "mask2former")
    layer = head.layers[0]
    x, cells = torch.randn(1, 10, 32), torch.randn(1, 16, 32)
    place, at = head.place, torch.zeros(1, 16, 32)
    shut = torch.full((1, 1, 10, 16), -1e4)
    torch.testing.assert_close(
        layer(x, place, cells, at, shut), layer(x, place, cells, at, shut * 0), atol=1e-2, rtol=1e-2
    )


# === building ===


def test_unknown_tasks_forms_and_options_are_refused():
    for task, form, options, words in (
        ("pose", "linear", {}, "detection, segmentation, action"),
        ("action", "upernet", {}, "attentive-probe"),
        ("segmentation", "upernet", {"widht": 3}, "width, scales"),
        ("segmentation", "mask2former", {"heads": 3, "width": 64}, "3 heads do not divide 64"),
    ):
        with pytest.raises(InputError, match=words):
            registry.build(task, form, SPEC, options)


def test_a_spec_comes_from_the_backbones_manifest(demo, tmp_path):
    spec = from_manifest(demo / "backbone.toml", 3, ["stride32", "stride8"], frames=8)
    assert spec.features == ("stride8", "stride32") and spec.channels == (64, 256)
    assert spec.sides() == [16, 4] and spec.frames == 8
    with pytest.raises(InputError, match="stride7.*stride4, stride8"):
        from_manifest(demo / "backbone.toml", 3, ["stride7"])
    (tmp_path / "backbone.toml").write_text("file = 1")
    with pytest.raises(InputError, match="sha256 is missing"):
        from_manifest(tmp_path / "backbone.toml", 3)


def test_full_size_heads_build():
    coco = Spec(("stride4", "stride8", "stride16", "stride32"), (128, 256, 512, 1024), (4, 8, 16, 32), 768, 80, 8)
    for task, form in FORMS:
        head = registry.build(task, form, coco)
        assert sum(p.numel() for p in head.parameters()) < 60e6
