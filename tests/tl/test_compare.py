from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from toy_model import TOY_SETUP, TOY_TRAIN, BareModel, ToyModel, toy_data

from sccausal import tl
from sccausal._errors import InputDataError, NotSupportedError, SetupError, UnknownNameError
from sccausal.baselines import PerturbedMean
from sccausal.tl._compare import _training_cells


@pytest.fixture(scope="module")
def setting():
    """A toy model that never saw the double, and cells of another seed to judge it on."""
    adata = toy_data(0)
    adata.X = adata.X / 4  # inside the range of log1p(1e4)
    held = (adata.obs["perturbation"] == "g0+g1").to_numpy()
    train = adata[~held].copy()
    scvi.settings.seed = 0
    ToyModel.setup_anndata(train, **TOY_SETUP)
    model = ToyModel(train)
    model.train(**TOY_TRAIN)
    control = adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()
    return model, adata[held].copy(), control


def value(table: pd.DataFrame, method: str, metric: str) -> float:
    return float(table[(table["method"] == method) & (table["metric"] == metric)]["value"].mean())


class TestCompare:
    def test_floor_rules_model_and_ceiling_in_one_table(self, setting):
        model, held, control = setting
        table = tl.compare(model, held, control=control)
        assert {"no change", "additive", "perturbed mean", "ToyModel", "duplicate"} <= set(table["method"])
        # the toy truth is additive and linear: both find the double, predicting nothing does not
        assert value(table, "no change", "nmse_top") == pytest.approx(1.0)
        assert value(table, "additive", "nmse_top") < 0.1
        assert value(table, "ToyModel", "nmse_top") < 0.3
        assert value(table, "duplicate", "nmse_top") < 0.05

    def test_the_truth_as_a_prediction_is_perfect(self, setting):
        model, held, _ = setting
        oracle = held.copy()
        oracle.obs["intervention"] = held.obs["perturbation"]
        table = tl.compare({"model": model, "oracle": oracle}, held, baselines=False, metrics=["bulk"])
        assert value(table, "oracle", "rmse") == pytest.approx(0.0, abs=1e-6)
        assert set(table["method"]) == {"model", "oracle", "no change", "duplicate"}

    def test_source_cells_default_to_the_training_controls(self, setting):
        model, held, _ = setting
        table = tl.compare(model, held, baselines=["Additive", PerturbedMean()], duplicate=False, metrics=["rmse"])
        assert {"additive", "perturbed mean"} <= set(table["method"])
        assert "duplicate" not in set(table["method"])

    def test_labels_in_another_order_are_the_same_intervention(self, setting):
        model, held, control = setting
        turned = held.copy()
        turned.obs["perturbation"] = "g1+g0"
        kwargs = {"control": control, "baselines": False, "metrics": ["bulk"]}
        first, second = (tl.compare(model, cells, **kwargs) for cells in (held, turned))
        pd.testing.assert_frame_equal(first, second)

    def test_repeats_itself_and_leaves_the_input_alone(self, setting):
        model, held, control = setting
        before = held.copy()
        first, second = (tl.compare(model, held, control=control, seed=3) for _ in range(2))
        pd.testing.assert_frame_equal(first, second)
        pd.testing.assert_frame_equal(before.obs, held.obs)
        np.testing.assert_array_equal(before.X, held.X)

    def test_test_rows_of_the_split_do_not_reach_the_rules(self, setting):
        model, _, _ = setting
        kept = model.train_indices
        try:
            model.train_indices = np.arange(50)
            model.validation_indices = np.arange(50, 60)
            assert _training_cells(model).n_obs == 60
        finally:
            model.train_indices, model.validation_indices = kept, None

    def test_errors(self, setting):
        model, held, control = setting
        with pytest.raises(SetupError, match="no trained model"):
            tl.compare({"cells": held}, held)
        with pytest.raises(UnknownNameError, match="MeanShift"):
            tl.compare(model, held, baselines=["MeanShft"])
        with pytest.raises(UnknownNameError, match="perturbation"):
            other = held.copy()
            other.obs = other.obs.rename(columns={"perturbation": "perturbatio"})
            tl.compare(model, other)
        with pytest.raises(SetupError, match="no cell to score"):
            tl.compare(model, control)
        with pytest.raises(InputDataError, match="genes are missing"):
            tl.compare(model, held[:, :5].copy())


class TestKeyGenes:
    def test_finds_the_genes_that_truly_move(self, setting):
        model, _, _ = setting
        table = tl.key_genes(model, "g0")
        assert set(table["gene"][:3]) == {"g3", "g4", "g5"}
        assert (table["sign"][:3] == 1).all()
        assert set(tl.key_genes(model, "g1", n_top=3)["gene"]) == {"g6", "g7", "g8"}
        assert (tl.key_genes(model, "g1", n_top=3)["sign"] == -1).all()

    def test_observed_change_stands_beside(self, setting):
        model, _, _ = setting
        table = tl.key_genes(model, "g0").set_index("gene")
        cells = model.adata
        means = {v: cells[(cells.obs["perturbation"] == v).to_numpy()].X.mean(axis=0) for v in ("g0", "control")}
        expected = pd.Series(means["g0"] - means["control"], index=cells.var_names)
        np.testing.assert_allclose(table["log_fc"], expected[table.index], rtol=1e-4, atol=1e-5)
        assert set(table.index[table["rank_log_fc"] <= 3]) == {"g3", "g4", "g5"}

    def test_without_treated_cells_there_is_no_observed_change(self, setting):
        model, _, control = setting
        table = tl.key_genes(model, "g0", adata=control)
        assert table["log_fc"].isna().all()
        assert table["rank_log_fc"].isna().all()
        assert set(table["gene"][:3]) == {"g3", "g4", "g5"}

    def test_errors(self, setting):
        model, _, _ = setting
        with pytest.raises(SetupError, match="2 targets"):
            tl.key_genes(model)
        with pytest.raises(UnknownNameError, match="g0"):
            tl.key_genes(model, "g00")
        adata = toy_data(1)
        BareModel.setup_anndata(adata, **TOY_SETUP)
        with pytest.raises(NotSupportedError, match="ScConCRL"):
            tl.key_genes(BareModel(adata), "g0")
