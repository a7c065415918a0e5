"""Predicted against observed change of expression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sccausal._docs import docs
from sccausal._errors import SetupError
from sccausal.pl._base import BLUE, GREY, LIGHT, SMALL, VERMILION, finish, new_axes, place_labels, tidy

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@docs.dedent
def response(
    pred: AnnData,
    true: AnnData,
    control: AnnData,
    *,
    genes: Sequence[str] | None = None,
    top: int = 100,
    n_labels: int = 10,
    layer: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the predicted change of every gene against the observed one.

    The change is the difference of mean expression from that of the control cells, read on log1p of 1e4 counts per cell
    as all metrics are (see :func:`sccausal.metrics.log1p_norm`). The ``top`` genes with the largest observed change are
    coloured; Pearson's r and the slope through the origin (1 when the size of the response is right) are given for
    them, since over all genes any prediction looks good.

    Parameters
    ----------
    pred
        Predicted cells (cells, genes), e.g. of ``model.perturbation.predict``.
    true
        Observed cells of the same condition (cells, genes).
    control
        Observed control cells (cells, genes).
    genes
        Genes to draw; default: the genes all three have.
    top
        Number of genes with the largest observed change to colour.
    n_labels
        Number of those to name.
    layer
        Layer of ``true`` and ``control`` to read.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.SetupError
        Fewer than three genes are shared.
    sccausal._errors.UnknownNameError
        A gene is not known.
    sccausal._errors.InputDataError
        One of the objects holds no cell, counts, or values that are not finite.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> true = adata[(adata.obs["intervention"] == "G0007+G0010").to_numpy()]
    >>> control = adata[(adata.obs["intervention"] == "control").to_numpy()]
    >>> rule = scc.baselines.Additive().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> ax = scc.pl.response(predicted, true, control, top=10, show=False)
    """
    from sccausal.metrics._input import align

    names = _shared_genes((pred, true, control)) if genes is None else [str(g) for g in genes]
    cells = align(pred, true, control, genes=names, layer=layer)
    baseline = cells.control.mean(axis=0)
    observed = cells.true.mean(axis=0) - baseline
    predicted = cells.pred.mean(axis=0) - baseline
    strongest = np.argsort(-np.abs(observed), kind="stable")[:top]
    made = new_axes(ax, (3.4, 3.3))
    rest = np.setdiff1d(np.arange(len(names)), strongest)
    made.scatter(observed[rest], predicted[rest], s=5, c=LIGHT, lw=0, rasterized=True)
    made.scatter(observed[strongest], predicted[strongest], s=11, c=BLUE, lw=0, alpha=0.85)
    _guides(made, observed, predicted)
    labelled = strongest[:n_labels]
    place_labels(made, observed[labelled], predicted[labelled], [names[i] for i in labelled])
    made.text(
        0.02, 0.98, _summary(observed[strongest], predicted[strongest]), transform=made.transAxes, va="top",
        fontsize=SMALL,
    )  # fmt: skip
    tidy(made, title=title, xlabel="observed change", ylabel="predicted change")
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _guides(ax: Axes, observed: np.ndarray, predicted: np.ndarray) -> None:
    pooled = np.concatenate([observed, predicted])
    margin = 0.2 * (np.ptp(pooled) or 1.0)  # room for the names
    low, high = pooled.min() - margin, pooled.max() + margin
    ax.plot([low, high], [low, high], color=VERMILION, lw=1, ls=(0, (4, 3)), zorder=0)
    ax.axhline(0, color=GREY, lw=0.5, zorder=0)
    ax.axvline(0, color=GREY, lw=0.5, zorder=0)
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    ax.locator_params(nbins=6)


def _summary(observed: np.ndarray, predicted: np.ndarray) -> str:
    spread = observed.std() * predicted.std()
    r = f"{np.corrcoef(observed, predicted)[0, 1]:.2f}" if len(observed) > 2 and spread > 0 else "not defined"
    power = float(observed @ observed)
    slope = f"{float(observed @ predicted) / power:.2f}" if power > 0 else "not defined"
    return f"top {len(observed)} genes\nr = {r}\nslope = {slope}"


def _shared_genes(objects: Sequence[AnnData]) -> list[str]:
    common = set.intersection(*(set(o.var_names) for o in objects))
    names = [str(g) for g in objects[1].var_names if g in common]
    if len(names) < 3:
        raise SetupError(f"`pred`, `true` and `control` share {len(names)} gene(s); their var_names do not match.")
    return names
