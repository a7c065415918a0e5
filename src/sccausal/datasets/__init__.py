"""Simulators with known truth and loaders of public data."""

from __future__ import annotations

from sccausal.datasets._beeline import beeline
from sccausal.datasets._counterfactual import simulate_counterfactual
from sccausal.datasets._denoising import simulate_denoising
from sccausal.datasets._download import DownloadError
from sccausal.datasets._latent_sem import simulate_latent_sem
from sccausal.datasets._perturb_seq import simulate_perturb_seq
from sccausal.datasets._public import kang_2018, norman_2019, papalexi_2021
from sccausal.datasets._sortability import r2_sortability, varsortability

__all__ = [
    "DownloadError",
    "beeline",
    "kang_2018",
    "norman_2019",
    "papalexi_2021",
    "r2_sortability",
    "simulate_counterfactual",
    "simulate_denoising",
    "simulate_latent_sem",
    "simulate_perturb_seq",
    "varsortability",
]
