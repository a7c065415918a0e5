"""Acyclicity functions against closed forms, SEM solves against the explicit inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal._errors import NumericalError, SetupError
from sccausal.nn.graph import (
    SEMGraph,
    acyclicity,
    dag_threshold,
    factorise_sem,
    forward_edges,
    in_logdet_domain,
    is_dag,
    logdet_domain,
    project_to_domain,
    solve_sem,
)

KINDS = ["logdet", "expm", "polynomial", "spectral"]
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(2, 9)


def random_graph(m: int, seed: int, scale: float = 0.3) -> torch.Tensor:
    A = scale * torch.randn(m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return A.fill_diagonal_(0)


def random_dag(m: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    return random_graph(m, seed, scale).triu(1)[order][:, order]


def radius(A: torch.Tensor) -> float:
    return float(torch.linalg.eigvals(A * A).abs().max())


# ------------------------------------------------------------------------------------------------ acyclicity


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(m=sizes, seed=seeds)
def test_zero_exactly_for_dags(kind, m, seed):
    A = random_dag(m, seed)
    s = 1.0 if kind == "logdet" else None  # a DAG lies in the domain of any s
    assert abs(float(acyclicity(A, kind, s))) < 1e-9
    i, j = 0, m - 1
    A[i, j] = A[j, i] = 0.5
    assert float(acyclicity(A, kind)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_value_on_a_two_cycle(kind):
    A = torch.tensor([[0.0, 0.5], [0.8, 0.0]], dtype=torch.float64)
    loop = 0.25 * 0.64  # product of the squared weights
    expected = {
        "logdet": -math.log(1 - loop),
        "expm": 2 * math.cosh(math.sqrt(loop)) - 2,
        "polynomial": 2 * loop / 4,
        "spectral": math.sqrt(loop),
    }
    assert float(acyclicity(A, kind, 1.0)) == pytest.approx(expected[kind], rel=1e-8)


def test_logdet_scale_is_a_rescaling():
    A = random_graph(6, 0)
    assert float(acyclicity(A, s=4.0)) == pytest.approx(float(acyclicity(A / 2, s=1.0)), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_matches_finite_differences(kind):
    A = random_graph(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: acyclicity(x, kind, 1.5), A)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_ignores_absent_edges_and_stays_finite_at_a_dag(kind):
    A = random_dag(6, 1).requires_grad_()
    acyclicity(A, kind).backward()
    assert A.grad is not None
    assert torch.isfinite(A.grad).all() and (A.grad.abs() < 1e-9).all()


def test_logdet_refuses_two_poles_where_the_determinant_is_positive_again():
    A = torch.zeros(4, 4, dtype=torch.float64)
    for i, j in [(0, 1), (1, 0), (2, 3), (3, 2)]:
        A[i, j] = math.sqrt(2)
    sign, logdet = torch.linalg.slogdet(torch.eye(4, dtype=torch.float64) - A * A)
    assert sign > 0 and -logdet < -2  # a test by the sign would accept this and reward the cycles
    with pytest.raises(NumericalError, match="M-matrix"):
        acyclicity(A, "logdet", 1.0)
    assert not in_logdet_domain(A, 1.0)
    assert float(acyclicity(A, "logdet")) > 0  # the default scale is chosen by rule


@settings(max_examples=60, deadline=None)
@given(m=sizes, seed=seeds, scale=st.floats(0.05, 2.0), ratio=st.floats(0.2, 3.0))
def test_domain_test_agrees_with_the_spectral_radius(m, seed, scale, ratio):
    A = random_graph(m, seed, scale)
    if abs(ratio - 1) < 1e-3 or radius(A) < 1e-12:
        return
    s = radius(A) * ratio
    assert in_logdet_domain(A, s) == (ratio > 1)
    if ratio > 1:
        assert float(acyclicity(A, "logdet", s)) >= -1e-10
    else:
        with pytest.raises(NumericalError):
            acyclicity(A, "logdet", s)


@settings(max_examples=40, deadline=None)
@given(m=sizes, seed=seeds, scale=st.floats(0.05, 3.0))
def test_logdet_domain_bounds_the_radius(m, seed, scale):
    A = random_graph(m, seed, scale)
    bound = logdet_domain(A)
    assert bound >= 1.1 * radius(A) * (1 - 1e-9)
    sums = (A * A).sum(0).max(), (A * A).sum(1).max()
    assert bound <= 1.1 * float(min(sums)) * (1 + 1e-9)


def test_project_to_domain_shortens_only_bad_steps():
    good, bad = random_graph(6, 0, 0.1), random_graph(6, 1, 3.0)
    assert project_to_domain(good, torch.zeros_like(good)) is good
    kept = project_to_domain(bad, good)
    assert in_logdet_domain(kept)
    step, full = kept - good, bad - good
    t = float((step * full).sum() / (full * full).sum())
    assert 0 < t < 1 and torch.allclose(step, t * full)
    with pytest.raises(NumericalError):
        project_to_domain(bad, bad)


def test_empty_graphs():
    for A in (torch.zeros(0, 0), torch.zeros(3, 3)):
        assert logdet_domain(A) == 0 and in_logdet_domain(A) and is_dag(A)
        assert [float(acyclicity(A, kind)) for kind in ("logdet", "expm", "spectral")] == [0, 0, 0]


def test_unknown_kind_and_shape():
    with pytest.raises(SetupError, match="logdet"):
        acyclicity(torch.zeros(2, 2), "trace")  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="square"):
        acyclicity(torch.zeros(2, 3))


# ------------------------------------------------------------------------------------------------ DAG checks


@settings(max_examples=30, deadline=None)
@given(m=sizes, seed=seeds)
def test_dag_threshold_is_the_smallest(m, seed):
    A = random_graph(m, seed).numpy()
    t = dag_threshold(A)
    assert is_dag(np.where(np.abs(A) > t, A, 0))
    if t > 0:
        assert not is_dag(np.where(np.abs(A) >= t, A, 0))


@given(m=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_forward_edges_leave_a_dag_and_keep_the_stronger_direction(m, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, m))
    kept = forward_edges(A)
    assert dag_threshold(A * kept) == 0
    size = np.abs(A) * (1 - np.eye(m))
    assert (size * kept).sum() >= size.sum() / 2 - 1e-9
    D = random_dag(m, seed).numpy()
    assert (D * forward_edges(D) == D).all()
    assert forward_edges(np.array([[0.0, 0.1], [0.2, 0.0]]))[1, 0]


def test_dag_threshold_of_a_dag_is_zero():
    assert dag_threshold(random_dag(7, 2)) == 0
    assert is_dag(np.zeros((3, 3))) and not is_dag(np.eye(3))


# ------------------------------------------------------------------------------------------------ linear SEM


@settings(max_examples=25, deadline=None)
@given(m=sizes, n=st.integers(1, 6), seed=seeds)
def test_solve_equals_the_inverse(m, n, seed):
    A = random_graph(m, seed, 0.2)
    b = random_graph(max(m, n), seed + 1)[:n, :m]
    expected = b @ torch.linalg.inv(torch.eye(m, dtype=A.dtype) - A)
    assert torch.allclose(solve_sem(A, b), expected, atol=1e-10)


def test_solve_gradient():
    A, b = random_graph(4, 0).requires_grad_(), random_graph(4, 1)[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(solve_sem, (A, b))


def test_singular_system_is_refused():
    with pytest.raises(NumericalError, match="singular"):
        solve_sem(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.ones(1, 2))


def test_solves_share_one_factorisation(monkeypatch):
    calls = []
    original = torch.linalg.lu_factor_ex
    monkeypatch.setattr(torch.linalg, "lu_factor_ex", lambda *a, **k: calls.append(1) or original(*a, **k))
    A = random_graph(5, 0).requires_grad_()
    lu = factorise_sem(A)
    (lu.solve(random_graph(5, 1)).sum() + lu.solve(random_graph(5, 2)).pow(2).sum()).backward()
    assert len(calls) == 1
    acyclicity(A, "logdet", 2.0).backward()
    assert len(calls) == 2  # another matrix, but one LU for value, check and gradient


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n_regulators=st.integers(1, 6))
def test_regulator_block_equals_the_full_system(seed, n_regulators):
    m, n = 9, 4
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    graph = SEMGraph(m, rng.permutation(m)[:n_regulators], init_scale=0.2).double()
    noise = torch.from_numpy(rng.normal(size=(n, m)))
    dense = graph.dense().detach().requires_grad_()
    block_z, full_z = graph.solve(noise), solve_sem(dense, noise)
    assert torch.allclose(block_z, full_z, atol=1e-12)
    assert torch.allclose(graph.exogenous(block_z), noise, atol=1e-12)
    for kind in ("logdet", "expm", "spectral"):  # "polynomial" is scaled by the size
        assert graph.penalty(kind, 2.0).item() == pytest.approx(acyclicity(dense, kind, 2.0).item(), abs=1e-9)
    (block_z.pow(3).sum() + graph.penalty("logdet", 2.0)).backward()
    (full_z.pow(3).sum() + acyclicity(dense, "logdet", 2.0)).backward()
    assert graph.weight.grad is not None and dense.grad is not None
    assert torch.allclose(graph.weight.grad, dense.grad[graph.regulators] * graph.allowed, atol=1e-10)


def test_self_loops_and_forbidden_edges_stay_zero():
    allowed = torch.ones(3, 5, dtype=torch.bool)
    allowed[0, 4] = False
    graph = SEMGraph(5, [1, 3, 4], allowed=allowed)
    with torch.no_grad():
        graph.weight.fill_(0.1)
    dense = graph.dense()
    assert dense.diagonal().abs().sum() == 0 and dense[1, 4] == 0 and int((dense != 0).sum()) == 3 * 4 - 1
    (graph.solve(torch.ones(2, 5)).sum() + graph.penalty()).backward()
    assert graph.weight.grad is not None and graph.weight.grad[0, 4] == 0


def test_initial_weights_are_small():
    weight = SEMGraph(400).weight
    assert float(weight.detach().std()) == pytest.approx(1 / 399, rel=0.05)


def test_guard_pulls_a_large_step_back_and_keeps_the_sinks():
    graph = SEMGraph(6, [0, 1, 2], init_scale=0.1)
    assert not graph.guard()
    with torch.no_grad():
        graph.weight.add_(3.0)
    sinks = graph.weight[:, 3:].clone()
    with pytest.raises(NumericalError):
        graph.penalty()
    assert graph.guard()
    assert torch.isfinite(graph.penalty()) and torch.equal(graph.weight[:, 3:], sinks)


def test_update_scale_admits_what_the_old_scale_refused():
    graph = SEMGraph(5, init_scale=2.0)
    with pytest.raises(NumericalError):
        graph.penalty()
    assert graph.update_scale() and not graph.update_scale()
    assert float(graph.penalty().detach()) > 0
    assert "scale" in graph.state_dict()


def test_prune_leaves_a_dag():
    torch.manual_seed(0)
    graph = SEMGraph(8, init_scale=0.3)
    cut, threshold = graph.prune()
    assert threshold > 0 and is_dag(cut) and cut.abs()[cut != 0].min() > threshold


def test_bad_regulators_are_refused():
    with pytest.raises(SetupError, match="positions"):
        SEMGraph(4, [0, 0])
    with pytest.raises(SetupError, match="positions"):
        SEMGraph(4, [5])
    with pytest.raises(SetupError, match="shape"):
        SEMGraph(4, [1], allowed=np.ones((4, 4)))
