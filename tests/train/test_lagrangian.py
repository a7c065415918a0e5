from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sccausal._errors import NumericalError, SetupError
from sccausal.train import LagrangianState, augmented_lagrangian, lagrangian_update, register_lagrangian_buffers


def test_first_update_moves_the_multiplier_only():
    new = lagrangian_update(LagrangianState(), 0.5)
    assert new == LagrangianState(multiplier=0.5, penalty=1.0, previous=0.5)


def test_penalty_grows_only_without_progress():
    state = LagrangianState(multiplier=1.0, penalty=2.0, previous=1.0)
    assert lagrangian_update(state, 0.2).penalty == 2.0
    assert lagrangian_update(state, 0.3) == LagrangianState(1.6, 20.0, 0.3)
    assert lagrangian_update(state, 0.3, factor=3.0, shrink=0.5).penalty == 2.0


def test_state_is_not_changed():
    state = LagrangianState(1.0, 2.0, 3.0)
    lagrangian_update(state, 5.0)
    assert state == (1.0, 2.0, 3.0)


@given(
    h=st.lists(st.floats(0, 1e3), min_size=1, max_size=30),
    penalty=st.floats(1e-3, 1e9),
    cap=st.floats(1e-3, 1e9),
)
def test_multiplier_and_penalty_never_fall_and_the_cap_holds(h, penalty, cap):
    state = LagrangianState(penalty=penalty)
    for value in h:
        new = lagrangian_update(state, value, max_penalty=cap)
        assert new.multiplier >= state.multiplier
        assert state.penalty <= new.penalty <= max(cap, penalty)
        state = new


@pytest.mark.parametrize("bad", [{"factor": 0.5}, {"shrink": 0.0}, {"shrink": 1.5}])
def test_bad_options(bad):
    with pytest.raises(SetupError):
        lagrangian_update(LagrangianState(), 1.0, **bad)


@pytest.mark.parametrize("h", [math.nan, math.inf])
def test_not_finite(h):
    with pytest.raises(NumericalError):
        lagrangian_update(LagrangianState(), h)


def test_outer_loop_solves_a_constrained_problem():
    # min (x - 2)^2 + (y - 1)^2 with x + y = 1 has x = 1, y = 0 and multiplier 2
    module = nn.Module()
    module.x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    register_lagrangian_buffers(module)
    target = torch.tensor([2.0, 1.0], dtype=torch.float64)
    state = LagrangianState()
    for _ in range(30):
        module.lagrangian_multiplier.fill_(state.multiplier)
        module.lagrangian_penalty.fill_(state.penalty)
        optimizer = torch.optim.LBFGS([module.x], max_iter=100, line_search_fn="strong_wolfe")

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = (module.x - target).square().sum() + augmented_lagrangian(module, module.x.sum() - 1)
            loss.backward()
            return loss

        optimizer.step(closure)
        state = lagrangian_update(state, float(module.x.detach().sum() - 1), max_penalty=10.0)
    assert torch.allclose(module.x, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-4)
    assert state.multiplier == pytest.approx(2.0, abs=1e-3)


def test_buffers_are_saved():
    module = nn.Module()
    register_lagrangian_buffers(module, multiplier=3.0, penalty=7.0)
    state = module.state_dict()
    assert {k: float(v) for k, v in state.items()} == {
        "lagrangian_multiplier": 3.0,
        "lagrangian_penalty": 7.0,
        "lagrangian_previous": math.inf,
    }
