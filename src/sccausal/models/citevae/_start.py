"""What training starts from: centres, scales, linear axes of both blocks, and features of the targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sccausal.models.citevae._axes import components

_MOST_CELLS = 6000


class Start(NamedTuple):
    """Statistics of training cells.

    Parameters
    ----------
    mean, scale
        Centre and standard deviation of the features (m,).
    responsive, invariant
        Axes of the standardised features (m, d_s) and (m, d_c), scaled so that scores have variance 1.
    loadings
        Least squares loadings (m, d_c + d_s) of the standardised features on the scores of both blocks.
    log_rate
        Log of the mean share per 10 000 counts (m,); None for values that are no counts.
    """

    mean: np.ndarray
    scale: np.ndarray
    responsive: np.ndarray
    invariant: np.ndarray
    loadings: np.ndarray
    log_rate: np.ndarray | None


def training_start(
    X: Any, dose: np.ndarray, time: np.ndarray, n_responsive: int, n_invariant: int, counts: bool, seed: int
) -> Start:
    """Read the start off the training cells.

    Parameters
    ----------
    X
        Expression (n, m).
    dose, time
        Doses (n, T) and times (n,) of the cells.
    n_responsive, n_invariant
        Dimensions of the blocks.
    counts
        Whether ``X`` holds counts, which are log-normalised first.
    seed
        Seed of the cells that are drawn if there are many.

    Returns
    -------
    The responsive axes are those along which interventions move the mean of cells of equal time; the invariant ones
    are the principal axes of what is left.
    """
    if X.shape[0] > _MOST_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(X.shape[0], _MOST_CELLS, replace=False))
        X, dose, time = X[rows], dose[rows], time[rows]
    values = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float64)
    log_rate = None
    if counts:
        values = values * (1e4 / np.maximum(values.sum(1, keepdims=True), 1e-4))
        log_rate = np.log(values.mean(0) + 1e-4)
        values = np.log1p(values)
    mean, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    z = (values - mean) / scale
    axes = _moved_axes(z, dose, time)[:, :n_responsive]
    rest = z - (z @ axes) @ axes.T
    more = np.linalg.svd(rest - rest.mean(0), full_matrices=False)[2].T
    lacking = n_responsive - axes.shape[1]
    more = _padded(more, lacking + n_invariant, z.shape[1], seed)
    # directions that no intervention was seen to move come last among the responsive ones
    responsive, invariant = np.column_stack([axes, more[:, n_invariant : n_invariant + lacking]]), more[:, :n_invariant]
    if axes.shape[1]:
        responsive[:, : axes.shape[1]], invariant = components(z, axes, invariant, dose, time)
    responsive, invariant = _scaled(z, responsive), _scaled(z, invariant)
    loadings = np.linalg.lstsq(z @ np.column_stack([invariant, responsive]), z, rcond=1e-4)[0].T
    return Start(mean, scale, responsive, invariant, loadings, log_rate)


def _moved_axes(z: np.ndarray, dose: np.ndarray, time: np.ndarray) -> np.ndarray:
    _, code = np.unique(np.column_stack([dose, time]), axis=0, return_inverse=True)
    code = code.ravel()
    count = np.bincount(code)
    means = np.stack([np.bincount(code, weights=column) for column in z.T], 1) / count[:, None]
    when = np.array([time[np.flatnonzero(code == k)[0]] for k in range(len(count))])
    for moment in np.unique(when):
        at = when == moment
        means[at] -= np.average(means[at], axis=0, weights=count[at])
    _, size, axes = np.linalg.svd(means * np.sqrt(count)[:, None], full_matrices=False)
    return axes[size > 1e-6 * max(size[0], 1e-12)].T


def _padded(axes: np.ndarray, n: int, m: int, seed: int) -> np.ndarray:
    if axes.shape[1] >= n:
        return axes
    extra = np.random.default_rng(seed).standard_normal((m, n - axes.shape[1])) / np.sqrt(m)
    return np.column_stack([axes, extra])


def _scaled(z: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return axes / (z @ axes).std(0).clip(1e-3)


def gene_loadings(control: np.ndarray, own: np.ndarray, n: int) -> np.ndarray:
    """Coexpression features of targets (T, n): loadings of their own gene on principal axes of control cells (c, m).

    A target whose gene is not measured (``own`` -1) gets zeros.
    """
    centred = control - control.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2].T[:, :n]
    axes = np.pad(axes, ((0, 0), (0, n - axes.shape[1])))
    # the sign of an axis is arbitrary; the largest loading is made positive
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(n)] + 1e-12)
    return np.where((own >= 0)[:, None], axes[own], 0.0)


def following(control: np.ndarray, own: np.ndarray, rank: int = 20) -> np.ndarray:
    """Change of all genes per unit of each target's own gene among control cells (T, m), its own entry zero.

    Covariances come from the first ``rank`` principal axes, which leaves out the noise of single genes.
    """
    centred = control - control.mean(0)
    total = centred.var(0)
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    loading = axes[:rank].T * size[:rank] / np.sqrt(max(len(control), 1))
    out = np.zeros((len(own), control.shape[1]))
    for j in np.flatnonzero(own >= 0):
        out[j] = loading @ loading[own[j]] / max(total[own[j]], 1e-9)
        out[j, own[j]] = 0.0
    return out
