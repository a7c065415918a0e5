"""What tasks with predicted cells share: cases, rules, ceilings and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal.benchmark._methods import Kind, register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.baselines import Baseline

HEADLINE = ("wmse", "nmse_top", "pearson_ref", "pds_cosine", "energy_distance", "centroid_distance")
MAX_CELLS = 500
"""Cells per side in distances between distributions."""


SMALL_EPOCHS = 25
"""Epochs of a small run: a check of every step, not a result."""


def log_cells(adata: AnnData) -> AnnData:
    """Simulated counts as log1p(1e4) in ``X``; counts and truth are kept."""
    from sccausal.metrics import log1p_norm

    out = adata.copy()
    out.X = log1p_norm(adata).X
    return out


def make_case(
    task: str,
    adata: AnnData,
    dataset: Dataset,
    request: Request,
    *,
    name: str,
    train: np.ndarray,
    test: np.ndarray,
    source: np.ndarray,
    keys: Keys | None = None,
    by: Sequence[str] = (),
    times: list[float] | None = None,
    reference: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> Case:
    """A case from row masks.

    Parameters
    ----------
    task, adata, dataset, request
        Where the case stands.
    name
        Name of the case.
    train, test, source
        Boolean masks (cells,): training, truth, and control cells to start from.
    keys
        Columns; default those of the data set.
    by
        Columns that, with the intervention, define a group that is scored by itself.
    times
        Times that are asked for.
    reference
        Whether ``pearson_ref`` is read from the mean of the training perturbations.
    extra
        More that methods are told.
    """
    keys = keys or dataset.keys
    if (train & test).any():
        raise AssertionError("A cell is in training and in the truth.")
    cells, truth = without_answers(adata[train]), adata[test].copy()
    problem = Problem(
        task,
        dataset.name,
        name,
        cells,
        keys,
        request.seed,
        request.small,
        source=without_answers(adata[source]),
        interventions=sorted(truth.obs[keys.target].astype(str).unique()),
        times=times,
        extra={"by": list(by), **dict(extra or {})},
    )
    facts = describe_case(truth, problem)
    if reference:
        problem.extra["reference"] = mean_perturbation(cells, keys)
    held = sorted({" | ".join(row) for row in truth.obs[[keys.target, *by]].astype(str).to_numpy().tolist()})
    return Case(problem, truth, facts, held)


def without_answers(adata: AnnData) -> AnnData:
    """A copy of the cells without what a simulator knows about them."""
    out = adata.copy()
    out.uns.pop("truth", None)
    for layer in [k for k in out.layers if k != "counts"]:
        del out.layers[layer]
    return out


def mean_perturbation(cells: AnnData, keys: Keys) -> np.ndarray | None:
    """Mean of the centroids of the training perturbations (genes,); None with fewer than three."""
    labels = cells.obs[keys.target].astype(str)
    kinds = [k for k in labels.unique() if k != keys.control]
    if len(kinds) < 3:
        return None
    return np.mean([np.asarray(cells[(labels == k).to_numpy()].X.mean(axis=0)).ravel() for k in kinds], axis=0)


def describe_case(truth: AnnData, problem: Problem) -> dict[str, Any]:
    """What the report needs to judge the data: sizes, sparsity, genes with an effect."""
    from sccausal.metrics._de import de_test
    from sccausal.metrics._input import matrix

    assert problem.source is not None
    genes = truth.var_names
    X, base = matrix(truth, "The truth", genes), matrix(problem.source, "The source cells", genes)
    keys, by = problem.keys, problem.extra["by"]
    columns = [keys.target, *by]
    counts = []
    for _, rows in truth.obs.groupby(columns, observed=True).indices.items():
        control = base
        if by:
            same = (problem.source.obs[by].astype(str) == truth.obs[by].iloc[rows[0]].astype(str)).all(axis=1)
            control = base[same.to_numpy()] if same.any() else base
        if len(rows) > 2 and len(control) > 2:
            counts.append(int(de_test(X[rows], control).significant().sum()))
    values = problem.train.X
    nonzero = values.getnnz() if hasattr(values, "getnnz") else np.count_nonzero(values)
    return {
        "train_cells": int(problem.train.n_obs),
        "test_cells": int(truth.n_obs),
        "source_cells": int(problem.source.n_obs),
        "genes": int(truth.n_vars),
        "genes_per_cell": float(nonzero / problem.train.n_obs),
        "groups": len(counts),
        "de_genes_per_group": float(np.mean(counts)) if counts else None,
        "groups_with_de_genes": int(np.sum(np.asarray(counts) > 0)),
    }


def score_cells(case: Case, output: AnnData, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Scores of predicted cells, group by group; the cells of other cases in a prediction are left out."""
    from sccausal.metrics import evaluate_predictions

    p = case.problem
    pred = output
    if "at" in p.extra["by"]:
        pred = pred.copy()
        pred.obs["at"] = pd.Categorical([f"{t:g}" for t in pred.obs["time"]])
    for column in p.extra["by"]:
        if column in pred.obs:
            known = pred.obs[column].astype(str).isin(case.truth.obs[column].astype(str).unique())
            pred = pred[known.to_numpy()]
    frame = evaluate_predictions(
        {"method": pred},
        case.truth,
        p.source,
        by=["intervention", *p.extra["by"]],
        intervention_key=p.keys.target,
        metrics=metrics,
        reference=p.extra.get("reference"),
        duplicate=False,
        no_change=False,
        max_cells=MAX_CELLS,
        sep=p.keys.sep,
        seed=p.seed,
    )
    return frame.drop(columns="method")


def duplicate(case: Case) -> pd.DataFrame:
    """One half of the true cells scored against the other."""
    from sccausal.metrics import evaluate_predictions

    p = case.problem
    return evaluate_predictions(
        {},
        case.truth,
        p.source,
        by=["intervention", *p.extra["by"]],
        intervention_key=p.keys.target,
        reference=p.extra.get("reference"),
        duplicate=True,
        no_change=False,
        max_cells=MAX_CELLS,
        sep=p.keys.sep,
        seed=p.seed,
    ).drop(columns="method")


def interpolated(case: Case) -> pd.DataFrame:
    """The interpolated duplicate scored against the held-back half."""
    from sccausal.baselines import InterpolatedDuplicate

    p = case.problem
    strata = p.extra["by"]
    cells = _joined(case)
    keys = {**p.keys.rule(), "labels_key": strata[0] if strata else None, "batch_key": None}
    rule = InterpolatedDuplicate(seed=p.seed).fit(cells, **keys)
    held = Case(p, _as_truth(rule.held_back(p.interventions), p.keys))
    return score_cells(held, rule.predict(interventions=p.interventions))


def _joined(case: Case) -> AnnData:
    import anndata as ad

    parts = [case.truth, case.problem.source]
    return ad.concat(parts, join="inner", index_unique="-")


def _as_truth(pred: AnnData, keys: Keys) -> AnnData:
    out = pred.copy()
    out.obs[keys.target] = out.obs["intervention"].astype(str)
    return out


def rule_adapter(make: Callable[[Problem], Baseline], *, time: bool = False) -> Callable[[Problem], AnnData]:
    """Adapter of a baseline: fitted on the training cells, asked for the interventions of the problem."""

    def answer(problem: Problem) -> AnnData:
        rule = make(problem).fit(problem.train, **problem.keys.rule(time=time))
        times = problem.times if time else None
        return rule.predict(problem.source, problem.interventions, times=times, seed=problem.seed)

    return answer


def register_rules(
    task: str, rules: Mapping[str, tuple[Kind, Callable[[Problem], Baseline]]], *, time: bool = False
) -> None:
    """Register baselines by name: ``name -> (kind, problem -> unfitted baseline)``."""
    for name, (kind, make) in rules.items():
        register(task, name, kind=kind)(rule_adapter(make, time=time))


def register_ceilings(task: str) -> None:
    """Register the two duplicates."""
    register(task, "duplicate", kind="ceiling", sees_truth=True)(duplicate)
    register(task, "interpolated duplicate", kind="ceiling", sees_truth=True)(interpolated)


def scconcrl(problem: Problem) -> AnnData:
    """Adapter of ScConCRL."""
    return trained_scconcrl(problem).perturbation.predict(problem.source, problem.interventions, seed=problem.seed)


def trained_scconcrl(problem: Problem, **model: Any) -> Any:
    """ScConCRL trained on the cells of a problem."""
    from sccausal import ScConCRL

    return trained(ScConCRL, problem, problem.keys.setup(), **model)


def trained(model_class: Any, problem: Problem, setup: Mapping[str, Any], **model: Any) -> Any:
    """A model trained on a copy of the cells of a problem, the caller's seed left as it was.

    Parameters
    ----------
    model_class
        Class of the model.
    problem
        Its training cells, seed and size count.
    setup
        Arguments of ``setup_anndata``.
    **model
        Arguments of the model.
    """
    import scvi

    before = scvi.settings.seed
    scvi.settings.seed = problem.seed
    try:
        cells = problem.train.copy()
        model_class.setup_anndata(cells, **setup)
        fitted = model_class(cells, **model)
        fitted.train(
            max_epochs=SMALL_EPOCHS if problem.small else None,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return fitted
    finally:
        scvi.settings.seed = before
