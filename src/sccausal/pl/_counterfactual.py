"""Counterfactual cells: beside observed ones, on tissue, and over several concepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal._docs import docs
from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.pl._base import BLUE, GREY, PALETTE, SMALL, VERMILION, finish, new_axes, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@docs.dedent
def counterfactual(
    adata: AnnData,
    pred: AnnData,
    concept: str,
    *,
    layer: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw where cells come from, where they are sent, and where cells are that have the value anyway.

    Parameters
    ----------
    adata
        Observed cells (cells, genes) with the column ``concept`` in ``obs``.
    pred
        Counterfactual cells of ``model.counterfactual``, with ``concept`` among what was set.
    concept
        The concept.
    layer
        Layer of ``adata`` to read.
    %(plot)s

    Returns
    -------
    Axes, or the figure with ``return_fig``. The two directions are the first principal components of the observed
    cells; an arrow joins the means.

    Raises
    ------
    sccausal._errors.SetupError
        The concept was not set in ``pred``.
    sccausal._errors.UnknownNameError
        ``adata`` has no such column.

    Examples
    --------
    >>> import sccausal as scc
    >>> after = model.counterfactual(do={"a": "a1"})
    >>> ax = scc.pl.counterfactual(adata, after, "a", show=False)
    """
    from sklearn.decomposition import PCA

    done: dict[str, str] = dict(pred.uns.get("sccausal", {}).get("do", {}))
    if concept not in done:
        raise SetupError(f"{concept!r} was not set in the counterfactual cells; set were {', '.join(done) or 'none'}.")
    if concept not in adata.obs:
        raise unknown_name("column", concept, adata.obs.columns, "adata.obs")
    observed, after = _dense(adata, layer)[:, adata.var_names.get_indexer(pred.var_names)], _dense(pred, None)
    has = adata.obs[concept].astype(str).to_numpy() == str(done[concept])
    sent = ~np.isin(pred.obs["source_cell"].astype(str).to_numpy(), adata.obs_names[has].astype(str))
    pca = PCA(2, random_state=0).fit(observed)
    sets = [
        (pca.transform(observed[~has]), GREY, "observed, other value"),
        (pca.transform(observed[has]) if has.any() else np.zeros((0, 2)), BLUE, f"observed, {concept}={done[concept]}"),
        (pca.transform(after[sent]) if sent.any() else np.zeros((0, 2)), VERMILION, f"do({concept}={done[concept]})"),
    ]
    axes = new_axes(ax, (3.6, 3.2))
    for points, colour, label in sets:
        axes.scatter(*points.T, s=4, c=colour, alpha=0.5, linewidths=0, label=label, rasterized=True)
    if len(sets[0][0]) and len(sets[2][0]):
        start, end = sets[0][0].mean(axis=0), sets[2][0].mean(axis=0)
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "lw": 1.2})
    axes.legend(
        fontsize=SMALL, frameon=False, markerscale=2.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3,
        columnspacing=1.0, handletextpad=0.2,
    )  # fmt: skip
    tidy(axes, title=title, xlabel="PC 1", ylabel="PC 2")
    return finish(axes, given=ax is not None, show=show, save=save, return_fig=return_fig)


@docs.dedent
def spatial_effect(
    adata: AnnData,
    pred: AnnData,
    genes: Sequence[str],
    *,
    basis: str = "spatial",
    layer: str | None = None,
    size: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw on tissue how much each cell would change.

    Parameters
    ----------
    adata
        Observed cells (cells, genes) with coordinates in ``obsm[basis]``.
    pred
        Counterfactual cells of ``model.counterfactual`` for these cells.
    genes
        Genes whose mean change is shown.
    basis
        Key of the coordinates (cells, 2).
    layer
        Layer of ``adata`` to read.
    size
        Area of a point; default by the number of cells.
    %(plot)s

    Returns
    -------
    Axes, or the figure with ``return_fig``.

    Raises
    ------
    sccausal._errors.UnknownNameError
        Coordinates or a gene are missing.
    sccausal._errors.InputDataError
        No cell of ``pred`` comes from ``adata``.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> adata.obsm["spatial"] = np.random.default_rng(0).uniform(size=(adata.n_obs, 2))
    >>> after = model.counterfactual(do={"a": "a1"})
    >>> ax = scc.pl.spatial_effect(adata, after, adata.var_names[:5], show=False)
    """
    if basis not in adata.obsm:
        raise unknown_name("basis", basis, adata.obsm.keys(), "adata.obsm")
    for gene in genes:
        if gene not in adata.var_names or gene not in pred.var_names:
            raise unknown_name("gene", gene, pred.var_names, "the counterfactual cells")
    after = pd.Series(_dense(pred[:, list(genes)], None).mean(axis=1)).groupby(
        pred.obs["source_cell"].astype(str).to_numpy()
    ).mean()  # fmt: skip
    before = pd.Series(_dense(adata[:, list(genes)], layer).mean(axis=1), index=adata.obs_names.astype(str))
    change = (after - before).dropna()
    if not len(change):
        raise InputDataError("No counterfactual cell comes from a cell of adata; compare obs['source_cell'].")
    rows = pd.Index(adata.obs_names.astype(str)).get_indexer(change.index)
    place = np.asarray(adata.obsm[basis])[rows, :2]
    bound = max(float(np.quantile(np.abs(change), 0.99)), 1e-9)
    axes = new_axes(ax, (4.0, 3.4))
    points = axes.scatter(
        *place.T, c=change, s=size or max(1.0, 8000 / len(change)), cmap="RdBu_r", vmin=-bound, vmax=bound,
        linewidths=0, rasterized=True,
    )  # fmt: skip
    bar = axes.figure.colorbar(points, ax=axes, shrink=0.7)
    bar.set_label(f"change, mean of {len(genes)} gene(s)", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    tidy(axes, title=title or ", ".join(f"do({k}={v})" for k, v in pred.uns.get("sccausal", {}).get("do", {}).items()))
    return finish(axes, given=ax is not None, show=show, save=save, return_fig=return_fig)


def gene_set_response(
    table: pd.DataFrame,
    *,
    x: str | None = None,
    colour: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the score of a gene set over several concepts, one panel per model and level of the third concept.

    Parameters
    ----------
    table
        What :func:`sccausal.tl.gene_set_response` returned.
    x, colour
        Concepts on the axis and in colours; default the first and the second of the table. Others make panels.
    show, save, return_fig
        As in scanpy.

    Returns
    -------
    List of axes, or the figure with ``return_fig``. Circles are observed cells.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A concept is no column of the table.

    Examples
    --------
    >>> import sccausal as scc
    >>> do = {"a": ["a0", "a1"], "b": ["b0", "b1"]}
    >>> table = scc.tl.gene_set_response({"with DAG": model}, do, adata.var_names[:5])
    >>> axes = scc.pl.gene_set_response(table, show=False)
    """
    import matplotlib.pyplot as plt

    concepts = [c for c in table.columns if c not in ("model", "score", "observed")]
    for name in (x, colour):
        if name is not None and name not in concepts:
            raise unknown_name("concept", name, concepts, "the table")
    x = x or concepts[0]
    rest = [c for c in concepts if c != x]
    colour = colour or (rest[0] if rest else None)
    panels = ["model", *[c for c in rest if c != colour]]
    groups = list(table.groupby(panels, sort=False))
    figure, grid = plt.subplots(
        1, len(groups), figsize=(2.3 * len(groups) + 0.6, 2.5), sharey=True, squeeze=False, layout="constrained"
    )
    axes = list(grid[0])
    for ax, (key, part) in zip(axes, groups, strict=True):
        lines = part.groupby(colour, sort=False) if colour else [("", part)]
        for tint, (level, line) in zip(PALETTE * 3, lines, strict=False):
            at = line[x].astype(str) if line[x].dtype == object else line[x]
            ax.plot(at, line["score"], "-", c=tint, lw=1.3, label=f"{colour}=" + str(level) if colour else None)
            ax.plot(at, line["observed"], "o", c=tint, ms=3.5, mfc="none")
        keys = key if isinstance(key, tuple) else (key,)
        tidy(ax, title=", ".join(map(str, keys)), xlabel=x, ylabel="score" if ax is axes[0] else None)
    if colour:
        axes[-1].legend(fontsize=SMALL, frameon=False)
    return finish(axes, given=False, show=show, save=save, return_fig=return_fig)


def _dense(adata: AnnData, layer: str | None) -> np.ndarray:
    matrix = adata.X if layer is None else adata.layers[layer]
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)
