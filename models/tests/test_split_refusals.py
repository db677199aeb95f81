"""What ``split`` says of models that it cannot cut, and of options that do not fit: one sentence
that names the tensor and what to do."""

import foreign
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_split import split

from frostline_models.errors import InputError


def model(tmp_path, nodes, inputs, outputs, weights=(), opset: int = 17, domains=()):
    """An ONNX file of a few nodes."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def value(name: str, *shape, element: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, element, shape)


def conv(tmp_path, *more, outputs=None, inputs=None):
    """A convolution to ``map`` (stride 4) and ``more`` nodes."""
    weight = onnx.numpy_helper.from_array(np.ones((8, 3, 4, 4), np.float32), "w")
    first = helper.make_node("Conv", ["x", "w"], ["map"], strides=[4, 4])
    inputs = inputs or [value("x", "n", 3, 32, 32)]
    return model(tmp_path, [first, *more], inputs, outputs or [value("y", None, None, None, None)], [weight])


def relu(source="map", made="y"):
    return helper.make_node("Relu", [source], [made])


def refused(said: str, *words):
    with pytest.raises(InputError, match=said) as caught:
        split(*words)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_control_flow(tmp_path):
    branch = helper.make_graph([relu("map", "z")], "b", [], [value("z", None, None, None, None)])
    flag = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    refused(r"tensor 'y' comes from If \(control flow\), which cannot be cut; export", conv(tmp_path, flag, node))


def test_custom_operators(tmp_path):
    node = helper.make_node("Deformable", ["map"], ["y"], domain="mmdeploy")
    weight = onnx.numpy_helper.from_array(np.ones((8, 3, 4, 4), np.float32), "w")
    first = helper.make_node("Conv", ["x", "w"], ["map"], strides=[4, 4])
    path = model(tmp_path, [first, node], [value("x", "n", 3, 32, 32)], [value("y", None)], [weight], domains=["mmdeploy"])
    refused(r"tensor 'y' comes from Deformable of the domain 'mmdeploy'.*export the model without it", path)


def test_several_inputs_until_they_are_fixed(tmp_path):
    inputs = [value("x", "n", 3, 32, 32), value("scale", 1)]
    path = conv(tmp_path, helper.make_node("Mul", ["map", "scale"], ["y"]), inputs=inputs)
    refused(r"has 2 inputs \('x', 'scale'\), but a backbone takes one picture; make the others constants with --fix", path)
    refused(r"--fix size: there is no such input; it has x, scale", path, "--fix", "size=1")
    refused(r"--fix 'scale': must be INPUT=VALUE", path, "--fix", "scale")
    said = split(path, "--fix", "scale=2.5", "--out", tmp_path / "r", "--normalize", "unit", "--labels", "numbers")
    assert "bit for bit" in said


def test_open_sizes_and_axes_that_never_resolve(tmp_path):
    path = conv(tmp_path, relu(), inputs=[value("x", "n", 3, "h", "w")])
    refused(r"input 'x' has an open height or width; give --size", path)
    assert "32x32" in split(path, "--size", 32)
    refused(r"--size 'big': must be pixels a side", path, "--size", "big")
    path = conv(tmp_path, helper.make_node("NonZero", ["map"], ["y"]), outputs=[value("y", None, None, element=7)])
    refused(r"output 'y' is \[4, \d+\] for 3 pictures.*tensor 'y' comes from NonZero; export the model without", path)


def test_pictures_only(tmp_path):
    refused(r"input 'x' is int64 \[1, 3, 32, 32\], but must be a picture",
            conv(tmp_path, relu(), inputs=[value("x", 1, 3, 32, 32, element=TensorProto.INT64)]))  # fmt: skip
    path = conv(tmp_path, relu(), inputs=[value("x", "n", "c", "h", "w")])
    refused(r"which axis holds its 3 channels is not clear; give --layout", path)
    assert "32x32" in split(path, "--layout", "NCHW", "--size", 32)
    (tmp_path / "no.onnx").write_bytes(b"hello")
    refused("is not an ONNX model", tmp_path / "no.onnx")
    refused("cannot be read: No such file", tmp_path / "none.onnx")


def test_cuts_that_do_not_separate(tmp_path):
    path, _ = foreign.yolo(tmp_path / "yolo.onnx")
    p3, p4 = "/p3/p3.1/last/last.2/Mul_output_0", "/p4/p4.1/last/last.2/Mul_output_0"
    text = refused(r"does not separate: '/p3/p3.1/last/last.2/Mul_output_0' goes round it to '.*'; name it too", path, "--cut", p4,
                   "--out", tmp_path / "r", "--normalize", "unit", "--labels", "numbers")  # fmt: skip
    assert p3 in text.split("--cut ")[-1]  # the remedy is the option as it should be
    refused(r"--cut nothing: the graph computes no such tensor", path, "--cut", "nothing", "--out", tmp_path / "r",
            "--normalize", "unit", "--labels", "numbers")  # fmt: skip
    refused(r"--cut output0: it is the model's own output", path, "--cut", "output0", "--out", tmp_path / "r",
            "--normalize", "unit", "--labels", "numbers")  # fmt: skip
    mean = helper.make_node("ReduceMean", ["map"], ["rows"], axes=[3], keepdims=0)
    flat = conv(tmp_path, mean, relu("rows"), outputs=[value("y", None, None, None)])
    refused(r"--cut rows: it is \[1, 8, 8\], which does not tile the input", flat, "--cut", "rows", "--out",
            tmp_path / "r", "--normalize", "unit")  # fmt: skip
    # Past the middle of a block, the shortcut goes round.
    path, _ = foreign.resnet(tmp_path / "resnet.onnx")
    refused(r"'/maxpool/MaxPool_output_0' goes round it to '/layer1/layer1.0/Add_output_0'", path, "--cut",
            "/layer1/layer1.0/conv2/Conv_output_0", "--out", tmp_path / "r", "--normalize", "unit", "--labels", "numbers")  # fmt: skip
    assert not (tmp_path / "r").exists()


def test_options_that_do_not_fit(tmp_path):
    path, _ = foreign.resnet(tmp_path / "resnet.onnx")
    out = ["--out", tmp_path / "r"]
    refused(r"input 'input' is float: say what it wants of pixels with --normalize", path, *out, "--labels", "numbers")
    refused(r"--normalize '1,2': must be", path, *out, "--normalize", "1,2", "--labels", "numbers")
    refused(r"a head for classification names its 7 labels: give --labels", path, *out, "--normalize", "unit")
    (tmp_path / "names.txt").write_text("a\nb\n")
    refused(r"names.txt: has 2 names, but tensor 'output' of resnet.onnx has 7 classes", path, *out, "--normalize", "unit",
            "--labels", tmp_path / "names.txt")  # fmt: skip
    refused(r"--form 'rcnn': must be one of", path, *out, "--normalize", "unit", "--labels", "numbers", "--form", "rcnn")
    refused(r"outputs 'output' \['N', 7\] are not of the form detr", path, *out, "--normalize", "unit", "--labels",
            "numbers", "--form", "detr")  # fmt: skip
    refused(r"--outputs z: there is no such tensor; it gives output", path, "--outputs", "z")
    refused(r"input 'input' has a fixed height of 64, not 96", path, "--size", 96)
    refused(r"--name 'a b': must be", path, *out, "--normalize", "unit", "--labels", "numbers", "--name", "a b")
    refused(r"--score-threshold 2.0: must be from 0 to 1", foreign.yolo(tmp_path / "y.onnx")[0], *out, "--normalize", "unit",
            "--labels", "numbers", "--score-threshold", 2)  # fmt: skip
    assert not (tmp_path / "r" / "backbone.toml").exists()


def test_a_repository_of_another_backbone_is_left_alone(tmp_path):
    path, _ = foreign.resnet(tmp_path / "resnet.onnx")
    split(path, "--out", tmp_path / "r", "--normalize", "unit", "--labels", "numbers", "--name", "old")
    before = (tmp_path / "r" / "backbone.toml").read_bytes()
    refused(r"holds another backbone, to which old belong", path, "--out", tmp_path / "r", "--normalize", "half",
            "--labels", "numbers", "--name", "new")  # fmt: skip
    assert (tmp_path / "r" / "backbone.toml").read_bytes() == before


def test_a_graph_that_mixes_the_pictures_of_a_batch(tmp_path):
    mean = helper.make_node("ReduceMean", ["map"], ["m"], axes=[0], keepdims=1)
    path = conv(tmp_path, mean, helper.make_node("Sub", ["map", "m"], ["y"]))
    refused(r"output 'y' of a picture changes with the batch it is in", path)
