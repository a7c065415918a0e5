from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neural_network import MLPRegressor

from sccausal._errors import SetupError
from sccausal.datasets import simulate_temporal_factors


def test_interventions_move_their_factor_and_no_invariant_one():
    adata = simulate_temporal_factors(6000, n_times=4, seed=3)
    truth, label = adata.uns["truth"], adata.obs["intervention"].astype(str).to_numpy()
    late = (adata.obs["time"] == 3).to_numpy()
    c, s = adata.obsm["invariant"], adata.obsm["responsive"]
    control = late & (label == "control")
    error = np.sqrt(2 / control.sum())
    for _, row in truth["targets"].iterrows():
        own = late & (label == row["intervention"])
        moved = (s[own].mean(0) - s[control].mean(0)) / s[control].std(0)
        at = truth["responsive"].index(row["factor"])
        # the factor goes towards the new goal; it has had four of the steps that halve the distance
        assert s[own, at].mean() == pytest.approx(row["goal"], abs=0.15 * abs(row["goal"]) + 0.1)
        assert abs(moved[at]) == pytest.approx(np.abs(moved).max())
        still = (c[own].mean(0) - c[control].mean(0)) / c[control].std(0)
        assert np.abs(still).max() < 4.5 * error


def test_the_graph_is_lagged_and_keeps_invariant_factors_apart():
    adata = simulate_temporal_factors(3000, n_times=5, seed=0)
    graph = adata.uns["truth"]["graph"]
    invariant = set(adata.uns["truth"]["invariant"])
    assert not any(t in invariant and s not in invariant for s, t in zip(graph["source"], graph["target"], strict=True))
    assert not (graph["source"] == graph["target"]).any()
    # a parent helps to predict the change of its child one step later, a factor without an edge does not
    names = [*adata.uns["truth"]["invariant"], *adata.uns["truth"]["responsive"]]
    z = np.column_stack([adata.obsm["invariant"], adata.obsm["responsive"]]).reshape(3000, 5, -1)
    label = adata.obs["intervention"].astype(str).to_numpy()[::5]
    edges = {(s, t) for s, t in zip(graph["source"], graph["target"], strict=True)}
    gains: dict[bool, list[float]] = {True: [], False: []}
    for j, target in enumerate(names):
        if target == "shape":
            continue
        free = ~np.char.startswith(label.astype(str), f"do_{target.removeprefix('responsive_')}_")
        before, after = z[free, 2], z[free, 3, j]

        def features(x, source, j=j):
            own = [x[:, [j]], x[:, [names.index("shape")]]]
            k = names.index(source)
            return np.column_stack([*own, np.sin(x[:, [k]]), np.cos(x[:, [k]]), x[:, [k]]])

        base = Ridge(1e-3).fit(features(before, target), after).score(features(before, target), after)
        for source in names:
            if source in (target, "shape"):
                continue
            got = Ridge(1e-3).fit(features(before, source), after).score(features(before, source), after)
            gains[(source, target) in edges].append(got - base)
    assert np.median(gains[True]) > 5 * np.median(gains[False])


@pytest.mark.parametrize("mixing", ["linear", "relu", pytest.param("polynomial", marks=pytest.mark.slow)])
def test_the_mixing_can_be_inverted(mixing):
    adata = simulate_temporal_factors(2500, n_times=2, mixing=mixing, noise=0.02, seed=1)
    truth = np.column_stack([adata.obsm["invariant"], adata.obsm["responsive"]])
    x, y = np.asarray(adata.X, float), (truth - truth.mean(0)) / truth.std(0)
    fit, test = slice(0, 4000), slice(4000, None)
    linear = r2_score(y[test], Ridge(1e-2).fit(x[fit], y[fit]).predict(x[test]))
    if mixing == "linear":
        assert linear > 0.99
        return
    rule = MLPRegressor(hidden_layer_sizes=(128,), early_stopping=True, random_state=0, max_iter=150)
    assert r2_score(y[test], rule.fit(x[fit], y[fit]).predict(x[test])) > max(0.93, linear - 0.02)


def test_cells_are_tracked_or_destroyed():
    tracked = simulate_temporal_factors(50, n_times=3, seed=2)
    assert tracked.n_obs == 150 and (tracked.obs.groupby("track")["time"].nunique() == 3).all()
    shape = tracked.obsm["invariant"][:, -1].reshape(50, 3)
    assert (shape == shape[:, :1]).all()
    once = simulate_temporal_factors(50, n_times=3, tracked=False, seed=2)
    assert once.n_obs == 50 and once.obs["track"].is_unique
    np.testing.assert_array_equal(simulate_temporal_factors(50, n_times=3, seed=2).X, tracked.X)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"mixing": "cubic"}, "cubic"),
        ({"n_invariant": 1}, "n_invariant"),
        ({"n_features": 5}, "5 features"),
        ({"n_cells": 5}, "5 trajectories"),
        ({"control_fraction": 1.0}, "control_fraction"),
    ],
)
def test_bad_arguments_are_named(bad, match):
    with pytest.raises(SetupError, match=match):
        simulate_temporal_factors(**{"n_cells": 100, **bad})
