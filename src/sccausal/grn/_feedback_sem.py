"""Linear SEM with feedback loops from interventions: the determinant stays in the likelihood, loop gains below 1."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from sccausal.grn._intervention_stats import InterventionStatistics
from sccausal.grn._logdet_sem import LocalGrams, _matrix

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def intervention_sets(stats: InterventionStatistics) -> Counter[tuple[int, ...]]:
    """Which sets of genes are intervened on together, and in how many cells."""
    per_cell: dict[int, list[int]] = {}
    for j, cells in sorted(stats.targets.items()):
        for c in cells.tolist():
            per_cell.setdefault(c, []).append(j)
    return Counter(tuple(genes) for genes in per_cell.values())


def _log_volume(A: torch.Tensor, sets: Counter[tuple[int, ...]], n_cells: int) -> torch.Tensor:
    """Mean of ``log |det(I - A_S)|`` over cells, ``A_S`` without the columns of the cell's hard targets ``S``.

    ``det(I - A_S) = det(I - A) det([(I - A)^-1]_SS)``, so one factorisation serves all sets.
    """
    import torch

    matrix = torch.eye(A.shape[0], dtype=A.dtype) - A
    total = torch.linalg.slogdet(matrix)[1]
    if not sets:
        return total
    inverse = torch.linalg.inv(matrix)
    singles = [(s[0], n) for s, n in sets.items() if len(s) == 1]
    if singles:
        genes, counts = torch.tensor([g for g, _ in singles]), torch.tensor([float(n) for _, n in singles])
        total = total + (counts.to(A.dtype) / n_cells * inverse.diagonal()[genes].abs().log()).sum()
    for genes_, count in sets.items():
        if len(genes_) > 1:
            chosen = torch.tensor(genes_)
            total = total + count / n_cells * torch.linalg.slogdet(inverse[chosen][:, chosen])[1]
    return total


def feedback_sem(
    stats: InterventionStatistics,
    support: np.ndarray,
    *,
    gamma: float = 1.0,
    n_rounds: int = 4,
    n_steps: int = 150,
    lr: float = 0.01,
) -> np.ndarray:
    r"""Fit a linear SEM whose graph may have cycles, by penalised Gaussian likelihood :cite:p:`Hyttinen2012`.

    Maximises :math:`\sum_c \log|\det(I - A_{S_c})| - \sum_j \tfrac{n_j}{2} \log \mathrm{RSS}_j(A_{\cdot j})` minus an
    L1 norm that is reweighted by the inverse of the weights of the last round, with the unit cost of an edge of
    the extended Bayesian information criterion. The determinant makes a regression of each gene on all others
    consistent again when a regulator is also a consequence; under a hard intervention on the genes ``S`` their
    columns of ``A`` are cut. Steps that would bring the gain of the absolute weights, the spectral radius of ``|A|``,
    to 1 or more are shortened, so the loops are stable.

    Parameters
    ----------
    stats
        Sufficient statistics.
    support
        Candidate edges, boolean (m, m).
    gamma
        Strength of the extended criterion.
    n_rounds, n_steps, lr
        Rounds of reweighting, steps of each, step size on the scale of the weights.

    Returns
    -------
    Weights (m, m); rows are sources. Which loops are identified depends on the interventions: each pair of genes needs
    one on the one that does not touch the other.
    """
    import torch

    from sccausal.nn.acyclicity import in_logdet_domain

    local = LocalGrams.gather(stats, support)
    index, used = torch.from_numpy(local.genes), torch.from_numpy(local.used)
    gram, cov = torch.from_numpy(local.gram), torch.from_numpy(local.covariance)
    total, share = torch.from_numpy(local.total), torch.from_numpy(local.n_effective / stats.n_cells)
    cost = (0.5 * np.log(stats.n_cells) + gamma * np.log(stats.n_genes)) / stats.n_cells
    sets = intervention_sets(stats) if stats.kind == "hard" else Counter()
    values, weight = torch.zeros_like(cov), torch.ones_like(cov)
    for round_ in range(n_rounds):
        last = round_ == n_rounds - 1  # the last round only fits what is left
        first, second, rate = torch.zeros_like(values), torch.zeros_like(values), lr
        for t in range(1, n_steps + 1):
            leaf = values.clone().requires_grad_()
            image = torch.einsum("jkl,jl->jk", gram, leaf)
            rss = (total - 2 * (cov * leaf).sum(1) + (image * leaf).sum(1)).clamp_min(1e-9)
            loss = 0.5 * (share * rss.log()).sum() - _log_volume(_matrix(leaf, index, used), sets, stats.n_cells)
            (gradient,) = torch.autograd.grad(loss, leaf)
            gradient = torch.where(used, gradient, 0.0)
            first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
            metric = (second / (1 - 0.99**t)).sqrt() + 1e-8
            pace = rate * (1 - t / (n_steps + 1))  # falls to zero, so that the end of a round is at rest
            new = values - pace * first / (1 - 0.9**t) / metric
            new = new.sign() * (new.abs() - pace * cost * weight / metric).clamp_min(0)
            new = torch.where(torch.isfinite(weight), new, 0.0)
            step = torch.where(used, new - values, 0.0)
            while not in_logdet_domain(_matrix((values + step).abs().sqrt(), index, used)):
                step, rate = step / 2, rate / 2
                first.zero_()
            values = values + step
        weight = 1 / (values.abs() + 0.02)
        if round_ >= n_rounds - 2 and not last:
            weight = torch.where(values.abs() > 0.02, 0.0, torch.inf)
        logger.debug("feedback round %d: %d edges", round_, int((values != 0).sum()))
    return _matrix(values, index, used).numpy()
