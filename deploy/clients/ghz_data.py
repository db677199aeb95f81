#!/usr/bin/env python3
"""Messages for ghz, each with an image of its own: equal images in flight share one run of the backbone, and a load of
one message measures that and not the backbone.

usage: ghz_data.py IMAGE... [--count N] [--head NAME] [--masks] >data.json
       ghz --call frostline.v1.VisionService.Detect -D data.json --concurrency 16 --total 5000 …

Writes N messages of Detect (256 without it), which ghz sends in turn. An image is made another by a number in a comment
of its file, JPEG or PNG; its pixels stay. N must be above the calls under way at once, and above what the server's cache
holds, if one is on (`engine.cache_bytes`). Needs nothing but Python.
"""

import argparse
import base64
import json
import struct
import sys
import zlib
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
AFTER_IHDR = len(PNG) + 25


def numbered(data: bytes, number: int) -> bytes:
    """The file with a number in a comment: a COM segment behind a JPEG's first marker, a tEXt chunk behind a PNG's first."""
    text = f"{number:016x}".encode()
    if data[:3] == b"\xff\xd8\xff":
        return data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text + data[2:]
    if data[:8] == PNG:
        chunk = b"tEXt" + b"Comment\0" + text
        packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return data[:AFTER_IHDR] + packed + data[AFTER_IHDR:]
    raise ValueError("neither a JPEG nor a PNG file")


def messages(images: list[bytes], count: int, head: str, masks: bool) -> list[dict]:
    """Messages of Detect, the images in turn."""
    return [
        {
            "image": {"encoded": base64.b64encode(numbered(images[n % len(images)], n)).decode("ascii")},
            "head": head,
            "options": {"omitMasks": not masks},
        }
        for n in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="messages for ghz, each with an image of its own")
    parser.add_argument("image", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--head", default="")
    parser.add_argument("--masks", action="store_true")
    asked = parser.parse_args()
    try:
        made = messages([path.read_bytes() for path in asked.image], asked.count, asked.head, asked.masks)
    except (OSError, ValueError) as error:
        sys.exit(f"ghz_data.py: {error}")
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
