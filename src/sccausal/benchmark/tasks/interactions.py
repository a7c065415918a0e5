"""Genetic interactions: whether two interventions together do more, less or something else than each alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Request, Task
from sccausal.benchmark.tasks import _cells, _gcrl, _lcd, doubles
from sccausal.metrics import split_half

if TYPE_CHECKING:
    from anndata import AnnData

_FEWEST_RANKED = 4
_GENES = 100
"""Genes of the scores of a pair: those its parts move most in the training cells. On one simulated screen
("strong"), with five times the cells as truth, the error of the observed magnitude falls from 0.46 (all genes) to
0.13."""


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """Held-out pairs whose parts were both seen alone.

    Half of the control cells and of the cells under each part are kept for the truth. Observed scores therefore share
    no sampling error with what methods see; otherwise a method that merely removes the error of the parts would seem to
    know the interaction. Methods are asked for the parts as well: their scores are those of their own predictions.
    """
    keys = dataset.keys
    label = adata.obs[keys.target].astype(str).to_numpy()
    alone = {x for x in label if keys.sep not in x and x != keys.control}
    pairs = sorted(x for x in set(label) if x.count(keys.sep) == 1 and set(x.split(keys.sep)) <= alone)
    if dataset.options.get("half") or (not dataset.options and len(pairs) > 7):
        order = np.random.default_rng([request.seed, 7]).permutation(np.array(pairs, dtype=object))
        pairs = sorted(order[: (len(order) + 1) // 2])
    if not pairs:
        return
    asked = np.isin(label, pairs)
    kept = np.zeros(adata.n_obs, dtype=bool)
    for k, name in enumerate(sorted({part for pair in pairs for part in pair.split(keys.sep)} | {str(keys.control)})):
        rows = np.flatnonzero(label == name)
        kept[rows[split_half(len(rows), request.seed + k)[0]]] = True
    rest = ~asked & ~kept
    case = _cells.make_case(
        "interactions", adata, dataset, request, name="unseen pairs", train=rest, test=asked,
        source=rest & (label == keys.control),
    )  # fmt: skip
    case.problem.interventions = sorted({*pairs, *(part for pair in pairs for part in pair.split(keys.sep))})
    yield replace(case, truth=_cells.without_answers(adata[asked | kept]))


def score(case: Case, output: AnnData) -> pd.DataFrame:
    """Scores of the interaction of every pair, and whether pairs stand in the right order."""
    from sccausal.metrics import gi_ranks, gi_scores, interaction_scores

    p, keys = case.problem, case.problem.keys
    seen, truth = (doubles.means(cells, keys.target, keys.sep) for cells in (p.train, case.truth))
    control = str(keys.control)
    # a prediction starts from the control cells of training
    guess = {k: v - seen[control] for k, v in doubles.means(output, "intervention", keys.sep).items()}
    missing = [name for name in p.interventions if doubles.in_order(name, keys.sep) not in guess]
    if missing:
        raise InputDataError(f"The prediction has no cells under {missing[0]}; pairs and their parts are asked for.")
    tables, predicted, observed = [], [], []
    for name in _pairs(case):
        parts = name.split(keys.sep)
        key = doubles.in_order(name, keys.sep)
        mine, theirs = guess[key], truth[key] - truth[control]
        own, singles = [guess[part] for part in parts], [truth[part] - truth[control] for part in parts]
        moved = np.max([np.abs(seen[part] - seen[control]) for part in parts], axis=0)
        genes = np.argsort(-moved, kind="stable")[:_GENES]
        table = interaction_scores(mine, theirs, singles, pred_singles=own, genes=genes)
        tables.append(table.assign(group=name, intervention=name))
        predicted.append(gi_scores(*(v[genes] for v in (mine, *own))))
        observed.append(gi_scores(*(v[genes] for v in (theirs, *singles))))
    if len(observed) >= _FEWEST_RANKED:
        tables.append(gi_ranks(predicted, observed).assign(group="all pairs", intervention="all pairs"))
    return pd.concat(tables, ignore_index=True)


def _pairs(case: Case) -> list[str]:
    return [name for name in case.problem.interventions if case.problem.keys.sep in name]


def duplicate(case: Case) -> pd.DataFrame:
    """One half of the cells of the pairs, with the training cells of the parts, predicts the other half."""
    import anndata as ad

    p, column = case.problem, case.problem.keys.target
    label = case.truth.obs[column].astype(str).to_numpy()
    given = np.zeros(case.truth.n_obs, dtype=bool)
    for name in _pairs(case):
        rows = np.flatnonzero(label == name)
        given[rows[split_half(len(rows), p.seed)[0]]] = True
    parts = p.train[p.train.obs[column].astype(str).isin(p.interventions).to_numpy()]
    half = ad.concat([case.truth[given], parts], join="inner")
    half.obs["intervention"] = half.obs[column].astype(str)
    return score(replace(case, truth=case.truth[~given].copy()), half)


TASK = Task(
    "interactions",
    "Which pairs of interventions do more, less or something else than the sum of the two?",
    "AnnData of predicted cells in the prediction schema",
    doubles.TASK.datasets,
    cases,
    score,
    ("interaction_pearson", "gi_magnitude_error", "gi_fit_error", "gi_magnitude_rank", "gi_fit_rank"),
    zero="additive",
    one="duplicate",
    floor="no change",
    paired_by="pair",
)

_cells.register_rules("interactions", doubles.RULES)
register("interactions", "duplicate", kind="ceiling", sees_truth=True)(duplicate)
register("interactions", "ScConCRL")(_cells.scconcrl)
register("interactions", "DiscrepancyVAE")(_gcrl.cells)
register("interactions", "LCD")(_lcd.doubles)
