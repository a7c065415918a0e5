"""The way to CellOracle and back; runs only in an environment made by the recipe of the user guide."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest

from sccausal.datasets import simulate_perturb_seq
from sccausal.grn import Network, bagged_ridge, network_from_celloracle, network_to_links

pytestmark = pytest.mark.skipif(importlib.util.find_spec("celloracle") is None, reason="CellOracle is not installed")


@pytest.fixture(scope="module")
def oracle():
    """An Oracle with imputed cells and a base network of true and random edges, and that network."""
    import celloracle as co

    adata = simulate_perturb_seq(600, 1200, 4, n_types=1, seed=0, sortability=False)
    truth, rng = adata.uns["truth"]["network"], np.random.default_rng(0)
    random = pd.DataFrame(
        {"source": rng.choice(truth["source"].unique(), 6000), "target": rng.choice(adata.var_names, 6000)}
    )
    pairs = pd.concat([truth[["source", "target"]], random]).drop_duplicates().assign(weight=1.0)
    base = Network(pairs[pairs["source"] != pairs["target"]])
    adata.obsm["X_umap"] = rng.normal(size=(adata.n_obs, 2)).astype(np.float32)
    # one cluster: CellOracle standardises regulators over the cells of all clusters before it takes them apart
    adata.obs["cell_type"] = pd.Categorical(["all"] * adata.n_obs)
    adata.uns = {"cell_type_colors": ["#0072B2"]}
    oracle = co.Oracle()
    oracle.import_anndata_as_raw_count(adata, cluster_column_name="cell_type", embedding_name="X_umap")
    oracle.import_TF_data(TF_info_matrix=base.to_celloracle())
    oracle.perform_PCA()
    oracle.knn_imputation(n_pca_dims=10, k=10, balanced=True, b_sight=80, b_maxl=40, n_jobs=1)
    return oracle, base


@pytest.fixture(scope="module")
def links(oracle):
    return oracle[0].get_links(cluster_name_for_GRN_unit="cell_type", alpha=10, verbose_level=0)


def test_base_network_in(oracle):
    held, base = oracle
    frame = base.to_frame()
    measured = frame["target"].isin(held.adata.var_names)
    assert {(s, t) for t, sources in held.TFdict.items() for s in sources} >= set(
        zip(frame["source"][measured], frame["target"][measured], strict=True)
    )


def test_agrees_with_the_bagged_ridge_of_this_package(oracle, links):
    held, base = oracle
    theirs = network_from_celloracle(links, "all")
    genes = list(map(str, held.adata.var_names))
    values = held.adata.layers["imputed_count"]
    ours = bagged_ridge(values, genes, base, scale_targets=False, min_cells=1)
    both = theirs.to_frame().merge(ours.to_frame(), on=["source", "target"])
    assert len(both) == len(ours) > 5000
    assert np.corrcoef(both["weight_x"], both["weight_y"])[0, 1] >= 0.98
    first = [
        set(zip(n.top(500).to_frame()["source"], n.top(500).to_frame()["target"], strict=True)) for n in (ours, theirs)
    ]
    assert len(first[0] & first[1]) / 500 >= 0.86
    # CellOracle's p-values, from as many bags of other draws
    bags = bagged_ridge(values, genes, base, scale_targets=False, min_cells=1, p_value="bags").to_frame()
    p = theirs.to_frame().merge(bags, on=["source", "target"])
    assert ((p["p_value_x"] < 0.05) == (p["p_value_y"] < 0.05)).mean() > 0.75


def test_network_back_into_links(oracle, links):
    network = network_from_celloracle(links).top(300)
    links.links_dict["all"] = network_to_links(network)
    links.filter_links(p=0.5, weight="coef_abs", threshold_number=200)
    assert len(links.filtered_links["all"]) == 200
    held = oracle[0]
    held.get_cluster_specific_TFdict_from_Links(links_object=links)
    held.fit_GRN_for_simulation(alpha=10, use_cluster_specific_TFdict=True)
    assert set(held.coef_matrix_per_cluster) == {"all"}
