"""Search for the directed acyclic graph of highest score: moves of a gene in the causal order, and turned edges."""

from __future__ import annotations

import logging

import numpy as np

from sccausal.grn._intervention_stats import InterventionStatistics
from sccausal.grn._stepwise import TargetRegression

logger = logging.getLogger(__name__)
_MIN_GAIN = 1e-6


class OrderSearch:
    """Hill climbing over causal orders.

    A gene's regulators are selected among its candidates that stand before it. One move takes a gene out of the order
    and puts it where the sum of scores is highest; only its neighbours (genes that share a candidate edge with it) can
    change their score on the way, so a move costs a few small regressions, all of which are remembered.
    """

    def __init__(self, regressions: list[TargetRegression], support: np.ndarray, order: np.ndarray) -> None:
        self.regressions = regressions
        self.neighbours = [np.flatnonzero(support[:, j] | support[j]) for j in range(len(regressions))]
        self.position = np.empty(len(regressions))
        self.position[order] = np.arange(len(regressions))
        self.score = np.array([self._score(j, self._before(j)) for j in range(len(regressions))])

    def _score(self, j: int, allowed: np.ndarray) -> float:
        return self.regressions[j].select(allowed)[1]

    def _before(self, j: int) -> np.ndarray:
        return self.position[self.regressions[j].candidates] < self.position[j]

    def _gains(self, j: int, near: np.ndarray, here: int) -> np.ndarray:
        """Gain of putting ``j`` after the first ``t`` of its neighbours, for all ``t``; 0 where it stands."""
        own = self.position[self.regressions[j].candidates]
        ends = np.append(self.position[near], np.inf)

        def own_score(t: int) -> float:
            return self._score(j, own < ends[t])

        base = own_score(here)
        gains = np.zeros(len(near) + 1)
        moved = 0.0
        for t in range(here - 1, -1, -1):
            k = near[t]
            moved += self._score(k, self._before(k) | (self.regressions[k].candidates == j)) - self.score[k]
            gains[t] = moved + own_score(t) - base
        moved = 0.0
        for t in range(here, len(near)):
            k = near[t]
            moved += self._score(k, self._before(k) & (self.regressions[k].candidates != j)) - self.score[k]
            gains[t + 1] = moved + own_score(t + 1) - base
        return gains

    def move(self, j: int) -> bool:
        """Put gene ``j`` at its best place; True if it moved."""
        near = self.neighbours[j]
        if not len(near):
            return False
        near = near[np.argsort(self.position[near])]
        places = self.position[near]
        here = int(np.searchsorted(places, self.position[j]))
        gains = self._gains(j, near, here)
        best = int(gains.argmax())
        if best == here or gains[best] <= _MIN_GAIN:
            return False
        low = places[best - 1] if best > 0 else self.position.min() - 2
        high = places[best] if best < len(near) else self.position.max() + 2
        self.position[j] = (low + high) / 2
        passed = near[min(best, here) : max(best, here)]
        for k in [j, *passed]:
            self.score[k] = self._score(k, self._before(k))
        return True

    def run(self, rng: np.random.Generator, max_sweeps: int) -> None:
        """Sweep over all genes in random order until none moves."""
        for _ in range(max_sweeps):
            n_moved = sum(self.move(int(j)) for j in rng.permutation(len(self.regressions)))
            self.position = np.argsort(np.argsort(self.position)).astype(float)
            if n_moved == 0:
                break

    def parents(self) -> list[list[int]]:
        """Regulators of every gene."""
        return [self.regressions[j].select(self._before(j))[0] for j in range(len(self.regressions))]


class TurnSearch:
    """Hill climbing over graphs: turn an edge and choose the regulators of both its ends anew.

    The move is that of :cite:p:`Grzegorczyk2008`, taken greedily. Plain reversal keeps the other regulators, which were
    chosen to make up for the wrong direction; choosing anew gets out of that trap.
    """

    def __init__(
        self, regressions: list[TargetRegression], parents: list[list[int]], permitted: np.ndarray | None = None
    ) -> None:
        self.regressions = regressions
        self.permitted = permitted
        self.parents = [list(p) for p in parents]
        self.children: list[set[int]] = [set() for _ in parents]
        for j, regulators in enumerate(parents):
            for i in regulators:
                self.children[i].add(j)
        self.score = np.array([r.fit(p).score for r, p in zip(regressions, parents, strict=True)])

    def _set(self, j: int, regulators: list[int], score: float) -> None:
        for i in self.parents[j]:
            self.children[i].discard(j)
        self.parents[j] = list(regulators)
        for i in regulators:
            self.children[i].add(j)
        self.score[j] = score

    def _reach(self, gene: int, orphans: tuple[int, ...] = ()) -> np.ndarray:
        """The gene and all it leads to, when ``orphans`` have no regulators."""
        mask = np.zeros(len(self.parents), dtype=bool)
        mask[gene] = True
        stack = [gene]
        while stack:
            for c in self.children[stack.pop()]:
                if not mask[c] and c not in orphans:
                    mask[c] = True
                    stack.append(c)
        return mask

    def _select(self, j: int, forbidden: np.ndarray, extra: list[int], keep: int | None) -> tuple[list[int], float]:
        regression = self.regressions[j]
        start = [i for i in self.parents[j] if not forbidden[i] and i not in extra] + extra
        allowed = ~forbidden if self.permitted is None else ~forbidden & self.permitted[:, j]
        return regression.select(allowed[regression.candidates], start, keep)

    def renew(self, j: int) -> bool:
        """Choose the regulators of ``j`` anew among the genes it does not lead to; True if the score rose."""
        chosen, score = self._select(j, self._reach(j), [], None)
        if score <= self.score[j] + _MIN_GAIN:
            return False
        self._set(j, chosen, score)
        return True

    def turn(self, i: int, j: int) -> bool:
        """Turn the edge ``i -> j``; True if the score rose and the turn was kept."""
        if self.permitted is not None and not self.permitted[j, i]:
            return False
        if not np.any(self.regressions[i].candidates == j):
            return False
        below_i = self._reach(i, (i, j))
        new_i, score_i = self._select(i, below_i, [j], j)
        below_j = self._reach(j, (i, j)) | below_i
        new_j, score_j = self._select(j, below_j, [], None)
        if score_i + score_j <= self.score[i] + self.score[j] + _MIN_GAIN:
            return False
        self._set(j, [], 0.0)
        self._set(i, new_i, score_i)
        self._set(j, new_j, score_j)
        return True

    def run(self, max_sweeps: int) -> int:
        """Sweep over genes and edges until nothing improves; number of changes."""
        total = 0
        for _ in range(max_sweeps):
            changes = sum(self.renew(j) for j in range(len(self.parents)))
            edges = [(i, j) for j, regulators in enumerate(self.parents) for i in regulators]
            changes += sum(self.turn(i, j) for i, j in edges if i in self.parents[j])
            total += changes
            if changes == 0:
                break
        return total

    def order(self) -> np.ndarray:
        """A causal order of the graph, sources first."""
        waiting = np.array([len(p) for p in self.parents])
        ready = [j for j in range(len(self.parents)) if waiting[j] == 0]
        out: list[int] = []
        while ready:
            j = ready.pop()
            out.append(j)
            for c in self.children[j]:
                waiting[c] -= 1
                if waiting[c] == 0:
                    ready.append(c)
        return np.array(out)


class GraphSearch:
    """Search for a graph from candidate edges and a first order, adding candidates as they turn out to be missing.

    Each round searches over orders, then turns edges, first within the candidates and then, once no candidate is
    missing, among all genes. After it, for every gene, the edges of positive gain that are no candidates yet join them
    (in both directions), as a wrong start has to be left through edges that a right one would not need. The search ends
    when a round among all genes changes nothing. Candidates and regressions are kept for the next start.

    Parameters
    ----------
    stats
        Sufficient statistics.
    support
        Candidate edges, boolean (m, m); rows are sources.
    allowed
        Edges that may ever be used, boolean (m, m).
    gamma, max_regulators
        As for :class:`TargetRegression`.
    n_new
        Most new candidates of a gene in one round.
    seed
        Seed of the order in which genes are tried, and of the kicks.
    """

    def __init__(
        self,
        stats: InterventionStatistics,
        support: np.ndarray,
        allowed: np.ndarray,
        *,
        gamma: float = 1.0,
        max_regulators: int = 50,
        n_new: int = 10,
        seed: int = 0,
    ) -> None:
        self.support, self.allowed = support & allowed, allowed
        self.n_new = n_new
        self._stats, self._settings = stats, {"gamma": gamma, "max_regulators": max_regulators}
        self._rng = np.random.default_rng(seed)
        self._wide = [TargetRegression(stats, j, None, gamma=gamma, max_regulators=max_regulators) for j in self._genes]
        self._local = [self._regression(j) for j in self._genes]

    @property
    def _genes(self) -> range:
        return range(self._stats.n_genes)

    def _regression(self, j: int) -> TargetRegression:
        candidates = np.flatnonzero(self.support[:, j])
        return TargetRegression(
            self._stats,
            j,
            candidates,
            gamma=float(self._settings["gamma"]),
            max_regulators=int(self._settings["max_regulators"]),
        )

    def run(self, order: np.ndarray, *, max_rounds: int = 15, max_sweeps: int = 40) -> TurnSearch:
        """Search from a causal order; the result holds ``parents``, ``score`` and ``order()``."""
        for round_ in range(max_rounds):
            by_order = OrderSearch(self._local, self.support, order)
            by_order.run(self._rng, max_sweeps)
            search = TurnSearch(self._local, by_order.parents(), self.allowed)
            search.run(max_sweeps)
            new = self._missing(search.parents)
            n_wide = 0
            if not new.any():
                search = TurnSearch(self._wide, search.parents, self.allowed)
                n_wide = search.run(max_sweeps)
                for j, regulators in enumerate(search.parents):
                    new[regulators, j] = True
                new = (new | new.T) & self.allowed & ~self.support
            logger.debug("round %d: score %.1f, %d new candidates", round_, search.score.sum(), new.sum())
            if not new.any() and n_wide == 0:
                break
            order = search.order()
            self.support = self.support | new
            for j in np.flatnonzero(new.any(0)).tolist():
                self._local[j] = self._regression(j)
        return search

    def _missing(self, parents: list[list[int]]) -> np.ndarray:
        """Edges that would raise the score of their target if cycles were no matter, and are no candidates yet."""
        new = np.zeros_like(self.allowed)
        for j, regulators in enumerate(parents):
            gain = np.where(self.allowed[:, j], self._wide[j].fit(regulators).gain_add, -np.inf)
            best = np.argsort(-gain, kind="stable")[: self.n_new]
            new[best[gain[best] > 0], j] = True
        return (new | new.T) & self.allowed & ~self.support

    def best_of(self, orders: list[np.ndarray], n_kicks: int = 2, share: float = 0.1) -> TurnSearch:
        """Best graph of several starts, and of kicks that put a share of the genes at random places of its order."""
        best = max((self.run(order) for order in orders), key=lambda found: found.score.sum())
        for _ in range(n_kicks):
            order = best.order()
            place = np.argsort(order).astype(float)
            moved = self._rng.choice(len(order), max(1, int(share * len(order))), replace=False)
            place[moved] = self._rng.uniform(-1, len(order), len(moved))
            found = self.run(np.argsort(place))
            logger.debug("kick: score %.1f after %.1f", found.score.sum(), best.score.sum())
            if found.score.sum() > best.score.sum():
                best = found
        return best
