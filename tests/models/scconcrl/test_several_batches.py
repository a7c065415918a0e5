"""Training must not move the response away from what populations show, also where batches are confounded with it."""

from __future__ import annotations

import scanpy as sc
import scvi

import sccausal as scc


def test_held_out_type_is_predicted_with_several_batches():
    adata = scc.datasets.simulate_perturb_seq(
        n_cells=1500,
        n_genes=150,
        n_targets=20,
        n_types=6,
        n_batches=3,
        confounded=0.3,
        condition=True,
        condition_strength=0.5,
        type_response=0.25,
        seed=0,
    )
    adata.X = adata.layers["counts"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    treated = (adata.obs["condition"] != "control").to_numpy()
    held_out = (adata.obs["cell_type"] == "type_2").to_numpy()
    train, test = adata[~(held_out & treated)].copy(), adata[held_out & treated].copy()
    control = adata[held_out & ~treated].copy()
    scvi.settings.seed = 0
    scc.ScConCRL.setup_anndata(
        train, batch_key="batch", labels_key="cell_type", condition_key="condition", control="control"
    )
    model = scc.ScConCRL(train)
    model.train(max_epochs=15, accelerator="cpu", enable_progress_bar=False)
    table = scc.tl.compare(model, test, control=control, baselines=["RidgeOnMeans"], metrics=["nmse_top"])
    error = table.set_index("method")["value"]
    # few cells: the ridge itself is far from the duplicate; a response that drifts ends above no change (1)
    assert error["ScConCRL"] < 1.0
    assert error["ScConCRL"] < 1.25 * error["ridge on type means"]
