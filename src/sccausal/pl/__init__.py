"""Plots with scanpy's habits: ``ax``, ``show``, ``save``, ``return_fig``; no global setting is touched."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "alignment": "sccausal.pl._alignment",
    "clipr_modules": "sccausal.pl._clipr",
    "cohesion": "sccausal.pl._communities",
    "communities": "sccausal.pl._communities",
    "community_stability": "sccausal.pl._communities",
    "compare": "sccausal.pl._compare",
    "counterfactual": "sccausal.pl._counterfactual",
    "direct_vs_total": "sccausal.pl._clipr",
    "edge_mixture": "sccausal.pl._communities",
    "gene_set_response": "sccausal.pl._counterfactual",
    "grn": "sccausal.pl._grn",
    "history": "sccausal.pl._history",
    "lagged_graph": "sccausal.pl._time",
    "latent_graph": "sccausal.pl._latent_graph",
    "response": "sccausal.pl._response",
    "response_over_time": "sccausal.pl._time",
    "spatial_effect": "sccausal.pl._counterfactual",
    "tmex_null": "sccausal.pl._alignment",
    "trajectories": "sccausal.pl._time",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.pl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
