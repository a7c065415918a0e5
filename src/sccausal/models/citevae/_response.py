"""Mean effects of interventions over time: what was seen, and the best linear guess of what was not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LAMBDAS = np.logspace(-1, 4, 11)
_FLOOR = 0.02
_PRIOR = 30


@dataclass
class Profiles:
    """Mean changes from control by intervention and time.

    Parameters
    ----------
    dose
        Distinct interventions (C, T), none of them control.
    times
        Times of observation (K,), ascending.
    change
        Mean change from control cells of the same time (C, K, m); not a number where no cell was seen.
    n_cells
        Cells behind each mean (C, K).
    variance
        Variance of each gene among control cells of one time (m,).
    """

    dose: np.ndarray
    times: np.ndarray
    change: np.ndarray
    n_cells: np.ndarray
    variance: np.ndarray

    def noise(self) -> np.ndarray:
        """Sampling variance of the changes that interventions do not share (C, K, m)."""
        return self.variance / np.maximum(self.n_cells, 1)[..., None]


@dataclass
class TimeCovariance:
    """Covariance of effects over times, ``scale[g] * matrix``: how an effect grows, and how surely."""

    matrix: np.ndarray  # (K, K)
    scale: np.ndarray  # (m,)

    @classmethod
    def fit(cls, rest: np.ndarray, noise: np.ndarray, seen: np.ndarray) -> TimeCovariance:
        """Moments of deviations (n, K, m) beyond their noise; ``seen`` (n, K, m) marks what counts."""
        n_times = rest.shape[1]
        z, v = np.where(seen, rest, 0.0), np.where(seen, noise, 0.0)
        count = np.maximum(seen.sum((0, 1)), 1)
        scale = np.maximum(((z * z).sum((0, 1)) - v.sum((0, 1))) / count, 0.0)
        mean = scale.mean()
        if mean <= 0:
            return cls(np.zeros((n_times, n_times)), np.zeros(rest.shape[2]))
        # genes with few observations borrow from all, as if they had seen _PRIOR of the average
        scale = np.maximum((count * scale + _PRIOR * mean) / (count + _PRIOR), _FLOOR * mean)
        top = np.einsum("uig,ujg->ij", z, z) - np.diag(v.sum((0, 2)))
        base = np.einsum("uig,ujg,g->ij", seen.astype(float), seen.astype(float), scale)
        matrix = np.where(base > 0, top / np.maximum(base, 1e-12), 0.0)
        value, vector = np.linalg.eigh((matrix + matrix.T) / 2)
        largest = max(value.max(), 0.0)
        return cls((vector * np.maximum(value, 1e-4 * largest)) @ vector.T, scale)

    def update(self, rest: np.ndarray, noise: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Best linear prediction (K, m) of deviations from those seen: ``rest``, ``noise`` (K, m), ``seen`` (K,)."""
        out = np.zeros_like(rest)
        at = np.flatnonzero(seen)
        if not len(at) or not self.scale.any():
            return out
        system = self.scale[:, None, None] * self.matrix[np.ix_(at, at)] + np.einsum(
            "og,op->gop", noise[at] + 1e-10, np.eye(len(at))
        )
        weight = np.linalg.solve(system, rest[at].T[..., None])[..., 0]
        return (self.scale[:, None] * (weight @ self.matrix[at])).T


@dataclass
class Response:
    """Predicted mean changes of every target at every measured time.

    The guess for an intervention that was never seen is a regression on its embedding (per time, the penalty chosen by
    leaving interventions out), plus what an average target does to its own gene, plus the change that control cells
    show along their own variation with that gene (``follow``). What was seen of an intervention then updates its guess
    at all times (kriging), with the covariance over times that the other interventions show: a linear dynamics of
    effects with its own uncertainty. Every part that does not help interventions left out is dropped.

    Parameters
    ----------
    embedding
        Features of the targets (T, q), standardised here.
    own
        Position of each target's own gene (T,), -1 if it is not measured.
    follow
        Change of the genes per unit of change of the target's own gene among control cells (T, m), or None.
    axes
        Orthonormal directions of the decoder (m, k) in which effects move together, or None.
    """

    embedding: np.ndarray
    own: np.ndarray
    follow: np.ndarray | None = None
    axes: np.ndarray | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def fit(self, seen: Profiles) -> Response:
        """Learn from the training interventions."""
        self.times = seen.times
        self.singles = np.flatnonzero((seen.dose != 0).sum(1) == 1)
        spread = self.embedding.std(0)
        self._features = (self.embedding - self.embedding.mean(0)) / np.where(spread > 1e-9, spread, 1.0)
        target = seen.dose[self.singles].argmax(1) if len(self.singles) else np.zeros(0, int)
        size = seen.dose[self.singles, target][:, None, None]
        change, noise = seen.change[self.singles] / size, seen.noise()[self.singles] / size**2
        ok = seen.n_cells[self.singles] > 0
        change = np.where(ok[..., None], change, 0.0)
        guess, self._mean_own = self._prior(change, noise, ok, target)
        self._learn_dynamics(change - guess[target], noise, ok, target)
        effect = guess.copy()
        for j in np.unique(target):
            rows = np.flatnonzero(target == j)
            c, v, o = _pooled(change[rows], noise[rows], ok[rows])
            effect[j] = guess[j] + self._deviation(c - guess[j], v, o, int(self.own[j]))
        self.guess, self.effect = guess, effect
        self.trained = np.zeros(len(self.embedding), dtype=bool)
        self.trained[np.unique(target)] = True
        self._combined(seen)
        return self

    # ------------------------------------------------------------------ an intervention that was never seen

    def _prior(
        self, change: np.ndarray, noise: np.ndarray, ok: np.ndarray, target: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        n_targets, (_, n_times, m) = len(self.embedding), change.shape
        counts = np.ones((len(target), m), dtype=bool)
        has = np.flatnonzero(self.own[target] >= 0)
        counts[has, self.own[target[has]]] = False
        guess = np.zeros((n_targets, n_times, m))
        left_out = np.zeros_like(change)
        self.report["penalty"] = self._penalty(change, ok, target)
        for k in range(n_times):
            rows = np.flatnonzero(ok[:, k])
            if not len(rows):
                continue
            keep = counts[rows]
            mean = (change[rows, k] * keep).sum(0) / np.maximum(keep.sum(0), 1)
            y = np.where(keep, change[rows, k] - mean, 0.0)
            hat, out = _ridge(self._features[target[rows]], self._features, self.report["penalty"])
            guess[:, k] = mean + out @ y
            left_out[rows, k] = change[rows, k] - mean - _leave_one_out(hat, y)
        self._add_following(guess, left_out, counts, ok, target)
        return guess, self._add_own(guess, change, ok, target)

    def _penalty(self, change: np.ndarray, ok: np.ndarray, target: np.ndarray) -> float:
        best = (np.inf, np.inf)
        for penalty in [*_LAMBDAS, np.inf]:
            error = 0.0
            for k in range(change.shape[1]):
                rows = np.flatnonzero(ok[:, k])
                if len(rows) < 4:
                    continue
                y = change[rows, k] - change[rows, k].mean(0)
                hat, _ = _ridge(self._features[target[rows]], self._features[:1], penalty)
                error += float(((y - _leave_one_out(hat, y)) ** 2).sum())
            best = min(best, (error, penalty))
        return best[1]

    def _add_following(
        self, guess: np.ndarray, left_out: np.ndarray, counts: np.ndarray, ok: np.ndarray, target: np.ndarray
    ) -> None:
        """Add a multiple per time of what control cells do when they vary along the target's own gene."""
        self.report["follow"] = np.zeros(guess.shape[1])
        if self.follow is None or len(target) < 4:
            return
        centred = self.follow - self.follow[target].mean(0)
        for k in range(guess.shape[1]):
            rows = np.flatnonzero(ok[:, k])
            if len(rows) < 4:
                continue
            d = np.where(counts[rows], centred[target[rows]], 0.0)
            y = np.where(counts[rows], left_out[rows, k], 0.0)
            top, base = (d * y).sum(1), (d * d).sum(1)
            # factor of each intervention from all others, to see whether it helps the one left out
            factor = (top.sum() - top) / np.maximum(base.sum() - base, 1e-12)
            gain = (y**2).sum(1) - ((y - factor[:, None] * d) ** 2).sum(1)
            if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):  # by chance alone, gains go both ways
                alpha = top.sum() / max(base.sum(), 1e-12)
                guess[:, k] += alpha * centred
                self.report["follow"][k] = alpha

    def _add_own(self, guess: np.ndarray, change: np.ndarray, ok: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Targets' own genes change as those of the others did on average; (K,)."""
        mean = np.full(guess.shape[1], np.nan)
        has = np.flatnonzero(self.own[target] >= 0)
        for k in range(guess.shape[1]):
            rows = has[ok[has, k]]
            if len(rows) > 1:
                mean[k] = change[rows, k, self.own[target[rows]]].mean()
                measured = np.flatnonzero(self.own >= 0)
                guess[measured, k, self.own[measured]] = mean[k]
        return mean

    # ------------------------------------------------------------------ what was seen of it

    def _learn_dynamics(self, rest: np.ndarray, noise: np.ndarray, ok: np.ndarray, target: np.ndarray) -> None:
        counts = np.broadcast_to(ok[..., None], rest.shape).copy()
        has = np.flatnonzero(self.own[target] >= 0)
        counts[has, :, self.own[target[has]]] = False
        own = np.stack([rest[i, :, self.own[target[i]]] for i in has]) if len(has) else np.zeros((0, rest.shape[1]))
        self._own_covariance = TimeCovariance.fit(
            own[..., None], np.zeros((*own.shape, 1)), ok[has].reshape(*own.shape, 1)
        )
        self._fit_parts(np.where(counts, rest, 0.0), noise, counts)
        self.report["uses_axes"] = False
        if self.axes is None or len(target) < 6:
            return
        plain, along = (self._forecast_error(rest, noise, counts, ok, use) for use in (False, True))
        self.report["uses_axes"] = bool(along < plain)

    def _fit_parts(self, rest: np.ndarray, noise: np.ndarray, counts: np.ndarray) -> None:
        self._covariance = TimeCovariance.fit(rest, noise, counts)
        if self.axes is not None:
            V = self.axes
            score = rest @ V
            self._along = TimeCovariance.fit(score, noise @ V**2, counts.all(2, keepdims=True) | (score != 0))
            share = 1 - (V**2).sum(1)
            self._beside = TimeCovariance.fit(rest - score @ V.T, noise * share, counts)

    def _forecast_error(
        self, rest: np.ndarray, noise: np.ndarray, counts: np.ndarray, ok: np.ndarray, use: bool
    ) -> float:
        """Squared error of the later half of the times, from the earlier half, of interventions left out."""
        half, error = rest.shape[1] // 2, 0.0
        kept = self._covariance, self._along, self._beside
        for u in np.flatnonzero(ok.sum(1) > half):
            others = np.arange(len(rest)) != u
            self._fit_parts(np.where(counts[others], rest[others], 0.0), noise[others], counts[others])
            early = ok[u] & (np.arange(rest.shape[1]) < half)
            late = ok[u] & ~early
            guess = self._update(np.where(counts[u], rest[u], 0.0), noise[u], early, use)
            error += float((((rest[u] - guess)[late]) ** 2 * counts[u][late]).sum())
        self._covariance, self._along, self._beside = kept
        return error

    def _update(self, rest: np.ndarray, noise: np.ndarray, ok: np.ndarray, along: bool) -> np.ndarray:
        if not along or self.axes is None:
            return self._covariance.update(rest, noise, ok)
        V = self.axes
        score = rest @ V
        found = self._along.update(score, noise @ V**2, ok) @ V.T
        share = 1 - (V**2).sum(1)
        return found + self._beside.update(rest - score @ V.T, noise * share, ok)

    def _deviation(self, rest: np.ndarray, noise: np.ndarray, ok: np.ndarray, own: int) -> np.ndarray:
        """Deviation from the guess at all times (K, m) given that at the times seen."""
        rest = np.where(ok[:, None], rest, 0.0)
        plain = rest.copy()
        if own >= 0:
            plain[:, own] = 0.0
        out = self._update(plain, noise, ok, self.report["uses_axes"])
        if own >= 0:
            out[:, own] = self._own_covariance.update(rest[:, [own]], noise[:, [own]], ok)[:, 0]
        return out

    def _combined(self, seen: Profiles) -> None:
        """What combinations of training do beyond the sum of their targets, updated over times like singles."""
        self.combinations: list[tuple[np.ndarray, np.ndarray]] = []
        for c in np.flatnonzero((seen.dose != 0).sum(1) > 1):
            ok = seen.n_cells[c] > 0
            total = np.einsum("t,tkm->km", seen.dose[c], self.effect)
            rest = np.where(ok[:, None], seen.change[c], 0.0) - np.where(ok[:, None], total, 0.0)
            self.combinations.append((seen.dose[c], self._deviation(rest, seen.noise()[c], ok, -1)))

    # ------------------------------------------------------------------ answers

    def table(self) -> dict[str, np.ndarray]:
        """Arrays that hold all answers, to be kept with a model."""
        m = self.effect.shape[2]
        doses = [d for d, _ in self.combinations]
        return {
            "times": self.times,
            "effect": self.effect.astype(np.float32),
            "trained": self.trained,
            "combined_dose": np.asarray(doses, dtype=np.float32).reshape(len(doses), len(self.embedding)),
            "combined": np.asarray([e for _, e in self.combinations], dtype=np.float32).reshape(
                len(doses), len(self.times), m
            ),
        }


def change_at(table: dict[str, np.ndarray], row: np.ndarray, time: float, rate: float) -> np.ndarray:
    """Mean change (m,) under doses ``row`` (T,) at any time.

    Between measured times it is interpolated; beyond the last it goes on in the direction of the last interval and
    slows down at ``rate`` (per unit of time); before the first it is that of the first.
    """
    profile = np.einsum("t,tkm->km", row.astype(np.float64), table["effect"])
    for dose, extra in zip(table["combined_dose"], table["combined"], strict=True):
        if np.allclose(dose, row):
            profile = profile + extra
    times = table["times"]
    if time <= times[0] or len(times) == 1:
        return profile[0]
    if time > times[-1]:
        slope = (profile[-1] - profile[-2]) / (times[-1] - times[-2])
        return profile[-1] + slope * -np.expm1(-rate * (time - times[-1])) / max(rate, 1e-6)
    after = int(np.searchsorted(times, time))
    share = (time - times[after - 1]) / (times[after] - times[after - 1])
    return (1 - share) * profile[after - 1] + share * profile[after]


def _ridge(features: np.ndarray, asked: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Hat matrix (n, n) of a ridge regression of centred values, and the map (a, n) to other features."""
    n = len(features)
    if not np.isfinite(penalty) or not features.shape[1]:
        return np.zeros((n, n)), np.zeros((len(asked), n))
    centre = features.mean(0)
    x, a = features - centre, asked - centre
    inner = np.linalg.solve(x @ x.T + penalty * np.eye(n), np.eye(n))
    return x @ x.T @ inner, a @ x.T @ inner


def _leave_one_out(hat: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Predictions of each row of centred ``y`` from all others; the mean counts as learned from the others too."""
    n = len(y)
    full = hat + 1.0 / n
    h = np.diag(full)
    return (full @ y - h[:, None] * y) / np.maximum(1 - h, 1e-6)[:, None]


def _pooled(change: np.ndarray, noise: np.ndarray, ok: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One profile of a target that was given in several doses, weighted by precision."""
    weight = np.where(ok[..., None], 1 / np.maximum(noise, 1e-12), 0.0)
    total = np.maximum(weight.sum(0), 1e-12)
    return (weight * change).sum(0) / total, 1 / total, np.asarray(ok.any(0))
