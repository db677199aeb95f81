"""Writes the protocol's modules (`frostline/v1`) anew from `proto/`: run it after a change there.

usage: python generate.py [FOLDER]

Needs the pinned grpcio-tools (`pip install -e '.[develop]'`); a test compares what is committed with what it writes.
"""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[2] / "proto"


def generate(out: Path) -> None:
    """Writes the modules and their type stubs below `out`."""
    files = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / "frostline").rglob("*.proto"))
    includes = [f"-I{PROTO}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *files]):
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
