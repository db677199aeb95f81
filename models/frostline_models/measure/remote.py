"""A running server as a predictor: the client's side of ``proto/frostline/v1``.

The stubs are generated from the repository's own ``.proto`` files when they are first needed,
so that they cannot lag behind the server.
"""

from __future__ import annotations

import importlib
import io
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..errors import InputError, at
from .served import Detection

PROTO = Path(__file__).resolve().parents[3] / "proto"
FILES = ("types", "vision", "model")
LARGEST_MESSAGE = 512 << 20
TASKS = {1: "detection", 2: "segmentation", 3: "action", 4: "classification", 5: "embedding"}
_stubs: dict[Path, tuple] = {}
_lock = threading.Lock()


def stubs(proto: Path = PROTO) -> tuple:
    """Modules ``(types_pb2, vision_pb2, vision_pb2_grpc, model_pb2, model_pb2_grpc)``."""
    with _lock:
        if proto not in _stubs:
            _stubs[proto] = _generate(proto)
        return _stubs[proto]


def _generate(proto: Path) -> tuple:
    try:
        from grpc_tools import protoc
    except ImportError:
        raise InputError(
            "evaluating through the server needs grpcio and grpcio-tools "
            "(pip install 'frostline-models[serve]')"
        ) from None
    folder = proto / "frostline" / "v1"
    for file in (folder / f"{name}.proto" for name in FILES):
        if not file.is_file():
            raise at(file, "no such file (--proto names the folder that holds frostline/v1)")
    # Those import others of the folder.
    files = sorted(folder.glob("*.proto"))
    import grpc_tools

    out = tempfile.mkdtemp(prefix="frostline-stubs-")
    include = Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{proto}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}",
         *map(str, files)]
    )  # fmt: skip
    if code:
        raise InputError(f"{proto}: protoc failed with {code}")
    sys.path.insert(0, out)
    names = ("types_pb2", "vision_pb2", "vision_pb2_grpc", "model_pb2", "model_pb2_grpc")
    return tuple(importlib.import_module(f"frostline.v1.{name}") for name in names)


class Remote:
    """One head of a server.  Counts what the server says it computed."""

    takes_files = True

    def __init__(self, address: str, head: str, timeout: float = 60.0, proto: Path = PROTO, token: str | None = None):
        """``address`` is ``host:port``; ``timeout`` of a call in seconds."""
        self.types, self.vision, vision_grpc, model, model_grpc = stubs(proto)
        import grpc

        self.grpc, self.name, self.timeout = grpc, head, timeout
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        options = [
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ]
        self.channel = grpc.insecure_channel(address, options=options)
        self.stub = vision_grpc.VisionServiceStub(self.channel)
        models = model_grpc.ModelServiceStub(self.channel)
        heads, page = {}, ""
        while True:
            listed = self._call(models.ListHeads, model.ListHeadsRequest(page_token=page), address)
            heads |= {h.name: h for h in listed.heads}
            page = listed.next_page_token
            if not page:
                break
        if head not in heads:
            raise InputError(f"{address}: there is no head {head!r}; it serves {', '.join(heads) or 'none'}")
        self.head = heads[head]
        self.task, self.labels = TASKS.get(self.head.task, "other"), list(self.head.labels)
        self.frames, self.frame_stride = max(1, self.head.frames), self.head.frame_stride or None
        self.rows, self.calls, self.lock = 0, 0, threading.Lock()
        self.fingerprint = ""

    def close(self) -> None:
        self.channel.close()

    def _call(self, method, request, what: str):
        try:
            return method(request, timeout=self.timeout, metadata=self.metadata)
        except self.grpc.RpcError as error:
            raise InputError(f"{what}: the server said {error.code().name}: {error.details()}") from None

    def _answer(self, method, request, what: str):
        answer = self._call(method, request, what)
        with self.lock:
            self.rows += answer.provenance.backbone_rows
            self.calls += 1
            self.fingerprint = answer.provenance.backbone
        return answer

    def _image(self, image: np.ndarray | Path):
        if isinstance(image, Path):
            return self.types.Image(encoded=image.read_bytes())
        height, width = image.shape[:2]
        raw = self.types.RawImage(width=width, height=height, rgb=np.ascontiguousarray(image).tobytes())
        return self.types.Image(raw=raw)

    def detect(self, image: np.ndarray | Path, threshold: float | None = None) -> list[Detection]:
        options = self.vision.DetectionOptions()
        if threshold is not None:
            options.score_threshold = threshold
        request = self.vision.DetectRequest(image=self._image(image), head=self.name, options=options)
        answer = self._answer(self.stub.Detect, request, self.name)
        found = []
        for d in answer.result.detections:
            box = np.array([d.bbox.x_min, d.bbox.y_min, d.bbox.x_max, d.bbox.y_max])
            mask = None
            if d.HasField("mask"):
                code = {"size": [d.mask.height, d.mask.width], "counts": d.mask.counts}
                mask = rle.decode(code).astype(bool)
            found.append(Detection(d.class_index, d.score, box, mask))
        return found

    def segment(self, image: np.ndarray | Path) -> np.ndarray:
        options = self.vision.SegmentationOptions(format=self.types.LABEL_MAP_FORMAT_PNG)
        request = self.vision.SegmentRequest(image=self._image(image), head=self.name, options=options)
        answer = self._answer(self.stub.Segment, request, self.name)
        return np.asarray(Image.open(io.BytesIO(answer.result.png))).astype(np.int64)

    def recognize(self, frames: list[np.ndarray]) -> np.ndarray:
        clip = self.types.Clip(frames=[self._image(f) for f in frames])
        options = self.vision.ClassificationOptions(top_k=len(self.labels))
        request = self.vision.RecognizeActionRequest(clip=clip, head=self.name, options=options)
        answer = self._answer(self.stub.RecognizeAction, request, self.name)
        chances = np.zeros(len(self.labels))
        for entry in answer.result.top:
            chances[entry.class_index] = entry.probability
        return chances

    def _analyze(self, image: np.ndarray | Path):
        """This head's result; what the server says is wrong with it is an error."""
        options = self.vision.ClassificationOptions(top_k=max(1, len(self.labels)))
        request = self.vision.AnalyzeRequest(image=self._image(image), heads=[self.name], classification=options)
        result = self._answer(self.stub.Analyze, request, self.name).results[0]
        if result.HasField("error"):
            raise InputError(f"{self.name}: the server said {result.error.message}")
        return result

    def classify(self, image: np.ndarray | Path) -> np.ndarray:
        """A probability for each label."""
        chances = np.zeros(len(self.labels))
        for entry in self._analyze(image).classification.top:
            chances[entry.class_index] = entry.probability
        return chances

    def tensors(self, image: np.ndarray | Path) -> dict[str, np.ndarray]:
        """What a tensor or embedding head gives for one image."""
        kinds = {1: np.float32, 2: np.float16, 3: np.int64, 4: np.int32, 5: np.uint8}
        return {
            t.name: np.frombuffer(t.data, kinds[t.data_type]).reshape(tuple(t.shape))
            for t in self._analyze(image).tensor.outputs
        }

    def embed(self, image: np.ndarray | Path) -> np.ndarray:
        """An embedding head's vector, its one output, flat."""
        return next(iter(self.tensors(image).values())).ravel()

    def features(self, image: np.ndarray | Path) -> dict[str, np.ndarray]:
        """The backbone's maps of one image."""
        kinds = {1: np.float32, 2: np.float16, 3: np.int64, 4: np.int32, 5: np.uint8}
        request = self.vision.ExtractFeaturesRequest(image=self._image(image), max_bytes=LARGEST_MESSAGE)
        answer = self._answer(self.stub.ExtractFeatures, request, "ExtractFeatures")
        return {
            t.name: np.frombuffer(t.data, kinds[t.data_type]).reshape(tuple(t.shape))
            for t in answer.maps
        }
