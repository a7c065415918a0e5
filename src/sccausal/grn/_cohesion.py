"""Whether communities hold together more than chance would have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError
from sccausal.grn._communities import Communities
from sccausal.grn._consensus import WeightedGraph, leiden_igraph, to_igraph

Null = Literal["permuted", "rewired"]
_SWAP_ROUNDS = 200
_ROUNDS = 5  # of Leiden


@dataclass(frozen=True)
class CohesionTest:
    """Observed value, its null distribution and the p-value.

    Parameters
    ----------
    statistic
        ``"cohesion"`` or ``"modularity"``.
    null_kind
        ``"permuted"`` or ``"rewired"``.
    observed
        Value of the communities.
    null
        Values under the null, (n_permutations,).
    p_value
        (1 + number of null values at or above the observed one) / (1 + their number).
    per_community
        Only for ``"permuted"``: ``community``, ``n``, ``cohesion``, ``null_mean``, ``p_value``.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> edges = [("A", "B"), ("B", "C"), ("C", "A"), ("D", "E"), ("E", "F"), ("F", "D"), ("A", "D")]
    >>> network = scc.grn.Network(pd.DataFrame(edges, columns=["source", "target"]).assign(weight=1.0))
    >>> labels = {"A": "C1", "B": "C1", "C": "C1", "D": "C2", "E": "C2", "F": "C2"}
    >>> test = scc.grn.cohesion_test(scc.grn.Communities.from_labels(labels, network), n_permutations=99)
    >>> round(test.observed, 2), test.z_score > 0
    (0.75, True)
    """

    statistic: str
    null_kind: Null
    observed: float
    null: np.ndarray
    p_value: float
    per_community: pd.DataFrame

    @property
    def z_score(self) -> float:
        """Distance from the mean of the null, in its standard deviations."""
        return float((self.observed - self.null.mean()) / self.null.std())


def cohesion_test(
    communities: Communities, *, null: Null = "permuted", n_permutations: int = 1000, n_runs: int = 10, seed: int = 0
) -> CohesionTest:
    r"""Test how well communities hold together.

    ``"permuted"`` is gCRL's test: cohesion of a community is :math:`w_{int} / (w_{int} + w_{bound})`, the share of the
    strength at its members that stays inside; its mean is compared with that of communities of the same sizes and
    random members. Communities that were found on the same network pass it even where the network has none, because
    they were chosen to.

    ``"rewired"`` asks whether the network has communities at all: networks in which every regulator keeps its number of
    edges and every target the weights of its edges, but who regulates whom is dealt out anew, are searched in the same
    way, and the modularity that Leiden finds is compared.

    Parameters
    ----------
    communities
        Communities with their strengths.
    null
        Which test.
    n_permutations
        Size of the null distribution.
    n_runs
        Only for ``"rewired"``: Leiden runs per network, the best of which counts.
    seed
        Seed of the null distribution.

    Returns
    -------
    CohesionTest

    Raises
    ------
    sccausal._errors.InputDataError
        There is no strength between regulators.
    sccausal._errors.SetupError
        A setting is out of range.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> edges = [("A", "B"), ("B", "C"), ("C", "A"), ("D", "E"), ("E", "F"), ("F", "D"), ("A", "D")]
    >>> network = scc.grn.Network(pd.DataFrame(edges, columns=["source", "target"]).assign(weight=1.0))
    >>> labels = {"A": "C1", "B": "C1", "C": "C1", "D": "C2", "E": "C2", "F": "C2"}
    >>> test = scc.grn.cohesion_test(scc.grn.Communities.from_labels(labels, network), n_permutations=99)
    >>> round(test.observed, 2), test.null.shape
    (0.75, (99,))
    """
    if n_permutations < 1 or n_runs < 1:
        raise SetupError(f"n_permutations and n_runs are at least 1, got {n_permutations} and {n_runs}.")
    if not (communities.strengths.to_numpy() > 0).any():
        raise InputDataError("No strength between regulators: cohesion is not defined.")
    if null == "permuted":
        return _permuted(communities, n_permutations, seed)
    if null == "rewired":
        return _rewired(communities, n_permutations, n_runs, seed)
    raise SetupError(f"`null` is {null!r}; choose 'permuted' or 'rewired'.")


def _permuted(communities: Communities, n_permutations: int, seed: int) -> CohesionTest:
    w = communities.strengths.to_numpy()
    names = communities.names
    codes = pd.Categorical(communities.labels, categories=names).codes.astype(np.int64)
    linked = w.sum(1) > 0
    w, codes = w[np.ix_(linked, linked)], codes[linked]
    k = len(names)
    observed = _cohesion(w, codes[None], k)[0]
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(codes, (n_permutations, 1)), axis=1)
    null = np.concatenate([_cohesion(w, part, k) for part in np.array_split(shuffled, max(1, n_permutations // 200))])
    table = pd.DataFrame(
        {
            "community": names,
            "n": np.bincount(codes[codes >= 0], minlength=k),
            "cohesion": observed,
            "null_mean": null.mean(0),
            "p_value": (1 + (null >= observed - 1e-12).sum(0)) / (1 + n_permutations),
        }
    )
    return _result("cohesion", "permuted", float(observed.mean()), null.mean(1), table)


def _cohesion(w: np.ndarray, codes: np.ndarray, k: int) -> np.ndarray:
    """Cohesion of each community under each row of labels, (n_rows, k); -1 is no community."""
    member = (codes[:, :, None] == np.arange(k)).astype(float)  # (rows, n, k)
    rows, n, _ = member.shape
    flat = member.transpose(1, 0, 2).reshape(n, rows * k)
    inside = np.einsum("nb,nb->b", flat, w @ flat).reshape(rows, k)  # each pair twice
    strength = (w.sum(1) @ flat).reshape(rows, k)
    bound = strength - inside
    total = inside / 2 + bound
    return np.divide(inside / 2, total, out=np.zeros_like(total), where=total > 0)


def _rewired(communities: Communities, n_permutations: int, n_runs: int, seed: int) -> CohesionTest:
    weights = communities.weights.to_numpy()
    source, target = np.nonzero(weights * (1 - np.eye(len(weights))))
    size = np.abs(weights[source, target])
    n = len(weights)
    resolution = 1.0 if np.isnan(communities.resolution) else communities.resolution
    rng = np.random.default_rng(seed)
    observed = _best_modularity(n, source, target, size, resolution, n_runs, rng)
    null = np.array(
        [
            _best_modularity(n, rewire_sources(source, target, n, rng), target, size, resolution, n_runs, rng)
            for _ in range(n_permutations)
        ]
    )
    return _result("modularity", "rewired", observed, null, pd.DataFrame())


def rewire_sources(source: np.ndarray, target: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sources dealt out anew among edges: every source keeps its number of edges, every target its edges' weights.

    Edges from a node to itself, and second edges between the same nodes, swap sources with random others until none is
    left; in a graph too dense for that, the few that remain are added up by the caller.
    """
    dealt = rng.permutation(source)
    for _ in range(_SWAP_ROUNDS):
        code = dealt * n + target
        _, first = np.unique(code, return_index=True)
        wrong = np.ones(len(code), dtype=bool)
        wrong[first] = False
        wrong |= dealt == target
        if not wrong.any():
            break
        bad = np.flatnonzero(wrong)
        other = rng.permutation(len(code))[: len(bad)]
        for i, j in zip(bad.tolist(), other.tolist(), strict=True):
            dealt[i], dealt[j] = dealt[j], dealt[i]
    return dealt


def _best_modularity(
    n: int,
    source: np.ndarray,
    target: np.ndarray,
    size: np.ndarray,
    resolution: float,
    n_runs: int,
    rng: np.random.Generator,
) -> float:
    matrix = np.zeros((n, n))
    np.add.at(matrix, (source, target), size)
    np.fill_diagonal(matrix, 0.0)
    graph = WeightedGraph.from_matrix(matrix + matrix.T)
    seeds = rng.integers(2**31 - 1, size=n_runs).tolist()
    made = to_igraph(graph)
    found = leiden_igraph(made, resolution, seeds, _ROUNDS)
    return float(max(made.modularity(m, weights="weight", resolution=resolution) for m in found))


def _result(statistic: str, kind: Null, observed: float, null: np.ndarray, table: pd.DataFrame) -> CohesionTest:
    p = (1 + int((null >= observed - 1e-12).sum())) / (1 + len(null))
    return CohesionTest(statistic, kind, observed, null, p, table)
