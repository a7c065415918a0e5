"""The condition response: closed-form start, state dependence, combinations."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal.models.scconcrl._shrinkage import ridge_response, shrunken_response
from sccausal.nn.response import InterventionResponse


def _population(seed: int, n: int = 8, m: int = 300, noise: float = 0.1):
    """Changes that follow a two-dimensional state in the first 60 genes; the others do not respond."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(n + 1, 4)) * [1.0, 0.7, 0.3, 0.2]
    level, slope = np.zeros(m), np.zeros((4, m))
    level[:60], slope[:2, :60] = rng.normal(size=60), rng.normal(size=(2, 60))
    true = level + state @ slope
    return state, true, true + noise * rng.normal(size=true.shape), noise**2


def test_shrunken_response_beats_mean_shift_and_ridge_in_an_unseen_state():
    error = {"mean": [], "ridge": [], "shrunken": []}
    quiet = []
    for seed in range(10):
        state, true, seen, variance = _population(seed)
        train = slice(0, -1)
        fit = shrunken_response(seen[train], np.full_like(seen[train], variance), state[train])
        plain = ridge_response(seen[train], state[train])
        truth = true[-1]
        error["mean"].append(((seen[train].mean(0) - truth) ** 2).sum())
        error["ridge"].append(((plain(state[-1:])[0] - truth) ** 2).sum())
        error["shrunken"].append(((fit(state[-1:])[0] - truth) ** 2).sum())
        alone = shrunken_response(seen[train], np.full_like(seen[train], variance), state[train], noise=1.0, blend=0.0)
        quiet.append(np.abs(alone(state[-1:])[0][60:]).mean() / np.abs(plain(state[-1:])[0][60:]).mean())
    assert np.mean(error["shrunken"]) < np.mean(error["ridge"]) < 0.5 * np.mean(error["mean"])
    # genes that do not respond are predicted to respond less than by the plain regression
    assert np.mean(quiet) < 0.5


def test_one_population_gives_its_shrunken_mean():
    rng = np.random.default_rng(0)
    change = np.r_[np.full(20, 2.0), np.zeros(200)] + 0.1 * rng.normal(size=220)
    fit = shrunken_response(change[None], np.full((1, 220), 0.01), rng.normal(size=(1, 3)))
    predicted = fit(rng.normal(size=(1, 3)))[0]
    np.testing.assert_allclose(predicted[:20], change[:20], rtol=0.05)
    assert np.abs(predicted[20:]).mean() < np.abs(change[20:]).mean()
    assert np.count_nonzero(fit.slope) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 6), d=st.integers(1, 4))
def test_response_does_not_depend_on_the_order_of_populations(seed, n, d):
    rng = np.random.default_rng(seed)
    change, variance, state = rng.normal(size=(n, 7)), rng.uniform(0.01, 0.2, (n, 7)), rng.normal(size=(n, d))
    order = rng.permutation(n)
    one = shrunken_response(change, variance, state)
    two = shrunken_response(change[order], variance[order], state[order])
    np.testing.assert_allclose(one(state), two(state), rtol=1e-5, atol=1e-7)


def _random_head(seed: int, interaction: bool) -> InterventionResponse:
    torch.manual_seed(seed)
    head = InterventionResponse(5, 3, 4, n_hidden=6, n_interaction=2).double()
    with torch.no_grad():
        for name, p in head.named_parameters():
            if interaction or not name.startswith("interaction"):
                p.normal_()
    return head


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), a=st.integers(0, 4), b=st.integers(0, 4), dose=st.floats(0.1, 3.0))
def test_doubles_start_additive_and_doses_scale(seed, a, b, dose):
    head, state = _random_head(seed, False), torch.randn(6, 4, dtype=torch.double)
    eye = torch.eye(5, dtype=torch.double)
    one, two = eye[a].expand(6, -1), eye[b].expand(6, -1)
    torch.testing.assert_close(head(dose * one, state), dose * head(one, state))
    if a != b:
        torch.testing.assert_close(head(one + two, state), head(one, state) + head(two, state))
    assert torch.count_nonzero(head(0 * one, state)) == 0


def test_interaction_touches_combinations_only():
    head, state = _random_head(0, True), torch.randn(5, 4, dtype=torch.double)
    singles = torch.eye(5, dtype=torch.double) * 1.7
    torch.testing.assert_close(head(singles, state), head.singles(singles, state))
    double = singles + singles.roll(1, 0)
    assert (head(double, state) - head.singles(double, state)).abs().min() > 1e-6


def test_interaction_can_learn_what_is_not_additive():
    torch.manual_seed(0)
    head = InterventionResponse(3, 2, 0)
    dose = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    wanted = torch.tensor([[1.0, 0], [0, 1.0], [3.0, -1.0]])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (head(dose) - wanted).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(head(dose), wanted, atol=0.02, rtol=0.02)
