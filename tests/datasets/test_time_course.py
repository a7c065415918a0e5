from __future__ import annotations

import numpy as np
import pytest

from sccausal._errors import SetupError
from sccausal.datasets import simulate_time_course


@pytest.fixture(scope="module")
def adata():
    return simulate_time_course(25, n_genes=80, n_targets=5, times=(0.5, 2.0, 6.0), seed=4)


def test_counterfactual_means_are_those_of_the_same_cell_at_the_same_time(adata):
    label = adata.obs["intervention"].astype(str).to_numpy()
    control = label == "control"
    factual, without = adata.layers["mean"], adata.layers["counterfactual_mean"]
    np.testing.assert_array_equal(factual[control], without[control])
    assert (np.abs(factual[~control] - without[~control]).max(1) > 0).all()
    # genes downstream of no target are the same in both worlds
    network = adata.uns["truth"]["network"]
    reached = set(adata.uns["truth"]["targets"]["target"])
    while True:
        more = set(network.loc[network["source"].isin(reached), "target"]) | reached
        if more == reached:
            break
        reached = more
    rest = ~adata.var_names.isin(reached)
    assert rest.any()
    np.testing.assert_array_equal(factual[:, rest], without[:, rest])


def test_control_cells_differentiate_and_effects_grow(adata):
    lines = adata.uns["truth"]["trajectories"].set_index(["intervention", "time"])
    control = lines.loc["control"]
    moved = np.linalg.norm(control - control.loc[0.0], axis=1)
    assert (np.diff(moved) > 0).all()
    effects = adata.uns["truth"]["effects"]
    for name in adata.uns["truth"]["targets"]["target"]:
        own = [effects.loc[name, f"{name} @ {t:g}"] for t in (0.5, 2.0, 6.0)]
        assert own[0] > 0 and own[2] > own[0]
        np.testing.assert_allclose(lines.loc[(name, 2.0)] - control.loc[2.0], effects[f"{name} @ 2"])
    at_zero = lines.xs(0.0, level="time")
    np.testing.assert_allclose(at_zero - at_zero.loc["control"], 0, atol=1e-5)


def test_effects_depend_on_time_beyond_scale(adata):
    """Time and intervention do not add up, and no factor on the early effect gives the late one."""
    effects = adata.uns["truth"]["effects"]
    left = []
    for name in adata.uns["truth"]["targets"]["target"]:
        early, late = effects[f"{name} @ 0.5"].drop(name), effects[f"{name} @ 6"].drop(name)
        best = (early @ late) / (early @ early)
        left.append(((late - best * early) ** 2).sum() / (late**2).sum())
    assert np.mean(left) > 0.1


def test_observed_means_agree_with_the_truth():
    adata = simulate_time_course(200, n_genes=60, n_targets=2, times=(1.0, 3.0), noise=0.1, seed=1)
    label, time = adata.obs["intervention"].astype(str).to_numpy(), adata.obs["time"].to_numpy()
    scaled = adata.layers["mean"] / (adata.obs["size_factor"].to_numpy() * 6000)[:, None] * 1e4
    lines = adata.uns["truth"]["trajectories"].set_index(["intervention", "time"])
    for name in np.unique(label):
        own = np.log1p(scaled[(label == name) & (time == 3.0)]).mean(0)
        assert np.abs(own - lines.loc[(name, 3.0)].to_numpy()).max() < 0.12


def test_same_seed_same_cells_and_the_network_can_be_kept():
    first, again = (simulate_time_course(3, n_genes=40, n_targets=2, seed=7) for _ in range(2))
    assert (first.X != again.X).nnz == 0
    other = simulate_time_course(3, n_genes=40, n_targets=2, seed=8, network_seed=7)
    assert (first.X != other.X).nnz > 0
    assert first.uns["truth"]["network"].equals(other.uns["truth"]["network"])


@pytest.mark.parametrize(
    ("bad", "match"),
    [({"times": (1.0,)}, "two different"), ({"times": (0.0, 1.0)}, "greater"), ({"n_targets": 0}, "n_t")],
)
def test_bad_arguments_are_named(bad, match):
    with pytest.raises(SetupError, match=match):
        simulate_time_course(2, n_genes=20, **{"n_targets": 2, **bad})
