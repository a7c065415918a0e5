"""Plots with scanpy's habits: ``ax``, ``show``, ``save``, ``return_fig``; no global setting is touched."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "alignment": "sccausal.pl._alignment",
    "cohesion": "sccausal.pl._communities",
    "communities": "sccausal.pl._communities",
    "community_stability": "sccausal.pl._communities",
    "compare": "sccausal.pl._compare",
    "edge_mixture": "sccausal.pl._communities",
    "grn": "sccausal.pl._grn",
    "history": "sccausal.pl._history",
    "latent_graph": "sccausal.pl._latent_graph",
    "response": "sccausal.pl._response",
    "tmex_null": "sccausal.pl._alignment",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.pl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
