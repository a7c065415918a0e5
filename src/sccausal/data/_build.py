"""One list of registered fields for every model, checked before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import anndata as ad
from scvi.data.fields import BaseAnnDataField, MuDataNumericalObsField, NumericalObsField

from sccausal._errors import SetupError
from sccausal.data._fields import (
    CategoryField,
    ConceptField,
    ExpressionField,
    InterventionField,
    MuDataCategoryField,
    MuDataConceptField,
    MuDataExpressionField,
    MuDataInterventionField,
)
from sccausal.data._interventions import check_control
from sccausal.data._keys import KEYS
from sccausal.data._validation import check_matrix, check_numeric_column, check_obs_column

_MUDATA_TWIN = {
    ExpressionField: MuDataExpressionField,
    InterventionField: MuDataInterventionField,
    CategoryField: MuDataCategoryField,
    ConceptField: MuDataConceptField,
    NumericalObsField: MuDataNumericalObsField,
}
USES = ("batch", "labels", "condition", "intervention", "time", "concepts")


def build_fields(
    adata: Any,
    uses: set[str],
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    condition_key: str | None = None,
    intervention_key: str | None = None,
    control: str | None = None,
    time_key: str | None = None,
    concept_keys: Sequence[str] | None = None,
    sep: str | None = "+",
    is_count_data: bool = True,
    *,
    condition_as_intervention: bool = False,
    transfer: bool = False,
    mod_key: str | None = None,
) -> list[BaseAnnDataField]:
    """Check the data of a model and return its fields; ``adata`` is never changed.

    Parameters
    ----------
    adata
        Cells x genes, or a MuData with ``mod_key``.
    uses
        Keys the model uses, out of ``{"batch", "labels", "condition", "intervention", "time", "concepts"}``. A key
        argument for another raises.
    layer
        Layer of the expression; ``X`` if ``None``.
    batch_key, labels_key, condition_key
        Categorical columns of ``obs``. One level for all cells if ``None``.
    intervention_key
        Column of labels in ``obs`` or frame of doses in ``obsm``. No field if ``None``.
    control
        Label of control cells.
    time_key
        Numeric column of ``obs``. No field if ``None``.
    concept_keys
        Categorical columns of ``obs``, encoded together. No field if ``None``.
    sep
        String between the targets of a combination.
    is_count_data
        Whether the expression must be counts.
    condition_as_intervention
        The model treats conditions as interventions: exactly one of ``condition_key`` and ``intervention_key`` is
        needed and becomes ``KEYS.INTERVENTION``. Conditions are never split at ``sep``.
    transfer
        The fields are for new cells of a model that is set up already (``source_registry`` was passed to
        ``setup_anndata``): one cell, one level and absent controls are fine.
    mod_key
        Modality of a MuData that holds expression and annotations.

    Returns
    -------
    Fields for :class:`scvi.data.AnnDataManager`, under the names of :data:`~sccausal.data.KEYS`.

    Raises
    ------
    SetupError
        If a key is missing, misspelt, incomplete, has one level or is not one the model uses, or ``adata`` is a view.
    InputDataError
        If the expression cannot be used; see :func:`~sccausal.data.check_matrix`.

    Examples
    --------
    >>> from sccausal.data import build_fields
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(100, 30, 3, n_batches=2, seed=0)
    >>> keys = {"batch_key": "batch", "intervention_key": "intervention", "control": "control"}
    >>> fields = build_fields(adata, {"batch", "intervention"}, **keys)
    >>> [field.registry_key for field in fields]
    ['X', 'batch', 'intervention']
    """
    cells = _modality(adata, mod_key)
    concepts = [concept_keys] if isinstance(concept_keys, str) else list(concept_keys or ())
    given: dict[str, Any] = {
        "batch": batch_key,
        "labels": labels_key,
        "condition": condition_key,
        "intervention": intervention_key,
        "time": time_key,
        "concepts": concepts,
    }
    _check_uses(given, uses, condition_as_intervention)
    fewest = 1 if transfer else 2
    check_matrix(cells, layer, is_count_data, min_cells=fewest, warn=not transfer)

    def make(field: type[BaseAnnDataField], *args: Any) -> BaseAnnDataField:
        return field(*args) if mod_key is None else _MUDATA_TWIN[field](*args, mod_key=mod_key)

    fields = [make(ExpressionField, KEYS.X, layer, is_count_data)]
    for use in ("batch", "labels", "condition"):
        if use not in uses or (use == "condition" and condition_as_intervention):
            continue
        _check_categories(cells, use, given[use], control if intervention_key is None else None, fewest)
        fields.append(make(CategoryField, getattr(KEYS, use.upper()), given[use]))
    domain = intervention_key or (condition_key if condition_as_intervention else None)
    if domain is not None:
        arguments = (KEYS.INTERVENTION, domain, control, sep if intervention_key else None)
        field = InterventionField(*arguments)
        if transfer:
            field.validate_field(cells)
        else:
            field.fit_codec(cells)
        fields.append(make(InterventionField, *arguments))
    if time_key is not None:
        check_numeric_column(cells, time_key, "time_key")
        fields.append(make(NumericalObsField, KEYS.TIME, time_key))
    if concepts:
        for key in concepts:
            check_obs_column(cells, key, "concept_keys", n_levels=fewest)
        fields.append(make(ConceptField, KEYS.CONCEPTS, concepts))
    return fields


@contextmanager
def restore_on_error(adata: Any, mod_key: str | None = None) -> Iterator[None]:
    """Undo what a registration wrote into ``obs``, ``obsm`` and ``uns`` if the block raises.

    Fields are registered one after the other, so an unseen category in the third one would otherwise leave the
    entries of the first two behind.

    Parameters
    ----------
    adata
        Cells x genes, or a MuData.
    mod_key
        Modality of the MuData that holds expression and annotations.

    Examples
    --------
    >>> from scvi.data import AnnDataManager
    >>> from sccausal.data import build_fields, restore_on_error
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(100, 30, 3, seed=0)
    >>> manager = AnnDataManager(fields=build_fields(adata, set()))
    >>> with restore_on_error(adata):
    ...     manager.register_fields(adata)
    """
    parts = [adata] if mod_key is None else [adata, adata.mod[mod_key]]
    places: list[MutableMapping] = [place for p in parts for place in (p.obs, p.obsm, p.uns)]
    before = [_registered(place) for place in places]
    try:
        yield
    except BaseException:
        for place, saved in zip(places, before, strict=True):
            for name in _registered(place):
                if name in saved:
                    place[name] = saved[name]
                else:
                    del place[name]
        raise


def _registered(place: Mapping) -> dict[str, Any]:
    return {name: place[name] for name in list(place.keys()) if str(name).startswith("_scvi")}


def _modality(adata: Any, mod_key: str | None) -> ad.AnnData:
    cells = adata
    if mod_key is not None:
        known = list(getattr(adata, "mod", {}))
        if mod_key not in known:
            raise SetupError(f"Modality {mod_key!r} is not in the MuData. Found: {', '.join(known) or 'none'}.")
        cells = adata.mod[mod_key]
    elif not isinstance(adata, ad.AnnData):
        raise SetupError(f"Expected an AnnData, got {type(adata).__name__}. For a MuData name the modality.")
    if cells.is_view or adata.is_view:
        raise SetupError("adata is a view of another object. Copy it first: `adata = adata.copy()`.")
    return cells


def _check_uses(given: Mapping[str, Any], uses: set[str], condition_as_intervention: bool) -> None:
    unknown = set(uses) - set(USES)
    if unknown:
        raise SetupError(f"`uses` names {sorted(unknown)}; known are {', '.join(USES)}.")
    for use, key in given.items():
        if key and use not in uses and not (condition_as_intervention and use in ("condition", "intervention")):
            argument = "concept_keys" if use == "concepts" else f"{use}_key"
            raise SetupError(f"This model does not use `{argument}` ({key!r} was given); leave it out.")
    if condition_as_intervention and bool(given["condition"]) == bool(given["intervention"]):
        found = "both" if given["condition"] else "none"
        raise SetupError(f"Name exactly one of `condition_key` and `intervention_key`; {found} given.")


def _check_categories(cells: ad.AnnData, use: str, key: str | None, control: str | None, fewest: int) -> None:
    """Batches and conditions need two levels; one cell type is a data set like any other."""
    if key is None:
        return
    column = check_obs_column(cells, key, f"{use}_key", n_levels=1 if use == "labels" else fewest)
    if use == "condition" and control is not None and fewest > 1:
        check_control([str(v).strip() for v in column.unique()], control, f"adata.obs[{key!r}]")
