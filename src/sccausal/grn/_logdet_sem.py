"""Linear SEM by continuous optimisation on sufficient statistics: log-det acyclicity, or feedback loops allowed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from sccausal.grn._intervention_stats import InterventionStatistics

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# blocks of this size are factorised in single precision, which is enough for a direction of descent
_SINGLE_FROM = 400


class LocalGrams(NamedTuple):
    """Gram matrices of every gene's candidates, padded to the longest list."""

    genes: np.ndarray  # (m, k) candidate genes, 0 where padded
    used: np.ndarray  # (m, k) whether an entry is a candidate
    gram: np.ndarray  # (m, k, k)
    covariance: np.ndarray  # (m, k) with the target
    total: np.ndarray  # (m,) sum of squares of the target
    n_effective: np.ndarray  # (m,) cells that inform on the target

    @classmethod
    def gather(cls, stats: InterventionStatistics, support: np.ndarray) -> LocalGrams:
        """Collect what the optimiser needs; afterwards no step depends on the number of cells."""
        m = stats.n_genes
        lists = [np.flatnonzero(support[:, j]) for j in range(m)]
        k = max(1, *(len(c) for c in lists))
        index, used = np.zeros((m, k), dtype=np.int64), np.zeros((m, k), dtype=bool)
        gram, covariance, total = np.tile(np.eye(k), (m, 1, 1)), np.zeros((m, k)), np.zeros(m)
        for j, genes in enumerate(lists):
            q = len(genes)
            local = stats.columns(j, np.append(genes, j))
            index[j, :q], used[j, :q] = genes, True
            gram[j, :q, :q], covariance[j, :q] = local[genes, :-1], local[genes, -1]
            total[j] = max(local[j, -1], 1e-9)
        n = np.array([stats.effective_cells(j) for j in range(m)], dtype=float)
        return cls(index, used, gram, covariance, total, n)


def _matrix(values: torch.Tensor, index: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Weights (m, m) with sources in rows, from the per-target lists."""
    import torch

    m = values.shape[0]
    flat = torch.zeros(m * m, dtype=values.dtype)
    position = index * m + torch.arange(m)[:, None]
    return flat.index_add(0, position[used], values[used]).view(m, m)


def _cyclic_part(values: torch.Tensor, index: torch.Tensor, used: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Weights among the genes that lie on a cycle, and these genes; other edges add nothing to a log-det penalty."""
    import torch

    m = values.shape[0]
    row, slot = np.nonzero(used.numpy() & (values.numpy() != 0))
    edges = csr_matrix((values.numpy()[row, slot], (index.numpy()[row, slot], row)), shape=(m, m))
    _, label = connected_components(edges, directed=True, connection="strong")
    inside = np.flatnonzero(np.bincount(label, minlength=m)[label] > 1)
    dtype = np.float32 if len(inside) > _SINGLE_FROM else np.float64
    return torch.from_numpy(edges[inside][:, inside].toarray().astype(dtype)), inside


def _logdet_gradient(values: torch.Tensor, index: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Gradient of the log-det penalty on the candidate entries, from the part of the graph that has cycles."""
    import torch

    from sccausal.nn.acyclicity import acyclicity

    block, inside = _cyclic_part(values, index, used)
    out = torch.zeros_like(values)
    if len(inside) == 0:
        return out
    block.requires_grad_()
    acyclicity(block, "logdet", 1.0).backward()
    assert block.grad is not None
    place = torch.full((values.shape[0],), -1, dtype=torch.int64)
    place[torch.from_numpy(inside)] = torch.arange(len(inside))
    source, target = place[index], place[torch.arange(values.shape[0])][:, None].expand_as(index)
    both = (source >= 0) & (target >= 0) & used
    out[both] = block.grad[source[both], target[both]].to(out.dtype)
    return out


def logdet_path(
    stats: InterventionStatistics,
    support: np.ndarray,
    *,
    lambda1: float = 0.15,
    mu: Sequence[float] = (0.3, 0.1, 0.03, 0.01),
    n_steps: int = 60,
    lr: float = 0.03,
) -> np.ndarray:
    r"""Follow the central path of a log-det penalised linear SEM :cite:p:`Bello2022` over candidate edges.

    For falling ``mu``, minimises by proximal Adam steps

    .. math:: \mu \Big[ \sum_j \tfrac{n_j}{2n} \log \mathrm{RSS}_j(A_{\cdot j})
              + \lambda_1 \lVert A \rVert_1 \Big] - \log\det(sI - A \circ A) + m \log s ,

    the profiled Gaussian likelihood with one noise variance per gene (equal variances do not survive standardisation)
    over the cells in which each gene's mechanism is intact. ``s`` is 1 throughout; a step that leaves the domain is
    shortened and the step size halved.

    Parameters
    ----------
    stats
        Sufficient statistics.
    support
        Candidate edges, boolean (m, m).
    lambda1
        Weight of the L1 norm, on the scale of the mean log-likelihood.
    mu
        Central path; the number of steps doubles at its last value.
    n_steps
        Steps for each ``mu``.
    lr
        Step size on the scale of the weights.

    Returns
    -------
    Weights (m, m), nearly acyclic; rows are sources.
    """
    import torch

    from sccausal.nn.acyclicity import in_logdet_domain

    local = LocalGrams.gather(stats, support)
    index, used = torch.from_numpy(local.genes), torch.from_numpy(local.used)
    gram, cov = torch.from_numpy(local.gram), torch.from_numpy(local.covariance)
    total, weight = torch.from_numpy(local.total), torch.from_numpy(local.n_effective / stats.n_cells)
    values = torch.zeros_like(cov)
    for level in mu:
        first, second, rate = torch.zeros_like(values), torch.zeros_like(values), lr
        for t in range(1, (2 if level == mu[-1] else 1) * n_steps + 1):
            image = torch.einsum("jkl,jl->jk", gram, values)
            rss = (total - 2 * (cov * values).sum(1) + (image * values).sum(1)).clamp_min(1e-9)
            gradient = level * (weight / rss)[:, None] * (image - cov) + _logdet_gradient(values, index, used)
            gradient = torch.where(used, gradient, 0.0)
            first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
            metric = (second / (1 - 0.99**t)).sqrt() + 1e-8
            new = values - rate * first / (1 - 0.9**t) / metric
            new = new.sign() * (new.abs() - rate * level * lambda1 / metric).clamp_min(0)
            step = new - values
            while not in_logdet_domain(_cyclic_part(values + step, index, used)[0]):
                step, rate = step / 2, rate / 2
                first.zero_()
            values = values + step
        logger.debug("mu %g: %d edges, step size %g", level, int((values != 0).sum()), rate)
    return _matrix(values, index, used).numpy()
