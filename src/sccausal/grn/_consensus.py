"""Many Leiden partitions of one weighted graph: how much they agree, and the partition most of them vote for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from sccausal.grn._parallel import run_tasks

Backend = Literal["igraph", "leidenalg"]
_BATCH = 125  # runs per task: long enough that sending them costs nothing, short enough for a moving bar
VI_FLOOR = 1e-3
"""Added to the variation of information, which is zero between equal partitions."""


@dataclass(frozen=True)
class WeightedGraph:
    """Undirected graph as plain arrays, cheap to send to a worker and hashable there."""

    n: int
    edges: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> WeightedGraph:
        """Graph of the entries above the diagonal that are not zero."""
        i, j = np.nonzero(np.triu(matrix, 1))
        return cls(len(matrix), tuple(zip(i.tolist(), j.tolist(), strict=True)), tuple(matrix[i, j].tolist()))


def leiden_runs(
    graph: WeightedGraph,
    resolutions: Sequence[float],
    n_runs: int,
    *,
    backend: Backend = "igraph",
    n_iterations: int = 5,
    n_jobs: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> list[np.ndarray]:
    """Partitions by Leiden :cite:p:`Traag2019` with modularity at each resolution, from ``n_runs`` random orders.

    Parameters
    ----------
    graph
        Graph to partition.
    resolutions
        Resolution parameters.
    n_runs
        Runs per resolution.
    backend
        Implementation; both optimise the same function.
    n_iterations
        Rounds of each run. "Until nothing changes" is not offered: on real weights, igraph may then never end.
    n_jobs, progress
        As for :func:`~sccausal.grn.find_communities`.
    seed
        The result depends on this alone, not on ``n_jobs``.

    Returns
    -------
    For each resolution an array (n_runs, n), labels in order of first occurrence.
    """
    tasks: list[tuple[Any, ...]] = []
    for g, resolution in enumerate(resolutions):
        seeds = np.random.default_rng([seed, g]).integers(2**31 - 1, size=n_runs).tolist()
        tasks += [
            (graph, float(resolution), tuple(seeds[k : k + _BATCH]), backend, n_iterations)
            for k in range(0, n_runs, _BATCH)
        ]
    done = list(run_tasks(_leiden_batch, tasks, n_jobs=n_jobs, progress=progress, description="Leiden"))
    per = len(range(0, n_runs, _BATCH))
    return [np.concatenate(done[g * per : (g + 1) * per]) for g in range(len(resolutions))]


@lru_cache(maxsize=4)
def to_igraph(graph: WeightedGraph) -> Any:
    """The graph for igraph, built once per worker."""
    import igraph

    made = igraph.Graph(n=graph.n, edges=list(graph.edges))
    made.es["weight"] = list(graph.weights)
    return made


def _leiden_batch(
    graph: WeightedGraph, resolution: float, seeds: Sequence[int], backend: Backend, n_iterations: int
) -> np.ndarray:
    run = leiden_igraph if backend == "igraph" else _leiden_leidenalg
    return canonical(np.array(run(to_igraph(graph), resolution, seeds, n_iterations), dtype=np.int32))


def leiden_igraph(graph: Any, resolution: float, seeds: Sequence[int], n_iterations: int) -> list[list[int]]:
    """Memberships found by igraph from each seed."""
    import igraph

    found = []
    try:
        for s in seeds:
            igraph.set_random_number_generator(random.Random(s))
            parts = graph.community_leiden(
                objective_function="modularity", weights="weight", resolution=resolution, n_iterations=n_iterations
            )
            found.append(parts.membership)
    finally:
        igraph.set_random_number_generator(random)  # what igraph starts with
    return found


def _leiden_leidenalg(graph: Any, resolution: float, seeds: Sequence[int], n_iterations: int) -> list[list[int]]:
    import leidenalg

    weights = graph.es["weight"]
    partition = leidenalg.RBConfigurationVertexPartition(graph, weights=weights, resolution_parameter=resolution)
    optimiser, singletons, found = leidenalg.Optimiser(), list(range(graph.vcount())), []
    for s in seeds:
        partition.set_membership(singletons)
        optimiser.set_rng_seed(s)
        optimiser.optimise_partition(partition, n_iterations=n_iterations)
        found.append(partition.membership)
    return found


def canonical(partitions: np.ndarray) -> np.ndarray:
    """Labels of each row renumbered in order of first occurrence, so that equal partitions are equal rows."""
    out = np.empty_like(partitions)
    for row, labels in enumerate(partitions):
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        out[row] = np.argsort(np.argsort(first))[inverse]
    return out


def stability(partitions: np.ndarray, n_pairs: int, seed: int) -> tuple[float, float]:
    """Mean adjusted Rand index and mean variation of information (nats) over random pairs of runs."""
    from igraph import compare_communities

    rng = np.random.default_rng(seed)
    unique, which = np.unique(partitions, axis=0, return_inverse=True)
    which = which.ravel()
    known: dict[tuple[int, int], tuple[float, float]] = {}
    scores = []
    for _ in range(n_pairs):
        a, b = sorted(which[rng.choice(len(partitions), 2, replace=False)].tolist())
        if (a, b) not in known:
            pair = unique[a].tolist(), unique[b].tolist()
            known[a, b] = (
                (1.0, 0.0)
                if a == b
                else (
                    compare_communities(*pair, method="adjusted_rand"),
                    compare_communities(*pair, method="vi"),
                )
            )
        scores.append(known[a, b])
    ari, vi = np.mean(scores, axis=0)
    return float(ari), float(vi)


def consensus(partitions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Majority vote over partitions, after their labels were matched to those of the most central one.

    Returns
    -------
    Labels (n,) and the share of runs that voted for them (n,). The central partition is the medoid by the number of
    pairs of nodes on which partitions disagree; labels are matched by the Hungarian method on shared members. A
    community without a counterpart in the medoid casts no vote.
    """
    from scipy.optimize import linear_sum_assignment

    unique, counts = np.unique(partitions, axis=0, return_counts=True)
    share = counts / counts.sum()
    n = partitions.shape[1]
    together = np.zeros((n, n))
    for labels, weight in zip(unique, share, strict=True):
        together += weight * (labels[:, None] == labels[None, :])
    central = [float(((labels[:, None] == labels[None, :]) * (1 - 2 * together)).sum()) for labels in unique]
    medoid = unique[int(np.argmin(central))]
    k = int(medoid.max()) + 1
    votes = np.zeros((n, k))
    nodes = np.arange(n)
    for labels, weight in zip(unique, share, strict=True):
        overlap = np.zeros((int(labels.max()) + 1, k))
        np.add.at(overlap, (labels, medoid), 1)
        rows, columns = linear_sum_assignment(-overlap)
        match = np.full(len(overlap), -1)
        match[rows] = columns
        named = match[labels]
        voted = named >= 0
        votes[nodes[voted], named[voted]] += weight
    chosen = votes.argmax(1)
    return chosen, votes[nodes, chosen]
