"""The one schema of predicted cells, shared by models and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from sccausal._errors import InputDataError, NumericalError

UNITS = ("counts", "log1p_norm", "as_given")
"""``counts``; ``log1p_norm``, i.e. log1p of counts at 1e4 per cell; ``as_given``, the unit of the training matrix."""

SCHEMA = 1
_RESERVED = ("intervention", "condition", "time", "source_cell", "sample")


def prediction_anndata(
    X: np.ndarray | sparse.spmatrix,
    source_obs: pd.DataFrame,
    var: pd.DataFrame | pd.Index | Sequence[str],
    *,
    interventions: str | Sequence[str],
    condition: str | Sequence[str] | None = None,
    time: float | Sequence[float] | None = None,
    sample: int | Sequence[int] | None = None,
    units: str,
    method: str,
    extra: Mapping[str, Any] | None = None,
) -> ad.AnnData:
    """Put predicted expression into the AnnData schema of the package.

    Parameters
    ----------
    X
        Predicted expression (n, genes), dense or sparse.
    source_obs
        The ``obs`` rows of the source cells, row i belonging to row i of ``X`` (so rows repeat when a cell is
        predicted under several interventions). Its index becomes ``source_cell``; its columns are carried over, except
        those the schema defines and scvi-tools' own (``_scvi_...``). Pass only the columns that still hold after the
        intervention.
    var
        The genes: a ``var`` frame or the names.
    interventions
        Label of the intervention of each row, or one for all.
    condition, time
        Condition and time of each row, or one for all. Taken from ``source_obs`` if left out and present there,
        otherwise missing.
    sample
        Number of the random draw of each row; 0 by default.
    units
        ``"counts"``, ``"log1p_norm"`` or ``"as_given"``.
    method
        Name of the model or baseline.
    extra
        Further entries of ``uns["sccausal"]``; values that h5ad can hold.

    Returns
    -------
    AnnData with ``obs[intervention, condition, time, source_cell, sample]`` and
    ``uns["sccausal"] = {"units", "method", "schema", ...}``.

    Raises
    ------
    InputDataError
        If shapes do not fit together or the unit is not known.
    NumericalError
        If predicted values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sccausal.data import prediction_anndata
    >>> cells = pd.DataFrame({"cell_type": ["B", "NK"]}, index=["cell_0", "cell_1"])
    >>> X = np.ones((2, 3))
    >>> facts = {"interventions": "A", "units": "log1p_norm", "method": "mine"}
    >>> predicted = prediction_anndata(X, cells, ["g1", "g2", "g3"], **facts)
    >>> predicted.obs[["source_cell", "intervention"]]
               source_cell intervention
    cell_0-A-0      cell_0            A
    cell_1-A-0      cell_1            A
    """
    if units not in UNITS:
        raise InputDataError(f"Unknown units {units!r}; use one of {', '.join(map(repr, UNITS))}.")
    genes = var.copy() if isinstance(var, pd.DataFrame) else pd.DataFrame(index=pd.Index(var, dtype=str))
    X = sparse.csr_matrix(X, dtype=np.float32) if sparse.issparse(X) else np.asarray(X, dtype=np.float32)
    n = X.shape[0]
    if X.ndim != 2 or X.shape[1] != len(genes) or len(source_obs) != n:
        raise InputDataError(
            f"X has shape {X.shape}, but there are {len(source_obs)} source cells and {len(genes)} genes."
        )
    values = np.asarray(X.data if sparse.issparse(X) else X)
    if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
        raise NumericalError(f"{method} predicted values that are not finite.")
    obs = _observations(source_obs, n, interventions, condition, time, sample)
    content = {"units": units, "method": method, "schema": SCHEMA, **dict(extra or {})}
    return ad.AnnData(X, obs=obs, var=genes, uns={"sccausal": content})


def _observations(
    source_obs: pd.DataFrame,
    n: int,
    interventions: str | Sequence[str],
    condition: Any,
    time: Any,
    sample: Any,
) -> pd.DataFrame:
    source = source_obs.index.astype(str)
    if condition is None and "condition" in source_obs:
        condition = source_obs["condition"].astype(object).to_numpy()
    if time is None and "time" in source_obs:
        time = pd.to_numeric(source_obs["time"].astype(object), errors="coerce").to_numpy()
    labels = _column("interventions", interventions, n).astype(str)
    draw = _column("sample", 0 if sample is None else sample, n).astype(np.int64)
    columns: dict[str, Any] = {
        "intervention": pd.Categorical(labels),
        "condition": pd.Categorical(_text(_column("condition", np.nan if condition is None else condition, n))),
        "time": _column("time", np.nan if time is None else time, n).astype(np.float64),
        "source_cell": source.to_numpy(),
        "sample": draw,
    }
    for name in source_obs.columns:
        if name not in _RESERVED and not str(name).startswith("_scvi"):
            columns[str(name)] = source_obs[name].array
    index = pd.Index([f"{c}-{i}-{s}" for c, i, s in zip(source, labels, draw, strict=True)])
    if not index.is_unique:  # e.g. one cell at several time points
        index = pd.Index([f"{name}-{k}" for k, name in enumerate(index)])
    return pd.DataFrame(columns, index=index)


def _column(name: str, value: Any, n: int) -> np.ndarray:
    array = np.asarray(value, dtype=object)
    if array.ndim == 0:
        return np.full(n, array.item(), dtype=object)
    if array.shape != (n,):
        raise InputDataError(f"`{name}` needs one value or {n}, got {array.shape[0]}.")
    return array


def _text(values: np.ndarray) -> list[Any]:
    return [v if pd.isna(v) else str(v) for v in values]
