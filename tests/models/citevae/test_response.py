from __future__ import annotations

import numpy as np
import pytest

from sccausal.models.citevae._response import Profiles, Response, TimeCovariance, _leave_one_out, _ridge, change_at

TIMES = np.array([1.0, 2.0, 4.0])


def planted(n=16, m=60, q=3, noise=0.05, seed=0, own_effect=1.0):
    """Effects that grow with time at one rate, depend linearly on features, and raise each target's own gene."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, q))
    shape = features @ rng.standard_normal((q, m)) * 0.2 + 0.1 * rng.standard_normal((n, m)) + 0.15
    effect = shape[:, None, :] * np.array([0.3, 0.7, 1.2])[None, :, None]
    own = rng.permutation(m)[:n]
    effect[np.arange(n), :, own] = own_effect
    seen = effect + noise * rng.standard_normal(effect.shape)
    return features, own, effect, seen


def profiles(seen, counts, noise=0.05, cells=100):
    change = np.where(counts[..., None] > 0, seen, np.nan)
    dose = np.eye(len(seen))[counts.sum(1) > 0]
    keep = counts.sum(1) > 0
    return Profiles(dose, TIMES, change[keep], counts[keep] * cells, np.full(seen.shape[2], noise**2 * cells))


def rmse(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_leave_one_out_is_that_of_refitting():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)), rng.standard_normal((8, 5))
    hat, _ = _ridge(x, x, 0.7)
    found = _leave_one_out(hat, y - y.mean(0))
    for i in range(8):
        rest = np.arange(8) != i
        design = np.c_[x[rest], np.ones(7)]
        # the penalty leaves the intercept free, as when values are centred
        weight = np.linalg.solve(design.T @ design + np.diag([0.7] * 3 + [0.0]), design.T @ y[rest])
        np.testing.assert_allclose(np.r_[x[i], 1.0] @ weight - y.mean(0), found[i], atol=1e-10)


def test_kriging_is_the_conditional_mean_of_a_gaussian():
    rng = np.random.default_rng(1)
    K = np.array([[0.3, 0.5, 0.6], [0.5, 1.0, 1.3], [0.6, 1.3, 2.0]])
    law = TimeCovariance(K, np.array([1.0, 2.5]))
    rest, noise = rng.standard_normal((3, 2)), np.full((3, 2), 0.2)
    found = law.update(rest, noise, np.array([True, True, False]))
    for g, scale in enumerate((1.0, 2.5)):
        joint = scale * K
        expected = joint[:, :2] @ np.linalg.solve(joint[:2, :2] + 0.2 * np.eye(2), rest[:2, g])
        np.testing.assert_allclose(found[:, g], expected, atol=1e-8)
    assert not law.update(rest, noise, np.zeros(3, dtype=bool)).any()


def test_covariance_over_times_is_recovered_beyond_the_noise():
    rng = np.random.default_rng(0)
    K = np.array([[0.2, 0.4, 0.5], [0.4, 1.0, 1.2], [0.5, 1.2, 1.8]])
    rest = np.einsum("ij,ujg->uig", np.linalg.cholesky(K), rng.standard_normal((40, 3, 80)))
    noise = np.full(rest.shape, 0.5)
    law = TimeCovariance.fit(rest + np.sqrt(0.5) * rng.standard_normal(rest.shape), noise, np.ones(rest.shape, bool))
    np.testing.assert_allclose(law.matrix * law.scale.mean(), K, atol=0.15)


def test_unseen_interventions_are_better_than_the_mean_and_shuffled_features_give_nothing():
    features, own, effect, seen = planted(n=24)
    counts = np.ones((24, 3), int)
    counts[:6] = 0
    mean = seen[6:].mean(0)
    fit = Response(features, own).fit(profiles(seen, counts))
    others = np.ones(effect.shape, bool)
    others[np.arange(24), :, own] = False
    asked = others[:6]
    assert rmse(fit.effect[:6][asked], effect[:6][asked]) < 0.75 * rmse(
        np.broadcast_to(mean, (6, 3, 60))[asked], effect[:6][asked]
    )
    assert abs(fit.effect[np.arange(6), 2, own[:6]] - 1.0).max() < 0.1  # own genes follow those of the others
    order = np.random.default_rng(3).permutation(24)
    shuffled = Response(features[order], own).fit(profiles(seen, counts))
    gained = rmse(np.broadcast_to(mean, (6, 3, 60))[asked], effect[:6][asked]) - rmse(
        shuffled.effect[:6][asked], effect[:6][asked]
    )
    assert gained < 0.1 * rmse(np.broadcast_to(mean, (6, 3, 60))[asked], effect[:6][asked])
    assert not shuffled.trained[:6].any() and shuffled.trained[6:].all()


def test_early_effects_tell_late_ones_better_than_additive():
    features, own, effect, seen = planted(n=20, seed=2)
    counts = np.ones((20, 3), int)
    counts[:5, 2] = 0
    fit = Response(features, own).fit(profiles(seen, counts))
    additive = seen[:5, :2].mean(1)
    assert rmse(fit.effect[:5, 2], effect[:5, 2]) < 0.6 * rmse(additive, effect[:5, 2])
    assert rmse(fit.effect[:5, 2], effect[:5, 2]) < 0.8 * rmse(fit.guess[:5, 2], effect[:5, 2])


def test_effects_without_structure_stay_with_the_mean():
    rng = np.random.default_rng(5)
    seen = 0.1 * rng.standard_normal((20, 3, 50))
    counts = np.ones((20, 3), int)
    counts[:5] = 0
    fit = Response(rng.standard_normal((20, 3)), np.full(20, -1)).fit(profiles(seen, counts, noise=0.1))
    assert rmse(fit.effect[:5], 0 * fit.effect[:5]) < 0.05
    assert not fit.report["follow"].any()


def test_what_was_seen_is_kept_and_noise_is_shrunk():
    features, own, effect, seen = planted(n=16, noise=0.3, seed=1)
    fit = Response(features, own).fit(profiles(seen, np.ones((16, 3), int), noise=0.3))
    assert rmse(fit.effect, effect) < 0.75 * rmse(seen, effect)
    sure = Response(features, own).fit(profiles(effect, np.ones((16, 3), int), noise=1e-3))
    assert rmse(sure.effect, effect) < 0.05 * rmse(0 * effect, effect)


def test_combinations_start_additive_and_times_between_are_interpolated():
    features, own, effect, seen = planted(n=12, noise=1e-3)
    table = Response(features, own).fit(profiles(seen, np.ones((12, 3), int), noise=1e-3)).table()
    row = np.zeros(12)
    row[[1, 4]] = 1.0
    both = change_at(table, row, 2.0, 0.5)
    one, other = (change_at(table, np.eye(12)[k], 2.0, 0.5) for k in (1, 4))
    np.testing.assert_allclose(both, one + other, rtol=1e-5)
    np.testing.assert_allclose(change_at(table, 0.5 * np.eye(12)[1], 2.0, 0.5), 0.5 * one, rtol=1e-5)
    middle = change_at(table, np.eye(12)[1], 3.0, 0.5)
    last = change_at(table, np.eye(12)[1], 4.0, 0.5)
    np.testing.assert_allclose(middle, (one + last) / 2, rtol=1e-5)
    beyond = change_at(table, np.eye(12)[1], 1e6, 0.5)
    np.testing.assert_allclose(beyond, last + (last - one) / 2 / 0.5, rtol=1e-4)
    np.testing.assert_array_equal(change_at(table, np.eye(12)[1], -3.0, 0.5), change_at(table, np.eye(12)[1], 1.0, 0.5))


def test_a_seen_combination_keeps_what_it_does_beyond_the_sum():
    features, own, effect, seen = planted(n=12, noise=0.02, seed=3)
    counts = np.ones((12, 3), int)
    base = profiles(seen, counts, noise=0.02)
    row = np.zeros((1, 12))
    row[0, [0, 1]] = 1.0
    extra = np.where(np.arange(60) < 20, 0.8, 0.0)[None] * np.array([0.3, 0.7, 1.2])[:, None]
    both = (effect[0] + effect[1] + extra)[None]
    joined = Profiles(
        np.vstack([base.dose, row]), TIMES, np.vstack([base.change, both]), np.vstack([base.n_cells, [[100, 100, 0]]]),
        base.variance,
    )  # fmt: skip
    table = Response(features, np.full(12, -1)).fit(joined).table()
    found = change_at(table, row[0], 4.0, 0.5)
    plain = effect[0, 2] + effect[1, 2]
    assert rmse(found, both[0, 2]) < 0.5 * rmse(plain, both[0, 2])
    assert pytest.approx(0, abs=0.3) == np.abs(found[20:] - plain[20:]).mean()
