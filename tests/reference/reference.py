"""An independent implementation of what the server does, from the same model files.

onnxruntime, numpy, Pillow and pycocotools only; nothing is shared with the server. Written to be plainly right rather
than quick: every original pixel is mapped to the input and sampled on its own.
"""

import io
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask


class Letterbox:
    """How an image of `width` x `height` pixels lies in an input of `size` = (height, width)."""

    def __init__(self, width: int, height: int, size: tuple[int, int]):
        input_height, input_width = size
        scale = min(input_width / width, input_height / height)
        self.width, self.height = width, height
        self.new_width = min(input_width, max(1, int(np.floor(width * scale + 0.5))))
        self.new_height = min(input_height, max(1, int(np.floor(height * scale + 0.5))))
        self.left = (input_width - self.new_width) // 2
        self.top = (input_height - self.new_height) // 2
        self.scale_x = self.new_width / width
        self.scale_y = self.new_height / height

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """[K, 4] xyxy in input pixels to original pixels, not clipped."""
        x = (boxes[:, 0::2] - self.left) / self.scale_x
        y = (boxes[:, 1::2] - self.top) / self.scale_y
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)

    def grid(self, shape: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of every original pixel's centre in a map of `shape` over an input of `size`, in cells."""
        x = ((np.arange(self.width) + 0.5) * self.scale_x + self.left) * shape[1] / size[1] - 0.5
        y = ((np.arange(self.height) + 0.5) * self.scale_y + self.top) * shape[0] / size[0] - 0.5
        return x, y


def sample(maps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples of `maps` [C, h, w] at the grid of cell coordinates x [W], y [H]; edges clamped."""
    height, width = maps.shape[1:]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[None, None, :], (y - y0)[None, :, None]
    top = maps[:, y0][:, :, x0] * (1 - fx) + maps[:, y0][:, :, x1] * fx
    bottom = maps[:, y1][:, :, x0] * (1 - fx) + maps[:, y1][:, :, x1] * fx
    return top * (1 - fy) + bottom * fy


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    overlap = np.prod(np.clip(high - low, 0, None), axis=1)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    return overlap / np.maximum(area(box) + area(others) - overlap, 1e-12)


def decode(data: bytes) -> Image.Image:
    """The first frame as RGB, the way a viewer shows it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("I;16", "I"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8), "L")
    return image.convert("RGB")


class Reference:
    """The models of a repository, run one image at a time."""

    def __init__(self, root: Path):
        self.backbone = tomllib.loads((root / "backbone.toml").read_text())
        self.session = onnxruntime.InferenceSession(root / self.backbone["file"])
        self.heads = {}
        for folder in sorted((root / "heads").iterdir()):
            manifest = tomllib.loads((folder / "head.toml").read_text())
            session = onnxruntime.InferenceSession(folder / manifest["file"])
            self.heads[manifest["name"]] = (manifest, session)

    def input(self, image: Image.Image, size: tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
        """The letterboxed input [1, H, W, 3] and how the image lies in it."""
        box = Letterbox(*image.size, size)
        ground = Image.new("RGB", (size[1], size[0]), (self.backbone["input"]["pad"],) * 3)
        small = image.resize((box.new_width, box.new_height), Image.Resampling.BILINEAR)
        ground.paste(small, (box.left, box.top))
        return np.asarray(ground)[None], box

    def features(self, image: Image.Image, size=(128, 128)) -> tuple[dict, Letterbox]:
        pixels, box = self.input(image, size)
        names = [feature["name"] for feature in self.backbone["features"]]
        outputs = self.session.run(names, {self.backbone["input"]["name"]: pixels})
        return dict(zip(names, outputs)), box

    def run(self, head: str, maps: dict) -> dict:
        manifest, session = self.heads[head]
        outputs = session.run(None, {name: maps[name] for name in manifest["features"]})
        return dict(zip((output.name for output in session.get_outputs()), outputs))

    def detect(self, image: Image.Image, head: str) -> list[dict]:
        """Detections, highest score first, boxes in original pixels, masks as [H, W] arrays and COCO RLE."""
        manifest, _ = self.heads[head]
        size = tuple(manifest["input_size"])
        post = manifest["postprocess"]
        maps, letterbox = self.features(image, size)
        out = {name: value[0] for name, value in self.run(head, maps).items()}
        whole = letterbox.to_original(out["boxes"].astype(np.float64))
        clipped = np.clip(whole, 0, [image.width, image.height] * 2).astype(np.float32).astype(np.float64)
        visible = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        kept: list[int] = []
        for index in np.argsort(-out["scores"], kind="stable"):
            if out["scores"][index] < post["score_threshold"] or not visible[index]:
                continue
            same = [k for k in kept if out["labels"][k] == out["labels"][index]]
            if not same or iou(clipped[index], clipped[same]).max() <= post["nms_iou"]:
                kept.append(index)
        found = []
        for index in kept[: post["max_detections"]]:
            x0, y0, x1, y1 = whole[index]
            probability = out["masks"][index][None].astype(np.float64)
            x, y = letterbox.grid(probability.shape[1:], size)
            mask = sample(probability, x, y)[0] >= post["mask_threshold"]
            columns, rows = np.arange(image.width) + 0.5, np.arange(image.height) + 0.5
            mask &= ((columns > x0) & (columns < x1))[None] & ((rows > y0) & (rows < y1))[:, None]
            found.append(
                {
                    "box": clipped[index],
                    "score": float(out["scores"][index]),
                    "label": int(out["labels"][index]),
                    "mask": mask,
                    "rle": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))),
                }
            )
        return found

    def segment(self, image: Image.Image, head: str) -> np.ndarray:
        """The label map [H, W] at the original size."""
        manifest, _ = self.heads[head]
        size = tuple(manifest["input_size"])
        maps, letterbox = self.features(image, size)
        logits = self.run(head, maps)["logits"][0].astype(np.float64)
        x, y = letterbox.grid(logits.shape[1:], size)
        return sample(logits, x, y).argmax(axis=0)

    def recognize(self, frames: list[Image.Image], head: str) -> np.ndarray:
        """Probabilities [C] of a clip; as many frames as the head reads are taken from its middle at the head's stride, or
        from the middles of equal parts."""
        manifest, _ = self.heads[head]
        size, wanted = tuple(manifest["input_size"]), manifest["postprocess"]["frames"]
        span = (wanted - 1) * manifest["postprocess"].get("frame_stride", len(frames)) + 1
        if span <= len(frames) and "frame_stride" in manifest["postprocess"]:
            start, step = (len(frames) - span + 1) // 2, manifest["postprocess"]["frame_stride"]
            chosen = frames[start : start + span : step]
        else:
            chosen = [frames[int((i + 0.5) * len(frames) / wanted)] for i in range(wanted)]
        rows = [self.features(frame, size)[0] for frame in chosen]
        maps = {name: np.stack([row[name][0] for row in rows])[None] for name in rows[0]}
        logits = self.run(head, maps)["logits"][0].astype(np.float64)
        logits = np.exp(logits - logits.max())
        return logits / logits.sum()
