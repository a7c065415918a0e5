"""Tables of scores for one group of predicted cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, unknown_name
from sccausal.metrics import _bulk, _de, _distribution
from sccausal.metrics._info import as_table
from sccausal.metrics._input import Expression, align

BULK = (
    "rmse",
    "mae",
    "wmse",
    "nmse_top",
    "pearson_change",
    "pearson_change_top",
    "pearson_ref",
    "r2_top",
    "r2_pearson_top",
    "adjusted_r2_top",
    "centroid_distance",
)
DE = (
    "direction_match",
    "direction_fidelity",
    "direction_reach",
    "de_jaccard",
    "de_overlap",
    "lfc_nmae",
    "de_auroc",
    "de_auprc",
    "n_de_true",
    "n_de_pred",
)
DISTRIBUTION = ("energy_distance", "mmd2", "wasserstein_1d", "sliced_wasserstein", "variance_ratio")


@dataclass
class Truth:
    """True and control cells of one group with what all predictions of it share, computed once.

    Parameters
    ----------
    true, control
        Cells (n, genes), dense, log1p(1e4).
    top
        Number of genes in the "top" scores.
    top_genes
        Positions of these genes; default: largest absolute Welch t between ``true`` and ``control``.
    reference
        Mean of the perturbation centroids (genes,), for ``pearson_ref``.
    true_types
        Real means of all types under the intervention (types, genes), for ``adjusted_r2_top``.
    """

    true: np.ndarray
    control: np.ndarray
    top: int = 100
    top_genes: np.ndarray | None = None
    reference: np.ndarray | None = None
    true_types: np.ndarray | None = None
    seed: int = 0
    de_method: Literal["welch", "wilcoxon"] = "welch"
    alpha: float = 0.05
    true_mean: np.ndarray = field(init=False)
    control_mean: np.ndarray = field(init=False)
    test: _de.DETest = field(init=False)
    weights: list[tuple[np.ndarray, np.ndarray]] = field(init=False)  # (weights, mean of the other half)
    scales: np.ndarray | None = field(init=False, default=None)
    cloud: np.ndarray | None = field(init=False, default=None)  # the true cells that distributions are compared with

    def __post_init__(self) -> None:
        self.true_mean, self.control_mean = self.true.mean(axis=0), self.control.mean(axis=0)
        self.test = _de.de_test(self.true, self.control, self.de_method)
        if self.top_genes is None:
            self.top_genes = _bulk.top_de_genes(self.true, self.control, self.top)
        self.weights = self._cross_weights()

    def _cross_weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights from one half of the cells beside the mean of the other, both ways round."""
        if len(self.true) < 4 or len(self.control) < 4:
            return []
        t = _bulk.split_half(len(self.true), self.seed)
        c = _bulk.split_half(len(self.control), self.seed)
        pairs = ((0, 1), (1, 0))
        return [(_bulk.de_weights(self.true[t[a]], self.control[c[a]]), self.true[t[b]].mean(axis=0)) for a, b in pairs]

    def bulk(self, pred_mean: np.ndarray) -> dict[str, float]:
        """Bulk scores of a predicted mean (genes,)."""
        g = self.top_genes
        p, t, c = pred_mean, self.true_mean, self.control_mean
        values = {
            "rmse": _bulk.rmse(p, t),
            "mae": _bulk.mae(p, t),
            "wmse": float(np.mean([_bulk.wmse(p, m, w) for w, m in self.weights])) if self.weights else float("nan"),
            "nmse_top": _bulk.normalised_mse(p[g], t[g], c[g]),
            "pearson_change": _bulk.pearson_change(p, t, c),
            "pearson_change_top": _bulk.pearson_change(p[g], t[g], c[g]),
            "r2_top": _bulk.r2(p[g], t[g]),
            "r2_pearson_top": _bulk.r2(p[g], t[g], "pearson"),
            "centroid_distance": _bulk.centroid_distance(p, t),
        }
        if self.reference is not None:
            values["pearson_ref"] = _bulk.pearson_reference(p, t, self.reference)
        if self.true_types is not None:
            values["adjusted_r2_top"] = _bulk.adjusted_r2(p[g], np.atleast_2d(self.true_types)[:, g])
        return {m: values[m] for m in BULK if m in values}

    def de(self, pred: np.ndarray) -> dict[str, float]:
        """DE scores of predicted cells (n, genes)."""
        found = _de.de_test(pred, self.control, self.de_method)
        return _de.de_scores(found, self.test, alpha=self.alpha, top=self.top)

    def distribution(self, pred: np.ndarray, metrics: Sequence[str] = DISTRIBUTION) -> dict[str, float]:
        """Distribution scores of predicted cells (n, genes)."""
        true = self.true if self.cloud is None else self.cloud
        if "mmd2" in metrics and self.scales is None:
            self.scales = _distribution.length_scales(true, seed=self.seed)
        compute = {
            "energy_distance": lambda: _distribution.energy_distance(pred, true),
            "mmd2": lambda: _distribution.mmd2(pred, true, scales=self.scales),
            "wasserstein_1d": lambda: float(_distribution.wasserstein_1d(pred, true).mean()),
            "sliced_wasserstein": lambda: _distribution.sliced_wasserstein(pred, true, seed=self.seed),
            "variance_ratio": lambda: _distribution.variance_ratio(pred, true),
        }
        return {m: compute[m]() for m in DISTRIBUTION if m in metrics}

    def scores(self, pred: np.ndarray, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """All scores, or those in ``metrics``, of predicted cells (n, genes)."""
        wanted = check_metrics(metrics)
        values: dict[str, float] = {}
        if wanted & set(BULK):
            values |= self.bulk(pred.mean(axis=0))
        if wanted & set(DE):
            values |= self.de(pred)
        if wanted & set(DISTRIBUTION):
            values |= self.distribution(pred, [m for m in DISTRIBUTION if m in wanted])
        return {m: v for m, v in values.items() if m in wanted}


def check_metrics(metrics: Sequence[str] | None, extra: Sequence[str] = ()) -> set[str]:
    """Names of metrics as a set; ``None`` means all. Groups "bulk", "de" and "distribution" are accepted.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A name is not known.
    """
    groups = {"bulk": BULK, "de": DE, "distribution": DISTRIBUTION}
    known = [*BULK, *DE, *DISTRIBUTION, *extra]
    if metrics is None:
        return set(known)
    out: set[str] = set()
    for name in [metrics] if isinstance(metrics, str) else metrics:
        if name in groups:
            out |= set(groups[name])
        elif name in known:
            out.add(name)
        else:
            raise unknown_name("metric", name, [*known, *groups], "sccausal.metrics")
    return out


def perturbation_scores(
    pred: Expression,
    true: Expression,
    control: Expression,
    *,
    genes: Sequence[str] | None = None,
    drop_genes: Sequence[str] = (),
    top: int = 100,
    top_genes: Sequence[str] | None = None,
    reference: np.ndarray | pd.Series | None = None,
    true_types: np.ndarray | pd.DataFrame | None = None,
    de_method: Literal["welch", "wilcoxon"] = "welch",
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Bulk and differential expression scores of predicted cells of one group (one intervention, type, ...).

    Parameters
    ----------
    pred
        Predicted cells (n, genes) on log1p(1e4), e.g. from ``model.perturbation.predict``.
    true
        Observed cells under the intervention.
    control
        Observed cells without it, of the same group.
    genes
        Genes to score, fixed in advance; default all of ``true``.
    drop_genes
        Genes to leave out, e.g. the target's own.
    top
        Genes in the "top" scores.
    top_genes
        Their names, if they were fixed elsewhere; default: largest absolute Welch t between ``true`` and ``control``.
    reference
        Mean of the perturbation centroids (genes,); adds ``pearson_ref``.
    true_types
        Real means of all types (types, genes); adds ``adjusted_r2_top``.
    de_method
        Test behind the DE scores: ``"welch"`` or ``"wilcoxon"``.
    layer
        Layer of ``true`` and ``control`` with log1p(1e4) values; default ``X``.
    seed
        Seed of the split into halves for the weights of ``wmse``.

    Returns
    -------
    DataFrame ``metric, value, direction, unit``, one row per metric. What each means stands in the docstring of the
    function of that name in :mod:`sccausal.metrics`.

    Raises
    ------
    sccausal._errors.InputDataError
        Genes differ, values are not finite or look like counts, or there are no cells.
    sccausal._errors.UnknownNameError
        A named gene is not there.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.metrics import perturbation_scores
    >>> rng = np.random.default_rng(0)
    >>> control, true = rng.gamma(2.0, size=(50, 30)), rng.gamma(3.0, size=(50, 30))
    >>> table = perturbation_scores(control, true, control).set_index("metric")
    >>> float(table.loc["nmse_top", "value"])
    1.0
    """
    cells = align(pred, true, control, genes=_without(true, genes, drop_genes), layer=layer)
    order = cells.genes
    truth = Truth(
        cells.true,
        cells.control,
        top=top,
        top_genes=None if top_genes is None else _gene_positions(top_genes, order),
        reference=_per_gene(reference, order),
        true_types=_per_gene(true_types, order),
        seed=seed,
        de_method=de_method,
    )
    return as_table(truth.bulk(cells.pred.mean(axis=0)) | truth.de(cells.pred))


def distribution_scores(
    pred: Expression,
    true: Expression,
    control: Expression | None = None,
    *,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    max_cells: int | None = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Distances between predicted and observed cells of one group.

    Parameters
    ----------
    pred, true
        Cells on log1p(1e4).
    control
        Cells without the intervention; adds the column ``control``, the same scores of predicting no change.
    genes
        Genes to score; default all of ``true``.
    layer
        Layer of ``true`` and ``control``.
    max_cells
        At most so many cells per set, drawn at random; ``None`` takes all.
    seed
        Seed of that draw and of the random directions.

    Returns
    -------
    DataFrame ``metric, value, direction, unit`` (and ``control``): energy distance, MMD2, mean 1-D Wasserstein distance
    over genes, sliced Wasserstein and variance ratio.

    Raises
    ------
    As :func:`perturbation_scores`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0))
    >>> true = adata[(adata.obs["intervention"] == "G0007").to_numpy()]
    >>> control = adata[(adata.obs["intervention"] == "control").to_numpy()]
    >>> table = scc.metrics.distribution_scores(control, true)  # how far predicting no change is off
    >>> table[["metric", "direction"]]
                   metric direction
    0     energy_distance     lower
    1                mmd2     lower
    2      wasserstein_1d     lower
    3  sliced_wasserstein     lower
    4      variance_ratio       one
    """
    cells = align(pred, true, true if control is None else control, genes=genes, layer=layer)
    rng = np.random.default_rng(seed)
    truth = Truth(_at_most(cells.true, max_cells, rng), _at_most(cells.control, max_cells, rng), seed=seed)
    table = as_table(truth.distribution(_at_most(cells.pred, max_cells, rng)))
    if control is not None:
        table["control"] = list(truth.distribution(truth.control).values())
    return table


def _at_most(x: np.ndarray, n: int | None, rng: np.random.Generator) -> np.ndarray:
    return x if n is None or len(x) <= n else x[np.sort(rng.choice(len(x), n, replace=False))]


def _without(true: Expression, genes: Sequence[str] | None, drop: Sequence[str]) -> Sequence[str] | None:
    if not len(drop):
        return genes
    from sccausal.metrics._input import gene_names

    names = list(gene_names(true)) if genes is None else [str(g) for g in genes]
    unknown = [str(d) for d in drop if str(d) not in set(gene_names(true))]
    if unknown:
        raise unknown_name("gene", unknown[0], gene_names(true), "the true cells")
    lost = {str(d) for d in drop}
    return [g for g in names if g not in lost]


def _gene_positions(names: Sequence[str], order: pd.Index) -> np.ndarray:
    at = order.get_indexer(pd.Index([str(n) for n in names]))
    if (at < 0).any():
        raise unknown_name("gene", str(np.asarray(names)[at < 0][0]), order, "the scored genes")
    return at


def _per_gene(values: np.ndarray | pd.Series | pd.DataFrame | None, order: pd.Index) -> np.ndarray | None:
    if values is None:
        return None
    if isinstance(values, pd.Series):
        values = values.to_frame().T
    if isinstance(values, pd.DataFrame):
        values = values.iloc[:, _gene_positions(list(order), pd.Index([str(c) for c in values.columns]))]
    out = np.asarray(values, dtype=np.float64)
    if out.shape[-1] != len(order) or not np.isfinite(out).all():
        raise InputDataError(f"Means per gene must be finite with {len(order)} genes; got shape {out.shape}.")
    return out[0] if out.ndim == 2 and len(out) == 1 else out
