"""Boxes xyxy in input pixels: overlap, coding, suppression, and sampling maps inside them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Largest growth of a side in one step of regression, as in Detectron.
MAX_LOG_GROWTH = math.log(1000 / 16)
#: Samples per bin and axis of RoIAlign.
SAMPLES = 2


def areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """``[..., A, 4]`` and ``[..., B, 4]`` to ``[..., A, B]``."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    both = (high - low).clamp(min=0)
    both = both[..., 0] * both[..., 1]
    union = areas(a)[..., :, None] + areas(b)[..., None, :] - both
    return both / union.clamp(min=1e-6)


def encode(boxes: Tensor, targets: Tensor, weights: tuple[float, float]) -> Tensor:
    """What :func:`decode` turns ``boxes`` into ``targets`` with; ``weights`` of centre and side."""
    centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    want, want_side = (targets[..., :2] + targets[..., 2:]) / 2, targets[..., 2:] - targets[..., :2]
    side, want_side = side.clamp(min=1.0), want_side.clamp(min=1.0)
    return torch.cat(
        (weights[0] * (want - centre) / side, weights[1] * (want_side / side).log()), -1
    )


def decode(boxes: Tensor, deltas: Tensor, weights: tuple[float, float], size: float) -> Tensor:
    """Boxes moved and stretched by ``deltas [..., 4]``, clipped to the input."""
    centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    side = side.clamp(min=1.0)
    centre = centre + deltas[..., :2] / weights[0] * side
    side = side * (deltas[..., 2:] / weights[1]).clamp(max=MAX_LOG_GROWTH).exp()
    return torch.cat((centre - side / 2, centre + side / 2), -1).clamp(0.0, size)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``index [N, K]`` of ``values [N, L, D]``."""
    # repeat, since expand exports as shape arithmetic.
    return values.gather(1, index.unsqueeze(-1).repeat(1, 1, int(values.shape[-1])))


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Scores, those of suppressed boxes next to nothing; rows must be sorted, best first.

    "Fast NMS": a box goes if any better one overlaps it too much, suppressed or not.  Unlike
    the greedy kind it is one matrix, the same work for every image of a batch.  What is suppressed keeps its order, so that
    the choice of the remaining rows is no coin toss.
    """
    count = int(boxes.shape[1])
    better = torch.ones(count, count, device=boxes.device).tril(-1)
    overlap = (iou(boxes, boxes) * better).amax(-1)
    return scores * ((overlap <= threshold).to(scores.dtype) + 1e-4).clamp(max=1.0)


def best(boxes: Tensor, scores: Tensor, threshold: float, keep: int) -> tuple[Tensor, Tensor]:
    """The ``keep`` best of ``boxes [N, L, 4]`` after suppression, best first, and their scores."""
    scores, order = scores.topk(int(scores.shape[1]), dim=1)
    boxes = take(boxes, order)
    scores, order = suppress(boxes, scores, threshold).topk(keep, dim=1)
    return take(boxes, order), scores


# === RoIAlign ===


def sample(values: Tensor, boxes: Tensor, bins: int, size: float) -> Tensor:
    """RoIAlign in PyTorch: ``values [N, C, h, w]`` over ``boxes [N, K, 4]`` to
    ``[N * K, C, bins, bins]``, :data:`SAMPLES` bilinear samples a bin and axis, averaged."""
    rows, count, fine = boxes.shape[0], boxes.shape[1], bins * SAMPLES
    steps = (torch.arange(fine, dtype=boxes.dtype, device=boxes.device) + 0.5) / fine
    span = boxes[..., 2:] - boxes[..., :2]
    x = boxes[..., 0:1] + steps * span[..., 0:1]  # [N, K, fine]
    y = boxes[..., 1:2] + steps * span[..., 1:2]
    grid = torch.stack(
        (
            x[:, :, None, :].expand(-1, -1, fine, -1),
            y[:, :, :, None].expand(-1, -1, -1, fine),
        ),
        -1,
    )
    grid = (2 * grid / size - 1).reshape(rows, count * fine, fine, 2)
    out = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    out = out.reshape(rows, -1, count, bins, SAMPLES, bins, SAMPLES).mean((4, 6))
    return out.transpose(1, 2).flatten(0, 1)


class _RoiAlign(torch.autograd.Function):
    """:func:`sample`, exported as ONNX's RoiAlign."""

    @staticmethod
    def forward(ctx, values, rois, index, bins, size, side):
        return sample(values, rois.reshape(values.shape[0], -1, 4), bins, float(size))

    @staticmethod
    def symbolic(g, values, rois, index, bins, size, side):
        return g.op(
            "RoiAlign", values, rois, index, coordinate_transformation_mode_s="half_pixel",
            mode_s="avg", output_height_i=bins, output_width_i=bins, sampling_ratio_i=SAMPLES,
            spatial_scale_f=side / size,
        )  # fmt: skip


def roi_align(values: Tensor, boxes: Tensor, bins: int, size: int) -> Tensor:
    """``[N, C, h, w]`` over boxes ``[N, K, 4]`` in pixels of a square input to
    ``[N * K, C, bins, bins]``."""
    if not torch.onnx.is_in_onnx_export():
        return sample(values, boxes, bins, float(size))
    count = int(boxes.shape[1])
    # 0, 1, 2 ... per row of a batch whose size the graph does not know.
    row = (boxes[:, :1, 0] * 0 + 1).cumsum(0) - 1
    index = row.repeat(1, count).reshape(-1).to(torch.int64)
    return _RoiAlign.apply(values, boxes.reshape(-1, 4), index, bins, size, int(values.shape[-1]))


def pyramid_align(levels: list[Tensor], boxes: Tensor, bins: int, size: int) -> Tensor:
    """RoIAlign from the level that suits each box: sides below 28 cells of it, the coarsest
    for the rest (112, 224, 448 pixels at strides 4, 8, 16).

    Every level samples every box and all but one result is dropped: fixed shapes cost less
    than sorting boxes by level does.
    """
    side = areas(boxes).clamp(min=1.0).sqrt().reshape(-1, 1, 1, 1)
    out, below = None, 0.0
    for i, level in enumerate(levels):
        limit = 28.0 * size / int(level.shape[-1])
        here = side >= below if below else side >= 0
        if i + 1 < len(levels):
            here = here & (side < limit)
        part = roi_align(level, boxes, bins, size) * here.to(level.dtype)
        out = part if out is None else out + part
        below = limit
    return out
