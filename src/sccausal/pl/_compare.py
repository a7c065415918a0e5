"""Methods against metrics as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal._docs import docs
from sccausal._errors import SetupError, unknown_name
from sccausal.pl._base import SMALL, finish, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = {"higher": "↑", "lower": "↓", "one": "→1"}


@docs.dedent
def compare(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    ceiling: Sequence[str] = ("duplicate", "interpolated duplicate"),
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw a comparison table: methods in rows, metrics in columns, best methods on top.

    The colour of a cell is the rank of the method in that metric (dark is best), the number its value; the best of each
    column is bold. Ceilings are not ranked and stand below the line.

    Parameters
    ----------
    table
        Result of :func:`sccausal.tl.compare`: columns ``method``, ``metric``, ``value`` and ``direction`` (which value
        is better: ``"higher"``, ``"lower"``, or ``"one"``, the closer to 1). Several rows of a method and metric
        (strata, seeds) are averaged.
    metrics
        Metrics to show, in this order; default: all that have a direction.
    ceiling
        Methods that bound what can be reached.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.SetupError
        The table lacks a column or holds no metric with a direction.
    sccausal._errors.UnknownNameError
        A metric is not in the table.

    Examples
    --------
    >>> import sccausal as scc
    >>> table = scc.tl.compare(model, adata, baselines=["MeanShift"], metrics=["rmse", "mae"])
    >>> ax = scc.pl.compare(table, show=False)
    """
    values, better = _wide(table, metrics)
    top = [m for m in ceiling if m in values.index]
    ranked = values.drop(index=top)
    ranks = _ranks(ranked, better)
    order = [*ranks.mean(axis=1).sort_values(kind="stable").index, *top]
    values, ranks = values.loc[order], ranks.reindex(order)
    made = new_axes(ax, (1.6 + 0.78 * values.shape[1], 1.0 + 0.27 * len(values)))
    _draw(made, values, ranks, better)
    if top:
        made.axhline(len(order) - len(top) - 0.5, color="black", lw=1.2)
    tidy(made, title=title)
    made.spines[:].set_visible(False)
    made.tick_params(length=0)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _wide(table: pd.DataFrame, metrics: Sequence[str] | None) -> tuple[pd.DataFrame, pd.Series]:
    missing = [c for c in ("method", "metric", "value", "direction") if c not in table]
    if missing:
        raise SetupError(f"A comparison table needs the column(s) {', '.join(missing)}; use `tl.compare` to make one.")
    directed = table[table["direction"].isin(list(_MARKS))]
    for metric in metrics or ():
        if metric not in set(directed["metric"]):
            raise unknown_name("metric", metric, pd.unique(directed["metric"]), "the table")
    names = list(metrics) if metrics is not None else list(pd.unique(directed["metric"]))
    if not names:
        raise SetupError("The table holds no metric with direction 'higher', 'lower' or 'one'.")
    wide = directed.pivot_table(index="method", columns="metric", values="value", aggfunc="mean", sort=False)
    better = directed.drop_duplicates("metric").set_index("metric")["direction"]
    return wide.reindex(columns=names), better.loc[names]


def _ranks(values: pd.DataFrame, better: pd.Series) -> pd.DataFrame:
    """Rank of each method in each metric, 0 (best) to 1 (worst)."""
    badness = {"lower": lambda v: v, "higher": lambda v: -v, "one": lambda v: (v - 1).abs()}
    bad = {m: badness[str(way)](values[m]) for m, way in better.items()}
    rank = pd.DataFrame(bad).rank(method="average")
    return (rank - 1) / max(len(values) - 1, 1)


def _draw(ax: Axes, values: pd.DataFrame, ranks: pd.DataFrame, better: pd.Series) -> None:
    import matplotlib as mpl

    # only the lighter part of the map is used, so that black numbers stay readable on every colour
    shades = mpl.colormaps["Blues"](np.linspace(0.55, 0.0, 256))
    colours = mpl.colors.ListedColormap(shades).with_extremes(bad="white")
    ax.imshow(np.ma.masked_invalid(ranks.to_numpy(float)), cmap=colours, vmin=0, vmax=1, aspect="auto")
    numbers, places = values.to_numpy(float), ranks.to_numpy(float)
    best = np.nanmin(places, axis=0)
    for (i, j), value in np.ndenumerate(numbers):
        ax.text(
            j, i, "–" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", fontsize=SMALL,
            weight="bold" if places[i, j] == best[j] else "normal",
            style="italic" if np.isnan(places[i, j]) else "normal",
        )  # fmt: skip
    labels = [f"{m.replace('_', ' ')} {_MARKS[better[m]]}" for m in values.columns]
    ax.set_xticks(range(values.shape[1]), labels, rotation=35, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(values)), values.index)
    ax.set_xticks(np.arange(values.shape[1] - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(values) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="minor", length=0)
