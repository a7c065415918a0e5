"""Adapters of CausCell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sccausal.benchmark.tasks._cells import trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData

    from sccausal.benchmark._task import Problem


def trained_causcell(problem: Problem, concept_keys: Sequence[str], *, perturbed: bool, **model: Any) -> Any:
    """CausCell trained on the cells of a problem."""
    from sccausal import CausCell

    known = {"concept_keys": list(concept_keys), **(problem.keys.perturbed() if perturbed else {})}
    return trained(CausCell, problem, known, **model)


def blocks(problem: Problem) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws of the embeddings, which is what the denoiser sees; no graph is given."""
    model = trained_causcell(problem, problem.keys.concept_keys, perturbed=False)
    train = model.get_concept_embeddings(sample=True, seed=problem.seed)
    asked = model.get_concept_embeddings(problem.cells, sample=True, seed=problem.seed)
    return {name: (train[name], asked[name]) for name in problem.keys.concept_keys}


def counterfactuals(problem: Problem) -> AnnData:
    """The condition is set; cell types are a second concept."""
    model = trained_causcell(problem, [str(problem.keys.labels_key)], perturbed=True)
    return model.perturbation.predict(problem.source, problem.interventions, seed=problem.seed)
