"""The simulator of concepts: its labels follow the DAG, and every counterfactual is the same cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sccausal._errors import FileFormatError, SetupError, UnknownNameError
from sccausal.datasets import concept_counterfactual, simulate_concepts


@pytest.fixture(scope="module")
def adata():
    return simulate_concepts(1000, 80, correlation=0.6, seed=3)


def log_mean(layer):
    values = np.asarray(layer, dtype=float)
    return np.log1p(values / values.sum(1, keepdims=True) * 1e4)


def test_labels_depend_as_asked(adata):
    codes = adata.obs[["a", "b", "c", "d"]].apply(lambda s: s.cat.codes)
    corr = codes.corr()
    assert corr.loc["a", "b"] == pytest.approx(0.6, abs=0.08)
    # d depends on a through b only
    for b in (0, 1):
        here = codes["b"] == b
        assert abs(codes.loc[here, ["a", "d"]].corr().iloc[0, 1]) < 0.12
    assert adata.uns["truth"]["dag"].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "d"]]
    loose = simulate_concepts(1000, 20, correlation=0.0, seed=3).obs[["a", "b", "c", "d"]]
    assert np.abs(loose.apply(lambda s: s.cat.codes).corr().to_numpy() - np.eye(4)).max() < 0.1


def test_nothing_asked_gives_the_cell_itself(adata):
    same = concept_counterfactual(adata, {})
    np.testing.assert_array_equal(same.X, adata.X)
    np.testing.assert_array_equal(same.layers["mean"], adata.layers["mean"])
    part = adata[5:60, 10:30].copy()
    np.testing.assert_array_equal(concept_counterfactual(part, {}).X, part.X)


def test_only_descendants_follow(adata):
    after = concept_counterfactual(adata, {"b": "b1"})
    assert (after.obs["b"] == "b1").all()
    for name in ("a", "c", "age", "donor"):
        assert (after.obs[name].to_numpy() == adata.obs[name].to_numpy()).all()
    own = (adata.obs["b"] == "b1").to_numpy()
    np.testing.assert_array_equal(after.X[own], adata.X[own])  # consistency
    assert (after.obs["d"].to_numpy() != adata.obs["d"].to_numpy()).mean() > 0.1
    untouched = ~(adata.var["acts_b"] | adata.var["acts_d"]).to_numpy()
    share = log_mean(after.layers["mean"]) - log_mean(adata.layers["mean"])
    # relative expression shifts a little where others change; no gene is moved directly
    assert np.abs(share[:, untouched]).mean() < 0.6 * np.abs(share[:, ~untouched]).mean()


def test_labels_under_do_have_the_probabilities_of_the_mechanism(adata):
    after = concept_counterfactual(adata, {"a": "a1"})
    assert (after.obs["b"] == "b1").mean() == pytest.approx(0.8, abs=0.04)
    assert (adata.obs["b"] == "b1").mean() == pytest.approx(0.5, abs=0.05)


def test_named_intervention_is_in_the_layers(adata):
    after = concept_counterfactual(adata, {"a": "a1"})
    np.testing.assert_array_equal(adata.layers["counterfactual"], after.X)
    np.testing.assert_array_equal(adata.layers["counterfactual_mean"], after.layers["mean"])
    assert (adata.obs["b_counterfactual"].to_numpy() == after.obs["b"].to_numpy()).all()
    several = simulate_concepts(50, 20, intervention={"c": "c2", "age": 50})
    assert set(several.obs["c_counterfactual"]) == {"c2"} and set(several.obs["age_counterfactual"]) == {50.0}


def test_age_interpolates_and_can_belong_to_the_donor():
    adata = simulate_concepts(600, 60, seed=4)
    assert sorted(adata.obs["age"].unique()) == [20, 40, 60, 80]
    genes = adata.var["acts_age"].to_numpy()
    ages = [log_mean(concept_counterfactual(adata, {"age": v}).layers["mean"])[:, genes] for v in (20, 50, 80)]
    low, high = np.linalg.norm(ages[1] - ages[0]), np.linalg.norm(ages[2] - ages[0])
    assert 0 < low < high
    by_donor = simulate_concepts(200, 20, n_donors=5, age_by="donor", age_levels=0).obs
    assert (by_donor.groupby("donor", observed=True)["age"].nunique() == 1).all() and by_donor["age"].nunique() == 5


def test_counts_follow_their_expectation(adata):
    observed, expected = np.asarray(adata.X).mean(0), np.asarray(adata.layers["mean"]).mean(0)
    assert np.abs(observed - expected).max() < 6 * np.sqrt((expected + 0.4 * expected**2) / 1000).max()
    assert np.array_equal(adata.X, np.round(adata.X))


def test_same_seed_same_cells_and_system_apart_from_cells():
    one, two = simulate_concepts(60, 30, seed=5), simulate_concepts(60, 30, seed=5)
    np.testing.assert_array_equal(one.X, two.X)
    other = simulate_concepts(60, 30, seed=6, system_seed=5)
    pd.testing.assert_frame_equal(one.var, other.var)
    assert not np.array_equal(one.X, other.X)


def test_mean_shift_is_not_enough():
    """Effects depend on the cell and are confounded, so that a difference of means leaves most of them on b and d."""
    adata = simulate_concepts(800, 200, correlation=0.8, seed=7)
    x = log_mean(adata.X)
    for name, value in (("b", "b1"), ("d", "d2")):
        has = (adata.obs[name] == value).to_numpy()
        after = concept_counterfactual(adata, {name: value})
        change = (log_mean(after.layers["mean"]) - log_mean(adata.layers["mean"]))[~has]
        shift = x[has].mean(0) - x[~has].mean(0)
        assert ((change - shift) ** 2).sum() > 0.5 * (change**2).sum()


def test_wrong_arguments_are_named(adata):
    with pytest.raises(UnknownNameError, match="'bb'"):
        concept_counterfactual(adata, {"bb": "b1"})
    with pytest.raises(UnknownNameError, match="b1"):
        concept_counterfactual(adata, {"b": "b2"})
    with pytest.raises(UnknownNameError, match="age_by"):
        simulate_concepts(20, 20, age_by="mouse")
    for bad in ({"correlation": 1.5}, {"n_genes": 5}, {"age_levels": 1}, {"strength": -1.0}, {"library_size": 0.0}):
        with pytest.raises(SetupError):
            simulate_concepts(**{"n_cells": 20, "n_genes": 20, **bad})
    foreign = adata[:5].copy()
    foreign.uns = {}
    with pytest.raises(SetupError, match="simulate_concepts"):
        concept_counterfactual(foreign, {})
    old = adata[:5].copy()
    old.uns["truth"] = {**old.uns["truth"], "version": 0}
    with pytest.raises(FileFormatError, match="version"):
        concept_counterfactual(old, {})
