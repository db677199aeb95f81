"""A model repository run here, by ONNX Runtime: the server's answers without the server."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np

from .. import geometry
from ..errors import InputError, at
from ..taskheads.spec import read_manifest
from . import served


class Local:
    """One head of a repository."""

    def __init__(self, repository: Path, head: str, provider: str = "CPUExecutionProvider", threads: int = 0):
        import onnxruntime as ort

        file = repository / "heads" / head / "head.toml"
        if not file.is_file():
            have = sorted(p.name for p in (repository / "heads").glob("*") if p.is_dir())
            raise at(file, f"no such head; there are {', '.join(have) or 'none'}")
        self.manifest = tomllib.loads(file.read_text())
        backbone = read_manifest(repository / "backbone.toml")
        if self.manifest["backbone"] != backbone["sha256"]:
            raise at(file, f"backbone: is {self.manifest['backbone']}, the repository's is {backbone['sha256']}")
        self.task, self.labels = self.manifest["task"], self.manifest.get("labels", [])
        self.post = dict(self.manifest.get("postprocess", {}))
        self.input = geometry.from_manifest(repository / "backbone.toml", backbone, self.manifest["input_size"])
        #: Frames of a clip, and their distance; ``None``: spread over the whole clip.
        self.frames, self.frame_stride = self.post.get("frames", 1), self.post.get("frame_stride")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads, 3
        make = lambda path: ort.InferenceSession(str(path), settings, providers=[provider])  # noqa: E731
        self.backbone = make(repository / backbone["file"])
        self.head = make(file.parent / self.manifest["file"])
        self.rows = 0

    def _outputs(self, images: np.ndarray, clip: bool) -> dict[str, np.ndarray]:
        maps = self.backbone.run(self.manifest["features"], {self.backbone.get_inputs()[0].name: images})
        self.rows += len(images)
        if clip:
            maps = [m[None] for m in maps]
        values = self.head.run(None, dict(zip(self.manifest["features"], maps)))
        return {o.name: v[0] for o, v in zip(self.head.get_outputs(), values)}

    def detect(self, image: np.ndarray, threshold: float | None = None) -> list[served.Detection]:
        """``image`` uint8 ``[H, W, 3]``; ``threshold`` in place of the manifest's."""
        out = self._outputs(geometry.fit(image, self.input)[None], False)
        post = self.post if threshold is None else self.post | {"score_threshold": threshold}
        return served.detections(out, self._where(image), post)

    def segment(self, image: np.ndarray) -> np.ndarray:
        """``[H, W]`` labels, :func:`.geometry.no_label` where the backbone does not see."""
        out = self._outputs(geometry.fit(image, self.input)[None], False)
        if "label_map" in out:
            return served.cell_labels(out["label_map"], self._where(image), len(self.labels))
        return served.label_map(out["logits"], self._where(image))

    def classify(self, image: np.ndarray) -> np.ndarray:
        """Probabilities ``[C]``."""
        return served.probabilities(self._outputs(geometry.fit(image, self.input)[None], False)["logits"])

    def embed(self, image: np.ndarray) -> np.ndarray:
        """The head's one output, flat."""
        return next(iter(self._outputs(geometry.fit(image, self.input)[None], False).values())).ravel()

    def recognize(self, frames: list[np.ndarray]) -> np.ndarray:
        """Probabilities ``[C]`` of a clip of any length."""
        read = geometry.positions(len(frames), self.frames, self.frame_stride)
        fitted = np.stack([geometry.fit(frames[i], self.input) for i in read])
        return served.probabilities(self._outputs(fitted, True)["logits"])

    def _where(self, image: np.ndarray):
        return geometry.placement(image.shape[1], image.shape[0], self.input)
