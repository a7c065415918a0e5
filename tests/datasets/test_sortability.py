from __future__ import annotations

import numpy as np
import pytest

from sccausal._errors import InputDataError
from sccausal.datasets import r2_sortability, simulate_perturb_seq, varsortability
from sccausal.datasets._sortability import order_agreement


def linear_chain(n: int = 4000, weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    adjacency = np.diag([weight, weight, weight], k=1)
    values = rng.standard_normal((n, 4))
    for j in range(1, 4):
        values[:, j] += weight * values[:, j - 1]
    return values, adjacency


def test_variances_of_a_chain_give_the_order_away():
    values, adjacency = linear_chain()
    assert varsortability(values, adjacency) == 1.0
    assert varsortability(-values[:, ::-1], adjacency) == 0.0
    # standardised by hand, up to rounding: ties count half
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    assert varsortability(standard, adjacency) == pytest.approx(0.5)


def test_r2_does_not_depend_on_scale():
    values, adjacency = linear_chain()
    scaled = values * np.array([100.0, 0.1, 3.0, 7.0])
    assert r2_sortability(values, adjacency) == r2_sortability(scaled, adjacency)


def test_r2_of_a_chain_in_closed_form():
    # precision of x1 -> x2 -> x3 with weights 1: diagonal 2, 2, 1; variances 1, 2, 3: R2 is 1/2, 3/4, 2/3
    values, adjacency = linear_chain(n=200_000)
    found = r2_sortability(values[:, :3], adjacency[:3, :3])
    assert found == order_agreement(adjacency[:3, :3], np.array([1 / 2, 3 / 4, 2 / 3])) == 2 / 3


def test_paths_count_once_per_length():
    adjacency = np.zeros((3, 3))
    adjacency[0, 1] = adjacency[1, 2] = adjacency[0, 2] = 1
    # length 1: 0-1 up, 1-2 down, 0-2 up; length 2: 0-2 up
    assert order_agreement(adjacency, np.array([0.0, 2.0, 1.0])) == 3 / 4


def test_cycles_and_empty_graphs():
    loop = np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert order_agreement(loop, np.array([0.0, 1.0, 2.0])) == 1.0
    assert np.isnan(order_agreement(np.zeros((3, 3)), np.arange(3.0)))


def test_bad_shapes_are_refused():
    with pytest.raises(InputDataError, match="shape"):
        order_agreement(np.zeros((3, 3)), np.arange(4.0))
    with pytest.raises(InputDataError, match="two cells"):
        varsortability(np.zeros((1, 3)), np.zeros((3, 3)))


def test_simulation_reports_both(caplog):
    with caplog.at_level("INFO", logger="sccausal.datasets"):
        adata = simulate_perturb_seq(n_cells=300, n_genes=50, n_targets=3, seed=0)
    truth = adata.uns["truth"]
    assert 0 <= truth["varsortability"] <= 1 and 0 <= truth["r2_sortability"] <= 1
    assert "varsortability" in caplog.text
