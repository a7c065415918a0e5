"""Simulators with known truth and loaders of public data."""

from __future__ import annotations

from sccausal.datasets._counterfactual import simulate_counterfactual
from sccausal.datasets._perturb_seq import simulate_perturb_seq
from sccausal.datasets._sortability import r2_sortability, varsortability

__all__ = ["r2_sortability", "simulate_counterfactual", "simulate_perturb_seq", "varsortability"]
