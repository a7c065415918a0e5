"""Linear structural equations from expression and interventions: candidates, log-det path, search, final fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import sparse

from sccausal.grn._feedback_sem import feedback_sem
from sccausal.grn._intervention_stats import (
    InterventionKind,
    InterventionStatistics,
    order_by_response,
    response_evidence,
)
from sccausal.grn._logdet_sem import logdet_path
from sccausal.grn._order_search import GraphSearch
from sccausal.grn._stepwise import TargetRegression

logger = logging.getLogger(__name__)

# beyond this size the log-det path takes longer than the search it gives a start to
_LARGEST_PATH = 3000
# below this size more threads cost more than they save
_PARALLEL_FROM = 500


@dataclass
class SEMFit:
    """A fitted linear SEM; matrices are (m, m) with sources in rows."""

    weights: np.ndarray
    evidence: np.ndarray  # log-likelihood lost, net of the criterion, if the edge is left out
    residual_variance: np.ndarray  # (m,)
    score: float
    info: dict[str, Any] = field(default_factory=dict)


def blanket_support(
    stats: InterventionStatistics, allowed: np.ndarray, gamma: float = 1.0, max_regulators: int = 50
) -> np.ndarray:
    """Candidate edges: both directions between a gene and the genes that a stepwise regression chooses for it.

    Parameters
    ----------
    stats
        Sufficient statistics.
    allowed
        Edges that may exist, boolean (m, m).
    gamma, max_regulators
        As for :class:`~sccausal.grn._stepwise.TargetRegression`.
    """
    m = stats.n_genes
    support = np.zeros((m, m), dtype=bool)
    for j in range(m):
        regression = TargetRegression(stats, j, gamma=gamma, max_regulators=max_regulators)
        support[regression.select(allowed[:, j] | allowed[j])[0], j] = True
    return (support | support.T) & allowed


def fit_linear_sem(
    values: np.ndarray,
    intervened: np.ndarray | sparse.spmatrix | None = None,
    *,
    kind: InterventionKind = "hard",
    acyclicity: Literal["logdet"] | None = "logdet",
    allowed: np.ndarray | None = None,
    lambda1: float = 0.15,
    gamma: float = 1.0,
    max_regulators: int = 50,
    refine: bool = True,
    n_kicks: int = 2,
    seed: int = 0,
) -> SEMFit:
    r"""Fit :math:`x_j = \sum_i A_{ij} x_i + c_j + e_j`, with a noise variance per gene, from cells under interventions.

    1. Candidate edges by stepwise regression of every gene on all others (extended BIC).
    2. The log-det central path over the candidates (:func:`~sccausal.grn._logdet_sem.logdet_path`), cut at the
       smallest threshold that leaves a DAG, gives a causal order. Beyond 3 000 genes the order by the number of
       interventions that reach a gene takes its place.
    3. With ``refine``, the search of :class:`~sccausal.grn._order_search.GraphSearch` from that order and from the
       order by response, whichever ends higher; a continuous optimiser alone stays in a local optimum.
    4. Least squares of every gene on its regulators over the cells where its mechanism is intact.

    With ``acyclicity=None``, step 1 is followed by :func:`~sccausal.grn._feedback_sem.feedback_sem`.

    Parameters
    ----------
    values
        Expression, shape (n_cells, n_genes), standardised.
    intervened
        Which gene is intervened on in which cell, boolean (n_cells, n_genes).
    kind
        ``"hard"`` (regulation of the target is cut) or ``"soft"`` (its level is shifted).
    acyclicity
        ``"logdet"`` for a DAG, ``None`` for a graph that may have feedback loops.
    allowed
        Edges that may exist, boolean (n_genes, n_genes); ``None`` for all.
    lambda1
        L1 weight on the central path.
    gamma
        Strength of the extended BIC; larger is sparser.
    max_regulators
        Most regulators of a gene.
    refine
        Whether to search on from the result of the central path.
    n_kicks
        Times the search is started again from its best graph with a tenth of the genes at random places.
    seed
        Seed of the search.
    """
    from threadpoolctl import threadpool_limits

    stats = InterventionStatistics(values, intervened, kind)
    m = stats.n_genes
    permitted = np.ones((m, m), dtype=bool) if allowed is None else np.asarray(allowed, dtype=bool).copy()
    np.fill_diagonal(permitted, False)
    few_threads = 1 if m < _PARALLEL_FROM else None
    with threadpool_limits(1, "blas"):  # thousands of small regressions: threads would only wait for each other
        support = blanket_support(stats, permitted, gamma, max_regulators)
    info: dict[str, Any] = {"n_candidates": int(support.sum())}
    if acyclicity is None:
        with threadpool_limits(few_threads):
            weights = feedback_sem(stats, support, gamma=gamma)
        fit = _evaluate(stats, [np.flatnonzero(weights[:, j]).tolist() for j in range(m)], gamma)
        fit.weights, fit.info = weights, info | {"gain": _spectral_radius(np.abs(weights))}
        return fit
    orders, parents = [], None
    if m <= _LARGEST_PATH:
        with threadpool_limits(few_threads):
            path = logdet_path(stats, support, lambda1=lambda1)
        info["path_threshold"] = _cut_to_dag(path)
        parents = [np.flatnonzero(path[:, j]).tolist() for j in range(m)]
        orders.append(_topological_order(path))
    elif not refine:
        logger.warning("%d genes are too many for the log-det path alone; the search is run.", m)
    if refine or parents is None:
        if stats.targets or not orders:
            orders.append(order_by_response(response_evidence(values, stats)))
        with threadpool_limits(1, "blas"):
            search = GraphSearch(stats, support, permitted, gamma=gamma, max_regulators=max_regulators, seed=seed)
            parents = search.best_of(orders, n_kicks=n_kicks).parents
    fit = _evaluate(stats, parents, gamma)
    fit.info = info
    return fit


def _cut_to_dag(weights: np.ndarray) -> float:
    """Set the weights at or below the smallest threshold that leaves a DAG to zero, in place; the threshold."""
    from sccausal.nn.acyclicity import dag_threshold

    threshold = dag_threshold(weights)
    weights[np.abs(weights) <= threshold] = 0
    return threshold


def _evaluate(stats: InterventionStatistics, parents: list[list[int]], gamma: float) -> SEMFit:
    """Least squares of every gene on its regulators, with the evidence for each."""
    m = stats.n_genes
    weights, evidence = np.zeros((m, m)), np.zeros((m, m))
    residual, score = np.zeros(m), 0.0
    for j, chosen in enumerate(parents):
        regression = TargetRegression(stats, j, np.array(chosen, dtype=np.int64), gamma=gamma)
        step = regression.fit(chosen)
        weights[chosen, j], evidence[chosen, j] = step.coefficients, -step.gain_delete
        residual[j] = step.residual / regression.n
        score += step.score
    return SEMFit(weights, evidence, residual, score)


def _topological_order(weights: np.ndarray) -> np.ndarray:
    """Genes of a DAG, sources first; among genes that are free at a time, the one with most targets first."""
    edges = weights != 0
    waiting, n_targets = edges.sum(0), edges.sum(1)
    order: list[int] = []
    ready = np.flatnonzero(waiting == 0).tolist()
    while ready:
        ready.sort(key=lambda g: n_targets[g])
        gene = ready.pop()
        order.append(gene)
        for child in np.flatnonzero(edges[gene]):
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(int(child))
    return np.array(order)


def _spectral_radius(matrix: np.ndarray) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max(initial=0.0))
