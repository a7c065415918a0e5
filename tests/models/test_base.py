"""Parts of the base that the contract does not reach."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from mudata import MuData
from toy_model import TOY_SETUP, TOY_TRAIN, ToyModel, toy_data

from sccausal import tl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.models import Check, IdentifiabilityReport


def trained(adata, **train) -> ToyModel:
    scvi.settings.seed = 0
    ToyModel.setup_anndata(adata, **TOY_SETUP)
    model = ToyModel(adata)
    model.train(**{**TOY_TRAIN, "max_epochs": 2, **train})
    return model


# identifiability ---------------------------------------------------------------------------------------------------


def test_a_check_has_one_of_three_verdicts():
    with pytest.raises(SetupError, match="maybe"):
        Check("a", "b", True, "maybe")
    with pytest.raises(SetupError, match="cannot be checked"):
        Check("a", "b", False, "holds")


def test_report_finds_shows_and_filters_checks():
    checks = [
        Check("overlap", "Batches overlap.", True, "violated", 0.123456, "Shared neighbours."),
        Check("noise", "Noise is independent.", False, "unknown", None, "No data can tell."),
    ]
    report = IdentifiabilityReport("Some", checks)
    assert report["overlap"].statistic == 0.123456
    assert report.violated == checks[:1]
    assert [c.name for c in report] == ["overlap", "noise"] and len(report) == 2
    text = repr(report)
    assert "violated" in text and "0.123" in text and "cannot be checked" in text
    with pytest.raises(UnknownNameError, match="overlap"):
        report["overlaps"]


def test_verdict_changes_with_the_one_thing_it_checks():
    many, few = toy_data(), toy_data()
    labels = few.obs["perturbation"].to_numpy().copy()
    labels[np.flatnonzero(labels == "control")[3:]] = "g0"
    few.obs["perturbation"] = labels
    verdicts = [tl.identifiability(trained(a))["control cells"].verdict for a in (many, few)]
    assert verdicts == ["holds", "violated"]


# MuData ------------------------------------------------------------------------------------------------------------


def make_mudata() -> MuData:
    adata = toy_data()
    return MuData({"rna": adata, "protein": adata[:, :3].copy()})


def test_mudata_works_on_its_rna_modality(tmp_path):
    mdata = make_mudata()
    ToyModel.setup_mudata(mdata, modality="rna", **TOY_SETUP)
    scvi.settings.seed = 0
    model = ToyModel(mdata)
    model.train(**{**TOY_TRAIN, "max_epochs": 2})
    z = model.get_latent_representation(mdata)
    np.testing.assert_array_equal(z, trained(toy_data()).get_latent_representation())
    assert model.perturbation.predict(mdata, ["g0"]).n_vars == mdata["rna"].n_vars
    model.save(tmp_path / "model")
    loaded = ToyModel.load(tmp_path / "model", make_mudata(), accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_latent_representation(), z)


def test_mudata_errors_say_what_to_do():
    mdata = make_mudata()
    with pytest.raises(SetupError, match="'rna', 'protein'"):
        ToyModel.setup_mudata(mdata, modality="atac", **TOY_SETUP)
    mdata.obs["site"] = "x"
    with pytest.raises(SetupError, match="push_obs"):
        ToyModel.setup_mudata(mdata, **{**TOY_SETUP, "batch_key": "site"})


# doses, layers, query ----------------------------------------------------------------------------------------------


def test_doses_in_obsm_and_a_layer():
    import pandas as pd

    adata = toy_data()
    labels = adata.obs.pop("perturbation")
    frame = pd.DataFrame({t: labels.str.contains(t).astype(float) for t in ("g0", "g1")}, index=adata.obs_names)
    adata.obsm["dose"] = frame
    adata.layers["log"] = adata.X.copy()
    adata.X = np.zeros_like(adata.X)
    scvi.settings.seed = 0
    ToyModel.setup_anndata(adata, layer="log", batch_key="batch", intervention_key="dose")
    model = ToyModel(adata)
    model.train(**TOY_TRAIN)
    predicted = model.perturbation.predict(interventions=["g0", {"g1": 0.5}])
    assert set(predicted.obs["intervention"]) == {"g0", "g1:0.5"}
    assert predicted.n_obs == 2 * int((labels == "control").sum())
    assert np.asarray(predicted.X).mean() > 5
    cells = adata[labels == "control"].copy()
    np.testing.assert_allclose(
        model.perturbation.predict(cells, ["g0"]).X, predicted[predicted.obs["intervention"] == "g0"].X, rtol=1e-5
    )
    del cells.layers["log"]
    with pytest.raises(SetupError, match="log"):
        model.perturbation.predict(cells, ["g0"])


def test_nan_in_new_cells_is_named():
    model = trained(toy_data())
    cells = toy_data()
    cells.X[0, 4] = np.nan
    with pytest.raises(InputDataError, match="g4"):
        model.get_latent_representation(cells)


def test_query_of_known_batches_has_nothing_to_train():
    model = trained(toy_data())
    query = ToyModel.load_query_data(toy_data(1), model, accelerator="cpu")
    with pytest.raises(SetupError, match="nothing to train"):
        query.train(**TOY_TRAIN)
    assert query.is_trained


def test_new_batch_starts_at_the_mean_and_learns_its_shift():
    model = trained(toy_data(), max_epochs=25)
    cells = toy_data(1)
    cells.X += 4
    cells.obs["batch"] = "new"
    query = ToyModel.load_query_data(cells, model, accelerator="cpu")
    shift = query.module.batch_shift
    torch.testing.assert_close(shift[2], shift[:2].mean(0))
    before = shift.detach().clone()
    query.train(**{**TOY_TRAIN, "max_epochs": 30})
    assert torch.equal(query.module.batch_shift[:2], before[:2])
    # the encoder takes up a part of the offset
    assert (query.module.batch_shift[2] - before[2]).detach().mean() > 0.5
    assert len(query.history["elbo_train"]) == 30


def test_unfrozen_query_moves_all_but_the_graph():
    model = trained(toy_data())
    cells = toy_data(1)
    cells.obs["batch"] = "new"
    query = ToyModel.load_query_data(cells, model, accelerator="cpu", unfrozen=True)
    query.module.graph_parameters = ("effect",)
    before = {k: v.clone() for k, v in query.module.state_dict().items()}
    query.train(**{**TOY_TRAIN, "max_epochs": 2})
    after = query.module.state_dict()
    assert torch.equal(after["effect"], before["effect"])
    assert not torch.equal(after["mean.weight"], before["mean.weight"])


def test_rank_refuses_what_it_cannot_search():
    model = trained(toy_data())
    target = model.adata[model.adata.obs["perturbation"] == "g0"].copy()
    with pytest.raises(UnknownNameError, match="metric"):
        model.perturbation.rank(target, metric="cosine")
    with pytest.raises(UnknownNameError, match="gene"):
        model.perturbation.rank(target, genes=["g99"])
    with pytest.raises(SetupError, match="12 finite values"):
        model.perturbation.rank(np.zeros(3), metric="mean")
    listed = model.perturbation.rank(target, ["g0", "g1"], metric="mean", genes=["g3", "g4"])
    assert set(listed["intervention"]) == {"control", "g0", "g1"}
    narrow = model.perturbation.rank(target, beam=1, metric="mean")
    assert set(narrow["size"]) == {0, 1, 2} and len(narrow) == 4
