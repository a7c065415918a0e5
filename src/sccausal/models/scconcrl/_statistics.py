"""What is computed once from the training cells: centres, scales, state axes and the mean changes of populations."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

logger = logging.getLogger(__name__)

_MIN_CELLS = 5
_MAX_FOR_AXES = 5000


@dataclass
class Populations:
    """Mean changes under intervention, one row per population (stratum x batch) and intervention.

    Attributes
    ----------
    dose
        Doses (R, T).
    state
        Mean state of the population's control cells (R, d).
    control
        Their mean features (R, m).
    change
        Observed mean change of the features (R, m).
    variance
        Sampling variance of the change (R, m).
    weight
        Effective number of cells behind the change (R,).
    stratum
        Code of the stratum (R,).
    treated
        Code of the treated group (R,).
    """

    dose: np.ndarray
    state: np.ndarray
    control: np.ndarray
    change: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    stratum: np.ndarray
    treated: np.ndarray

    def __len__(self) -> int:
        return len(self.weight)


@dataclass
class TrainingStatistics:
    """Moments and axes of the training cells in feature space (log-normalised expression).

    Attributes
    ----------
    mean, sd
        Mean and standard deviation of each gene (m,).
    scale
        What standardises a gene: its standard deviation and a floor (m,).
    batch_effect
        Mean offset of each batch (B, m), weighted mean zero.
    target_effect
        Mean change per unit of dose of each target (T, m).
    axes
        Principal axes of standardised, domain-centred features (m, d), divided by the scale of the first score.
    populations
        Mean changes, or ``None`` without interventions or without control cells.
    unmatched
        Populations left out because they had too few control cells.
    """

    mean: np.ndarray
    sd: np.ndarray
    scale: np.ndarray
    batch_effect: np.ndarray
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


@dataclass
class _Groups:
    # cells that share stratum, batch and intervention
    stratum: np.ndarray
    batch: np.ndarray
    dose: np.ndarray
    n: np.ndarray
    mean: np.ndarray
    var: np.ndarray


@dataclass
class _Domains:
    mean: np.ndarray
    scale: np.ndarray
    batch_effect: np.ndarray
    target_effect: np.ndarray

    def centred(self, features: np.ndarray, batch: np.ndarray, dose: np.ndarray) -> np.ndarray:
        """Standardised features without the offset of batch and intervention."""
        return (features - self.mean - self.batch_effect[batch] - dose @ self.target_effect) / self.scale


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
    batch_effect, target_effect = _domain_effects(groups, n_batch)
    domains = _Domains(mean, scale, batch_effect, target_effect)
    axes, correlation, spread, n_used = _axes(X, batch, dose, groups, domains, n_state, log_counts, seed)
    graph = (correlation, spread, n_used)
    if not dose.shape[1]:
        return TrainingStatistics(mean, sd, scale, batch_effect, target_effect, axes, None, [], rate, *graph)
    if stratum is None:
        state = _states(X, batch, dose, domains, axes, log_counts)
        first = _cluster(state, seed)
        groups = _group(X, first, batch, dose, intervention, log_counts)
        if log_counts:
            natural = _group(X, first, batch, dose, intervention, log_counts, natural=True)
    populations, unmatched = _populations(groups, domains, axes)
    if populations is not None and log_counts:
        populations = _on_log_of_means(populations, groups, natural)
    if populations is not None:
        populations = _over_batches(populations, groups)
    return TrainingStatistics(mean, sd, scale, batch_effect, target_effect, axes, populations, unmatched, rate, *graph)


def _group(
    X: np.ndarray | sparse.spmatrix,
    stratum: np.ndarray,
    batch: np.ndarray,
    dose: np.ndarray,
    intervention: np.ndarray,
    log_counts: bool,
    natural: bool = False,
) -> _Groups:
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
    return _Groups(stratum[first], np.asarray(batch)[first], np.asarray(dose)[first], n, mean, var)


def _moments(groups: _Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    share = (groups.n / groups.n.sum())[:, None]
    mean = (share * groups.mean).sum(0)
    var = (share * (groups.var + (groups.mean - mean) ** 2)).sum(0)
    # a gene that hardly varies must not be blown up by standardising
    sd = np.sqrt(np.maximum(var, 0))
    return mean, sd, np.maximum(sd, 1e-2) + 0.05 * sd.max()


def _domain_effects(groups: _Groups, n_batch: int) -> tuple[np.ndarray, np.ndarray]:
    # weighted least squares of group means on batch, dose and stratum: composition then counts for neither domain
    strata, stratum = np.unique(groups.stratum, return_inverse=True)
    design = np.hstack([np.eye(n_batch)[groups.batch], groups.dose, np.eye(len(strata))[stratum]])
    weight = groups.n[:, None]
    ridge = np.diag(np.r_[np.full(n_batch, 1.0), np.full(groups.dose.shape[1], 0.1), np.full(len(strata), 1e-3)])
    centre = (weight * groups.mean).sum(0) / weight.sum()
    fit = np.linalg.solve(design.T @ (weight * design) + ridge, design.T @ (weight * (groups.mean - centre)))
    share = np.bincount(groups.batch, weights=groups.n, minlength=n_batch) / groups.n.sum()
    return fit[:n_batch] - share @ fit[:n_batch], fit[n_batch : n_batch + groups.dose.shape[1]]


def _axes(
    X: np.ndarray | sparse.spmatrix,
    batch: np.ndarray,
    dose: np.ndarray,
    groups: _Groups,
    domains: _Domains,
    n_state: int,
    log_counts: bool,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Axes of the state (first those between strata, then the main ones within), correlations and their spread."""
    from sklearn.utils.extmath import randomized_svd

    rows = np.sort(np.random.default_rng(seed).permutation(X.shape[0])[:_MAX_FOR_AXES])
    features = np.vstack(list(feature_chunks(X[rows], log_counts)))
    features = domains.centred(features, batch[rows], dose[rows])
    features -= features.mean(0)
    sd = np.maximum(features.std(0), 1e-6)
    correlation = (features.T @ features) / len(features) / np.outer(sd, sd)
    between = _between(groups, domains, n_state)
    features -= (features @ between.T) @ between
    d = min(n_state - len(between), *features.shape)
    _, values, within = randomized_svd(features, n_components=max(d, 1), random_state=seed)
    axes = np.vstack([between, within[:d]])
    size = max(values[0] / np.sqrt(len(rows)), 1e-8)
    out = np.zeros((X.shape[1], n_state))
    out[:, : len(axes)] = axes.T / size
    return out, correlation.astype(np.float64), sd, len(rows)


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


def _between(groups: _Groups, domains: _Domains, n_state: int) -> np.ndarray:
    strata, stratum = np.unique(groups.stratum, return_inverse=True)
    if len(strata) < 2:
        return np.zeros((0, groups.mean.shape[1]))
    member = np.eye(len(strata))[stratum] * groups.n[:, None]
    centred = domains.centred(groups.mean, groups.batch, groups.dose)
    means = (member.T @ centred) / member.sum(0)[:, None]
    _, values, axes = np.linalg.svd(means - means.mean(0), full_matrices=False)
    return axes[: min(int((values > 1e-6 * values[0]).sum()), n_state - 1)]


def _states(
    X: np.ndarray | sparse.spmatrix,
    batch: np.ndarray,
    dose: np.ndarray,
    domains: _Domains,
    axes: np.ndarray,
    log_counts: bool,
) -> np.ndarray:
    out, start = np.empty((X.shape[0], axes.shape[1])), 0
    for block in feature_chunks(X, log_counts):
        rows = slice(start, start + len(block))
        out[rows] = domains.centred(block, batch[rows], dose[rows]) @ axes
        start += len(block)
    return out


def _cluster(state: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    n_clusters = int(np.clip(len(state) // 100, 1, 12))
    labels = MiniBatchKMeans(n_clusters, random_state=seed, n_init=3).fit_predict(state)
    return np.asarray(labels, dtype=np.int64)


def _populations(
    groups: _Groups, domains: _Domains, axes: np.ndarray
) -> tuple[Populations | None, list[tuple[int, int]]]:
    is_control: np.ndarray = np.abs(groups.dose).sum(axis=1) == 0
    control = {(s, b): i for i, (s, b) in enumerate(zip(groups.stratum, groups.batch, strict=True)) if is_control[i]}
    # the variance of a gene in a handful of cells is drawn towards its variance everywhere
    pooled = (groups.n[:, None] * groups.var).sum(0) / groups.n.sum()
    var = (groups.n[:, None] * groups.var + 10 * pooled) / (groups.n[:, None] + 10) + 1e-3
    treated, matched, unmatched = [], [], []
    for i in np.flatnonzero(~is_control):
        key = (groups.stratum[i], groups.batch[i])
        j = control.get(key)
        if groups.n[i] < _MIN_CELLS:
            continue
        if j is None or groups.n[j] < _MIN_CELLS:
            unmatched.append((int(key[0]), int(key[1])))
            continue
        treated.append(i)
        matched.append(j)
    if not treated:
        return None, unmatched
    n1, n0 = groups.n[treated], groups.n[matched]
    centred = domains.centred(groups.mean[matched], groups.batch[matched], groups.dose[matched])
    populations = Populations(
        dose=groups.dose[treated],
        state=centred @ axes,
        control=groups.mean[matched],
        change=groups.mean[treated] - groups.mean[matched],
        variance=var[treated] / n1[:, None] + var[matched] / n0[:, None],
        weight=n1 * n0 / (n1 + n0),
        stratum=np.asarray(matched),
        treated=np.asarray(treated),
    )
    return populations, unmatched


def _over_batches(rows: Populations, groups: _Groups) -> Populations:
    """Average the changes of one stratum under one intervention over its batches.

    They are differences within a batch, so no batch effect is left in them; kept apart, the small differences in state
    between batches of one stratum would stand beside large differences in noise, and slopes would be fitted to those.
    """
    keys = np.column_stack([groups.stratum[rows.treated], rows.dose])
    _, first, code = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    share = np.zeros((len(first), len(rows)))
    share[np.ravel(code), np.arange(len(rows))] = rows.weight
    weight = share.sum(1)
    share /= weight[:, None]
    return Populations(
        dose=rows.dose[first],
        state=share @ rows.state,
        control=share @ rows.control,
        change=share @ rows.change,
        variance=share**2 @ rows.variance,
        weight=weight,
        stratum=groups.stratum[rows.treated[first]],
        treated=rows.treated[first],
    )


def _on_log_of_means(rows: Populations, groups: _Groups, natural: _Groups) -> Populations:
    # a count model predicts the mean of counts; log1p of the mean is what its profile can be compared with
    level = np.log1p(natural.mean)
    spread = (natural.var + 1e-3) / (1 + natural.mean) ** 2
    one, zero = rows.treated, rows.stratum
    change = level[one] - level[zero]
    variance = spread[one] / groups.n[one, None] + spread[zero] / groups.n[zero, None]
    return replace(rows, change=change, variance=variance)
