"""Cells whose concepts cause each other, and small models of them."""

from __future__ import annotations

import numpy as np
import scvi
import torch
from anndata import AnnData

from sccausal.datasets import simulate_concepts
from sccausal.models import CausCell

DAG = {"b": ["a"], "c": ["a"], "d": ["b"]}
NAMES = ["a", "b", "c", "d"]
SMALL = {"n_latent": 16, "n_hidden": 48, "n_tokens": 2, "n_layers": 2, "n_encoder": 96}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def log1p_norm(counts) -> np.ndarray:
    values = np.asarray(counts, dtype=float)
    return np.log1p(values / values.sum(1, keepdims=True) * 1e4)


def simulated(n_cells: int = 1600, n_genes: int = 200, **kwargs) -> AnnData:
    adata = simulate_concepts(n_cells, n_genes, **{"strength": 4.0, "seed": 2, **kwargs})
    adata.layers["log_mean"] = log1p_norm(adata.layers["mean"])
    adata.X = log1p_norm(adata.X).astype(np.float32)
    return adata


def fitted(adata: AnnData, dag=DAG, epochs: int = 140, keys=NAMES, seed: int = 0, setup=None, **init) -> CausCell:
    """Model trained on the first four fifths of the cells; one thread, as importing numba may have asked for more."""
    scvi.settings.seed = seed
    torch.set_num_threads(1)
    cells = adata.copy()
    CausCell.setup_anndata(cells, concept_keys=list(keys), **(setup or {}))
    model = CausCell(cells, dag=dag, **{**SMALL, **init})
    size = 256 if cells.n_obs > 1000 else None
    cut = int(0.8 * cells.n_obs)
    model.train(epochs, external_indexing=[np.arange(cut), np.arange(cut, cells.n_obs)], batch_size=size, **QUIET)
    return model
