from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal._errors import InputDataError, SetupError
from sccausal.nn.alignment import (
    Moments,
    align,
    best_scores,
    constrained_maps,
    matching,
    moments,
    partial_correlation,
    sinkhorn,
    straight_through_permutation,
    tmex_distance,
    tmex_score,
)
from sccausal.nn.permutation import eigengene_weights, permutation_pvalue, permuted_scores


def _mixed(seed: int = 0, n: int = 2000, k: int = 4, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(n, k)) @ rng.normal(size=(k, k))
    return t, t @ rng.normal(size=(k, k)) + noise * rng.normal(size=(n, k))


def _by_regression(t: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Partial correlations the long way: correlate what regressions leave."""

    def rest(y, given_):
        design = np.c_[np.ones(len(y)), given_]
        return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]

    out = np.zeros((t.shape[1], z.shape[1]))
    for i in range(t.shape[1]):
        others = np.delete(t, i, axis=1)
        out[i] = [np.corrcoef(rest(t[:, i], others), rest(z[:, j], others))[0, 1] for j in range(z.shape[1])]
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_partial_correlation_is_that_of_residuals(seed, k):
    t, z = _mixed(seed, 200, k)
    np.testing.assert_allclose(partial_correlation(t, z, ridge=1e-12).numpy(), _by_regression(t, z), atol=1e-4)


def test_partial_correlation_has_a_gradient_and_stands_collinear_activities():
    t, z = _mixed(n=300)
    t = np.hstack([t, t.sum(1, keepdims=True)])  # the global activity is a combination of the others
    latents = torch.as_tensor(z, dtype=torch.float64).requires_grad_(True)
    score = partial_correlation(torch.as_tensor(t), latents, ridge=1e-3)
    score.sum().backward()
    assert torch.isfinite(score).all() and torch.isfinite(latents.grad).all()
    assert latents.grad.abs().max() > 0


def test_closed_form_is_the_optimum():
    """No gradient finds a better map, and the optimum has a closed form of its own."""
    t, z = _mixed(3, noise=3.0)
    found = align(t, z)
    m = moments(t, z)
    np.testing.assert_allclose(found.scores, best_scores(m).numpy(), atol=1e-6)
    by_gradient = constrained_maps(m, None, n_steps=400, n_starts=2)[0]
    rival = tmex_score(Moments(m.tt, m.tz @ by_gradient, by_gradient.T @ m.zz @ by_gradient, m.n))
    assert found.tmex >= float(rival) - 1e-6
    assert found.tmex - float(rival) < 0.01
    assert found.condition >= 1


def test_constraints_hold_and_cost_score():
    t, z = _mixed(1)
    free, turned, open_ = align(t, z), align(t, z, constraint="orthogonal"), align(t, z, constraint="invertible")
    zz = moments(t, z).zz.numpy()
    gram = turned.A.T @ zz @ turned.A
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)
    assert turned.tmex < free.tmex and open_.tmex <= free.tmex + 1e-9
    assert open_.condition < free.condition
    with pytest.raises(SetupError, match="as many latents"):
        align(t, z[:, :3], constraint="orthogonal")
    with pytest.raises(SetupError, match="diagonal"):
        align(t, z, constraint="diagonal")


def test_exclusive_alignment_lowers_the_pairs_that_do_not_match():
    t, z = _mixed(2, noise=2.0)

    def off(A):
        rho = partial_correlation(t, z @ A).abs()
        return float(rho.sum() - rho.diagonal().sum())

    z = (z - z.mean(0)) / z.std(0)
    assert off(align(t, z, exclusive=1.0).A) < off(align(t, z).A)


def test_tmex_distance_counts_wrong_decisions():
    t, _ = _mixed(4)
    k = t.shape[1]
    assert tmex_distance(t, t) == 0
    assert tmex_distance(t, t[:, ::-1]) == 2 * k  # each misses its own and measures another's
    assert tmex_distance(t, t[:, ::-1], expected=np.eye(k)[::-1]) == 0
    noise = np.random.default_rng(9).normal(size=t.shape)
    assert tmex_distance(t, noise) == k


def test_matching_finds_a_hidden_permutation():
    t, _ = _mixed(5)
    order = np.array([2, 0, 3, 1])
    z = np.empty_like(t)
    z[:, order] = t
    np.testing.assert_array_equal(matching(partial_correlation(t, z)), order)
    with pytest.raises(SetupError, match="matched"):
        matching(np.zeros((3, 2)))


def test_sinkhorn_is_doubly_stochastic_and_the_hard_form_a_permutation():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    soft = sinkhorn(logits)
    ones = torch.ones(5)
    torch.testing.assert_close(soft.sum(0), ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(soft.sum(1), ones, atol=1e-3, rtol=0)
    hard = straight_through_permutation(logits)
    np.testing.assert_array_equal(np.sort(hard.detach().numpy().argmax(1)), np.arange(5))
    torch.testing.assert_close(hard.detach().sum(0), ones)
    (hard * torch.randn(5, 5)).sum().backward()
    assert logits.grad.abs().max() > 0


def _modules(seed: int = 0, n: int = 800) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, 4)) + 0.5 * rng.normal(size=(n, 1))
    genes = factor[:, np.repeat(np.arange(4), 10)] + 1.2 * rng.normal(size=(n, 40))
    return genes, factor + 0.3 * rng.normal(size=(n, 4))


def test_permuted_scores_are_those_of_activities_computed_from_cells():
    genes, z = _modules()
    m = moments(genes, z)
    order = np.stack([np.arange(40), np.random.default_rng(1).permutation(40)])
    found = permuted_scores(m.tt, m.tz, m.zz, [10] * 4, torch.as_tensor(order), m.n).numpy()
    standard = (genes - genes.mean(0)) / genes.std(0)
    for row, own in zip(found, order, strict=True):
        t = np.stack(
            [np.linalg.svd(standard[:, own[s : s + 10]], full_matrices=False)[0][:, 0] for s in range(0, 40, 10)]
        )
        np.testing.assert_allclose(row, best_scores(moments(t.T, z)).numpy(), atol=1e-5)


def test_permutation_test_knows_modules_from_chance():
    rng = np.random.default_rng(0)
    genes, z = _modules()
    order = torch.as_tensor(np.stack([np.arange(40), *[rng.permutation(40) for _ in range(999)]]))
    for latents, real in ((z, True), (rng.normal(size=z.shape), False)):
        m = moments(genes, latents)
        score = permuted_scores(m.tt, m.tz, m.zz, [10] * 4, order, m.n).mean(1).numpy()
        test = permutation_pvalue(score[0], score[1:])
        assert (test.pvalue == pytest.approx(1 / 1000)) if real else (test.pvalue > 0.05)
        assert test.pvalue >= 1 / 1000


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(2)
    p = [permutation_pvalue(v, rng.normal(size=99)).pvalue for v in rng.normal(size=400)]
    assert abs(np.mean(p) - 0.5) < 0.05
    assert np.mean(np.array(p) <= 0.05) < 0.09


def test_eigengenes_of_sets_of_different_size():
    genes, _ = _modules()
    correlation = torch.as_tensor(np.corrcoef(genes.T))
    members = torch.tensor([[0, 1, 2, 3], [10, 11, -1, -1]])
    weight = eigengene_weights(correlation, members).numpy()
    assert (weight[1, 2:] == 0).all() and (weight.sum(1) > 0).all()
    standard = (genes - genes.mean(0)) / genes.std(0)
    scores = standard[:, [10, 11]] @ weight[1, :2]
    assert scores.std() == pytest.approx(1.0, abs=1e-6)


def test_bad_input_is_named():
    t, z = _mixed(n=50)
    with pytest.raises(InputDataError, match="same cells"):
        align(t, z[:-1])
    with pytest.raises(InputDataError, match="finite"):
        align(t, np.where(z > 2, np.nan, z))
    with pytest.raises(SetupError, match="Latents are missing"):
        align(t)
