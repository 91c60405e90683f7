"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder in WARDROUND_DATA; where it is set, whatever is missing in it is a failure."""
    root = os.environ.get("WARDROUND_DATA")
    if not root:
        pytest.skip("WARDROUND_DATA is not set: tests on the larger real sets were not run")
    folder = Path(root).resolve()
    if not (folder / "data").is_dir() or not (folder / "models").is_dir():
        pytest.fail("WARDROUND_DATA is set, but holds no data/ and models/ as docs/data.md says")
    return folder
