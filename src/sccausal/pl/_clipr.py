"""Direct effects beside total ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sccausal._docs import docs
from sccausal._errors import InputDataError, SetupError
from sccausal.pl._base import (
    BLUE,
    GREY,
    INK,
    PALETTE,
    SMALL,
    VERMILION,
    finish,
    matrix_height,
    new_axes,
    place_labels,
    row_label_size,
    tidy,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sccausal.grn import CliprResult


@docs.dedent
def direct_vs_total(
    result: CliprResult,
    *,
    fdr: float = 0.05,
    n_labels: int = 8,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw each pair of genes by its total and its direct effect.

    Pairs on the diagonal act directly; pairs on the horizontal line change only through other genes.

    Parameters
    ----------
    result
        Of :func:`sccausal.tl.clipr`.
    fdr
        Pairs with a q-value of at most this are coloured; without a bootstrap none are.
    n_labels
        So many of the strongest direct effects are named.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(8, n_cells=100, seed=0)
    >>> result = scc.tl.clipr(adata, intervention_key="intervention", control="control", n_bootstrap=20)
    >>> ax = scc.pl.direct_vs_total(result, show=False)
    """
    frame = _checked(result).to_frame()
    if not len(frame):
        raise InputDataError("There is no pair of different genes to draw.")
    x, y = frame["total"].to_numpy(), frame["weight"].to_numpy()
    sure = np.zeros(len(frame), dtype=bool)
    if "q_value" in frame:
        sure = (frame["q_value"] <= fdr).to_numpy()
    made = new_axes(ax, (3.6, 3.2))
    made.axhline(0, color=GREY, lw=0.6, zorder=0)
    bound = 1.05 * max(float(np.abs(np.r_[x, y]).max()), 1e-12)
    made.plot([-bound, bound], [-bound, bound], color=GREY, lw=0.6, ls=(0, (4, 3)), zorder=0)
    made.scatter(x[~sure], y[~sure], s=5, color=GREY, alpha=0.5, lw=0, rasterized=True, label="other pairs")
    if sure.any():
        made.scatter(x[sure], y[sure], s=9, color=VERMILION, lw=0, label=f"direct at a false discovery rate of {fdr:g}")
        made.legend(fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    made.set_xlim(-1.35 * bound, 1.35 * bound)
    made.set_ylim(-bound, bound)
    named = np.argsort(-np.abs(y))[:n_labels]
    labels = (frame["source"] + " → " + frame["target"]).to_numpy()[named]
    place_labels(made, x[named], y[named], list(labels))
    tidy(made, title=title, xlabel="total effect, per unit of the source", ylabel="direct effect")
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


@docs.dedent
def clipr_modules(
    result: CliprResult,
    modules: pd.Series | None = None,
    *,
    max_labels: int = 60,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the direct effects as a matrix, sources ordered by module.

    Parameters
    ----------
    result
        Of :func:`sccausal.tl.clipr`.
    modules
        Module of each source in the order of the tree, the first value of :func:`sccausal.tl.clipr_modules`; found
        with its defaults if not given.
    max_labels
        Genes are named if there are at most so many.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(12, n_cells=100, seed=0)
    >>> result = scc.tl.clipr(adata, intervention_key="intervention", control="control", n_bootstrap=0)
    >>> ax = scc.pl.clipr_modules(result, show=False)
    """
    from matplotlib.patches import Rectangle

    if modules is None:
        from sccausal.tl._clipr import clipr_modules as find

        modules = find(_checked(result))[0]
    table = _checked(result).direct_effects.copy()
    for gene in set(table.index) & set(table.columns):
        table.loc[gene, gene] = np.nan
    order = [g for g in modules.index if g in table.index]
    if not order:
        raise SetupError("`modules` names none of the sources of the result.")
    columns = [*order, *[g for g in table.columns if g not in set(order)]]
    columns = [g for g in columns if g in table.columns]
    values = table.loc[order, columns].to_numpy(dtype=float)
    top = float(np.nanquantile(np.abs(values), 0.99)) or 1.0
    made = new_axes(ax, (4.2, matrix_height(len(order) if len(order) <= max_labels else 0, 3.6)))
    image = made.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="none")
    names = modules.loc[order]
    for i, name in enumerate(dict.fromkeys(names.dropna())):
        at = np.flatnonzero((names == name).to_numpy())
        box = (-0.5, at.min() - 0.5)
        made.add_patch(
            Rectangle(box, len(columns), len(at), fill=False, ec=PALETTE[i % len(PALETTE)], lw=1.2, clip_on=False)
        )
        made.annotate(
            name, (1.0, at.mean()), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=SMALL, color=INK,
        )  # fmt: skip
    if len(order) <= max_labels:
        made.set_yticks(range(len(order)), order, fontsize=row_label_size(made, len(order)))
    else:
        made.set_yticks([])
    made.set_xticks([])
    made.tick_params(length=0)
    made.spines[:].set_visible(False)
    made.set_xlabel(f"{len(columns)} targets", fontsize=SMALL, color=BLUE)
    bar = made.figure.colorbar(image, ax=made, fraction=0.04, pad=0.16, extend="both")
    bar.set_label("direct effect", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    if title:
        made.set_title(title, fontsize=8.5)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _checked(result: CliprResult) -> CliprResult:
    if not hasattr(result, "direct_effects"):
        raise SetupError(f"Expected the result of tl.clipr, got {type(result).__name__}.")
    return result
