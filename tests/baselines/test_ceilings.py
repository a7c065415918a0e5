from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sccausal import baselines as bl
from sccausal import metrics as m
from sccausal._errors import SetupError, UnknownNameError

KEYS = {"intervention_key": "label", "control": "ctrl", "labels_key": "kind"}


@pytest.fixture(scope="module")
def cells() -> AnnData:
    rng = np.random.default_rng(0)
    X, obs = [], []
    base = rng.uniform(2, 4, size=(2, 30))
    effect = np.zeros((3, 30))
    effect[0, :6], effect[1, 6:12] = 1.5, 1.5
    for k, kind in enumerate("pq"):
        for i, label in enumerate(["A", "B", "ctrl"]):
            X.append(np.maximum(base[k] + effect[i] + rng.normal(size=(60, 30)), 0))
            obs += [(kind, label)] * 60
    frame = pd.DataFrame(obs, columns=["kind", "label"], index=[f"c{i}" for i in range(len(obs))])
    return AnnData(np.concatenate(X), obs=frame, var=pd.DataFrame(index=[f"g{j}" for j in range(30)]))


def test_duplicate_halves_are_disjoint_and_balanced(cells):
    rule = bl.TechnicalDuplicate().fit(cells, **KEYS)
    first, second = rule.predict(), rule.held_back()
    assert not set(first.obs["source_cell"]) & set(second.obs["source_cell"])
    assert first.n_obs == second.n_obs == 120
    assert first.obs.groupby(["intervention", "kind"], observed=True).size().eq(30).all()
    true = cells[first.obs["source_cell"]]
    np.testing.assert_allclose(first.X, true.X, rtol=1e-6)
    assert (true.obs["label"].to_numpy() == first.obs["intervention"].astype(str).to_numpy()).all()
    again = bl.TechnicalDuplicate(seed=1).fit(cells, **KEYS).predict()
    assert set(again.obs["source_cell"]) != set(first.obs["source_cell"])


def test_duplicate_of_one_type(cells):
    rule = bl.TechnicalDuplicate().fit(cells, **KEYS)
    source = cells[(cells.obs["label"] == "ctrl") & (cells.obs["kind"] == "p")].copy()
    assert rule.predict(source, "A").obs["kind"].eq("p").all()
    with pytest.raises(UnknownNameError):
        rule.predict(interventions="C")
    with pytest.raises(SetupError, match="halves"):
        rule.predict(interventions="A+B")


def test_interpolation_beats_the_plain_duplicate_on_quiet_genes(cells):
    plain, pulled = (c().fit(cells, **KEYS) for c in (bl.TechnicalDuplicate, bl.InterpolatedDuplicate))
    truth = plain.held_back("A")[:, 12:].X.mean(axis=0)
    errors = [m.rmse(r.predict(interventions="A")[:, 12:].X.mean(axis=0), truth) for r in (plain, pulled)]
    assert errors[1] < errors[0]
    strong = pulled.predict(interventions="A")[:, :6].X.mean() - plain.predict(interventions="A")[:, :6].X.mean()
    assert abs(strong) < 0.2


def test_permuted_labels_lose_the_effect(cells):
    control = cells[cells.obs["label"] == "ctrl"]
    base = control.X.mean(axis=0)
    real = bl.MeanShift().fit(cells, **KEYS).predict(interventions="A").X.mean(axis=0) - base
    rule = bl.PermutedLabels(bl.MeanShift()).fit(cells, **KEYS)
    fake = rule.predict(interventions="A").X.mean(axis=0) - base
    assert np.abs(fake).max() < 0.5 * real[:6].min()
    assert set(rule.predict(interventions="A").obs["source_cell"]) == set(control.obs_names)
    np.testing.assert_array_equal(rule.predict().X, bl.PermutedLabels(bl.MeanShift()).fit(cells, **KEYS).predict().X)


@pytest.fixture(scope="module")
def curved() -> AnnData:
    """The effect of the stimulus depends on the type through a saturating state."""
    rng = np.random.default_rng(0)
    loadings = np.abs(rng.normal(size=(2, 25)))
    X, obs = [], []
    for kind, level in zip("pqrs", (0.2, 0.8, 1.4, 1.1), strict=True):
        for label, extra in (("ctrl", 0.0), ("stim", 1.0)):
            state = level + 0.15 * rng.normal(size=80)
            X.append(
                np.outer(state, loadings[0]) + extra * np.outer(state, loadings[1]) + 0.05 * rng.normal(size=(80, 25))
            )
            obs += [(kind, label)] * 80
    frame = pd.DataFrame(obs, columns=["kind", "label"], index=[f"c{i}" for i in range(len(obs))])
    return AnnData(np.maximum(np.concatenate(X), 0).astype(np.float32), obs=frame)


STIM = {"condition_key": "label", "control": "ctrl", "labels_key": "kind"}


def test_latent_shift_beats_mean_shift_where_effects_depend_on_state(curved):
    import torch

    errors = {}
    state = torch.random.get_rng_state()
    for kind in "qr":
        test = (curved.obs["kind"] == kind) & (curved.obs["label"] == "stim")
        control = curved[(curved.obs["kind"] == kind) & (curved.obs["label"] == "ctrl")].copy()
        truth, base = curved[test].X.mean(axis=0), control.X.mean(axis=0)
        rules = (bl.MeanShift(), bl.LatentShift(n_latent=4, n_hidden=32, max_epochs=150, dropout=0.0))
        for rule in rules:
            mean = rule.fit(curved[~test].copy(), **STIM).predict(control, ["stim"]).X.mean(axis=0)
            errors.setdefault(rule.name, []).append(m.normalised_mse(mean, truth, base))
    assert np.mean(errors["latent shift"]) < 0.8 * np.mean(errors["mean shift"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_latent_shift_with_pca_is_the_mean_shift_within_its_axes(curved):
    full = bl.LatentShift(method="pca", n_latent=25, clip="none").fit(curved, **STIM).predict(interventions="stim")
    plain = bl.MeanShift(clip="none").fit(curved, **STIM).predict(interventions="stim")
    np.testing.assert_allclose(full.X, plain.X, atol=1e-3)


def test_latent_shift_repeats_itself(curved):
    small = {"n_latent": 3, "n_hidden": 8, "max_epochs": 3}
    a, b, c = (bl.LatentShift(**small, seed=s).fit(curved, **STIM).predict(interventions="stim") for s in (0, 0, 1))
    np.testing.assert_array_equal(a.X, b.X)
    assert not np.array_equal(a.X, c.X)
    control = bl.LatentShift(**small).fit(curved, **STIM).predict(interventions="ctrl")
    np.testing.assert_allclose(control.X, curved[curved.obs["label"] == "ctrl"].X, rtol=1e-6)
    with pytest.raises(SetupError):
        bl.LatentShift(method="umap")  # type: ignore[arg-type]
