"""A copy of ONNX Runtime's CUDA provider with machine code for one GPU architecture only.

The file keeps its size and offsets: the other architectures' code is overwritten with zeros, which
compress to nothing.  The result runs on the kept architecture alone.

usage: slim.py SOURCE TARGET SM      SM: 90 for H100 and H200
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

FAT_BINARY = 0xBA55ED50


def section(blob: bytes, wanted: bytes) -> tuple[int, int]:
    """Offset and size of a section of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", blob, 40)
    size, count, names = struct.unpack_from("<HHH", blob, 58)
    rows = [struct.unpack_from("<IIQQQQ", blob, table + i * size) for i in range(count)]
    for name, _, _, _, offset, length in rows:
        start = rows[names][4] + name
        if blob[start : blob.index(b"\0", start)] == wanted:
            return offset, length
    raise SystemExit(f"slim: the file has no section {wanted.decode()}")


def slim(blob: bytearray, keep: int) -> tuple[int, int]:
    """Zeroes the code of every architecture but ``keep``; returns parts kept and bytes zeroed."""
    at, length = section(blob, b".nv_fatbin")
    end, kept, zeroed = at + length, 0, 0
    while at + 16 <= end:
        magic, _, header, body = struct.unpack_from("<IHHQ", blob, at)
        if magic != FAT_BINARY:
            at += 8
            continue
        part, at = at + header, at + header + body
        while part < at:
            skip, payload = struct.unpack_from("<IQ", blob, part + 4)
            (architecture,) = struct.unpack_from("<I", blob, part + 28)
            if architecture == keep:
                kept += 1
            else:
                blob[part + skip : part + skip + payload] = bytes(payload)
                zeroed += payload
            part += skip + payload
    return kept, zeroed


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    blob = bytearray(Path(sys.argv[1]).read_bytes())
    kept, zeroed = slim(blob, int(sys.argv[3]))
    if not kept:
        raise SystemExit(f"slim: there is no code for sm_{sys.argv[3]} in {sys.argv[1]}")
    Path(sys.argv[2]).write_bytes(blob)
    print(f"kept {kept} parts, zeroed {zeroed / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
