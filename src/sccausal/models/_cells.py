"""Cells a trained model works on: checked, brought to its genes, and the user's object left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from sccausal._compat import FIELD_REGISTRIES, forget_manager, setup_args, state_registry
from sccausal._errors import InputDataError, SetupError, close_names, unknown_name
from sccausal.data import KEYS

if TYPE_CHECKING:
    from sccausal.models._base import CausalModel

_OBS_ARGS = ("batch_key", "labels_key", "condition_key", "intervention_key", "time_key", "concept_keys")


def take_modality(data: Any, modality: str | None = None) -> AnnData:
    """RNA modality of a MuData; an AnnData is returned as it is.

    Parameters
    ----------
    data
        AnnData or MuData.
    modality
        Name of the modality; default: the one given to ``setup_mudata``, else ``"rna"``, else the only one.

    Raises
    ------
    sccausal._errors.SetupError
        The modality is not there, or which one is meant is open.
    """
    if not isinstance(data, MuData):
        return data
    name = modality or data.uns.get("_scvi_modality") or ("rna" if "rna" in data.mod else None)
    if name is None and len(data.mod) == 1:
        name = next(iter(data.mod))
    if name not in data.mod:
        raise SetupError(f"Modality {name!r} is not in the MuData; name one of {', '.join(map(repr, data.mod))}.")
    return data.mod[name]


def gene_order(adata: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Positions of ``genes`` in ``adata.var_names``.

    Raises
    ------
    sccausal._errors.InputDataError
        Genes are missing or names repeat.
    """
    if not adata.var_names.is_unique:
        raise InputDataError(
            "Gene names repeat in adata.var_names; make them unique with adata.var_names_make_unique()."
        )
    positions = pd.Index(adata.var_names.astype(str)).get_indexer(pd.Index(genes))
    missing = [g for g, p in zip(genes, positions, strict=True) if p < 0]
    if missing:
        near = close_names(missing[0], adata.var_names)
        hint = f" Did {near[0]!r} mean {missing[0]!r}?" if near else ""
        raise InputDataError(
            f"{len(missing)} of the model's {len(genes)} genes are missing, e.g. {', '.join(missing[:5])}.{hint} "
            "Keep these genes in the new data, or pad them with zeros by prepare_query_anndata()."
        )
    return positions


def light_copy(model: CausalModel, adata: AnnData, rows: np.ndarray | None = None) -> AnnData:
    """Only what the model registers: expression in the model's gene order and the columns of its set-up."""
    args = setup_args(model.registry_)
    layer = args.get("layer")
    if layer is not None and layer not in adata.layers:
        raise SetupError(f"Layer {layer!r} of the set-up is not in adata.layers; found {list(adata.layers)}.")
    genes = list(map(str, model.get_var_names()))
    positions = gene_order(adata, genes)
    matrix = adata.layers[layer] if layer is not None else adata.X
    if matrix is None:
        raise SetupError("adata.X is empty, but the model was set up on it.")
    if rows is not None:
        matrix = matrix[np.sort(rows)] if adata.isbacked else matrix[rows]
        rows = np.sort(rows) if adata.isbacked else rows
    elif adata.isbacked:
        matrix = matrix[:]
    if not np.array_equal(positions, np.arange(adata.n_vars)):
        matrix = matrix[:, positions]
    names = _columns(args)
    picked = slice(None) if rows is None else rows
    obs = adata.obs.loc[:, [c for c in names if c in adata.obs]].iloc[picked].copy()
    copy = AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)))
    if layer is not None:
        copy.layers[layer] = copy.X
    for key in names:
        if key in adata.obsm:
            values = adata.obsm[key]
            copy.obsm[key] = values.iloc[picked].copy() if isinstance(values, pd.DataFrame) else values[picked].copy()
    return copy


def _columns(args: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for arg in _OBS_ARGS:
        value = args.get(arg)
        names.extend([value] if isinstance(value, str) else [str(v) for v in value or ()])
    return names


@contextmanager
def registered(
    model: CausalModel, adata: AnnData | MuData | None, *, as_control: bool = False, rows: np.ndarray | None = None
) -> Iterator[AnnData]:
    """Cells as the model's loaders want them, for the length of the block.

    Parameters
    ----------
    model
        The model.
    adata
        New cells, or ``None`` for those of the model.
    as_control
        New cells without an intervention column are control cells.
    rows
        Positions of the cells to take.

    Yields
    ------
    AnnData that ``model._make_data_loader`` accepts. The user's object is neither changed nor kept.
    """
    own = model.adata is not None and (adata is None or take_modality(adata) is model.adata)
    if own and rows is None:
        yield model._validate_anndata(model.adata)
        return
    if adata is None and model.adata is None:
        raise SetupError("The model was loaded without cells; pass `adata`.")
    cells = light_copy(model, model.adata if own else take_modality(adata), rows)
    key = state_registry(model.registry_, KEYS.INTERVENTION).get("original_key")
    if as_control and key is not None and key not in cells.obs and key not in cells.obsm:
        cells.obs[key] = model.codec.control
    extra: dict[str, Any] = {"extend_categories": True} if model._accepts_new_batches else {}
    with warnings.catch_warnings():
        # genes that are constant among a few new cells say nothing about the model
        warnings.filterwarnings("ignore", message=".*have the same value in every cell.*")
        warnings.filterwarnings("ignore", message=".*has fewer than 3 cells.*")
        replay_setup(model, cells, model.registry_, **extra)
    manager = type(model)._get_most_recent_anndata_manager(cells, required=True)
    model._register_manager_for_instance(manager)
    try:
        with model._met(cells):
            yield cells
    finally:
        forget_manager(model, cells)


def replay_setup(model: Any, cells: AnnData, registry: dict[str, Any], **transfer: Any) -> None:
    """Set ``cells`` up as ``registry`` says; a category the model has never seen is named.

    Raises
    ------
    sccausal._errors.SetupError
        A column holds a category that the training data did not have.
    """
    cls: Any = model if isinstance(model, type) else type(model)
    if not transfer.get("extend_categories"):
        _check_categories(cells, registry)
    cls.setup_anndata(cells, source_registry=registry, **setup_args(registry), **transfer)


def _check_categories(cells: AnnData, registry: dict[str, Any]) -> None:
    # scvi-tools accepts the unseen category 0 silently, so the comparison is made here
    for key in (KEYS.BATCH, KEYS.LABELS, KEYS.CONDITION):
        state = state_registry(registry, key)
        column = str(state.get("original_key", ""))
        if "categorical_mapping" not in state or column.startswith("_scvi") or column not in cells.obs:
            continue
        known = {str(c) for c in state["categorical_mapping"]}
        new = sorted({str(c) for c in cells.obs[column].dropna().unique()} - known)
        if new:
            near = close_names(new[0], known)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            more = " New batches are taken up by load_query_data()." if key == KEYS.BATCH else ""
            raise SetupError(
                f"adata.obs[{column!r}] holds {', '.join(map(repr, new[:5]))}, which the model has not seen.{hint} "
                f"Known: {', '.join(sorted(known)[:8])}.{more}"
            )


@contextmanager
def local_seed(seed: int, device: torch.device | str) -> Iterator[None]:
    """Seed PyTorch for the block and put its state back afterwards."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(seed))
        yield


def comparison_units(units: str) -> str:
    """Unit in which predictions are compared: counts become ``"log1p_norm"``."""
    return "log1p_norm" if units == "counts" else units


def comparable(values: Any, units: str) -> np.ndarray:
    """Dense expression (cells, genes) as it is compared; counts become log1p of 1e4 per cell."""
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if units != "counts":
        return dense
    total = dense.sum(axis=1, keepdims=True)
    return np.log1p(dense / np.where(total > 0, total, 1) * 1e4)


def control_positions(model: CausalModel, adata: AnnData) -> np.ndarray:
    """Positions of the control cells; all cells if ``adata`` does not have the intervention column."""
    state = state_registry(model.registry_, KEYS.INTERVENTION)
    key = state["original_key"]
    if key not in adata.obs and key not in adata.obsm:
        return np.arange(adata.n_obs)
    source = adata.obsm[key] if key in adata.obsm else adata.obs[key]
    rows, code = model.codec.encode_levels(source)
    return np.flatnonzero((np.abs(rows).sum(axis=1) == 0)[code])


def check_condition(model: CausalModel, condition: str | None) -> None:
    """Raise unless ``condition`` is one the model has seen beside the intervention."""
    if condition is None:
        return
    state = state_registry(model.registry_, KEYS.CONDITION)
    known = [str(c) for c in state.get("categorical_mapping", ())]
    if len(known) < 2:
        raise SetupError(
            f"This {type(model).__name__} knows no condition beside the intervention; "
            "name what the cells are exposed to in `interventions`."
        )
    if condition not in known:
        raise unknown_name("condition", condition, known, f"adata.obs[{state.get('original_key')!r}]")


def checked_times(model: CausalModel, times: Sequence[float] | float | None) -> list[float | None]:
    """Times as floats, ``[None]`` for the cells' own; raise if the model knows no time."""
    if times is None:
        return [None]
    if KEYS.TIME not in model.registry_[FIELD_REGISTRIES]:
        raise SetupError(f"This {type(model).__name__} was set up without time; leave the time out.")
    values = [float(t) for t in np.atleast_1d(np.asarray(times, dtype=float))]
    if not np.isfinite(values).all() or not values:
        raise SetupError(f"Times must be finite numbers, got {times!r}.")
    return list(values)
