"""Models on disk, and models carried over to query data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi.model.base import ArchesMixin

from sccausal._compat import torch_device
from sccausal._docs import docs
from sccausal._errors import FileFormatError, InputDataError, SetupError
from sccausal.models._cells import replay_setup, take_modality
from sccausal.models._io import (
    ANNDATA_FILE,
    MAX_BYTES,
    SavedModel,
    read_model,
    read_saved_anndata,
    write_model,
)
from sccausal.models._query import query_model, training_rows_only
from sccausal.train import CausalTrainingMixin

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from sccausal.models._base import CausalModel


class PersistenceMixin(CausalTrainingMixin):
    """``save``, ``load``, ``load_query_data`` in the package's own format, and training that respects a query."""

    adata: Any
    module: Any

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Save the model as ``model.json`` and ``model.safetensors``; nothing is pickled.

        Parameters
        ----------
        dir_path
            Folder, made if it does not exist.
        prefix
            Put before the file names.
        overwrite
            Replace a model that is there.
        save_anndata
            Also write the cells, as ``adata.h5ad``.
        **anndata_write_kwargs
            Passed on to :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        sccausal._errors.SetupError
            A model is there already, or an attribute cannot be saved.
        """
        if save_anndata and self.adata is None:
            raise SetupError("The model holds no cells to save; use save_anndata=False.")
        folder = write_model(self, dir_path, prefix or "", overwrite)
        if save_anndata:
            self.adata.write_h5ad(folder / f"{prefix or ''}{ANNDATA_FILE}", **anndata_write_kwargs)

    @classmethod
    @docs.dedent
    def load(
        cls: Any,
        dir_path: str | Path,
        adata: AnnData | MuData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        *,
        max_bytes: int | None = MAX_BYTES,
    ) -> CausalModel:
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Folder given to :meth:`save`.
        adata
            Cells to attach, with exactly the genes of training in their order. ``None`` takes those saved with the
            model if there are any; ``False`` attaches none.
        %(accelerator)s
        %(device)s
        prefix
            Prefix given to :meth:`save`.
        max_bytes
            Largest tensor file that is opened, in bytes; ``None`` for any.

        Raises
        ------
        sccausal._errors.FileFormatError
            The files are damaged, too large, of another class or package, or of a newer version.
        sccausal._errors.InputDataError
            The genes of ``adata`` are not those of the model.
        """
        saved = read_model(dir_path, prefix or "", max_bytes)
        if saved.class_name != cls.__name__:
            raise FileFormatError(
                f"{dir_path} holds a {saved.class_name}, not a {cls.__name__}; "
                f"use {saved.class_name}.load() or sccausal.models.load_model()."
            )
        cells: Any = read_saved_anndata(dir_path, prefix or "") if adata is None else adata
        model = cls._from_saved(saved, None if cells is None or isinstance(cells, bool) else take_modality(cells))
        model.to_device(torch_device(accelerator, device))
        model.module.eval()
        return model

    @classmethod
    def _from_saved(cls: Any, saved: SavedModel, adata: AnnData | None) -> CausalModel:
        if adata is not None:
            _check_same_genes(adata, saved.var_names)
            replay_setup(cls, adata, saved.registry)
        try:
            arguments = {**saved.init_params["non_kwargs"]}
            for extra in saved.init_params["kwargs"].values():
                arguments.update(extra)
            model = cls(adata, registry=saved.registry, **arguments)
            for name, value in saved.attributes.items():
                setattr(model, name, value)
            model.module.on_load(model)
            model.module.load_state_dict(saved.state)
        except (TypeError, KeyError, RuntimeError) as error:
            raise FileFormatError(
                f"The saved {saved.class_name} (sccausal {saved.version}) does not fit this version: {error}"
            ) from error
        return model

    @classmethod
    @docs.dedent
    def load_query_data(
        cls: Any,
        adata: AnnData | MuData,
        reference_model: str | Path | CausalModel,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
        unfrozen: bool = False,
    ) -> CausalModel:
        """Take up new batches into a trained model, in the manner of scArches :cite:p:`Lotfollahi2022`.

        Parameters that hold one row per batch get a row for each new batch, which starts at the mean of the known
        ones; the model can be used at once. :meth:`train` then moves these rows only: every number of the reference,
        the causal graph included, stays as it is.

        Parameters
        ----------
        adata
            Query cells with the genes of the reference in their order; see :meth:`prepare_query_anndata`. They are set
            up as the reference was, which writes scvi-tools' notes into them.
        reference_model
            A trained model, or the folder of a saved one.
        %(accelerator)s
        %(device)s
        unfrozen
            Let :meth:`train` move all parameters but those of the causal graph.

        Raises
        ------
        sccausal._errors.InputDataError
            The genes differ from those of the reference.
        sccausal._errors.UnknownNameError
            An intervention has a target the reference has not seen.
        """
        saved = _as_saved(cls, reference_model)
        cells = take_modality(adata)
        _check_same_genes(cells, saved.var_names)
        model = query_model(cls, saved, cells, unfrozen)
        model.to_device(torch_device(accelerator, device))
        model.module.eval()
        return model

    @staticmethod
    def prepare_query_anndata(
        adata: AnnData,
        reference_model: str | Path | CausalModel,
        return_reference_var_names: bool = False,
        inplace: bool = False,
    ) -> Any:
        """Bring query cells to the genes of a reference model; missing genes become zero.

        Parameters
        ----------
        adata
            Query cells.
        reference_model
            A trained model, or the folder of a saved one.
        return_reference_var_names
            Return the genes of the reference instead.
        inplace
            Change ``adata`` instead of returning a new object.

        Returns
        -------
        AnnData with the reference's genes in their order (``None`` if ``inplace``).

        Warns
        -----
        UserWarning
            If less than 80 % of the reference's genes are present.
        """
        source: Any = str(reference_model) if isinstance(reference_model, str | Path) else reference_model
        return ArchesMixin.prepare_query_anndata(adata, source, return_reference_var_names, inplace)

    def train(self, *args: Any, **kwargs: Any) -> None:
        self.module.train()  # a loaded model is in evaluation mode
        with training_rows_only(self):
            super().train(*args, **kwargs)


# the arguments and the description are those of the training room
update_wrapper(PersistenceMixin.train, CausalTrainingMixin.train)


def _as_saved(cls: type[CausalModel], model: str | Path | CausalModel) -> SavedModel:
    if isinstance(model, str | Path):
        saved = read_model(model)
        if saved.class_name != cls.__name__:
            raise FileFormatError(f"{model} holds a {saved.class_name}, not a {cls.__name__}.")
        return saved
    if type(model) is not cls:
        raise SetupError(f"The reference is a {type(model).__name__}, not a {cls.__name__}.")
    attributes = {k: v for k, v in vars(model).items() if k.endswith("_") and k not in ("registry_", "init_params_")}
    state = {k: v.detach().cpu().clone() for k, v in model.module.state_dict().items()}
    return SavedModel(
        cls.__name__, "", list(map(str, model.get_var_names())), model.init_params_, model.registry_, attributes, state
    )


def _check_same_genes(adata: AnnData, genes: Sequence[str]) -> None:
    names = list(map(str, adata.var_names))
    if names == list(genes):
        return
    missing = sorted(set(genes) - set(names))
    if missing:
        raise InputDataError(
            f"{len(missing)} of the model's {len(genes)} genes are missing, e.g. {', '.join(missing[:5])}. "
            "prepare_query_anndata() pads them with zeros."
        )
    raise InputDataError(
        "The genes are not in the order of training (or there are more of them). "
        "Use adata[:, model.get_var_names()].copy() or prepare_query_anndata()."
    )
