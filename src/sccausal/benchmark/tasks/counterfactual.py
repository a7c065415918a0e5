"""The same cell under another condition, where the simulator knows what it would have been."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal import baselines as bl
from sccausal._errors import InputDataError
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _causcell, _cells

if TYPE_CHECKING:
    from anndata import AnnData

STIMULATED = "stimulated"
_KEYS = Keys(condition_key="condition", control="control", labels_key="cell_type")


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    size = {"n_cells": 1200, "n_types": 4} if request.small else {}
    return simulate_perturb_seq(
        preset="condition", seed=request.seed, sortability=False, **size  # type: ignore[arg-type]
    )  # fmt: skip


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """A fifth of the control cells of every type is kept from training; their stimulated selves are asked for."""
    from sccausal.datasets import simulate_counterfactual

    cells = _cells.log_cells(adata)
    control = np.flatnonzero((adata.obs["condition"] == "control").to_numpy())
    asked = np.sort(np.random.default_rng([request.seed, 5]).permutation(control)[: len(control) // 5])
    is_asked = np.isin(np.arange(adata.n_obs), asked)
    truth = simulate_counterfactual(adata[asked].copy(), condition=STIMULATED)
    factual = adata[asked]
    answer = truth.copy()
    answer.layers["after"] = _log_mean(truth.layers["mean"], truth)
    answer.layers["before"] = _log_mean(factual.layers["mean"], factual)
    source = _cells.without_answers(cells[is_asked])
    answer.layers["observed"] = np.asarray(source.X.todense() if hasattr(source.X, "todense") else source.X)
    problem = Problem(
        "counterfactual",
        dataset.name,
        "control cells, stimulated",
        _cells.without_answers(cells[~is_asked]),
        dataset.keys,
        request.seed,
        request.small,
        source=source,
        interventions=[STIMULATED],
        extra={"by": [str(dataset.keys.labels_key)]},
    )
    change = answer.layers["after"] - answer.layers["before"]
    shared = change.mean(axis=0)
    facts = {
        "train_cells": problem.train.n_obs,
        "test_cells": len(asked),
        "genes": adata.n_vars,
        "effect_variance_left_by_the_mean": float(1 - np.sum(shared**2) * len(asked) / np.sum(change**2)),
    }
    yield Case(problem, answer, facts, [f"{len(asked)} control cells"])


def _log_mean(mean: Any, cells: AnnData) -> np.ndarray:
    """log1p of expected counts per 10 000 of the cell's expected total."""
    values = np.asarray(mean.todense() if hasattr(mean, "todense") else mean, dtype=np.float64)
    return np.log1p(values * (1e4 / values.sum(axis=1, keepdims=True)))


def score(case: Case, output: AnnData) -> pd.DataFrame:
    """Errors cell by cell, per cell type, against the expected expression of the same cell under the condition."""
    from sccausal.metrics._info import as_table

    truth, p = case.truth, case.problem
    assert p.source is not None
    guess = _aligned(output, p.source.obs_names, list(truth.var_names))
    before, after = truth.layers["before"], truth.layers["after"]
    types = p.source.obs[p.keys.labels_key].astype(str).to_numpy()
    top = np.argsort(-np.abs(after - before).mean(axis=0), kind="stable")[:100]
    rows = []
    for kind in np.unique(types):
        here = np.flatnonzero(types == kind)
        change = (after - before)[here][:, top]
        said = (guess - truth.layers["observed"])[here][:, top]
        effect, told = change.mean(axis=0), said.mean(axis=0)
        rows.append(
            as_table(
                {
                    "cf_rmse": float(np.sqrt(np.mean((guess[here] - after[here]) ** 2))),
                    "cf_nmse": float(np.sum((told - effect) ** 2) / np.sum(effect**2)),
                    "cf_slope": max(float(told @ effect / (effect @ effect)), 0.0),
                    "cf_cell_pearson": _between(said, change),
                }
            ).assign(group=kind)
        )
    return pd.concat(rows, ignore_index=True)


def _between(said: np.ndarray, change: np.ndarray) -> float:
    """Correlation of what is particular to each cell: changes minus their mean over the cells of the type."""
    a, b = (said - said.mean(axis=0)).ravel(), (change - change.mean(axis=0)).ravel()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if np.linalg.norm(a) > 1e-6 * np.sqrt(a.size) and scale > 0 else 0.0


def _aligned(output: AnnData, cells: pd.Index, genes: list[str]) -> np.ndarray:
    """Prediction per asked cell, mean over samples (cells, genes)."""
    names = output.obs["source_cell"].astype(str)
    lost = cells.difference(pd.Index(names))
    if len(lost):
        raise InputDataError(f"{len(lost)} of {len(cells)} cells have no counterfactual, e.g. {lost[0]!r}.")
    wanted = output[names.isin(cells).to_numpy(), genes]
    values = wanted.X.toarray() if hasattr(wanted.X, "toarray") else np.asarray(wanted.X)
    return (
        pd.DataFrame(values, index=wanted.obs["source_cell"].astype(str)).groupby(level=0).mean().loc[cells].to_numpy()
    )


TASK = Task(
    "counterfactual",
    "What would this very cell have been under another condition?",
    "AnnData of predicted cells in the prediction schema, one or more per source cell",
    (
        Dataset(
            "stimulus",
            _simulated,
            _KEYS,
            note="Simulated stimulus that acts differently on cell types; every cell's counterfactual is known.",
        ),
    ),
    cases,
    score,
    ("cf_nmse", "cf_rmse", "cf_slope", "cf_cell_pearson"),
    zero="mean shift over all cells",
    one="true change",
    floor="no change",
    paired_by="cell type",
)


def _pooled(problem: Problem) -> AnnData:
    """One change for all cells, whatever their type: what a method that ignores the cell can do."""
    rule = bl.MeanShift(clip="zero").fit(problem.train, **problem.keys.perturbed())
    return rule.predict(problem.source, problem.interventions)


def _own_type(problem: Problem) -> AnnData:
    """The change measured in the cell's own type, whose stimulated cells are in training."""
    assert problem.source is not None
    types = problem.train.obs[problem.keys.labels_key].astype(str)
    import anndata as ad

    parts = []
    for kind in np.unique(problem.source.obs[problem.keys.labels_key].astype(str)):
        here = (problem.source.obs[problem.keys.labels_key].astype(str) == kind).to_numpy()
        rule = bl.MeanShift(clip="zero").fit(problem.train[(types == kind).to_numpy()], **problem.keys.perturbed())
        parts.append(rule.predict(problem.source[here], problem.interventions))
    return ad.concat(parts, uns_merge="same")


def _true_change(case: Case) -> AnnData:
    """The observed cell plus its true change: exact in the change, with the noise of the observation."""
    from sccausal.data import prediction_anndata

    p, t = case.problem, case.truth
    assert p.source is not None
    return prediction_anndata(
        t.layers["observed"] + t.layers["after"] - t.layers["before"], p.source.obs, t.var_names,
        interventions=STIMULATED, units="log1p_norm", method="true change",
    )  # fmt: skip


def _shuffled(problem: Problem) -> AnnData:
    """The type-wise change given to cells of other types."""
    assert problem.source is not None
    wrong = problem.source.copy()
    kinds = list(dict.fromkeys(wrong.obs[problem.keys.labels_key].astype(str)))
    turned = dict(zip(kinds, kinds[1:] + kinds[:1], strict=True))
    wrong.obs[problem.keys.labels_key] = wrong.obs[problem.keys.labels_key].astype(str).map(turned)
    return _own_type(Problem(**{**vars(problem), "source": wrong}))


_cells.register_rules("counterfactual", {"no change": ("baseline", lambda p: bl.NoChange())})
register("counterfactual", "mean shift over all cells", kind="baseline")(_pooled)
register("counterfactual", "mean shift of the own type", kind="baseline")(_own_type)
register("counterfactual", "mean shift of another type", kind="negative")(_shuffled)
register("counterfactual", "true change", kind="ceiling", sees_truth=True)(_true_change)
register("counterfactual", "ScConCRL")(_cells.scconcrl)
register("counterfactual", "CausCell")(_causcell.counterfactuals)
