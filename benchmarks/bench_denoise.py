"""Denoising on simulated counts whose clean expression is known, beside raw counts, smoothing and scVI.

Reference and query cells are scored apart. The smoothing is of MAGIC's type: powers of a Markov matrix on the neighbour
graph of principal scores. It sees all cells; ScConCRL and scVI see the reference batches only, and query cells are
mapped afterwards (scVI with scArches).
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import scanpy as sc
import scvi
from _common import Results, clock, parser, show
from scipy import sparse

import sccausal as scc


def normalised(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    adata.X = adata.layers["counts"].copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def smoothed(adata: ad.AnnData, steps: int = 3) -> np.ndarray:
    work = normalised(adata)
    sc.pp.pca(work, n_comps=50)
    sc.pp.neighbors(work, n_neighbors=15)
    graph = work.obsp["connectivities"] + sparse.eye(work.n_obs)
    markov = sparse.diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph
    values = work.X.toarray() if sparse.issparse(work.X) else work.X
    for _ in range(steps):
        values = markov @ values
    return np.asarray(values)


def from_scvi(reference: ad.AnnData, query: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    reference, query = reference.copy(), query.copy()
    scvi.model.SCVI.setup_anndata(reference, layer="counts", batch_key="batch")
    model = scvi.model.SCVI(reference, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)
    batches = list(reference.obs["batch"].unique())
    keep = {"transform_batch": batches, "library_size": 1e4, "return_numpy": True}
    mapped = scvi.model.SCVI.load_query_data(query, model)
    mapped.train(max_epochs=50, accelerator="cpu", plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
    return np.log1p(model.get_normalized_expression(**keep)), np.log1p(mapped.get_normalized_expression(**keep))


def from_ours(reference: ad.AnnData, query: ad.AnnData, denoise: bool = True, **init) -> tuple[np.ndarray, np.ndarray]:
    counts = init.get("gene_likelihood", "gaussian") != "gaussian"
    prepare = (lambda a: a.copy()) if counts else normalised
    reference, query = prepare(reference), prepare(query)
    scc.ScConCRL.setup_anndata(reference, batch_key="batch", layer="counts" if counts else None)
    model = scc.ScConCRL(reference, **init)
    model.train(accelerator="cpu", enable_progress_bar=False)
    out = [np.asarray(model.get_normalized_expression(a, denoise=denoise)) for a in (reference, query)]
    if counts:
        out = [np.log1p(values) for values in out]
    return out[0], out[1]


def agreement(estimate: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """RMSE of all entries, and the mean correlation over cells within a gene (the mean of a gene earns nothing)."""
    e, c = estimate - estimate.mean(0), clean - clean.mean(0)
    norm = np.sqrt((e**2).sum(0) * (c**2).sum(0))
    seen = norm > 1e-8
    return {
        "rmse": float(np.sqrt(((estimate - clean) ** 2).mean())),
        "gene_correlation": float(((e * c).sum(0)[seen] / norm[seen]).mean()),
    }


def run(args) -> Results:
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        n_cells, n_genes = (800, 200) if args.small else (3000, 500)
        adata = scc.datasets.simulate_denoising(n_cells, n_genes, seed=seed)
        is_query = (adata.obs["split"] == "query").to_numpy()
        reference, query = adata[~is_query].copy(), adata[is_query].copy()

        def raw(reference=reference, query=query):
            return tuple(normalised(a).X.toarray() for a in (reference, query))

        def magic_type(adata=adata, is_query=is_query):
            values = smoothed(adata)
            return values[~is_query], values[is_query]

        methods = {
            "raw": raw,
            "MAGIC-type smoothing": magic_type,
            "scVI": lambda r=reference, q=query: from_scvi(r, q),
            "ScConCRL": lambda r=reference, q=query: from_ours(r, q),
            "ScConCRL, each gene's own": lambda r=reference, q=query: from_ours(r, q, denoise=False),
            "ScConCRL, NB": lambda r=reference, q=query: from_ours(r, q, gene_likelihood="nb"),
        }
        for name, make in methods.items():
            if f"{seed}/{name}" in results.done:
                continue
            scvi.settings.seed = seed
            with clock() as t:
                outputs = make()
            parts = zip(("reference", "query"), outputs, (reference, query), strict=True)
            scores = {part: agreement(np.asarray(v), np.asarray(a.layers["clean"])) for part, v, a in parts}
            flat = {f"{part}_{metric}": value for part, s in scores.items() for metric, value in s.items()}
            results.add(f"{seed}/{name}", method=name, seed=seed, seconds=t["seconds"], **flat)
    return results


def main() -> None:
    args = parser(__doc__ or "", default_out="denoise.jsonl").parse_args()
    results = Results(args.out) if args.report else run(args)
    show(results.frame().drop(columns=["key", "seed"]).groupby("method", sort=False).mean(), "Against clean expression")


if __name__ == "__main__":
    main()
