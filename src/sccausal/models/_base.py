"""What all models share: set-up, cells in and out, accessors, saving, query data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scvi.data import AnnDataManager
from scvi.model.base import ArchesMixin, BaseModelClass, VAEMixin

from sccausal._compat import SETUP_ARGS, state_registry, teach_scvi_to_read
from sccausal._docs import docs
from sccausal._errors import NotSupportedError, SetupError, unknown_name
from sccausal.data import KEYS, InterventionCodec, build_fields, restore_on_error
from sccausal.models._cells import registered, take_modality
from sccausal.models._grn import GRNAccessor
from sccausal.models._identifiability import Check, IdentifiabilityReport
from sccausal.models._io import is_saved_model, read_for_scvi
from sccausal.models._perturbation import PerturbationAccessor
from sccausal.models._saving import PersistenceMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from sccausal.grn import Network

# SaveCheckpoint and the hub of scvi-tools then open our files as well
teach_scvi_to_read(is_saved_model, read_for_scvi)


class CausalModel(PersistenceMixin, VAEMixin, ArchesMixin, BaseModelClass):
    """Base of all models of the package.

    Parameters
    ----------
    adata
        Data that ``setup_anndata`` (or ``setup_mudata``) has seen.
    registry
        Registry of a saved model, in place of ``adata``.

    Notes
    -----
    A model sets the class attributes :attr:`capabilities` and :attr:`representations`, builds ``self.module`` in its
    constructor, ends that with ``self.init_params_ = self._get_init_params(locals())``, and implements the hooks:

    ``_encode(tensors, representation) -> Tensor (n, d)``
        Latent representation of one mini-batch (tensors as the loader gives them, on the CPU).
    ``_predict_cells(adata, row, *, condition, time, n_samples, seed, batch_size) -> ndarray (n_samples * n, genes)``
        Expression of the control cells ``adata`` (registered; use ``self._make_data_loader(adata, batch_size=...)``)
        under the doses ``row`` (float32, (targets,)), in :attr:`prediction_units`. All cells of draw 0 come first,
        then all of draw 1. ``condition`` (label or None) and ``time`` (float or None) are checked. Called in
        inference mode with PyTorch seeded by ``seed``, the same for every intervention, so that draws share their
        noise. For the control, ``row`` is zero. Needed for the capability ``"perturbation"``.
    ``_network(**kwargs) -> Network``
        Needed for the capability ``"grn"``.
    ``_assumptions() -> list[Check]``
        The checks of :meth:`identifiability_report`.

    ``_met(adata) -> context manager``
        Entered with new cells that are registered with the model, for models that learn something from the cells of a
        query together; default: nothing happens.

    Values kept beside the weights are instance attributes ending in ``_`` (plain values, arrays, frames).

    Examples
    --------
    >>> import sccausal as scc
    >>> isinstance(model, scc.models.CausalModel), sorted(model.capabilities)
    (True, ['grn', 'perturbation'])
    >>> model.get_latent_representation().shape[0] == adata.n_obs
    True
    """

    capabilities: ClassVar[frozenset[str]] = frozenset()
    """Accessors the model can honour: ``"perturbation"``, ``"grn"``."""
    representations: ClassVar[tuple[str, ...]] = ("latent",)
    """Latent representations it offers, the default first."""
    _accepts_new_batches: ClassVar[bool] = False  # whether inference needs no parameter of the cell's batch

    init_params_: dict[str, Any]
    registry_: dict[str, Any]
    module: Any

    def __init__(self, adata: AnnData | MuData | None = None, registry: dict[str, Any] | None = None) -> None:
        super().__init__(None if adata is None else take_modality(adata), registry)

    # set-up ----------------------------------------------------------------------------------------------------------

    @classmethod
    def _register(
        cls, adata: AnnData, setup_method_args: dict[str, Any], *, uses: set[str], is_count_data: bool, **transfer: Any
    ) -> None:
        """Check ``adata`` and register the fields of the model; an error leaves it as it was.

        Parameters
        ----------
        adata
            The cells.
        setup_method_args
            ``cls._get_setup_method_args(**locals())``, the first statement of ``setup_anndata``. Its arguments are
            passed on to :func:`sccausal.data.build_fields` under their own names.
        uses
            As in :func:`sccausal.data.build_fields`.
        is_count_data
            Whether the expression must be counts.
        **transfer
            The ``**kwargs`` of ``setup_anndata`` (``source_registry`` and scvi-tools' transfer options), and
            ``condition_as_intervention``.
        """
        keys = dict(setup_method_args[SETUP_ARGS])
        as_intervention = bool(transfer.pop("condition_as_intervention", False))
        known = ("layer", "batch_key", "labels_key", "condition_key", "intervention_key", "control", "time_key")
        fields = build_fields(
            adata,
            uses,
            **{k: keys[k] for k in (*known, "concept_keys", "sep") if k in keys},
            is_count_data=is_count_data,
            condition_as_intervention=as_intervention,
            transfer=transfer.get("source_registry") is not None,
        )
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        with restore_on_error(adata):
            manager.register_fields(adata, **transfer)
        cls.register_manager(manager)

    @classmethod
    def setup_mudata(cls, mdata: MuData, *, modality: str = "rna", **keys: Any) -> None:
        """Set the model up on one modality of a MuData.

        The model then works on that modality: the constructor and all methods that take ``adata`` accept the MuData.

        Parameters
        ----------
        mdata
            Multimodal data.
        modality
            Name of the modality with the gene expression.
        **keys
            Arguments of ``setup_anndata``. Columns must be in ``mdata.mod[modality].obs``; those of ``mdata.obs`` get
            there by ``mdata.push_obs(columns=[...], mods=[modality])``.

        Raises
        ------
        sccausal._errors.SetupError
            The modality or a column is missing.
        """
        cells = take_modality(mdata, modality)
        for arg, key in keys.items():
            here = isinstance(key, str) and arg.endswith("_key") and key not in cells.obs and key not in cells.obsm
            if here and key in mdata.obs:
                raise SetupError(
                    f"{key!r} ({arg}) is in mdata.obs but not in the modality {modality!r}. Copy it over with "
                    f"mdata.push_obs(columns=[{key!r}], mods=[{modality!r}])."
                )
        cls.setup_anndata(cells, **keys)
        mdata.uns["_scvi_modality"] = modality

    # reading a trained model -----------------------------------------------------------------------------------------

    @property
    def codec(self) -> InterventionCodec:
        """Translation between intervention labels and doses."""
        state = state_registry(self.registry_, KEYS.INTERVENTION)
        if not state:
            raise NotSupportedError(f"This {type(self).__name__} was set up without interventions.")
        return InterventionCodec.from_dict(state)

    @property
    def prediction_units(self) -> str:
        """Unit of predicted expression: ``"counts"``, ``"log1p_norm"`` or ``"as_given"``."""
        return "as_given"

    @torch.inference_mode()
    @docs.dedent
    def get_latent_representation(
        self,
        adata: AnnData | MuData | None = None,
        indices: Sequence[int] | None = None,
        representation: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Latent representation of cells.

        Parameters
        ----------
        %(query_adata)s
        %(indices)s
        representation
            One of ``model.representations``; default the first.
        %(batch_size)s

        Returns
        -------
        Array (cells, dimensions), float32, in the order of ``indices``.

        Raises
        ------
        sccausal._errors.UnknownNameError
            The model has no such representation.
        sccausal._errors.InputDataError
            The new cells lack genes or hold values that are not finite.
        """
        self._check_if_trained(warn=False)
        kind = representation or self.representations[0]
        if kind not in self.representations:
            raise unknown_name("representation", kind, self.representations, type(self).__name__)
        self.module.eval()
        with registered(self, adata, as_control=True) as cells:
            loader = self._make_data_loader(cells, indices=indices, batch_size=batch_size)
            parts = [self._encode(tensors, kind).detach().cpu() for tensors in loader]
        return torch.cat(parts).float().numpy()

    @property
    def perturbation(self) -> PerturbationAccessor:
        """Predictions of interventions; see :class:`~sccausal.models.PerturbationAccessor`."""
        self._require("perturbation", "predicts no interventions (model.perturbation)")
        return PerturbationAccessor(self)

    @property
    def grn(self) -> GRNAccessor:
        """Gene network of the model; see :class:`~sccausal.models.GRNAccessor`."""
        self._require("grn", "offers no gene network (model.grn)")
        return GRNAccessor(self)

    def _require(self, capability: str, what: str) -> None:
        if capability in self.capabilities:
            return
        from sccausal.models import model_classes

        able = [name for name, cls in model_classes().items() if capability in cls.capabilities]
        raise NotSupportedError(f"{type(self).__name__} {what}. Models that do: {', '.join(able) or 'none'}.")

    def identifiability_report(self) -> IdentifiabilityReport:
        """Which assumptions of the method hold on the data, which do not, and which no data can tell.

        Returns
        -------
        A table; ``.to_frame()`` gives it as a DataFrame.
        """
        return IdentifiabilityReport(type(self).__name__, self._assumptions())

    # hooks -----------------------------------------------------------------------------------------------------------

    def _met(self, adata: AnnData) -> AbstractContextManager[None]:
        return nullcontext()

    def _encode(self, tensors: dict[str, torch.Tensor], representation: str) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not implement _encode.")

    def _predict_cells(
        self,
        adata: AnnData,
        row: np.ndarray,
        *,
        condition: str | None,
        time: float | None,
        n_samples: int,
        seed: int,
        batch_size: int | None,
    ) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} does not implement _predict_cells.")

    def _network(self, **kwargs: Any) -> Network:
        raise NotImplementedError(f"{type(self).__name__} does not implement _network.")

    def _assumptions(self) -> list[Check]:
        return []
