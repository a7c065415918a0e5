"""Adaptive shrinkage: how often each prior variance of a grid occurs among the genes."""

from __future__ import annotations

import numpy as np


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
