"""How well batches are mixed and biology is kept, by scib-metrics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sccausal._errors import InputDataError, SetupError, unknown_name

_BIO, _BATCH = 0.6, 0.4


def integration_scores(
    adata: AnnData,
    *,
    batch_key: str,
    labels_key: str,
    embeddings: str | Sequence[str] = (),
    layers: str | Sequence[str] = (),
    expression: Mapping[str, np.ndarray | sparse.spmatrix] | None = None,
    n_pcs: int = 50,
    unintegrated: str | None = None,
    n_jobs: int = 1,
) -> pd.DataFrame:
    """Score integrated embeddings or integrated expression.

    Parameters
    ----------
    adata
        Cells; it is not changed. ``X`` (log-normalised, not integrated) is the reference of the principal component
        regression.
    batch_key, labels_key
        Columns of ``obs``: batch to be removed, cell type to be kept.
    embeddings
        Keys of ``obsm`` to score as they are.
    layers
        Layers with integrated expression (log scale); their first ``n_pcs`` principal components are scored, computed
        alike for all. Expression is compared with expression, latents with latents.
    expression
        More integrated expression by name, each (cells, genes).
    n_pcs
        Principal components, fewer if there are fewer cells or genes.
    unintegrated
        Key of ``obsm`` with the embedding before integration; default ``n_pcs`` principal components of ``X``. It is
        scored too, as ``"unintegrated"``.
    n_jobs
        Processes of the neighbour search.

    Returns
    -------
    DataFrame, one row per representation, one column per metric of scib-metrics (0..1, higher is better), and
    ``bio_conservation``, ``batch_correction`` and ``total = 0.6 bio + 0.4 batch`` (:cite:p:`Luecken2022`). Nothing is
    rescaled over methods, so numbers of different calls can be compared.

    Raises
    ------
    ImportError
        scib-metrics is not installed.
    sccausal._errors.UnknownNameError
        A key does not exist.
    sccausal._errors.SetupError
        There are fewer than two batches or cell types.
    sccausal._errors.InputDataError
        A representation has another number of cells or values that are not finite.

    Examples
    --------
    >>> import sccausal as scc
    >>> raw = scc.datasets.simulate_denoising(200, 40, n_types=2, n_batches=2, seed=0)
    >>> cells, clean = scc.metrics.log1p_norm(raw), {"clean": raw.layers["clean"]}
    >>> scc.metrics.integration_scores(  # doctest: +SKIP
    ...     cells, batch_key="batch", labels_key="cell_type", expression=clean
    ... )
    """
    for key in (batch_key, labels_key):
        if key not in adata.obs:
            raise unknown_name("column", key, adata.obs.columns, "adata.obs")
        if adata.obs[key].nunique() < 2:
            raise SetupError(f"adata.obs[{key!r}] has fewer than two values; integration cannot be scored.")
    cells = _representations(adata, embeddings, layers, expression or {}, n_pcs, unintegrated)
    obs = adata.obs[[batch_key, labels_key]].astype(str).astype("category")
    work = AnnData(np.zeros((adata.n_obs, 1), dtype=np.float32), obs=obs, obsm=cells)
    return _tidy(_benchmark(work, batch_key, labels_key, list(cells), n_jobs))


def _benchmark(work: AnnData, batch_key: str, labels_key: str, names: list[str], n_jobs: int) -> pd.DataFrame:
    try:
        from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation
    except ImportError as error:
        raise ImportError('integration_scores needs scib-metrics: pip install "sccausal[scib]"') from error
    with warnings.catch_warnings(), _single_precision():
        warnings.simplefilter("ignore")  # jax and pynndescent warn about hardware and small graphs
        bench = Benchmarker(
            work,
            batch_key=batch_key,
            label_key=labels_key,
            embedding_obsm_keys=names,
            bio_conservation_metrics=BioConservation(),
            batch_correction_metrics=BatchCorrection(),
            pre_integrated_embedding_obsm_key="unintegrated",
            n_jobs=n_jobs,
            progress_bar=False,
        )
        bench.benchmark()
        return bench.get_results(min_max_scale=False, clean_names=False)


def _single_precision() -> AbstractContextManager[Any]:
    """Single precision for jax: other packages switch it to double at import, and scib-metrics' k-means then fails."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(False)
    return import_module("jax.experimental").disable_x64()  # jax before 0.8


def _tidy(results: pd.DataFrame) -> pd.DataFrame:
    kind = pd.Series(results.loc["Metric Type"].to_numpy(), index=results.columns)
    values = results.drop(index="Metric Type").astype(np.float64)
    bio = values[list(kind[kind == "Bio conservation"].index)]
    batch = values[list(kind[kind == "Batch correction"].index)]
    out = pd.concat([bio, batch], axis=1)
    out["bio_conservation"], out["batch_correction"] = bio.mean(axis=1), batch.mean(axis=1)
    out["total"] = _BIO * out["bio_conservation"] + _BATCH * out["batch_correction"]
    out.index.name, out.columns.name = "representation", None
    return out


def _representations(
    adata: AnnData,
    embeddings: str | Sequence[str],
    layers: str | Sequence[str],
    expression: Mapping[str, Any],
    n_pcs: int,
    unintegrated: str | None,
) -> dict[str, np.ndarray]:
    keys = [embeddings] if isinstance(embeddings, str) else list(embeddings)
    names = [layers] if isinstance(layers, str) else list(layers)
    out: dict[str, np.ndarray] = {}
    if unintegrated is None:
        out["unintegrated"] = _pca(adata.X, n_pcs, adata.n_obs, "X")
    else:
        out["unintegrated"] = _embedding(adata, unintegrated)
    for key in keys:
        out[key] = _embedding(adata, key)
    for name in names:
        if name not in adata.layers:
            raise unknown_name("layer", name, adata.layers.keys(), "adata.layers")
        out[name] = _pca(adata.layers[name], n_pcs, adata.n_obs, name)
    for name, values in expression.items():
        out[name] = _pca(values, n_pcs, adata.n_obs, name)
    return out


def _embedding(adata: AnnData, key: str) -> np.ndarray:
    if key not in adata.obsm:
        raise unknown_name("embedding", key, adata.obsm.keys(), "adata.obsm")
    values = np.asarray(adata.obsm[key], dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputDataError(f"adata.obsm[{key!r}] holds values that are not finite.")
    return values


def _pca(values: Any, n: int, n_cells: int, name: str) -> np.ndarray:
    from sklearn.decomposition import PCA

    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if dense.ndim != 2 or dense.shape[0] != n_cells or not np.isfinite(dense).all():
        raise InputDataError(f"{name!r} must be finite expression with {n_cells} cells; its shape is {dense.shape}.")
    n = min(n, dense.shape[0] - 1, dense.shape[1])
    return PCA(n, svd_solver="auto", random_state=0).fit_transform(dense.astype(np.float32))
