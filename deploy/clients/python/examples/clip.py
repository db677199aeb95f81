"""What happens in a clip, given as pictures.

usage: python clip.py ADDRESS FRAME...
"""

import sys

from frostline_client import Client


def main(address: str, *frames: str) -> None:
    with Client(address) as client:
        answer = client.recognize(frames, top_k=3)
    for scored in answer.top:
        print(f"{scored.probability:6.1%} {scored.label}")


if __name__ == "__main__":
    main(*sys.argv[1:])
