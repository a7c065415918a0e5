"""Closed-form start of the condition response: each gene's change as a shrunken linear function of the cell state."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sccausal.models._adaptive import grid_posterior

_LEVEL = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 2.0)
_SLOPE = (0.0, 1e-3, 1e-2, 0.1, 0.5, 1.5)


class ResponseFit(NamedTuple):
    """Change of gene g in a population of state s: ``level[g] + s @ slope[:, g]``."""

    level: np.ndarray
    """(m,)"""
    slope: np.ndarray
    """(d, m)"""

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Changes (r, m) for states (r, d)."""
        return self.level + state @ self.slope


def shrunken_response(
    change: np.ndarray,
    variance: np.ndarray,
    state: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    noise: float = 0.25,
    ridge: float = 0.1,
    blend: float = 0.5,
    level: tuple[float, ...] = _LEVEL,
    slope: tuple[float, ...] = _SLOPE,
    n_iter: int = 50,
) -> ResponseFit:
    r"""Estimate how the change under one intervention depends on the state of a population.

    For gene g the changes observed in R populations are :math:`\Delta_g = f_g + e_g` with known sampling variances,
    and :math:`f_g \sim N(0,\, a\,11^T + b K)` with :math:`K` the linear kernel of the populations' states. The pair
    :math:`(a, b)` of a gene is drawn from a grid whose frequencies are learned from all genes (adaptive shrinkage,
    :cite:p:`Stephens2016,Urbut2019`): genes that do not respond are set close to zero, genes whose response is the
    same everywhere keep their mean, and genes whose response follows the state get a slope.

    Parameters
    ----------
    change
        Observed mean changes (R, m).
    variance
        Their sampling variances (R, m).
    state
        States of the populations before the intervention (R, d).
    weight
        Effective number of cells behind each row (R,), for the ridge regression.
    noise
        Factor on the variances. Below 1 the strongest genes are shrunk less.
    ridge
        Penalty of the ridge regression, relative to the mean size of the kernel.
    blend
        Share of the ridge regression in the answer: it shrinks all genes alike, and so extrapolates further in the
        strongest ones than adaptive shrinkage does. Both settings were chosen by leaving out types among the training
        types of one data set.
    """
    n, _ = change.shape
    centre = state.mean(0)
    offset = state - centre
    size = max(float((offset**2).sum()) / n, 1e-12)
    kernel = offset @ offset.T / size
    pairs = [(a, b) for a in level for b in (slope if n > 1 else (0.0,))]
    weights = np.empty((len(pairs), change.shape[1], n))
    evidence = np.empty((len(pairs), change.shape[1]))
    noise_diagonal = (noise * variance).T[:, :, None] * np.eye(n)
    for i, (a, b) in enumerate(pairs):
        covariance = noise_diagonal + (a + b * kernel)
        solved = np.linalg.solve(covariance, change.T[:, :, None])[..., 0]
        weights[i] = solved
        evidence[i] = -0.5 * (change.T * solved).sum(1) - 0.5 * np.linalg.slogdet(covariance)[1]
    share = grid_posterior(evidence, n_iter)
    a, b = np.array(pairs).T
    constant = np.einsum("cg,c,cgr->g", share, a, weights)
    fitted_slope = offset.T @ np.einsum("cg,c,cgr->rg", share, b / size, weights)
    adaptive = ResponseFit(constant - centre @ fitted_slope, fitted_slope)
    plain = ridge_response(change, state, weight, ridge)
    return ResponseFit(*(blend * p + (1 - blend) * q for p, q in zip(plain, adaptive, strict=True)))


def ridge_response(
    change: np.ndarray, state: np.ndarray, weight: np.ndarray | None = None, ridge: float = 0.1
) -> ResponseFit:
    """Weighted ridge regression of the changes (R, m) on the states (R, d), with a free level."""
    n = len(change)
    weight = np.ones(n) if weight is None else weight / weight.mean()
    centre, level = weight @ state / n, weight @ change / n
    offset = state - centre
    kernel = offset @ offset.T
    penalty = ridge * max(np.trace(kernel) / n, 1e-12) * np.diag(1 / weight)
    slope = offset.T @ np.linalg.solve(kernel + penalty, change - level)
    return ResponseFit(level - centre @ slope, slope)
