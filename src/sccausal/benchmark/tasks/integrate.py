"""Batches mixed, biology kept: expression against expression, latents against latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from sccausal._errors import SetupError
from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells
from sccausal.benchmark.tasks._latents import dense

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

_KEYS = Keys(batch_key="batch", labels_key="cell_type")


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    n_cells, n_genes = (600, 200) if request.small else (3000, 500)
    return _cells.log_cells(
        simulate_perturb_seq(
            n_cells=n_cells,
            n_genes=n_genes,
            n_targets=0,
            n_types=5,
            n_batches=3,
            noise=0.3,
            seed=request.seed,
            sortability=False,
        )  # fmt: skip
    )


def read_pancreas(path: Path) -> AnnData:
    """Two protocols; the celseq counts are restored from the transcript estimate ``n = -256 ln(1 - k / 256)``."""
    import scanpy as sc

    adata = read_h5ad(path)
    counts = sparse.csr_matrix(adata.layers["counts"]).tolil()
    rows = np.flatnonzero(adata.obs["batch"] == "celseq")
    celseq = sparse.csr_matrix(adata.layers["counts"])[rows].toarray()
    counts[rows] = np.round(256 * (1 - np.exp(-celseq / 256)))
    adata.layers["counts"] = counts.tocsr().astype(np.float32)
    keep = np.asarray(adata.layers["counts"].sum(1)).ravel() > 0
    adata = adata[keep].copy()
    adata.X = adata.layers["counts"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=2000, batch_key="batch", subset=True)
    return adata


def _sampled(adata: AnnData, request: Request, n: int = 700) -> AnnData:
    if not request.small or adata.n_obs <= n:
        return adata
    rows = np.random.default_rng([request.seed, 29]).choice(adata.n_obs, n, replace=False)
    part = adata[np.sort(rows)].copy()
    counts = part.obs["cell_type"].value_counts()
    return part[part.obs["cell_type"].isin(counts.index[counts >= 10]).to_numpy()].copy()


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """One case: all cells; cell types are not shown to the methods."""
    keys = dataset.keys
    shown = _cells.without_answers(adata)
    shown.obs = shown.obs[[str(keys.batch_key)]].copy()
    problem = Problem(
        "integrate", dataset.name, "all batches", shown, Keys(batch_key=keys.batch_key), request.seed, request.small,
        extra={"likelihood": dataset.options.get("likelihood", "nb")},
    )  # fmt: skip
    facts = {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "batches": int(adata.obs[keys.batch_key].nunique()),
        "types": int(adata.obs[keys.labels_key].nunique()),
    }
    truth = adata.copy()
    truth.uns["keys"] = {"batch": str(keys.batch_key), "labels": str(keys.labels_key)}
    yield Case(problem, truth, facts, ["cell types"])


def score(case: Case, output: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """ScIB scores of ``"latent"`` and ``"expression"``, whichever is there."""
    from sccausal.metrics import integration_scores
    from sccausal.metrics._info import as_table

    known = {"latent", "expression"}
    if not output or not set(output) <= known:
        raise SetupError(f"An answer holds 'latent', 'expression' or both; got {list(output)}.")
    cells = case.truth.copy()
    if "latent" in output:
        cells.obsm["latent"] = np.asarray(output["latent"])
    table = integration_scores(
        cells,
        batch_key=cells.uns["keys"]["batch"],
        labels_key=cells.uns["keys"]["labels"],
        embeddings=["latent"] if "latent" in output else [],
        expression={"expression": output["expression"]} if "expression" in output else {},
    )
    parts = []
    for space in output:
        row = table.loc[space, ["bio_conservation", "batch_correction", "total"]].astype(float).to_dict()
        parts.append(as_table({str(k): v for k, v in row.items()}).assign(group=space))
    return pd.concat(parts, ignore_index=True)


TASK = Task(
    "integrate",
    "Are batches mixed while cell types stay apart?",
    "dict with 'latent' (cells, d), 'expression' (cells, genes) on the log scale, or both",
    (
        Dataset("batches", _simulated, _KEYS, note="Simulated cells of five types in three batches."),
        Dataset(
            "pancreas",
            lambda request: _sampled(read_pancreas(data_file(request, "pancreas_two_batch.h5ad")), request),
            _KEYS,
            "pancreas_two_batch.h5ad",
            "Pancreas by inDrop and CEL-Seq; some types are nearly absent from one batch.",
        ),
        Dataset(
            "blood_dc",
            lambda request: read_h5ad(data_file(request, "blood_dc_batch.h5ad")),
            _KEYS,
            "blood_dc_batch.h5ad",
            "Blood dendritic cells in two balanced batches.",
            {"likelihood": "normal"},
        ),
    ),
    cases,
    score,
    ("total", "bio_conservation", "batch_correction"),
    zero="not integrated",
    paired_by="representation",
)

Answer = dict[str, np.ndarray]


def _as_it_is(problem: Problem) -> Answer:
    from sccausal.metrics._integration import _pca

    x = dense(problem.train.X)
    return {"latent": _pca(x, 50, len(x), "X"), "expression": x}


def _centred(problem: Problem) -> Answer:
    """Every batch brought to the common mean, gene by gene."""
    x = dense(problem.train.X)
    batch = problem.train.obs[problem.keys.batch_key].astype(str).to_numpy()
    out = x.copy()
    for b in np.unique(batch):
        out[batch == b] += x.mean(axis=0) - x[batch == b].mean(axis=0)
    return _as_it_is(Problem(**{**vars(problem), "train": _with(problem.train, out)}))


def _combat(problem: Problem) -> Answer:
    """ComBat of scanpy: mean and variance of batches by empirical Bayes."""
    import scanpy as sc

    out = sc.pp.combat(_with(problem.train, dense(problem.train.X)), key=problem.keys.batch_key, inplace=False)
    return _as_it_is(Problem(**{**vars(problem), "train": _with(problem.train, np.nan_to_num(out))}))


def _with(cells: AnnData, X: np.ndarray) -> AnnData:
    import anndata as ad

    return ad.AnnData(X.astype(np.float32), obs=cells.obs.copy(), var=cells.var[[]].copy())


def _scvi(problem: Problem) -> Answer:
    """scVI; expression is its normalised expression averaged over batches."""
    import scvi

    before = scvi.settings.seed
    scvi.settings.seed = problem.seed
    try:
        cells, normal = problem.train.copy(), problem.extra["likelihood"] == "normal"
        scvi.model.SCVI.setup_anndata(
            cells, batch_key=problem.keys.batch_key, layer=None if normal or "counts" not in cells.layers else "counts"
        )
        model = scvi.model.SCVI(cells, gene_likelihood=problem.extra["likelihood"])
        epochs = _cells.SMALL_EPOCHS if problem.small else None
        model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        batches = list(cells.obs[problem.keys.batch_key].astype(str).unique())
        expression = model.get_normalized_expression(transform_batch=batches, library_size=1e4, return_numpy=True)
        return {
            "latent": model.get_latent_representation(),
            "expression": expression if normal else np.log1p(expression),
        }
    finally:
        scvi.settings.seed = before


def _scconcrl(problem: Problem) -> Answer:
    model = _cells.trained_scconcrl(problem)
    return {
        "latent": model.get_latent_representation(representation="integrated"),
        "expression": np.asarray(model.get_normalized_expression(denoise=True)),
    }


def _has_counts(problem: Any) -> bool:
    return problem.extra["likelihood"] == "normal" or "counts" in problem.train.layers


_BASELINES: dict[str, Callable[[Problem], Answer]] = {
    "not integrated": _as_it_is,
    "batch means removed": _centred,
    "ComBat": _combat,
}
for _name, _run in _BASELINES.items():
    register("integrate", _name, kind="baseline")(_run)
register("integrate", "scVI", kind="baseline", applies=_has_counts)(_scvi)
register("integrate", "ScConCRL")(_scconcrl)
