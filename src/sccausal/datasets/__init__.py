"""Simulators with known truth and loaders of public data."""

from __future__ import annotations

from sccausal.datasets._beeline import beeline
from sccausal.datasets._concepts import concept_counterfactual, simulate_concepts
from sccausal.datasets._counterfactual import simulate_counterfactual
from sccausal.datasets._denoising import simulate_denoising
from sccausal.datasets._download import DownloadError
from sccausal.datasets._latent_sem import simulate_latent_sem
from sccausal.datasets._perturb_seq import simulate_perturb_seq
from sccausal.datasets._public import kang_2018, norman_2019, papalexi_2021
from sccausal.datasets._sortability import r2_sortability, varsortability
from sccausal.datasets._stationary import simulate_stationary
from sccausal.datasets._temporal_factors import simulate_temporal_factors
from sccausal.datasets._time_course import simulate_time_course
from sccausal.datasets._time_courses import cardiac_timecourse, clone_split, hipsc_timecourse

__all__ = [
    "DownloadError",
    "beeline",
    "cardiac_timecourse",
    "clone_split",
    "concept_counterfactual",
    "hipsc_timecourse",
    "kang_2018",
    "norman_2019",
    "papalexi_2021",
    "r2_sortability",
    "simulate_concepts",
    "simulate_counterfactual",
    "simulate_denoising",
    "simulate_latent_sem",
    "simulate_perturb_seq",
    "simulate_stationary",
    "simulate_temporal_factors",
    "simulate_time_course",
    "varsortability",
]
