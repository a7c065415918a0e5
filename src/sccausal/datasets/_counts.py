"""Counts whose randomness is kept: one cell gives the same count at the same rate, whatever was done to it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

BLOCK = 512
_SEARCH_UP_TO = 30.0
# nearer to 1 the sum of terms no longer resolves the quantile in double precision
_HIGHEST_QUANTILE = 1.0 - 1e-12


def stream(seed: int, name: str, *index: int) -> np.random.Generator:
    """Random generator that depends on the seed, a name and indices only."""
    return np.random.default_rng([int(seed), zlib.crc32(name.encode()), *index])


@dataclass(frozen=True, eq=False)
class CellNoise:
    """Exogenous noise of a set of cells, each array genes x cells.

    Parameters
    ----------
    state
        Standard normal, moves the log-rates of transcription.
    burst
        Gamma with mean 1 and variance ``dispersion``.
    count
        Uniform quantile of the Poisson count.
    loss
        Uniform, decides on dropout; None without dropout.
    """

    state: np.ndarray
    burst: np.ndarray
    count: np.ndarray
    loss: np.ndarray | None

    def at(self, mask: np.ndarray) -> CellNoise:
        """The same at chosen entries, flat."""
        loss = None if self.loss is None else self.loss[mask]
        return CellNoise(self.state[mask], self.burst[mask], self.count[mask], loss)


def draw_noise(seed: int, block: int, n_genes: int, dispersion: np.ndarray, dropout: bool) -> CellNoise:
    """Noise of the cells ``block * BLOCK`` to ``(block + 1) * BLOCK - 1``.

    Noise is drawn per block of cells from its own stream, so that any cell can be drawn again without the others.
    """
    shape = (n_genes, BLOCK)
    state = stream(seed, "state", block).standard_normal(shape)
    inverse = 1.0 / dispersion[:, None]
    burst = stream(seed, "burst", block).standard_gamma(np.broadcast_to(inverse, shape)) / inverse
    count = stream(seed, "count", block).random(shape)
    loss = stream(seed, "loss", block).random(shape) if dropout else None
    return CellNoise(state, burst, count, loss)


def noise_of_cells(
    seed: int, cells: np.ndarray, dispersion: np.ndarray, dropout: bool
) -> Iterator[tuple[np.ndarray, CellNoise]]:
    """Yield (positions in ``cells``, noise of these cells), block by block."""
    block_of = cells // BLOCK
    for block in np.unique(block_of):
        positions = np.flatnonzero(block_of == block)
        inside = cells[positions] % BLOCK
        noise = draw_noise(seed, int(block), len(dispersion), dispersion, dropout)
        loss = None if noise.loss is None else noise.loss[:, inside]
        yield positions, CellNoise(noise.state[:, inside], noise.burst[:, inside], noise.count[:, inside], loss)


def poisson_quantile(quantile: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Smallest k with P(Poisson(rate) <= k) >= quantile, elementwise, for quantiles in [0, 1).

    Sequential search for small rates (fast, most of single-cell data), the inverse incomplete gamma function for
    large ones. Increasing in the rate at a fixed quantile. Quantiles above 1 - 1e-12 are taken as 1 - 1e-12.

    Returns
    -------
    float32 array of the shape of ``rate``.
    """
    u, lam = np.minimum(quantile.ravel(), _HIGHEST_QUANTILE), rate.ravel()
    counts = np.zeros(lam.shape, dtype=np.float32)
    large = np.flatnonzero(lam > _SEARCH_UP_TO)
    if large.size:
        k = np.ceil(special.pdtrik(u[large], lam[large]))
        lower = np.maximum(k - 1, 0)
        counts[large] = np.where(special.pdtr(lower, lam[large]) >= u[large], lower, k)
    term = np.exp(-lam)
    active = np.flatnonzero((u > term) & (lam <= _SEARCH_UP_TO))
    term, rest, lam = term[active], u[active] - term[active], lam[active]
    k = 0
    while active.size:
        k += 1
        term = term * lam / k
        rest = rest - term
        counts[active] = k
        more = rest > 0
        active, term, rest, lam = active[more], term[more], rest[more], lam[more]
    return counts.reshape(rate.shape)


def dropout_probability(mean: np.ndarray, dropout: float) -> np.ndarray:
    """Chance that a transcript count is lost: ``dropout`` for silent genes, falling as the mean rises."""
    return dropout / (1.0 + mean)


def sample_counts(mean: np.ndarray, noise: CellNoise, dropout: float) -> np.ndarray:
    """Negative binomial counts around ``mean`` (genes x cells) from kept noise, with dropout."""
    counts = poisson_quantile(noise.count, mean * noise.burst)
    if noise.loss is not None:
        counts[noise.loss < dropout_probability(mean, dropout)] = 0.0
    return counts


def expected_counts(mean: np.ndarray, dropout: float) -> np.ndarray:
    """Expectation of :func:`sample_counts` over its noise, genes x cells."""
    return mean * (1.0 - dropout_probability(mean, dropout)) if dropout else mean
