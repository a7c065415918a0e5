"""Communities of regulators: groups that regulate each other more than they regulate the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError
from sccausal.grn._consensus import VI_FLOOR, Backend, WeightedGraph, consensus, leiden_runs, stability
from sccausal.grn._network import Network

logger = logging.getLogger(__name__)

RESOLUTIONS = tuple(np.round(np.arange(0.9, 2.01, 0.1), 1).tolist())
"""Resolutions that gCRL scans."""
_TIE = 0.01  # scores this close to the best (relative) are ties


@dataclass(frozen=True)
class Communities:
    """Communities of regulators and how they were found.

    Parameters
    ----------
    labels
        Community of each regulator (``"C1"`` is the largest), missing where it belongs to none.
    confidence
        Share of the runs that voted for it, in 0..1.
    weights
        Weights of the edges between regulators, (n_regulators, n_regulators), rows are sources.
    resolution
        Resolution that was chosen; NaN where communities were given.
    stability
        One row per resolution: ``resolution``, ``ari`` and ``vi`` (mean over pairs of runs), ``score`` = ari / vi,
        ``n_communities`` (of ``min_size`` or more, median over runs), ``n_with_small`` (all), ``n_partitions``
        (different ones among the runs), ``chosen``.
    metadata
        JSON-able settings.

    Examples
    --------
    >>> import sccausal as scc
    >>> communities = scc.grn.Communities.from_labels({"KLF1": "erythroid", "GATA1": "erythroid", "ATF4": "stress"})
    >>> communities.members()
    {'erythroid': ['KLF1', 'GATA1'], 'stress': ['ATF4']}
    """

    labels: pd.Series
    confidence: pd.Series
    weights: pd.DataFrame
    resolution: float = float("nan")
    stability: pd.DataFrame = field(default_factory=pd.DataFrame)
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_labels(cls, labels: Mapping[str, str] | pd.Series, network: Network | None = None) -> Communities:
        """Communities that are known already.

        Parameters
        ----------
        labels
            Community of each regulator; missing where it belongs to none.
        network
            Network that gives the strengths between regulators; without it they are zero.

        Raises
        ------
        sccausal._errors.InputDataError
            There is no community, or a regulator is listed twice.
        """
        given = pd.Series(labels, dtype=object)
        given.index = given.index.astype(str)
        if given.index.has_duplicates:
            raise InputDataError(f"Regulator {given.index[given.index.duplicated()][0]!r} is listed twice.")
        given = given.map(str, na_action="ignore")
        if given.notna().sum() == 0:
            raise InputDataError("No regulator belongs to a community.")
        names = list(given.index)
        weights = pd.DataFrame(0.0, index=names, columns=names)
        if network is not None:
            held = [g for g in names if g in set(network.genes)]
            weights.loc[held, held] = network.to_matrix(held)
        return cls(given, pd.Series(1.0, index=names), weights, metadata={"method": "given"})

    @property
    def strengths(self) -> pd.DataFrame:
        """Strength between each pair of regulators, ``|w_ab| + |w_ba|``, zero on the diagonal."""
        return _strengths(self.weights)

    @property
    def names(self) -> list[str]:
        """Names of the communities, in their order: C1, C2, ..., C10, or as they first occur."""
        found = list(pd.unique(self.labels.dropna()))
        if all(str(n)[:1] == "C" and str(n)[1:].isdigit() for n in found):
            return sorted(found, key=lambda n: int(n[1:]))
        return found

    def members(self) -> dict[str, list[str]]:
        """Regulators of each community, those with most confident votes first."""
        order = self.confidence.sort_values(ascending=False, kind="stable").index
        sorted_labels = self.labels.loc[order]
        return {name: list(sorted_labels.index[(sorted_labels == name).to_numpy()]) for name in self.names}

    def to_frame(self) -> pd.DataFrame:
        """Table with ``regulator``, ``community``, ``confidence``, ``strength_within`` and ``strength_to_others``."""
        same = (self.labels.to_numpy()[:, None] == self.labels.to_numpy()[None, :]) & self.labels.notna().to_numpy()
        w = self.strengths.to_numpy()
        return pd.DataFrame(
            {
                "regulator": self.labels.index.astype(str),
                "community": self.labels.to_numpy(),
                "confidence": self.confidence.to_numpy(),
                "strength_within": (w * same).sum(1),
                "strength_to_others": (w * ~same).sum(1),
            }
        )

    def __repr__(self) -> str:
        sizes = self.labels.value_counts()
        shown = ", ".join(f"{n} {sizes[n]}" for n in self.names)
        none = int(self.labels.isna().sum())
        return f"Communities: {shown}{f'; {none} regulators in none' if none else ''} (resolution {self.resolution:g})"


def _strengths(weights: pd.DataFrame) -> pd.DataFrame:
    size = np.abs(weights.to_numpy())
    both = size + size.T
    np.fill_diagonal(both, 0.0)
    return pd.DataFrame(both, index=weights.index, columns=weights.columns)


def find_communities(
    network: Network,
    *,
    resolutions: Sequence[float] = RESOLUTIONS,
    n_runs: int = 1000,
    n_pairs: int = 200,
    min_size: int = 3,
    n_iterations: int = 5,
    backend: Backend = "igraph",
    n_jobs: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Communities:
    r"""Find communities of regulators that many Leiden runs agree on.

    Strengths between regulators are :math:`|w_{ab}| + |w_{ba}|`. For each resolution, Leiden :cite:p:`Traag2019` is run
    from many random orders; the stability of a resolution is the mean adjusted Rand index :cite:p:`Hubert1985` over the
    mean variation of information :cite:p:`Meila2007` of random pairs of runs. The most stable resolution is taken, of
    ties (within 1 %) the one with fewer communities, among those that find two or more; its runs vote for the community
    of each regulator after their labels were matched to the most central run by the Hungarian method.

    Parameters
    ----------
    network
        Network of regulators and targets; strong edges are best selected before (:func:`strong_edges`).
    resolutions
        Resolution parameters to scan.
    n_runs
        Runs per resolution.
    n_pairs
        Pairs of runs compared per resolution.
    min_size
        Smaller communities are dissolved: their regulators belong to none.
    n_iterations
        Rounds of each run; more give better and more repeatable partitions.
    backend
        ``"igraph"`` or ``"leidenalg"``, which optimise the same function; igraph is several times faster.
    n_jobs
        Processes, as in joblib: ``None`` is one, -1 all cores. The result does not depend on it.
    progress
        Whether a progress bar is shown.
    seed
        Seed of all runs.

    Returns
    -------
    Communities, named C1, C2, ... by falling size. Regulators without an edge to another regulator belong to none.

    Raises
    ------
    sccausal._errors.InputDataError
        There are fewer than three edges between regulators, or no community of ``min_size``.
    sccausal._errors.SetupError
        A setting is out of range.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> network = scc.tl.grn(scc.metrics.log1p_norm(cells), cells.uns["truth"]["network"])
    >>> found = scc.grn.find_communities(network, resolutions=[1.0], n_runs=20)
    >>> found.names[0]  # the largest
    'C1'
    """
    if not len(resolutions) or min(resolutions) <= 0:
        raise SetupError(f"`resolutions` must be numbers above zero, got {list(resolutions)}.")
    if n_runs < 2 or min(n_pairs, min_size, n_iterations) < 1:
        raise SetupError(
            "n_runs is at least 2, n_pairs, min_size and n_iterations at least 1; got "
            f"{n_runs}, {n_pairs}, {min_size}, {n_iterations}."
        )
    if backend not in ("igraph", "leidenalg"):
        raise SetupError(f"`backend` is {backend!r}; choose 'igraph' or 'leidenalg'.")
    regulators = sorted(set(network.to_frame()["source"]))
    weights = pd.DataFrame(network.to_matrix(regulators), index=regulators, columns=regulators)
    strengths = _strengths(weights)
    linked = strengths.to_numpy().sum(1) > 0
    graph = WeightedGraph.from_matrix(strengths.to_numpy()[np.ix_(linked, linked)])
    if len(graph.edges) < 3:
        raise InputDataError(
            f"{len(graph.edges)} edges between the {len(strengths)} regulators are too few for communities; keep more "
            "edges, or use a base network that holds edges between regulators."
        )
    runs = leiden_runs(
        graph, resolutions, n_runs, backend=backend, n_iterations=n_iterations, n_jobs=n_jobs, progress=progress,
        seed=seed,
    )  # fmt: skip
    table = _stability_table(runs, resolutions, n_pairs, min_size, seed)
    best = int(np.flatnonzero(table["chosen"])[0])
    labels, share = consensus(runs[best])
    return _assemble(
        weights, linked, labels, share, min_size, table,
        {
            "method": "consensus Leiden", "backend": backend, "n_runs": n_runs, "n_pairs": n_pairs,
            "min_size": min_size, "n_iterations": n_iterations, "seed": seed, "n_edges": len(graph.edges),
        },
    )  # fmt: skip


def _stability_table(
    runs: Sequence[np.ndarray], resolutions: Sequence[float], n_pairs: int, min_size: int, seed: int
) -> pd.DataFrame:
    rows = []
    for resolution, partitions in zip(resolutions, runs, strict=True):
        ari, vi = stability(partitions, n_pairs, seed)
        sizes = [np.bincount(p) for p in partitions]
        rows.append(
            {
                "resolution": float(resolution),
                "ari": ari,
                "vi": vi,
                "score": ari / (vi + VI_FLOOR),
                "n_communities": float(np.median([(s >= min_size).sum() for s in sizes])),
                "n_with_small": float(np.median([len(s) for s in sizes])),
                "n_partitions": len(np.unique(partitions, axis=0)),
            }
        )
    table = pd.DataFrame(rows)
    # one community that holds everything is perfectly stable and says nothing
    eligible = table["n_communities"] >= 2 if (table["n_communities"] >= 2).any() else table["n_communities"] >= 0
    top = table.loc[eligible, "score"].max()
    tied = table[eligible & (table["score"] >= top - _TIE * abs(top))]
    # small ones count here: a high resolution dissolves communities into them
    chosen = tied.sort_values(["n_with_small", "resolution"], kind="stable").index[0]
    table["chosen"] = table.index == chosen
    return table


def _assemble(
    weights: pd.DataFrame,
    linked: np.ndarray,
    labels: np.ndarray,
    share: np.ndarray,
    min_size: int,
    table: pd.DataFrame,
    metadata: dict[str, Any],
) -> Communities:
    sizes = np.bincount(labels)
    # largest first; equal sizes by the first member's place, which is alphabetical
    first = np.array([np.flatnonzero(labels == c)[0] if sizes[c] else len(labels) for c in range(len(sizes))])
    kept = [c for c in np.lexsort((first, -sizes)) if sizes[c] >= min_size]
    if not kept:
        raise InputDataError(
            f"No community has {min_size} regulators (the largest has {sizes.max()}); lower `min_size`."
        )
    name = {int(c): f"C{k + 1}" for k, c in enumerate(kept)}
    names = np.full(len(weights), None, dtype=object)
    votes = np.zeros(len(weights))
    names[linked] = [name.get(int(c)) for c in labels]
    votes[linked] = share
    votes[[n is None for n in names]] = 0.0
    chosen = table.loc[table["chosen"]].iloc[0]
    if chosen["score"] < 2:
        logger.warning(
            "Even at the most stable resolution the runs disagree (ARI %.2f): the communities are not well defined.",
            chosen["ari"],
        )
    index = weights.index
    return Communities(
        pd.Series(names, index=index, dtype=object),
        pd.Series(votes, index=index),
        weights,
        float(chosen["resolution"]),
        table,
        metadata,
    )
