"""The models, and what they share: predictions of interventions, gene networks, saving and loading."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sccausal.models._base import CausalModel
from sccausal.models._grn import GRNAccessor
from sccausal.models._identifiability import Check, IdentifiabilityReport
from sccausal.models._perturbation import PerturbationAccessor

if TYPE_CHECKING:
    from sccausal.models.causcell import CausCell
    from sccausal.models.citevae import CITEVAE
    from sccausal.models.gcrl import GCRLAE, GCRLVAE, DiscrepancyVAE
    from sccausal.models.lcd import LCD
    from sccausal.models.scconcrl import ScConCRL

# model -> folder of the method
_MODELS = {
    "CITEVAE": "sccausal.models.citevae",
    "CausCell": "sccausal.models.causcell",
    "DiscrepancyVAE": "sccausal.models.gcrl",
    "GCRLAE": "sccausal.models.gcrl",
    "GCRLVAE": "sccausal.models.gcrl",
    "LCD": "sccausal.models.lcd",
    "ScConCRL": "sccausal.models.scconcrl",
}

__all__ = [
    "CITEVAE",
    "GCRLAE",
    "GCRLVAE",
    "LCD",
    "CausCell",
    "CausalModel",
    "Check",
    "DiscrepancyVAE",
    "GRNAccessor",
    "IdentifiabilityReport",
    "PerturbationAccessor",
    "ScConCRL",
    "load_model",
    "model_classes",
]


def model_classes() -> dict[str, type[CausalModel]]:
    """All models of the package by name.

    Examples
    --------
    >>> import sccausal as scc
    >>> sorted(scc.models.model_classes())
    ['CITEVAE', 'CausCell', 'DiscrepancyVAE', 'GCRLAE', 'GCRLVAE', 'LCD', 'ScConCRL']
    """
    return {name: getattr(import_module(module), name) for name, module in _MODELS.items()}


def load_model(dir_path: str | Path, adata: Any = None, prefix: str | None = None, **kwargs: Any) -> CausalModel:
    """Load a saved model of any class.

    Parameters
    ----------
    dir_path
        Folder given to ``model.save``.
    adata
        Cells to attach; ``None`` takes those saved with the model, ``False`` none.
    prefix
        Prefix given to ``model.save``.
    **kwargs
        Further arguments of :meth:`~sccausal.models.CausalModel.load`.

    Raises
    ------
    sccausal._errors.FileFormatError
        The folder holds no model of this package.

    Examples
    --------
    >>> import sccausal as scc
    >>> model.save("my_model", save_anndata=True, overwrite=True)
    >>> type(scc.models.load_model("my_model")).__name__
    'ScConCRL'
    """
    from sccausal._errors import FileFormatError
    from sccausal.models._io import read_header

    name = read_header(Path(dir_path), prefix or "")["class"]
    if name not in _MODELS:
        raise FileFormatError(f"{dir_path} holds a {name}, which is none of {', '.join(_MODELS)}.")
    return model_classes()[name].load(dir_path, adata, prefix=prefix, **kwargs)


def __getattr__(name: str) -> Any:
    if name in _MODELS:
        return getattr(import_module(_MODELS[name]), name)
    raise AttributeError(f"module 'sccausal.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
