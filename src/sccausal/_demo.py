"""`sccausal demo`: the whole way on simulated cells whose network and response are known."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._steps import Steps, finished, open_folder, quiet_libraries
from sccausal._workflow import FitSettings, prepare, run_pipeline

if TYPE_CHECKING:
    from anndata import AnnData


def run_demo(
    out: Path, *, seed: int = 0, fast: bool = False, overwrite: bool = False, steps: Steps | None = None
) -> dict[str, Any]:
    """Simulate, train, predict, read the network, compare with rules and truth.

    Parameters
    ----------
    out
        Folder of the results.
    seed
        Seed of simulation and training.
    fast
        Few cells, genes and epochs.
    overwrite
        Start again in a folder that holds an earlier demo.
    steps
        How to report.

    Returns
    -------
    The summary that is also written to ``summary.json``.
    """
    steps = steps or Steps()
    start = time.perf_counter()
    with quiet_libraries():
        known = open_folder(out, {"command": "demo", "seed": seed, "fast": fast}, overwrite)
        earlier = finished(out, steps) if known else None
        if earlier is not None:
            return earlier
        with steps("Simulate 6 cell types in 3 batches, half of the cells stimulated, with a known network"):
            adata = simulate(seed, fast)
            truth = adata.uns["truth"]
            steps.say(
                f"{adata.n_obs} cells x {adata.n_vars} genes, {len(truth['network'])} edges; "
                f"varsortability {truth['varsortability']:.2f}, R2-sortability {truth['r2_sortability']:.2f} "
                "(0.5: the order of the genes cannot be read off simple statistics)"
            )
            adata.write_h5ad(out / "simulated.h5ad")
        settings = FitSettings(
            condition_key="condition",
            control="control",
            labels_key="cell_type",
            batch_key="batch",
            n_genes=0,
            epochs=3 if fast else None,
            regulators=tuple(adata.var_names[adata.var["is_regulator"]]),
            seed=seed,
        )
        network, effects = truth["network"], truth["condition_effects"]
        summary = run_pipeline(prepare(adata, settings), out, settings, steps, resume=known, truth=network)
        _against_truth(out, effects, steps)
    steps.console.print(f"[bold]Done in {time.perf_counter() - start:.0f} s[/]")
    return summary


def simulate(seed: int, fast: bool) -> AnnData:
    """Cells of the demo."""
    from sccausal import datasets

    # strength and spread are such that, as in measured responses of blood cells to interferon, some hundred genes
    # respond and the largest changes are by factors of three to ten
    return datasets.simulate_perturb_seq(
        n_cells=600 if fast else 4000,
        n_genes=100 if fast else 1000,
        n_targets=5 if fast else 20,
        n_types=6,
        n_batches=3,
        confounded=0.3,
        condition=True,
        condition_strength=0.5,
        type_response=0.25,
        seed=seed,
    )


def _against_truth(out: Path, effects: pd.DataFrame, steps: Steps) -> None:
    """Predicted change of the held-out type against the noise-free one."""
    import anndata as ad

    predicted = ad.read_h5ad(out / "predictions.h5ad")
    kinds = predicted.obs["cell_type"].astype(str)
    source = ad.read_h5ad(out / "cells.h5ad")
    rows = []
    for kind in kinds.unique():
        here = predicted[(kinds == kind).to_numpy()]
        before = source[here.obs["source_cell"].astype(str).to_numpy()]
        change = np.asarray(here.X.mean(axis=0)).ravel() - np.asarray(before.X.mean(axis=0)).ravel()
        true = effects[kind].reindex(predicted.var_names).to_numpy()
        top = np.argsort(-np.abs(true))[:100]
        rows.append((kind, np.corrcoef(change, true)[0, 1], np.corrcoef(change[top], true[top])[0, 1]))
    frame = pd.DataFrame(rows, columns=["held-out type", "r, all genes", "r, top 100 genes"])
    steps.table(frame, "Predicted change against the true, noise-free one")
