"""Analyses a user calls on an AnnData, a trained model or several of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "clipr": "sccausal.tl._clipr",
    "clipr_modules": "sccausal.tl._clipr",
    "community_enrichment": "sccausal.tl._enrichment",
    "compare": "sccausal.tl._compare",
    "concept_de": "sccausal.tl._concepts",
    "edge_implication": "sccausal.tl._clipr",
    "gene_set_response": "sccausal.tl._concepts",
    "grn": "sccausal.tl._grn",
    "identifiability": "sccausal.tl._identifiability",
    "key_genes": "sccausal.tl._key_genes",
    "latent_programs": "sccausal.tl._latent_programs",
    "structure": "sccausal.tl._structure",
    "tf_activity": "sccausal.tl._activity",
    "tf_communities": "sccausal.tl._communities",
}

__all__ = [
    "clipr",
    "clipr_modules",
    "community_enrichment",
    "compare",
    "concept_de",
    "edge_implication",
    "gene_set_response",
    "grn",
    "identifiability",
    "key_genes",
    "latent_programs",
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
