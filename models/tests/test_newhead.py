"""A commented manifest for a head that somebody exported, and what is said of one that does not fit."""

import tomllib

import pytest
import serving
import torch

from frostline_models import cli
from frostline_models.errors import InputError


class Head(torch.nn.Module):
    """Reads stride16 and stride32 of the demo backbone (128 pixels)."""

    def __init__(self, task: str):
        super().__init__()
        self.task, self.a, self.b = task, torch.nn.Conv2d(128, 5, 1), torch.nn.Linear(256, 5)

    def forward(self, fine, coarse):
        if self.task == "segmentation":
            return self.a(fine) + self.b(coarse.mean((2, 3)))[:, :, None, None]
        if self.task == "action":
            return self.b(coarse.mean((1, 3, 4))) + 0 * fine.mean()
        row = self.b(coarse.mean((2, 3))) + self.a(fine).mean((2, 3))
        if self.task == "detection":
            boxes = torch.stack([row[:, :4], row[:, :4] + 9], 1).abs()
            return boxes, row[:, :2].sigmoid(), (row[:, :2] > 0).long()
        if self.task == "keypoints":
            return torch.stack([row, row, row.sigmoid()], -1)[:, None]
        return row


OUTPUTS = {"detection": ["boxes", "scores", "labels"], "embedding": ["embedding"], "keypoints": ["keypoints"], "tensor": ["anything"]}


def export(path, task, names=("stride16", "stride32"), dynamic=True, side=8, outputs=None):
    lead = (2, 3) if task == "action" else (2,)
    maps = torch.zeros(*lead, 128, side, side), torch.zeros(*lead, 256, 4, 4)
    outputs = outputs or OUTPUTS.get(task, ["logits"])
    torch.onnx.export(
        Head(task).eval(), maps, str(path), dynamo=False, input_names=list(names), output_names=outputs,
        dynamic_axes={n: {0: "batch"} for n in [*names, *outputs]} if dynamic else None,
    )  # fmt: skip
    return path


@pytest.fixture
def repository(tmp_path, demo):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("backbone.toml", "backbone.onnx"):
        (folder / name).write_bytes((demo / name).read_bytes())
    return folder


def new_head(*words):
    arguments = cli.parser().parse_args(["new-head", *map(str, words)])
    arguments.run(arguments)


def test_heads_of_every_task_pass_the_check_as_written(tmp_path, repository):
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    for task in ("detection", "segmentation", "action", "classification", "keypoints", "embedding", "tensor"):
        more = ["--labels", tmp_path / "two.txt"] if task == "detection" else []
        new_head(export(tmp_path / f"{task}.onnx", task), "--repository", repository, *more)
        text = (repository / "heads" / task / "head.toml").read_text()
        table = tomllib.loads(text)
        assert table["task"] == task and text.count("#") > 8
        assert len(table.get("labels", [])) == {"detection": 2, "embedding": 0, "tensor": 0}.get(task, 5)
    said = serving.check(repository)
    assert all(task in said for task in ("detection", "segmentation", "action", "classification", "keypoints", "embedding", "tensor"))


def test_what_does_not_fit_is_named_with_its_remedy(tmp_path, repository):
    def refused(said, *words):
        with pytest.raises(InputError, match=said):
            new_head(*words, "--repository", repository)

    file = tmp_path / "h.onnx"
    refused(r"input 'input.1' is none of the backbone's maps \(stride4, .*export it with input_names",
            export(file, "classification", ("input.1", "stride32")))  # fmt: skip
    refused(r"input stride16 float \[2, 128, 8, 8\] has a fixed batch; export it with dynamic_axes",
            export(file, "classification", dynamic=False))  # fmt: skip
    refused(r"input stride16 float \[\?, 128, 16, 16\] does not fit the map: \[128, 8, 8\]", export(file, "classification", side=16))
    refused(r"h.onnx: does not tell how many labels a head for detection has; give --labels", export(file, "detection"))
    refused(r"gives out float \[\?, 5\]; classification needs logits", export(file, "classification", outputs=["out"]), "--task", "classification")
    refused(r"--task 'magic': must be one of", file, "--task", "magic")
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    refused(r"has 2 names, but tensor 'logits' of h.onnx has 5 classes", export(file, "classification"), "--labels", tmp_path / "two.txt")
    new_head(file, "--repository", repository)
    refused(r"head.toml: is there already; give another --name", file)
    (tmp_path / "no.onnx").write_text("no")
    refused("is not an ONNX model", tmp_path / "no.onnx")
