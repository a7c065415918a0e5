"""LCD and its direct effects in the tasks: cells of combinations, draws of labels, edges from interventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sccausal.benchmark.tasks._cells import trained

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.benchmark._task import Problem
    from sccausal.grn import Network


def trained_lcd(problem: Problem, **model: Any) -> Any:
    """LCD trained on the cells of a problem."""
    from sccausal import LCD

    known = {k: v for k, v in problem.keys.setup().items() if k != "labels_key"}
    return trained(LCD, problem, known, **model)


def doubles(problem: Problem) -> AnnData:
    """Cells of the source under the interventions of the problem."""
    return trained_lcd(problem).perturbation.predict(problem.source, problem.interventions, seed=problem.seed)


def draws(problem: Problem) -> AnnData:
    """Draws from the law of each label."""
    n = int(problem.extra["n_draws"])
    return trained_lcd(problem).sample(problem.interventions, n, seed=problem.seed)


def direct_effects(problem: Problem) -> Network:
    """Direct effects from mean changes, without a model; the two strongest edges per gene on average."""
    import warnings

    from sccausal import tl
    from sccausal.grn import Network

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half of the genes are perturbed, as the task says
        found = tl.clipr(problem.train, **problem.keys.perturbed(), n_bootstrap=0, key_added=None)
    genes = list(map(str, problem.train.var_names))
    effects = found.direct_effects
    matrix = np.zeros((len(genes), len(genes)))
    matrix[[genes.index(s) for s in effects.index]] = effects.to_numpy()
    np.fill_diagonal(matrix, 0.0)
    size = np.sort(np.abs(matrix).ravel())[::-1]
    cut = size[min(2 * len(genes), size.size - 1)]
    return Network.from_matrix(np.where(np.abs(matrix) > cut, matrix, 0.0), genes)
