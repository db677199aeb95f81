"""A folder of pictures, several at once, in order.

Calls that the server refuses because it is full are made again after the time that it names.

usage: python folder.py ADDRESS FOLDER
"""

import sys
from pathlib import Path

from frostline_client import Client, FrostlineError


def main(address: str, folder: str) -> None:
    with Client(address, timeout=60) as client:
        for answer in client.map(folder, masks=False, at_once=16, priority="background"):
            if isinstance(answer, FrostlineError):
                print(f"{Path(answer.source).name}: {answer}")
            else:
                print(f"{Path(answer.image).name}: {', '.join(sorted(answer.detections().labels())) or 'nothing'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
