"""What all tests share: where data lie, and helpers that several test modules import."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
HERE = Path(__file__).parent
# test modules are imported by path, so shared helpers need a place on the path
sys.path.insert(0, str(HERE / "helpers"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real data sets; the test is skipped where there is none.

    ``SCCAUSAL_TEST_DATA`` names it; otherwise ``shared/data`` beside the repository is looked at.
    """
    named = os.environ.get("SCCAUSAL_TEST_DATA")
    folder = Path(named) if named else HERE.parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: set SCCAUSAL_TEST_DATA to their folder")
    return folder
