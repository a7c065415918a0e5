"""Adaptive shrinkage: how often each prior variance of a grid occurs among the genes, and the effects it leaves."""

from __future__ import annotations

import numpy as np

_GRID = (0.0, 0.01, 0.1, 1.0, 10.0)


def grid_posterior(evidence: np.ndarray, n_iter: int) -> np.ndarray:
    """Posterior probability of each value of a grid for each gene, by EM :cite:p:`Stephens2016`.

    Parameters
    ----------
    evidence
        Log marginal likelihood of each gene under each value, (values, genes).
    n_iter
        Steps of the EM algorithm for the frequencies of the values.
    """
    log_weight = np.zeros((len(evidence), 1))
    share = np.empty_like(evidence)
    for _ in range(n_iter):
        share = evidence + log_weight
        share = np.exp(share - share.max(0))
        share /= share.sum(0)
        # the small count keeps every value alive
        log_weight = np.log(share.sum(1, keepdims=True) + 0.1)
    return share


def shrunken_singles(
    rest: np.ndarray,
    dose: np.ndarray,
    n_cells: np.ndarray,
    n_control: int,
    spread: np.ndarray,
    *,
    grid: tuple[float, ...] = _GRID,
    common: float = 0.0,
    n_iter: int = 50,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Effect of each target that explains what is left of the mean changes, by empirical Bayes.

    For gene g, :math:`r_{cg} = \sum_t D_{ct}\delta_{tg} + e_{cg}`, where the noise e of the conditions is correlated
    because all are compared with the same control cells: :math:`\sigma_g^2(\mathrm{diag}(1/n_c) + 11^T/n_0)`. The
    effects are :math:`\delta_{tg} \sim N(0, \rho_g\sigma_g^2)`; how often each :math:`\rho` of a grid occurs is learned
    from all genes (adaptive shrinkage, :cite:p:`Stephens2016`). Genes that no intervention moves are set near zero,
    genes with a clear effect keep it: with many cells this is the least-squares solution, and the sum of the singles is
    the additive rule.

    Parameters
    ----------
    rest
        What is left of the mean changes (C, m).
    dose
        Doses of the conditions (C, T).
    n_cells
        Cells of the conditions (C,).
    n_control
        Control cells.
    spread
        Standard deviation of single cells within a condition (m,).
    grid
        Values of :math:`\rho`.
    common
        Variance, relative to :math:`\sigma_g^2`, of a shift that all treated cells share beyond the sampling error of
        the control mean.
    n_iter
        Steps of the EM algorithm for their frequencies.

    Returns
    -------
    singles
        Posterior means of the effects (T, m).
    shared
        Posterior mean of what all conditions share (m,): the error of the control mean with its sign turned, and the
        common shift. It belongs to a prediction once, however many targets are named.
    """
    kappa = common + 1.0 / max(n_control, 1)
    noise = np.diag(1.0 / n_cells) + kappa
    lower = np.linalg.cholesky(noise)
    design = np.linalg.solve(lower, dose)
    sd = np.where(spread > 1e-8, spread, np.inf)
    y = np.linalg.solve(lower, rest) / sd
    # in this basis the covariance of y is diagonal for every value of the grid
    u, singular, vt = np.linalg.svd(design, full_matrices=False)
    turned = u.T @ y
    outside = np.maximum((y**2).sum(0) - (turned**2).sum(0), 0.0)
    power = singular[:, None] ** 2
    evidence = np.stack(
        [-0.5 * (np.log1p(r * power).sum() + (turned**2 / (1 + r * power)).sum(0) + outside) for r in grid]
    )
    share = grid_posterior(evidence, n_iter)
    ones = np.linalg.solve(lower, np.ones(len(dose)))
    singles, shared = np.zeros((dose.shape[1], rest.shape[1])), np.zeros(rest.shape[1])
    for r, weight in zip(grid, share, strict=True):
        shrunk = turned / (1 + r * power)
        singles += weight * (vt.T @ (r * singular[:, None] * shrunk))
        shared += weight * kappa * (ones @ y - (ones @ u) @ (r * power * shrunk))
    sd = np.where(np.isfinite(sd), sd, 0.0)
    return singles * sd, shared * sd
