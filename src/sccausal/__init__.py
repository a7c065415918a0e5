"""Causal representation models of single-cell data, compared honestly and read as gene networks."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sccausal._on_import import register_accessor, when_imported

if TYPE_CHECKING:
    from scvi import settings

    from sccausal import baselines, benchmark, datasets, grn, metrics, models, pl, pp, tl
    from sccausal.models import CITEVAE, GCRLAE, GCRLVAE, LCD, CausCell, DiscrepancyVAE, ScConCRL

try:
    __version__ = version("sccausal")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

# name -> module; loaded on first use, so that `import sccausal` costs next to nothing
_ROOMS = ("baselines", "benchmark", "datasets", "grn", "metrics", "models", "pl", "pp", "tl")
_NAMES = {
    "CITEVAE": "sccausal.models",
    "CausCell": "sccausal.models",
    "DiscrepancyVAE": "sccausal.models",
    "GCRLAE": "sccausal.models",
    "GCRLVAE": "sccausal.models",
    "LCD": "sccausal.models",
    "ScConCRL": "sccausal.models",
    "settings": "scvi",
}

__all__ = [
    "CITEVAE",
    "GCRLAE",
    "GCRLVAE",
    "LCD",
    "CausCell",
    "DiscrepancyVAE",
    "ScConCRL",
    "__version__",
    "baselines",
    "benchmark",
    "datasets",
    "grn",
    "metrics",
    "models",
    "pl",
    "pp",
    "settings",
    "tl",
]


# `adata.causal`, without importing anndata before it is needed
when_imported("anndata", register_accessor)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"sccausal.{name}")
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
