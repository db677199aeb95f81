"""What is written twice is the same: the protocol modules and their source, the blocking client and the other."""

import importlib.metadata
import inspect
import sys

from conftest import ROOT
from frostline_client import AsyncClient, Client

PACKAGE = ROOT / "deploy/clients/python"
PINNED = "1.81.1"


def test_modules_are_up_to_date(tmp_path):
    assert f"grpcio-tools=={PINNED}" in (PACKAGE / "pyproject.toml").read_text()
    assert importlib.metadata.version("grpcio-tools") == PINNED
    sys.path.insert(0, str(PACKAGE))
    try:
        from generate import generate
    finally:
        sys.path.remove(str(PACKAGE))
    generate(tmp_path)
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.py*") if p.is_file())
    committed = sorted(p.relative_to(PACKAGE) for p in (PACKAGE / "frostline").rglob("*.py*") if p.suffix != ".pyc")
    assert len(written) >= 9
    assert written == committed, "run generate.py"
    for path in written:
        assert (tmp_path / path).read_text() == (PACKAGE / path).read_text(), f"{path}: run generate.py"


def test_both_clients_have_the_same_methods():
    for name, function in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            other = inspect.signature(getattr(AsyncClient, name))
            one = inspect.signature(function)
            assert other.parameters == one.parameters, name
            assert other.return_annotation.removeprefix("Async") == one.return_annotation, name
            assert inspect.getdoc(getattr(AsyncClient, name)) == inspect.getdoc(function), name
