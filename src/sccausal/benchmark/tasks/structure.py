"""Structure learning with interventions: against the truth where it is known, against held-out cells elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells, _lcd
from sccausal.benchmark.tasks._latents import dense
from sccausal.benchmark.tasks._networks import best_f1_cut, linear_cells, pearson, ridge_partial

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn import Network


def _linear(kind: str) -> Callable[[Request], AnnData]:
    def load(request: Request) -> AnnData:
        d, n_control, n_each = (30, 400, 40) if request.small else (100, 1000, 40)
        cells, weights = linear_cells(d, kind, n_control, n_each, request.seed)
        cells.uns["truth"] = {"weights": weights}
        return cells

    return load


def _dixit(request: Request) -> AnnData:
    cells = read_h5ad(data_file(request, "dixit_bmdc_interventions.h5ad"))
    cells.obs["guide"] = cells.obs["intervention"].astype(str)
    return cells


def _sachs(request: Request) -> AnnData:
    """The usual 5 846 cells, with the consensus network."""
    cells = read_h5ad(data_file(request, "sachs_interventions.h5ad"))
    cells = cells[cells.obs["in_benchmark"].astype(bool).to_numpy()].copy()
    cells.obs["guide"] = cells.obs["target"].astype(str)
    cells.uns["truth"] = {"network": pd.read_csv(data_file(request, "sachs_consensus.csv"))}
    return cells


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """A third of the cells of every intervention is held out, to judge edges by what interventions do."""
    label = adata.obs["guide"].astype(str).to_numpy()
    rng = np.random.default_rng([request.seed, 19])
    test = np.zeros(adata.n_obs, dtype=bool)
    for name in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == name))
        test[rows[: len(rows) // 3]] = True
        if request.small:  # at most 300 cells of an intervention for training
            test[rows[len(rows) // 3 :][300:]] = True
    truth = {**adata.uns.get("truth", {}), "cells": adata[test].copy()}
    names = set(adata.var_names)
    keep = np.array([g == dataset.keys.control or g in names for g in label])
    problem = Problem(
        "structure", dataset.name, "network", _cells.without_answers(adata[~test & keep]), dataset.keys, request.seed,
        request.small, extra={"kind": dataset.options.get("kind", "hard")},
    )  # fmt: skip
    facts = {
        "train_cells": problem.train.n_obs,
        "test_cells": int(test.sum()),
        "genes": adata.n_vars,
        "interventions": int(len(set(label[keep])) - 1),
    }
    yield Case(problem, truth, facts, [f"{int(test.sum())} cells of all interventions"])


def score(case: Case, output: Network) -> pd.DataFrame:
    """SHD and direction where weights are known; scores against a reference network; interventional scores always."""
    from sccausal.metrics import direction_accuracy, graph_scores, interventional_scores, shd
    from sccausal.metrics._info import as_table

    p, truth = case.problem, case.truth
    genes = list(p.train.var_names)
    parts = []
    if "weights" in truth:
        found = np.asarray(output.to_matrix(genes))
        values = {
            "shd": shd(found, truth["weights"]),
            "direction_accuracy": direction_accuracy(found, truth["weights"]),
            "n_edges": float(np.count_nonzero(found)),
        }
        parts.append(as_table(values).assign(group="truth"))
    elif "network" in truth:
        parts.append(graph_scores(output, truth["network"], n_null=0).assign(group="consensus"))
    cells = truth["cells"]
    held = interventional_scores(
        output, dense(cells.X), cells.obs["guide"].astype(str).to_numpy(), genes, str(p.keys.control),
        n_edges=2 * len(genes),
    )  # fmt: skip
    parts.append(held.assign(group="held-out cells"))
    return pd.concat(parts, ignore_index=True)


_GUIDE = Keys(intervention_key="guide", control="control")
TASK = Task(
    "structure",
    "Which edges does a network have, when genes were intervened on?",
    "sccausal.grn.Network",
    (
        Dataset("linear_do", _linear("do_random"), _GUIDE, note="Linear models, z-scored, half of the genes set."),
        Dataset("linear_knockout", _linear("knockout"), _GUIDE, note="Linear models, z-scored, half of the genes low."),
        Dataset("linear_soft", _linear("soft"), _GUIDE, note="Linear models, z-scored, half shifted.",
                options={"kind": "soft"}),
        Dataset("dixit", _dixit, _GUIDE, "dixit_bmdc_interventions.h5ad",
                "Knock-outs of eight regulators in dendritic cells; they lower their own transcript little, and no "
                "true network is known.", {"kind": "soft"}),
        Dataset("sachs", _sachs, Keys(intervention_key="guide", control="none"), "sachs_interventions.h5ad",
                "Signalling proteins under inhibitors and activators; 18 edges of consensus, itself in doubt.",
                {"kind": "soft"}),
    ),
    cases,
    score,
    ("shd", "direction_accuracy", "edge_wasserstein", "edge_precision", "false_omission_rate", "auprc_ratio"),
    paired_by="network",
)  # fmt: skip


@register("structure", "tl.structure")
def _structure(problem: Problem) -> Network:
    from sccausal import tl

    return tl.structure(problem.train, **problem.keys.perturbed(), kind=problem.extra["kind"], seed=problem.seed)


@register("structure", "tl.structure, interventions unused", kind="reference")
def _observed(problem: Problem) -> Network:
    from sccausal import tl

    return tl.structure(problem.train)


def _top(weight: np.ndarray, problem: Problem) -> Network:
    """The two strongest edges per gene on average, which is about how many there are."""
    from sccausal.grn import Network

    genes = list(problem.train.var_names)
    size = np.sort(np.abs(weight).ravel())[::-1]
    cut = size[min(2 * len(genes), size.size - 1)]
    return Network.from_matrix(np.where(np.abs(weight) > cut, weight, 0.0), genes)


def _best_cut(case: Case) -> Network:
    from sccausal.grn import Network

    p = case.problem
    weight = ridge_partial(dense(p.train.X))
    if "weights" in case.truth:
        weight = best_f1_cut(weight, case.truth["weights"])
    return Network.from_matrix(weight, list(p.train.var_names))


def _random(problem: Problem) -> Network:
    d = problem.train.n_vars
    return _top(np.random.default_rng([problem.seed, 23]).random((d, d)) * (1 - np.eye(d)), problem)


register("structure", "CLIPR, response")(_lcd.direct_effects)
register("structure", "Pearson", kind="baseline")(lambda p: _top(pearson(dense(p.train.X)), p))
register("structure", "ridge partial correlation", kind="baseline")(lambda p: _top(ridge_partial(dense(p.train.X)), p))
register("structure", "ridge partial, best cut", kind="reference", sees_truth=True)(_best_cut)
register("structure", "random edges", kind="negative")(_random)
