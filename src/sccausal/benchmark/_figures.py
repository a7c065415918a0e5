"""Figures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sccausal.benchmark._task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "model": "#1f5fa8",
    "baseline": "#8a8a8a",
    "reference": "#b9b9b9",
    "ceiling": "#3a8f4d",
    "negative": "#c06b3e",
}


def draw(frame: pd.DataFrame, task: Task, folder: Path, stem: str) -> dict[str, Path]:
    """Draw all figures that the scores of one task and data set allow.

    Parameters
    ----------
    frame
        Scores, scaled where possible.
    task
        The task.
    folder, stem
        Where figures go, and how their names begin.

    Returns
    -------
    Paths by title.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    shown = [m for m in task.headline if m in set(frame["metric"])]
    made: dict[str, Path] = {}
    with mpl.rc_context({"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 9}):
        for title, make in (
            ("Ranks", lambda: _ranks(frame, task, shown)),
            ("Dynamic range", lambda: _range(frame, task)),
            ("Group by group", lambda: _scatter(frame, shown)),
        ):
            figure = make()
            if figure is not None:
                path = folder / f"{stem}-{title.lower().replace(' ', '-')}.png"
                figure.savefig(path)
                plt.close(figure)
                made[title] = path
    return made


def _ranks(frame: pd.DataFrame, task: Task, shown: Sequence[str]) -> Any:
    from sccausal import pl

    keep = frame[frame["metric"].isin(list(shown)) & (frame["direction"] != "none")]
    shown = [m for m in shown if keep.loc[(keep["metric"] == m) & (keep["kind"] != "ceiling"), "value"].notna().any()]
    if keep.empty or keep["method"].nunique() < 2:
        return None
    ceilings = list(dict.fromkeys(keep.loc[keep["kind"] == "ceiling", "method"]))
    return pl.compare(keep, metrics=list(shown), ceiling=ceilings, show=False, return_fig=True)


def _range(frame: pd.DataFrame, task: Task) -> Any:
    """How much of the way from the mean baseline to a perfect score a replicate covers, per metric."""
    if "dynamic_range" not in frame:
        return None
    import matplotlib.pyplot as plt

    from sccausal.metrics._scaled import FLAG

    values = frame.drop_duplicates("metric").set_index("metric")["dynamic_range"].dropna().sort_values()
    if values.empty:
        return None
    figure, ax = plt.subplots(figsize=(5.2, 0.6 + 0.22 * len(values)), layout="constrained")
    colours = ["#c06b3e" if v < FLAG else "#1f5fa8" for v in values]
    ax.barh(range(len(values)), values.clip(-0.5, 1), color=colours, height=0.7)
    ax.set_yticks(range(len(values)), [m.replace("_", " ") for m in values.index])
    ax.axvline(FLAG, color="black", lw=0.8, ls="--")
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel(f"dynamic range: share of the way from {task.zero}\nto a perfect score that {task.one} covers")
    _bare(ax)
    return figure


def _scatter(frame: pd.DataFrame, shown: Sequence[str]) -> Any:
    """Each model against the best rule, one point per group and seed."""
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(frame.loc[frame["kind"] == "model", "method"]))[:4]
    panels = [m for m in shown if m in set(frame["metric"])][:2]
    pairs = [(model, metric) for model in models for metric in panels]
    wide = {
        m: frame[frame["metric"] == m].pivot_table(index=["group", "seed"], columns="method", values="value")
        for m in panels
    }
    rivals = {m: _best_rule(frame, m) for m in panels}
    pairs = [(a, m) for a, m in pairs if a in wide[m] and rivals[m] in wide[m] and len(wide[m]) > 2]
    if not pairs:
        return None
    figure, axes = plt.subplots(
        1, len(pairs), figsize=(2.9 * len(pairs), 3.0), layout="constrained", squeeze=False
    )  # fmt: skip
    for ax, (model, metric) in zip(axes[0], pairs, strict=True):
        table = wide[metric][[rivals[metric], model]].dropna()
        x, y = table[rivals[metric]].to_numpy(), table[model].to_numpy()
        lower = frame.loc[frame["metric"] == metric, "direction"].iloc[0] == "lower"
        better = y < x if lower else y > x
        ax.scatter(x[better], y[better], s=16, color=_COLOURS["model"], label=f"better in {better.mean():.0%}")
        ax.scatter(x[~better], y[~better], s=16, color=_COLOURS["negative"], label="not better")
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        ax.plot([low, high], [low, high], color="black", lw=0.8)
        ax.set_xlabel(f"{rivals[metric]} (best rule)")
        ax.set_ylabel(model)
        ax.set_title(f"{metric.replace('_', ' ')} ({'lower' if lower else 'higher'} is better)", fontsize=9)
        ax.legend(fontsize=7, frameon=False)
        _bare(ax)
    return figure


def _best_rule(frame: pd.DataFrame, metric: str) -> str | None:
    from sccausal.metrics._scaled import _goodness

    rules = frame[(frame["metric"] == metric) & (frame["kind"] == "baseline")]
    means = rules.groupby("method", sort=False)["value"].mean()
    score = _goodness(means, metric)
    return None if score.isna().all() else str(score.idxmax())


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.5)
    ax.set_axisbelow(True)
