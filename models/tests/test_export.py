"""Exported graphs agree with PyTorch at any batch, row by row."""

import numpy as np
import onnx
import pytest
import torch

from frostline_models import export
from frostline_models.repository import LABELS, example_maps, make_backbone, make_head, randomize


@pytest.fixture(scope="module")
def backbone():
    model = randomize(make_backbone(), 1).eval()
    return model, export.session(export.backbone_bytes(model))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_backbone_parity(backbone, batch):
    model, session = backbone
    image = torch.randint(0, 256, (batch, 128, 128, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model(image)
    got = session.run(None, {"image": image.numpy()})
    for name, a, b in zip(export.feature_names(model), got, wanted):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-4, rtol=1e-3, err_msg=name)
        assert a.std() > 0.1


def test_backbone_rows_do_not_depend_on_the_batch(backbone):
    _, session = backbone
    image = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3)).astype(np.uint8)
    together = session.run(None, {"image": image})
    for row in (0, 5):
        alone = session.run(None, {"image": image[row : row + 1]})
        for a, b in zip(alone, together):
            np.testing.assert_allclose(a[0], b[row], atol=1e-4, rtol=1e-3)


def test_backbone_graph_computes_no_shapes():
    model = onnx.load_from_string(export.backbone_bytes(make_backbone()))
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "Expand", "ScatterND", "Where", "Erf"}, kinds


@pytest.mark.parametrize("name", list(LABELS))
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_head_parity(name, batch):
    head = randomize(make_head(name), 2).eval()
    session = export.session(export.head_bytes(head, example_maps(head)))
    maps = example_maps(head, batch)
    with torch.no_grad():
        wanted = head.serve(maps)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    got = session.run(None, {f: m.numpy() for f, m in zip(head.features, maps)})
    assert [o.name for o in session.get_outputs()] == list(head.outputs)
    for output, a, b in zip(head.outputs, got, wanted):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-3, rtol=1e-3, err_msg=output)


def test_manifest_is_toml():
    import tomllib

    table = {"a": 'say "x"', "n": 1, "l": [[1, 2]], "t": {"x": 0.5, "b": True}, "f": [{"s": "y"}]}
    assert tomllib.loads(export.manifest(table)) == table
