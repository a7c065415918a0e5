"""What metrics accept: aligned, finite expression on the log1p(1e4) scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from sccausal._errors import InputDataError, close_names, unknown_name

Expression: TypeAlias = "AnnData | np.ndarray | sparse.spmatrix | pd.DataFrame"


class Cells(NamedTuple):
    """Predicted, true and control cells over the same genes, dense float64."""

    pred: np.ndarray  # (n_pred, g)
    true: np.ndarray  # (n_true, g)
    control: np.ndarray  # (n_control, g)
    genes: pd.Index


def log1p_norm(
    adata: AnnData, *, layer: str | None = None, target_sum: float = 1e4, size_key: str | None = None
) -> AnnData:
    """Cells with ``X = log1p(counts * target_sum / size)``, the scale all expression metrics are read on.

    Parameters
    ----------
    adata
        Cells with counts; it is not changed.
    layer
        Layer with the counts; default ``X``.
    target_sum
        Counts per cell after scaling.
    size_key
        Column of ``obs`` with the library size (e.g. over the whole transcriptome when ``adata`` holds only some
        genes); default: the sum over the genes present. Empty cells stay zero.

    Returns
    -------
    AnnData with float32 ``X`` (cells, genes) and ``uns["sccausal"]["units"] = "log1p_norm"``.

    Raises
    ------
    sccausal._errors.InputDataError
        Counts are negative or not finite, or a library size is missing.

    Examples
    --------
    >>> import sccausal as scc
    >>> counts = scc.datasets.simulate_perturb_seq(100, 30, 3, seed=0)
    >>> adata = scc.metrics.log1p_norm(counts)
    >>> adata.shape, adata.uns["sccausal"]["units"]
    ((100, 30), 'log1p_norm')
    """
    counts = adata.X if layer is None else _layer(adata, layer)
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    if counts.data.size and (not np.isfinite(counts.data).all() or counts.data.min() < 0):
        raise InputDataError("Counts must be finite and not negative; check the layer that was named.")
    if size_key is None:
        size = np.asarray(counts.sum(axis=1)).ravel()
    elif size_key in adata.obs:
        size = pd.to_numeric(adata.obs[size_key]).to_numpy(dtype=np.float64)
    else:
        raise unknown_name("column", size_key, adata.obs.columns, "adata.obs")
    if not np.isfinite(size).all():
        raise InputDataError(f"The library size {size_key!r} is missing in {int((~np.isfinite(size)).sum())} cells.")
    factor = np.divide(target_sum, size, out=np.zeros_like(size), where=size > 0)
    scaled = sparse.diags(factor) @ counts
    scaled.data = np.log1p(scaled.data)
    uns = dict(adata.uns.get("sccausal", {}))
    uns["units"] = "log1p_norm"
    return AnnData(scaled.tocsr().astype(np.float32), obs=adata.obs.copy(), var=adata.var.copy(), uns={"sccausal": uns})


def align(
    pred: Expression,
    true: Expression,
    control: Expression,
    *,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
) -> Cells:
    """Bring prediction, truth and control cells onto the same genes in the same order.

    Named genes (AnnData, DataFrame) are matched by name; arrays must have the same number of columns as the rest.

    Parameters
    ----------
    pred, true, control
        Expression (cells, genes) on the log1p(1e4) scale.
    genes
        Genes to score; default: all genes of ``true``.
    layer
        Layer of ``true`` and ``control`` to read; predictions are always read from ``X``.

    Raises
    ------
    sccausal._errors.InputDataError
        Genes differ, a value is not finite, there are no cells, or the values look like counts.
    sccausal._errors.UnknownNameError
        A gene of ``genes`` is not there.
    """
    names = gene_names(true, pred, control)
    wanted = names if genes is None else pd.Index([str(g) for g in genes])
    missing = wanted.difference(names, sort=False)
    if len(missing):
        raise unknown_name("gene", missing[0], names, "the true cells")
    return Cells(
        matrix(pred, "The prediction", wanted, names),
        matrix(true, "The true cells", wanted, names, layer),
        matrix(control, "The control cells", wanted, names, layer),
        wanted,
    )


def gene_names(*sets: Expression) -> pd.Index:
    """Gene names of the first set that has names, else ``gene_0``, ``gene_1``, ..."""
    for cells in sets:
        found = _names(cells)
        if found is not None:
            if not found.is_unique:
                raise InputDataError(f"Gene {found[found.duplicated()][0]!r} stands twice; make the names unique.")
            return found
    return pd.Index([f"gene_{i}" for i in range(sets[0].shape[1])])


def matrix(
    cells: Expression, what: str, genes: pd.Index, order: pd.Index | None = None, layer: str | None = None
) -> np.ndarray:
    """Dense float64 matrix (cells, genes) of one set, checked.

    Parameters
    ----------
    cells
        Expression of cells.
    what
        How the set is called in errors.
    genes
        Genes to take.
    order
        Names of the columns of an input without names; default ``genes``.
    layer
        Layer to read from an AnnData.
    """
    order = genes if order is None else order
    own = _names(cells)
    values: Any = _values(cells, layer)
    if values.ndim != 2 or values.shape[0] == 0:
        raise InputDataError(f"{what} must be a matrix cells x genes with at least one cell; shape is {values.shape}.")
    if own is None and values.shape[1] != len(order):
        raise InputDataError(f"{what} has {values.shape[1]} genes, but {len(order)} are expected.")
    own = order if own is None else own
    if not own.equals(genes):
        values = values[:, _positions(own, genes, what)]
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    dense = dense.astype(np.float64, copy=False)
    if not np.isfinite(dense).all():
        bad = int((~np.isfinite(dense)).any(axis=0).sum())
        raise InputDataError(f"{what} holds values that are not finite, in {bad} of {dense.shape[1]} genes.")
    _check_scale(cells, dense, what)
    return dense


def _positions(own: pd.Index, genes: pd.Index, what: str) -> np.ndarray:
    if not own.is_unique:
        raise InputDataError(f"{what}: gene {own[own.duplicated()][0]!r} stands twice; make the names unique.")
    at = own.get_indexer(genes)
    if (at < 0).any():
        lost = genes[at < 0]
        near = close_names(str(lost[0]), own)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputDataError(
            f"{what} lacks {len(lost)} of {len(genes)} genes, e.g. {lost[0]!r}.{hint} "
            "Predictions, true cells and control cells must share their var_names; name a common part with `genes=`."
        )
    return at


def _check_scale(cells: Expression, dense: np.ndarray, what: str) -> None:
    units = cells.uns.get("sccausal", {}).get("units") if isinstance(cells, AnnData) else None
    if units == "log1p_norm":
        return
    # log1p of 1e4 per cell cannot pass log1p(1e4) = 9.2, and is hardly ever a whole number
    counts = units == "counts" or (dense.max() > 20 and (dense.min() >= 0) and (dense == np.rint(dense)).all())
    if counts:
        raise InputDataError(
            f"{what} holds counts (largest value {dense.max():.4g}); metrics are read on log1p of 1e4 counts per cell. "
            "Convert all sets alike with sccausal.metrics.log1p_norm(adata)."
        )


def _names(cells: Expression) -> pd.Index | None:
    if isinstance(cells, AnnData):
        return cells.var_names.astype(str)
    if isinstance(cells, pd.DataFrame):
        return pd.Index([str(c) for c in cells.columns])
    return None


def _values(cells: Expression, layer: str | None) -> Any:
    if isinstance(cells, AnnData):
        return cells.X if layer is None else _layer(cells, layer)
    if isinstance(cells, pd.DataFrame):
        return cells.to_numpy()
    return cells if sparse.issparse(cells) else np.asarray(cells)


def _layer(adata: AnnData, layer: str) -> Any:
    if layer not in adata.layers:
        raise unknown_name("layer", layer, adata.layers.keys(), "adata.layers")
    return adata.layers[layer]


def vectors(pred: np.ndarray, true: np.ndarray, *more: np.ndarray) -> list[np.ndarray]:
    """Finite float64 vectors of one length (mean expression per gene)."""
    out = [np.asarray(v, dtype=np.float64).ravel() for v in (pred, true, *more)]
    if len({v.shape for v in out}) != 1 or out[0].size == 0:
        raise InputDataError(f"Vectors must have one length; got {[v.size for v in out]}.")
    if not all(np.isfinite(v).all() for v in out):
        raise InputDataError("Vectors must be finite; found NaN or infinity.")
    return out
