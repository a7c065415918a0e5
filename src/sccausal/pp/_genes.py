"""Genes worth modelling: variable ones, ones that answer to the perturbation, targets and regulators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats

from sccausal._errors import SetupError
from sccausal.data._interventions import check_control
from sccausal.data._splits import Split
from sccausal.data._validation import check_matrix, check_obs_column, get_matrix

logger = logging.getLogger(__name__)


def select_genes(
    adata: ad.AnnData,
    n_top: int = 2000,
    condition_key: str | None = None,
    control: str | None = None,
    labels_key: str | None = None,
    keep: Sequence[str] = (),
    regulators: Sequence[str] | None = None,
    train: Split | Sequence[int] | Sequence[bool] | np.ndarray | None = None,
    layer: str | None = None,
    *,
    n_de: int = 50,
    fdr: float = 0.05,
    min_cells: int = 10,
    key_added: str = "selected",
    subset: bool = False,
    copy: bool = False,
) -> ad.AnnData | None:
    """Choose genes on the training cells alone.

    The union of highly variable genes, genes that differ between a condition and control within a cell type, and genes
    that are kept in any case.

    Parameters
    ----------
    adata
        Cells x genes.
    n_top
        Number of highly variable genes (scanpy, flavour ``"seurat"`` on log values).
    condition_key
        Column of ``obs`` with conditions or interventions; no test against control if ``None``.
    control
        Label of control cells in that column.
    labels_key
        Column of ``obs`` with cell types: each is tested by itself. All cells together if ``None``.
    keep
        Genes to keep in any case, e.g. intervention targets. Names that are not measured are ignored with a warning.
    regulators
        Regulators (transcription factors); the measured ones are kept.
    train
        Training cells: a :class:`~sccausal.data.Split`, row numbers or a boolean mask. All cells if ``None``, which
        lets test cells choose genes.
    layer
        Layer with log values or counts; counts are scaled to 1e4 per cell and logged first. ``X`` if ``None``.
    n_de
        Most genes per type and condition, the most significant first.
    fdr
        Level of the Benjamini-Hochberg procedure for them.
    min_cells
        Groups with fewer cells are not tested.
    key_added
        Column of ``var`` to write.
    subset
        Keep only the selected genes in ``adata``.
    copy
        Return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or the copy. Sets ``.var[key_added]`` (bool) and ``.var[key_added + "_by"]``: which of ``hvg``, ``de``,
    ``keep``, ``regulator`` chose the gene. ``.uns[key_added]`` records the arguments.

    Raises
    ------
    SetupError
        If a column, the control or the training cells cannot be used.
    InputDataError
        If the values cannot be used.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 60, 4, n_doubles=2, seed=0))
    >>> keys = {"control": "control"}
    >>> split = scc.pp.split(adata, "unseen_doubles", intervention_key="intervention", **keys)
    >>> scc.pp.select_genes(adata, 20, "intervention", **keys, keep=["G0007"], train=split)
    >>> "keep" in adata.var.loc["G0007", "selected_by"], bool(adata.var["selected"].sum() >= 20)
    (True, True)
    """
    check_matrix(adata, layer, warn=False)
    rows = _training_rows(adata, train)
    groups = _groups(adata, rows, condition_key, control, labels_key)
    values = _log_values(get_matrix(adata, layer), rows)
    reason = {
        "hvg": _variable(values, adata.var_names, n_top),
        "de": _responding(values, groups, n_de, fdr, min_cells),
        "keep": _measured(adata, keep, "keep"),
        "regulator": _measured(adata, regulators or (), "regulators", warn=False),
    }
    chosen = np.any(list(reason.values()), axis=0)
    by = ["+".join(name for name, mask in reason.items() if mask[j]) for j in range(adata.n_vars)]
    target = adata.copy() if copy else adata
    target.var[key_added] = chosen
    target.var[f"{key_added}_by"] = by
    target.uns[key_added] = {
        "n_top": n_top,
        "n_de": n_de,
        "fdr": fdr,
        "n_train": len(rows),
        "n_genes": int(chosen.sum()),
    }
    if subset:
        target._inplace_subset_var(chosen)
    logger.info("%d genes: %s", chosen.sum(), ", ".join(f"{k} {v.sum()}" for k, v in reason.items()))
    return target if copy else None


def _training_rows(adata: ad.AnnData, train: Any) -> np.ndarray:
    if train is None:
        return np.arange(adata.n_obs)
    rows = train.train if isinstance(train, Split) else np.asarray(train)
    if rows.dtype == bool:
        if len(rows) != adata.n_obs:
            raise SetupError(f"`train` has {len(rows)} entries for {adata.n_obs} cells.")
        rows = np.flatnonzero(rows)
    rows = np.unique(rows.astype(np.int64))
    if len(rows) < 2 or rows[0] < 0 or rows[-1] >= adata.n_obs:
        raise SetupError(f"`train` must name at least two of the {adata.n_obs} cells by row number.")
    return rows


def _groups(
    adata: ad.AnnData, rows: np.ndarray, condition_key: str | None, control: str | None, labels_key: str | None
) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Type, condition, its cells and the control cells of every test; cells count from the first training cell."""
    if condition_key is None:
        return []
    condition = check_obs_column(adata, condition_key, "condition_key").astype(str).to_numpy(dtype=object)
    check_control(list(np.unique(condition)), control, f"adata.obs[{condition_key!r}]")
    kind = np.full(adata.n_obs, "all cells", dtype=object)
    if labels_key is not None:
        kind = check_obs_column(adata, labels_key, "labels_key").astype(str).to_numpy(dtype=object)
    condition, kind = condition[rows], kind[rows]
    groups = []
    for t in np.unique(kind):
        untreated = np.flatnonzero((kind == t) & (condition == control))
        for c in np.unique(condition[kind == t]):
            if c != control:
                groups.append((str(t), str(c), np.flatnonzero((kind == t) & (condition == c)), untreated))
    return groups


def _log_values(matrix: Any, rows: np.ndarray) -> Any:
    """Training cells as log values (CSR or dense float32); counts are recognised by being integers."""
    values = matrix[rows]
    values = values.compute() if hasattr(values, "compute") else values
    values = sparse.csr_matrix(values, dtype=np.float32) if sparse.issparse(values) else np.array(values, np.float32)
    stored = np.asarray(values.data if sparse.issparse(values) else values)
    if stored.size and stored.min() >= 0 and np.array_equal(stored, np.rint(stored)):
        total = np.asarray(values.sum(axis=1), dtype=np.float64).ravel()
        scale = (1e4 / np.where(total > 0, total, 1)).astype(np.float32)
        if sparse.issparse(values):
            return sparse.csr_matrix(sparse.diags(scale) @ values).log1p()
        return np.log1p(values * scale[:, None])
    return values


def _variable(values: Any, names: pd.Index, n_top: int) -> np.ndarray:
    if n_top <= 0:
        return np.zeros(len(names), dtype=bool)
    if n_top >= len(names):
        return np.ones(len(names), dtype=bool)
    import scanpy as sc

    cells = ad.AnnData(values, var=pd.DataFrame(index=names))
    low = values.min()
    if low < 0:  # standardised values: dispersion over the mean has no meaning, the variance has
        spread = _moments(values)[1]
        return np.argsort(np.argsort(-spread, kind="stable"), kind="stable") < n_top
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(cells, n_top_genes=n_top, flavor="seurat")
    return cells.var["highly_variable"].to_numpy(dtype=bool)


def _moments(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of each gene, in float64."""
    n = values.shape[0]
    if sparse.issparse(values):
        mean = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel() / n
        square = np.asarray(values.astype(np.float64).power(2).sum(axis=0)).ravel() / n
    else:
        mean, square = values.mean(axis=0, dtype=np.float64), np.square(values, dtype=np.float64).mean(axis=0)
    return mean, np.maximum(square - mean**2, 0) * n / max(1, n - 1)


def _responding(
    values: Any, groups: list[tuple[str, str, np.ndarray, np.ndarray]], n_de: int, fdr: float, min_cells: int
) -> np.ndarray:
    """Genes found by Welch's test in any group, the ``n_de`` best of each."""
    found = np.zeros(values.shape[1], dtype=bool)
    known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for kind, condition, treated, control in groups:
        if min(len(treated), len(control)) < min_cells:
            logger.info("%s, %s is not tested: %d cells, %d controls", kind, condition, len(treated), len(control))
            continue
        if kind not in known:  # the control cells of a type serve all its conditions
            known[kind] = _moments(values[control])
        p = welch(_moments(values[treated]), len(treated), known[kind], len(control))
        significant = stats.false_discovery_control(p) <= fdr
        best = np.argsort(p, kind="stable")[:n_de]
        found[best[significant[best]]] = True
    return found


def welch(
    first: tuple[np.ndarray, np.ndarray], n_first: int, second: tuple[np.ndarray, np.ndarray], n_second: int
) -> np.ndarray:
    """Two-sided p-values of Welch's t-test from means and unbiased variances; 1 for genes without any variance."""
    a, b = first[1] / n_first, second[1] / n_second
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (first[0] - second[0]) / np.sqrt(a + b)
        df = (a + b) ** 2 / (a**2 / (n_first - 1) + b**2 / (n_second - 1))
        p = 2 * stats.t.sf(np.abs(t), df)
    return np.where(np.isfinite(p), p, 1.0)


def _measured(adata: ad.AnnData, names: Sequence[str], argument: str, warn: bool = True) -> np.ndarray:
    names = [names] if isinstance(names, str) else list(names)
    absent = [n for n in names if n not in adata.var_names]
    if absent and warn:
        warnings.warn(
            f"{len(absent)} genes of `{argument}` are not in adata.var_names: {', '.join(absent[:5])}.",
            UserWarning,
            stacklevel=3,
        )
    return adata.var_names.isin(names)
