"""Scores of mean expression. Vectors are means per gene (genes,) on log1p(1e4) unless a docstring says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._de import welch_t
from sccausal.metrics._input import vectors


def rmse(pred: np.ndarray, true: np.ndarray) -> float:
    """Root mean squared error of two mean vectors (genes,); lower is better.

    Parameters
    ----------
    pred, true
        Mean expression (genes,).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.rmse(np.zeros(4), np.array([1.0, -1.0, 1.0, -1.0]))
    1.0
    """
    p, t = vectors(pred, true)
    return float(np.sqrt(np.mean((p - t) ** 2)))


def mae(pred: np.ndarray, true: np.ndarray) -> float:
    """Mean absolute error of two mean vectors (genes,); lower is better.

    Parameters
    ----------
    pred, true
        Mean expression (genes,).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.mae(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    0.5
    """
    p, t = vectors(pred, true)
    return float(np.mean(np.abs(p - t)))


def wmse(pred: np.ndarray, true: np.ndarray, weights: np.ndarray) -> float:
    """Mean squared error weighted by how strongly each gene responds; squared log1p(1e4), lower is better.

    Parameters
    ----------
    pred, true
        Mean expression (genes,).
    weights
        Not negative (genes,), e.g. :func:`de_weights` of cells that ``true`` does not contain; scaled to sum 1.

    Source: :cite:p:`Mejia2025`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.wmse(np.zeros(3), np.array([1.0, 2.0, 0.0]), weights=np.array([1.0, 0.0, 0.0]))
    1.0
    """
    p, t, w = vectors(pred, true, weights)
    if (w < 0).any() or w.sum() <= 0:
        raise InputDataError("Weights must not be negative, and one must be positive.")
    return float(np.sum(w * (p - t) ** 2) / w.sum())


def de_weights(true: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Weights (genes,) that sum to 1: absolute Welch t, scaled to 0..1 by its range, squared.

    Parameters
    ----------
    true, control
        Cells (n, genes). Take cells that are not scored afterwards (:func:`split_half`): weights from the scored cells
        reward noise. Uniform if no gene differs.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 3))
    >>> scc.metrics.de_weights(control + [2, 0, 0], control).round(2).tolist()
    [1.0, 0.0, 0.0]
    """
    t = np.abs(welch_t(true, control))
    span = t.max() - t.min()
    if span <= 0:
        return np.full(t.size, 1.0 / t.size)
    squared = ((t - t.min()) / span) ** 2
    return squared / squared.sum()


def split_half(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint random halves of ``n`` rows; the second is the larger when n is odd.

    Parameters
    ----------
    n
        Number of rows.
    seed
        Seed of the halves.

    Examples
    --------
    >>> import sccausal as scc
    >>> first, second = scc.metrics.split_half(5)
    >>> len(first), len(second)
    (2, 3)
    """
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def top_de_genes(true: np.ndarray, control: np.ndarray, n: int = 100) -> np.ndarray:
    """Positions of the ``n`` genes with the largest absolute Welch t between true and control cells, best first.

    Parameters
    ----------
    true, control
        Cells (n, genes) and (m, genes).
    n
        Number of genes.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> scc.metrics.top_de_genes(control + [0, 1, 0, -3], control, n=2).tolist()
    [3, 1]
    """
    t = np.abs(welch_t(true, control))
    return np.argsort(-t, kind="stable")[: min(n, t.size)]


def normalised_mse(pred: np.ndarray, true: np.ndarray, control: np.ndarray) -> float:
    """Squared error over the squared true change: ``sum (pred - true)^2 / sum (true - control)^2``.

    Parameters
    ----------
    pred, true, control
        Mean expression (genes,), usually restricted to the top-100 genes of :func:`top_de_genes`.

    Returns
    -------
    0 is perfect, 1 is what predicting no change scores, above 1 is worse than that. NaN if nothing changed.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control, true = np.zeros(4), np.array([1.0, 0.0, -1.0, 0.0])
    >>> scc.metrics.normalised_mse(0.5 * true, true, control), scc.metrics.normalised_mse(control, true, control)
    (0.25, 1.0)
    """
    p, t, c = vectors(pred, true, control)
    change = float(np.sum((t - c) ** 2))
    return float(np.sum((p - t) ** 2) / change) if change > 0 else float("nan")


def pearson_change(pred: np.ndarray, true: np.ndarray, control: np.ndarray) -> float:
    """Correlation of the predicted with the true change from ``control``; -1..1, higher is better.

    Parameters
    ----------
    pred, true, control
        Mean expression (genes,). A prediction without any variation of the change (e.g. no change) scores 0: it names
        no gene.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control, true = np.zeros(4), np.array([1.0, 0.0, -1.0, 0.0])
    >>> round(scc.metrics.pearson_change(0.5 * true, true, control), 2)
    1.0
    >>> scc.metrics.pearson_change(control, true, control)  # no change names no gene
    0.0
    """
    p, t, c = vectors(pred, true, control)
    return _pearson(p - c, t - c)


def pearson_reference(pred: np.ndarray, true: np.ndarray, reference: np.ndarray) -> float:
    """Correlation of the changes from the mean of the perturbation centroids; -1..1, higher is better.

    Parameters
    ----------
    pred, true
        Mean expression (genes,).
    reference
        Mean over the centroids of all (training) perturbations (genes,). What all perturbations share is taken out, so
        predicting the average perturbation scores 0. Source: :cite:p:`Vinas2025`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> centroids = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]])  # of the training perturbations
    >>> average = centroids.mean(0)
    >>> scc.metrics.pearson_reference(average, centroids[0], average)
    0.0
    """
    p, t, r = vectors(pred, true, reference)
    return _pearson(p - r, t - r)


def r2(pred: np.ndarray, true: np.ndarray, kind: Literal["determination", "pearson"] = "determination") -> float:
    """R2 of mean expression over genes; higher is better.

    Parameters
    ----------
    pred, true
        Mean expression (genes,). Over all genes this is no headline: no change already scores about .9.
    kind
        ``"determination"`` is ``1 - SS_res / SS_tot`` (at most 1, may be negative); ``"pearson"`` is the squared
        correlation, which forgives scale and offset (:cite:p:`Lotfollahi2019`).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> true = np.array([1.0, 2.0, 3.0])
    >>> scc.metrics.r2(true + 1, true), round(scc.metrics.r2(true + 1, true, kind="pearson"), 2)
    (-0.5, 1.0)
    """
    p, t = vectors(pred, true)
    if kind == "pearson":
        return _pearson(p, t) ** 2
    if kind != "determination":
        raise SetupError(f"Unknown kind {kind!r}; use 'determination' or 'pearson'.")
    total = float(np.sum((t - t.mean()) ** 2))
    return 1.0 - float(np.sum((p - t) ** 2)) / total if total > 0 else float("nan")


def r2_matrix(
    pred: pd.DataFrame, true: pd.DataFrame, kind: Literal["determination", "pearson"] = "pearson"
) -> pd.DataFrame:
    """R2 of every predicted type against every real one, the heat map of :cite:p:`Dong2025`.

    Parameters
    ----------
    pred, true
        Mean expression, one row per cell type, one column per gene.
    kind
        As for :func:`r2`.

    Returns
    -------
    DataFrame (predicted types, real types). A good model is best on the diagonal of its row.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> true = pd.DataFrame([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]], index=["B", "NK"], columns=["g1", "g2", "g3"])
    >>> scc.metrics.r2_matrix(true, true).round(2)
           B    NK
    B   1.00  0.25
    NK  0.25  1.00
    """
    if list(pred.columns) != list(true.columns):
        raise InputDataError("Predicted and true means must have the same genes in the same order.")
    values = [[r2(p, t, kind) for t in true.to_numpy()] for p in pred.to_numpy()]
    return pd.DataFrame(values, index=pred.index, columns=true.index)


def adjusted_r2(
    pred: np.ndarray, true_types: np.ndarray, kind: Literal["determination", "pearson"] = "pearson"
) -> float:
    """Mean R2 of one predicted type against the real stimulated means of all types; higher is better.

    Parameters
    ----------
    pred
        Mean of the predicted type (genes,).
    true_types
        Real means, one row per type, the predicted one included (types, genes).
    kind
        As for :func:`r2`.

    Notes
    -----
    "Predicted data for a specific cell type" against "real perturbed data across all cell types" is all that
    :cite:p:`Dong2025` says; the mean over types is our reading. A perfect prediction does not reach 1 but the likeness
    of its type to the others: read it beside the technical duplicate.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> types = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])  # types x genes
    >>> round(scc.metrics.adjusted_r2(types[0], types), 3)
    0.625
    """
    rows = np.atleast_2d(np.asarray(true_types, dtype=np.float64))
    return float(np.mean([r2(pred, row, kind) for row in rows]))


def centroid_distance(pred: np.ndarray, true: np.ndarray) -> float:
    """Euclidean distance of two mean vectors (genes,); lower is better. Its mean over groups is :func:`aecd`.

    Parameters
    ----------
    pred, true
        Mean expression (genes,).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.centroid_distance(np.zeros(4), np.ones(4))
    2.0
    """
    p, t = vectors(pred, true)
    return float(np.linalg.norm(p - t))


def aecd(pred: np.ndarray, true: np.ndarray) -> float:
    """Average Euclidean centroid distance over perturbations, rows matched; log1p(1e4), lower is better.

    Parameters
    ----------
    pred, true
        Means (perturbations, genes). Grows with the number of genes: compare on one gene set only.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.aecd(np.zeros((2, 4)), np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
    1.0
    """
    p, t = _pair(pred, true)
    return float(np.linalg.norm(p - t, axis=1).mean())


def discrimination_score(
    pred: np.ndarray,
    true: np.ndarray,
    *,
    metric: Literal["cosine", "l1", "l2"] = "cosine",
    reference: np.ndarray | None = None,
    denominator: Literal["n-1", "n"] = "n-1",
    drop: Sequence[int] | None = None,
    own: Sequence[int] | None = None,
) -> np.ndarray:
    """Perturbation discrimination: how high the right perturbation ranks among all true ones.

    Parameters
    ----------
    pred, true
        Means (perturbations, genes), rows matched.
    metric
        Distance from a predicted row to every true row. They disagree: cosine ignores the size of the effect, L1 does
        not.
    reference
        Mean of control cells (genes,), subtracted from both (needed for cosine to be about effects).
    denominator
        ``"n-1"`` puts chance at 0.5 and worst at 0; ``"n"`` is the rule of the Virtual Cell Challenge.
    drop
        Positions of genes to leave out for all perturbations.
    own
        Position of each perturbation's own gene (perturbations,), left out when that perturbation is looked up; -1
        where it is not measured. The rule of the Virtual Cell Challenge.

    Returns
    -------
    One score per perturbation (perturbations,): ``1 - rank / denominator``, 1 is best. Ties take the middle rank, so a
    constant prediction gets chance. Source: :cite:p:`Roohani2025`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> true = np.eye(3)  # perturbations x genes, changes from control
    >>> scc.metrics.discrimination_score(0.5 * true, true).tolist()
    [1.0, 1.0, 1.0]
    """
    p, t = _pair(pred, true)
    if len(p) < 2:
        return np.full(len(p), np.nan)
    if reference is not None:
        p, t = p - np.asarray(reference), t - np.asarray(reference)
    if drop is not None and len(drop):
        keep = np.setdiff1d(np.arange(p.shape[1]), np.asarray(drop))
        p, t = p[:, keep], t[:, keep]
    if own is None:
        distance = _distances(p, t, metric)
    else:
        distance = np.concatenate([_without_own(p[i : i + 1], t, int(j), metric) for i, j in enumerate(own)])
    ranks = np.array([rankdata(row)[i] - 1 for i, row in enumerate(distance)])
    return 1.0 - ranks / (len(p) - 1 if denominator == "n-1" else len(p))


def centroid_accuracy(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Share of the other perturbations whose true centroid is farther from the prediction than the right one.

    Parameters
    ----------
    pred, true
        Means (perturbations, genes), rows matched; Euclidean distance.

    Returns
    -------
    One share per perturbation (perturbations,), 0.5 at chance, higher is better. Source: :cite:p:`Vinas2025`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> true = np.eye(3)  # perturbations x genes
    >>> scc.metrics.centroid_accuracy(true[[0, 2, 1]], true).tolist()
    [1.0, 0.25, 0.25]
    """
    return discrimination_score(pred, true, metric="l2")


def diversity(pred: np.ndarray, true: np.ndarray) -> float:
    """Mean pairwise distance between predictions over that between truths; 1 is right, below .5 is collapse.

    Parameters
    ----------
    pred, true
        Means (perturbations, genes). NaN with fewer than two rows.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> true = np.eye(3)
    >>> scc.metrics.diversity(0.2 * true, true)  # predictions that are too alike
    0.2
    """
    from scipy.spatial.distance import pdist

    p, t = _pair(pred, true)
    if len(p) < 2:
        return float("nan")
    spread = float(pdist(t).mean())
    return float(pdist(p).mean()) / spread if spread > 0 else float("nan")


def _without_own(p: np.ndarray, t: np.ndarray, gene: int, metric: str) -> np.ndarray:
    """Distances of one predicted row to all true ones, without one gene (-1: with all)."""
    keep = np.arange(p.shape[1]) != gene
    return _distances(p[:, keep], t[:, keep], metric)


def _distances(p: np.ndarray, t: np.ndarray, metric: str) -> np.ndarray:
    if metric == "l1":
        return cdist(p, t, "cityblock")
    if metric == "l2":
        return cdist(p, t)
    if metric != "cosine":
        raise SetupError(f"Unknown metric {metric!r}; use 'cosine', 'l1' or 'l2'.")
    norm = np.linalg.norm(p, axis=1)[:, None] * np.linalg.norm(t, axis=1)[None, :]
    # a zero effect has no direction: as far from everything as anything
    return 1.0 - np.divide(p @ t.T, norm, out=np.zeros_like(norm), where=norm > 0)


def _pair(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, t = np.atleast_2d(np.asarray(pred, dtype=np.float64)), np.atleast_2d(np.asarray(true, dtype=np.float64))
    if p.shape != t.shape:
        raise InputDataError(f"Predicted and true means must have one shape; got {p.shape} and {t.shape}.")
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise InputDataError("Means must be finite; found NaN or infinity.")
    return p, t


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    # rounding of a constant vector leaves a residue of about 1e-16 per entry
    if scale <= 1e-12 * a.size:
        return 0.0
    return float(np.clip(a @ b / scale, -1.0, 1.0))
