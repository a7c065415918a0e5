"""What every benchmark script shares: arguments, data folder, results as JSON lines that survive a kill."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rich
from rich.table import Table


def parser(description: str, *, default_out: str) -> argparse.ArgumentParser:
    """Arguments common to all benchmarks."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", type=Path, default=data_folder(), help="folder with the real data sets")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results") / default_out, help="JSON lines file")
    p.add_argument("--seeds", type=int, default=3, help="number of seeds")
    p.add_argument("--first-seed", type=int, default=0, help="first seed; reporting seeds differ from tuning seeds")
    p.add_argument("--small", action="store_true", help="smallest run that exercises every step")
    p.add_argument("--report", action="store_true", help="only print the tables of an existing result file")
    return p


def data_folder() -> Path:
    """Folder of the real data: the environment variable, else the sibling folder of the checkout."""
    named = os.environ.get("SCCAUSAL_TEST_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"


class Results:
    """JSON lines; a key that is already there is not computed again."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        self.done = {row["key"] for row in self.rows}

    def add(self, key: str, **values: Any) -> None:
        row = {"key": key, **{k: _plain(v) for k, v in values.items()}, "versions": _versions()}
        self.rows.append(row)
        self.done.add(key)
        with self.path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows).drop(columns=["versions"], errors="ignore")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _versions() -> dict[str, str]:
    return {p: version(p) for p in ("sccausal", "scvi-tools", "torch")} | {"python": platform.python_version()}


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """Wall-clock seconds of a block, in ``["seconds"]`` once it ends."""
    box: dict[str, float] = {}
    start = time.perf_counter()
    try:
        yield box
    finally:
        box["seconds"] = time.perf_counter() - start


def show(frame: pd.DataFrame, title: str = "", digits: int = 3) -> None:
    """Print a frame as a table."""
    frame = frame.reset_index() if frame.index.name or isinstance(frame.index, pd.MultiIndex) else frame
    table = Table(title=title)
    for column in frame.columns:
        table.add_column(str(column))
    for row in frame.itertuples(index=False):
        table.add_row(*[f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row])
    rich.print(table)
