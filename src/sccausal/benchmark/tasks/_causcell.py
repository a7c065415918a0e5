"""Adapters of CausCell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sccausal.benchmark.tasks._cells import SMALL_EPOCHS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData

    from sccausal.benchmark._task import Problem


def trained(problem: Problem, concept_keys: Sequence[str], *, perturbed: bool, **model: Any) -> Any:
    """CausCell trained on the cells of a problem, the caller's seed left as it was."""
    import scvi

    from sccausal import CausCell

    before = scvi.settings.seed
    scvi.settings.seed = problem.seed
    try:
        cells = problem.train.copy()
        CausCell.setup_anndata(
            cells, concept_keys=list(concept_keys), **(problem.keys.perturbed() if perturbed else {})
        )
        fitted = CausCell(cells, **model)
        fitted.train(
            max_epochs=SMALL_EPOCHS if problem.small else None,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return fitted
    finally:
        scvi.settings.seed = before


def blocks(problem: Problem) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draws of the embeddings, which is what the denoiser sees; no graph is given."""
    model = trained(problem, problem.keys.concept_keys, perturbed=False)
    train = model.get_concept_embeddings(sample=True, seed=problem.seed)
    asked = model.get_concept_embeddings(problem.cells, sample=True, seed=problem.seed)
    return {name: (train[name], asked[name]) for name in problem.keys.concept_keys}


def counterfactuals(problem: Problem) -> AnnData:
    """The condition is set; cell types are a second concept."""
    model = trained(problem, [str(problem.keys.labels_key)], perturbed=True)
    return model.perturbation.predict(problem.source, problem.interventions, seed=problem.seed)
