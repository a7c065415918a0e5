"""Small models of CITE-VAE that several test modules use."""

from __future__ import annotations

import numpy as np
import scanpy as sc
import scvi
from anndata import AnnData

from sccausal import CITEVAE
from sccausal.datasets import simulate_temporal_factors

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
KEYS = {"intervention_key": "intervention", "control": "control", "time_key": "time"}


def log_normalised(adata: AnnData) -> AnnData:
    """The cells with log1p(1e4) in ``X``, counts in a layer, without the truth."""
    out = AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var.copy())
    out.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(out, target_sum=1e4)
    sc.pp.log1p(out)
    return out


def fit_factors(seed=0, epochs=20, n_cells=1200, sim=None, **init):
    """Model of tracked factors, the cells, and a mask of the trajectories that were held out."""
    adata = simulate_temporal_factors(n_cells, n_times=3, seed=100 + seed, **(sim or {}))
    tracks = adata.obs["track"].to_numpy()
    held = np.random.default_rng(seed).permutation(np.unique(tracks))[: n_cells // 4]
    test = np.isin(tracks, held)
    scvi.settings.seed = seed
    CITEVAE.setup_anndata(adata, **KEYS, track_key="track")
    blocks = {"n_invariant": adata.obsm["invariant"].shape[1], "n_responsive": adata.obsm["responsive"].shape[1]}
    options = {**blocks, "intervention_embedding": "onehot", "pairing": "tracked", "n_hidden": 64, **init}
    model = CITEVAE(adata, **options)
    rows = [np.flatnonzero(~test), np.zeros(0, int), np.flatnonzero(test)]
    model.train(epochs, external_indexing=rows, **QUIET)
    return model, adata, test
