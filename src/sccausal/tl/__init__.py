"""Analyses a user calls on an AnnData, a trained model or several of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "community_enrichment": "sccausal.tl._enrichment",
    "compare": "sccausal.tl._compare",
    "grn": "sccausal.tl._grn",
    "identifiability": "sccausal.tl._identifiability",
    "key_genes": "sccausal.tl._key_genes",
    "structure": "sccausal.tl._structure",
    "tf_activity": "sccausal.tl._activity",
    "tf_communities": "sccausal.tl._communities",
}

__all__ = [
    "community_enrichment",
    "compare",
    "grn",
    "identifiability",
    "key_genes",
    "structure",
    "tf_activity",
    "tf_communities",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
