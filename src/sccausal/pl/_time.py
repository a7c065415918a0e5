"""Latents and genes over time under interventions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._docs import docs
from sccausal._errors import SetupError, unknown_name
from sccausal.pl._base import BLUE, GREY, INK, LIGHT, PALETTE, SMALL, VERMILION, finish, new_axes, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"


@docs.dedent
def trajectories(
    model: Any,
    interventions: Sequence[Any] | None = None,
    *,
    block: str = "responsive",
    times: Sequence[float] | None = None,
    axes_of: pd.DataFrame | None = None,
    n_cells: int = 150,
    seed: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw how interventions carry control cells through the latent space.

    Cells of the first time are rolled out under each intervention with the same noise; lines join the means over cells,
    points are cells of the last time, markers stand for times. Axes are the first two principal components of the
    means, and the view is that of the means: cells vary more than interventions move them. Control is grey.

    Parameters
    ----------
    model
        A trained :class:`~sccausal.models.CITEVAE`.
    interventions
        Interventions to draw; default those that end furthest from control, seven at most, and control.
    block
        ``"responsive"`` or ``"invariant"``.
    times
        Times to stop at; default those measured.
    axes_of
        Directions to project on instead (latents of the block x 2), e.g. of true coordinates by regression.
    n_cells
        Cells that are followed.
    seed
        Seed of cells and noise.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.UnknownNameError
        The block does not exist.

    Examples
    --------
    >>> import sccausal as scc
    >>> ax = scc.pl.trajectories(model, n_cells=20, show=False)
    """
    names = [n for n in model.latent_names if n.startswith(block)]
    if not names:
        raise unknown_name("block", block, ("responsive", "invariant"), type(model).__name__)
    table = model.get_trajectories(interventions, times, n_cells=n_cells, seed=seed)
    control = str(model.registry_["setup_args"].get("control") or "control")
    if interventions is None:
        table = _furthest(table, names, control, 7)
    z = table[names].to_numpy()
    if axes_of is None:
        means = table.groupby(["intervention", "time"], sort=False)[names].mean().to_numpy()
        centre = means.mean(0)
        directions = np.linalg.svd(means - centre, full_matrices=False)[2][:2].T
        labels = ["PC1", "PC2"] if len(names) > 1 else ["PC1", ""]
    else:
        centre, directions = np.zeros(len(names)), axes_of.loc[names].to_numpy(dtype=float)
        labels = [str(c) for c in axes_of.columns]
    xy = (z - centre) @ directions
    if xy.shape[1] == 1:
        xy = np.column_stack([xy, np.zeros(len(xy))])
    made = new_axes(ax, (4.4, 3.6))
    moments = np.unique(table["time"])
    colours = _colours(dict.fromkeys(table["intervention"]), control)
    paths = []
    for name, colour in colours.items():
        own = (table["intervention"] == name).to_numpy()
        last = own & (table["time"] == moments[-1]).to_numpy()
        made.scatter(*xy[last].T, s=5, c=colour, alpha=0.25, linewidths=0, rasterized=True)
        path = np.array([xy[own & (table["time"] == t).to_numpy()].mean(0) for t in moments])
        paths.append(path)
        made.plot(*path.T, c=colour, lw=1.3, label=name, zorder=3)
        for t, (x, y) in enumerate(path):
            made.scatter(x, y, s=22, c=colour, marker=_MARKERS[t % len(_MARKERS)], edgecolors="white", lw=0.5, zorder=4)
    _view(made, np.concatenate(paths))
    made.legend(fontsize=SMALL - 0.5, frameon=False, loc="best", handlelength=1.2)
    tidy(made, title=title, xlabel=f"{block} {labels[0]}", ylabel=f"{block} {labels[1]}")
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _colours(names: Iterable[str], control: str) -> dict[str, str]:
    """Control is grey, the others take the remaining colours in turn."""
    others = [c for c in PALETTE if c != GREY]
    rest = [n for n in names if n != control]
    taken = {n: others[k % len(others)] for k, n in enumerate(rest)}
    return {n: taken.get(n, GREY) for n in names}


def _view(ax: Axes, points: np.ndarray) -> None:
    """Limits around ``points`` (n, 2) with a third of their range to spare."""
    low, high = points.min(0), points.max(0)
    room = np.maximum(high - low, 0.25 * max(float((high - low).max()), 1e-6)) / 3
    ax.set_xlim(low[0] - room[0], high[0] + room[0])
    ax.set_ylim(low[1] - room[1], high[1] + room[1])


def _furthest(table: pd.DataFrame, names: list[str], control: str, n: int) -> pd.DataFrame:
    last = table[table["time"] == table["time"].max()].groupby("intervention", sort=False)[names].mean()
    distance = np.linalg.norm(last - last.loc[control], axis=1)
    order = [str(v) for v in last.index[np.argsort(-distance, kind="stable")] if v != control][:n]
    return table[table["intervention"].isin([control, *order])]


@docs.dedent
def lagged_graph(
    model: Any,
    *,
    threshold: float = 0.1,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw which latent acts on which responsive latent one unit of time later.

    Two time slices: all latents on the left, the responsive ones a step later on the right. Blue lines raise, vermilion
    ones lower; the width grows with the weight. Persistence of a latent is grey.

    Parameters
    ----------
    model
        A trained :class:`~sccausal.models.CITEVAE`.
    threshold
        Draw edges with ``|weight| > threshold``, in standard deviations.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.SetupError
        ``threshold`` is negative.

    Examples
    --------
    >>> import sccausal as scc
    >>> ax = scc.pl.lagged_graph(model, show=False)
    """
    if threshold < 0:
        raise SetupError(f"threshold is compared with |weight| and cannot be {threshold}.")
    edges = model.get_lagged_graph(threshold).to_frame()
    names = model.latent_names
    targets = [n for n in names if n.startswith("responsive")]
    left = {n: len(names) - i for i, n in enumerate(names)}
    step = len(names) / max(len(targets), 1)
    right = {n: len(names) - i * step - (step - 1) / 2 for i, n in enumerate(targets)}
    made = new_axes(ax, (3.6, 0.28 * len(names) + 1.0))
    strongest = float(edges["weight"].abs().max()) if len(edges) else 1.0
    for source, target, weight in edges[["source", "target", "weight"]].itertuples(index=False):
        colour = GREY if source == target else BLUE if weight > 0 else VERMILION
        width = 0.4 + 2.4 * abs(weight) / strongest
        made.plot([0.06, 0.94], [left[source], right[target]], c=colour, lw=width, alpha=0.8, zorder=1)
    for place, x, side in ((left, 0.0, "right"), (right, 1.0, "left")):
        made.scatter([x] * len(place), list(place.values()), s=40, c=LIGHT, edgecolors=GREY, lw=0.7, zorder=2)
        for name, y in place.items():
            made.text(x - 0.06 if x == 0 else x + 0.06, y, name, ha=side, va="center", fontsize=SMALL, color=INK)
    made.set(xlim=(-0.75, 1.75), ylim=(0.2, len(names) + 1.2))
    made.text(0, len(names) + 0.9, "t", ha="center", fontsize=SMALL, color=GREY)
    made.text(1, len(names) + 0.9, "t + 1", ha="center", fontsize=SMALL, color=GREY)
    made.set_axis_off()
    if not len(edges):
        text = f"no edge with\n|weight| > {threshold:g}"
        made.text(0.5, len(names) / 2 + 0.5, text, ha="center", va="center", fontsize=SMALL, color=GREY)
    if title:
        made.set_title(title, fontsize=8.5)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


@docs.dedent
def response_over_time(
    pred: AnnData,
    gene: str,
    true: AnnData | None = None,
    *,
    interventions: Sequence[str] | None = None,
    time_key: str = "time",
    intervention_key: str = "intervention",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the mean of a gene over time under interventions, predicted and observed.

    Parameters
    ----------
    pred
        Predicted cells with ``obs["time"]``, e.g. of ``model.perturbation.predict(times=[...])``. Times that were not
        measured are hollow.
    gene
        Gene to draw.
    true
        Observed cells in the same unit, whose means are drawn as crosses with two standard errors.
    interventions
        Interventions to draw; default all that were predicted.
    time_key, intervention_key
        Columns of ``true``.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.UnknownNameError
        The gene, a column or an intervention is not known.
    sccausal._errors.SetupError
        The predictions hold no time.

    Examples
    --------
    >>> import sccausal as scc
    >>> target = model.perturbation.targets[0]
    >>> predicted = model.perturbation.predict(interventions=[target], times=[1, 2, 3])
    >>> ax = scc.pl.response_over_time(predicted, target, adata, show=False)
    """
    if "time" not in pred.obs or pred.obs["time"].isna().any():
        raise SetupError("The predictions hold no time; predict with times=[...].")
    predicted = [str(v) for v in pred.obs["intervention"].astype(str).unique()]
    for name in interventions or ():
        if str(name) not in predicted:
            raise unknown_name("intervention", str(name), predicted, "pred.obs['intervention']")
    shown = predicted if interventions is None else [str(v) for v in interventions]
    made = new_axes(ax, (4.0, 2.8))
    table = _gene_means(pred, gene, "intervention", "time", "pred")
    observed = None if true is None else _gene_means(true, gene, intervention_key, time_key, "true")
    marks = pred.obs.groupby("time", observed=True)["time_support"].first() if "time_support" in pred.obs else None
    for k, name in enumerate(shown):
        colour = PALETTE[k % len(PALETTE)]
        line = table[table["intervention"] == name]
        made.plot(line["time"], line["mean"], c=colour, lw=1.2, label=name)
        for t, y in zip(line["time"], line["mean"], strict=True):
            measured = marks is None or marks.get(t) == "measured"
            made.scatter(t, y, s=18, facecolors=colour if measured else "white", edgecolors=colour, lw=0.9, zorder=3)
        if observed is not None:
            own = observed[observed["intervention"] == name]
            made.errorbar(own["time"], own["mean"], 2 * own["error"], fmt="x", c=colour, ms=4, lw=0.8, capsize=1.5)
    made.legend(fontsize=SMALL - 0.5, frameon=False)
    tidy(made, title=title, xlabel="time", ylabel=gene)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _gene_means(adata: AnnData, gene: str, label: str, time: str, what: str) -> pd.DataFrame:
    if gene not in adata.var_names:
        raise unknown_name("gene", gene, list(map(str, adata.var_names)), f"{what}.var_names")
    for column in (label, time):
        if column not in adata.obs:
            raise unknown_name("column", column, list(map(str, adata.obs.columns)), f"{what}.obs")
    values = adata[:, gene].X
    frame = pd.DataFrame(
        {
            "intervention": adata.obs[label].astype(str).to_numpy(),
            "time": pd.to_numeric(adata.obs[time].astype(object)).to_numpy(dtype=float),
            "value": np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=float).ravel(),
        }
    )
    grouped = frame.groupby(["intervention", "time"], sort=True)["value"]
    out = grouped.agg(["mean", "sem"]).reset_index().rename(columns={"sem": "error"})
    return out.fillna({"error": 0.0})
