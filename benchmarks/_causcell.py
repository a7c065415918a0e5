"""What the parts of the CausCell benchmark share: training, matrices, disentanglement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

import sccausal as scc
from sccausal.metrics import concept_scores

DAG = {"b": ["a"], "c": ["a"], "d": ["b"]}
CONCEPTS = ["a", "b", "c", "d"]
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def log1p_norm(counts) -> np.ndarray:
    values = np.asarray(counts, dtype=np.float64)
    return np.log1p(values / np.maximum(values.sum(1, keepdims=True), 1) * 1e4)


def dense(adata: AnnData) -> np.ndarray:
    return np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=np.float32)


def fit(train: AnnData, keys: list[str], seed: int, args, dag=None, **setup: Any) -> scc.CausCell:
    scvi.settings.seed = seed
    cells = AnnData(dense(train), obs=train.obs.copy(), var=pd.DataFrame(index=train.var_names))
    scc.CausCell.setup_anndata(cells, concept_keys=keys, **setup)
    model = scc.CausCell(cells, dag=dag)
    model.train(20 if args.small else None, train_size=1.0, **QUIET)
    return model


def leakage(model, train: AnnData, test: AnnData, names: list[str], n_draws: int = 3) -> dict[str, Any]:
    """Own concept and excess leakage of each block, means over draws; and the same on posterior means."""
    out: dict[str, Any] = {}
    labels = [s.obs[names].astype(str) for s in (train, test)]
    for kind, seeds in (("draws", range(n_draws)), ("means", [None])):
        tables = []
        for seed in seeds:
            options = {"sample": False} if seed is None else {"sample": True, "seed": seed}
            z = [model.get_concept_embeddings(bare(s), **options) for s in (train, test)]
            tables.append(concept_scores(z[0], labels[0], z[1], labels[1]))
        table = pd.concat(tables).groupby(["concept", "other", "metric"], sort=False)["value"].mean()
        own, other = table.xs("", level="other"), table.xs("excess_leakage", level="metric")
        for (concept, metric), value in own.items():
            out[f"{metric.removeprefix('concept_')}_{concept}_{kind}"] = float(value)
        out[f"leakage_{kind}"], out[f"leakage_mean_{kind}"] = float(other.max()), float(other.mean())
        out[f"leaks_{kind}"] = " tells ".join(other.idxmax())
    return out


def bare(adata: AnnData) -> AnnData:
    return AnnData(dense(adata), obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names))
