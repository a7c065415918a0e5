"""Checks of matrices and columns: every message says what was found and how to mend it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from sccausal._errors import InputDataError, SetupError, close_names

logger = logging.getLogger(__name__)

_BLOCK = 2**24  # values looked at in one go (128 MB as float64)


def check_matrix(
    adata: ad.AnnData, layer: str | None = None, counts: bool = False, *, min_cells: int = 2, warn: bool = True
) -> None:
    """Check that an expression matrix can be learned from; nothing is changed.

    Sparse matrices are never densified, backed ones are read in blocks of rows.

    Parameters
    ----------
    adata
        Cells x genes.
    layer
        Layer to check; ``X`` if ``None``.
    counts
        Whether the values must be counts: integers, not below zero.
    min_cells
        Fewest cells that are accepted.
    warn
        Whether to look for what is only worth a warning.

    Raises
    ------
    SetupError
        If the layer does not exist.
    InputDataError
        If there is no cell or gene, fewer cells than ``min_cells``, gene names repeat, values are missing, infinite,
        negative, or, with ``counts``, not integers. Genes and cells are named.

    Warns
    -----
    UserWarning
        If cell names repeat, genes have the same value in every cell, or cells hold no count.

    Examples
    --------
    >>> from sccausal.data import check_matrix
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> check_matrix(simulate_perturb_seq(100, 30, 3, seed=0), counts=True, warn=False)
    """
    matrix = get_matrix(adata, layer)
    place = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    _check_shape(adata, place, min_cells, warn)
    n_nonzero = np.zeros(adata.n_vars, dtype=np.int64)
    n_empty = 0
    for _, block in row_blocks(matrix):
        values = block.data if sparse.issparse(block) else block
        _check_values(adata, matrix, place, values, counts)
        if warn:
            n_nonzero += _nonzero_per_gene(block)
            n_empty += _empty_rows(block) if counts else 0
    if not warn:
        return
    _warn_constant(adata, matrix, place, n_nonzero)
    if n_empty:
        warnings.warn(f"{n_empty} cells of {place} hold no count; filter them out first.", UserWarning, stacklevel=2)


def check_obs_column(adata: ad.AnnData, key: str, role: str = "column", *, n_levels: int = 1) -> pd.Series:
    """Return a column of ``adata.obs`` that has no missing value.

    Parameters
    ----------
    adata
        Cells x genes.
    key
        Name of the column.
    role
        What the column is for, e.g. ``"batch_key"``; shown in messages.
    n_levels
        Fewest distinct values that are accepted.

    Returns
    -------
    The column (n_cells,).

    Raises
    ------
    SetupError
        If the column does not exist (close names are given), misses values (their number is given) or has too few
        levels.

    Examples
    --------
    >>> from sccausal.data import check_obs_column
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(100, 30, 3, n_batches=2, seed=0)
    >>> check_obs_column(adata, "batch", "batch_key", n_levels=2).nunique()
    2
    """
    if key not in adata.obs:
        raise missing_column(key, adata.obs.columns, role, "adata.obs")
    column = adata.obs[key]
    missing = int(column.isna().sum())
    if missing:
        raise SetupError(
            f"Column {key!r} ({role}) has no value in {missing} of {len(column)} cells. "
            f"Drop them, e.g. `adata[adata.obs[{key!r}].notna()].copy()`, or fill them in."
        )
    levels = column.unique()
    if len(levels) < n_levels:
        shown = ", ".join(map(repr, levels[:3]))
        raise SetupError(f"Column {key!r} ({role}) has only the level {shown}; leave `{role}` out.")
    return column


def check_numeric_column(adata: ad.AnnData, key: str, role: str) -> pd.Series:
    """Return a numeric column of ``adata.obs`` whose values are all finite.

    Raises
    ------
    SetupError
        As :func:`check_obs_column`, or if the values are not finite numbers.
    """
    column = check_obs_column(adata, key, role)
    dtype = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
        shown = ", ".join(repr(v) for v in column.unique()[:5])
        raise SetupError(
            f"Column {key!r} ({role}) must hold numbers, found {shown}. "
            f"Convert it, e.g. `adata.obs[{key!r}] = adata.obs[{key!r}].astype(float)`."
        )
    infinite = int((~np.isfinite(column.to_numpy(dtype=float))).sum())
    if infinite:
        raise SetupError(f"Column {key!r} ({role}) is infinite in {infinite} cells.")
    return column


def missing_column(key: str, known: Any, role: str, where: str) -> SetupError:
    """Build the error for a column, layer or matrix that is not there."""
    known = [str(k) for k in known if not str(k).startswith("_scvi")]
    near = close_names(key, known)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    shown = ", ".join(repr(k) for k in known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
    return SetupError(f"{key!r} ({role}) is not in {where}.{hint} Found: {shown or 'nothing'}.")


def get_matrix(adata: ad.AnnData, layer: str | None = None) -> Any:
    """Return ``X`` or a layer; a :class:`SetupError` names the layers if it does not exist."""
    if layer is not None:
        if layer not in adata.layers:
            raise missing_column(layer, adata.layers.keys(), "layer", "adata.layers")
        return adata.layers[layer]
    if adata.X is None:
        raise SetupError(
            f"adata.X is empty; name a layer. Found: {', '.join(map(repr, adata.layers.keys())) or 'none'}."
        )
    return adata.X


def row_blocks(matrix: Any, block: int = _BLOCK) -> Iterator[tuple[int, Any]]:
    """Yield ``(first row, block of rows)`` of a dense, sparse or backed matrix.

    A CSR matrix in memory is cut without copying its values.
    """
    n, m = matrix.shape
    if sparse.issparse(matrix) and matrix.format == "csc":
        yield 0, matrix  # cutting rows of a CSC matrix costs more than it saves
        return
    rows = max(1, block // max(1, m))
    in_memory = sparse.issparse(matrix) and matrix.format == "csr"
    if in_memory:
        rows = max(1, int(rows * m * n / max(1, matrix.nnz)))
    for start in range(0, n, rows):
        stop = min(n, start + rows)
        if in_memory:
            begin, end = matrix.indptr[start], matrix.indptr[stop]
            part = sparse.csr_matrix((stop - start, m), dtype=matrix.dtype)
            part.data, part.indices = matrix.data[begin:end], matrix.indices[begin:end]
            part.indptr = matrix.indptr[start : stop + 1] - begin
            yield start, part
            continue
        cut = matrix[start:stop]
        cut = cut.compute() if hasattr(cut, "compute") else cut
        yield start, cut if sparse.issparse(cut) else np.asarray(cut)


def _check_shape(adata: ad.AnnData, place: str, min_cells: int, warn: bool) -> None:
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise InputDataError(f"{place} is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    if adata.n_obs < min_cells:
        raise InputDataError(f"{place} has {adata.n_obs} cell(s); at least {min_cells} are needed.")
    if not adata.var_names.is_unique:
        names = adata.var_names[adata.var_names.duplicated()].unique()
        raise InputDataError(
            f"{len(names)} gene names repeat: {_names(names)}. Make them unique with `adata.var_names_make_unique()`."
        )
    if warn and not adata.obs_names.is_unique:
        names = adata.obs_names[adata.obs_names.duplicated()].unique()
        warnings.warn(
            f"{len(names)} cell names repeat: {_names(names)}. `adata.obs_names_make_unique()` mends this.",
            UserWarning,
            stacklevel=3,
        )


def _check_values(adata: ad.AnnData, matrix: Any, place: str, values: np.ndarray, counts: bool) -> None:
    """Two passes over the stored values; the culprits are only searched for once there is one."""
    if values.size == 0 or values.dtype == bool:
        return
    low, high = values.min(), values.max()
    if np.isnan(low) or np.isnan(high):
        raise _bad_values(adata, matrix, place, np.isnan, "missing values (NaN)", "Impute or drop them.")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _bad_values(adata, matrix, place, np.isinf, "infinite values", "Was a logarithm of zero taken?")
    if low < 0 and counts:
        raise _bad_values(adata, matrix, place, lambda v: v < 0, "negative values", _count_hint(adata))
    if counts and values.dtype.kind not in "iu" and not _all_integers(values):
        raise _bad_values(
            adata,
            matrix,
            place,
            lambda v: v != np.rint(v),
            "values that are not counts (not integers)",
            _count_hint(adata),
        )


def _all_integers(values: np.ndarray) -> bool:
    flat = values.ravel()
    return all(bool((flat[i : i + 2**20] == np.rint(flat[i : i + 2**20])).all()) for i in range(0, flat.size, 2**20))


def _bad_values(
    adata: ad.AnnData, matrix: Any, place: str, bad: Callable[[np.ndarray], np.ndarray], what: str, mend: str
) -> InputDataError:
    """Count the offending values and name the first of them."""
    total = 0
    shown: list[str] = []
    for start, block in row_blocks(matrix):
        if sparse.issparse(block):
            coo = block.tocoo()
            hit = bad(coo.data)
            rows, cols, values = coo.row[hit], coo.col[hit], coo.data[hit]
        else:
            rows, cols = np.nonzero(bad(block))
            values = block[rows, cols]
        total += len(rows)
        for r, c, v in zip(rows[: 3 - len(shown)], cols, values, strict=False):
            shown.append(f"cell {adata.obs_names[start + r]!r}, gene {adata.var_names[c]!r}: {v}")
    return InputDataError(f"{place} holds {total} {what}, e.g. {'; '.join(shown)}. {mend}")


def _count_hint(adata: ad.AnnData) -> str:
    """Name a layer that looks like counts, if there is one."""
    found = [name for name, layer in adata.layers.items() if _looks_like_counts(layer)]
    hint = f"`layer={found[0]!r}` holds counts. " if found else "Pass the layer that holds the raw counts. "
    return hint + "For normalised values choose a Gaussian likelihood."


def _looks_like_counts(layer: Any) -> bool:
    for _, block in row_blocks(layer, block=2**16):
        values = block.data if sparse.issparse(block) else block
        return bool(values.size and values.min() >= 0 and _all_integers(np.asarray(values)))
    return False


def _nonzero_per_gene(block: Any) -> np.ndarray:
    m = block.shape[1]
    if not sparse.issparse(block):
        return np.count_nonzero(block, axis=0)
    if block.format == "csr":
        indices = block.indices if block.data.all() else block.indices[block.data != 0]
        return np.bincount(indices, minlength=m)
    return np.asarray((block != 0).sum(axis=0)).ravel()


def _empty_rows(block: Any) -> int:
    if sparse.issparse(block):
        return int((np.asarray(block.sum(axis=1)).ravel() == 0).sum())
    return int((~block.any(axis=1)).sum())


def _warn_constant(adata: ad.AnnData, matrix: Any, place: str, n_nonzero: np.ndarray) -> None:
    constant = n_nonzero == 0
    full = np.flatnonzero(n_nonzero == adata.n_obs)
    if len(full):  # nonzero in every cell: only these can be constant at another value than zero
        low, high = np.full(len(full), np.inf), np.full(len(full), -np.inf)
        for _, block in row_blocks(matrix):
            part = block[:, full]
            part = part.toarray() if sparse.issparse(part) else part
            low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
        constant[full] = low == high
    if constant.any():
        names = adata.var_names[constant]
        warnings.warn(
            f"{len(names)} of {adata.n_vars} genes of {place} have the same value in every cell "
            f"({_names(names)}); nothing can be learned about them. `scanpy.pp.filter_genes` drops them.",
            UserWarning,
            stacklevel=3,
        )


def _names(names: Any, n: int = 5) -> str:
    return ", ".join(map(str, names[:n])) + (f", ... ({len(names)})" if len(names) > n else "")
