"""Key genes of a condition: truth from one half of the cells (Wilcoxon), scores from a model of the other half.

The plain mean difference of the model's half stands beside the model: a score below it says nothing new about single
genes. Enrichment of the top 100 genes uses gene sets from a GMT file against all measured genes as background.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _common import Results, clock, parser, show
from sklearn.metrics import average_precision_score, roc_auc_score

import sccausal as scc


def differential(adata: ad.AnnData, condition: str) -> pd.Index:
    """Genes at 5 % FDR by Wilcoxon, with a mean change of at least 0.1."""
    sc.tl.rank_genes_groups(adata, condition, groups=["stimulated"], reference="control", method="wilcoxon")
    table = sc.get.rank_genes_groups_df(adata, "stimulated")
    stimulated = (adata.obs[condition] == "stimulated").to_numpy()
    change = np.asarray(adata.X[stimulated].mean(0) - adata.X[~stimulated].mean(0)).ravel()
    large = adata.var_names[np.abs(change) >= 0.1]
    return pd.Index(table.loc[table.pvals_adj < 0.05, "names"]).intersection(large)


def scores(score: pd.Series, truth: pd.Index, prefix: str) -> dict[str, float]:
    label = score.index.isin(truth)
    top = score.sort_values(ascending=False).index[: len(truth)]
    return {
        f"{prefix}_auroc": float(roc_auc_score(label, score)),
        f"{prefix}_auprc": float(average_precision_score(label, score)),
        f"{prefix}_early_precision": float(top.isin(truth).mean()),
    }


def gene_sets(path: Path) -> dict[str, list[str]]:
    with gzip.open(path, "rt") as handle:
        rows = [line.rstrip("\n").split("\t") for line in handle]
    return {row[0]: [g for g in row[2:] if g] for row in rows}


def enrichment(top: list[str], background: list[str], sets: dict[str, list[str]]) -> list[tuple[str, float, str]]:
    import gseapy

    found = gseapy.enrich(gene_list=top, gene_sets=sets, background=background, outdir=None, no_plot=True).results
    found = found.sort_values("Adjusted P-value").head(8)
    return list(zip(found["Term"], found["Adjusted P-value"], found["Overlap"], strict=True))


def run(args) -> Results:
    results = Results(args.out)
    adata = sc.read_h5ad(args.data / "kang_ifnb.h5ad")
    background = list(adata.var_names)
    known = (args.data / "priors" / "tf_human.txt").read_text().split()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        if str(seed) in results.done:
            continue
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        judged, used = adata[order[: adata.n_obs // 2]].copy(), adata[order[adata.n_obs // 2 :]].copy()
        keys = {"condition_key": "condition", "control": "control", "labels_key": "cell_type"}
        scc.pp.select_genes(used, n_top=1000 if args.small else 2000, subset=True, **keys)
        truth = differential(judged[:, used.var_names].copy(), "condition")
        scvi.settings.seed = seed
        scc.ScConCRL.setup_anndata(used, **keys)
        with clock() as t:
            model = scc.ScConCRL(used, regulators=list(used.var_names.intersection(known)))
            model.train(accelerator="cpu", enable_progress_bar=False)
        table = scc.tl.key_genes(model).set_index("gene")
        top = list(table.index[:100])
        values = scores(table["score"], truth, "model") | scores(table["abs_log_fc"].astype(float), truth, "log_fc")
        found = enrichment(top, background, gene_sets(args.data / "priors/go_bp_2021.gmt.gz"))
        results.add(
            str(seed),
            seed=seed,
            seconds=t["seconds"],
            n_truth=len(truth),
            overlap_top=float(np.isin(top, truth).mean()),
            top=top[:20],
            enrichment=found,
            **values,
        )
    return results


def main() -> None:
    args = parser(__doc__ or "", default_out="key_genes.jsonl").parse_args()
    results = Results(args.out) if args.report else run(args)
    frame = results.frame()
    numbers = frame.drop(columns=["key", "seed"]).select_dtypes("number").mean()
    show(numbers.rename_axis("score").to_frame("mean"), "Key genes, mean over splits")
    terms = pd.DataFrame(frame["enrichment"].iloc[0], columns=["term", "adjusted p", "overlap"])
    terms["adjusted p"] = terms["adjusted p"].map("{:.1e}".format)
    show(terms, "Enrichment of the top 100, first split")


if __name__ == "__main__":
    main()
