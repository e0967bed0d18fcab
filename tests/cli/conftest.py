"""A terminal of a known width, and a project with an app."""

import shutil
from pathlib import Path

import pytest

from tests.cli import orders


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the app ``orders:app``."""
    shutil.copy(orders.__file__, tmp_path / "orders.py")
    return tmp_path
