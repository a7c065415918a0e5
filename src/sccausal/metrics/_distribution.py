"""Distances between two clouds of cells, blockwise: memory grows with the cells, not with their square."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sccausal._errors import InputDataError

_BLOCK = 1024  # rows per block: 8 MB of float64 distances


def energy_distance(x: np.ndarray, y: np.ndarray, *, unbiased: bool = True) -> float:
    """Energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` with Euclidean distances.

    Parameters
    ----------
    x, y
        Cells (n, genes) and (m, genes) in one unit.
    unbiased
        U-statistic: a cell is not paired with itself, so two samples of one distribution score 0 on average (a single
        value may be slightly negative). ``False`` gives the V-statistic, which pertpy reports.

    Returns
    -------
    Distance in the unit of the data; 0 for equal distributions, lower is better. Source: :cite:p:`Szekely2013`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 5))  # cells x genes
    >>> scc.metrics.energy_distance(x, y) < scc.metrics.energy_distance(x + 1.0, y)
    True
    """
    x, y = _clouds(x, y)
    cross = _mean_of(x, y, np.sqrt)
    return 2 * cross - _within(x, np.sqrt, 0.0, unbiased) - _within(y, np.sqrt, 0.0, unbiased)


def mmd2(
    x: np.ndarray,
    y: np.ndarray,
    *,
    scales: np.ndarray | None = None,
    unbiased: bool = True,
) -> float:
    """Squared maximum mean discrepancy with an RBF kernel averaged over length scales.

    Parameters
    ----------
    x, y
        Predicted (n, genes) and true cells (m, genes).
    scales
        Length scales l of ``exp(-d^2 / (2 l^2))``; default :func:`length_scales` of ``y``, so that all predictions of
        one truth are measured alike.
    unbiased
        U-statistic, as in :func:`energy_distance`.

    Returns
    -------
    Value in about 0..2, lower is better. Source: :cite:p:`Gretton2012`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 5))  # cells x genes
    >>> scc.metrics.mmd2(x, y) < scc.metrics.mmd2(x + 1.0, y)
    True
    """
    x, y = _clouds(x, y)
    scales = length_scales(y) if scales is None else np.asarray(scales, dtype=np.float64)
    if (scales <= 0).any():
        raise InputDataError("Length scales must be positive.")
    gammas = 0.5 / scales**2

    def kernel(d2: np.ndarray) -> np.ndarray:
        total = np.zeros_like(d2)
        for g in gammas:
            total += np.exp(-g * d2)
        return total / len(gammas)

    return _within(x, kernel, 1.0, unbiased) + _within(y, kernel, 1.0, unbiased) - 2 * _mean_of(x, y, kernel)


def length_scales(y: np.ndarray, n: int = 10, seed: int = 0) -> np.ndarray:
    """``n`` length scales from a tenth to ten times the median distance between cells of ``y`` (at most 500 used).

    Parameters
    ----------
    y
        Cells (m, genes).
    n
        Number of length scales.
    seed
        Seed of the cells that are used.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scales = scc.metrics.length_scales(np.random.default_rng(0).normal(size=(100, 5)), n=3)
    >>> (scales / scales[1]).round(2).tolist()
    [0.1, 1.0, 10.0]
    """
    y = np.asarray(y, dtype=np.float64)
    if len(y) > 500:
        y = y[np.random.default_rng(seed).choice(len(y), 500, replace=False)]
    d2 = _squared(y, y)[np.triu_indices(len(y), k=1)]
    middle = float(np.sqrt(np.median(d2))) if d2.size else 1.0
    return (middle if middle > 0 else 1.0) * np.logspace(-1, 1, n)


def wasserstein_1d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """First Wasserstein distance of each gene's distribution (genes,), in the unit of the data; lower is better.

    Parameters
    ----------
    x, y
        Cells (n, genes) and (m, genes). Equal to :func:`scipy.stats.wasserstein_distance` per column, for all genes at
        once.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> cells = np.random.default_rng(0).normal(size=(100, 3))
    >>> scc.metrics.wasserstein_1d(cells + [0, 1, 2], cells).round(2).tolist()
    [0.0, 1.0, 2.0]
    """
    x, y = _clouds(x, y, centre=False)
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    if len(x) == len(y):
        return np.abs(x - y).mean(axis=0)
    # both quantile functions are constant between the joint breakpoints
    ends = np.union1d(np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y))
    width = np.diff(ends, prepend=0.0)
    middle = ends - width / 2
    i = np.minimum((middle * len(x)).astype(int), len(x) - 1)
    j = np.minimum((middle * len(y)).astype(int), len(y) - 1)
    out = np.zeros(x.shape[1])
    for block in _blocks(len(width)):
        out += width[block] @ np.abs(x[i[block]] - y[j[block]])
    return out


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, *, n_slices: int = 100, seed: int = 0) -> float:
    """Mean first Wasserstein distance over random directions, times ``sqrt(genes)``.

    Parameters
    ----------
    x, y
        Cells (n, genes) and (m, genes).
    n_slices
        Random directions. The factor makes the value comparable with per-gene distances whatever the number of genes.
    seed
        Seed of the directions.

    Returns
    -------
    Distance in the unit of the data, lower is better; a fast stand-in for optimal transport.
    Source: :cite:p:`Bonneel2015`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> cells = np.random.default_rng(0).normal(size=(100, 5))
    >>> bool(scc.metrics.sliced_wasserstein(cells + 1.0, cells) > 0.5)
    True
    """
    x, y = _clouds(x, y)
    directions = np.random.default_rng(seed).standard_normal((x.shape[1], n_slices))
    directions /= np.linalg.norm(directions, axis=0)
    return float(wasserstein_1d(x @ directions, y @ directions).mean() * np.sqrt(x.shape[1]))


def variance_ratio(x: np.ndarray, y: np.ndarray) -> float:
    """Total variance of predicted over that of true cells; 1 is right, near 0 is a collapsed prediction.

    Parameters
    ----------
    x, y
        Predicted (n, genes) and true cells (m, genes). NaN with fewer than two cells on a side.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> cells = np.random.default_rng(0).normal(size=(100, 5))
    >>> round(scc.metrics.variance_ratio(0.5 * cells, cells), 2)
    0.25
    """
    x, y = _clouds(x, y, centre=False)
    if min(len(x), len(y)) < 2:
        return float("nan")
    spread = float(y.var(axis=0, ddof=1).sum())
    return float(x.var(axis=0, ddof=1).sum() / spread) if spread > 0 else float("nan")


def _clouds(x: np.ndarray, y: np.ndarray, centre: bool = True) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise InputDataError(f"Two sets of cells over the same genes are needed; got {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputDataError("Cells must be finite; found NaN or infinity.")
    if not centre:
        return x, y
    # distances do not change, but |x|^2 + |y|^2 - 2xy loses fewer digits near the origin
    origin = y.mean(axis=0)
    return x - origin, y - origin


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    d2 = x @ y.T
    d2 *= -2.0
    d2 += np.einsum("ij,ij->i", x, x)[:, None]
    d2 += np.einsum("ij,ij->i", y, y)[None, :]
    return np.maximum(d2, 0.0, out=d2)


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, _BLOCK):
        yield slice(start, min(start + _BLOCK, n))


def _mean_of(x: np.ndarray, y: np.ndarray, f: Callable[[np.ndarray], np.ndarray]) -> float:
    total = sum(float(f(_squared(x[i], y[j])).sum()) for i in _blocks(len(x)) for j in _blocks(len(y)))
    return total / (len(x) * len(y))


def _within(x: np.ndarray, f: Callable[[np.ndarray], np.ndarray], diagonal: float, unbiased: bool) -> float:
    """Mean of ``f(d^2)`` over pairs of one cloud; ``diagonal`` is ``f(0)``, put in exactly."""
    n, total = len(x), 0.0
    for i in _blocks(n):
        for j in _blocks(n):
            if j.start < i.start:
                continue
            values = f(_squared(x[i], x[j]))
            if i.start == j.start:
                np.fill_diagonal(values, 0.0)
                total += float(values.sum())
            else:
                total += 2 * float(values.sum())
    if unbiased:
        return total / (n * (n - 1)) if n > 1 else diagonal
    return total / n**2 + diagonal / n
