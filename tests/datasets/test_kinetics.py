from __future__ import annotations

import numpy as np
import pytest

from sccausal.datasets._kinetics import Kinetics
from sccausal.datasets._network import GeneNetwork, sample_network

N_CELLS = 5


def two_genes(weight: float) -> Kinetics:
    network = GeneNetwork(
        genes=np.array(["a", "b"]),
        source=np.array([0]),
        target=np.array([1]),
        weight=np.array([weight]),
        feedback=np.array([False]),
        regulators=np.array([0]),
    )
    return Kinetics(network, hill=np.array([2.0]), half=np.array([1.0]), turnover=np.ones(2))


def random_kinetics(n_feedback: int = 0) -> Kinetics:
    rng = np.random.default_rng(0)
    network = sample_network(
        rng, n_genes=80, n_regulators=20, mean_parents=3, strength=3, activating=0.6, n_feedback=n_feedback
    )
    return Kinetics(network, rng.uniform(1.5, 3, 20), np.exp(rng.normal(0, 0.3, 20)), np.exp(rng.normal(0, 0.3, 80)))


def calm(kinetics: Kinetics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, t = kinetics.network.n_genes, len(kinetics.network.regulators)
    return np.zeros((m, N_CELLS)), np.ones((m, N_CELLS)), np.ones((t, N_CELLS))


def test_basal_state_is_one():
    kinetics = random_kinetics()
    assert np.allclose(kinetics.steady_state(*calm(kinetics)), 1.0)


@pytest.mark.parametrize(("weight", "expected"), [(4.0, 1 / 3), (-4.0, 3.0)])
def test_knockout_of_the_only_regulator_in_closed_form(weight, expected):
    # activity at the basal level is 1/2, so F(basal) = 1 + 4/2 and F(0) = 1
    kinetics = two_genes(weight)
    drive, factor, competence = calm(kinetics)
    factor[0] = 0.0
    assert np.allclose(kinetics.steady_state(drive, factor, competence)[:, 0], [0.0, expected])


def test_activation_saturates():
    kinetics = two_genes(4.0)
    drive, factor, competence = calm(kinetics)
    factor[0] = [1, 2, 10, 100, 1e4]
    response = kinetics.steady_state(drive, factor, competence)[1]
    assert (np.diff(response) > 0).all()
    assert response[-1] < 5 / 3 + 1e-9


@pytest.mark.parametrize("n_feedback", [0, 15])
def test_steady_state_is_a_fixed_point(n_feedback):
    kinetics = random_kinetics(n_feedback)
    rng = np.random.default_rng(1)
    drive, factor, competence = calm(kinetics)
    drive = 0.4 * rng.standard_normal(drive.shape)
    factor[kinetics.network.regulators[3]] = 0.0
    state = kinetics.steady_state(drive, factor, competence)
    # the way towards the steady state, started at it, stays there
    later = kinetics.relax(state, drive, factor, competence, np.full(N_CELLS, 3.0))
    assert np.allclose(later, state, rtol=1e-6, atol=1e-9)


def test_relaxation_goes_from_start_to_steady_state():
    kinetics = random_kinetics()
    drive, factor, competence = calm(kinetics)
    start = kinetics.steady_state(drive, factor, competence)
    factor[kinetics.network.regulators[:2]] = 0.0
    end = kinetics.steady_state(drive, factor, competence)
    at = kinetics.relax(start, drive, factor, competence, np.array([0.0, 0.5, 1.0, 4.0, 60.0]))
    assert np.array_equal(at[:, 0], start[:, 0])
    assert np.allclose(at[:, 4], end[:, 4], atol=1e-3)
    away = np.abs(at - end).sum(axis=0)
    assert (np.diff(away) < 0).all()


def test_lone_gene_relaxes_exponentially():
    kinetics = two_genes(4.0)
    drive, factor, competence = calm(kinetics)
    factor[0] = 0.0
    time = np.linspace(0, 3, N_CELLS)
    levels = kinetics.relax(np.ones_like(drive), drive, factor, competence, time)
    assert np.allclose(levels[0], np.exp(-time))
