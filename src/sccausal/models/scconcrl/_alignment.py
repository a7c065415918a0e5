"""Offsets of batches as functions of the cell state, learned from small populations that are nearest across batches.

The same equations serve training, where all batches are aligned with each other, and queries, where a batch that was
never seen is aligned with populations that the model has kept of its training cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

_CELLS_PER_POPULATION = 8
_MAX_POPULATIONS = 300
_NEIGHBOURS = 5
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
_TOLERANCE = 1.05
_FOLDS = 5
_ROUNDS = 5
_MIN_PAIRS = 20


@dataclass(frozen=True)
class BatchOffsets:
    """Offset of batch b in a cell of scores t (its features on the axes of the state): ``level[b] + t @ slope[b]``.

    Attributes
    ----------
    level
        (B, m), in standardised features.
    slope
        (B, d, m).
    """

    level: np.ndarray
    slope: np.ndarray

    @classmethod
    def constant(cls, level: np.ndarray, n_state: int) -> BatchOffsets:
        """Offsets that are the same in every state."""
        return cls(level, np.zeros((len(level), n_state, level.shape[1])))

    def remove(self, features: np.ndarray, batch: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, m) without the offset of their batch, and the states of the cells (n, d).

        Parameters
        ----------
        features
            Standardised features (n, m), intervention taken out.
        batch
            Batch codes (n,).
        axes
            Axes of the state (m, d).
        """
        scores = features @ axes
        out = features - self.level[batch]
        for b in np.unique(batch):
            rows = batch == b
            out[rows] -= scores[rows] @ self.slope[b]
        return out, out @ axes


@dataclass(frozen=True)
class SmallPopulations:
    """Means over a handful of similar cells of one batch: features (r, m), states (r, d), batch and cells (r,)."""

    features: np.ndarray
    state: np.ndarray
    batch: np.ndarray
    n: np.ndarray


def small_populations(
    features: np.ndarray, state: np.ndarray, batch: np.ndarray, seed: int, size: int = _CELLS_PER_POPULATION
) -> SmallPopulations:
    """Cluster the cells of each batch by state into populations of about ``size`` cells, at most 300 a batch."""
    from sklearn.cluster import MiniBatchKMeans

    means, states, codes, sizes = [], [], [], []
    for b in np.unique(batch):
        rows = np.flatnonzero(batch == b)
        k = int(np.clip(len(rows) // size, 1, _MAX_POPULATIONS))
        label = MiniBatchKMeans(k, n_init=1, random_state=seed, batch_size=1024).fit_predict(state[rows])
        member = sparse.csr_matrix((np.ones(len(rows)), (label, np.arange(len(rows)))), shape=(k, len(rows)))
        n = np.asarray(member.sum(1)).ravel()
        member, n = member[n > 0], n[n > 0]
        means.append((member @ features[rows]) / n[:, None])
        states.append((member @ state[rows]) / n[:, None])
        codes.append(np.full(len(n), b))
        sizes.append(n)
    return SmallPopulations(*(np.concatenate(x) for x in (means, states, codes, sizes)))


def mutual_neighbours(a: np.ndarray, b: np.ndarray, k: int = _NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows of ``a`` (n, d) and ``b`` (r, d) that are among each other's ``k`` nearest by cosine."""
    from sklearn.neighbors import NearestNeighbors

    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    forth = NearestNeighbors(n_neighbors=min(k, len(b))).fit(b).kneighbors_graph(a)
    back = NearestNeighbors(n_neighbors=min(k, len(a))).fit(a).kneighbors_graph(b)
    both = forth.multiply(back.T).tocoo()
    return both.row, both.col


def align_batches(
    features: np.ndarray,
    batch: np.ndarray,
    level: np.ndarray,
    axes_of: Callable[[np.ndarray], np.ndarray],
    *,
    eligible: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[BatchOffsets, np.ndarray]:
    """Offsets of all batches, and the axes of the state without them.

    In each of a few rounds the features without offsets give the axes of the state, populations of each batch are
    paired with their mutual nearest neighbours in the other batches :cite:p:`Haghverdi2018`, and a ridge regression on
    the pairs gives the offsets as linear functions of the state the two share. Offsets are centred over batches, so
    what is left is the average batch.

    Parameters
    ----------
    features
        Standardised features (n, m).
    batch
        Codes (n,).
    level
        First guess of the offsets, the same in all states (B, m).
    axes_of
        Axes (m, d) of features without offsets.
    eligible
        Cells that may be paired (n,), for example control cells; default all.
    seed
        Seed of the clustering.
    """
    n_batch = len(level)
    rows = np.arange(len(features)) if eligible is None else np.flatnonzero(eligible)
    clean = features - level[batch]
    axes = axes_of(clean)
    for _ in range(_ROUNDS if n_batch > 1 else 0):
        state = clean @ axes
        found = _regress(small_populations(features[rows], state[rows], batch[rows], seed), n_batch)
        if found is None:
            break
        clean = features - _by_batch(state, batch, n_batch) @ found
        axes = axes_of(clean)
    return _of_scores(features, clean, batch, n_batch, axes), axes


def _of_scores(
    features: np.ndarray, clean: np.ndarray, batch: np.ndarray, n_batch: int, axes: np.ndarray
) -> BatchOffsets:
    # the rounds have left an affine map of each batch, whose directions are those of the axes but for their last move
    n_state, m = axes.shape[1], features.shape[1]
    scores, offset = features @ axes, features - clean
    level, slope = np.zeros((n_batch, m)), np.zeros((n_batch, n_state, m))
    for b in np.unique(batch):
        rows = batch == b
        centre, mean = scores[rows].mean(0), offset[rows].mean(0)
        t = scores[rows] - centre
        size = np.trace(t.T @ t) / n_state
        slope[b] = np.linalg.solve(t.T @ t + 1e-3 * size * np.eye(n_state), t.T @ (offset[rows] - mean))
        level[b] = mean - centre @ slope[b]
    return BatchOffsets(level, slope)


def _regress(cells: SmallPopulations, n_batch: int) -> np.ndarray | None:
    """Coefficients (B (1 + d), m) of the offsets on the states of :func:`_by_batch`, or ``None`` without pairs."""
    first, second = [], []
    for b in range(n_batch):
        mine, other = np.flatnonzero(cells.batch == b), np.flatnonzero(cells.batch != b)
        if len(mine) and len(other):
            i, j = mutual_neighbours(cells.state[mine], cells.state[other])
            first.append(mine[i])
            second.append(other[j])
    if sum(map(len, first)) < _MIN_PAIRS:
        return None
    i, j = np.concatenate(first), np.concatenate(second)
    shared = (cells.state[i] + cells.state[j]) / 2
    design = _by_batch(shared, cells.batch[i], n_batch) - _by_batch(shared, cells.batch[j], n_batch)
    # a population that is everyone's neighbour must not outvote the others
    often = np.bincount(i, minlength=len(cells.n))[i] * np.bincount(j, minlength=len(cells.n))[j]
    weight = 2 / (1 / cells.n[i] + 1 / cells.n[j]) / np.sqrt(often)
    change = cells.features[i] - cells.features[j]
    penalty = np.tile(np.r_[0.0, np.full(shared.shape[1], shared.std(0).max() ** 2)], n_batch)
    # offsets that do not follow the state must not pretend to: populations that are left out say how far they do
    fold = np.arange(len(cells.n)) % _FOLDS
    errors = [_left_out(design, change, weight, r * penalty, fold[i], fold[j]) for r in _RIDGES]
    # most of the error is the noise of the populations: the smallest ridge that is not clearly worse
    best = next(r for r, error in zip(_RIDGES, errors, strict=True) if error <= _TOLERANCE * min(errors))
    fit = _ridge(design, change, weight, best * penalty)
    fit = fit.reshape(n_batch, 1 + shared.shape[1], -1)
    return (fit - fit.mean(0)).reshape(len(design.T), -1)


def _by_batch(state: np.ndarray, batch: np.ndarray, n_batch: int) -> np.ndarray:
    terms = np.hstack([np.ones((len(state), 1)), state])
    out = np.zeros((len(state), n_batch, terms.shape[1]))
    out[np.arange(len(state)), batch] = terms
    return out.reshape(len(state), -1)


def _ridge(design: np.ndarray, change: np.ndarray, weight: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    # the common part of all levels is free, so that a trace of penalty keeps the system regular
    gram = design.T @ (weight[:, None] * design) + np.diag((penalty + 1e-6) * weight.sum())
    return np.linalg.solve(gram, design.T @ (weight[:, None] * change))


def _left_out(
    design: np.ndarray,
    change: np.ndarray,
    weight: np.ndarray,
    penalty: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> float:
    """Squared error in pairs, of which no population was in the regression."""
    error = 0.0
    for k in range(_FOLDS):
        test, train = (first == k) & (second == k), (first != k) & (second != k)
        if train.any() and test.any():
            fit = _ridge(design[train], change[train], weight[train], penalty)
            error += float(weight[test] @ np.square(change[test] - design[test] @ fit).sum(1))
    return error


def align_query(
    features: np.ndarray, axes: np.ndarray, reference: SmallPopulations, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Offset of one unseen batch from the average batch of training, level (m,) and slope (d, m).

    Parameters
    ----------
    features
        Standardised features of the cells of the batch (n, m).
    axes
        Axes of the state (m, d).
    reference
        Populations of the training cells without batch effect.
    """
    shift = features.mean(0) - reference.n @ reference.features / reference.n.sum()
    clean, none = features - shift, np.zeros(len(features), dtype=int)
    for _ in range(_ROUNDS):
        state = clean @ axes
        cells = small_populations(features, state, none, seed)
        both = SmallPopulations(
            np.vstack([cells.features, reference.features]),
            np.vstack([cells.state, reference.state]),
            np.r_[cells.batch, np.ones(len(reference.n), dtype=int)],
            np.r_[cells.n, reference.n],
        )
        found = _regress(both, 2)
        if found is None:
            break
        # centred over two batches; all of the difference is the query's
        clean = features - _by_batch(state, none, 1) @ (2 * found[: 1 + state.shape[1]])
    offsets = _of_scores(features, clean, none, 1, axes)
    return offsets.level[0], offsets.slope[0]
