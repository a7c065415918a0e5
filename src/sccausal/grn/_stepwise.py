"""Forward-backward regression of a gene on others by the extended Bayesian information criterion, on Gram matrices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sccausal.grn._intervention_stats import InterventionStatistics

# share of a regressor's variance that must be left after the other regressors, below which it counts as a copy of them
_MIN_UNEXPLAINED = 1e-4
_MIN_GAIN = 1e-6


class Step(NamedTuple):
    """What one regression says: its score, coefficients, and the gain of deleting or adding each regressor."""

    score: float
    coefficients: np.ndarray
    residual: float
    gain_delete: np.ndarray
    gain_add: np.ndarray


class TargetRegression:
    r"""Regressions of one gene on subsets of candidates.

    The score of a set of ``k`` regulators, with the noise variance profiled out, is
    :math:`-\tfrac{n_j}{2} \log(\mathrm{RSS}_j / n_j) - k (\tfrac12 \log n_j + \gamma \log m)`
    :cite:p:`Chen2008`. Adding or deleting one regulator changes the residual sum in closed form, so all additions are
    scored at once from one partial covariance.

    Parameters
    ----------
    stats
        Sufficient statistics.
    gene
        The target.
    candidates
        Genes that may be regulators; ``None`` for all others, whose columns are then fetched as needed.
    gamma
        Strength of the extended criterion; 0 is the plain one.
    max_regulators
        Largest set.
    """

    def __init__(
        self,
        stats: InterventionStatistics,
        gene: int,
        candidates: np.ndarray | None = None,
        *,
        gamma: float = 1.0,
        max_regulators: int = 50,
    ) -> None:
        self.gene, self.max_regulators = gene, max_regulators
        self.n = stats.effective_cells(gene)
        self.penalty = 0.5 * np.log(self.n) + gamma * np.log(max(stats.n_genes, 2))
        self._stats: InterventionStatistics | None = stats if candidates is None else None
        self._rows: dict[int, np.ndarray] = {}
        if candidates is None:
            self.candidates = np.arange(stats.n_genes)
            self.variance = stats.diagonal(gene)
            self.covariance = stats.columns(gene, [gene])[:, 0]
            self.total = self.covariance[gene]
        else:
            self.candidates = np.asarray(candidates, dtype=np.int64)
            local = stats.columns(gene, np.append(self.candidates, gene))
            self.local_gram = local[self.candidates, :-1]
            self.variance = self.local_gram.diagonal().copy()
            self.covariance, self.total = local[self.candidates, -1], local[gene, -1]
        scale = max(float(stats.gram.diagonal().max(initial=0)), 1e-300)
        self.usable = (self.variance > 1e-10 * scale) & (self.candidates != gene)
        self.total = max(float(self.total), 1e-10 * scale)
        self._position = {int(g): k for k, g in enumerate(self.candidates)}
        self._memo: dict[tuple, tuple[list[int], float]] = {}

    def _gram_rows(self, chosen: list[int]) -> np.ndarray:
        if self._stats is None:
            return self.local_gram[chosen]
        for p in chosen:
            if p not in self._rows:
                self._rows[p] = self._stats.columns(self.gene, [p])[:, 0]
        return np.array([self._rows[p] for p in chosen])

    def step(self, chosen: list[int]) -> Step:
        """Regress on the candidates at positions ``chosen``."""
        k = len(chosen)
        if k:
            rows = self._gram_rows(chosen)
            inner = rows[:, chosen]
            inner.flat[:: k + 1] *= 1 + 1e-10
            inverse = np.linalg.inv(inner)
            beta = inverse @ self.covariance[chosen]
            rss = max(self.total - float(beta @ self.covariance[chosen]), 1e-9 * self.total)
            partial = self.covariance - beta @ rows
            left = self.variance - (rows * (inverse @ rows)).sum(0)
            delete = -0.5 * self.n * np.log1p(beta**2 / inverse.diagonal() / rss) + self.penalty
        else:
            beta = delete = np.zeros(0)
            rss, partial, left = self.total, self.covariance, self.variance
        share = partial**2 / np.maximum(left, _MIN_UNEXPLAINED * self.variance + 1e-300) / rss
        add = -0.5 * self.n * np.log1p(-np.minimum(share, 1 - 1e-9)) - self.penalty
        add[~self.usable] = -np.inf
        if k:
            add[chosen] = -np.inf
        score = -0.5 * self.n * np.log(rss / self.n) - k * self.penalty
        return Step(score, beta, rss, delete, add)

    def select(
        self, allowed: np.ndarray, start: list[int] | None = None, keep: int | None = None
    ) -> tuple[list[int], float]:
        """Add and delete one regulator at a time while the score rises.

        Parameters
        ----------
        allowed
            Boolean over :attr:`candidates`.
        start
            Genes to begin with; those that are no candidates are left out.
        keep
            A gene that must stay.

        Returns
        -------
        Chosen genes and the score.
        """
        chosen = [self._position[g] for g in start or [] if g in self._position]
        fixed = self._position.get(keep, -1) if keep is not None else -1
        key = (tuple(sorted(chosen)), fixed, allowed.tobytes())
        if key in self._memo:
            return self._memo[key]
        now = self.step(chosen)
        for _ in range(4 * self.max_regulators):
            add = np.where(allowed, now.gain_add, -np.inf)
            best = int(add.argmax()) if len(add) else -1
            gain_add = add[best] if best >= 0 and len(chosen) < self.max_regulators else -np.inf
            delete = now.gain_delete.copy()
            if fixed in chosen:
                delete[chosen.index(fixed)] = -np.inf
            gain_delete = delete.max(initial=-np.inf)
            if max(gain_add, gain_delete) <= _MIN_GAIN:
                break
            if gain_delete >= gain_add:
                chosen.pop(int(delete.argmax()))
            else:
                chosen.append(best)
            now = self.step(chosen)
        result = [int(self.candidates[p]) for p in chosen], now.score
        self._memo[key] = result
        return result

    def fit(self, regulators: list[int]) -> Step:
        """Regress on given genes, which must be candidates."""
        return self.step([self._position[g] for g in regulators])
