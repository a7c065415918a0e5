"""Gene networks: one edge table that every model, baseline and metric reads."""

from __future__ import annotations

from sccausal.grn._network import Network

__all__ = ["Network"]
