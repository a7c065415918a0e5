"""Integration of batches (B9): expression against expression, latent against latent, beside scVI and the raw data.

Each batch is also once a query that the trained model has never seen; scVI's queries are mapped with scArches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _common import Results, clock, parser, show
from scipy import sparse

import sccausal as scc
from sccausal import metrics
from sccausal.benchmark.tasks.integrate import read_pancreas


def pancreas(data: Path) -> ad.AnnData:
    adata = read_pancreas(data / "pancreas_two_batch.h5ad")
    # all genes as regulators cost twenty times as much a step
    adata.var["is_regulator"] = adata.var_names.isin((data / "priors" / "tf_human.txt").read_text().split())
    return adata


def blood(data: Path) -> ad.AnnData:
    return sc.read_h5ad(data / "blood_dc_batch.h5ad")


DATA = {
    "pancreas": (pancreas, {"layer": "counts"}, {"gene_likelihood": "nb"}),
    "blood_dc": (blood, {}, {"gene_likelihood": "normal"}),
}


def scvi_outputs(adata: ad.AnnData, setup: dict, init: dict, seed: int) -> dict[str, np.ndarray]:
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch", **setup)
    model = scvi.model.SCVI(adata, **init)
    model.train(accelerator="cpu", enable_progress_bar=False)
    expression = model.get_normalized_expression(
        transform_batch=list(adata.obs["batch"].unique()), library_size=1e4, return_numpy=True
    )
    if init["gene_likelihood"] != "normal":
        expression = np.log1p(expression)
    return {"scVI latent": model.get_latent_representation(), "scVI expression": expression}


def our_model(adata: ad.AnnData, seed: int, **init):
    scvi.settings.seed = seed
    several = adata.obs["batch"].nunique() > 1
    scc.ScConCRL.setup_anndata(adata, batch_key="batch" if several else None)
    known = "is_regulator" if "is_regulator" in adata.var else None
    model = scc.ScConCRL(adata, align_queries=not several, regulators=known, **init)
    model.train(accelerator="cpu", enable_progress_bar=False)
    return model, adata


def our_outputs(model, adata: ad.AnnData) -> dict[str, np.ndarray]:
    return {
        "ScConCRL latent": model.get_latent_representation(adata, representation="integrated"),
        "ScConCRL latent n^x": model.get_latent_representation(adata, representation="nx"),
        "ScConCRL expression": np.asarray(model.get_normalized_expression(adata, denoise=True)),
        "ScConCRL expression, each gene's own": np.asarray(model.get_normalized_expression(adata)),
    }


def paper_outputs(adata: ad.AnnData, seed: int) -> dict[str, np.ndarray]:
    """One prior per batch, trained by the ELBO; n^x and expression rendered gene by gene."""
    model, cells = our_model(adata, seed, batch_response="paper")
    return {
        "paper's form latent n^x": model.get_latent_representation(cells, representation="nx"),
        "paper's form expression": np.asarray(model.get_normalized_expression(cells)),
    }


def raw_outputs(adata: ad.AnnData) -> dict[str, np.ndarray]:
    return {"raw expression": np.asarray(adata.X.toarray() if sparse.issparse(adata.X) else adata.X)}


def online(adata: ad.AnnData, setup: dict, init: dict, seed: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Each batch once as query: trained on the others, applied to all cells."""
    for query in adata.obs["batch"].unique():
        is_query = (adata.obs["batch"] == query).to_numpy()
        model, reference = our_model(adata[~is_query].copy(), seed)
        mapped, own = our_outputs(model, adata[is_query].copy()), our_outputs(model, reference)
        outputs = {}
        for name, values in own.items():
            outputs[name] = np.empty((adata.n_obs, values.shape[1]), dtype=np.float32)
            outputs[name][~is_query], outputs[name][is_query] = values, mapped[name]
        yield str(query), outputs


def run(args) -> Results:
    results = Results(args.out)
    for name, (read, setup, init) in DATA.items():
        adata = read(args.data)
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            jobs = {
                "raw": lambda a=adata: raw_outputs(a),
                "scVI": lambda a=adata, s=seed, k=setup, i=init: scvi_outputs(a.copy(), k, i, s),
                "paper": lambda a=adata, s=seed: paper_outputs(a.copy(), s),
                "ScConCRL": lambda a=adata, s=seed: our_outputs(*our_model(a.copy(), s)),
            }
            for job, make in jobs.items():
                key = f"{name}/{job}/{seed}"
                if key in results.done or job not in args.methods or (job == "raw" and seed > args.first_seed):
                    continue
                with clock() as t:
                    outputs = make()
                results.add(key, data=name, seed=seed, mode="all", seconds=t["seconds"], **scored(adata, outputs))
            if f"{name}/online/{seed}" in results.done or "online" not in args.methods or args.small:
                continue
            found = {f"{q}/{k}": v for q, out in online(adata, setup, init, seed) for k, v in out.items()}
            results.add(f"{name}/online/{seed}", data=name, seed=seed, mode="online", **scored(adata, found))
    return results


def scored(adata: ad.AnnData, outputs: dict[str, np.ndarray]) -> dict:
    cells = adata.copy()
    latents = {name: values for name, values in outputs.items() if "expression" not in name}
    cells.obsm.update(latents)
    table = metrics.integration_scores(
        cells,
        batch_key="batch",
        labels_key="cell_type",
        embeddings=list(latents),
        expression={name: values for name, values in outputs.items() if "expression" in name},
    )
    return {"scores": table.rename_axis("output").reset_index().to_dict("records")}


def main() -> None:
    p = parser(__doc__ or "", default_out="integration.jsonl")
    p.add_argument("--methods", nargs="+", default=["raw", "scVI", "ScConCRL", "paper", "online"])
    args = p.parse_args()
    results = Results(args.out) if args.report else run(args)
    frame = pd.DataFrame({"data": r["data"], "mode": r["mode"], **score} for r in results.rows for score in r["scores"])
    table = frame.groupby(["data", "mode", "output"], sort=False).mean(numeric_only=True)
    show(table[["bio_conservation", "batch_correction", "total"]], "scIB scores, mean over seeds")


if __name__ == "__main__":
    main()
