"""A response carried over to a cell type, line or replicate in which it was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal import baselines as bl
from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells, _gcrl

if TYPE_CHECKING:
    from anndata import AnnData


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    size = {"n_cells": 1200, "n_types": 4} if request.small else {}
    return _cells.log_cells(
        simulate_perturb_seq(preset="condition", seed=request.seed, sortability=False, **size)  # type: ignore[arg-type]
    )


def _file(name: str) -> Callable[[Request], AnnData]:
    return lambda request: read_h5ad(data_file(request, name))


def _papalexi(request: Request) -> AnnData:
    """Knock-outs with at least 20 cells in each replicate, unassigned cells left out."""
    cells = read_h5ad(data_file(request, "papalexi_eccite.h5ad"))
    cells = cells[(cells.obs["perturbation"] != "unassigned").to_numpy()]
    counts = pd.crosstab(cells.obs["perturbation"].astype(str), cells.obs["replicate"].astype(str)).min(axis=1)
    return cells[cells.obs["perturbation"].astype(str).isin(counts.index[counts >= 20]).to_numpy()].copy()


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """One case per stratum: its perturbed cells are held out, genes are chosen on the rest."""
    from sccausal import pp

    keys = dataset.keys
    stratum = adata.obs[keys.labels_key].astype(str).to_numpy()
    control = (adata.obs[keys.target].astype(str) == keys.control).to_numpy()
    both = [s for s in np.unique(stratum) if control[stratum == s].any() and (~control[stratum == s]).sum() >= 4]
    for held in both[: 2 if request.small else None]:
        test = (stratum == held) & ~control
        cells = adata
        if dataset.options.get("select", adata.n_vars > 2500):
            cells = adata.copy()
            pp.select_genes(
                cells,
                2000,
                condition_key=keys.target,
                control=keys.control,
                labels_key=keys.labels_key,
                train=np.flatnonzero(~test),
            )
            cells = cells[:, cells.var["selected"]].copy()
        yield _cells.make_case(
            "condition",
            cells,
            dataset,
            request,
            name=held,
            train=~test,
            test=test,
            source=(stratum == held) & control,
            by=[str(keys.labels_key)],
        )


TASK = Task(
    "condition",
    "What does a perturbation do in a cell type, line or replicate where it was not measured?",
    "AnnData of predicted cells in the prediction schema",
    (
        Dataset(
            "condition",
            _simulated,
            Keys(condition_key="condition", control="control", labels_key="cell_type"),
            note="Simulated stimulus in six cell types that answer differently; one type at a time is held out.",
        ),
        Dataset(
            "kang",
            _file("kang_ifnb.h5ad"),
            Keys(condition_key="condition", control="control", labels_key="cell_type"),
            "kang_ifnb.h5ad",
            "Blood cells under interferon beta; one of seven types at a time is held out.",
        ),
        Dataset(
            "papalexi_eccite",
            _papalexi,
            Keys(intervention_key="perturbation", control="control", labels_key="replicate"),
            "papalexi_eccite.h5ad",
            "Knock-outs in THP-1 cells, carried over from one replicate to the other.",
        ),
        Dataset(
            "mcfaline_subset",
            _file("mcfaline_subset.h5ad"),
            Keys(intervention_key="perturbation", control="control", labels_key="cell_line"),
            "mcfaline_subset.h5ad",
            "CRISPRi of kinases in three lines. Negative control: no effect was found in these cells.",
        ),
    ),
    cases,
    _cells.score_cells,
    ("nmse_top", "pearson_change_top", "energy_distance", "pds_l1", "wmse", "lfc_nmae"),
    zero="mean shift",
    one="duplicate",
    floor="no change",
    paired_by="held-out stratum, intervention",
)


def _conditions_only(problem: Problem) -> bool:
    # a network per fold pays where there is one strong condition, and takes minutes with dozens of weak ones
    return problem.keys.condition_key is not None


_cells.register_rules(
    "condition",
    {
        "no change": ("baseline", lambda p: bl.NoChange()),
        "perturbed mean": ("baseline", lambda p: bl.PerturbedMean()),
        "mean shift": ("baseline", lambda p: bl.MeanShift()),
        "shrunk shift": ("baseline", lambda p: bl.ShrunkShift()),
        "nearest type": ("baseline", lambda p: bl.NearestType()),
        "per-gene regression": ("baseline", lambda p: bl.PerGeneRegression()),
        "ridge on type means": ("baseline", lambda p: bl.RidgeOnMeans()),
        "permuted labels": ("negative", lambda p: bl.PermutedLabels(bl.MeanShift(), seed=p.seed)),
    },
)
register("condition", "latent shift", kind="baseline", applies=_conditions_only)(
    _cells.rule_adapter(lambda p: bl.LatentShift(seed=p.seed))
)
_cells.register_ceilings("condition")
register("condition", "ScConCRL")(_cells.scconcrl)
register("condition", "DiscrepancyVAE", applies=lambda p: p.keys.intervention_key is not None)(_gcrl.other_stratum)
