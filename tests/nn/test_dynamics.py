from __future__ import annotations

import numpy as np
import pytest
import torch

from sccausal._errors import SetupError
from sccausal.nn import LaggedDynamics


def test_without_parents_it_is_the_exact_relaxation():
    """An Ornstein-Uhlenbeck process: one long gap equals many short ones, in mean and in variance."""
    torch.manual_seed(0)
    block = LaggedDynamics(3)
    with torch.no_grad():
        block.gates.zero_()
        block.centre.copy_(torch.tensor([1.0, -2.0, 0.5]))
        block.log_rate.copy_(torch.tensor([0.3, -1.0, 0.0]))
    start = torch.randn(5, 3)
    mean, log_var = block(start, torch.full((5, 1), 1.6))
    m, v = start, torch.zeros(5, 3)
    for _ in range(4):
        m_next, lv = block(m, torch.full((5, 1), 0.4))
        v = v * block.decay(torch.full((5, 1), 0.4)).square() + lv.exp()
        m = m_next
    torch.testing.assert_close(m, mean)
    torch.testing.assert_close(v, log_var.exp())


def test_a_zero_gate_cuts_the_edge():
    torch.manual_seed(0)
    block = LaggedDynamics(3, 2)
    torch.nn.init.normal_(block.second)
    with torch.no_grad():
        block.gates[0, 2] = 0.0
        block.gates[4, 1] = 0.0
    state, other = torch.randn(1, 3), torch.randn(1, 2)
    jacobian = torch.autograd.functional.jacobian(lambda h: block.pull(h), torch.cat([state, other], 1))[0, :, 0].T
    allowed = (block.weights() != 0).float()
    assert allowed[0, 2] == 0 and allowed[4, 1] == 0 and (allowed.diagonal()[:3] == 0).all()
    assert ((jacobian.abs() > 1e-7).float() == allowed).all()


def test_the_triangular_graph_has_an_order_and_no_persistence():
    block = LaggedDynamics(4, graph="triangular")
    weight = block.weights().detach().numpy()
    assert not np.tril(weight).any() and np.triu(weight, 1).any()
    state = torch.randn(6, 4)
    first = block(state, torch.ones(6, 1)).mean[:, 0]
    torch.testing.assert_close(first, first[:1].expand(6))  # nothing stands before the first coordinate
    with pytest.raises(SetupError, match="ring"):
        LaggedDynamics(4, graph="ring")


def test_interventions_move_the_intercept_of_an_average_control_cell_only():
    torch.manual_seed(1)
    block = LaggedDynamics(2, 3, n_features=2)
    torch.nn.init.normal_(block.second)
    state, other = torch.randn(400, 2), torch.randn(400, 3)
    before = block(state, torch.ones(400, 1), other).mean
    for _ in range(400):
        block.follow_control(state, other, torch.ones(400, dtype=torch.bool))
    # centring changes no transition of control cells
    torch.testing.assert_close(block(state, torch.ones(400, 1), other).mean, before, atol=1e-5, rtol=1e-5)
    pull = block.pull(torch.cat([state, other], 1)) - block.control_mean
    torch.testing.assert_close(pull.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    with torch.no_grad():
        block.goal[0] = torch.tensor([1.5, 0.0])
        block.cut[1] = torch.tensor([0.0, 30.0])
    shifted = torch.tensor([[1.0, 0.0]]).expand(400, 2)
    moved = block(state, torch.ones(400, 1), other, shifted).mean - before
    gained = (1 - block.decay(torch.ones(1, 1)))[0, 0] * 1.5
    # without a cut of parents the shift is the same for all cells, up to the small starting values of the cuts
    assert moved[:, 0].mean().item() == pytest.approx(gained.item(), rel=0.02)
    hit = torch.tensor([[0.0, 1.0]]).expand(400, 2)
    goal = block(state, torch.full((400, 1), 1e3), other, hit).mean[:, 1]
    assert goal.std() < 1e-4  # its parents are gone
    assert goal.mean().item() == pytest.approx(block.centre[1].item(), abs=1e-4)


def test_it_learns_a_lagged_graph():
    """Cells of a known linear system; gates of true edges end far above the others."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    truth = np.zeros((4, 4))
    truth[0, 1], truth[1, 2], truth[0, 3] = 0.9, -0.8, 0.7
    state = torch.as_tensor(rng.standard_normal((3000, 4)), dtype=torch.float32)
    later = 0.5 * state + 0.5 * state @ torch.as_tensor(truth, dtype=torch.float32) + 0.2 * torch.randn(3000, 4)
    block = LaggedDynamics(4)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.03)
    for _ in range(400):
        mean, log_var = block(state, torch.ones(3000, 1))
        loss = 0.5 * (log_var + (later - mean).square() * torch.exp(-log_var)).mean() + 0.01 * block.l1()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = block.weights().detach().abs().numpy()
    assert found[truth != 0].min() > 3 * found[truth == 0].max()
    assert torch.exp(-block.log_rate.exp()).mean().item() == pytest.approx(0.5, abs=0.05)


def test_shares_name_the_coordinate_that_an_intervention_hits():
    block = LaggedDynamics(3, 0, n_features=2)
    with torch.no_grad():
        block.goal.copy_(torch.tensor([[2.0, 0.1, 0.0], [0.0, 0.0, -1.0]]))
        block.spread.copy_(torch.tensor([[0.0, 0.0, 0.1], [0.0, 2.0, 0.0]]))
    shares = block.shares(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(shares[:2].sum(1), torch.ones(2))
    assert shares[0, 0] > 0.99
    assert shares[1, 1] > 0.1 and shares[1, 2] > 0.1 and shares[1, 0] < 0.01
    assert not shares[2].any()
