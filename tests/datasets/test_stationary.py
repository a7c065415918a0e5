"""Simulated stationary cells agree with the equations they come from."""

from __future__ import annotations

import numpy as np
import pytest

from sccausal._errors import SetupError
from sccausal.datasets import simulate_stationary


def _by_label(adata, values: np.ndarray) -> dict[str, np.ndarray]:
    labels = adata.obs["intervention"].astype(str).to_numpy()
    return {k: values[labels == k] for k in np.unique(labels)}


def test_linear_cells_rest_where_the_drift_vanishes_and_vary_as_lyapunov_says():
    adata = simulate_stationary(10, n_cells=3000, n_perturbed=4, n_doubles=2, degree=2.0, seed=1)
    truth = adata.uns["truth"]
    drift, covariance = truth["drift"], truth["covariance"]
    rest = truth["means"].to_numpy() @ drift.T + truth["bias"] + truth["shifts"]
    np.testing.assert_allclose(rest, 0, atol=1e-8)
    np.testing.assert_allclose(drift @ covariance + covariance @ drift.T, -2 * np.eye(10), atol=1e-8)
    assert np.linalg.eigvals(drift).real.max() < 0
    np.testing.assert_array_equal((truth["adjacency"] != 0), (drift.T != 0) & ~np.eye(10, dtype=bool))
    for name, cells in _by_label(adata, np.asarray(adata.X, dtype=float)).items():
        error = (cells.mean(0) - truth["means"].loc[name]) / np.sqrt(np.diag(covariance) / 3000)
        assert np.abs(error).max() < 4.5
    # effects add up, exactly
    double = next(v for v in truth["means"].index if "+" in v)
    a, b = double.split("+")
    m = truth["means"]
    np.testing.assert_allclose(m.loc[double] - m.loc["control"], m.loc[a] + m.loc[b] - 2 * m.loc["control"], atol=1e-8)


def test_hill_cells_are_positive_in_rest_and_not_additive():
    adata = simulate_stationary(15, kinetics="hill", n_cells=200, n_doubles=8, degree=3.0, seed=0)
    assert (adata.layers["state"] > 0).all()
    m = adata.uns["truth"]["means"]
    own = [m.loc[g, g] / m.loc["control", g] for g in m.columns]
    assert np.median(own) < 0.4
    rest, size = 0.0, 0.0
    for double in [v for v in m.index if "+" in v]:
        a, b = double.split("+")
        rest += float(np.square(m.loc[double] - m.loc[a] - m.loc[b] + m.loc["control"]).sum())
        size += float(np.square(m.loc[double] - m.loc["control"]).sum())
    assert rest > 0.01 * size


@pytest.mark.parametrize("kinetics", ["linear", "hill"])
def test_counts_have_the_loss_and_depth_asked_for(kinetics):
    adata = simulate_stationary(
        12,
        kinetics=kinetics,
        n_perturbed=2,
        n_cells=1500,
        degree=1.0,
        measurement="zip",
        dropout=0.3,
        depth=8.0,
        seed=2,
    )
    counts = _by_label(adata, np.asarray(adata.X))["control"]
    assert np.array_equal(counts, np.round(counts)) and counts.min() == 0
    np.testing.assert_array_equal(adata.X, adata.layers["counts"])
    # at this depth a zero is nearly always a loss
    assert np.median((counts == 0).mean(0)) == pytest.approx(0.3, abs=0.06)
    assert np.median(counts.mean(0)) == pytest.approx(0.7 * 8.0, rel=0.25)


def test_noise_ratio_seed_and_arguments():
    options = {
        "n_cells": 2000,
        "n_perturbed": 1,
        "degree": 1.0,
        "measurement": "gaussian",
        "noise_ratio": 2.0,
        "seed": 3,
    }
    noisy = simulate_stationary(8, **options)
    control = (noisy.obs["intervention"] == "control").to_numpy()
    ratio = noisy.X[control].std(0) / noisy.layers["state"][control].std(0)
    np.testing.assert_allclose(ratio, np.sqrt(5), rtol=0.06)
    again = simulate_stationary(8, **options)
    np.testing.assert_array_equal(noisy.X, again.X)
    hubs = simulate_stationary(60, n_cells=2, degree=4.0, graph="scale_free", seed=0).uns["truth"]["adjacency"] != 0
    plain = simulate_stationary(60, n_cells=2, degree=4.0, seed=0).uns["truth"]["adjacency"] != 0
    assert hubs.sum(1).max() > 2 * plain.sum(1).max()
    wrong = [
        ({"kinetics": "mm"}, "kinetics"),
        ({"n_perturbed": 9}, "8 of them"),
        ({"n_doubles": 99}, "pairs"),
        ({"dropout": 1.0}, "dropout"),
        ({"measurement": "nb"}, "measurement"),
    ]
    for bad, match in wrong:
        with pytest.raises(SetupError, match=match):
            simulate_stationary(8, **{"degree": 1.0, **bad})
