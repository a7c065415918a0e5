"""`make notebooks`: a notebook that is nothing without its files is skipped where they are not, and says so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SCCAUSAL_DATA", HERE.parents[1] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb":
            needed = json.loads(item.path.read_text())["metadata"].get("sccausal", {}).get("files", [])
            missing = [name for name in needed if not (DATA / name).exists()]
            if missing:
                reason = f"{', '.join(missing)} not found; SCCAUSAL_DATA names the folder that holds them"
                item.add_marker(pytest.mark.skip(reason=reason))
