"""CausCell on real cells: a concept set to another value in held-out cells, beside simple rules and scVI."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _causcell import QUIET, bare, dense, fit, leakage
from _common import Results, clock
from anndata import AnnData

import sccausal as scc
from sccausal.metrics import cluster_agreement, energy_distance, pearson_change, variance_ratio

TOTAL = "total"  # counts of a cell over all genes, by which the data were normalised


class Real(NamedTuple):
    adata: AnnData
    concepts: list[str]
    target: str  # concept that is set
    control: str
    by: list[str]  # the other concepts
    finer: str | None = None
    dag: dict[str, list[str]] | None = None  # None where the target is given at random and causes no other concept


def kang(args) -> Real:
    adata = sc.read_h5ad(args.data / "kang_donors.h5ad")
    return Real(adata, ["cell_type", "donor", "condition"], "condition", "control", ["cell_type", "donor"])


def melanoma(args) -> Real:
    adata = sc.read_h5ad(args.data / "melanoma_ici.h5ad")
    adata.obs["treatment"] = np.where(adata.obs["therapy"].astype(str) == "anti-PD1", "anti-PD1", "with anti-CTLA4")
    return Real(
        adata, ["cell_type", "response", "treatment"], "response", "Non-responder", ["cell_type", "treatment"],
        "cell_subtype", {"response": ["treatment"], "cell_type": ["response"]},
    )  # fmt: skip


def papalexi(args) -> Real:
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    strong = ["control", "IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "BRD4", "SMAD4"]
    adata = adata[adata.obs["perturbation"].isin(strong).to_numpy()].copy()
    return Real(adata, ["perturbation", "replicate"], "perturbation", "control", ["replicate"])


def split(real: Real, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Held-out cells, and the combination of target and first other concept that training does not see at all.

    One training serves both tables: held out are a fifth of all cells (ID) and every cell of the combination (OOD).
    """
    rng = np.random.default_rng([seed, 3])
    held = rng.random(real.adata.n_obs) < 0.2
    obs = real.adata.obs[[real.target, *real.by]].astype(str)
    treated = obs[obs[real.target] != real.control]
    sizes = treated.groupby([real.target, real.by[0]]).size()
    level, stratum = list(sizes.index[sizes >= 20])[rng.integers((sizes >= 20).sum())]
    here = (obs[real.by[0]] == stratum).to_numpy()
    held |= here & (obs[real.target] == level).to_numpy()
    # of the cells that are changed to the combination a third is held out, so that none of them was trained on
    held |= here & (obs[real.target] == real.control).to_numpy() & (rng.random(real.adata.n_obs) < 1 / 3)
    return held, (level, stratum)


def real_data(name: str, real: Real, results: Results, args, seed: int) -> None:
    if f"{name}-ID/embeddings/{seed}" in results.done:
        return
    if "counts" in real.adata.layers:
        real.adata.obs[TOTAL] = np.asarray(real.adata.layers["counts"].sum(1)).ravel()
    held, unseen = split(real, seed)
    adata = real.adata
    train = adata[~held].copy()
    n_top = 300 if args.small else 1000
    if adata.n_vars > n_top:
        scc.pp.select_genes(train, n_top)
        adata = adata[:, train.var["selected"].to_numpy()]
        train = adata[~held].copy()
    test = adata[held].copy()
    with clock() as t:
        model = fit(train, real.concepts, seed, args, real.dag)
    models = {"CausCell": model}
    if real.dag:
        models["CausCell, dag=None"] = fit(train, real.concepts, seed, args)
    for method, pair, cells, truth, source in predictions(models, real, train, test, seed, args):
        task, group = f"{name}-{'OOD' if pair == unseen else 'ID'}", " in ".join(pair)
        results.add(
            f"{task}/{method}/{group}/{seed}", task=task, method=method, seed=seed, group=group,
            n_true=len(truth), n_source=len(source), **distances(cells, truth, source),
        )  # fmt: skip
    labels = test.obs[[real.target, real.by[0]]].astype(str)
    seen = test[(labels != list(unseen)).any(axis=1).to_numpy()].copy()
    extra = leakage(model, train, seen, real.concepts)
    if real.finer:
        z = model.get_concept_embeddings(bare(seen), sample=True)[real.by[0]]
        found = cluster_agreement(z, seen.obs[real.finer].astype(str).to_numpy()).set_index("metric")["value"]
        extra |= {"nmi_finer": float(found["nmi"]), "ari_finer": float(found["ari"])}
    results.add(
        f"{name}-ID/embeddings/{seed}", task=f"{name}-ID-blocks", method="CausCell", seed=seed, seconds=t["seconds"],
        **extra,
    )  # fmt: skip


def predictions(models, real: Real, train: AnnData, test: AnnData, seed: int, args):
    """Method, target level and stratum, predicted cells, true cells and cells started from."""
    x, y = dense(train), dense(test)
    label, asked = train.obs[real.target].astype(str).to_numpy(), test.obs[real.target].astype(str).to_numpy()
    first, first_test = train.obs[real.by[0]].astype(str).to_numpy(), test.obs[real.by[0]].astype(str).to_numpy()
    outside = scvi_cells(real, train, test, seed, args)
    for level in sorted(set(asked) - {real.control}):
        for stratum in sorted(set(first_test)):
            true = (asked == level) & (first_test == stratum)
            start = (asked == real.control) & (first_test == stratum)
            if true.sum() < 10 or start.sum() < 10:
                continue
            pair = (level, stratum)
            truth, source = y[true], y[start]
            for method, cells in simple(x, label, first, source, len(truth), level, stratum, real.control):
                yield method, pair, cells, truth, source
            for method, cells in of_models(models, bare(test[start]), {real.target: level}, seed):
                yield method, pair, cells, truth, source
            if level in outside:
                yield "scVI", pair, outside[level][start], truth, source


def simple(x, label, first, source, n_drawn: int, level: str, stratum: str, control: str):
    """Rules that need no model, from training cells ``x`` with their labels and strata."""
    yield "no change", source
    pooled = x[label == level].mean(0) - x[label == control].mean(0)
    yield "mean shift", np.maximum(source + pooled, 0)
    here = first == stratum
    seen = (label == level) & here
    mean = x[here & (label == control)].mean(0) + pooled
    if seen.sum() >= 10:
        own = x[seen].mean(0) - x[here & (label == control)].mean(0)
        yield "mean shift of the stratum", np.maximum(source + own, 0)
        mean = x[seen].mean(0)
    yield "label mean", np.repeat(np.maximum(mean, 0)[None], n_drawn, 0)


def of_models(models, cells: AnnData, do: dict[str, str], seed: int):
    """Counterfactual cells of each model; without edges ``hold`` is ``do``."""
    for name, model in models.items():
        plain = np.asarray(model.counterfactual(cells, do, seed=seed).X)
        yield name, plain
        if name == "CausCell":
            held = np.asarray(model.counterfactual(cells, do, "hold", seed=seed).X) if model.dag else plain
            yield "CausCell, hold", held
            yield "CausCell, shift", np.asarray(model.counterfactual(cells, do, "shift", seed=seed).X)
            drawn = model.counterfactual(cells, do, "hold", abduction="shared", seed=seed)
            yield "CausCell, shared noise", np.asarray(drawn.X)


def scvi_cells(real: Real, train: AnnData, test: AnnData, seed: int, args) -> dict[str, np.ndarray]:
    """Cells drawn by scVI for all test cells decoded for each level, after about 2 000 updates; none without counts.

    Counts are drawn at the size of the cell and log-normalised as the data are: denoised means have no sampling noise
    and lie far from any cell.
    """
    if "counts" not in train.layers:
        return {}
    scvi.settings.seed = seed
    cells = AnnData(train.layers["counts"].copy(), obs=train.obs.copy(), var=pd.DataFrame(index=train.var_names))
    scvi.model.SCVI.setup_anndata(cells, batch_key=real.target, categorical_covariate_keys=real.by)
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    epochs = int(np.clip(2000 * 128 / cells.n_obs, 20, 400))
    model.train(10 if args.small else epochs, train_size=1.0, **QUIET)
    query = AnnData(test.layers["counts"].copy(), obs=test.obs.copy(), var=pd.DataFrame(index=test.var_names))
    theta = model.module.px_r.detach().exp().numpy()
    out = {}
    for level in sorted(set(train.obs[real.target].astype(str)) - {real.control}):
        mean = model.get_normalized_expression(
            query, transform_batch=level, library_size="latent", n_samples=1, return_numpy=True
        )
        rng = np.random.default_rng([seed, 11])
        drawn = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape))
        out[level] = np.log1p(drawn * 1e4 / test.obs[TOTAL].to_numpy()[:, None]).astype(np.float32)
    return out


def distances(cells: np.ndarray, truth: np.ndarray, source: np.ndarray) -> dict[str, float]:
    from scipy.stats import ranksums

    change = truth.mean(0) - source.mean(0)
    top = np.argsort(-np.abs(change), kind="stable")[:100]
    markers = [
        set(np.argsort(-np.nan_to_num(np.abs(ranksums(c, source).statistic)), kind="stable")[:50])
        for c in (cells, truth)
    ]
    return {
        "energy": energy_distance(cells, truth),
        "variance": variance_ratio(cells, truth),
        "pcc": float(np.corrcoef(cells.mean(0), truth.mean(0))[0, 1]),
        "pearson_change": pearson_change(cells.mean(0)[top], truth.mean(0)[top], source.mean(0)[top]),
        "mse": float(((cells.mean(0) - truth.mean(0)) ** 2).mean()),
        "markers": len(markers[0] & markers[1]) / 50,
    }


REAL = {"kang": kang, "melanoma": melanoma, "papalexi": papalexi}
