from __future__ import annotations

import numpy as np
import pytest

from sccausal._errors import InputDataError, UnknownNameError
from sccausal.metrics import block_scores


@pytest.fixture(scope="module")
def world():
    """Responsive factors with invariant parents; environments move the responsive ones."""
    rng = np.random.default_rng(0)
    environment = rng.integers(0, 5, 3000)
    c = rng.standard_normal((3000, 2))
    s = 0.7 * c + rng.standard_normal((3000, 2)) + np.column_stack([environment == 1, environment == 2]) * 2.0
    return c, s, environment, rng.random(3000) < 0.7


def scores(learned, world, **kwargs):
    c, s, environment, train = world
    table = block_scores(learned, {"invariant": c, "responsive": s}, environment, train, kind="linear", **kwargs)
    return table.set_index("metric")


def test_the_truth_scores_best_and_leaks_by_itself(world):
    c, s, _, _ = world
    found = scores({"invariant": c, "responsive": s}, world)
    assert found["value"][["r2_responsive", "r2_invariant", "r2_invariant_linear", "mcc"]].min() > 0.99
    assert found["value"]["excess_invariant"] == found["value"]["excess_responsive"] == 0
    assert found["floor"]["excess_responsive"] > 0.1  # dependent blocks leak without any fault
    assert found["value"]["environment_accuracy"] < found["value"]["environment_chance"] + 0.05


def test_a_representation_without_blocks_passes_r2_but_not_the_separation(world):
    c, s, _, _ = world
    everything = np.column_stack([c, s]) @ np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    found = scores({"invariant": everything, "responsive": everything}, world)["value"]
    assert found[["r2_responsive", "r2_invariant", "r2_global"]].min() > 0.99
    assert found["excess_invariant"] > 0.3 and found["excess_responsive"] > 0.3
    assert found["environment_accuracy"] > found["environment_chance"] + 0.1


def test_swapped_blocks_score_badly(world):
    c, s, _, _ = world
    found = scores({"invariant": s, "responsive": c}, world)["value"]
    assert found["r2_responsive"] < 0.5 and found["r2_invariant"] < 0.5 and found["r2_global"] > 0.99


def test_bad_blocks_are_named(world):
    c, s, environment, train = world
    truth = {"invariant": c, "responsive": s}
    with pytest.raises(UnknownNameError, match="responsive"):
        block_scores({"invariant": c}, truth, environment, train)
    with pytest.raises(InputDataError, match="invariant block"):
        block_scores({"invariant": c[:10], "responsive": s}, truth, environment, train)
    with pytest.raises(InputDataError, match="Probes"):
        block_scores(truth, truth, environment, np.ones(3000, bool))
