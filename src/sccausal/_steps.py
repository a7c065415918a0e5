"""How the command line reports: steps with their time, tables, and folders that hold one run."""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from sccausal._errors import SetupError

_RUN_FILE = "run.json"
OUTPUTS = (
    "cells.h5ad", "checkpoint", "comparison.csv", "comparison.png", "history.png", "identifiability.csv",
    "key_genes.csv", "model", "network.csv", "network.csv.json", "network.png", "network_scores.csv",
    "predictions.h5ad", "response.png", "simulated.h5ad", "split.json", "summary.json", "umap.png",
)  # fmt: skip


class Steps:
    """Print each step with the seconds it took, and remember them.

    Parameters
    ----------
    console
        Where to print; default: the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.console.print(f"[bold]{name}[/]")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.console.print(f"  [dim]{self.seconds[name]:.1f} s[/]")

    def say(self, text: str) -> None:
        """Print a line that belongs to the running step."""
        self.console.print(f"  {text}", markup=False)

    def table(self, frame: pd.DataFrame, title: str, digits: int = 3) -> None:
        """Print a frame; its index is the first column if it has a name."""
        shown = frame.reset_index() if frame.index.name else frame
        table = Table(
            title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2)
        )
        for name in shown.columns:
            numeric = pd.api.types.is_numeric_dtype(shown[name])
            table.add_column(str(name).replace("_", " "), justify="right" if numeric else "left", no_wrap=not numeric)
        for row in shown.itertuples(index=False, name=None):
            table.add_row(*[_cell(v, digits) for v in row])
        self.console.print(table)


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float | np.floating):
        return "-" if np.isnan(value) else f"{value:.{digits}f}"
    return str(value)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep notices that a user of the command line cannot act on off the screen."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "scvi")
    before = {n: logging.getLogger(n).level for n in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def open_folder(out: Path, run: Mapping[str, Any], overwrite: bool) -> bool:
    """Make ``out`` the folder of one run.

    Parameters
    ----------
    out
        The folder.
    run
        What defines the run; JSON-able.
    overwrite
        Remove the results of the run that is there.

    Returns
    -------
    Whether the same run was begun here before, so that its finished parts can be taken.

    Raises
    ------
    sccausal._errors.SetupError
        The folder holds another run, or files that are none of ours.
    """
    text = json.dumps(dict(run), indent=2, sort_keys=True, default=str)
    marker = out / _RUN_FILE
    if out.exists() and not out.is_dir():
        raise SetupError(f"{out} is a file; name a folder.")
    if marker.exists():
        if not overwrite and marker.read_text(encoding="utf-8") == text:
            return True
        if not overwrite:
            raise SetupError(f"{out} holds the results of another run; add --overwrite, or name another folder.")
        for name in OUTPUTS:  # and nothing else: the folder may hold files of the user
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif out.exists() and any(out.iterdir()):
        raise SetupError(f"{out} is not empty and holds no run of sccausal; name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(text, encoding="utf-8")
    return False


def finished(out: Path, steps: Steps) -> dict[str, Any] | None:
    """Summary of a run that has ended; ``None`` if it has not."""
    path = out / "summary.json"
    if not path.is_file():
        return None
    steps.console.print(f"This run is finished; its results are in {out}. --overwrite runs it again.")
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content``, numpy numbers included."""

    def plain(value: Any) -> Any:
        return value.item() if isinstance(value, np.generic) else str(value)

    path.write_text(json.dumps(dict(content), indent=2, default=plain) + "\n", encoding="utf-8")
