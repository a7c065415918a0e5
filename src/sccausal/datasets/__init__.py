"""Simulators with known truth and loaders of public data."""

from __future__ import annotations

from sccausal.datasets._annotated import heart_cell_atlas, immune_atlas, merfish_brain, read_annotated, yost_2019
from sccausal.datasets._beeline import beeline
from sccausal.datasets._concepts import concept_counterfactual, simulate_concepts
from sccausal.datasets._counterfactual import simulate_counterfactual
from sccausal.datasets._denoising import simulate_denoising
from sccausal.datasets._download import DownloadError
from sccausal.datasets._latent_sem import simulate_latent_sem
from sccausal.datasets._perturb_seq import simulate_perturb_seq
from sccausal.datasets._public import kang_2018, norman_2019, papalexi_2021
from sccausal.datasets._screens import joung_2023, replogle_2022, wessels_2023
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
    "heart_cell_atlas",
    "hipsc_timecourse",
    "immune_atlas",
    "joung_2023",
    "kang_2018",
    "merfish_brain",
    "norman_2019",
    "papalexi_2021",
    "r2_sortability",
    "read_annotated",
    "replogle_2022",
    "simulate_concepts",
    "simulate_counterfactual",
    "simulate_denoising",
    "simulate_latent_sem",
    "simulate_perturb_seq",
    "simulate_stationary",
    "simulate_temporal_factors",
    "simulate_time_course",
    "varsortability",
    "wessels_2023",
    "yost_2019",
]
