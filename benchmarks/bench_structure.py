"""`tl.structure` at scale (B8) beside ridge partial correlation and DAGMA, and observed networks on GSD (B7, tuning).

Cells of linear SEMs with noise variances of their own, hard or soft interventions on half of the genes, everything
z-scored. The reporting seeds start at 100; settings were chosen on seeds below 10. `--dagma` adds DAGMA where it
is installed.
"""

from __future__ import annotations

import os
from contextlib import redirect_stderr

import anndata as ad
import numpy as np
import pandas as pd
from _common import Results, clock, parser, show

import sccausal as scc
from sccausal.benchmark.tasks._networks import LINEAR_KINDS as KINDS
from sccausal.benchmark.tasks._networks import best_f1_cut
from sccausal.benchmark.tasks._networks import linear_cells as simulate
from sccausal.grn._elastic_net import ridge_partial_correlation


def graph_errors(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """SHD (a turned, missing or extra edge is one error) and direction accuracy (an absent or undirected edge: 0.5)."""
    differs = (found != 0) != (truth != 0)
    i, j = np.nonzero(truth)
    forward, back = np.abs(found[i, j]), np.abs(found[j, i])
    skeleton = (found != 0) | (found != 0).T
    true_skeleton = (truth != 0) | (truth != 0).T
    return {
        "shd": float(np.triu(differs | differs.T, 1).sum()),
        "shd_skeleton": float(np.triu(skeleton != true_skeleton, 1).sum()),
        "direction": float(np.mean(np.where(forward == back, 0.5, forward > back))),
        "n_edges": float((found != 0).sum()),
        "n_true": float((truth != 0).sum()),
    }


def ridge_best_cut(x: np.ndarray, truth: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    """Ridge partial correlations at the cut of best F1 against the truth, the most favourable one."""
    return best_f1_cut(ridge_partial_correlation(x, ridge), truth)


def dagma(x: np.ndarray) -> np.ndarray:
    from dagma.linear import DagmaLinear

    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # its progress bar
        return DagmaLinear(loss_type="l2").fit(x, lambda1=0.03, w_threshold=0.1, warm_iter=5_000, max_iter=10_000)


def methods(adata: ad.AnnData, truth: np.ndarray, kind: str, with_dagma: bool):
    x = np.asarray(adata.X)
    options = {"intervention_key": "guide", "control": "control", "kind": "soft" if kind == "soft" else "hard"}

    def structure(**extra) -> np.ndarray:
        network = scc.tl.structure(adata, **options, **extra)
        return np.asarray(network.to_matrix(list(adata.var_names)))

    yield "ridge partial, best-F1 cut", lambda: ridge_best_cut(x, truth)
    yield "tl.structure", structure
    yield "tl.structure, log-det path only", lambda: structure(refine=False)
    if with_dagma:
        yield "DAGMA (no interventions)", lambda: dagma(x)


def run_scale(args, results: Results) -> None:
    sizes = {50: (500, 20)} if args.small or args.sizes == [50] else {200: (1000, 20), 1000: (1000, 10)}
    for d, (n_control, n_each) in sizes.items():
        if args.sizes and d not in args.sizes:
            continue
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for kind in KINDS if d <= 200 else args.large_kinds:
                adata, truth = simulate(d, kind, n_control, n_each, seed)
                for name, call in methods(adata, truth, kind, args.dagma):
                    key = f"scale/{d}/{kind}/{seed}/{name}"
                    if key in results.done:
                        continue
                    with clock() as t:
                        found = call()
                    scores = graph_errors(found, truth)
                    results.add(key, d=d, kind=kind, seed=seed, method=name, seconds=t["seconds"], **scores)


def run_gsd(args, results: Results) -> None:
    folder = args.data / "beeline" / "GSD"
    if not folder.exists() or "gsd" in results.done:
        return
    adata, truth = ad.read_h5ad(folder / "expression.h5ad"), pd.read_csv(folder / "network.csv")
    with clock() as t:
        network = scc.tl.structure(adata)
    table = scc.metrics.graph_scores(network, truth).set_index("metric")
    columns = ["value", "null_shuffled", "null_degree", "n_edges_taken"]
    values = {m: table.loc[m, columns].to_dict() for m in ("epr", "auprc_ratio", "auroc")}
    results.add("gsd", seconds=t["seconds"], scores=values)


def report(results: Results) -> None:
    rows = [r for r in results.rows if r["key"].startswith("scale/")]
    if rows:
        columns = ["seconds", "shd", "shd_skeleton", "direction", "n_edges", "n_true"]
        frame = pd.DataFrame(rows).groupby(["d", "kind", "method"])[columns].mean()
        show(frame.reset_index(), "Interventions on half of the genes, z-scored (mean over seeds)")
    for r in results.rows:
        if r["key"] == "gsd":
            show(pd.DataFrame(r["scores"]).T, f"GSD, observed cells ({r['seconds']:.2f} s)")


if __name__ == "__main__":
    p = parser(__doc__, default_out="structure.jsonl")
    p.set_defaults(first_seed=100)
    p.add_argument("--sizes", type=int, nargs="*", help="only these numbers of genes")
    p.add_argument("--dagma", action="store_true", help="run DAGMA too, where it is installed (hours at d = 1000)")
    p.add_argument("--large-kinds", nargs="*", default=["do_shift", "do_random"], help="interventions at d = 1000")
    arguments = p.parse_args()
    found = Results(arguments.out)
    if not arguments.report:
        run_gsd(arguments, found)
        run_scale(arguments, found)
    report(found)
