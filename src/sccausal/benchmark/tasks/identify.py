"""Latents of a known generative model, found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, NotSupportedError
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells, _citevae, _gcrl, _latents

if TYPE_CHECKING:
    from anndata import AnnData

# where a simulator keeps what it drew, in the order of preference: exogenous noise is what shifts identify
_TRUE = ("exogenous", "latent", "eps", "z")


def _simulated(**fixed: Any) -> Callable[[Request], AnnData]:
    def load(request: Request) -> AnnData:
        from sccausal import datasets

        make = getattr(datasets, "simulate_latent_sem", None)
        if make is None:
            raise NotSupportedError("This version of sccausal has no datasets.simulate_latent_sem.")
        asked = {**fixed, "seed": request.seed}
        if request.small and "n_cells" in signature(make).parameters:
            asked["n_cells"] = 2000
        return make(**asked)

    return load


def _factors(request: Request) -> AnnData:
    from sccausal.datasets import simulate_temporal_factors

    cells = simulate_temporal_factors(3000 if request.small else 12000, tracked=False, seed=request.seed)
    cells.obsm["latent"] = np.column_stack([cells.obsm["invariant"], cells.obsm["responsive"]])
    return cells


def true_latents(adata: AnnData) -> np.ndarray:
    """Latents that the simulator drew (cells, d), from ``obsm`` or ``uns["truth"]``.

    Raises
    ------
    sccausal._errors.InputDataError
        None of the names under which simulators keep them is there.
    """
    truth = adata.uns.get("truth", {})
    for place in (adata.obsm, truth):
        for name in _TRUE:
            if name in place and np.ndim(place[name]) == 2 and len(place[name]) == adata.n_obs:
                return np.asarray(place[name], dtype=np.float64)
    raise InputDataError(f"No true latents; looked for {', '.join(_TRUE)} in obsm {list(adata.obsm)} and uns['truth'].")


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """A third of the cells is held out; latents are scored on them."""
    truth = true_latents(adata)
    test = np.random.default_rng([request.seed, 17]).random(adata.n_obs) < 1 / 3
    hidden = _cells.without_answers(adata)
    for key in list(hidden.obsm):  # what the simulator drew
        del hidden.obsm[key]
    problem = Problem(
        "identify", dataset.name, "unseen cells", hidden[~test].copy(), dataset.keys, request.seed, request.small,
        cells=hidden[test].copy(), extra={"n_latent": truth.shape[1]},
    )  # fmt: skip
    facts = {"train_cells": int((~test).sum()), "test_cells": int(test.sum()), "n_latent": truth.shape[1]}
    yield Case(problem, truth[test], facts, [f"{int(test.sum())} cells"])


def score(case: Case, output: np.ndarray) -> pd.DataFrame:
    """Identification scores of latents of ``problem.cells``."""
    from sccausal.metrics import latent_scores

    table = latent_scores(np.asarray(output), case.truth, mlp=not case.problem.small, seed=case.problem.seed)
    return table.assign(group="all")


TASK = Task(
    "identify",
    "Are the latents found those that made the data, up to what the theory allows?",
    "array (cells of problem.cells, d)",
    (
        Dataset(
            "latent_sem",
            _simulated(),
            Keys(intervention_key="intervention", control="control"),
            note="A linear structural model of latents, mixed into genes; interventions on latents are labelled.",
        ),
        Dataset(
            "temporal_factors",
            _factors,
            Keys(intervention_key="intervention", control="control", time_key="time"),
            note="Factors with lagged causes, some of them reset by interventions, bent into 64 features; each cell is "
            "seen once.",
        ),
    ),
    cases,
    score,
    ("mcc", "spearman_mcc", "r2_linear"),
    zero="PCA",
    one="true latents",
    paired_by="seed",
)


def _line(make: Callable[[int, int], Any]) -> Callable[[Problem], np.ndarray]:
    def answer(problem: Problem) -> np.ndarray:
        assert problem.cells is not None
        train, asked = _latents.dense(problem.train.X), _latents.dense(problem.cells.X)
        d = min(int(problem.extra["n_latent"]), train.shape[1])
        return _latents.fit_apply(make(d, problem.seed), train, asked)[1]

    return answer


register("identify", "PCA", kind="baseline")(_line(_latents.pca))
register("identify", "ICA", kind="baseline")(_line(_latents.ica))
register("identify", "random projection", kind="baseline")(_line(_latents.random_projection))
register("identify", "DiscrepancyVAE")(_gcrl.latents)
register("identify", "true latents", kind="ceiling", sees_truth=True)(lambda case: case.truth)
register("identify", "CITE-VAE", applies=_citevae.has_times)(_citevae.latents)
