"""Preprocessing: interventions encoded, genes selected, data split so that nothing leaks."""

from __future__ import annotations

from sccausal.pp._encode import encode_interventions
from sccausal.pp._genes import select_genes
from sccausal.pp._split import split

__all__ = ["encode_interventions", "select_genes", "split"]
