"""Tests over units with refits, and scores of gene sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from concept_case import QUIET, fitted, log1p_norm, simulated

from sccausal import pl, tl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.datasets import concept_counterfactual


@pytest.fixture(scope="module")
def few():
    """Six donors, concepts a and b."""
    adata = simulated(400, 120, n_donors=6, seed=4, affected=0.1)
    return adata, fitted(adata, dag={"b": ["a"]}, keys=["a", "b"], epochs=50)


def test_table_of_tests_over_donors(few):
    adata, model = few
    train = {**QUIET, "max_epochs": 8}
    table = tl.concept_de(model, "b", "b1", unit_key="donor", groupby="a", n_refits=3, train=train, seed=1)
    assert list(table["gene"]) == 2 * list(adata.var_names) and (table["n_units"] == 6).all()
    assert (table["p_adjusted"] >= table["p_value"] - 1e-12).all() and (table["se"] > 0).all()
    np.testing.assert_allclose((table["low"] + table["high"]) / 2, table["change"], atol=1e-9)
    # the interval and the test say the same
    outside = (table["low"] > 0) | (table["high"] < 0)
    assert (outside == (table["p_value"] < 0.05)).all()


@pytest.mark.slow
def test_genes_are_found_over_donors_and_others_are_not():
    # cells in which the concept does not change the sum of all rates, which would move every gene
    adata = simulated(400, 120, n_donors=6, seed=0, affected=0.1)
    model = fitted(adata, dag={"b": ["a"]}, keys=["a", "b"], epochs=2)  # lends its set-up
    train = {**QUIET, "max_epochs": 80}
    table = tl.concept_de(model, "b", "b1", unit_key="donor", n_refits=8, train=train, seed=1)
    after = log1p_norm(concept_counterfactual(adata, {"b": "b1"}).layers["mean"]) - adata.layers["log_mean"]
    effect = after[(adata.obs["b"] == "b0").to_numpy()].mean(0)
    strong, null = np.abs(effect) > 0.6, np.abs(effect) < 0.1
    assert strong.sum() >= 5 and null.sum() >= 30
    found = table["p_value"].to_numpy() < 0.05
    assert found[strong].mean() > 0.6
    assert found[null].mean() <= 0.1
    assert (np.sign(table["change"].to_numpy()) == np.sign(effect))[strong].mean() > 0.9


def test_what_cannot_be_tested_is_said(few):
    adata, model = few
    with pytest.raises(UnknownNameError, match="donor"):
        tl.concept_de(model, "b", "b1", unit_key="donr")
    with pytest.raises(SetupError, match="n_refits"):
        tl.concept_de(model, "b", "b1", unit_key="donor", n_refits=1)
    with pytest.raises(InputDataError, match="3 or more"):
        tl.concept_de(model, "b", "b1", unit_key="a")
    # the donor as a concept: no draw of donors holds every donor
    nested = fitted(adata[:200].copy(), dag=None, keys=["a", "donor"], epochs=2)
    with pytest.raises(InputDataError, match="Leave such concepts"):
        tl.concept_de(nested, "a", "a1", unit_key="donor", n_refits=3)


def test_gene_set_response_shows_what_the_graph_adds(few, tmp_path):
    adata, model = few
    genes = list(adata.var_names[adata.var["acts_b"] & ~adata.var["acts_a"]])
    alone = fitted(adata, dag=None, keys=["a", "b"], epochs=50)
    table = tl.gene_set_response({"DAG": model, "none": alone}, {"a": ["a0", "a1"]}, genes)
    assert list(table.columns) == ["model", "a", "score", "observed"] and len(table) == 4
    moved = table.pivot(index="model", columns="a", values="score").diff(axis=1)["a1"].abs()
    assert moved["DAG"] > 2 * moved["none"]  # genes of b follow a only along the edge
    both = tl.gene_set_response({"DAG": model}, {"a": ["a0", "a1"], "b": ["b0", "b1"]}, genes)
    axes = pl.gene_set_response(both, show=False, save=tmp_path / "x.png")
    assert len(axes) == 1 and (tmp_path / "x.png").stat().st_size > 2000
    with pytest.raises(UnknownNameError, match="concept"):
        pl.gene_set_response(both, x="c")
    with pytest.raises(UnknownNameError, match="gene"):
        tl.gene_set_response({"DAG": model}, {"a": ["a0"]}, ["nothing"])


def test_plots_of_counterfactuals(few, tmp_path):
    adata, model = few
    rng = np.random.default_rng(0)
    adata.obsm["spatial"] = rng.random((adata.n_obs, 2))
    predicted = model.counterfactual(adata, {"b": "b1"})
    ax = pl.counterfactual(adata, predicted, "b", show=False)
    grey, blue, sent = (c.get_offsets() for c in ax.collections[:3])
    assert len(grey) == len(sent) == (adata.obs["b"] == "b0").sum() and len(blue) == (adata.obs["b"] == "b1").sum()
    # the cells that were sent lie nearer to those that have the value
    assert np.linalg.norm(sent.mean(0) - blue.mean(0)) < 0.6 * np.linalg.norm(grey.mean(0) - blue.mean(0))
    gene = adata.var_names[np.argmax(adata.var["acts_b"])]
    ax = pl.spatial_effect(adata, predicted, [gene], show=False, save=tmp_path / "s.png")
    shown = ax.collections[0].get_array()
    change = pd.Series(np.asarray(predicted[:, gene].X).ravel() - adata[:, gene].X.ravel())
    np.testing.assert_allclose(np.sort(shown), np.sort(change), atol=1e-5)
    with pytest.raises(SetupError, match="not set"):
        pl.counterfactual(adata, predicted, "a")
    with pytest.raises(UnknownNameError, match="basis"):
        pl.spatial_effect(adata, predicted, [gene], basis="space")
    with pytest.raises(UnknownNameError, match="gene"):
        pl.spatial_effect(adata, predicted, ["nothing"])
