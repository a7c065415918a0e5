"""The linear model over concept embeddings against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal._errors import SetupError
from sccausal.nn import ConceptSCM
from sccausal.nn.concepts import level_weights, topological_order

CHAIN = [(), (0,), (0,), (1,)]  # a -> b -> d, a -> c


@pytest.fixture(params=["scalar", "map"])
def scm(request):
    torch.manual_seed(0)
    scm = ConceptSCM(CHAIN, 5, request.param)
    with torch.no_grad():
        for w in scm.weights.values():
            w.add_(0.3 * torch.randn_like(w))
    return scm


def test_embeddings_solve_the_equations_and_come_back(scm):
    eps = torch.randn(20, 4, 5)
    z = scm(eps)
    for j, above in enumerate(CHAIN):
        expected = eps[:, j] + sum(scm.push(i, j, z[:, i]) for i in above)
        torch.testing.assert_close(z[:, j], expected)
    torch.testing.assert_close(scm.exogenous(z), eps)


def test_scalar_edges_are_the_inverse_of_one_minus_the_graph():
    scm = ConceptSCM(CHAIN, 3, "scalar")
    A = torch.zeros(4, 4)
    for k, (i, j) in enumerate([(0, 1), (0, 2), (1, 3)]):
        A[i, j] = 0.5 + k
        with torch.no_grad():
            scm.weights[f"{i}_{j}"].fill_(0.5 + k)
    eps = torch.randn(7, 4, 3)
    solved = torch.einsum("nid,ij->njd", eps, torch.linalg.inv(torch.eye(4) - A))
    torch.testing.assert_close(scm(eps), solved)
    assert scm.strengths()[1, 3] == pytest.approx(2.5)


def test_do_cuts_what_comes_in_and_descendants_follow(scm):
    eps = torch.randn(20, 4, 5)
    z, new = scm(eps), torch.randn(20, 5)
    after = scm(eps, {1: new})
    assert torch.equal(after[:, 1], new)
    assert torch.equal(after[:, 0], z[:, 0]) and torch.equal(after[:, 2], z[:, 2])
    torch.testing.assert_close(after[:, 3] - z[:, 3], scm.push(1, 3, new - z[:, 1]), atol=1e-5, rtol=1e-4)
    # an intervention on the parent no longer reaches it
    other = scm(eps, {0: torch.zeros(20, 5), 1: new})
    assert torch.equal(other[:, 1], new) and torch.equal(other[:, 3], after[:, 3])


def test_own_embedding_changes_nothing(scm):
    eps = torch.randn(20, 4, 5)
    z = scm(eps)
    assert torch.equal(scm(eps, {1: z[:, 1]}), z)


def test_ancestors_and_cycles():
    scm = ConceptSCM(CHAIN, 2)
    assert scm.ancestors(3) == (0, 1) and scm.ancestors(0) == ()
    with pytest.raises(SetupError, match="cycle"):
        topological_order([(1,), (0,)])
    with pytest.raises(SetupError, match="between 0 and 1"):
        topological_order([(5,), ()])
    with pytest.raises(SetupError, match="edge"):
        ConceptSCM(CHAIN, 2, "matrix")
    assert not any(w.requires_grad for w in ConceptSCM(CHAIN, 2, "scalar", learned=False).weights.values())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20))
def test_level_weights_interpolate(values):
    knots = torch.tensor([-2.0, 0.0, 1.0, 5.0])
    x = torch.tensor(values)
    w = level_weights(x, knots)
    assert bool((w >= 0).all())
    torch.testing.assert_close(w.sum(1), torch.ones(len(x)))
    torch.testing.assert_close(w @ knots, x.clamp(-2, 5), atol=1e-5, rtol=1e-5)
    assert int((w > 0).sum(1).max()) <= 2
