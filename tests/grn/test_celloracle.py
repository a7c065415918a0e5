"""The way to CellOracle and back; runs only in an environment made by the recipe of the user guide."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sccausal.datasets import simulate_perturb_seq
from sccausal.grn import Network

pytestmark = pytest.mark.skipif(importlib.util.find_spec("celloracle") is None, reason="CellOracle is not installed")


def test_base_network_in_and_links_out():
    import celloracle as co

    adata = simulate_perturb_seq(400, 1200, 4, n_types=2, seed=0, sortability=False)
    known = Network(adata.uns["truth"]["network"]).top(500)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2)).astype(np.float32)
    adata.uns = {"cell_type_colors": ["#0072B2", "#D55E00"]}
    oracle = co.Oracle()
    oracle.import_anndata_as_raw_count(adata, cluster_column_name="cell_type", embedding_name="X_umap")
    oracle.import_TF_data(TF_info_matrix=known.to_celloracle())
    assert {(s, t) for t, sources in oracle.TFdict.items() for s in sources} == set(
        zip(known.to_frame()["source"], known.to_frame()["target"], strict=True)
    )
    oracle.perform_PCA()
    oracle.knn_imputation(n_pca_dims=10, k=10, balanced=True, b_sight=80, b_maxl=40, n_jobs=1)
    links = oracle.get_links(cluster_name_for_GRN_unit="cell_type", alpha=10, verbose_level=0)
    table = links.links_dict["type_0"].rename(columns={"coef_mean": "weight"})
    network = Network(table[["source", "target", "weight"]].astype({"source": str, "target": str}))
    assert len(network) > 100
    assert set(network.genes) <= set(known.genes)
