"""How losses become updates: plans, the augmented Lagrangian, guards and resumption."""

from __future__ import annotations

from sccausal.train._adversarial import AdversarialCausalTrainingPlan
from sccausal.train._groups import parameter_groups
from sccausal.train._lagrangian import (
    LagrangianState,
    augmented_lagrangian,
    lagrangian_update,
    register_lagrangian_buffers,
)
from sccausal.train._mixin import CausalTrainingMixin
from sccausal.train._nan_guard import NanGuard
from sccausal.train._plan import CausalTrainingPlan
from sccausal.train._resume import ResumeCheckpoint
from sccausal.train._runner import CausalTrainRunner
from sccausal.train._seed import reseed

__all__ = [
    "AdversarialCausalTrainingPlan",
    "CausalTrainRunner",
    "CausalTrainingMixin",
    "CausalTrainingPlan",
    "LagrangianState",
    "NanGuard",
    "ResumeCheckpoint",
    "augmented_lagrangian",
    "lagrangian_update",
    "parameter_groups",
    "register_lagrangian_buffers",
    "reseed",
]
