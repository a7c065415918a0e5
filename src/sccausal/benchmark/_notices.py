"""What a reader has to know before believing a table: found in the numbers, not written by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sccausal.benchmark._results import facts_of
from sccausal.benchmark._task import Task

THIN_GENES_PER_CELL = 100
THIN_DE_GENES = 10
SATURATED = 0.9


def notices(frame: pd.DataFrame, runs: pd.DataFrame, task: Task) -> list[str]:
    """Warnings about one task and data set.

    Parameters
    ----------
    frame
        Scores, with scaled scores where there are any.
    runs
        Runs of the same task and data set.
    task
        The task.
    """
    nothing = _effects(frame, runs)
    # where there is no effect, nothing can be saturated or win
    more = nothing or [*_saturated(frame, task), *_negative(frame, task)]
    return [*_data(runs), *more, *_range(frame, task), *_collapse(frame, task), *_runs(runs)]


def _data(runs: pd.DataFrame) -> list[str]:
    facts = [f for f in facts_of(runs) if "genes_per_cell" in f]
    if not facts:
        return []
    genes = float(np.mean([f["genes_per_cell"] for f in facts]))
    changed = [f["de_genes_per_group"] for f in facts if f["de_genes_per_group"] is not None]
    out = []
    if genes < THIN_GENES_PER_CELL:
        out.append(f"**Thin data.** A cell has {genes:.0f} genes with counts on average; means are noisy.")
    if changed and 0 < np.mean(changed) < THIN_DE_GENES:
        out.append(
            f"**Few responding genes.** {np.mean(changed):.1f} genes per group differ from control at 5 % false "
            "discovery rate; scores over the top 100 genes are mostly noise."
        )
    return out


def _effects(frame: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Where the truth shows no effect, whoever claims one is named."""
    facts = [f for f in facts_of(runs) if f.get("groups")]
    groups = sum(f["groups"] for f in facts)
    if not groups:
        return []
    with_effect = sum(f["groups_with_de_genes"] for f in facts)
    if with_effect > 0.05 * groups:
        return []
    text = (
        f"**No effect in the data.** {groups - with_effect} of {groups} groups have no gene that differs from control "
        "at 5 % false discovery rate: a negative control. No score here speaks for a method."
    )
    claims = frame[(frame["metric"] == "n_de_pred") & (frame["kind"] != "ceiling")]
    claimed = claims.assign(some=claims["value"] > 0).groupby("method", sort=False)[["value", "some"]].mean()
    loud = claimed[claimed["value"] >= 1]
    if loud.empty:
        return [text, "No method claims an effect."]
    error = frame[frame["metric"] == "nmse_top"].groupby("method")["value"].mean()
    names = ", ".join(
        f"{m} ({r['value']:.1f} genes per group, in {r['some']:.0%} of groups; {error.get(m, np.nan):.2f} times the "
        "squared error of no change)"
        for m, r in loud.iterrows()
    )
    return [text, f"**False claims.** These methods predict significant changes all the same: {names}."]


def _saturated(frame: pd.DataFrame, task: Task) -> list[str]:
    """Case by case: what the best simple rule leaves to be gained."""
    from sccausal.metrics import saturation

    if task.floor is None or task.one is None or not {task.floor, task.one} <= set(frame["method"]):
        return []
    metric = next((m for m in ("centroid_distance", "energy_distance") if m in set(frame["metric"])), None)
    if metric is None:
        return []
    full: list[str] = []
    rest: list[str] = []
    for case, part in frame.groupby("case", sort=False):
        rules = [m for m in dict.fromkeys(part.loc[part["kind"] == "baseline", "method"]) if m != task.floor]
        if not rules:
            continue
        table = saturation(part, metric, baselines=rules, floor=task.floor, replicate=task.one)
        share = float(table["share"].clip(-1, 2).mean())
        counts = ", ".join(f"{n} {s}" for s, n in table["stratum"].value_counts().items())
        line = f"{case}: {table['rule'].iloc[0]} {share:.0%} ({counts})"
        (full if share >= SATURATED else rest).append(line)
    scale = f"share of the way from {task.floor} to {task.one} by {metric.replace('_', ' ')}"
    out = []
    if full:
        out.append(f"**Saturated by a simple rule** ({scale}), little is left for a model to show: {'; '.join(full)}.")
    if rest:
        out.append(f"What the best simple rule takes ({scale}; groups): {'; '.join(rest)}.")
    return out


def _range(frame: pd.DataFrame, task: Task) -> list[str]:
    if "low_range" not in frame:
        return []
    flagged = frame[frame["low_range"] & frame["metric"].isin(task.headline)]
    ranges = flagged.drop_duplicates("metric").set_index("metric")["dynamic_range"].dropna()
    if ranges.empty:
        return []
    names = ", ".join(f"{str(m).replace('_', ' ')} ({v:.2f})" for m, v in ranges.items())
    return [f"**Low dynamic range.** These metrics can hardly tell {task.one} from {task.zero} here: {names}."]


def _collapse(frame: pd.DataFrame, task: Task) -> list[str]:
    from sccausal.metrics._saturation import collapsed

    own = frame[(frame["metric"] == "diversity") & frame["kind"].isin(["model", "baseline"])]
    own = own[~own["method"].isin([task.floor, task.zero])]  # one prediction for all by design
    means = own.groupby("method", sort=False)["value"].mean()
    names = [f"{m} ({v:.2f})" for m, v in means.items() if collapsed(v)]
    if not names:
        return []
    return [f"**Collapsed predictions** (pairwise distances below half of the true ones): {', '.join(names)}."]


def _negative(frame: pd.DataFrame, task: Task) -> list[str]:
    """A negative control that keeps up with the rules says that the metric rewards something else."""
    metric = task.headline[0]
    means = frame[frame["metric"] == metric].groupby(["kind", "method"])["value"].mean()
    if "negative" not in means.index.get_level_values(0) or "baseline" not in means.index.get_level_values(0):
        return []
    lower = frame.loc[frame["metric"] == metric, "direction"].iloc[0] == "lower"
    rules, controls = means["baseline"], means["negative"]
    best = rules.min() if lower else rules.max()
    near = [m for m, v in controls.items() if (v <= best if lower else v >= best)]
    if not near:
        return []
    return [f"**The negative control wins.** {', '.join(near)} is as good as every rule by {metric.replace('_', ' ')}."]


def _runs(runs: pd.DataFrame) -> list[str]:
    out = []
    failed = runs[runs["status"] == "failed"].drop_duplicates(["method", "case"])
    for run in failed.itertuples():
        last = str(run.error).strip().splitlines()[-1]
        out.append(f"**Failed:** {run.method} on {run.case}: {last}")
    versions = {(r or {}).get("sccausal") for r in runs["versions"]}
    if len(versions) > 1:
        out.append(f"**Mixed versions** of sccausal: {', '.join(sorted(map(str, versions)))}.")
    if runs["small"].any():
        out.append("Small runs: a check that every step works, not a result.")
    return out
