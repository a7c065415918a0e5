"""Models and predictions in the hands of the packages around: scanpy, scvi-tools, pertpy, decoupler, MuData.

The bridge to CellOracle is tested in ``tests/grn/test_celloracle.py``, the hub's own format in
``tests/models/test_io.py``.
"""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
from mudata import MuData

import sccausal as scc

KEYS = {"intervention_key": "intervention", "control": "control"}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    counts = scc.datasets.simulate_perturb_seq(
        700, 60, 4, n_doubles=2, n_batches=2, interventions="activation", strength=4.0, seed=5, sortability=False
    )
    adata = scc.metrics.log1p_norm(counts)
    return ad.AnnData(adata.X, obs=adata.obs[["intervention", "batch"]].copy(), var=adata.var)


@pytest.fixture(scope="module")
def model(cells) -> scc.DiscrepancyVAE:
    scvi.settings.seed = 0
    adata = cells.copy()
    scc.DiscrepancyVAE.setup_anndata(adata, batch_key="batch", **KEYS)
    trained = scc.DiscrepancyVAE(adata)
    trained.train(10, batch_size=64, **QUIET)
    return trained


@pytest.fixture(scope="module")
def predicted(model) -> ad.AnnData:
    """Control cells and their predictions under two interventions."""
    return model.perturbation.predict(interventions=["control", *model.codec.targets[:2]], seed=0)


# scanpy ------------------------------------------------------------------------------------------------------------


def test_scanpy_embeds_predicted_cells(predicted):
    adata = predicted.copy()
    sc.pp.pca(adata, n_comps=10)
    sc.pp.neighbors(adata, n_neighbors=10)
    sc.tl.umap(adata, maxiter=30)
    assert adata.obsm["X_umap"].shape == (predicted.n_obs, 2)
    shown = sc.pl.umap(adata, color=["intervention", str(predicted.var_names[0])], show=False)
    assert len(shown) == 2
    import matplotlib.pyplot as plt

    plt.close("all")


def test_scanpy_finds_the_target_among_predicted_cells(predicted, model):
    adata = predicted.copy()
    sc.tl.rank_genes_groups(adata, "intervention", reference="control", method="wilcoxon")
    for target in model.codec.targets[:2]:
        table = sc.get.rank_genes_groups_df(adata, target).set_index("names")
        assert table.loc[target, "scores"] > 5
        assert target in table.index[:10]


def test_predictions_survive_a_file(predicted, tmp_path):
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    again = ad.read_h5ad(tmp_path / "predicted.h5ad")
    np.testing.assert_array_equal(again.X, predicted.X)
    assert again.obs["intervention"].tolist() == predicted.obs["intervention"].tolist()
    assert again.uns["sccausal"]["units"] == predicted.uns["sccausal"]["units"]


# pertpy --------------------------------------------------------------------------------------------------------------


def test_pertpy_distance_of_predicted_cells(predicted, cells, model):
    pt = pytest.importorskip("pertpy")
    first, second = model.codec.targets[:2]
    true = cells[cells.obs["intervention"].isin(["control", first, second]).to_numpy()].copy()
    both = ad.concat({"predicted": predicted, "true": true}, label="cells", index_unique="-")
    both.obs["group"] = both.obs["cells"].astype(str) + " " + both.obs["intervention"].astype(str)
    sc.pp.pca(both, n_comps=15)
    table = pt.tl.Distance("edistance", obsm_key="X_pca").pairwise(both, groupby="group", show_progressbar=False)
    for name, other in ((first, second), (second, first)):
        # the prediction is nearest to the true cells of its own intervention
        assert table.loc[f"predicted {name}", f"true {name}"] < table.loc[f"predicted {name}", f"true {other}"]
        assert table.loc[f"predicted {name}", f"true {name}"] < table.loc[f"predicted {name}", "true control"]


def test_pertpy_perturbation_space_of_predicted_cells(predicted, model):
    pt = pytest.importorskip("pertpy")
    adata = predicted.copy()
    sc.pp.pca(adata, n_comps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = pt.tl.CentroidSpace().compute(adata, target_col="intervention", embedding_key="X_pca")
        moved = pt.tl.CentroidSpace().compute_control_diff(
            adata, target_col="intervention", reference_key="control", embedding_key="X_pca", new_embedding_key="moved"
        )
    assert set(space.obs_names) == {"control", *model.codec.targets[:2]}
    assert moved.obsm["moved"].shape == (adata.n_obs, 5)
    # a difference from control has the control cells at zero on average
    here = (adata.obs["intervention"] == "control").to_numpy()
    assert np.abs(moved.obsm["moved"][here].mean(axis=0)).max() < 1e-3
    assert np.abs(moved.obsm["moved"][~here].mean(axis=0)).max() > 0.1


# decoupler -----------------------------------------------------------------------------------------------------------


def test_network_is_a_net_for_decoupler(cells):
    dc = pytest.importorskip("decoupler")
    network = scc.tl.structure(cells.copy(), **KEYS)
    net = network.to_frame()
    assert {"source", "target", "weight"} <= set(net.columns)
    adata = cells.copy()
    dc.mt.ulm(adata, net, tmin=3)
    scores = adata.obsm["score_ulm"]
    assert set(scores.columns) <= set(net["source"]) and scores.shape[0] == adata.n_obs
    assert np.isfinite(scores.to_numpy()).all()


def test_decoupler_reads_the_activity_of_an_activated_regulator(cells):
    """A net of true effects: the activity of a target is higher where it was activated."""
    dc = pytest.importorskip("decoupler")
    single = [t for t in cells.obs["intervention"].unique() if t != "control" and "+" not in t]
    label = cells.obs["intervention"].astype(str).to_numpy()
    means = {k: np.asarray(cells[label == k].X.mean(0)).ravel() for k in np.unique(label)}
    shift = pd.DataFrame({t: means[t] - means["control"] for t in single}, index=cells.var_names)
    top = {t: shift[t].abs().nlargest(8).index for t in single}
    rows = [(t, g, float(shift.loc[g, t])) for t in single for g in top[t]]
    network = scc.grn.Network(pd.DataFrame(rows, columns=["source", "target", "weight"]))
    adata = cells.copy()
    dc.mt.ulm(adata, network.to_frame(), tmin=3)
    label = adata.obs["intervention"].astype(str).to_numpy()
    for target in single:
        score = adata.obsm["score_ulm"][target].to_numpy()
        assert score[label == target].mean() > score[label == "control"].mean() + 0.5


# scvi-tools ----------------------------------------------------------------------------------------------------------


def test_loggers_pass_through(cells, tmp_path):
    """Any Lightning logger; MLflow's and others are given in the same way."""
    from lightning.pytorch.loggers import CSVLogger

    adata = cells[:200].copy()
    scc.DiscrepancyVAE.setup_anndata(adata, **KEYS)
    model = scc.DiscrepancyVAE(adata)
    logger = CSVLogger(tmp_path, name="run")
    model.train(2, logger=logger, log_every_n_steps=1, **QUIET)
    logged = pd.read_csv(tmp_path / "run" / "version_0" / "metrics.csv")
    assert {"elbo_train", "reconstruction_loss_train"} <= set(logged.columns), list(logged.columns)
    assert logged["elbo_train"].notna().sum() == 2
    # the history is filled all the same
    assert len(model.history["elbo_train"]) == 2
    np.testing.assert_allclose(
        logged["elbo_train"].dropna(), model.history["elbo_train"].to_numpy(dtype=float).ravel(), rtol=1e-4
    )


def test_scvi_shows_and_uses_the_setup(model, capsys):
    model.view_anndata_setup()
    assert "intervention" in capsys.readouterr().out
    assert model.registry_["setup_args"]["intervention_key"] == "intervention"
    z = model.get_latent_representation()
    adata = model.adata.copy()
    adata.obsm["X_model"] = z
    sc.pp.neighbors(adata, use_rep="X_model", n_neighbors=10)
    assert adata.obsp["connectivities"].shape == (adata.n_obs, adata.n_obs)


def test_hub_describes_a_model_of_the_package(model, tmp_path):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub (scvi-tools[hub]) is not installed")
    from huggingface_hub import ModelCard
    from scvi.hub import HubMetadata, HubModel

    folder = tmp_path / "model"
    model.save(folder, save_anndata=True)
    metadata = HubMetadata.from_dir(str(folder), anndata_version=ad.__version__, model_parent_module="sccausal.models")
    assert metadata.model_cls_name == "DiscrepancyVAE"
    # the card helper of scvi-tools 1.4 knows its own classes only, so the card is written by hand
    hub = HubModel(str(folder), metadata=metadata, model_card=ModelCard("# DiscrepancyVAE of a simulated screen"))
    hub.save(overwrite=True)
    assert json.loads((folder / "_scvi_required_metadata.json").read_text())["model_cls_name"] == "DiscrepancyVAE"
    again = HubModel(str(folder))
    assert isinstance(again.model, scc.DiscrepancyVAE)
    np.testing.assert_allclose(
        again.model.get_latent_representation(), model.get_latent_representation(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.multiprocess
def test_autotune_searches_a_model_of_the_package(cells, tmp_path):
    ray = pytest.importorskip("ray", reason="ray (the extra 'tune') is not installed")
    pytest.importorskip("scib_metrics", reason="scvi.autotune needs scib-metrics")
    from ray import tune
    from scvi.autotune import run_autotune

    adata = cells[:300].copy()
    scc.DiscrepancyVAE.setup_anndata(adata, **KEYS)
    try:
        found = run_autotune(
            scc.DiscrepancyVAE,
            adata,
            metrics="elbo_validation",
            mode="min",
            search_space={
                "model_params": {"n_latent": tune.choice([4, 8])},
                "train_params": {"max_epochs": 2, "batch_size": 64, "accelerator": "cpu", "train_size": 0.8},
            },
            num_samples=2,
            searcher="random",
            scheduler="fifo",
            resources={"cpu": 1},
            seed=0,
            logging_dir=str(tmp_path),
        )
        results = found.result_grid
        assert len(results) == 2 and not results.errors
        assert np.isfinite(results.get_best_result("elbo_validation", "min").metrics["elbo_validation"])
    finally:
        ray.shutdown()


# MuData --------------------------------------------------------------------------------------------------------------


def test_a_model_on_the_rna_of_a_mudata(cells):
    """A modality beside it, cells in another order there; the prediction is the one of the RNA alone."""
    rna = cells[:200].copy()
    protein = ad.AnnData(np.random.default_rng(0).poisson(3.0, (200, 4)).astype(np.float32), obs=rna.obs[[]].copy())
    mdata = MuData({"rna": rna, "protein": protein[::-1].copy()})
    scc.DiscrepancyVAE.setup_mudata(mdata, modality="rna", batch_key="batch", **KEYS)
    scvi.settings.seed = 0
    model = scc.DiscrepancyVAE(mdata)
    model.train(1, batch_size=64, **QUIET)
    whole = model.perturbation.predict(mdata, [model.codec.targets[0]])
    alone = model.perturbation.predict(mdata["rna"].copy(), [model.codec.targets[0]])
    np.testing.assert_array_equal(whole.X, alone.X)
    assert list(mdata.mod) == ["rna", "protein"]
