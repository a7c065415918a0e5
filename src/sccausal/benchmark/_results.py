"""Results of runs as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sccausal._errors import SetupError, UnknownNameError
from sccausal.benchmark._runner import iterate_records
from sccausal.benchmark._task import Task

COLUMNS = (
    "task",
    "dataset",
    "case",
    "method",
    "kind",
    "seed",
    "fingerprint",
    "group",
    "metric",
    "value",
    "direction",
    "unit",
)


def load_results(out: str | Path) -> pd.DataFrame:
    """All scores of a results folder, one row per score.

    Parameters
    ----------
    out
        Folder that :func:`run` wrote to.

    Returns
    -------
    DataFrame ``task, dataset, case, method, kind, seed, fingerprint, group, metric, value, direction, unit``; scores
    that are not defined are NaN.

    Raises
    ------
    sccausal._errors.SetupError
        The folder holds no finished run.

    Examples
    --------
    >>> from sccausal.benchmark import load_results, run
    >>> records = run("identify", "results", models=(), seeds=1, small=True, progress=False)
    >>> load_results("results").columns[:4].tolist()
    ['task', 'dataset', 'case', 'method']
    """
    rows = []
    for record in iterate_records(Path(out)):
        head = {k: record[k] for k in ("task", "dataset", "case", "method", "kind", "seed", "fingerprint")}
        for score in record["scores"]:
            rows.append({**head, **score, "group": f"{record['case']} | {score.get('group', 'all')}"})
    if not rows:
        raise SetupError(f"{out} holds no finished benchmark run.")
    frame = pd.DataFrame(rows)
    frame["value"] = pd.to_numeric(frame["value"]).astype(float)
    return frame[[c for c in COLUMNS if c in frame]]


def load_runs(out: str | Path) -> pd.DataFrame:
    """One row per run: cost, status, error, facts of the data, versions."""
    keep = (
        "task", "dataset", "case", "method", "kind", "seed", "small", "status", "error", "seconds", "peak_memory_mb",
        "added_memory_mb", "fingerprint", "facts", "versions", "held_out",
    )  # fmt: skip
    return pd.DataFrame([{k: r.get(k) for k in keep} for r in iterate_records(Path(out))], columns=list(keep))


def scaled(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Scores of one task and data set, with scaled scores and dynamic range where both ends are there."""
    from sccausal.metrics import add_scaled

    if task.zero is None or task.one is None:
        return frame
    try:
        return add_scaled(frame, baseline=task.zero, replicate=task.one)
    except UnknownNameError:  # one of the two did not run
        return frame


def table(frame: pd.DataFrame, metrics: Sequence[str], *, n_boot: int = 1000) -> pd.DataFrame:
    """Mean, bootstrap interval and paired test of every method, as :func:`sccausal.metrics.summarise` gives them.

    A pair is a group of cells of one problem. Where the seed draws new data (another fingerprint), a group of another
    seed is another pair; where it does not, the seeds of a group are averaged, for repeating a run adds no evidence.
    """
    from sccausal.metrics import summarise

    wanted = frame[frame["metric"].isin(list(metrics))].copy()
    problem = "fingerprint" if "fingerprint" in wanted else "seed"
    wanted["group"] = wanted["group"] + " | " + wanted[problem].astype(str)
    rules = list(dict.fromkeys(wanted.loc[wanted["kind"] == "baseline", "method"]))
    out = summarise(wanted.drop(columns="seed"), baselines=rules, n_boot=n_boot)
    kinds = frame.drop_duplicates("method").set_index("method")["kind"]
    out.insert(1, "kind", out["method"].map(kinds))
    # a ceiling or a negative control is no rival
    out.loc[out["kind"].isin(["ceiling", "negative", "reference"]), "p_value"] = np.nan
    return out


def per_run_costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Median seconds and highest memory of each method."""
    done = runs[runs["status"] == "done"]
    grouped = done.groupby("method", sort=False)
    return pd.DataFrame(
        {
            "runs": grouped.size(),
            "seconds, median": grouped["seconds"].median(),
            "memory added, MB": grouped["added_memory_mb"].max(),
        }
    )


def facts_of(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Facts of the cases of one data set, one entry per case and seed."""
    kept = runs.drop_duplicates(["case", "seed"]).to_dict("records")
    return [{"case": r["case"], "seed": r["seed"], **(r["facts"] or {})} for r in kept]
