"""Adapters of the gCRL models without activities, which no task gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sccausal.benchmark.tasks._cells import trained

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

    from sccausal.benchmark._task import Problem


def _trained(problem: Problem, batch_key: str | None = None, **model: Any) -> Any:
    from sccausal import DiscrepancyVAE

    keys = problem.keys
    setup = {"intervention_key": keys.intervention_key, "control": keys.control, "batch_key": batch_key}
    return trained(DiscrepancyVAE, problem, setup, **model)


def cells(problem: Problem) -> AnnData:
    """Cells of the source under the interventions of the problem."""
    model = _trained(problem, problem.keys.batch_key)
    return model.perturbation.predict(problem.source, problem.interventions, seed=problem.seed)


def other_stratum(problem: Problem) -> AnnData:
    """The same where types, lines or replicates differ: what they differ in is no effect of the intervention."""
    model = _trained(problem, problem.keys.labels_key)
    return model.perturbation.predict(problem.source, problem.interventions, seed=problem.seed)


def latents(problem: Problem) -> np.ndarray:
    """Exogenous parts of the cells asked about, which is what shifts identify."""
    model = _trained(problem, n_latent=int(problem.extra["n_latent"]))
    return model.get_latent_representation(problem.cells, representation="exogenous")
