"""Analyses a user calls on an AnnData, a trained model or several of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "compare": "sccausal.tl._compare",
    "identifiability": "sccausal.tl._identifiability",
    "key_genes": "sccausal.tl._key_genes",
    "structure": "sccausal.tl._structure",
}

__all__ = ["compare", "identifiability", "key_genes", "structure"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
