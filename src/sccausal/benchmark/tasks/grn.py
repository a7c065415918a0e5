"""Gene networks against reference networks, from observed cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells
from sccausal.benchmark.tasks._latents import dense
from sccausal.benchmark.tasks._networks import genie3, pearson, ridge_partial

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn import Network


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    n_cells, n_genes = (800, 100) if request.small else (2000, 300)
    return _cells.log_cells(
        simulate_perturb_seq(
            n_cells=n_cells, n_genes=n_genes, n_targets=0, n_types=3, noise=0.5, seed=request.seed, sortability=False
        )
    )


def _beeline(folder: str) -> Callable[[Request], AnnData]:
    def load(request: Request) -> AnnData:
        here = data_file(request, f"beeline/{folder}")
        cells = read_h5ad(here / "expression.h5ad")
        networks = {path.stem: pd.read_csv(path) for path in sorted(here.glob("*.csv"))}
        cells.uns["truth"] = {"networks": networks}
        return cells

    return load


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """One case: all cells; a network has no cells to hold out, its truth is never shown."""
    truth = adata.uns["truth"]
    networks = truth.get("networks") or {"simulated": truth["network"]}
    cells = _cells.without_answers(adata)
    cells.var = cells.var.drop(columns=[c for c in cells.var if c in ("is_target",)])
    problem = Problem("grn", dataset.name, "network", cells, dataset.keys, request.seed, request.small)
    facts = {"cells": cells.n_obs, "genes": cells.n_vars, "true_edges": {k: len(v) for k, v in networks.items()}}
    yield Case(problem, networks, facts, [f"network {k!r}" for k in networks])


def score(case: Case, output: Network) -> pd.DataFrame:
    """Scores against each reference network, with both nulls as metrics of their own."""
    from sccausal.metrics import graph_scores

    parts = []
    for name, truth in case.truth.items():
        parts.append(graph_scores(output, truth, n_null=0, seed=case.problem.seed).assign(group=name))
    return pd.concat(parts, ignore_index=True)


def _null(kind: str) -> Callable[[Case], pd.DataFrame]:
    """A null of the best simple rule: its column-shuffled weights, or what its node degrees alone explain."""

    def scored(case: Case) -> pd.DataFrame:
        from sccausal.metrics import graph_scores

        network, parts = _ridge(case.problem), []
        for name, truth in case.truth.items():
            table = graph_scores(network, truth, n_null=10, seed=case.problem.seed)
            parts.append(table.assign(value=table[kind], group=name))
        return pd.concat(parts, ignore_index=True)

    return scored


TASK = Task(
    "grn",
    "Which genes regulate which, from cells that were only observed?",
    "sccausal.grn.Network",
    (
        Dataset("simulated", _simulated, Keys(labels_key="cell_type"), note="Simulated cells of three types."),
        Dataset("beeline_gsd", _beeline("GSD"), Keys(), "beeline/GSD", "BEELINE GSD, a simulated system."),
        Dataset(
            "beeline_mdc", _beeline("mDC"), Keys(), "beeline/mDC",
            "BEELINE, dendritic cells, three reference networks; on 'nonspecific' node degree alone scores high.",
        ),
    ),
    cases,
    score,
    ("epr", "auprc_ratio", "auroc", "direction_accuracy"),
    zero="shuffled weights",
    paired_by="reference network",
)  # fmt: skip


def _network(weight: np.ndarray, problem: Problem) -> Network:
    from sccausal.grn import Network

    return Network.from_matrix(weight, list(problem.train.var_names))


def _ridge(problem: Problem) -> Network:
    return _network(ridge_partial(dense(problem.train.X)), problem)


@register("grn", "tl.structure")
def _structure(problem: Problem) -> Network:
    from sccausal import tl

    return tl.structure(problem.train)


@register("grn", "ScConCRL")
def _scconcrl(problem: Problem) -> Network:
    bare = Problem(**{**vars(problem), "keys": Keys(batch_key=problem.keys.batch_key)})
    return _cells.trained_scconcrl(bare).grn.network()


def _few_genes(problem: Any) -> bool:
    return problem.train.n_vars <= 400  # a forest per gene: minutes beyond


register("grn", "Pearson", kind="baseline")(lambda p: _network(pearson(dense(p.train.X)), p))
register("grn", "ridge partial correlation", kind="baseline")(_ridge)
register("grn", "GENIE3", kind="baseline", applies=_few_genes)(
    lambda p: _network(genie3(dense(p.train.X), np.arange(p.train.n_vars), trees=50, seed=p.seed), p)
)
register("grn", "shuffled weights", kind="negative", sees_truth=True)(_null("null_shuffled"))
register("grn", "node degree alone", kind="reference", sees_truth=True)(_null("null_degree"))
