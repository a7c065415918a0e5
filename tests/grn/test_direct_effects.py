"""Direct effects from perturbations: exact on linear systems, whatever the sizes of the perturbations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal._errors import InputDataError, SetupError
from sccausal.datasets import simulate_stationary
from sccausal.grn._direct_effects import (
    diagnostics,
    directed_drift,
    drift_form,
    response_form,
    sparse_response_form,
    symmetry,
)
from sccausal.metrics import auprc


def linear(d: int, seed: int, **kwargs) -> dict:
    return simulate_stationary(d, n_cells=2, degree=min(3.0, d - 1), seed=seed, **kwargs).uns["truth"]


def parts(truth: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses, what perturbations act on, and the positions of the perturbed genes."""
    means, shifts = truth["means"].to_numpy(), truth["shifts"]
    return means[1:] - means[0], shifts[1:] != 0, np.flatnonzero((shifts != 0).any(axis=0))


def relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


@settings(max_examples=20, deadline=None)
@given(d=st.integers(3, 20), seed=st.integers(0, 500), where=st.floats(-3, 3))
def test_drift_form_is_exact_from_any_reference_point(d, seed, where):
    truth = linear(d, seed)
    a, b = truth["drift"], truth["bias"]
    origin = np.full(d, where)
    drifts = origin @ a.T + b + truth["shifts"][1:]
    states = truth["means"].to_numpy()[1:] - origin
    tolerance = 1e-13 * np.linalg.cond(states)
    assert relative(drift_form(drifts, states), a) < max(1e-8, tolerance)


def test_drift_form_with_few_perturbations_is_the_projection():
    truth = linear(12, 0, n_perturbed=7)
    a = truth["drift"]
    states = truth["means"].to_numpy()[1:]
    drifts = truth["bias"] + truth["shifts"][1:]
    projection = np.linalg.pinv(states) @ states
    np.testing.assert_allclose(drift_form(drifts, states), a @ projection, atol=1e-8)
    assert relative(drift_form(drifts, states), a) > 0.1
    near = drift_form(drifts, states, tikhonov=1e-10)
    np.testing.assert_allclose(near, a @ projection, atol=1e-4)
    both = [drift_form(drifts[:, :7], states[:, :7], 0.1), drift_form(drifts[:6, :7], states[:6, :7], 0.1)]
    assert all(np.isfinite(m).all() for m in both)


def test_drift_form_follows_a_change_of_unit():
    truth = linear(8, 3)
    scale = np.linspace(0.5, 4, 8)
    states, drifts = truth["means"].to_numpy()[1:], truth["bias"] + truth["shifts"][1:]
    plain, scaled = drift_form(drifts, states), drift_form(drifts * scale, states * scale)
    np.testing.assert_allclose(scaled, plain * scale[:, None] / scale, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(d=st.integers(3, 20), seed=st.integers(0, 500))
def test_response_form_is_exact_whatever_the_sizes(d, seed):
    truth = linear(d, seed)
    r, acts, sources = parts(truth)
    expected = (truth["drift"] / -np.diag(truth["drift"])[:, None]).T
    tolerance = max(1e-8, 1e-12 * np.linalg.cond(r))
    assert relative(response_form(r, acts, sources), expected) < tolerance
    signs = np.random.default_rng(seed).choice([-2.0, 0.5, 3.0], d)[:, None]
    assert relative(response_form(signs * r, acts, sources), expected) < tolerance


def test_the_penalised_form_tends_to_the_exact_one():
    truth = linear(15, 1)
    r, acts, sources = parts(truth)
    exact = response_form(r, acts, sources)
    assert relative(response_form(r, acts, sources, 1e-12), exact) < 1e-3
    assert relative(response_form(r, acts, sources, 1e-2), exact) > 1e-3


def test_downdates_agree_with_one_regression_per_gene():
    """Doubles and repeated perturbations, genes that are no sources: against the plain normal equations."""
    truth = linear(14, 2, n_perturbed=9, n_doubles=6)
    r, acts, sources = parts(truth)
    r = r + 0.1 * np.random.default_rng(0).normal(size=r.shape)
    found = response_form(r, acts, sources, 1e-2)
    tau = 1e-2 * np.trace(r[:, sources].T @ r[:, sources]) / len(sources)
    for gene in range(14):
        rows = ~acts[:, gene]
        others = [s for s in sources if s != gene]
        x = r[np.ix_(rows, others)]
        beta = np.linalg.solve(x.T @ x + tau * np.eye(len(others)), x.T @ r[rows, gene])
        mine = [j for j, s in enumerate(sources) if s != gene]
        np.testing.assert_allclose(found[mine, gene], beta, atol=1e-9)


def test_effects_through_genes_that_are_not_perturbed_count_as_direct():
    truth = linear(10, 4, n_perturbed=6)
    r, acts, sources = parts(truth)
    a = truth["drift"]
    hidden = np.setdiff1d(np.arange(10), sources)
    reduced = a[np.ix_(sources, sources)] - a[np.ix_(sources, hidden)] @ np.linalg.solve(
        a[np.ix_(hidden, hidden)], a[np.ix_(hidden, sources)]
    )
    expected = (reduced / -np.diag(reduced)[:, None]).T
    np.testing.assert_allclose(response_form(r, acts, sources)[:, sources], expected, atol=1e-8)


def test_sparse_form_beats_the_responses_with_fewer_perturbations_than_genes():
    scores = []
    for seed in range(4):
        truth = linear(40, seed, n_perturbed=28)
        r, acts, _ = parts(truth)
        edges = truth["adjacency"] != 0
        off = ~np.eye(40, dtype=bool)
        found = sparse_response_form(r, acts, np.arange(40), 0.02)
        de = np.zeros((40, 40))
        de[acts.argmax(axis=1)] = np.abs(r)
        scores.append([auprc(np.abs(found)[off], edges[off]), auprc(de[off], edges[off]), edges[off].mean()])
        assert (found[off] == 0).mean() > 0.3
    mine, responses, chance = np.mean(scores, axis=0)
    assert mine > responses + 0.1 and mine > 2 * chance, (mine, responses, chance)


@pytest.mark.parametrize("d", [8, 12, 70])
def test_directed_drift_is_exact_on_linear_systems(d):
    truth = linear(d, 5)
    r, acts, _ = parts(truth)
    precision = np.linalg.inv(truth["covariance"])
    found = directed_drift(precision, r, acts)
    assert relative(found, truth["drift"]) < (1e-8 if d < 60 else 1e-3)
    assert relative(-precision, truth["drift"]) > 0.2
    assert symmetry(-precision) < 1e-9 < 0.2 < symmetry(found)
    # the stationary law is that of the score
    left = found @ truth["covariance"]
    np.testing.assert_allclose(left + left.T, -2 * np.eye(d), atol=1e-8)


def test_directed_drift_needs_all_but_one_gene_perturbed():
    errors = []
    for k in (8, 7, 5):
        truth = linear(8, 6, n_perturbed=k)
        r, acts, _ = parts(truth)
        errors.append(relative(directed_drift(np.linalg.inv(truth["covariance"]), r, acts), truth["drift"]))
    assert errors[0] < 1e-8 and errors[1] < 1e-8 < 1e-3 < errors[2]


def test_diagnostics_say_what_is_missing():
    truth = linear(9, 7, n_perturbed=5)
    r, _, _ = parts(truth)
    found = diagnostics(r, truth["drift"])
    assert found.rank == 5 and found.condition_number >= 1 and len(found.singular_values) == 5
    assert symmetry(np.ones((4, 4))) == 0
    assert symmetry(np.triu(np.ones((4, 4)))) == pytest.approx(1.0)


def test_bad_input_is_named():
    r = np.eye(3)
    with pytest.raises(InputDataError, match="not finite"):
        response_form(np.full((3, 3), np.nan), np.eye(3, dtype=bool), np.arange(3))
    with pytest.raises(InputDataError, match=r"\(3, 3\) and \(2, 3\)"):
        drift_form(r, r[:2])
    with pytest.raises(InputDataError, match="tikhonov"):
        response_form(np.ones((3, 3)), np.eye(3, dtype=bool), np.arange(3))
    with pytest.raises(SetupError, match="l1"):
        sparse_response_form(r, np.eye(3, dtype=bool), np.arange(3), 2.0)
    with pytest.raises(InputDataError, match="precision"):
        directed_drift(np.eye(2), r, np.eye(3, dtype=bool))
