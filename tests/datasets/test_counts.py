from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from sccausal.datasets._counts import BLOCK, draw_noise, noise_of_cells, poisson_quantile, sample_counts


@pytest.mark.parametrize("rate", [1e-4, 0.3, 2.0, 29.9, 30.1, 400.0])
def test_quantiles_agree_with_scipy(rate):
    u = np.random.default_rng(0).random(2000)
    assert np.array_equal(poisson_quantile(u, np.full(2000, rate)), stats.poisson.ppf(u, rate))


@given(u=st.floats(0, 1, exclude_max=True), low=st.floats(0, 60), step=st.floats(0, 30))
@example(u=0.9999999999999999, low=1.734375, step=1.0)
@example(u=0.9999999999999999, low=29.9, step=0.2)
@settings(max_examples=2000, deadline=None)
def test_counts_rise_with_the_rate_at_a_fixed_quantile(u, low, step):
    both = poisson_quantile(np.array([u, u]), np.array([low, low + step]))
    assert both[1] >= both[0]


def test_zero_rate_gives_zero():
    assert (poisson_quantile(np.array([0.0, 0.999999]), np.zeros(2)) == 0).all()


@pytest.mark.parametrize(("mean", "dispersion"), [(0.5, 0.2), (8.0, 0.2), (50.0, 0.5)])
def test_moments_and_distribution_are_negative_binomial(mean, dispersion):
    noise = draw_noise(0, 0, 100, np.full(100, dispersion), dropout=False)
    counts = sample_counts(np.full((100, BLOCK), mean), noise, 0.0).ravel()
    n, variance = counts.size, mean + dispersion * mean**2
    assert abs(counts.mean() - mean) < 5 * np.sqrt(variance / n)
    assert abs(counts.var() / variance - 1) < 0.05
    size = 1 / dispersion
    zero = stats.nbinom.pmf(0, size, size / (size + mean))
    assert abs((counts == 0).mean() - zero) < 5 * np.sqrt(zero * (1 - zero) / n) + 1e-9


def test_dropout_adds_zeros_as_often_as_said():
    noise = draw_noise(0, 0, 100, np.full(100, 0.01), dropout=True)
    counts = sample_counts(np.full((100, BLOCK), 9.0), noise, 0.5)
    kept = sample_counts(np.full((100, BLOCK), 9.0), noise, 0.0)
    lost = (counts == 0).mean() - (kept == 0).mean()
    assert abs(lost - 0.05) < 0.005


def test_noise_belongs_to_the_cell_not_to_its_company():
    dispersion = np.full(7, 0.2)
    cells = np.array([3, BLOCK + 5, 1, BLOCK])
    seen = {
        int(c): n.state[:, j]
        for rows, n in noise_of_cells(4, cells, dispersion, False)
        for j, c in enumerate(cells[rows])
    }
    alone = next(iter(noise_of_cells(4, np.array([BLOCK + 5]), dispersion, False)))[1]
    assert np.array_equal(seen[BLOCK + 5], alone.state[:, 0])
    assert not np.array_equal(seen[3], seen[1])
