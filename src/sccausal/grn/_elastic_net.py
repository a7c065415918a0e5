"""Linear SEM of all genes at once by the elastic net, and the ridge partial correlation it is compared with."""

from __future__ import annotations

import logging

import numpy as np
from scipy.stats import norm, rankdata

logger = logging.getLogger(__name__)


def rank_gaussian(values: np.ndarray) -> np.ndarray:
    """Replace the values of each gene by the normal quantiles of their ranks, with mean 0 and variance 1.

    Ties share their mean rank. A gene with one value becomes zero.

    Parameters
    ----------
    values
        Expression, shape (n_cells, n_genes).
    """
    ranks = rankdata(np.asarray(values, dtype=np.float64), axis=0)
    return z_score(norm.ppf((ranks - 0.5) / len(ranks)))


def z_score(values: np.ndarray) -> np.ndarray:
    """Scale each gene to mean 0 and variance 1; a gene with one value becomes zero."""
    centred = np.asarray(values, dtype=np.float64)
    centred = centred - centred.mean(0)
    spread = centred.std(0)
    return centred / np.where(spread > 1e-12, spread, np.inf)


def ridge_partial_correlation(values: np.ndarray, ridge: float = 0.5) -> np.ndarray:
    """Partial correlations from the inverse of (correlation matrix + ``ridge`` I); symmetric, zero diagonal.

    Parameters
    ----------
    values
        Standardised expression, shape (n_cells, n_genes).
    ridge
        Size of the ridge on the scale of a variance.
    """
    z = np.asarray(values, dtype=np.float64)
    precision = np.linalg.inv(z.T @ z / len(z) + ridge * np.eye(z.shape[1]))
    scale = np.sqrt(precision.diagonal())
    partial = -precision / np.outer(scale, scale)
    np.fill_diagonal(partial, 0)
    return partial


def default_penalties(n_cells: int, n_genes: int) -> tuple[float, float]:
    r"""Penalties of :func:`elastic_net_sem` that follow the noise of a correlation matrix.

    The largest of ``m`` empirical correlations of independent genes is about :math:`\sqrt{2 \log m / n}`, and the
    eigenvalues of their matrix spread by about :math:`2\sqrt{m / n}`. Both rates are theory; the factor 0.45 of the
    first was chosen on simulations and on the GSD benchmark, where anything from 0.35 to 0.5 does as well.

    Returns
    -------
    ``(0.45 sqrt(2 log m / n), 2 sqrt(m / n))``.
    """
    return 0.45 * float(np.sqrt(2 * np.log(n_genes) / n_cells)), 2 * float(np.sqrt(n_genes / n_cells))


def elastic_net_sem(
    values: np.ndarray,
    lambda1: float,
    lambda2: float,
    *,
    sources: np.ndarray | None = None,
    max_steps: int = 300,
    tolerance: float = 1e-3,
) -> np.ndarray:
    r"""Regress every gene on all others jointly with an elastic net :cite:p:`Zou2005`.

    Minimises :math:`\tfrac{1}{2n} \lVert Z - ZA \rVert_F^2 + \lambda_1 \lVert A \rVert_1 + \tfrac{\lambda_2}{2}
    \lVert A \rVert_F^2` with a zero diagonal by accelerated proximal gradient steps :cite:p:`Beck2009` on the
    correlation matrix, whose cost does not depend on the number of cells.

    Parameters
    ----------
    values
        Standardised expression ``Z``, shape (n_cells, n_genes).
    lambda1, lambda2
        Weights of the two penalties.
    sources
        Positions of the genes that may be regulators; ``None`` for all. The others' rows stay zero, and are missing
        as explanations too.
    max_steps, tolerance
        Stop when no weight moves by more than ``tolerance`` of a gradient step, or after ``max_steps``.

    Returns
    -------
    Weights (n_genes, n_genes); rows are sources.
    """
    z = np.asarray(values, dtype=np.float64)
    m = z.shape[1]
    rows = np.arange(m) if sources is None else np.asarray(sources)
    correlation = (z.T @ z / len(z)).astype(np.float32 if m > 500 else np.float64)
    out = np.zeros((m, m))
    out[rows] = elastic_net_from_correlation(
        correlation, lambda1, lambda2, rows, max_steps=max_steps, tolerance=tolerance
    )
    return out


def elastic_net_from_correlation(
    correlation: np.ndarray,
    lambda1: float,
    lambda2: float,
    rows: np.ndarray,
    *,
    max_steps: int = 300,
    tolerance: float = 1e-3,
) -> np.ndarray:
    """The same from the correlations (m, m) of all genes, with the T genes ``rows`` as regulators: weights (T, m)."""
    cross, inner = correlation[rows], correlation[np.ix_(rows, rows)]
    own = (np.arange(len(rows)), rows)
    rate = 1 / (_largest_eigenvalue(inner) + lambda2)
    weights = np.zeros_like(cross)
    ahead, momentum = weights, 1.0
    for step in range(max_steps):
        new = ahead - rate * (inner @ ahead - cross + lambda2 * ahead)
        new = np.sign(new) * np.maximum(np.abs(new) - rate * lambda1, 0)
        new[own] = 0
        change = new - weights
        if float((change * (ahead - new)).sum()) > 0:  # the momentum points uphill: start it again
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * change
        weights, momentum = new, following
        if float(np.abs(change).max()) < tolerance * rate:
            logger.debug("elastic net: converged after %d steps", step + 1)
            break
    return weights


def _largest_eigenvalue(matrix: np.ndarray, n_iter: int = 50) -> float:
    """Upper estimate by power iteration, with a margin for iterations not taken."""
    x = np.ones(matrix.shape[0], dtype=matrix.dtype)
    for _ in range(n_iter):
        x = matrix @ (x / max(float(np.linalg.norm(x)), 1e-12))
    return min(1.05 * float(np.linalg.norm(x)), float(np.abs(matrix).sum(0).max())) + 1e-6


def complete_ranking(weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rank the edges a sparse method left at zero below all others, by a dense reference.

    Parameters
    ----------
    weights, reference
        Matrices of one shape.

    Returns
    -------
    ``weights`` with its zeros replaced by ``reference`` times a constant so small that the smallest weight of the
    sparse method stays above them.
    """
    found = np.abs(weights[weights != 0])
    floor = float(found.min()) if len(found) else 1.0
    largest = float(np.abs(reference).max())
    if largest == 0:
        return weights
    return np.where(weights != 0, weights, reference * (0.5 * floor / largest))
