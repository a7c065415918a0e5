"""Interventions at times at which they were not measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal import baselines as bl
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells, _citevae

if TYPE_CHECKING:
    from anndata import AnnData

_KEYS = Keys(intervention_key="intervention", control="control", time_key="time")
_TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    n_genes, n_targets, per_group = (200, 12, 30) if request.small else (500, 24, 60)
    cells = simulate_perturb_seq(
        n_cells=(n_targets + 4) * len(_TIMES) * per_group,
        n_genes=n_genes,
        n_targets=n_targets,
        n_regulators=n_genes // 5,
        interventions="activation",
        control_fraction=4 / (n_targets + 4),
        time=_TIMES,
        strength=2.5,
        noise=0.3,
        seed=request.seed,
        sortability=False,
    )
    return _cells.log_cells(cells)


def _differentiating(request: Request) -> AnnData:
    from sccausal.datasets import simulate_time_course

    per_group, n_genes, n_targets = (30, 150, 12) if request.small else (150, 300, 20)
    return _cells.log_cells(simulate_time_course(per_group, n_genes, n_targets, seed=request.seed))


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """Two cases: a third of the interventions at all times, and another third at the two last times."""
    keys = dataset.keys
    label = adata.obs[keys.target].astype(str).to_numpy()
    time = pd.to_numeric(adata.obs[keys.time_key].astype(object)).to_numpy(dtype=float)
    control = label == keys.control
    names = np.array(sorted(set(label[~control])), dtype=object)
    order = np.random.default_rng([request.seed, 11]).permutation(names)
    part = max(1, len(order) // 3)
    times = np.unique(time)
    late = np.isin(time, times[-2:])
    seen_early = np.isin(label, order[:part]) & late
    unseen = np.isin(label, order[part : 2 * part])
    marked = adata.copy()
    marked.obs["at"] = pd.Categorical([f"{t:g}" for t in time])
    if len(times) > 2:
        yield _cells.make_case(
            "time", marked, dataset, request, name="seen early, late times held out", train=~(seen_early | unseen),
            test=seen_early, source=control & late, by=["at"], times=times[-2:].tolist(),
        )  # fmt: skip
    # targets stay nameable through a frame of doses
    doses = pd.DataFrame({n: (label == n).astype(np.float32) for n in names}, index=marked.obs_names)
    marked.obsm["doses"] = doses
    framed = Keys(
        intervention_key="doses", control=keys.control, time_key=keys.time_key, label_column=keys.target, sep=keys.sep
    )
    yield _cells.make_case(
        "time", marked, dataset, request, name="intervention never seen", train=~unseen, test=unseen, source=control,
        keys=framed, by=["at"], times=times.tolist(), extra={"embedding": _embedding(marked[control], names)},
    )  # fmt: skip


def _embedding(control: AnnData, names: np.ndarray, n: int = 20) -> pd.DataFrame:
    """Features of targets that anyone has: loadings of their own gene on principal components of control cells."""
    from sccausal.baselines._regression import principal_axes

    axes = principal_axes(control.X, n).T
    at = control.var_names.get_indexer(pd.Index(names))
    return pd.DataFrame(np.where((at >= 0)[:, None], axes[at], 0.0), index=names)


def _shuffled(problem: Problem) -> bl.Baseline:
    table = problem.extra.get("embedding")
    if table is None:
        table = _embedding(problem.train, np.array(sorted(set(problem.interventions)), dtype=object))
    order = np.random.default_rng([problem.seed, 3]).permutation(len(table))
    return bl.ElasticNetEmbedding(pd.DataFrame(table.to_numpy()[order], index=table.index))


def _never_seen(problem: Problem) -> bool:
    return "embedding" in problem.extra


TASK = Task(
    "time",
    "What do cells look like at a time, or under an intervention, that was not measured?",
    "AnnData of predicted cells in the prediction schema, with obs['time']",
    (
        Dataset(
            "time_course",
            _simulated,
            _KEYS,
            note="Simulated activations observed at five times; effects grow and spread through the network.",
        ),
        Dataset(
            "differentiation",
            _differentiating,
            _KEYS,
            note="Simulated activations at four times in cells that differentiate meanwhile.",
        ),
    ),
    cases,
    _cells.score_cells,
    ("wmse", "rmse", "pearson_ref", "energy_distance", "pds_l1"),
    zero="time mean",
    one="duplicate",
    floor="no change",
    paired_by="intervention, time",
)


class _NoChange(bl.TimeRule):
    """The control cells of the time."""

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return np.zeros_like(control)


_cells.register_rules(
    "time",
    {
        "no change": ("baseline", lambda p: _NoChange()),
        "persistence": ("baseline", lambda p: bl.Persistence()),
        "time mean": ("baseline", lambda p: bl.TimeMean()),
        "time additive": ("baseline", lambda p: bl.TimeAdditive()),
        "elastic net on embedding": ("baseline", lambda p: bl.ElasticNetEmbedding(p.extra.get("embedding"))),
    },
    time=True,
)
register("time", "elastic net, shuffled embedding", kind="negative", applies=_never_seen)(
    _cells.rule_adapter(_shuffled, time=True)
)
_cells.register_ceilings("time")
register("time", "CITE-VAE")(_citevae.predictions)
register("time", "CITE-VAE, shuffled embedding", kind="negative", applies=_citevae.knows_features)(
    _citevae.with_shuffled_embedding
)
