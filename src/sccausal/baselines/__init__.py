"""Simple rules with the models' interface: what a model has to beat, and what no model can beat."""

from __future__ import annotations

from sccausal.baselines._base import Baseline
from sccausal.baselines._ceilings import InterpolatedDuplicate, PermutedLabels, TechnicalDuplicate
from sccausal.baselines._latent import LatentShift
from sccausal.baselines._regression import LatentAdditive, LinearGWP, PerGeneRegression, RidgeOnMeans
from sccausal.baselines._rules import (
    Additive,
    MatchingMean,
    MeanShift,
    NearestPerturbation,
    NearestType,
    NoChange,
    PerturbedMean,
    ScaledAdditive,
    ShrunkShift,
)
from sccausal.baselines._shift import shift_cells
from sccausal.baselines._time import ElasticNetEmbedding, Persistence, TimeAdditive, TimeMean, TimeRule

__all__ = [
    "Additive",
    "Baseline",
    "ElasticNetEmbedding",
    "InterpolatedDuplicate",
    "LatentAdditive",
    "LatentShift",
    "LinearGWP",
    "MatchingMean",
    "MeanShift",
    "NearestPerturbation",
    "NearestType",
    "NoChange",
    "PerGeneRegression",
    "PermutedLabels",
    "Persistence",
    "PerturbedMean",
    "RidgeOnMeans",
    "ScaledAdditive",
    "ShrunkShift",
    "TechnicalDuplicate",
    "TimeAdditive",
    "TimeMean",
    "TimeRule",
    "shift_cells",
]
