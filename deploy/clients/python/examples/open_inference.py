"""The same server through the Open Inference Protocol, with Triton's client (`pip install tritonclient[grpc]`).

usage: python open_inference.py ADDRESS IMAGE
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from pycocotools import mask as coco


def main(address: str, image: str) -> None:
    client = triton.InferenceServerClient(address)
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([Path(image).read_bytes()], dtype=object))
    answer = client.infer("objects", [tensor], parameters={"score_threshold": 0.5})
    names, scores = answer.as_numpy("label_names")[0], answer.as_numpy("scores")[0]
    for name, score, mask in zip(names, scores, answer.as_numpy("masks")[0]):
        print(f"{name.decode()} {score:.2f}, {coco.area(json.loads(mask))} pixels")


if __name__ == "__main__":
    main(*sys.argv[1:])
