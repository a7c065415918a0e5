"""What each part of ScConCRL is worth: the same model with one part off, on a simulation and on a real set.

Simulation: cells of two batches confounded with the condition; scored on the held-out cell type's response, on the gene
network (EPR, also against the network learned from each batch alone) and on what a fresh probe can read from n^x.
Real: blood dendritic cells of two batches, scored by scib-metrics on integrated expression.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _common import Results, clock, parser, show
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import sccausal as scc
from sccausal import metrics

PARTS: dict[str, dict] = {
    "full": {},
    "without adversary": {"batch_adversary_weight": 0.0},
    "without L_u": {"guide_weight": 0.0},
    "with a DAG constraint": {"acyclicity": "logdet"},
    "graph from a random start": {"graph_start": "random"},
    "without sparsity": {"sparsity_weight": 0.0},
    "batches in the paper's form": {"batch_response": "paper"},
    "without population loss": {"population_weight": 0.0},
    "paper's response": {"response": "paper"},
    "without domain terms": {"domains": False},
}


def simulated(seed: int, small: bool) -> ad.AnnData:
    adata = scc.datasets.simulate_perturb_seq(
        n_cells=1200 if small else 3000,
        n_genes=100 if small else 300,
        n_targets=0,
        n_types=5,
        n_batches=2,
        confounded=0.6,
        condition=True,
        seed=seed,
    )
    adata.X = adata.layers["counts"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def fit(adata: ad.AnnData, seed: int, domains: bool = True, condition: bool = True, **init) -> scc.ScConCRL:
    keys: dict = {"labels_key": "cell_type"} if condition else {}
    if domains:
        keys["batch_key"] = "batch" if adata.obs["batch"].nunique() > 1 else None
    if condition:
        keys |= {"condition_key": "condition", "control": "control"}
    scvi.settings.seed = seed
    scc.ScConCRL.setup_anndata(adata, **keys)
    model = scc.ScConCRL(adata, **init)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model


def leak(model, adata: ad.AnnData) -> float:
    """Accuracy of a fresh linear probe that reads the batch from n^x, minus that of the most frequent batch."""
    nx = model.get_latent_representation(adata, representation="nx")
    batch = adata.obs["batch"].to_numpy()
    score = cross_val_score(LogisticRegression(max_iter=500), nx, batch, cv=3).mean()
    return float(score - adata.obs["batch"].value_counts(normalize=True).max())


def on_simulation(name: str, init: dict, seed: int, small: bool) -> dict[str, float]:
    adata = simulated(seed, small)
    held_out = adata.obs["cell_type"].cat.categories[0]
    is_test = ((adata.obs["cell_type"] == held_out) & (adata.obs["condition"] != "control")).to_numpy()
    train = adata[~is_test].copy()
    model = fit(train, seed, **init)
    # batch and condition are confounded: over all batches the observed change would hold the batch as well
    mine = adata[adata.obs["cell_type"] == held_out]
    batch = pd.crosstab(mine.obs["batch"], mine.obs["condition"]).min(axis=1).idxmax()
    mine = mine[mine.obs["batch"] == batch]
    control = mine[mine.obs["condition"] == "control"].copy()
    test = mine[mine.obs["condition"] != "control"].copy()
    table = scc.tl.compare(model, test, control=control, baselines=["MeanShift"], seed=seed)
    mine = table[table.method == "ScConCRL"].set_index("metric")["value"]
    graph = metrics.graph_scores(model.grn.network(), adata.uns["truth"]["network"]).set_index("metric")["value"]
    return {
        "nmse_top": mine["nmse_top"],
        "energy_distance": mine["energy_distance"],
        "rule_nmse_top": table[table.method == "mean shift"].set_index("metric")["value"]["nmse_top"],
        "epr": graph["epr"],
        "auprc_ratio": graph["auprc_ratio"],
        "batch_leak_nx": leak(model, train),
    }


def one_batch_networks(seed: int, small: bool) -> dict[str, float]:
    adata = simulated(seed, small)
    out = {}
    for batch in adata.obs["batch"].unique():
        model = fit(adata[adata.obs["batch"] == batch].copy(), seed, condition=False)
        graph = metrics.graph_scores(model.grn.network(), adata.uns["truth"]["network"]).set_index("metric")["value"]
        out[f"epr_{batch}_alone"] = graph["epr"]
    return out


def on_blood(adata: ad.AnnData, init: dict, seed: int) -> dict[str, float]:
    adata = adata.copy()
    model = fit(adata, seed, condition=False, **init)
    expression = np.asarray(model.get_normalized_expression(adata, denoise=True))
    table = metrics.integration_scores(
        adata, batch_key="batch", labels_key="cell_type", expression={"integrated": expression}
    )
    keep = ["bio_conservation", "batch_correction", "total"]
    return {f"blood_{k}": float(table.loc["integrated", k]) for k in keep} | {"blood_leak_nx": leak(model, adata)}


def run(args) -> Results:
    results = Results(args.out)
    blood = sc.read_h5ad(args.data / "blood_dc_batch.h5ad")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name, init in PARTS.items():
            if f"{name}/{seed}" in results.done:
                continue
            with clock() as t:
                scores = on_simulation(name, init, seed, args.small)
                if "response" not in name and "population" not in name:
                    scores |= on_blood(blood, init, seed)
            results.add(f"{name}/{seed}", part=name, seed=seed, seconds=t["seconds"], **scores)
        if f"one batch/{seed}" not in results.done:
            results.add(f"one batch/{seed}", part="each batch alone", seed=seed, **one_batch_networks(seed, args.small))
    return results


def main() -> None:
    args = parser(__doc__ or "", default_out="ablation.jsonl").parse_args()
    results = Results(args.out) if args.report else run(args)
    frame: pd.DataFrame = results.frame().drop(columns=["key", "seed"])
    mean = frame.groupby("part", sort=False).mean(numeric_only=True)
    show(mean, "One part off at a time, mean over seeds")


if __name__ == "__main__":
    main()
