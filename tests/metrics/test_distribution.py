from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from scipy.stats import wasserstein_distance
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import rbf_kernel

from sccausal import metrics as m
from sccausal._errors import InputDataError


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    return rng.gamma(1.0, size=(70, 12)), rng.gamma(1.4, size=(50, 12))


def test_energy_distance_agrees_with_pertpy(clouds):
    pertpy = pytest.importorskip("pertpy")
    x, y = clouds
    theirs = pertpy.tl.Distance("edistance")(x, y)
    assert m.energy_distance(x, y, unbiased=False) == pytest.approx(float(theirs), rel=1e-6)


def test_energy_distance_u_statistic(clouds):
    x, y = clouds
    off = [pairwise_distances(a)[np.triu_indices(len(a), 1)].mean() for a in (x, y)]
    assert m.energy_distance(x, y) == pytest.approx(2 * pairwise_distances(x, y).mean() - sum(off), rel=1e-9)


def test_u_statistic_is_zero_on_average_and_v_is_not():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(150)]
    u = np.array([m.energy_distance(x, y) for x, y in pairs])
    assert abs(u.mean()) < 3 * u.std() / np.sqrt(len(u))
    assert np.mean([m.energy_distance(x, y, unbiased=False) for x, y in pairs]) > 0.1


def test_mmd_agrees_with_scikit_learn_kernels(clouds):
    x, y = clouds
    scales = m.length_scales(y)
    want = np.mean(
        [
            rbf_kernel(x, x, g).mean() + rbf_kernel(y, y, g).mean() - 2 * rbf_kernel(x, y, g).mean()
            for g in 0.5 / scales**2
        ]
    )
    assert m.mmd2(x, y, unbiased=False) == pytest.approx(want, rel=1e-9)
    assert len(scales) == 10 and scales[-1] / scales[0] == pytest.approx(100)


def test_mmd_agrees_with_pertpy(clouds):
    pertpy = pytest.importorskip("pertpy")
    x, y = clouds
    theirs = pertpy.tl.Distance("mmd")(x, y, kernel="rbf", gamma=0.05)
    assert m.mmd2(x, y, scales=np.array([np.sqrt(10.0)]), unbiased=False) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("n", [50, 70, 33])
def test_wasserstein_agrees_with_scipy(clouds, n):
    x, y = clouds[0], np.resize(clouds[1], (n, 12))
    want = [wasserstein_distance(x[:, j], y[:, j]) for j in range(12)]
    np.testing.assert_allclose(m.wasserstein_1d(x, y), want, rtol=1e-10)


def test_sliced_wasserstein_of_a_shift():
    x = np.random.default_rng(0).normal(size=(60, 400))
    # a shift by v moves the projection on u by |u.v|; E|u.v| sqrt(g) -> sqrt(2/pi) |v|
    found = m.sliced_wasserstein(x + 0.5, x, n_slices=400)
    assert found == pytest.approx(np.sqrt(2 / np.pi) * 0.5 * 20, rel=0.1)
    assert found == m.sliced_wasserstein(x + 0.5, x, n_slices=400)


def test_variance_ratio():
    x = np.random.default_rng(0).normal(size=(60, 8))
    assert m.variance_ratio(2 * x, x) == pytest.approx(4.0)
    assert m.variance_ratio(np.zeros_like(x), x) == 0.0
    assert np.isnan(m.variance_ratio(x[:1], x))


def test_blocks_give_the_same_result(clouds, monkeypatch):
    x, y = clouds
    whole = m.energy_distance(x, y), m.mmd2(x, y), m.wasserstein_1d(x, y).sum()
    monkeypatch.setattr("sccausal.metrics._distribution._BLOCK", 7)
    np.testing.assert_allclose((m.energy_distance(x, y), m.mmd2(x, y), m.wasserstein_1d(x, y).sum()), whole)


def test_cell_order_does_not_matter(clouds):
    x, y = clouds
    order = np.random.default_rng(1).permutation(len(x))
    assert m.energy_distance(x[order], y) == pytest.approx(m.energy_distance(x, y))


def test_a_collapsed_prediction_is_seen(clouds):
    _, y = clouds
    collapsed = np.tile(y.mean(axis=0), (40, 1))
    assert m.energy_distance(collapsed, y) > 5 * abs(m.energy_distance(y[:25], y[25:]))


def test_large_sets_stay_within_memory():
    rng = np.random.default_rng(0)
    x, y = rng.random((3000, 200)), rng.random((3000, 200))
    tracemalloc.start()
    m.energy_distance(x, y)
    m.mmd2(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # a full distance matrix alone would be 72 MB
    assert peak < 4 * x.nbytes + 60e6


def test_energy_distance_is_fast():
    rng = np.random.default_rng(0)
    x, y = rng.random((1000, 2000)), rng.random((1000, 2000))
    start = time.process_time()
    m.energy_distance(x, y)
    assert time.process_time() - start < 3.0  # 0.4 s on one free core


@pytest.mark.parametrize("bad", [np.zeros((0, 12)), np.zeros((5, 3)), np.full((5, 12), np.nan)])
def test_bad_clouds_are_refused(clouds, bad):
    with pytest.raises(InputDataError):
        m.energy_distance(bad, clouds[1])
