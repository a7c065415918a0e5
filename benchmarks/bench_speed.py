"""Cells per second of a training step beside scVI at equal width, in the same run (B10)."""

from __future__ import annotations

import scvi
from _common import Results, parser, show

import sccausal as scc
from sccausal.benchmark.tasks.speed import random_counts as counts
from sccausal.benchmark.tasks.speed import throughput


def run(args) -> Results:
    results = Results(args.out)
    n_cells = 2_000 if args.small else 10_000
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        adata = counts(n_cells, 2_000, seed)
        for batch_size in (128, 1024):
            key = f"{batch_size}/{seed}"
            if key in results.done:
                continue
            a = adata.copy()
            scvi.model.SCVI.setup_anndata(a, layer="counts", batch_key="batch")
            rates = {"scVI": throughput(scvi.model.SCVI(a), 3, batch_size)}
            regulators = list(adata.var_names[:200])
            for name, setup, init in (
                ("ScConCRL gaussian", {}, {}),
                ("ScConCRL gaussian, 200 regulators", {}, {"regulators": regulators}),
                (
                    "ScConCRL nb, 200 regulators",
                    {"layer": "counts"},
                    {"regulators": regulators, "gene_likelihood": "nb"},
                ),
            ):
                a = adata.copy()
                scc.ScConCRL.setup_anndata(a, batch_key="batch", **setup)
                rates[name] = throughput(scc.ScConCRL(a, **init), 3, batch_size)
            for name, rate in rates.items():
                results.add(
                    f"{key}/{name}",
                    method=name,
                    batch_size=batch_size,
                    seed=seed,
                    cells_per_second=rate.cells_per_second,
                    ratio_to_scvi=rate.cells_per_second / rates["scVI"].cells_per_second,
                    start_seconds=rate.start_seconds,
                )
            results.add(key, method="(done)", batch_size=batch_size, seed=seed)
    return results


def main() -> None:
    args = parser(__doc__ or "", default_out="speed.jsonl").parse_args()
    results = Results(args.out) if args.report else run(args)
    frame = results.frame().query("method != '(done)'")
    show(
        frame.groupby(["batch_size", "method"], sort=False)[
            ["cells_per_second", "ratio_to_scvi", "start_seconds"]
        ].mean(),
        "Training",
        2,
    )


if __name__ == "__main__":
    main()
