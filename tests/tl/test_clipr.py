"""Direct effects from a screen: recovery with chance line, uncertainty, coverage, and the analyses around them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sccausal import grn, pl, tl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.datasets import simulate_stationary
from sccausal.metrics import auprc, direction_accuracy

KEYS = {"intervention_key": "intervention", "control": "control"}


@pytest.fixture(scope="module")
def screen():
    return simulate_stationary(30, n_cells=200, degree=2.9, measurement="gaussian", noise_ratio=1.0, seed=7)


@pytest.fixture(scope="module")
def result(screen):
    return tl.clipr(screen.copy(), **KEYS, n_bootstrap=30)


def off_diagonal(matrix, truth) -> tuple[np.ndarray, np.ndarray]:
    off = ~np.eye(len(truth), dtype=bool)
    return np.abs(np.asarray(matrix))[off], truth[off]


def test_response_form_finds_edges_and_directions(screen, result):
    scores = []
    for seed in (7, 8, 9):
        cells = simulate_stationary(30, n_cells=200, degree=2.9, measurement="gaussian", noise_ratio=1.0, seed=seed)
        truth = cells.uns["truth"]["adjacency"] != 0
        found = tl.clipr(cells, **KEYS, n_bootstrap=0)
        responses = found.responses.loc[found.sources]
        scores.append(
            [
                auprc(*off_diagonal(found.direct_effects, truth)),
                auprc(*off_diagonal(responses, truth)),
                truth.mean(),
                direction_accuracy(found.direct_effects.to_numpy(), truth),
            ]
        )
    mine, de, chance, direction = np.mean(scores, axis=0)
    assert mine >= 0.92 and mine > de + 0.2 and de > chance and direction >= 0.9
    assert result.identified and result.rank == 30 and result.symmetry_ratio > 0.5


def test_q_values_hold_their_rate(screen, result):
    truth = screen.uns["truth"]["adjacency"] != 0
    off = ~np.eye(30, dtype=bool)
    called = result.q_values.to_numpy() <= 0.05
    found = called & off
    assert found.sum() >= 0.5 * truth.sum()
    assert (found & ~truth).sum() <= 0.1 * found.sum()
    assert set(result.to_network(fdr=0.05).to_frame()["q_value"].le(0.05)) == {True}
    # no effects at all: hardly anything is called
    rng = np.random.default_rng(0)
    names = [f"G{i:03d}" for i in range(30)]
    noise = pd.DataFrame(rng.normal(size=(30, 30)) * 0.1 - 2 * np.eye(30), index=names, columns=names)
    errors = pd.DataFrame(0.1, index=names, columns=names)
    null = tl.clipr(noise, standard_errors=errors, n_bootstrap=30)
    assert (null.q_values.to_numpy()[off] <= 0.05).mean() < 0.01


def test_drift_with_targets_has_the_direction_that_the_score_lacks():
    cells = simulate_stationary(20, n_cells=300, degree=2.0, seed=3)
    truth = cells.uns["truth"]["adjacency"] != 0
    directed = tl.clipr(cells.copy(), estimator="drift+targets", n_bootstrap=0, **KEYS)
    precision = np.linalg.inv(cells.uns["truth"]["covariance"])
    assert auprc(*off_diagonal(directed.direct_effects, truth)) > auprc(*off_diagonal(precision, truth)) + 0.1
    assert direction_accuracy(directed.direct_effects.to_numpy(), truth) > 0.85
    assert directed.intercept is not None and directed.shifts.shape == (20, 20)


def test_total_effects_are_the_responses_where_these_are_exact():
    truth = simulate_stationary(10, n_cells=2, degree=2.0, seed=5).uns["truth"]
    responses = truth["means"].iloc[1:] - truth["means"].iloc[0]
    found = tl.clipr(responses, tikhonov=1e-6)
    expected = responses.to_numpy() / np.diag(responses.to_numpy())[:, None]
    np.testing.assert_allclose(found.total_effects.to_numpy(), expected, rtol=1e-2, atol=1e-2)
    exact = tl.clipr(responses, tikhonov=0.0)
    np.testing.assert_allclose(exact.total_effects.to_numpy(), expected, atol=1e-8)


def test_what_is_covered_is_said():
    cells = simulate_stationary(12, n_cells=60, n_perturbed=8, n_doubles=3, degree=2.0, seed=1)
    labels = cells.obs["intervention"].astype(str)
    perturbed = [v for v in labels.unique() if v != "control" and "+" not in v]
    renamed = labels.replace({perturbed[0]: "ELSEWHERE"})
    renamed = renamed.where(~renamed.str.contains(perturbed[0]), "ELSEWHERE")
    cells.obs["intervention"] = renamed.to_numpy()
    found = tl.clipr(cells, **KEYS, n_bootstrap=0)
    assert "ELSEWHERE" in found.left_out and perturbed[0] not in found.sources
    assert found.n_perturbed == 7 and "left out: ELSEWHERE" in repr(found)
    with pytest.warns(UserWarning, match="do not determine"):
        wide = tl.clipr(cells, sources="all", penalty="lasso", n_bootstrap=0, **KEYS)
    assert not wide.identified and len(wide.sources) == 12
    assert set(cells.uns["clipr"]["edges"]) >= {"source", "target", "weight"}


def test_batches_are_compared_within():
    cells = simulate_stationary(10, n_cells=120, degree=2.0, seed=2)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 2, cells.n_obs)
    # batch and perturbation are confounded: half of the perturbations are mostly in one batch
    first = cells.obs["intervention"].cat.codes.to_numpy() % 2 == 0
    batch = np.where(rng.random(cells.n_obs) < 0.8, first.astype(int), batch)
    plain = tl.clipr(cells.copy(), **KEYS, n_bootstrap=0)
    cells.X = cells.X + 8 * batch[:, None] * rng.normal(size=10)
    cells.obs["batch"] = batch.astype(str)
    with_key = tl.clipr(cells.copy(), **KEYS, batch_key="batch", n_bootstrap=0)
    without = tl.clipr(cells.copy(), **KEYS, n_bootstrap=0)
    reference = plain.responses.to_numpy()
    error = [np.abs(r.responses.to_numpy() - reference).mean() for r in (with_key, without)]
    assert error[0] < 0.3 * error[1]


def test_linear_stationary_diffusion_recovers_drift_and_predicts_doubles():
    cells = simulate_stationary(10, n_cells=400, n_doubles=4, degree=2.0, seed=4)
    truth = cells.uns["truth"]
    moments = grn.LinearStationaryDiffusion(ridge=1e-12).fit_moments(
        (truth["means"].iloc[1:11] - truth["means"].iloc[0]).to_numpy(), truth["shifts"][1:11] != 0,
        truth["covariance"], truth["means"].iloc[0].to_numpy(), list(cells.var_names),
        list(truth["means"].index[1:11]),
    )  # fmt: skip
    assert np.linalg.norm(moments.drift_ - truth["drift"]) < 1e-4 * np.linalg.norm(truth["drift"])
    np.testing.assert_allclose(moments.covariance_, truth["covariance"], rtol=1e-3, atol=1e-4)
    fitted = grn.LinearStationaryDiffusion().fit(cells, **KEYS)
    double = next(v for v in truth["means"].index if "+" in v)
    true, base = truth["means"].loc[double].to_numpy(), truth["means"].iloc[0].to_numpy()
    error = np.linalg.norm(fitted.mean("+".join(reversed(double.split("+")))) - true)
    assert error < 0.15 * np.linalg.norm(true - base)
    drawn = fitted.sample(double, 4000)
    np.testing.assert_allclose(drawn.std(0), np.sqrt(np.diag(truth["covariance"])), rtol=0.2)
    edges = truth["adjacency"] != 0
    assert direction_accuracy(fitted.network().to_matrix(list(cells.var_names)), edges) > 0.9
    with pytest.raises(UnknownNameError, match="G00"):
        fitted.mean("G0O1")
    with pytest.raises(SetupError, match="fit"):
        grn.LinearStationaryDiffusion().network()


def test_strong_direct_effects_imply_differential_expression(screen, result):
    other = simulate_stationary(30, n_cells=200, degree=2.9, measurement="gaussian", noise_ratio=1.0, seed=7)
    from sccausal.tl._clipr import perturbation_means

    half = perturbation_means(other, **KEYS)
    significant = (half.responses / half.standard_errors).abs() > 4
    table = tl.edge_implication(result.direct_effects, significant, quantiles=(0.9, 0.95))
    assert (table["precision"] >= table["low"]).all() and (table["precision"] <= table["high"]).all()
    assert (table["lift"] > 1).all() and (table["p_value"] < 0.05).all()
    rng = np.random.default_rng(0)
    shuffled = pd.DataFrame(
        rng.permuted(result.direct_effects.to_numpy(), axis=1), result.direct_effects.index,
        result.direct_effects.columns,
    )  # fmt: skip
    null = tl.edge_implication(shuffled, significant, quantiles=(0.9, 0.95))
    assert (null["lift"] < table["lift"]).all()


def test_modules_are_found_and_named():
    rng = np.random.default_rng(0)
    names = [f"G{i:02d}" for i in range(30)]
    group = np.repeat([0, 1, 2], 10)
    pattern = rng.normal(size=(3, 40))
    effects = pd.DataFrame(
        pattern[group] + 0.3 * rng.normal(size=(30, 40)), index=names, columns=[f"T{i:02d}" for i in range(40)]
    )
    made = grn.CliprResult(
        effects, effects, effects, "response", "control", 0.0, 30, np.ones(30), 1.0, 1.0, 30, True
    )  # fmt: skip
    sets = {f"set {k}": [n for n, g in zip(names, group, strict=True) if g == k] for k in range(3)}
    modules, enriched = tl.clipr_modules(made, sets, background=names)
    found = modules.reindex(names).to_numpy()
    assert len(set(found)) == 3 and all(len(set(found[group == k])) == 1 for k in range(3))
    assert enriched["enriched"].sum() == 3
    assert pl.clipr_modules(made, modules, show=False) is not None
    with pytest.raises(SetupError, match="by is"):
        tl.clipr_modules(made, by="rows")


def test_plots_show_direct_and_total(result, tmp_path):
    axes = pl.direct_vs_total(result, show=False)
    assert "total effect" in axes.get_xlabel() and len(axes.collections) == 2
    pl.clipr_modules(result, save=tmp_path / "m.png", show=False)
    assert (tmp_path / "m.png").stat().st_size > 0
    with pytest.raises(SetupError, match="tl.clipr"):
        pl.direct_vs_total(pd.DataFrame())


def test_bad_input_is_named(screen):
    with pytest.raises(UnknownNameError, match="intervention"):
        tl.clipr(screen, intervention_key="interventoin", control="control")
    with pytest.raises(SetupError, match="trained LCD"):
        tl.clipr(screen, estimator="drift", **KEYS)
    with pytest.raises(InputDataError, match="targets one of the genes"):
        tl.clipr(pd.DataFrame(np.ones((2, 3)), index=["x", "y"], columns=list("abc")))
    with pytest.raises(SetupError, match="noise"):
        tl.clipr(pd.DataFrame(np.eye(3), index=list("abc"), columns=list("abc")), tikhonov="noisy")
    with pytest.raises(SetupError, match="n_bootstrap"):
        tl.clipr(pd.DataFrame(np.eye(3), index=list("abc"), columns=list("abc"))).to_network(fdr=0.1)
    with pytest.raises(SetupError, match="AnnData, a trained LCD"):
        tl.clipr(3)


def test_a_thousand_genes_take_seconds():
    import time

    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(1000)]
    responses = pd.DataFrame(0.1 * rng.normal(size=(1000, 1000)) - 3 * np.eye(1000), index=names, columns=names)
    start = time.perf_counter()
    found = tl.clipr(responses)
    assert time.perf_counter() - start < 5 and found.rank == 1000
