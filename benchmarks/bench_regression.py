"""Bagged ridge and consensus communities: seconds, and agreement with CellOracle where it is installed (same input).

CellOracle's bags follow Python's hash seed: it is compared with itself in a process with another one.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from _common import Results, clock, parser, show

from sccausal.datasets import simulate_perturb_seq
from sccausal.grn import Network, bagged_ridge, base_network, find_communities, network_from_celloracle
from sccausal.grn._consensus import WeightedGraph, leiden_runs


def simulated(n_cells: int, n_genes: int, seed: int):
    """Cells, and a base network of true edges among 25 random ones per gene."""
    adata = simulate_perturb_seq(n_cells, n_genes, 4, seed=seed, sortability=False, n_regulators=min(150, n_genes // 4))
    truth, rng = adata.uns["truth"]["network"], np.random.default_rng(seed)
    drawn = pd.DataFrame(
        {
            "source": rng.choice(truth["source"].unique(), 25 * n_genes),
            "target": rng.choice(adata.var_names, 25 * n_genes),
        }
    )
    pairs = pd.concat([truth[["source", "target"]], drawn]).drop_duplicates()
    pairs = pairs[pairs["source"] != pairs["target"]].sort_values(["source", "target"])
    return adata, base_network(pairs)


def celloracle_links(adata, base: Network, n_jobs: int):
    """CellOracle's imputed cells, its network, and the seconds of ``get_links`` alone."""
    import celloracle

    adata.obs["cell_type"] = pd.Categorical(["all"] * adata.n_obs)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2)).astype(np.float32)
    adata.uns = {"cell_type_colors": ["#0072B2"]}
    oracle = celloracle.Oracle()
    oracle.import_anndata_as_raw_count(adata, cluster_column_name="cell_type", embedding_name="X_umap")
    oracle.import_TF_data(TF_info_matrix=base.to_celloracle())
    oracle.perform_PCA()
    oracle.knn_imputation(n_pca_dims=20, k=20, balanced=True, b_sight=160, b_maxl=80, n_jobs=1)
    with clock() as t:
        links = oracle.get_links(cluster_name_for_GRN_unit="cell_type", alpha=10, verbose_level=0, n_jobs=n_jobs)
    values = oracle.adata.layers["imputed_count"]
    return values, list(map(str, oracle.adata.var_names)), network_from_celloracle(links), t["seconds"]


def links_under(hash_seed: int, n_cells: int, n_genes: int, seed: int) -> Network:
    """CellOracle's network of the same cells in a process of its own, under a hash seed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "links.csv"
        command = [sys.executable, __file__, "--links", str(out), "--cells", str(n_cells), "--genes", str(n_genes)]
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        subprocess.run([*command, "--first-seed", str(seed)], check=True, env=environment)
        return Network(pd.read_csv(out))


def agreement(a: Network, b: Network, top: int = 500) -> dict[str, float]:
    both = a.to_frame().merge(b.to_frame(), on=["source", "target"])
    first = [set(zip(f["source"][:top], f["target"][:top], strict=True)) for f in (a.to_frame(), b.to_frame())]
    return {
        "r": float(np.corrcoef(both["weight_x"], both["weight_y"])[0, 1]),
        f"top {top}": len(first[0] & first[1]) / top,
    }


def run(args) -> Results:
    results = Results(args.out)
    n_cells, n_genes = (500, 300) if args.small else (5000, 1500)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        key = f"regression/{n_cells}/{n_genes}/{seed}"
        if key not in results.done:
            results.add(key, seconds=regression(n_cells, n_genes, seed, args.threads))
        key = f"leiden/{seed}"
        if key not in results.done:
            results.add(key, seconds=leiden(50 if args.small else 1000, seed, args.threads))
    return results


def regression(n_cells: int, n_genes: int, seed: int, n_jobs: int) -> dict[str, float]:
    adata, base = simulated(n_cells, n_genes, seed)
    row: dict[str, float] = {}
    values, genes = np.log1p(adata.X.toarray()), list(adata.var_names)
    theirs = None
    if importlib.util.find_spec("celloracle") is not None:
        values, genes, theirs, row["CellOracle"] = celloracle_links(adata, base, n_jobs)
    with clock() as t:
        ours = bagged_ridge(values, genes, base, scale_targets=False, min_cells=1, seed=seed, n_jobs=n_jobs)
    row["bagged_ridge"] = t["seconds"]
    again = bagged_ridge(values, genes, base, scale_targets=False, min_cells=1, seed=seed + 1000, n_jobs=n_jobs)
    row |= {f"another seed, {k}": v for k, v in agreement(ours, again).items()}
    if theirs is not None:
        row |= {f"CellOracle, {k}": v for k, v in agreement(ours, theirs).items()}
        row["times faster"] = row["CellOracle"] / row["bagged_ridge"]
        itself = agreement(*(links_under(h, n_cells, n_genes, seed) for h in (1, 2)))
        row |= {f"CellOracle with itself, {k}": v for k, v in itself.items()}
    return row | {"edges": float(len(ours))}


def leiden(n_runs: int, seed: int, n_jobs: int) -> dict[str, float]:
    """Twelve resolutions on 150 regulators in six modules, about 2000 edges."""
    rng = np.random.default_rng(seed)
    module = np.repeat(np.arange(6), 25)
    weight = (rng.random((150, 150)) < np.where(module[:, None] == module, 0.25, 0.06)) * rng.lognormal(
        0, 0.7, (150, 150)
    )
    np.fill_diagonal(weight, 0)
    network = Network.from_matrix(weight, [f"T{i}" for i in range(150)])
    with clock() as t:
        found = find_communities(network, n_runs=n_runs, n_jobs=n_jobs, seed=seed)
    graph = WeightedGraph.from_matrix(found.strengths.to_numpy())
    fewer = max(2, n_runs // 20)
    with clock() as plain:
        leiden_runs(graph, [1.0, 1.5], fewer, backend="leidenalg", n_iterations=2, seed=seed)
    return {
        "runs": 12.0 * n_runs,
        "find_communities": t["seconds"],
        "leidenalg, one process (from fewer runs)": plain["seconds"] / (2 * fewer) * 12 * n_runs,
    }


def report(results: Results) -> None:
    for kind, title in (
        ("regression", "Bagged ridge (seconds, and agreement of weights)"),
        ("leiden", "Consensus Leiden on 150 regulators (seconds)"),
    ):
        rows = [r["seconds"] for r in results.rows if r["key"].startswith(kind + "/")]
        if rows:
            show(pd.DataFrame(rows).median().rename("median").rename_axis("what").to_frame(), title)


if __name__ == "__main__":
    p = parser(__doc__, default_out="regression.jsonl")
    p.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="workers (joblib)")
    p.add_argument("--links", type=Path, help="write CellOracle's network of --cells and --genes there, and stop")
    p.add_argument("--cells", type=int, default=500)
    p.add_argument("--genes", type=int, default=300)
    arguments = p.parse_args()
    if arguments.links:
        cells, base = simulated(arguments.cells, arguments.genes, arguments.first_seed)
        celloracle_links(cells, base, arguments.threads)[2].to_frame().to_csv(arguments.links, index=False)
        sys.exit()
    report(Results(arguments.out) if arguments.report else run(arguments))
