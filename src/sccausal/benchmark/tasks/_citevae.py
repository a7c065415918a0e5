"""CITE-VAE as it answers the tasks about time and about latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal.benchmark.tasks import _cells

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.benchmark._task import Problem


def predictions(problem: Problem) -> AnnData:
    """Adapter of the task ``time``; coexpression features come from the cells of the rules' features."""
    return answer(problem, trained(problem))


def with_shuffled_embedding(problem: Problem) -> AnnData:
    """The same with the features of the targets dealt out anew: what is left was not learned from them."""
    table = problem.extra["embedding"]
    order = np.random.default_rng([problem.seed, 3]).permutation(len(table))
    dealt = pd.DataFrame(table.to_numpy()[order], index=table.index)
    return answer(problem, trained(problem, intervention_embedding=dealt))


def knows_features(problem: Problem) -> bool:
    """Whether features of the targets come with the problem."""
    return "embedding" in problem.extra


def latents(problem: Problem) -> np.ndarray:
    """Adapter of the task ``identify``: both blocks of the asked cells."""
    d = int(problem.extra["n_latent"])
    n = len(set(problem.train.obs[problem.keys.target].astype(str)))
    responsive = max(1, min((n - 1) // 2, d - 1))
    model = trained(
        problem, n_responsive=responsive, n_invariant=max(1, d - responsive), intervention_embedding="onehot"
    )
    return model.get_latent_representation(problem.cells)


def has_times(problem: Problem) -> bool:
    """Whether the cells were seen at several times."""
    return problem.keys.time_key is not None


def _embedding(problem: Problem) -> dict[str, Any]:
    table = problem.extra.get("embedding")
    return {} if table is None else {"intervention_embedding": table}


def answer(problem: Problem, model: Any) -> AnnData:
    """Predicted cells; like the rules, those of a time start from control cells of that time where there are any."""
    import anndata as ad

    assert problem.source is not None
    observed = pd.to_numeric(problem.source.obs[problem.keys.time_key].astype(object)).to_numpy(float)
    parts = []
    for time in problem.times or sorted(set(observed)):
        here = np.isclose(observed, time)
        source = problem.source[here if here.any() else np.ones(len(here), bool)].copy()
        parts.append(model.perturbation.predict(source, problem.interventions, times=[time], seed=problem.seed))
    if len(parts) == 1:
        return parts[0]
    out = ad.concat(parts, index_unique="-", keys=[str(k) for k in range(len(parts))])
    out.var, out.uns = parts[0].var.copy(), parts[0].uns
    return out


def trained(problem: Problem, **init: Any) -> Any:
    """CITE-VAE trained on the cells of a problem, the caller's seed left as it was."""
    import scvi

    from sccausal import CITEVAE

    before = scvi.settings.seed
    scvi.settings.seed = problem.seed
    try:
        cells = problem.train.copy()
        setup = {k: v for k, v in problem.keys.setup().items() if k in ("intervention_key", "control", "batch_key")}
        CITEVAE.setup_anndata(cells, time_key=problem.keys.time_key, sep=problem.keys.sep, **setup)
        fitted = CITEVAE(cells, **init)
        fitted.train(
            max_epochs=_cells.SMALL_EPOCHS if problem.small else None,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return fitted
    finally:
        scvi.settings.seed = before
