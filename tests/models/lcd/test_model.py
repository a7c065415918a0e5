"""LCD: what it contains in closed form, what the network adds, and what it is sure of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData

from sccausal import LCD, tl
from sccausal._errors import SetupError, UnknownNameError
from sccausal.baselines import Additive
from sccausal.datasets import simulate_stationary
from sccausal.metrics import auprc, direction_accuracy, energy_distance, log1p_norm
from sccausal.models.lcd._statistics import interaction_of, state_statistics
from sccausal.models.lcd._transport import move

KEYS = {"intervention_key": "intervention", "control": "control"}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def trained(adata: AnnData, epochs: int = 10, setup: dict | None = None, train: dict | None = None, **init) -> LCD:
    scvi.settings.seed = 0
    LCD.setup_anndata(adata, **{**KEYS, **(setup or {})})
    model = LCD(adata, **{"n_hidden": 64, **init})
    model.train(epochs, **{**QUIET, **(train or {})})
    return model


def cells(blocks: dict[str, np.ndarray], **obs) -> AnnData:
    X = np.concatenate(list(blocks.values())).astype(np.float32)
    labels = np.repeat(list(blocks), [len(v) for v in blocks.values()])
    frame = pd.DataFrame({"intervention": labels, **obs}, index=[f"c{i}" for i in range(len(X))])
    return AnnData(X, obs=frame, var=pd.DataFrame(index=[f"g{i}" for i in range(X.shape[1])]))


@pytest.fixture(scope="module")
def gaussian() -> tuple[LCD, np.ndarray, dict[str, np.ndarray]]:
    """Five genes, five perturbations, one covariance; pairs (never seen) shift by the sum."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5)) / 2 + np.eye(5)
    means = {"control": np.zeros(5), **{f"g{i}": 3 * rng.normal(size=5) for i in range(5)}}
    blocks = {k: m + rng.normal(size=(2000, 5)) @ root.T for k, m in means.items()}
    means |= {"g1+g3": means["g1"] + means["g3"], "g0+g4": means["g0"] + means["g4"]}
    return trained(cells(blocks), 4), root @ root.T, means


# closed form -------------------------------------------------------------------------------------------------------


def test_drift_is_that_of_the_gaussian(gaussian):
    model, covariance, means = gaussian
    scale = model.module.scale.numpy()
    x = np.random.default_rng(1).normal(size=(300, 5)) * 2
    for name in ("control", "g1", "g3", "g1+g3", "g0+g4"):
        for sigma in (0.1, 0.5, 2.0):
            noisy = covariance + sigma**2 * np.diag(scale**2)
            exact = -(x - means[name]) @ np.linalg.inv(noisy)
            found = model.drift(x, name, sigma=sigma)
            assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact), (name, sigma)


def test_draws_have_the_law_of_the_condition(gaussian):
    model, covariance, means = gaussian
    sd = np.sqrt(np.diag(covariance))
    # Langevin mixes slowly where genes are correlated
    slow = {"n_steps": 60, "step": 0.1}
    for sampler, options, mean, spread in (("heun", {}, 0.09, 0.04), ("annealed_langevin", slow, 0.12, 0.12)):
        drawn = model.sample(["g2", "g1+g3"], 3000, sampler=sampler, **options)
        for name in ("g2", "g1+g3"):
            X = np.asarray(drawn.X)[(drawn.obs["intervention"] == name).to_numpy()]
            assert (np.abs(X.mean(0) - means[name]) / sd).max() < mean, (sampler, name)
            assert np.abs(X.std(0) / sd - 1).max() < spread, (sampler, name)
    with pytest.raises(UnknownNameError, match="sampler"):
        model.sample(["g2"], sampler="hoin")


def test_simulated_dynamics_end_in_the_law_of_the_sampler():
    adata = simulate_stationary(6, n_cells=500, degree=2.0, seed=1)
    model = trained(adata, 15)
    name, control = str(adata.var_names[2]), adata.uns["truth"]["means"].iloc[0].to_numpy()
    sd = np.sqrt(np.diag(adata.uns["truth"]["covariance"]))
    start = np.tile(control, (2000, 1))
    path = model.simulate(start, name, [0.0, 30.0], step=0.02)
    np.testing.assert_allclose(path[0], start, atol=1e-5)
    drawn = model.sample([name], 2000).X
    reversible = model.simulate(start, name, [30.0], step=0.02, directed=False)[0]
    for end in (path[1], reversible):
        assert (np.abs(end.mean(0) - drawn.mean(0)) / sd).max() < 0.15
        assert np.abs(end.std(0) / drawn.std(0) - 1).max() < 0.1
    # the same law, other dynamics: with directions the target moves first
    first = [model.simulate(start[:1], name, [0.05], directed=d, noise=False)[0, 0] for d in (True, False)]
    moved = [np.abs(f - control) / sd for f in first]
    share = [m[2] / m.sum() for m in moved]
    assert share[0] > 0.6 and share[0] > share[1] + 0.15, share


def test_mechanistic_drift_of_a_linear_system():
    adata = simulate_stationary(8, n_cells=800, degree=2.0, seed=3)
    model = trained(adata, 3)
    truth = adata.uns["truth"]
    found = model.clipr(estimator="drift+targets", units="state").direct_effects.to_numpy().T
    error = np.linalg.norm(found - truth["drift"]) / np.linalg.norm(truth["drift"])
    symmetric = np.linalg.norm(-np.linalg.inv(truth["covariance"]) - truth["drift"]) / np.linalg.norm(truth["drift"])
    assert error < 0.25 < symmetric, (error, symmetric)
    # effects at once, indirect ones later
    x0 = np.tile(truth["means"].iloc[0].to_numpy(), (1, 1))
    path = model.simulate(x0, adata.var_names[0], [0.02, 30.0], units="state", noise=False, step=0.002)
    np.testing.assert_allclose(
        path[1, 0], truth["means"].loc[adata.var_names[0]], atol=0.12 * np.abs(truth["means"].to_numpy()).max()
    )


def test_without_evidence_a_prediction_is_control_plus_shrunken_effect():
    rng = np.random.default_rng(0)
    effect = np.r_[np.full(5, 2.0), np.zeros(45)]
    blocks = {"control": rng.normal(size=(300, 50)), "g0": rng.normal(size=(60, 50)) + effect}
    adata = cells(blocks)
    model = trained(adata, 3)
    exact = adata.X[300:].mean(0) - adata.X[:300].mean(0)
    found = model.perturbation.effects(["g0"])["change"].to_numpy()
    assert np.linalg.norm(found - effect) < 0.6 * np.linalg.norm(exact - effect)
    moved = model.perturbation.predict(interventions=["g0"])
    rest = np.asarray(moved.X) - adata.X[:300]
    if float(model.module.gate.max()) == 0:
        np.testing.assert_allclose(rest.std(0), 0, atol=1e-5)
    plain = trained(adata, 3, effects="none", prediction="shift").perturbation.effects(["g0"])["change"]
    np.testing.assert_allclose(plain, 0, atol=1e-6)


def test_a_change_of_shape_is_transported_and_found_worth_it():
    """The intervention acts on half of the cells only: those of one state."""
    rng = np.random.default_rng(1)

    def draw(n: int, treated: bool) -> np.ndarray:
        state = rng.integers(0, 2, n)
        x = 0.4 * rng.normal(size=(n, 12))
        x[:, :4] += 3.0 * state[:, None]
        x[:, 4:8] += 3.0 * (state if treated else 0 * state)[:, None]
        return x

    adata = cells({"control": draw(1500, False), "A": draw(1000, True), "B": draw(1000, False)})
    model = trained(adata, 40, n_hidden=96)
    gate = dict(zip(model.codec.targets, model.module.gate.numpy(), strict=True))
    assert gate["A"] > 0.8
    truth, source = draw(800, True), cells({"control": draw(800, False)})
    scores = {}
    for kind in ("transport", "shift"):
        model.prediction_ = kind
        scores[kind] = energy_distance(np.asarray(model.perturbation.predict(source, ["A"]).X), truth)
    assert scores["transport"] < 0.5 * scores["shift"], scores
    model.prediction_ = "transport"
    predicted = np.asarray(model.perturbation.predict(source, ["A"]).X)
    high = source.X[:, :4].mean(1) > 1.5
    assert predicted[high, 4:8].mean() > predicted[~high, 4:8].mean() + 0.5
    # a batch that lies elsewhere is taken relative to its own control cells
    shifted = source.copy()
    shifted.X = source.X + np.float32(4)
    off = {}
    for aligned in (True, False):
        model.align_queries_ = aligned
        here, there = (np.asarray(model.perturbation.predict(c, ["A"]).X) for c in (source, shifted))
        off[aligned] = np.abs(there - 4 - here).mean()
    assert off[True] < 0.1 and off[True] < 0.5 * off[False], off
    model.align_queries_ = False
    drawn = model.sample(["A"], 800).X
    assert energy_distance(drawn, truth) < 0.6 * scores["shift"]


def test_genes_with_a_spike_keep_it():
    rng = np.random.default_rng(0)
    x = torch.as_tensor(np.log1p(rng.poisson(0.5, (4000, 1)) * 2.0), dtype=torch.float32)
    level, p = x.mean(0), (x > 0).float().mean(0)
    tail = torch.quantile(x[x > 0], torch.linspace(0.03, 0.97, 16))[:, None]
    spike, u = torch.ones(1, dtype=torch.bool), torch.rand(4000, 1)
    for delta in (-0.2, -0.05, 0.05, 0.2):
        moved = move(x, level, torch.full_like(x, delta), spike, p, tail, u)
        assert float(moved.mean() - level) == pytest.approx(delta, abs=0.25 * abs(delta) + 0.01)
        assert float(moved.min()) == 0 and float((moved == 0).float().mean()) > 0.3
    torch.testing.assert_close(move(x, level, torch.zeros_like(x), spike, p, tail, u), x)
    plain = move(x, level, torch.full_like(x, -0.2), ~spike, p, tail, u)
    torch.testing.assert_close(plain, x - 0.2)


def test_saturation_of_pairs_is_learned_from_other_pairs():
    rng = np.random.default_rng(0)
    d, t = 60, 8
    effects = rng.normal(size=(t, d)) * (rng.random((t, d)) < 0.4) * 2

    def mean(row: np.ndarray, saturated: bool) -> np.ndarray:
        total = row @ effects
        return 1.5 * np.tanh(total / 1.5) if saturated else total

    pairs = [(i, j) for i in range(t) for j in range(i)]
    rows = np.concatenate([np.zeros((1, t)), np.eye(t), [[float(k in p) for k in range(t)] for p in pairs[:14]]])
    for saturated in (True, False):
        X = np.concatenate([mean(r, saturated) + rng.normal(size=(80, d)) for r in rows]).astype(np.float32)
        dose = np.repeat(rows, 80, axis=0).astype(np.float32)
        found = state_statistics(X, dose, np.zeros(len(X), int), 1)
        errors = []
        for pair in pairs[14:]:
            row = np.array([float(k in pair) for k in range(t)])
            truth = mean(row, saturated)
            additive = row @ found.singles
            full = additive + interaction_of(row, found.singles, found.scale, found.interaction)
            errors.append([np.square(additive - truth).mean(), np.square(full - truth).mean()])
        without, with_it = np.mean(errors, axis=0)
        assert with_it < 0.75 * without if saturated else with_it < 1.1 * without, (saturated, without, with_it)


@pytest.mark.parametrize("kinetics", ["linear", "hill"])
def test_unseen_doubles_are_no_worse_than_additive(kinetics):
    """Where effects add up, the additive rule is the truth; on counts of saturating kinetics shrinkage must help."""
    scores = []
    for seed in range(2):
        adata = simulate_stationary(
            24, kinetics=kinetics, n_perturbed=12, n_doubles=12, n_cells=80, n_control=200, degree=3.0, knockdown=0.2,
            measurement="none" if kinetics == "linear" else "zip", seed=seed,
        )  # fmt: skip
        if kinetics == "hill":
            adata = log1p_norm(adata)
            adata.X = adata.X.toarray()
        label = adata.obs["intervention"].astype(str).to_numpy()
        pairs = sorted(k for k in set(label) if "+" in k)[::2]
        train, control = adata[~np.isin(label, pairs)].copy(), adata[label == "control"].copy()
        rule = Additive(clip="none" if kinetics == "linear" else "mean").fit(train, **KEYS)
        model = trained(train, 1, prediction="shift")
        found = {"lcd": model.perturbation.predict(control, pairs), "additive": rule.predict(control, pairs)}
        for name in pairs:
            truth = np.asarray(adata.X[label == name])
            rows = {k: (v.obs["intervention"].astype(str) == name).to_numpy() for k, v in found.items()}
            each = {k: energy_distance(np.asarray(v.X)[rows[k]], truth) for k, v in found.items()}
            scores.append({**each, "none": energy_distance(np.asarray(control.X), truth)})
    table = pd.DataFrame(scores).mean()
    if kinetics == "linear":
        assert table["lcd"] <= table["additive"] + 0.05 * table["none"], table
    else:
        assert table["lcd"] < 0.8 * table["additive"], table


def test_one_environment_is_not_enough():
    rng = np.random.default_rng(0)
    blocks = {"control": rng.normal(size=(40, 3)), "g0": rng.normal(size=(40, 3)) + 1}
    alone = cells(blocks)
    alone.obsm["doses"] = pd.DataFrame({"g0": np.zeros(80)}, index=alone.obs_names)
    treated = alone.copy()
    treated.obsm["doses"] = pd.DataFrame({"g0": np.ones(80)}, index=alone.obs_names)
    for adata in (alone, treated):
        with pytest.raises(SetupError, match="no control cell, or no treated one|all cells are control cells"):
            LCD.setup_anndata(adata, intervention_key="doses", control="control")
            LCD(adata, n_hidden=8).train(1, **QUIET)


def test_rare_and_unseen_targets():
    rng = np.random.default_rng(0)
    adata = cells({"control": rng.normal(size=(100, 6)), "a": rng.normal(size=(60, 6)) + 1,
                   "b": rng.normal(size=(60, 6)) - 3})  # fmt: skip
    doses = pd.DataFrame(
        {k: (adata.obs["intervention"] == k).astype(float) for k in ("a", "b")} | {"never": 0.0}, index=adata.obs_names
    )
    adata.obsm["doses"] = doses
    scvi.settings.seed = 0
    for on_unseen in ("mean", "raise"):
        LCD.setup_anndata(adata, intervention_key="doses", control="control")
        model = LCD(adata, n_hidden=16, on_unseen=on_unseen)
        model.train(2, **QUIET)
        if on_unseen == "mean":
            with pytest.warns(UserWarning, match="No training cell was under never"):
                effect = model.perturbation.effects(["never"])["change"].to_numpy()
            both = model.perturbation.effects(["a", "b"]).groupby("gene")["change"].mean()
            np.testing.assert_allclose(effect, both.to_numpy(), atol=0.3)
        else:
            with pytest.raises(SetupError, match="never"):
                model.perturbation.predict(interventions=["never"])


# direct effects ----------------------------------------------------------------------------------------------------


def test_direct_effects_of_a_linear_system():
    adata = simulate_stationary(20, n_cells=200, degree=2.0, seed=5)
    model = trained(adata, 4)
    truth, off = adata.uns["truth"]["adjacency"] != 0, ~np.eye(20, dtype=bool)
    response = tl.clipr(model, n_bootstrap=0)
    drift = model.clipr(estimator="drift")
    raw = response.responses.loc[response.sources].to_numpy()
    found = {"response": response.direct_effects.to_numpy(), "drift": drift.direct_effects.to_numpy(), "de": raw}
    area = {k: auprc(np.abs(v)[off], truth[off]) for k, v in found.items()}
    assert area["response"] > area["de"] + 0.2 and area["response"] > area["drift"] + 0.1, area
    assert direction_accuracy(response.direct_effects.to_numpy(), truth) > 0.9
    # a score has no direction, and the result says so
    assert drift.symmetry_ratio < 0.5 < response.symmetry_ratio
    assert model.grn.network(fdr=0.05).metadata["estimator"] == "response"
    modes = model.fixed_points(kind="mode")
    means = adata.uns["truth"]["means"].loc[modes.index, modes.columns]
    assert np.corrcoef(modes.to_numpy().ravel(), means.to_numpy().ravel())[0, 1] > 0.99


# assumptions -------------------------------------------------------------------------------------------------------


def _verdicts(adata: AnnData) -> dict[str, str]:
    scvi.settings.seed = 0
    LCD.setup_anndata(adata, **KEYS)
    return {c.name: c.verdict for c in LCD(adata).identifiability_report()}


def test_each_check_changes_its_verdict():
    rng = np.random.default_rng(0)
    base = {"control": rng.normal(size=(200, 3))}
    shifts = 2 * np.eye(3) + 0.3 * rng.normal(size=(3, 3))
    full = {**base, **{f"g{i}": rng.normal(size=(100, 3)) + shifts[i] for i in range(3)}}
    good = _verdicts(cells({**full, "g0+g1": rng.normal(size=(100, 3)) + shifts[0] + shifts[1]}))
    assert {good[k] for k in ("enough cells", "perturbations reach their targets", "every gene is perturbed",
                              "effects add up", "dynamics are linear")} == {"holds"}  # fmt: skip
    assert good["cells are in rest"] == "unknown"
    assert _verdicts(cells({**full, "g0": full["g0"][:8]}))["enough cells"] == "violated"
    off = {**full, "g0": full["control"][:100] + [0, 2, 0], "g1": full["control"][100:] + [2, 0, 0]}
    assert _verdicts(cells(off))["perturbations reach their targets"] == "violated"
    assert _verdicts(cells({k: v for k, v in full.items() if k not in ("g1", "g2")}))["every gene is perturbed"] == (
        "violated"
    )
    assert _verdicts(cells({**full, "g0+g1": rng.normal(size=(100, 3))}))["effects add up"] == "violated"
    assert _verdicts(cells({**full, "g2": 3 * rng.normal(size=(100, 3)) + shifts[2]}))["dynamics are linear"] == (
        "violated"
    )


def test_bad_arguments_are_named(gaussian):
    model = gaussian[0]
    adata = model.adata.copy()
    for init, match in (({"effects": "all"}, "effects"), ({"prediction": "walk"}, "prediction"),
                        ({"preset": "gpu"}, "preset"), ({"n_hidden": 0}, "n_hidden")):  # fmt: skip
        LCD.setup_anndata(adata, **KEYS)
        with pytest.raises((SetupError, UnknownNameError), match=match):
            LCD(adata, **init)
    with pytest.raises(SetupError, match="no noise model"):
        model.train(1, stage="noise")
    with pytest.raises(SetupError, match="Times"):
        model.simulate(np.zeros((1, 5)), "g1", [2.0, 1.0])
    with pytest.raises(SetupError, match="intervention_key"):
        LCD.setup_anndata(adata, batch_key="intervention")
    table = trained(simulate_stationary(6, n_cells=60, n_doubles=2, degree=1.0), 2).score_interactions(["G000+G001"])
    assert {"magnitude", "fit", "observed"} <= set(table) and len(table) == 1


def test_paper_preset_runs_on_two_environments():
    rng = np.random.default_rng(0)
    adata = cells({"control": rng.normal(size=(200, 4)), "g0": rng.normal(size=(200, 4)) + 3})
    model = trained(adata, 60, preset="paper", n_hidden=64, n_embedding=16, train={"train_size": 1.0})
    assert model.prediction_ == "sample" and model.module.parametrisation == "reference"
    moved = model.perturbation.effects(["g0"])["change"]
    assert np.isfinite(moved).all()
