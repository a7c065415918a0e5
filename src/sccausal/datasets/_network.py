"""Sparse signed gene networks with few, scale-free regulators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components


@dataclass(frozen=True, eq=False)
class GeneNetwork:
    """Edge list of a gene network; rows of every matrix are sources, columns targets.

    Parameters
    ----------
    genes
        Names of all genes, shape (m,).
    source, target
        Positions of the two ends of each edge, shape (e,).
    weight
        Signed strength of each edge, shape (e,): positive activates, negative represses.
    feedback
        True for edges that close a loop, shape (e,). Without them the network is acyclic.
    regulators
        Positions of the genes that may have targets, in an order in which every edge that is no feedback
        runs from earlier to later, shape (t,).
    """

    genes: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    feedback: np.ndarray
    regulators: np.ndarray

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """Signed weights, shape (m, m), rows are sources."""
        shape = (self.n_genes, self.n_genes)
        return sparse.csr_matrix((self.weight, (self.source, self.target)), shape=shape)

    @property
    def is_acyclic(self) -> bool:
        """Whether the network has no directed cycle."""
        n_components, _ = connected_components(self.matrix, directed=True, connection="strong")
        return bool(n_components == self.n_genes)

    def descendants(self, gene: int) -> np.ndarray:
        """Genes that can be reached from ``gene``, itself included, as a mask of shape (m,)."""
        mask = np.zeros(self.n_genes, dtype=bool)
        mask[breadth_first_order(self.matrix, gene, directed=True, return_predecessors=False)] = True
        return mask

    def regulator_levels(self) -> list[np.ndarray]:
        """Positions *within* ``regulators``, grouped so that each group depends on earlier groups only.

        Feedback edges are left out of the ordering.
        """
        place = np.full(self.n_genes, -1)
        place[self.regulators] = np.arange(len(self.regulators))
        keep = ~self.feedback & (place[self.target] >= 0)
        parents: list[list[int]] = [[] for _ in self.regulators]
        for s, t in zip(place[self.source[keep]], place[self.target[keep]], strict=True):
            parents[t].append(s)
        level = np.zeros(len(self.regulators), dtype=int)
        for position, upstream in enumerate(parents):
            level[position] = 1 + max((level[p] for p in upstream), default=-1)
        return [np.flatnonzero(level == k) for k in range(level.max(initial=-1) + 1)]

    def to_frame(self) -> pd.DataFrame:
        """Edges as a table with columns source, target, weight, strongest first."""
        frame = pd.DataFrame(
            {"source": self.genes[self.source], "target": self.genes[self.target], "weight": self.weight}
        )
        order = np.argsort(-np.abs(self.weight), kind="stable")
        return frame.iloc[order].reset_index(drop=True)


def _pick_parents(rng: np.random.Generator, chance: np.ndarray, wanted: int) -> np.ndarray:
    """Draw up to ``wanted`` distinct positions with probability proportional to ``chance``."""
    wanted = min(wanted, len(chance))
    if wanted == 0:
        return np.empty(0, dtype=int)
    return rng.choice(len(chance), size=wanted, replace=False, p=chance / chance.sum())


def sample_network(
    rng: np.random.Generator,
    *,
    n_genes: int,
    n_regulators: int,
    mean_parents: float,
    strength: float,
    activating: float,
    n_feedback: int,
    unregulated: float = 0.1,
) -> GeneNetwork:
    """Draw a network in which few regulators have most of the targets.

    Regulators stand in a hidden order and act on later regulators and on the other genes; the chance to be chosen
    as a parent falls as a power of a hidden rank, so that out-degrees are scale-free. Positions of genes carry no
    information about the order.

    Parameters
    ----------
    rng
        Source of randomness.
    n_genes, n_regulators
        Number of genes, and of those that may have targets.
    mean_parents
        Mean number of regulators of a regulated gene (regulators have half as many).
    strength
        Median absolute edge weight.
    activating
        Fraction of edges that activate.
    n_feedback
        Number of additional edges from a later to an earlier regulator.
    unregulated
        Fraction of the other genes without any regulator.
    """
    shuffled = rng.permutation(n_genes)
    regulators, others = shuffled[:n_regulators], shuffled[n_regulators:]
    # Zipf-like weights in random order: hubs may stand anywhere in the cascade
    hubness = (1.0 + rng.permutation(n_regulators)) ** -0.7
    source: list[int] = []
    target: list[int] = []
    for j in range(1, n_regulators):
        chosen = _pick_parents(rng, hubness[:j], rng.poisson(mean_parents / 2))
        source.extend(regulators[chosen])
        target.extend([regulators[j]] * len(chosen))
    for gene in others:
        wanted = 0 if rng.random() < unregulated else 1 + rng.poisson(max(mean_parents - 1, 0))
        chosen = _pick_parents(rng, hubness, wanted)
        source.extend(regulators[chosen])
        target.extend([gene] * len(chosen))
    feedback = [False] * len(source)
    pairs = [(late, early) for late in range(1, n_regulators) for early in range(late)]
    for k in rng.permutation(len(pairs))[:n_feedback]:
        late, early = pairs[k]
        source.append(regulators[late])
        target.append(regulators[early])
        feedback.append(True)
    size = np.exp(rng.normal(np.log(strength), 0.5, size=len(source)))
    sign = np.where(rng.random(len(source)) < activating, 1.0, -1.0)
    width = max(4, len(str(n_genes)))
    return GeneNetwork(
        genes=np.array([f"G{i:0{width}d}" for i in range(n_genes)]),
        source=np.array(source, dtype=int),
        target=np.array(target, dtype=int),
        weight=size * sign,
        feedback=np.array(feedback, dtype=bool),
        regulators=regulators,
    )
