"""The package and a user's program are clean by mypy and pyright, both strict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGE, ROOT

# What numpy's and pandas' types took is kept from one run to the next.
CACHE = ROOT / "target/mypy"
USER = Path(__file__).with_name("user_code.py")


def check(*command, cwd):
    return subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True, timeout=600, cwd=cwd)


def test_mypy_finds_nothing_in_the_package():
    done = check("mypy", "--cache-dir", CACHE, "-p", "frostline_client", cwd=PACKAGE)
    assert done.returncode == 0 and "no issues found in" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def elsewhere(tmp_path):
    """A user's folder: the package is what is installed, with no settings of ours."""
    (tmp_path / "user_code.py").write_text(USER.read_text())
    return tmp_path


def test_mypy_finds_nothing_in_a_users_program(elsewhere):
    options = ("--strict", "--cache-dir", CACHE, "--warn-unused-ignores", "--python-executable", sys.executable)
    done = check("mypy", *options, "user_code.py", cwd=elsewhere)
    assert done.returncode == 0 and "no issues found in 1 source file" in done.stdout, done.stdout + done.stderr


def test_pyright_finds_nothing_in_a_users_program(elsewhere):
    settings = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error", "enableTypeIgnoreComments": False,
                "reportUnusedExpression": "none"}  # fmt: skip
    (elsewhere / "pyrightconfig.json").write_text(json.dumps(settings))
    done = check("pyright", "--pythonpath", sys.executable, "--outputjson", cwd=elsewhere)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["generalDiagnostics"] == [] and told["summary"]["filesAnalyzed"] == 1, done.stdout
