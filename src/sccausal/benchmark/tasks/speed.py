"""Cells per second of training beside scVI at equal width, in the same run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task

if TYPE_CHECKING:
    from anndata import AnnData


def random_counts(n_cells: int, n_genes: int, seed: int) -> AnnData:
    """Poisson counts without structure, in two batches: ``layers["counts"]`` and their log1p in ``X``."""
    import anndata as ad

    rng = np.random.default_rng(seed)
    rate = rng.gamma(1.0, 1.0, (n_genes,)) * 0.4
    x = sparse.csr_matrix(rng.poisson(rate, (n_cells, n_genes)).astype(np.float32))
    adata = ad.AnnData(x)
    adata.obs["batch"] = np.where(rng.random(n_cells) < 0.5, "one", "two")
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.copy()
    adata.X.data = np.log1p(adata.X.data)
    return adata


class Throughput(NamedTuple):
    """Speed of one training."""

    cells_per_second: float
    """Cells of the epochs after the first, per second spent in them."""
    start_seconds: float
    """Everything outside the epochs: statistics of the data, set-up of the trainer, clean-up."""


def throughput(model: Any, epochs: int, batch_size: int) -> Throughput:
    """Time of training on all cells, on the CPU: one epoch that warms caches, then ``epochs`` that count."""
    from lightning.pytorch.callbacks import LambdaCallback

    marks: list[float] = []
    clock = LambdaCallback(
        on_train_epoch_start=lambda *_: marks.append(time.perf_counter()),
        on_train_epoch_end=lambda *_: marks.append(time.perf_counter()),
    )
    begin = time.perf_counter()
    model.train(
        max_epochs=epochs + 1, accelerator="cpu", train_size=1.0, batch_size=batch_size, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    whole = time.perf_counter() - begin
    seconds = np.subtract(marks[1::2], marks[::2])
    return Throughput(model.adata.n_obs * epochs / float(seconds[1:].sum()), whole - float(seconds.sum()))


def _load(request: Request) -> AnnData:
    return random_counts(1000 if request.small else 10_000, 500 if request.small else 2000, request.seed)


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """One case per batch size."""
    for batch_size in (128, 1024):
        problem = Problem(
            "speed", dataset.name, f"batches of {batch_size}", adata, dataset.keys, request.seed, request.small,
            extra={"batch_size": batch_size, "epochs": 2},
        )  # fmt: skip
        yield Case(problem, None, {"cells": adata.n_obs, "genes": adata.n_vars}, ["nothing"])


def score(case: Case, output: float) -> pd.DataFrame:
    """Cells per second, and their ratio to scVI, which is timed right after in the same process."""
    from sccausal.metrics._info import as_table

    p = case.problem
    reference = _scvi_rate(p.train.n_obs, p.train.n_vars, p.seed, p.extra["batch_size"], p.extra["epochs"])
    values = {"cells_per_second": float(output), "ratio_to_scvi": float(output) / reference}
    return as_table(values).assign(group=p.case)


TASK = Task(
    "speed",
    "How many cells per second does training take, beside scVI?",
    "cells per second (float)",
    (Dataset("random_counts", _load, Keys(batch_key="batch"), note="Poisson counts; only time is measured."),),
    cases,
    score,
    ("ratio_to_scvi", "cells_per_second"),
    zero="scVI",
    paired_by="batch size",
)


@lru_cache(maxsize=8)
def _scvi_rate(n_cells: int, n_genes: int, seed: int, batch_size: int, epochs: int) -> float:
    """Timed once per process and size."""
    import scvi

    cells = random_counts(n_cells, n_genes, seed)
    scvi.model.SCVI.setup_anndata(cells, layer="counts", batch_key="batch")
    return throughput(scvi.model.SCVI(cells), epochs, batch_size).cells_per_second


@register("speed", "scVI", kind="baseline")
def _scvi(problem: Problem) -> float:
    e = problem.extra
    return _scvi_rate(problem.train.n_obs, problem.train.n_vars, problem.seed, e["batch_size"], e["epochs"])


def _scconcrl(problem: Problem, setup: dict[str, Any] | None = None, **init: Any) -> float:
    from sccausal import ScConCRL

    cells = problem.train.copy()
    ScConCRL.setup_anndata(cells, **problem.keys.setup(), **(setup or {}))
    model = ScConCRL(cells, **init)
    return throughput(model, problem.extra["epochs"], problem.extra["batch_size"]).cells_per_second


def _some(problem: Problem) -> list[str]:
    return list(problem.train.var_names[: problem.train.n_vars // 10])


register("speed", "ScConCRL")(_scconcrl)
register("speed", "ScConCRL, a tenth regulates")(lambda p: _scconcrl(p, regulators=_some(p)))
register("speed", "ScConCRL nb, a tenth regulates")(
    lambda p: _scconcrl(p, {"layer": "counts"}, regulators=_some(p), gene_likelihood="nb")
)
