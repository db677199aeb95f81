"""Backbones against timm, Hugging Face and ONNX Runtime; what cannot be used is refused."""

import re
import tomllib

import numpy as np
import onnx
import pytest
import torch
from references import huggingface_maps, huggingface_model, timm_maps, timm_model

from frostline_models import cli
from frostline_models.backbones import bench, checkpoint, export, graph, parity, precision, sources
from frostline_models.backbones.variants import VARIANTS, check_size, fits, swinv2_config
from frostline_models.errors import InputError
from frostline_models.export import session as file_session
from frostline_models.swinv2 import SwinV2, SwinV2Config

#: Shifted and unshifted windows, a stage smaller than its window, another pretrained window.
SMALL = {
    "even": SwinV2Config(128, 16, (2, 2, 2, 1), (1, 2, 4, 8), window=4),
    "clamped": SwinV2Config(64, 16, (2, 2, 2, 2), (1, 2, 4, 4), window=8),
    "pretrained": SwinV2Config(
        128, 16, (2, 1, 2, 1), (2, 2, 4, 8), window=8, pretrained_windows=(4, 4, 4, 2)
    ),
}


def small(kind: str = "even", seed: int = 0) -> SwinV2:
    return sources.randomize(SwinV2(SMALL[kind]), seed).eval()


def as_backbone(module: SwinV2) -> sources.Backbone:
    cfg = module.cfg
    return sources.Backbone(
        module, "small", cfg.image_size, cfg.strides(), cfg.channels(), "small", "random"
    )


def pixels(size: int, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(parity.pictures(count, size, seed=9))


def assert_close(wanted, got, tolerance=1e-3):
    assert len(wanted) == len(got) == 4
    for a, b in zip(wanted, got):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * a.std()


# === against other implementations ===


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("maps", [timm_maps, huggingface_maps])
def test_values_are_those_of_other_implementations(kind, maps):
    model, image = small(kind), pixels(SMALL[kind].image_size)
    with torch.no_grad():
        assert_close(maps(model, image), model(image), 1e-4)


def test_random_weights_make_every_part_count():
    model, image = small(), pixels(128)
    with torch.no_grad():
        before = model(image)
        for name in ("attn.logit_scale", "attn.cpb_mlp.0.weight", "attn.q_bias", "norm1.weight"):
            changed = small()
            dict(changed.named_parameters())[f"layers.2.blocks.1.{name}"].mul_(1.5)
            change = (changed(image)[2] - before[2]).std() / before[2].std()
            assert change > 1e-3, name


@pytest.mark.parametrize("layout", ["official", "timm", "huggingface"])
def test_a_checkpoint_of_any_layout_loads(tmp_path, layout):
    model = small("pretrained", seed=4)
    path = tmp_path / "weights.pth"
    if layout == "official":
        extra = {
            "layers.0.blocks.1.attn_mask": torch.zeros(3), "norm.weight": torch.ones(128),
            "layers.0.blocks.0.attn.relative_coords_table": torch.zeros(2), "head.bias": torch.ones(5),
        }  # fmt: skip
        torch.save({"model": {**model.state_dict(), **extra}, "epoch": 3}, path)
    elif layout == "timm":
        torch.save(timm_model(model).state_dict(), path)
    else:
        from safetensors.torch import save_file

        path = tmp_path / "model.safetensors"
        state = huggingface_model(model).state_dict()
        save_file({f"swinv2.{k}": v.contiguous() for k, v in state.items()}, path)
        path = sources.weights_file(tmp_path)
    loaded = SwinV2(SMALL["pretrained"]).eval()
    assert checkpoint.load_into(loaded, path) == layout
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_features_only_names_of_timm_load(tmp_path):
    model = small()
    state = {
        re.sub(r"^layers\.(\d)", r"layers_\1", k): v for k, v in timm_model(model).state_dict().items()
    }
    torch.save(state, tmp_path / "t.pth")
    assert checkpoint.load_into(SwinV2(SMALL["even"]), tmp_path / "t.pth") == "timm"


def test_bad_checkpoints_are_refused_by_file_and_key(tmp_path):
    model, path = small(), tmp_path / "w.pth"
    state = model.state_dict()

    def refused(data, *words):
        torch.save(data, path)
        with pytest.raises(InputError) as error:
            checkpoint.load_into(SwinV2(SMALL["even"]), path)
        for word in ("w.pth", *words):
            assert word in str(error.value), str(error.value)

    gone = dict(state)
    del gone["layers.1.blocks.0.attn.q_bias"]
    refused(gone, "missing keys", "layers.1.blocks.0.attn.q_bias")
    refused({**state, "layers.0.blocks.0.extra": torch.ones(1)}, "unknown keys", "extra")
    refused({**state, "patch_embed.norm.bias": torch.ones(7)}, "patch_embed.norm.bias is [7]", "[16]")
    refused({"conv1.weight": torch.ones(3)}, "no SwinV2 checkpoint", "conv1.weight")
    refused({"epoch": 3}, "no tensors", "epoch")
    nan = {**state, "patch_embed.norm.bias": torch.full((16,), float("nan"))}
    refused(nan, "not finite", "patch_embed.norm.bias")
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="w.pth"):
            checkpoint.read(path)
    with pytest.raises(InputError, match="no such file"):
        checkpoint.read(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="holds neither"):
        sources.weights_file(tmp_path)


# === sizes ===


def test_sizes_on_which_implementations_disagree_are_refused():
    for size, window in ((256, 8), (384, 24), (192, 12), (1024, 16), (224, 7)):
        check_size(size, window)
    for size, window, hint in ((320, 8, "256, 512"), (300, 8, "256"), (384, 16, "12, 24")):
        with pytest.raises(InputError) as error:
            check_size(size, window)
        assert hint in str(error.value)
    with pytest.raises(InputError, match="window 1"):
        check_size(256, 1)
    with pytest.raises(InputError, match="from 32 to"):
        check_size(9000, 8)
    assert not fits(96, 8) and fits(96, 12)


def test_published_sizes_have_the_published_number_of_parameters():
    wanted = {"t": 27.6, "s": 49.0, "b": 86.9, "l": 195.2, "g": 2998}
    for letter, millions in wanted.items():
        with torch.device("meta"):
            model = SwinV2(swinv2_config(f"swinv2-{letter}", 256, 8))
        count = sum(p.numel() for p in model.parameters()) / 1e6
        assert count == pytest.approx(millions, rel=2e-3)
    assert set(wanted) < set(VARIANTS)
    assert swinv2_config("swinv2_base", 384, 24, 192, 12).pretrained_windows == (12, 12, 12, 6)
    with pytest.raises(InputError, match="swinv2-t"):
        swinv2_config("swinv2-x", 256, 8)


def test_extra_norms_follow_every_so_many_blocks():
    model = SwinV2(SwinV2Config(64, 8, (1, 2, 4, 1), (1, 1, 1, 1), window=4, extra_norm_every=2))
    extra = [k for k in model.state_dict() if "norm3.weight" in k]
    assert extra == [f"layers.{i}.blocks.{j}.norm3.weight" for i, j in ((1, 1), (2, 1), (2, 3))]


# === export ===


@pytest.mark.parametrize("attention", graph.FORMS)
@pytest.mark.parametrize("kind", SMALL)
def test_exported_graphs_agree_at_any_batch(tmp_path, kind, attention):
    model, size = small(kind), SMALL[kind].image_size
    image = pixels(size, 5)
    with torch.no_grad():
        wanted = model(image)
    export.export(
        as_backbone(model), tmp_path, export.Options(attention=attention), say=lambda _: None
    )
    session = file_session(tmp_path / "backbone.onnx")
    kinds = {n.op_type for n in onnx.load(tmp_path / "backbone.onnx").graph.node}
    assert ("Attention" in kinds) == (attention == "fused")
    assert ("MultiHeadAttention" in kinds) == (attention == "mha")
    assert not kinds & {"Shape", "Expand", "ScatterND", "Where", "Erf", "Sigmoid"}, kinds
    for batch in (1, 3, 5):
        assert_close([w[:batch] for w in wanted], session.run(None, {"image": image[:batch].numpy()}))


@pytest.mark.parametrize("form", graph.FORMS)
def test_a_mask_too_large_to_merge_stays_apart(monkeypatch, form):
    model, image = small(), pixels(128)
    with torch.no_grad():
        wanted = model(image)
        monkeypatch.setattr(graph, "MERGE_BYTES", 1)
        prepared = graph.prepare(model, form)
        assert any(m.mask is not None for m in prepared.modules() if hasattr(m, "mask"))
        assert_close(wanted, prepared(image), 1e-4)


def test_the_manifest_holds_hash_shapes_and_parity(tmp_path):
    levels = export.export(
        as_backbone(small()), tmp_path, export.Options(licence="MIT"), say=lambda _: None
    )
    table = tomllib.loads((tmp_path / "backbone.toml").read_text())
    assert table["sha256"] == export.file_sha256(tmp_path / "backbone.onnx")
    assert table["source"]["licence"] == "MIT"
    assert [f["channels"] for f in table["features"]] == [16, 32, 64, 128]
    assert table["metrics"]["stride8_max_abs"] == pytest.approx(levels[1].max_abs, rel=1e-5)
    assert all(isinstance(v, float) for v in table["metrics"].values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backbone.onnx", "backbone.toml"]


@pytest.mark.parametrize("name, form", [("fp16", "matmul"), ("int8", "matmul"), ("fp16", "fused"), ("fp16", "mha")])
def test_lower_precisions_pass_their_gates_and_keep_their_types(tmp_path, name, form):
    images = parity.pictures(4, 128, seed=5)
    options = export.Options(precision=name, attention=form)
    levels = export.export(as_backbone(small()), tmp_path, options, images, say=lambda _: None)
    gate = {"fp16": 0.999, "int8": 0.98}[name]
    assert all(level.cosine >= gate for level in levels)
    session = file_session(tmp_path / "backbone.onnx")
    assert {o.type for o in session.get_outputs()} == {"tensor(float)"}
    plain = tmp_path / "plain"
    export.export(as_backbone(small()), plain, export.Options(), say=lambda _: None)
    sizes = [(p / "backbone.onnx").stat().st_size for p in (tmp_path, plain)]
    assert sizes[0] < 0.85 * sizes[1]
    batch = session.run(None, {"image": images[:3]})
    alone = session.run(None, {"image": images[2:3]})
    for a, b in zip(batch, alone):
        assert np.abs(a[2] - b[0]).max() <= 2e-2 * b.std()


def test_bf16_is_written_where_the_provider_takes_it(tmp_path):
    plain = tmp_path / "p.onnx"
    export.trace(as_backbone(graph.prepare(small())), plain, export.Options())
    model = precision.to_bf16(onnx.load(plain))
    onnx.checker.check_model(model, full_check=True)
    if problem := precision.takes("CPUExecutionProvider", model.SerializeToString()):
        with pytest.raises(InputError, match="bf16: CPUExecutionProvider does not take it"):
            export.export(
                as_backbone(small()), tmp_path / "out", export.Options(precision="bf16"),
                say=lambda _: None,
            )  # fmt: skip
        assert "MatMul" in problem
        assert not (tmp_path / "out" / "backbone.toml").exists()


def test_large_weights_go_beside_the_graph_and_into_the_fingerprint(tmp_path):
    hashes = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        options = export.Options(embed_limit=100_000)
        export.export(as_backbone(small(seed=seed)), out, options, say=lambda _: None)
        assert (out / "backbone.onnx").stat().st_size < 1e6 < (out / "backbone.onnx.data").stat().st_size
        model = onnx.load(out / "backbone.onnx", load_external_data=False)
        noted = {p.key: p.value for p in model.metadata_props}["data_sha256"]
        assert noted == export.file_sha256(out / "backbone.onnx.data")
        image = pixels(128)
        with torch.no_grad():
            wanted = small(seed=seed)(image)
        got = file_session(out / "backbone.onnx").run(None, {"image": image.numpy()})
        assert_close(wanted, got)
        hashes.append(tomllib.loads((out / "backbone.toml").read_text())["sha256"])
    assert hashes[0] != hashes[1], "other weights must be another backbone"


def test_disagreement_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(parity.GATES, "fp32", (1e-12, 0.9))
    with pytest.raises(InputError, match="does not agree with PyTorch.*stride4"):
        export.export(as_backbone(small()), tmp_path, export.Options(), say=lambda _: None)
    assert not list(tmp_path.iterdir())
    for options, words in (
        (export.Options(precision="fp64"), "fp32, fp16"),
        (export.Options(precision="int8"), "calibration"),
        (export.Options(provider="NoSuchProvider"), "NoSuchProvider"),
    ):
        with pytest.raises(InputError, match=words):
            export.export(as_backbone(small()), tmp_path, options, say=lambda _: None)


# === timm ===


@pytest.mark.parametrize(
    "name, size, strides",
    [
        ("convnext_atto", 64, [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", 64, [4, 8, 16, 32]),
        ("resnet10t", 64, [2, 4, 8, 16, 32]),
    ],
)
def test_timm_models_export_by_name(tmp_path, name, size, strides):
    backbone = sources.load(sources.Request(name, size, seed=0))
    assert backbone.strides == strides
    image = pixels(size, 3)
    with torch.no_grad():
        wanted = backbone.module(image)
    # Finer maps than stride 4, which no head here reads, are left out unless they are asked for.
    for features, kept in ((None, [s for s in strides if s >= 4]), (("stride8", "stride4"), [4, 8]), ((f"stride{strides[0]}",), strides[:1])):
        export.export(backbone, tmp_path, export.Options(features=features), say=lambda _: None)
        session = file_session(tmp_path / "backbone.onnx")
        table = tomllib.loads((tmp_path / "backbone.toml").read_text())
        assert [o.name for o in session.get_outputs()] == [f["name"] for f in table["features"]] == [f"stride{s}" for s in kept]
        places = [strides.index(s) for s in kept]
        for i, b in zip(places, session.run(None, {"image": image.numpy()})):
            assert b.shape == (3, backbone.channels[i], size // strides[i], size // strides[i])
            assert np.abs(wanted[i].numpy() - b).max() <= 1e-3 * b.std()
    with pytest.raises(InputError, match="--features: there is no 'stride7'; the backbone has stride"):
        export.export(backbone, tmp_path, export.Options(features=("stride7",)), say=lambda _: None)


@pytest.mark.parametrize("name, size", [("tf_efficientnet_lite0", 64), ("tf_efficientnet_lite0", 80), ("tf_mobilenetv3_small_075", 96)])
def test_same_padding_is_worked_out_once(tmp_path, name, size):
    """timm works "SAME" padding out at each run; here it is part of the convolutions, also where the
    last cells of a map lie in part beyond the picture (80 / 32)."""
    backbone = sources.load(sources.Request(name, size, seed=0))
    image = pixels(size, 3)
    with torch.no_grad():
        wanted = [m for m, s in zip(backbone.module(image), backbone.strides) if s >= 4]
    export.export(backbone, tmp_path, export.Options(), say=lambda _: None)
    kinds = {n.op_type for n in onnx.load(tmp_path / "backbone.onnx").graph.node}
    assert not kinds & {"Shape", "Ceil", "Pad", "Slice", "Gather", "Where", "Expand"}, kinds
    session = file_session(tmp_path / "backbone.onnx")
    for batch in (1, 3):
        got = session.run(None, {"image": image[:batch].numpy()})
        assert [g.shape[-1] for g in got] == [-(-size // s) for s in (4, 8, 16, 32)]
        for a, b in zip(wanted, got):
            assert np.abs(a[:batch].numpy() - b).max() <= 1e-4 * b.std()


@pytest.mark.parametrize("mode, value, channels", [("constant", 0.0, 0), ("constant", 1.0, 0), ("reflect", 0.0, 0), ("constant", 0.0, 1)])
def test_only_zeros_around_a_picture_become_a_convolutions_padding(tmp_path, mode, value, channels):
    from pathlib import Path

    from frostline_models.split.graph import Graph

    helper, kinds = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 3 + channels, 3, 3)).astype(np.float32),
        "pads": np.array([0, channels, 1, 0, 0, 0, 2, 3], np.int64), "value": np.float32(value),
    }  # fmt: skip
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["padded"], mode=mode),
        helper.make_node("Conv", ["padded", "w"], ["y"], pads=[1, 0, 0, 1]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", kinds.FLOAT, ["n", 3, 9, 9])],
            [helper.make_tensor_value_info("y", kinds.FLOAT, None)],
            [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
        ), opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    x = rng.normal(size=(2, 3, 9, 9)).astype(np.float32)
    before = file_session(model.SerializeToString()).run(None, {"x": x})[0]
    export.merge_pads(Graph(model, Path("g.onnx")))
    after = file_session(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(after, before, atol=1e-5)
    plain = (mode, value, channels) == ("constant", 0.0, 0)
    assert [n.op_type for n in model.graph.node] == (["Conv"] if plain else ["Pad", "Conv"])


def test_a_timm_checkpoint_loads_and_a_wrong_one_is_refused(tmp_path):
    import timm

    whole = sources.randomize(timm.create_model("convnext_atto"), 3)
    path = tmp_path / "convnext.pth"
    torch.save(whole.state_dict(), path)
    backbone = sources.load(sources.Request("convnext_atto", 64, checkpoint=path))
    with torch.no_grad():
        image = pixels(64, 1)
        module = backbone.module
        x = (image.float() * module.pixel_scale + module.pixel_offset).permute(0, 3, 1, 2)
        wanted = whole.eval().forward_intermediates(x, intermediates_only=True)[-4:]
        for a, b in zip(wanted, module(image)):
            torch.testing.assert_close(a, b)
    torch.save({"conv.weight": torch.ones(1)}, path)
    with pytest.raises(InputError, match="missing keys.*stem"):
        sources.load(sources.Request("convnext_atto", 64, checkpoint=path))
    with pytest.raises(InputError, match="no timm model"):
        sources.load(sources.Request("convnext_nonesuch", 64, seed=0))
    with pytest.raises(InputError, match="multiple of 32"):
        sources.load(sources.Request("convnext_atto", 72, seed=0))
    with pytest.raises(InputError, match="either --checkpoint"):
        sources.load(sources.Request("convnext_atto", 64))


# === command line ===


def test_the_command_line_exports_and_explains(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["frostline-models", "backbone", *arguments])
        cli.main()

    run("export", "swinv2-n", "--size", "64", "--random", "1", "--out", str(tmp_path))
    assert "stride32" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run("export", "swinv2-n", "--size", "96", "--random", "1", "--out", str(tmp_path))
    assert stopped.value.code == 2
    assert "sizes that work" in capsys.readouterr().err
    run("sizes", "--window", "12", "--most", "400")
    assert capsys.readouterr().out.split() == ["32", "96", "192", "384"]


def test_the_bench_compares_in_one_run():
    times = bench.run(sources.Request("swinv2-n", 64, 8, seed=0), ["fp32"], ["matmul"], 1, 2, 1)
    assert set(times) == {"pytorch eager", "plain exporter", "fp32 matmul"}
    assert "x eager" in bench.table(times)
