"""Gene networks: one edge table that every model, baseline and metric reads, and what is made from it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sccausal.grn._network import Network

# name -> module, loaded on first use
_NAMES = {
    "CliprResult": "sccausal.grn._clipr_result",
    "Communities": "sccausal.grn._communities",
    "CohesionTest": "sccausal.grn._cohesion",
    "EdgeMixture": "sccausal.grn._strong_edges",
    "LinearStationaryDiffusion": "sccausal.grn._stationary",
    "TFActivity": "sccausal.grn._activity",
    "bagged_ridge": "sccausal.grn._regression",
    "base_network": "sccausal.grn._base_network",
    "clipr": "sccausal.grn._clipr",
    "cohesion_test": "sccausal.grn._cohesion",
    "directed_drift": "sccausal.grn._direct_effects",
    "drift_form": "sccausal.grn._direct_effects",
    "edge_mixture": "sccausal.grn._strong_edges",
    "find_communities": "sccausal.grn._communities",
    "fit_activity": "sccausal.grn._activity",
    "network_from_celloracle": "sccausal.grn._base_network",
    "network_to_links": "sccausal.grn._base_network",
    "over_representation": "sccausal.grn._enrichment",
    "read_gene_sets": "sccausal.grn._enrichment",
    "response_form": "sccausal.grn._direct_effects",
    "sparse_response_form": "sccausal.grn._direct_effects",
    "strong_edges": "sccausal.grn._strong_edges",
}

__all__ = ["Network", *sorted(_NAMES)]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.grn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
