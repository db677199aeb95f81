"""Shared fixtures; tests that draw need the Noto Color Emoji font."""

from pathlib import Path

import pytest
import torch

from frostline_models import sprites

DEMO = Path(__file__).resolve().parent.parent / "demo"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def font():
    if not any(Path(p).exists() for p in sprites.FONTS):
        pytest.skip("Noto Color Emoji is not installed (Debian: fonts-noto-color-emoji)")


@pytest.fixture(scope="session")
def demo() -> Path:
    return DEMO
