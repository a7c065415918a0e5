from __future__ import annotations

import numpy as np
import pytest

from sccausal.datasets._network import GeneNetwork, sample_network


def draw(seed: int = 0, **changed) -> GeneNetwork:
    arguments = {
        "n_genes": 400,
        "n_regulators": 60,
        "mean_parents": 2.5,
        "strength": 3.0,
        "activating": 0.7,
        "n_feedback": 0,
    }
    return sample_network(np.random.default_rng(seed), **(arguments | changed))


def chain() -> GeneNetwork:
    """0 -> 1 -> 2, 3 alone."""
    return GeneNetwork(
        genes=np.array(["a", "b", "c", "d"]),
        source=np.array([0, 1]),
        target=np.array([1, 2]),
        weight=np.array([1.0, -2.0]),
        feedback=np.array([False, False]),
        regulators=np.array([0, 1]),
    )


def test_descendants_of_a_chain():
    assert chain().descendants(1).tolist() == [False, True, True, False]
    assert chain().descendants(3).tolist() == [False, False, False, True]


def test_levels_and_frame_of_a_chain():
    assert [level.tolist() for level in chain().regulator_levels()] == [[0], [1]]
    frame = chain().to_frame()
    assert frame.iloc[0].tolist() == ["b", "c", -2.0]
    assert chain().matrix[1, 2] == -2.0


@pytest.mark.parametrize("seed", range(3))
def test_sampled_network_is_acyclic_and_only_regulators_have_targets(seed):
    network = draw(seed)
    assert network.is_acyclic
    assert set(network.source) <= set(network.regulators)
    assert len(set(zip(network.source, network.target, strict=True))) == len(network.source)
    assert (network.source != network.target).all()


def test_feedback_closes_loops():
    assert not draw(n_feedback=40, mean_parents=4.0).is_acyclic


def test_out_degrees_are_heavy_tailed_and_signs_as_asked():
    network = draw(n_genes=2000, n_regulators=200, activating=0.7)
    degree = np.sort(np.bincount(network.source, minlength=2000))[::-1][:200]
    # a tenth of the regulators holds far more than a tenth of the edges
    assert degree[:20].sum() > 0.3 * degree.sum()
    assert abs((network.weight > 0).mean() - 0.7) < 0.03
    assert abs(np.median(np.abs(network.weight)) - 3.0) < 0.2


def test_positions_do_not_tell_the_order():
    network = draw(n_genes=1000, n_regulators=150)
    assert abs((network.source < network.target).mean() - 0.5) < 0.1
