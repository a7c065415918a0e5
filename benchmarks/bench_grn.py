"""Gene networks against known truth (B7): ScConCRL and `tl.structure` beside simple rules, GENIE3 and RegDiffusion.

Settings of our methods are fixed on GSD and on simulations; mDC is run once. Every row shows the number of edges that
were ranked, and the column-shuffled and node-degree nulls stand in the same table. The simulation has two batches, with
and without confounding with the condition; each method learns from all cells and from each batch alone. RegDiffusion is
run where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _common import Results, clock, parser, show

import sccausal as scc
from sccausal.benchmark.tasks._networks import genie3, pearson, ridge_partial
from sccausal.grn import Network


def regdiffusion(x: np.ndarray, seed: int = 0) -> np.ndarray:
    import regdiffusion as rd

    trainer = rd.RegDiffusionTrainer(x.astype(np.float32), device="cpu", seed=seed, n_steps=1000)
    trainer.train()
    return np.asarray(trainer.get_adj(), dtype=float)  # rows are sources


def scconcrl(adata: ad.AnnData, seed: int, **keys) -> Network:
    scvi.settings.seed = seed
    adata = adata.copy()
    scc.ScConCRL.setup_anndata(adata, **keys)
    model = scc.ScConCRL(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model.grn.network()


def load(data: Path) -> dict[str, tuple[ad.AnnData, dict[str, pd.DataFrame]]]:
    gsd = sc.read_h5ad(data / "beeline/GSD/expression.h5ad")
    mdc = sc.read_h5ad(data / "beeline/mDC/expression.h5ad")
    nets = {n: pd.read_csv(data / f"beeline/mDC/{n}.csv") for n in ("string", "nonspecific", "specific")}
    return {"GSD": (gsd, {"truth": pd.read_csv(data / "beeline/GSD/network.csv")}), "mDC": (mdc, nets)}


def score(key: str, results: Results, net: Network, truths: dict[str, pd.DataFrame], **extra) -> None:
    for name, truth in truths.items():
        values = scc.metrics.graph_scores(net, truth)
        results.add(f"{key}/{name}", truth=name, **extra, **dict(zip(values["metric"], values["value"], strict=True)))


def two_batches(seed: int, confounded: float, small: bool) -> ad.AnnData:
    adata = scc.datasets.simulate_perturb_seq(
        n_cells=1200 if small else 3000,
        n_genes=100 if small else 300,
        n_targets=0,
        n_types=3,
        n_batches=2,
        confounded=confounded,
        condition=True,
        seed=seed,
        sortability=False,
    )
    adata.X = adata.layers["counts"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def on_batches(results: Results, seed: int, small: bool) -> None:
    """All cells of two batches, or one batch alone; methods that know the batch beside those that do not."""
    domains = {"batch_key": "batch", "condition_key": "condition", "control": "control", "labels_key": "cell_type"}

    def values(a: ad.AnnData) -> np.ndarray:
        return np.asarray(a.X.todense(), dtype=float)

    rules: dict[str, Callable[[ad.AnnData, bool], Network]] = {
        "pearson": lambda a, _: Network.from_matrix(pearson(values(a)), list(a.var_names)),
        "ridge partial": lambda a, _: Network.from_matrix(ridge_partial(values(a)), list(a.var_names)),
        "GENIE3": lambda a, _: Network.from_matrix(
            genie3(values(a), np.arange(a.n_vars), seed=seed), list(a.var_names)
        ),
        "tl.structure": lambda a, both: scc.tl.structure(a, batch_key="batch" if both else None),
        "tl.structure, no batches": lambda a, _: scc.tl.structure(a),
        "ScConCRL": lambda a, both: scconcrl(a, seed, **{k: v for k, v in domains.items() if both or k != "batch_key"}),
        "ScConCRL, no domains": lambda a, _: scconcrl(a, seed),
    }
    if not small and find_spec("regdiffusion"):
        rules["RegDiffusion"] = lambda a, _: Network.from_matrix(regdiffusion(values(a), seed), list(a.var_names))
    for confounded in (0.0, 0.6, 0.9):
        adata = two_batches(seed, confounded, small)
        parts = {"all": adata} | {b: adata[adata.obs["batch"] == b].copy() for b in adata.obs["batch"].cat.categories}
        for name, make in rules.items():
            for part, cells in parts.items():
                key = f"two batches {confounded}/{name}/{part}/{seed}"
                if any(k.startswith(key + "/") for k in results.done) or (part != "all" and "no " in name):
                    continue
                with clock() as t:
                    net = make(cells, part == "all")
                facts = {"data": f"two batches, confounded {confounded}", "method": f"{name}, {part} cells"}
                truth = {"simulated": adata.uns["truth"]["network"]}
                score(key, results, net, truth, **facts, seed=seed, seconds=t["seconds"])


def run(args) -> Results:
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        on_batches(results, seed, args.small)
    for data_name, (adata, truths) in load(args.data).items():
        x = np.asarray(adata.X.todense() if hasattr(adata.X, "todense") else adata.X, dtype=float)
        genes = list(adata.var_names)
        regulators = np.arange(x.shape[1])
        rules: dict[str, Callable[[int], Network]] = {
            "pearson": lambda s, x=x, g=genes: Network.from_matrix(pearson(x), g),
            "ridge partial": lambda s, x=x, g=genes: Network.from_matrix(ridge_partial(x), g),
            "GENIE3": lambda s, x=x, g=genes, r=regulators: Network.from_matrix(genie3(x, r, seed=s), g),
            "tl.structure": lambda s, a=adata: scc.tl.structure(a),
            "ScConCRL": lambda s, a=adata: scconcrl(a, s),
        }
        if not args.small and find_spec("regdiffusion"):
            rules["RegDiffusion"] = lambda s, x=x, g=genes: Network.from_matrix(regdiffusion(x, s), g)
        for name, make in rules.items():
            seeds = range(args.first_seed, args.first_seed + (args.seeds if name == "ScConCRL" else 1))
            for seed in seeds:
                key = f"{data_name}/{name}/{seed}"
                if any(k.startswith(key + "/") for k in results.done):
                    continue
                with clock() as t:
                    net = make(seed)
                score(key, results, net, truths, data=data_name, method=name, seed=seed, seconds=t["seconds"])
    return results


def main() -> None:
    args = parser(__doc__ or "", default_out="grn.jsonl").parse_args()
    results = Results(args.out) if args.report else run(args)
    frame = results.frame().drop(columns=["key", "seed"])
    show(frame.groupby(["data", "truth", "method"], sort=False).mean(numeric_only=True), "Gene networks")


if __name__ == "__main__":
    main()
