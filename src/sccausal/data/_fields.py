"""Registered fields of our own: interventions, and scvi-tools' fields with checks whenever new cells arrive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import rich.table
from scipy import sparse
from scvi.data.fields import (
    BaseAnnDataField,
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    MuDataWrapper,
)

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.data._interventions import InterventionCodec, check_control
from sccausal.data._validation import check_matrix, check_obs_column, missing_column

_DENSE_LIMIT = 2**28
"""Entries (cells x targets) up to which the doses are kept dense, i.e. 1 GB; a CSR matrix beyond."""


class ExpressionField(LayerField):
    """Expression, with the checks of :func:`~sccausal.data.check_matrix` on cells a model sees later.

    The first registration is checked by :func:`~sccausal.data.build_fields`, together with everything else.

    Parameters
    ----------
    registry_key
        Name of the tensor in a mini-batch.
    layer
        Layer of the expression; ``X`` if ``None``.
    counts
        Whether the expression must be counts.
    """

    def __init__(self, registry_key: str, layer: str | None, counts: bool) -> None:
        super().__init__(registry_key, layer, is_count_data=False)
        self.counts = counts

    def transfer_field(self, state_registry: dict, adata_target: ad.AnnData, **kwargs: Any) -> dict:
        """Check new cells and their genes, then register them.

        Raises
        ------
        InputDataError
            If the values cannot be used, or the genes are not those of the model in the same order.
        """
        check_matrix(adata_target, self.attr_key, self.counts, min_cells=1, warn=False)
        _check_genes(adata_target, state_registry[self.COLUMN_NAMES_KEY])
        return super().transfer_field(state_registry, adata_target, **kwargs)


def _check_genes(adata: ad.AnnData, expected: Any) -> None:
    expected, found = pd.Index(expected).astype(str), adata.var_names.astype(str)
    if found.equals(expected):
        return
    missing = expected.difference(found, sort=False)
    if len(missing):
        shown = ", ".join(missing[:5])
        raise InputDataError(
            f"{len(missing)} of the model's {len(expected)} genes are not in adata.var_names, e.g. {shown}. "
            "Add them, or load the cells as a query, which fills in missing genes."
        )
    raise InputDataError(
        "adata holds the model's genes in another order or beside others. "
        "Select them: `adata[:, model.adata.var_names].copy()`."
    )


class CategoryField(CategoricalObsField):
    """Categorical column that never takes an unseen level of new cells for a known one.

    scvi-tools 1.4 and 1.5 let an unseen level pass silently if it is the integer 0, and fail on missing values.
    """

    def transfer_field(
        self, state_registry: dict, adata_target: ad.AnnData, extend_categories: bool = False, **kwargs: Any
    ) -> dict:
        """Check the column of new cells, then encode it.

        Raises
        ------
        SetupError
            If the column is missing or incomplete.
        UnknownNameError
            If a level is not known and ``extend_categories`` is not set.
        """
        if not self.is_default:
            known = None if extend_categories else state_registry[self.CATEGORICAL_MAPPING_KEY]
            _check_levels(adata_target, self._original_attr_key, self.registry_key, known)
        return super().transfer_field(state_registry, adata_target, extend_categories=extend_categories, **kwargs)


class ConceptField(CategoricalJointObsField):
    """Several categorical columns encoded together, with the same checks as :class:`CategoryField`."""

    def transfer_field(
        self, state_registry: dict, adata_target: ad.AnnData, extend_categories: bool = False, **kwargs: Any
    ) -> dict:
        """Check the columns of new cells, then encode them; raises as :meth:`CategoryField.transfer_field`."""
        for key in self.attr_keys:
            known = None if extend_categories else state_registry[self.MAPPINGS_KEY][key]
            _check_levels(adata_target, key, self.registry_key, known)
        return super().transfer_field(state_registry, adata_target, extend_categories=extend_categories, **kwargs)


def _check_levels(adata: ad.AnnData, key: str, registry_key: str, known: Any) -> None:
    column = check_obs_column(adata, key, registry_key)
    if known is None:
        return
    known = list(known)
    unseen = [v for v in column.unique() if v not in known]
    if unseen:
        raise unknown_name(
            f"{registry_key} level", str(unseen[0]), known, f"the data the model was trained on (adata.obs[{key!r}])"
        )


class InterventionField(BaseAnnDataField):
    """Interventions of cells as a matrix of doses, cells x targets.

    The source is a column of labels in ``adata.obs`` or a frame of doses in ``adata.obsm``; if both exist under the
    name, they must agree and the frame is taken. Only ``adata.obsm["_scvi_<registry_key>"]`` is written: float32,
    dense up to 2**28 entries and CSR beyond. In a mini-batch it arrives as float32 (n, targets); a row of zeros is a
    control cell.

    Parameters
    ----------
    registry_key
        Name of the tensor in a mini-batch.
    attr_key
        Name of the column or frame.
    control
        Label of control cells.
    sep
        String between the targets of a combination; ``None`` if a label is always one target.

    Notes
    -----
    A registered field is carried over to new cells with the targets it was learned with: unseen combinations are
    fine, unseen targets raise :class:`~sccausal._errors.UnknownNameError`. New cells may come without the column if
    ``missing_as_control=True`` is passed on to
    :meth:`scvi.data.AnnDataManager.transfer_fields`; all of them are control cells then.

    Examples
    --------
    >>> from scvi.data import AnnDataManager
    >>> from sccausal.data import KEYS, InterventionField
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(100, 30, 3, seed=0)
    >>> manager = AnnDataManager(fields=[InterventionField(KEYS.INTERVENTION, "intervention", control="control")])
    >>> manager.register_fields(adata)
    >>> manager.get_from_registry(KEYS.INTERVENTION).shape  # cells x targets
    (100, 3)
    """

    KIND_LABELS = "labels"
    KIND_DOSE = "dose"

    def __init__(self, registry_key: str, attr_key: str, control: str | None = None, sep: str | None = "+") -> None:
        super().__init__()
        self._registry_key = registry_key
        self._original_key = attr_key
        self.control = control
        self.sep = sep
        self.count_stat_key = f"n_{registry_key}"

    @property
    def registry_key(self) -> str:
        """Name of the tensor in a mini-batch."""
        return self._registry_key

    @property
    def attr_name(self) -> str:
        """Attribute of the AnnData the field writes to."""
        return "obsm"

    @property
    def attr_key(self) -> str:
        """Key in that attribute."""
        return f"_scvi_{self._registry_key}"

    @property
    def is_empty(self) -> bool:
        """Never: without a key there is no field."""
        return False

    def validate_field(self, adata: ad.AnnData) -> None:
        """Raise a :class:`~sccausal._errors.SetupError` if the source cannot be used."""
        self._source(adata)

    def fit_codec(self, adata: ad.AnnData) -> InterventionCodec:
        """Learn the targets from the cells; nothing is written."""
        kind, source = self._source(adata)
        if kind == self.KIND_LABELS:
            levels = [str(v).strip() for v in source.unique()]
            check_control(levels, self.control, where=f"adata.obs[{self._original_key!r}]")
        elif not (source.to_numpy(dtype=np.float32) != 0).any():
            raise SetupError(f"adata.obsm[{self._original_key!r}] is zero everywhere: all cells are control cells.")
        return InterventionCodec.fit(source, self.control, self.sep)

    def register_field(self, adata: ad.AnnData) -> dict:
        """Learn the targets, write the doses and return the state that new cells are encoded with."""
        kind, source = self._source(adata)
        codec = self.fit_codec(adata)
        self._write(adata, codec, source)
        return {**codec.to_dict(), "original_key": self._original_key, "kind": kind}

    def transfer_field(
        self,
        state_registry: Mapping[str, Any],
        adata_target: ad.AnnData,
        missing_as_control: bool = False,
        **kwargs: Any,
    ) -> dict:
        """Encode new cells with the known targets.

        Raises
        ------
        UnknownNameError
            If a label or a frame names a target that is not known.
        SetupError
            If the source is missing (and ``missing_as_control`` is not set) or has missing labels.
        """
        codec = InterventionCodec.from_dict(state_registry)
        absent = self._original_key not in adata_target.obs and self._original_key not in adata_target.obsm
        if absent and missing_as_control:
            source: Any = pd.Series([codec.control] * adata_target.n_obs)
        else:
            _, source = self._source(adata_target)
        self._write(adata_target, codec, source)
        return {**codec.to_dict(), "original_key": self._original_key, "kind": state_registry["kind"]}

    def get_summary_stats(self, state_registry: Mapping[str, Any]) -> dict:
        """Return ``n_<registry_key>``, the number of targets."""
        return {self.count_stat_key: len(state_registry["targets"])}

    def view_state_registry(self, state_registry: Mapping[str, Any]) -> rich.table.Table:
        """Table of the targets and their columns."""
        table = rich.table.Table(title=f"{self.registry_key} State Registry")
        for column in ("Source Location", "Target", "Column"):
            table.add_column(column, overflow="fold")
        place = "obs" if state_registry["kind"] == self.KIND_LABELS else "obsm"
        first = f"adata.{place}['{state_registry['original_key']}']"
        table.add_row(first, f"{state_registry['control']} (control)", "-")
        for j, target in enumerate(state_registry["targets"]):
            table.add_row("", target, str(j))
        return table

    def _source(self, adata: ad.AnnData) -> tuple[str, Any]:
        """Kind and content of the source, checked."""
        key = self._original_key
        if key in adata.obsm:
            frame = adata.obsm[key]
            if not isinstance(frame, pd.DataFrame):
                raise SetupError(
                    f"adata.obsm[{key!r}] must be a DataFrame cells x targets, found {type(frame).__name__}: "
                    "its columns name the targets. `sccausal.pp.encode_interventions` makes one from labels."
                )
            _check_frame(frame, key)
            if key in adata.obs:
                self._check_agreement(adata, frame)
            return self.KIND_DOSE, frame
        if key not in adata.obs:
            raise missing_column(
                key, [*adata.obs.columns, *adata.obsm.keys()], f"{self._registry_key}_key", "adata.obs or adata.obsm"
            )
        return self.KIND_LABELS, check_obs_column(adata, key, f"{self._registry_key}_key")

    def _check_agreement(self, adata: ad.AnnData, frame: pd.DataFrame) -> None:
        """Two sources of truth under one name are accepted only if they name the same targets in every cell."""
        key = self._original_key
        codec = InterventionCodec.fit(frame, self.control, self.sep)
        labels = check_obs_column(adata, key, f"{self._registry_key}_key")
        try:
            named = codec.encode(labels) != 0
            differ = int((named != (codec.encode(frame) != 0)).any(axis=1).sum())
        except ValueError:
            differ = len(frame)
        if differ:
            raise SetupError(
                f"adata.obs[{key!r}] and adata.obsm[{key!r}] name different interventions in {differ} cells. "
                "Rename or drop one of them."
            )

    def _write(self, adata: ad.AnnData, codec: InterventionCodec, source: Any) -> None:
        rows, code = codec.encode_levels(source)
        if len(code) * len(codec) > _DENSE_LIMIT:
            adata.obsm[self.attr_key] = sparse.csr_matrix(rows)[code]
        else:
            adata.obsm[self.attr_key] = rows[code]


def _check_frame(frame: pd.DataFrame, key: str) -> None:
    if frame.shape[1] == 0:
        raise SetupError(f"adata.obsm[{key!r}] has no column; each column is a target.")
    if not all(pd.api.types.is_numeric_dtype(t) or pd.api.types.is_bool_dtype(t) for t in frame.dtypes):
        text = [str(c) for c, t in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(t)]
        raise SetupError(f"adata.obsm[{key!r}] must hold doses as numbers; not so in {', '.join(text[:5])}.")
    bad = frame.columns[~np.isfinite(frame.to_numpy(dtype=np.float32)).all(axis=0)]
    if len(bad):
        raise InputDataError(
            f"Doses of adata.obsm[{key!r}] are missing or infinite for {', '.join(map(str, bad[:5]))}; use 0 for none."
        )


MuDataInterventionField = MuDataWrapper(InterventionField)
MuDataExpressionField = MuDataWrapper(ExpressionField)
MuDataCategoryField = MuDataWrapper(CategoryField)
MuDataConceptField = MuDataWrapper(ConceptField)
