"""Combinations that were never measured, from single interventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal import baselines as bl
from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import Kind, register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells, _gcrl, _lcd

if TYPE_CHECKING:
    from anndata import AnnData

_SIMULATED = Keys(intervention_key="intervention", control="control", label_column="intervention")
_SMALL = {"n_cells": 2600, "n_genes": 300, "n_targets": 12, "n_doubles": 14, "n_regulators": 60}


def _simulated(preset: str) -> Dataset:
    def load(request: Request) -> AnnData:
        from sccausal.datasets import simulate_perturb_seq

        size: dict[str, Any] = _SMALL if request.small else {}
        return _cells.log_cells(simulate_perturb_seq(preset=preset, seed=request.seed, sortability=False, **size))

    note = f"Simulated screen, preset {preset!r}: half of the doubles are held out, their singles are in training."
    return Dataset(preset, load, _SIMULATED, note=note, options={"half": True})


def _norman(request: Request) -> AnnData:
    from sccausal import pp

    cells = read_h5ad(data_file(request, "norman_subset.h5ad"))
    # doses over all targets, so that a combination with a target that training has not seen can be asked for
    pp.encode_interventions(cells, "perturbation", control="control", key_added="doses")
    return cells


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """Held-out combinations, one case per number of targets that were seen alone."""
    keys = dataset.keys
    label = adata.obs[keys.target].astype(str).to_numpy()
    singles = {x for x in label if keys.sep not in x and x != keys.control}
    doubles = sorted({x for x in label if keys.sep in x})
    seen = {d: sum(part in singles for part in d.split(keys.sep)) for d in doubles}
    whole = [d for d in doubles if seen[d] == len(d.split(keys.sep))]
    if dataset.options.get("half") or (not dataset.options and len(whole) > 7):
        order = np.random.default_rng([request.seed, 7]).permutation(np.array(whole, dtype=object))
        held = set(order[: (len(order) + 1) // 2])
    else:
        held = set(doubles)
    source = label == keys.control
    for n in sorted({seen[d] for d in held}, reverse=True):
        asked = [d for d in held if seen[d] == n]
        complete = n == len(asked[0].split(keys.sep))
        names = keys if complete else replace(keys, intervention_key="doses", label_column=keys.target)
        if not complete and "doses" not in adata.obsm:
            continue
        yield _cells.make_case(
            "doubles",
            adata,
            dataset,
            request,
            name="unseen doubles" if complete else f"{n} of 2 targets seen",
            train=~np.isin(label, list(held)),
            test=np.isin(label, asked),
            source=source,
            keys=names,
        )


def score(case: Case, output: AnnData) -> pd.DataFrame:
    """Scores of predicted cells, and of what they say about the interaction."""
    from sccausal.metrics import interaction_scores

    frame = _cells.score_cells(case, output)
    p = case.problem
    keys = p.keys
    seen = means(p.train, keys.target, keys.sep)
    source = seen if p.source is None else means(p.source, keys.target, keys.sep)
    control = source[str(keys.control)]
    truth, guess = means(case.truth, keys.target, keys.sep), means(output, "intervention", keys.sep)
    rows = []
    for name in p.interventions:
        parts, key = name.split(keys.sep), in_order(name, keys.sep)
        if not all(part in seen for part in parts) or key not in guess:
            continue
        own = [seen[part] - control for part in parts]
        table = interaction_scores(guess[key] - control, truth[key] - control, own)
        rows.append(table.assign(group=name, intervention=name))
    return pd.concat([frame, *rows], ignore_index=True)


def in_order(label: str, sep: str) -> str:
    """A label with its parts sorted: methods may name the parts of a combination in another order."""
    return sep.join(sorted(label.split(sep)))


def means(adata: AnnData, column: str, sep: str) -> dict[str, np.ndarray]:
    """Mean expression (genes,) of the cells of each label, by the label with its parts sorted."""
    labels = np.array([in_order(x, sep) for x in adata.obs[column].astype(str)])
    return {str(k): np.asarray(adata.X[labels == k].mean(axis=0, dtype=np.float64)).ravel() for k in np.unique(labels)}


TASK = Task(
    "doubles",
    "What do cells look like under two interventions together, when only each alone was measured?",
    "AnnData of predicted cells in the prediction schema",
    (
        _simulated("strong"),
        _simulated("mild"),
        Dataset(
            "norman_subset",
            _norman,
            Keys(intervention_key="perturbation", control="control"),
            "norman_subset.h5ad",
            "CRISPR activation in K562 cells; five doubles with both singles in training, others with one or none.",
            {"all": True},
        ),
    ),
    cases,
    score,
    ("wmse", "pearson_ref", "pds_l1", "energy_distance", "interaction_pearson", "centroid_distance"),
    zero="perturbed mean",
    one="duplicate",
    floor="no change",
    paired_by="double",
)

RULES: dict[str, tuple[Kind, Callable[[Problem], bl.Baseline]]] = {
    "no change": ("baseline", lambda p: bl.NoChange()),
    "perturbed mean": ("baseline", lambda p: bl.PerturbedMean()),
    "matching mean": ("baseline", lambda p: bl.MatchingMean()),
    "additive": ("baseline", lambda p: bl.Additive()),
    "scaled additive": ("baseline", lambda p: bl.ScaledAdditive()),
    "nearest perturbation": ("baseline", lambda p: bl.NearestPerturbation()),
    "latent additive": ("baseline", lambda p: bl.LatentAdditive()),
    "permuted labels": ("negative", lambda p: bl.PermutedLabels(bl.Additive(), seed=p.seed)),
}
"""Rules that say something about a pair of interventions."""

_cells.register_rules(
    "doubles", {**RULES, "elastic net on embedding": ("baseline", lambda p: bl.ElasticNetEmbedding())}
)
# without any measured target the rule has no features
register("doubles", "linear GWP", kind="baseline", applies=lambda p: _measured(p) > 1)(
    _cells.rule_adapter(lambda p: bl.LinearGWP())
)
_cells.register_ceilings("doubles")
register("doubles", "ScConCRL")(_cells.scconcrl)
register("doubles", "DiscrepancyVAE")(_gcrl.cells)
register("doubles", "LCD")(_lcd.doubles)


def _measured(problem: Any) -> int:
    """Number of intervention targets that are measured genes."""
    labels = problem.train.obs[problem.keys.target].astype(str).unique()
    targets = {t for name in labels for t in name.split(problem.keys.sep)}
    return len(targets & set(problem.train.var_names))
