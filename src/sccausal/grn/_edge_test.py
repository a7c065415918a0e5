"""P-values of bagged coefficients, calibrated for sparse and for dense expression."""

from __future__ import annotations

import numpy as np
from scipy import sparse, stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma


def bag_p_values(weight: np.ndarray, spread: np.ndarray, count: np.ndarray) -> np.ndarray:
    """One-sample t-test of the coefficients of the bags against zero, as CellOracle's; 1 where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(weight) / (spread / np.sqrt(count)), count - 1)
    return np.where((count > 1) & np.isfinite(p), p, 1.0)


def moderated_p_values(
    weight: np.ndarray, spread: np.ndarray, count: np.ndarray, classical: np.ndarray, dof: np.ndarray
) -> np.ndarray:
    r"""Student's t-test whose standard error is the spread over bags, moderated by the classical one.

    The spread knows heteroscedasticity and what the drawn candidates change, but has few degrees of freedom, and is far
    too small where regulator and target are rarely seen together: then all bags agree without knowing anything. As with
    the variances of genes :cite:p:`Smyth2004`, :math:`s_e^2 / \hat\sigma_e^2` is taken as scattered around a common
    ratio; how widely is read from all edges and says how much each spread counts. The error is never taken to be below
    the classical one.

    Parameters
    ----------
    weight, spread, count
        Mean and standard deviation of the coefficients of an edge over bags, and the number of these bags, (n_edges,).
    classical
        Standard error of the regression on all cells and candidates, (n_edges,).
    dof
        Its degrees of freedom, (n_edges,).
    """
    own = np.maximum(count - 1.0, 0.0)
    usable = (own > 0) & (spread > 0) & (classical > 0)
    prior, ratio = _scatter(spread[usable] ** 2 / classical[usable] ** 2, own[usable])
    if np.isinf(prior):
        variance, freedom = ratio * classical**2, dof.astype(float)
    else:
        variance = (prior * ratio * classical**2 + own * np.nan_to_num(spread) ** 2) / (prior + own)
        freedom = np.minimum(prior + own, dof)
    error = np.sqrt(np.maximum(variance, classical**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(weight) / error, np.maximum(freedom, 1.0))
    return np.where((error > 0) & (count > 0) & np.isfinite(p), p, 1.0)


def _scatter(ratios: np.ndarray, dof: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and centre of the distribution that variance ratios scatter around."""
    if len(ratios) < 3:
        return np.inf, 1.0
    logs = np.log(ratios) - digamma(dof / 2) + np.log(dof / 2)
    excess = logs.var(ddof=1) - polygamma(1, dof / 2).mean()
    if excess <= polygamma(1, 5e3):
        return np.inf, float(np.exp(logs.mean()))
    prior = 2 * brentq(lambda h: float(polygamma(1, h)) - excess, 1e-4, 1e4)
    return float(prior), float(np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)))


def residual_variance(
    regulators: np.ndarray, targets: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Mean squared residual of each target under the weights, (n_targets,)."""
    shape = (targets.shape[1], regulators.shape[1])
    fitted = sparse.csr_matrix((weight, (target, source)), shape=shape)
    return (targets - (fitted @ regulators.T).T).var(0)
