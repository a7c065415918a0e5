"""Communities of transcription factors: who is with whom, how stable, how cohesive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._docs import docs
from sccausal._errors import InputDataError, SetupError
from sccausal.pl._base import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    ORANGE,
    PALETTE,
    SMALL,
    VERMILION,
    finish,
    matrix_height,
    new_axes,
    row_label_size,
    tidy,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sccausal.grn import CohesionTest, Communities


@docs.dedent
def communities(
    data: AnnData | Communities,
    *,
    key: str = "tf_communities",
    max_labels: int = 60,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the strengths between regulators, ordered by community.

    Parameters
    ----------
    data
        Cells with the result of :func:`sccausal.tl.tf_communities`, or the communities.
    key
        Where they are in ``adata.uns``.
    max_labels
        Regulators are named if there are at most so many.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.UnknownNameError
        There are no communities in ``adata.uns[key]``.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.tl.grn(adata, cells.uns["truth"]["network"])
    >>> found = scc.grn.find_communities(network, resolutions=[1.0], n_runs=20)
    >>> ax = scc.pl.communities(found, show=False)
    """
    from matplotlib.patches import Rectangle

    held = _communities(data, key)
    members = held.members()
    order = [g for genes in members.values() for g in genes]
    matrix = held.strengths.loc[order, order].to_numpy()
    n_none = int(held.labels.isna().sum())
    height = matrix_height(len(order) if len(order) <= max_labels else 0, 3.9)
    made = new_axes(ax, (height + 0.5, height))
    shown = np.where(matrix > 0, matrix, np.nan)  # no edge stays white
    top = float(np.nanquantile(shown, 0.98)) if np.isfinite(shown).any() else 1.0
    image = made.imshow(shown, cmap="Blues", vmin=0, vmax=top, interpolation="none")
    start = 0
    for k, (name, genes) in enumerate(members.items()):
        colour = PALETTE[k % len(PALETTE)]
        corner = (start - 0.5, start - 0.5)
        made.add_patch(Rectangle(corner, len(genes), len(genes), fill=False, ec=colour, lw=1.6, clip_on=False))
        made.annotate(
            name, (1.0, start + (len(genes) - 1) / 2), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=SMALL, color=INK,
        )  # fmt: skip
        start += len(genes)
    if len(order) <= max_labels:
        made.set_yticks(range(len(order)), order, fontsize=row_label_size(made, len(order)))
    else:
        made.set_yticks([])
    made.set_xticks([])
    made.tick_params(length=0)
    made.spines[:].set_visible(False)
    note = f"{len(order)} regulators" + (f" ({n_none} more in none)" if n_none else "")
    made.set_xlabel(note, fontsize=SMALL)
    bar = made.figure.colorbar(image, ax=made, fraction=0.04, pad=0.09, extend="max")
    bar.set_label(r"strength $|w_{ab}|+|w_{ba}|$", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    if title:
        made.set_title(title, fontsize=8.5)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


@docs.dedent
def community_stability(
    data: AnnData | Communities,
    *,
    key: str = "tf_communities",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw how much Leiden runs agree at each resolution; the chosen one is marked.

    Agreement is the mean adjusted Rand index (1: equal partitions) and the mean variation of information (0: equal);
    the number above each point is that of communities.

    Parameters
    ----------
    data
        Cells with the result of :func:`sccausal.tl.tf_communities`, or the communities.
    key
        Where they are in ``adata.uns``.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.InputDataError
        The communities were given, not searched for.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.tl.grn(adata, cells.uns["truth"]["network"])
    >>> found = scc.grn.find_communities(network, resolutions=[1.0, 1.5], n_runs=20)
    >>> axes = scc.pl.community_stability(found, show=False)
    """
    table = _communities(data, key).stability
    if not len(table):
        raise InputDataError("These communities were given, not searched for: there is no stability to draw.")
    made = new_axes(ax, (3.8, 2.8))
    x = table["resolution"].to_numpy()
    made.plot(x, table["ari"], color=BLUE, marker="o", ms=3.5, lw=1.2, label="adjusted Rand index")
    made.plot(x, table["vi"], color=VERMILION, marker="s", ms=3.5, lw=1.2, label="variation of information")
    chosen = float(table.loc[table["chosen"].astype(bool), "resolution"].iloc[0])
    made.axvline(chosen, color=GREY, lw=1, ls=(0, (4, 3)), zorder=0)
    high = 1.15 * max(1.0, float(table["vi"].max()))
    made.set_ylim(-0.03 * high, high)
    for value, number in zip(x, table["n_communities"], strict=True):
        made.annotate(
            f"{number:g}", (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, -7),
            textcoords="offset points", ha="center", fontsize=SMALL, color=INK,
        )  # fmt: skip
    made.legend(
        fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=1.6
    )
    tidy(made, title=title, xlabel="resolution (above: communities)", ylabel="agreement of runs")
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


@docs.dedent
def cohesion(
    data: AnnData | CohesionTest,
    *,
    test: str = "permuted",
    key: str = "tf_communities",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the cohesion of communities against its null distribution.

    Parameters
    ----------
    data
        Cells with the result of :func:`sccausal.tl.tf_communities`, or a test of :func:`sccausal.grn.cohesion_test`.
    test
        ``"permuted"`` (gCRL's: communities of random members) or ``"rewired"`` (networks with random partners).
    key
        Where the communities are in ``adata.uns``.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.SetupError
        The test was not run.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.tl.grn(adata, cells.uns["truth"]["network"])
    >>> found = scc.grn.find_communities(network, resolutions=[1.0], n_runs=20)
    >>> ax = scc.pl.cohesion(scc.grn.cohesion_test(found, n_permutations=50), show=False)
    """
    statistic, observed, null, p, kind = _test(data, test, key)
    made = new_axes(ax, (3.6, 2.6))
    made.hist(null, bins=min(30, max(5, len(null) // 8)), color=LIGHT, ec=GREY, lw=0.5, label=_NULLS[kind])
    made.axvline(observed, color=VERMILION, lw=1.8, label=f"observed {observed:.3g}")
    made.plot([], [], " ", label=f"p = {p:.2g} ({len(null)} draws)")
    made.legend(fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    label = "mean cohesion of communities" if statistic == "cohesion" else "modularity found by Leiden"
    tidy(made, title=title, xlabel=label, ylabel="draws")
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


@docs.dedent
def edge_mixture(
    data: Any,
    *,
    key: str = "grn",
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the sizes of edge weights, the two Gaussians fitted to their logarithm, and the cut.

    Parameters
    ----------
    data
        Cells with the result of :func:`sccausal.tl.grn` (its significant edges), or a network (all its edges).
    key
        Where the network is in ``adata.uns``.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.InputDataError
        There are too few edges, or the two Gaussians do not cross.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.tl.grn(adata, cells.uns["truth"]["network"], edges="tested")
    >>> ax = scc.pl.edge_mixture(network, show=False)
    """
    import warnings

    from sccausal.grn import edge_mixture as fit

    if hasattr(data, "uns"):
        from sccausal.tl._grn import stored_network

        data = stored_network(data, key, "significant")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the gain in BIC stands in the legend
        mixture = fit(data)
    weight = data.to_frame()["weight"].abs().to_numpy()
    logs = np.log(weight[weight > 0])
    made = new_axes(ax, (3.8, 2.7))
    made.hist(logs, bins="auto", density=True, color=LIGHT, ec="white", lw=0.4)
    grid = np.linspace(logs.min(), logs.max(), 400)
    weak, strong = mixture.density(grid)
    made.plot(grid, weak, color=BLUE, lw=1.4, label=f"weak ({1 - mixture.fraction:.0%} of {mixture.n_edges})")
    made.plot(grid, strong, color=ORANGE, lw=1.4, label=f"strong ({mixture.fraction:.0%})")
    made.plot(grid, weak + strong, color=GREY, lw=0.8, label="both")
    made.axvline(np.log(mixture.cut), color=VERMILION, lw=1.4, ls=(0, (4, 3)), label=f"cut {mixture.cut:.2g}")
    made.plot([], [], " ", label=f"BIC gain {mixture.bic_gain:.0f}")
    made.legend(
        fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, handlelength=1.4,
        columnspacing=1.0,
    )  # fmt: skip
    tidy(made, title=title, xlabel="log |weight|", ylabel="density")
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


_NULLS = {"permuted": "random members", "rewired": "random partners"}


def _communities(data: Any, key: str) -> Communities:
    if hasattr(data, "uns"):
        from sccausal.tl._communities import stored_communities

        return stored_communities(data, key)
    if not (hasattr(data, "members") and isinstance(getattr(data, "stability", None), pd.DataFrame)):
        raise SetupError(f"Expected an AnnData or Communities, got {type(data).__name__}.")
    return data


def _test(data: Any, test: str, key: str) -> tuple[str, float, np.ndarray, float, str]:
    if not hasattr(data, "uns"):
        return data.statistic, data.observed, np.asarray(data.null), data.p_value, data.null_kind
    _communities(data, key)  # says what is missing
    known: Mapping[str, Any] = data.uns[key].get("cohesion", {})
    if test not in known:
        raise SetupError(f"The test {test!r} of cohesion was not run; found {list(known)}.")
    held = known[test]
    return str(held["statistic"]), float(held["observed"]), np.asarray(held["null"]), float(held["p_value"]), test
