"""Plots with scanpy's habits: ``ax``, ``show``, ``save``, ``return_fig``; no global setting is touched."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "compare": "sccausal.pl._compare",
    "grn": "sccausal.pl._grn",
    "history": "sccausal.pl._history",
    "response": "sccausal.pl._response",
}

__all__ = ["compare", "grn", "history", "response"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'sccausal.pl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
