"""What is computed once from the training cells: centres, scales, state axes and the mean changes of populations."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from sccausal.models.scconcrl._alignment import BatchOffsets, SmallPopulations, align_batches, small_populations
from sccausal.models.scconcrl._populations import Groups, Populations, changes_of, on_log_of_means, over_batches

logger = logging.getLogger(__name__)

_MAX_FOR_AXES = 5000
_MIN_CONTROLS = 30
N_REFERENCE = 256


@dataclass
class TrainingStatistics:
    """Moments and axes of the training cells in feature space (log-normalised expression).

    Attributes
    ----------
    mean, sd
        Mean and standard deviation of each gene (m,).
    scale
        What standardises a gene: its standard deviation and a floor (m,).
    offsets
        Offset of each batch, in standardised features.
    target_effect
        Mean change per unit of dose of each target (T, m).
    axes
        Principal axes of standardised, domain-centred features (m, d), divided by the scale of the first score.
    populations
        Mean changes, or ``None`` without interventions or without control cells.
    unmatched
        Populations left out because they had too few control cells.
    reference
        Small populations of training cells without batch and intervention, at most ``N_REFERENCE``.
    state_sd
        Standard deviation of each axis of the state (d,).
    """

    mean: np.ndarray
    sd: np.ndarray
    scale: np.ndarray
    offsets: BatchOffsets
    target_effect: np.ndarray
    axes: np.ndarray
    populations: Populations | None
    unmatched: list[tuple[int, int]]
    rate: np.ndarray
    """Mean expression of each gene on the natural scale, in units of 1e-4 of the cell (counts only) (m,)."""
    correlation: np.ndarray
    """Correlations of standardised, domain-centred features (m, m)."""
    spread: np.ndarray
    """Their standard deviations (m,)."""
    n_used: int
    """Cells behind the correlations."""
    reference: SmallPopulations
    state_sd: np.ndarray


@dataclass
class _Domains:
    mean: np.ndarray
    scale: np.ndarray
    target_effect: np.ndarray
    offsets: BatchOffsets
    axes: np.ndarray

    def clean(self, features: np.ndarray, batch: np.ndarray, dose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Standardised features without batch and intervention, and their states."""
        return self.offsets.remove(self.without_dose(features, dose), batch, self.axes)

    def without_dose(self, features: np.ndarray, dose: np.ndarray) -> np.ndarray:
        return (features - self.mean - dose @ self.target_effect) / self.scale


def feature_chunks(X: np.ndarray | sparse.spmatrix, log_counts: bool, size: int = 4096) -> Iterable[np.ndarray]:
    """Dense features of consecutive cells: the matrix itself, or log1p of counts at 1e4 per cell."""
    for start in range(0, X.shape[0], size):
        part: Any = X[start : start + size]
        block = (part.toarray() if sparse.issparse(part) else np.asarray(part)).astype(np.float32)
        if log_counts:
            block = np.log1p(1e4 * block / np.maximum(block.sum(1, keepdims=True), 1e-8))
        yield block


def training_statistics(
    X: np.ndarray | sparse.spmatrix,
    batch: np.ndarray,
    dose: np.ndarray,
    stratum: np.ndarray | None,
    *,
    n_batch: int,
    n_state: int,
    log_counts: bool,
    by_state: bool = True,
    seed: int = 0,
) -> TrainingStatistics:
    """Compute the statistics of the training cells.

    Parameters
    ----------
    X
        Expression of the training cells (n, m), dense or CSR.
    batch
        Batch codes (n,).
    dose
        Doses (n, T); T may be 0.
    stratum
        Codes of cell types (n,), or ``None``: control-like states are then clustered.
    n_batch
        Number of batches B.
    n_state
        Number of axes d.
    log_counts
        Whether ``X`` holds counts, of which the features are the logarithms.
    by_state
        Whether the offset of a batch may depend on the state of the cell.
    seed
        Seed of the sub-sample and of the clustering.
    """
    n, m = X.shape
    _, intervention = np.unique(dose, axis=0, return_inverse=True)
    intervention = np.asarray(intervention).ravel()
    first = np.zeros(n, dtype=np.int64) if stratum is None else np.asarray(stratum, dtype=np.int64)
    groups = _group(X, first, batch, dose, intervention, log_counts)
    natural = _group(X, first, batch, dose, intervention, log_counts, natural=True) if log_counts else groups
    rate = (natural.n @ natural.mean) / natural.n.sum()
    mean, sd, scale = _moments(groups)
    level, target_effect = _domain_effects(groups, n_batch)
    flat = BatchOffsets.constant((level - level.mean(0)) / scale, n_state)
    domains = _Domains(mean, scale, target_effect, flat, np.zeros((m, n_state)))
    used = np.sort(np.random.default_rng(seed).permutation(n)[:_MAX_FOR_AXES])
    features = domains.without_dose(np.vstack(list(feature_chunks(X[used], log_counts))), dose[used])
    _align(domains, features, batch[used], dose[used], first[used], by_state, seed)
    features, state = domains.offsets.remove(features, batch[used], domains.axes)
    reference = small_populations(
        features, state, np.zeros(len(used), dtype=int), seed, max(8, -(-len(used) // N_REFERENCE))
    )
    state_sd = state.std(0)
    features -= features.mean(0)
    spread = np.maximum(features.std(0), 1e-6)
    correlation = (features.T @ features) / len(features) / np.outer(spread, spread)
    shared = (correlation, spread, len(used), reference, state_sd)
    moments = (mean, sd, scale, domains.offsets, target_effect, domains.axes)
    if not dose.shape[1]:
        return TrainingStatistics(*moments, None, [], rate, *shared)
    if stratum is None:
        first = _cluster(_states(X, batch, dose, domains, log_counts), seed)
        groups = _group(X, first, batch, dose, intervention, log_counts)
        if log_counts:
            natural = _group(X, first, batch, dose, intervention, log_counts, natural=True)
    populations, unmatched = changes_of(groups, lambda x, b, d: domains.clean(x, b, d)[1])
    if populations is not None and log_counts:
        populations = on_log_of_means(populations, groups, natural)
    if populations is not None:
        populations = over_batches(populations, groups)
    return TrainingStatistics(*moments, populations, unmatched, rate, *shared)


def _align(
    domains: _Domains,
    features: np.ndarray,
    batch: np.ndarray,
    dose: np.ndarray,
    stratum: np.ndarray,
    by_state: bool,
    seed: int,
) -> None:
    """Set the axes of the state, and the offsets of the batches where these depend on it."""
    n_batch, n_state = domains.offsets.slope.shape[:2]

    def axes_of(clean: np.ndarray) -> np.ndarray:
        return _axes(clean, stratum, n_state, seed)

    flat = features - domains.offsets.level[batch]
    if not by_state or n_batch < 2:
        domains.axes = axes_of(flat)
        return
    control = np.asarray(dose).any(axis=1) == 0
    enough = int(np.bincount(batch[control], minlength=n_batch)[np.unique(batch)].min()) >= _MIN_CONTROLS
    # responses may differ between batches by composition: control cells compare like with like
    domains.offsets, domains.axes = align_batches(
        features, batch, domains.offsets.level, axes_of, eligible=control if enough else None, seed=seed
    )


def _group(
    X: np.ndarray | sparse.spmatrix,
    stratum: np.ndarray,
    batch: np.ndarray,
    dose: np.ndarray,
    intervention: np.ndarray,
    log_counts: bool,
    natural: bool = False,
) -> Groups:
    keys = np.column_stack([stratum, batch, intervention])
    _, first, code = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    code = np.asarray(code).ravel()
    n_groups, m = len(first), X.shape[1]
    total, square = np.zeros((n_groups, m)), np.zeros((n_groups, m))
    start = 0
    for block in feature_chunks(X, log_counts):
        here = code[start : start + len(block)]
        block = np.expm1(block) if natural else block
        member = sparse.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), shape=(n_groups, len(here)))
        total += member @ block
        square += member @ block**2
        start += len(block)
    n = np.bincount(code, minlength=n_groups).astype(float)
    mean = total / n[:, None]
    var = np.maximum(square / n[:, None] - mean**2, 0.0)
    return Groups(stratum[first], np.asarray(batch)[first], np.asarray(dose)[first], n, mean, var)


def _moments(groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    share = (groups.n / groups.n.sum())[:, None]
    mean = (share * groups.mean).sum(0)
    var = (share * (groups.var + (groups.mean - mean) ** 2)).sum(0)
    # a gene that hardly varies must not be blown up by standardising
    sd = np.sqrt(np.maximum(var, 0))
    return mean, sd, np.maximum(sd, 1e-2) + 0.05 * sd.max()


def _domain_effects(groups: Groups, n_batch: int) -> tuple[np.ndarray, np.ndarray]:
    # weighted least squares of group means on batch, dose and stratum: composition then counts for neither domain
    strata, stratum = np.unique(groups.stratum, return_inverse=True)
    design = np.hstack([np.eye(n_batch)[groups.batch], groups.dose, np.eye(len(strata))[stratum]])
    weight = groups.n[:, None]
    ridge = np.diag(np.r_[np.full(n_batch, 1.0), np.full(groups.dose.shape[1], 0.1), np.full(len(strata), 1e-3)])
    centre = (weight * groups.mean).sum(0) / weight.sum()
    fit = np.linalg.solve(design.T @ (weight * design) + ridge, design.T @ (weight * (groups.mean - centre)))
    share = np.bincount(groups.batch, weights=groups.n, minlength=n_batch) / groups.n.sum()
    return fit[:n_batch] - share @ fit[:n_batch], fit[n_batch : n_batch + groups.dose.shape[1]]


def _axes(features: np.ndarray, stratum: np.ndarray, n_state: int, seed: int) -> np.ndarray:
    """Axes of the state (m, d): first those between strata, then the main ones within."""
    from sklearn.utils.extmath import randomized_svd

    features = features - features.mean(0)
    between = _between(features, stratum, n_state)
    features -= (features @ between.T) @ between
    d = min(n_state - len(between), *features.shape)
    _, values, within = randomized_svd(features, n_components=max(d, 1), random_state=seed)
    axes = np.vstack([between, within[:d]])
    size = max(values[0] / np.sqrt(len(features)), 1e-8)
    out = np.zeros((features.shape[1], n_state))
    out[:, : len(axes)] = axes.T / size
    return out


def shrunken_correlation(correlation: np.ndarray, n_cells: int) -> np.ndarray:
    """Correlations (m, m) drawn to the identity by as much as their own noise asks for :cite:p:`Schafer2005`."""
    off = correlation - np.diag(np.diag(correlation))
    noise = ((1 - off**2) ** 2).sum() - len(off)
    share = float(np.clip(noise / max(n_cells - 1, 1) / max((off**2).sum(), 1e-12), 0.01, 0.99))
    shrunk = (1 - share) * off
    np.fill_diagonal(shrunk, 1.0)
    return shrunk


def ridge_graph(correlation: np.ndarray, regulators: np.ndarray, n_cells: int) -> np.ndarray:
    """Regression of every gene on all regulators but itself, by one inverse (T, m).

    The coefficients follow from the precision of the regulators, after :func:`shrunken_correlation`.

    Parameters
    ----------
    correlation
        Correlations of the genes (m, m).
    regulators
        Positions of the regulators (T,).
    n_cells
        Cells behind the correlations.
    """
    shrunk = shrunken_correlation(correlation, n_cells)
    np.fill_diagonal(shrunk, 0.0)
    block = shrunk[np.ix_(regulators, regulators)] + np.eye(len(regulators))
    precision = np.linalg.inv(block)
    weight = precision @ shrunk[regulators]
    # a regulator is regressed on the others: its own column of the precision says how
    weight[:, regulators] = -precision / np.diag(precision)
    weight[np.arange(len(regulators)), regulators] = 0.0
    return weight


def _between(features: np.ndarray, stratum: np.ndarray, n_state: int) -> np.ndarray:
    strata, code, n = np.unique(stratum, return_inverse=True, return_counts=True)
    if len(strata) < 2:
        return np.zeros((0, features.shape[1]))
    member = sparse.csr_matrix((1.0 / n[code], (code, np.arange(len(code)))), shape=(len(strata), len(code)))
    means = member @ features
    _, values, axes = np.linalg.svd(means - means.mean(0), full_matrices=False)
    return axes[: min(int((values > 1e-6 * values[0]).sum()), n_state - 1)]


def _states(
    X: np.ndarray | sparse.spmatrix, batch: np.ndarray, dose: np.ndarray, domains: _Domains, log_counts: bool
) -> np.ndarray:
    out, start = np.empty((X.shape[0], domains.axes.shape[1])), 0
    for block in feature_chunks(X, log_counts):
        rows = slice(start, start + len(block))
        out[rows] = domains.clean(block, batch[rows], dose[rows])[1]
        start += len(block)
    return out


def _cluster(state: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    n_clusters = int(np.clip(len(state) // 100, 1, 12))
    labels = MiniBatchKMeans(n_clusters, random_state=seed, n_init=3).fit_predict(state)
    return np.asarray(labels, dtype=np.int64)
