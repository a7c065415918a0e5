"""What :func:`sccausal.tl.structure` reads from an AnnData: standardised values, intervened genes, regulators."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sccausal._errors import InputDataError, SetupError, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger(__name__)

Standardisation = Literal["rank-gaussian", "zscore", "none"]
_FEWEST_CONTROLS = 10  # of a batch, to take its level from them


@dataclass(frozen=True)
class Cells:
    """Cells ready for a linear model."""

    values: np.ndarray  # (n_cells, n_genes), standardised
    intervened: np.ndarray | None  # (n_cells, n_genes), boolean; None without interventions
    genes: list[str]
    metadata: dict[str, Any]


def prepare_cells(
    adata: AnnData,
    *,
    layer: str | None,
    batch_key: str | None,
    intervention_key: str | None,
    control: str | None,
    sep: str | None,
    standardise: Standardisation | None,
) -> Cells:
    """Read, centre within batches, leave out cells with unmeasured targets, and standardise.

    Parameters
    ----------
    adata, layer, batch_key, intervention_key, control, sep, standardise
        As for :func:`sccausal.tl.structure`.
    """
    values, genes = _values(adata, layer), [str(g) for g in adata.var_names]
    frame = None if intervention_key is None else _intervened(adata, intervention_key, control, sep)
    scale: Standardisation = standardise or ("rank-gaussian" if frame is None else "zscore")
    metadata: dict[str, Any] = {"method": "structure", "layer": layer, "n_genes": len(genes), "standardise": scale}
    if batch_key is not None:
        values = _centre(values, adata, batch_key, None if frame is None else ~frame.any(axis=1).to_numpy())
    if frame is None:
        metadata |= {"n_cells": len(values), "batch_key": batch_key}
        return Cells(_standardised(values, scale), None, genes, metadata)
    known = frame.columns.isin(genes)
    unmeasured = frame.columns[~known].tolist()
    if not known.any():
        raise InputDataError(
            f"None of the {len(known)} intervention targets is a gene of `adata` (targets: {unmeasured[:5]}, "
            f"genes: {genes[:5]}). Edges can only be oriented by interventions on measured genes."
        )
    keep = ~frame.loc[:, ~known].any(axis=1).to_numpy()
    if unmeasured:
        logger.info("%d cells under interventions on unmeasured genes are left out.", (~keep).sum())
    mask = np.zeros((int(keep.sum()), len(genes)), dtype=bool)
    mask[:, [genes.index(t) for t in frame.columns[known]]] = frame.loc[keep, known].to_numpy()
    metadata |= {
        "n_cells": int(keep.sum()),
        "batch_key": batch_key,
        "unmeasured_targets": unmeasured,
        "n_cells_left_out": int((~keep).sum()),
    }
    return Cells(_standardised(values[keep], scale), mask, genes, metadata)


def _values(adata: AnnData, layer: str | None) -> np.ndarray:
    from scipy import sparse

    if layer is not None and layer not in adata.layers:
        raise unknown_name("layer", layer, adata.layers.keys(), "adata.layers")
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise InputDataError(f"Gene {twice!r} is listed twice. Call `adata.var_names_make_unique()` first.")
    x = adata.X if layer is None else adata.layers[layer]
    if x is None or adata.n_obs < 3 or adata.n_vars < 2:
        raise InputDataError(f"A network needs at least 3 cells and 2 genes, found {adata.n_obs} x {adata.n_vars}.")
    values = np.asarray(x.toarray() if sparse.issparse(x) else x[:], dtype=np.float64)
    bad = ~np.isfinite(values).all(0)
    if bad.any():
        raise InputDataError(
            f"{int(bad.sum())} genes hold values that are missing or infinite: {list(adata.var_names[bad][:5])}. "
            "Drop these genes or fill the values."
        )
    return values


def expression_values(adata: AnnData, layer: str | None = None, batch_key: str | None = None) -> np.ndarray:
    """Dense values (n_cells, n_genes), checked, and centred within batches if a column names them.

    Raises
    ------
    InputDataError
        If genes are listed twice, values are not finite, or there are too few cells.
    UnknownNameError
        If the layer or column is not known.
    """
    values = _values(adata, layer)
    return values if batch_key is None else _centre(values, adata, batch_key, None)


def find_regulators(adata: AnnData, regulators: Sequence[str] | str | None) -> np.ndarray | None:
    """Positions of the regulators, given as names or as a boolean column of ``adata.var``; ``None`` for all.

    Raises
    ------
    UnknownNameError
        If a gene or the column is not known.
    """
    if regulators is None:
        return None
    if isinstance(regulators, str):
        if regulators not in adata.var:
            raise unknown_name("column of regulators", regulators, adata.var.columns, "adata.var")
        return np.flatnonzero(adata.var[regulators].to_numpy(dtype=bool))
    genes = [str(g) for g in adata.var_names]
    place = {g: k for k, g in enumerate(genes)}
    for name in regulators:
        if str(name) not in place:
            raise unknown_name("regulator", str(name), genes, "adata.var_names")
    return np.unique([place[str(r)] for r in regulators])


def _intervened(adata: AnnData, key: str, control: str | None, sep: str | None) -> pd.DataFrame:
    """Boolean frame, cells x targets (names as strings)."""
    import pandas as pd

    from sccausal.data import InterventionCodec

    if key in adata.obsm:
        frame = adata.obsm[key]
        if not isinstance(frame, pd.DataFrame):
            raise SetupError(f"adata.obsm[{key!r}] must be a DataFrame whose columns are targets.")
        return (frame.fillna(0) != 0).set_axis([str(c) for c in frame.columns], axis=1)
    if key not in adata.obs:
        known = [*adata.obs.columns, *adata.obsm.keys()]
        raise unknown_name("intervention column", key, known, "adata.obs and adata.obsm")
    codec = InterventionCodec.fit(adata.obs[key], control, sep)
    return pd.DataFrame(codec.encode(adata.obs[key]) != 0, index=adata.obs_names, columns=list(codec.targets))


def _centre(values: np.ndarray, adata: AnnData, batch_key: str, is_control: np.ndarray | None) -> np.ndarray:
    if batch_key not in adata.obs:
        raise unknown_name("batch column", batch_key, adata.obs.columns, "adata.obs")
    batches = adata.obs[batch_key].astype(str).to_numpy()
    members = [batches == b for b in np.unique(batches)]
    use_control = is_control is not None and all((m & is_control).sum() >= _FEWEST_CONTROLS for m in members)
    out = values.copy()
    for member in members:
        base = member & is_control if use_control and is_control is not None else member
        out[member] -= values[base].mean(0)
    return out


def _standardised(values: np.ndarray, how: Standardisation) -> np.ndarray:
    from sccausal.grn._elastic_net import rank_gaussian, z_score

    if how == "rank-gaussian":
        return rank_gaussian(values)
    if how == "zscore":
        return z_score(values)
    if how == "none":
        return values
    raise SetupError(f"`standardise` is {how!r}; choose 'rank-gaussian', 'zscore' or 'none'.")
