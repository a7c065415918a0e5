"""CausCell: concepts of cells, their causal graph, and counterfactual cells."""

from __future__ import annotations

from sccausal.models.causcell._model import CausCell

__all__ = ["CausCell"]
