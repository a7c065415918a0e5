"""CausCell: counterfactuals and disentanglement beside simple rules, samplers, speed, and use with few donors.

Tasks: ``concepts`` (simulator with known counterfactuals, dependence .6 and .8), ``sampler`` (distance to the data by
solver and steps), ``speed`` (a training step beside a denoiser as wide as the transcriptome; cells drawn per second),
``kang``, ``melanoma``, ``papalexi`` (a concept set to another value in held-out cells; every combination seen, or the
wanted one held out), ``donors`` (trend with age in few donors: bootstrap with refits beside regression of donor means).

``ratio`` is the squared error of cells' changes over that of mean shift; ``ratio_above_oracle`` the same for the mean
of four draws, both less what is left to one who knows the simulator and the labels but not the noise of the cell.
``tv`` is the total variation between labels an independent classifier reads from predicted and true counterfactual
cells; leakage is in excess of the true labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from _common import Results, clock, parser, show
from anndata import AnnData

import sccausal as scc
from sccausal.datasets import concept_counterfactual, simulate_concepts
from sccausal.metrics import cluster_agreement, concept_scores, energy_distance, pearson_change, variance_ratio
from sccausal.models.causcell._module import SIGMA_HIGH, SIGMA_LOW
from sccausal.models.causcell._steps import Settings, draw_cells

DAG = {"b": ["a"], "c": ["a"], "d": ["b"]}
CONCEPTS = ["a", "b", "c", "d"]
TOTAL = "total"  # counts of a cell over all genes, by which the data were normalised
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def log1p_norm(counts) -> np.ndarray:
    values = np.asarray(counts, dtype=np.float64)
    return np.log1p(values / np.maximum(values.sum(1, keepdims=True), 1) * 1e4)


def dense(adata: AnnData) -> np.ndarray:
    return np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=np.float32)


def fit(train: AnnData, keys: list[str], seed: int, args, dag=None, **setup: Any) -> scc.CausCell:
    scvi.settings.seed = seed
    cells = AnnData(dense(train), obs=train.obs.copy(), var=pd.DataFrame(index=train.var_names))
    scc.CausCell.setup_anndata(cells, concept_keys=keys, **setup)
    model = scc.CausCell(cells, dag=dag)
    model.train(20 if args.small else None, train_size=1.0, **QUIET)
    return model


# simulator ---------------------------------------------------------------------------------------------------------


def concepts(results: Results, args, seed: int) -> None:
    for dependence in (0.6, 0.8):
        adata = simulate_concepts(
            800 if args.small else 3000, 100 if args.small else 400, correlation=dependence, seed=100 + seed
        )
        adata.layers["log_mean"] = log1p_norm(adata.layers["mean"])
        adata.X = log1p_norm(adata.X).astype(np.float32)
        held = np.random.default_rng(seed).random(adata.n_obs) < 0.2
        train, test = adata[~held].copy(), adata[held].copy()
        readers = {c: reader(adata, c) for c in CONCEPTS}
        for method, dag in (("CausCell", DAG), ("CausCell, dag=None", None)):
            key = f"concepts-{dependence}/{method}/{seed}"
            if key in results.done:
                continue
            with clock() as t:
                model = fit(train, CONCEPTS, seed, args, dag)
            blocks = leakage(model, train, test, CONCEPTS)
            results.add(key, task=f"concepts-{dependence}", method=method, seed=seed, seconds=t["seconds"], **blocks)
            modes = ("do", "shift", "hold") if dag else ("do",)
            for mode in modes:
                for do in ({"a": "a1"}, {"b": "b1"}, {"d": "d2"}):
                    name = method if mode == "do" else f"{method}, {mode}"
                    found = judged(model, train, test, do, mode, readers)
                    (k, v), *_ = do.items()
                    results.add(
                        f"effect-{dependence}/{name}/{k}={v}/{seed}", task=f"effect-{dependence}", method=name,
                        seed=seed, do=f"{k}={v}", **found,
                    )  # fmt: skip


def reader(adata: AnnData, concept: str):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=300).fit(adata.X, adata.obs[concept])


def judged(model, train: AnnData, test: AnnData, do: dict[str, str], mode: str, readers) -> dict[str, float]:
    (name, value), *_ = do.items()
    source = test[(test.obs[name] != value).to_numpy()].copy()
    truth = concept_counterfactual(source, do)
    change = log1p_norm(truth.layers["mean"]) - source.layers["log_mean"]
    has = (train.obs[name] == value).to_numpy()
    shift = train.X[has].mean(0) - train.X[~has].mean(0)
    predicted = model.counterfactual(source, do, mode, n_samples=4)
    draws = np.asarray(predicted.X).reshape(4, source.n_obs, -1)
    effect, told = change.mean(0), draws.mean((0, 1)) - source.X.mean(0)
    left = float(((shift - change) ** 2).sum())
    oracle = float(((known_change(train, source, do) - change) ** 2).sum())
    out = {
        "slope": float(told @ effect / (effect @ effect)),
        "slope_shift": float(shift @ effect / (effect @ effect)),
        "pearson": float(np.corrcoef(told, effect)[0, 1]),
        "pearson_shift": float(np.corrcoef(shift, effect)[0, 1]),
        "left_by_shift": left / float((change**2).sum()),
        "ratio": float(((draws[0] - source.X - change) ** 2).sum()) / left,
        "oracle": oracle / left,
        "ratio_above_oracle": (float(((draws.mean(0) - source.X - change) ** 2).sum()) - oracle) / (left - oracle),
        "ratio_mean": float(((draws.mean(0) - source.X - change) ** 2).sum()) / left,
        "ratio_of_means": float(((told - effect) ** 2).sum() / ((shift - effect) ** 2).sum()),
    }
    for concept, net in readers.items():
        if concept != name:
            found, true = (pd.Series(net.predict(x)) for x in (draws[0], log1p_norm(truth.X)))
            a, b = (s.value_counts(normalize=True).reindex(net.classes_, fill_value=0) for s in (found, true))
            out[f"tv_{concept}"] = 0.5 * float((a - b).abs().sum())
    return out


def known_change(train: AnnData, source: AnnData, do: dict[str, str]) -> np.ndarray:
    """Change of cells expected by who knows the simulator and the labels of a cell, but none of its noise.

    Mean true change of all training cells with the labels of the cell: what the labels of its descendants will be, and
    how strongly it responds, are left to chance. No method that sees labels alone can have a smaller error; one that
    reads the cell's own response from expression can.
    """
    other = train[(train.obs[next(iter(do))] != next(iter(do.values()))).to_numpy()].copy()
    after = concept_counterfactual(other, do)
    change = pd.DataFrame(log1p_norm(after.layers["mean"]) - other.layers["log_mean"])
    keys = [other.obs[c].astype(str).to_numpy() for c in CONCEPTS]
    means = change.groupby(keys).mean()
    wanted = pd.MultiIndex.from_frame(source.obs[CONCEPTS].astype(str))
    overall = np.tile(change.mean().to_numpy(), (source.n_obs, 1))
    found = means.reindex(wanted).to_numpy()
    return np.where(np.isnan(found), overall, found)


def leakage(model, train: AnnData, test: AnnData, names: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    labels = [s.obs[names].astype(str) for s in (train, test)]
    for kind, sample in (("draws", True), ("means", False)):
        z = [model.get_concept_embeddings(bare(s), sample=sample) for s in (train, test)]
        table = concept_scores(z[0], labels[0], z[1], labels[1])
        own, other = table[table["other"] == ""], table[table["other"] != ""]
        for metric in ("concept_accuracy", "concept_f1"):
            found = own[own["metric"] == metric].set_index("concept")["value"]
            out |= {f"{metric.removeprefix('concept_')}_{c}_{kind}": float(v) for c, v in found.items()}
        out[f"leakage_{kind}"] = float(other["value"].max())
        out[f"leakage_mean_{kind}"] = float(other["value"].mean())
    return out


def bare(adata: AnnData) -> AnnData:
    return AnnData(dense(adata), obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names))


# samplers and speed ------------------------------------------------------------------------------------------------


def sampler(results: Results, args, seed: int) -> None:
    if f"sampler/ddpm/1000/{seed}" in results.done:
        return
    adata = simulate_concepts(600 if args.small else 3000, 100 if args.small else 400, seed=100 + seed)
    adata.X = log1p_norm(adata.X).astype(np.float32)
    cut = adata.n_obs * 4 // 5
    train, test = adata[:cut].copy(), adata[cut:].copy()
    model = fit(train, CONCEPTS, seed, args, DAG)
    a = (test.obs["a"] == "a1").to_numpy()
    moved = energy_distance(test.X[a], test.X[~a])
    label_mean = energy_distance(np.repeat(test.X.mean(0, keepdims=True), len(test), 0), test.X)
    with torch.inference_mode():
        tokens = model.module.embed(model._exogenous(bare(test), n_samples=1)[0])
        plan = [(s, n) for s in ("ddim", "dpm++2m", "sde-dpm++2m", "heun") for n in (10, 20, 50)] + [("ddpm", 1000)]
        for solver, n in plan:
            settings = Settings(n, solver, "shared", SIGMA_LOW, SIGMA_HIGH)
            with clock() as t:
                drawn = np.maximum(draw_cells(model.module, tokens, settings, seed, None), 0)
            results.add(
                f"sampler/{solver}/{n}/{seed}", task="sampler", solver=solver, steps=n, seed=seed,
                energy=energy_distance(drawn, test.X), variance=variance_ratio(drawn, test.X), seconds=t["seconds"],
                a0_to_a1=moved, label_mean=label_mean,
            )  # fmt: skip


class WideDenoiser(torch.nn.Module):
    """As many attention blocks with one query as wide as the transcriptome, as in the paper."""

    def __init__(self, n_genes: int, n_layers: int, n_latent: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList()
        for _ in range(n_layers):
            attend = torch.nn.MultiheadAttention(n_genes, 4, kdim=n_latent, vdim=n_latent, batch_first=True)
            net = torch.nn.Sequential(
                torch.nn.Linear(n_genes, 4 * n_genes), torch.nn.SiLU(), torch.nn.Linear(4 * n_genes, n_genes)
            )
            self.blocks.append(torch.nn.ModuleList([attend, net]))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        h = x.unsqueeze(1)
        for attend, net in self.blocks:
            h = h + attend(h, z, z, need_weights=False)[0]
            h = h + net(h)
        return h.squeeze(1)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def speed(results: Results, args, seed: int) -> None:
    key = f"speed/{seed}"
    if key in results.done:
        return
    n = 300 if args.small else 2000
    rng = np.random.default_rng(seed)
    adata = AnnData(rng.random((n, n), dtype=np.float32))
    for name in CONCEPTS:
        adata.obs[name] = rng.permutation(np.arange(n) % 2).astype(str)
    scvi.settings.seed = seed
    scc.CausCell.setup_anndata(adata, concept_keys=CONCEPTS)
    model = scc.CausCell(adata, dag=DAG)
    module = model.module.train()
    x = torch.as_tensor(adata.X[:256])
    z = torch.randn(len(x), 5, 32)
    sigma = torch.ones(len(x))
    wide = WideDenoiser(n, len(module.denoiser.blocks), 32)

    def step(net, *inputs) -> float:
        optimizer = torch.optim.Adam(net.parameters())
        seconds = []
        for _ in range(3):
            with clock() as t:
                optimizer.zero_grad()
                net(*inputs).square().mean().backward()
                optimizer.step()
            seconds.append(t["seconds"])
        return min(seconds)

    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module.denoiser

        def forward(self, x, z):
            return self.net(x, sigma, self.net.condition(z))

    narrow_step, wide_step = step(Narrow(), x, z), step(wide, x, z)
    module.eval()
    with torch.inference_mode(), clock() as t:
        draw_cells(module, torch.randn(n, 5, 32), Settings(20, "dpm++2m", "shared", SIGMA_LOW, SIGMA_HIGH), 0, None)
    results.add(
        key, task="speed", seed=seed, genes=n, threads=torch.get_num_threads(),
        parameters=count(module), wide_parameters=count(wide),
        step=narrow_step, wide_step=wide_step, draw_seconds=t["seconds"], drawn_cells=n,
    )  # fmt: skip


# real data ---------------------------------------------------------------------------------------------------------


class Real(NamedTuple):
    adata: AnnData
    concepts: list[str]
    target: str  # concept that is set
    control: str
    by: list[str]  # the other concepts
    finer: str | None = None


def kang(args) -> Real:
    adata = sc.read_h5ad(args.data / "kang_donors.h5ad")
    return Real(adata, ["cell_type", "donor", "condition"], "condition", "control", ["cell_type", "donor"])


def melanoma(args) -> Real:
    adata = sc.read_h5ad(args.data / "melanoma_ici.h5ad")
    adata.obs["treatment"] = np.where(adata.obs["therapy"].astype(str) == "anti-PD1", "anti-PD1", "with anti-CTLA4")
    return Real(
        adata, ["cell_type", "response", "treatment"], "response", "Non-responder", ["cell_type", "treatment"],
        "cell_subtype",
    )  # fmt: skip


def papalexi(args) -> Real:
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    strong = ["control", "IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "BRD4", "SMAD4"]
    adata = adata[adata.obs["perturbation"].isin(strong).to_numpy()].copy()
    return Real(adata, ["perturbation", "replicate"], "perturbation", "control", ["replicate"])


def splits(real: Real, args, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Held-out cells: a fifth of all, or all of one combination of target and first other concept, treated."""
    rng = np.random.default_rng([seed, 3])
    yield "ID", rng.random(real.adata.n_obs) < 0.2
    obs = real.adata.obs[[real.target, *real.by]].astype(str)
    treated = obs[obs[real.target] != real.control]
    pairs = treated.groupby([real.target, real.by[0]]).size()
    pair = list(pairs.index[pairs >= 20])[rng.integers((pairs >= 20).sum())]
    held = ((obs[real.target] == pair[0]) & (obs[real.by[0]] == pair[1])).to_numpy()
    # source cells of the combination are held out by a third, so that no predicted cell was trained on
    source = ((obs[real.target] == real.control) & (obs[real.by[0]] == pair[1])).to_numpy()
    yield "OOD", held | (source & (rng.random(real.adata.n_obs) < 1 / 3))


def real_data(name: str, real: Real, results: Results, args, seed: int) -> None:
    if "counts" in real.adata.layers:
        real.adata.obs[TOTAL] = np.asarray(real.adata.layers["counts"].sum(1)).ravel()
    for kind, held in splits(real, args, seed):
        if f"{name}-{kind}/embeddings/{seed}" in results.done:
            continue
        adata = real.adata
        train = adata[~held].copy()
        n_top = 300 if args.small else 1000
        if adata.n_vars > n_top:
            scc.pp.select_genes(train, n_top)
            adata = adata[:, train.var["selected"].to_numpy()]
            train = adata[~held].copy()
        test = adata[held].copy()
        with clock() as t:
            model = fit(train, real.concepts, seed, args)
        for method, group, cells, truth, source in predictions(model, real, train, test, seed, args):
            results.add(
                f"{name}-{kind}/{method}/{group}/{seed}", task=f"{name}-{kind}", method=method, seed=seed, group=group,
                **distances(cells, truth, source),
            )  # fmt: skip
        extra: dict[str, Any] = {}
        if kind == "ID":
            extra = leakage(model, train, test, real.concepts)
            if real.finer:
                z = model.get_concept_embeddings(bare(test), sample=True)[real.by[0]]
                found = cluster_agreement(z, test.obs[real.finer].astype(str).to_numpy()).set_index("metric")["value"]
                extra |= {"nmi_finer": float(found["nmi"]), "ari_finer": float(found["ari"])}
        results.add(f"{name}-{kind}/embeddings/{seed}", task=f"{name}-{kind}-blocks", method="CausCell", seed=seed,
                    seconds=t["seconds"], **extra)  # fmt: skip


def predictions(model, real: Real, train: AnnData, test: AnnData, seed: int, args):
    """Method, group, predicted cells, true cells and cells started from, for each target level and stratum."""
    from sccausal.models.causcell._counterfactual import MODES

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
            group = f"{level} in {stratum}"
            truth, source = y[true], y[start]
            yield "no change", group, source, truth, source
            pooled = x[label == level].mean(0) - x[label == real.control].mean(0)
            yield "mean shift", group, np.maximum(source + pooled, 0), truth, source
            here = first == stratum
            seen = (label == level) & here
            mean = x[here & (label == real.control)].mean(0) + pooled
            if seen.sum() >= 10:
                own = x[seen].mean(0) - x[here & (label == real.control)].mean(0)
                yield "mean shift of the stratum", group, np.maximum(source + own, 0), truth, source
                mean = x[seen].mean(0)
            yield "label mean", group, np.repeat(np.maximum(mean, 0)[None], len(truth), 0), truth, source
            cells = bare(test[start])
            for mode in MODES:
                out = model.counterfactual(cells, {real.target: level}, mode, seed=seed)
                name = "CausCell" if mode == "do" else f"CausCell, {mode}"
                yield name, group, np.asarray(out.X), truth, source
            out = model.counterfactual(cells, {real.target: level}, abduction="shared", seed=seed)
            yield "CausCell, shared noise", group, np.asarray(out.X), truth, source
            if level in outside:
                yield "scVI", group, outside[level][start], truth, source


def scvi_cells(real: Real, train: AnnData, test: AnnData, seed: int, args) -> dict[str, np.ndarray]:
    """Cells drawn by scVI for all test cells decoded for each level; empty without counts.

    Counts are drawn at the size of the cell and log-normalised as the data are: denoised means have no sampling noise
    and lie far from any cell.
    """
    if "counts" not in train.layers:
        return {}
    scvi.settings.seed = seed
    cells = AnnData(train.layers["counts"].copy(), obs=train.obs.copy(), var=pd.DataFrame(index=train.var_names))
    scvi.model.SCVI.setup_anndata(cells, batch_key=real.target, categorical_covariate_keys=real.by)
    model = scvi.model.SCVI(cells)
    model.train(10 if args.small else 200, **QUIET)
    query = AnnData(test.layers["counts"].copy(), obs=test.obs.copy(), var=pd.DataFrame(index=test.var_names))
    size = np.asarray(query.X.sum(1)).reshape(-1, 1)
    theta = model.module.px_r.detach().exp().numpy()
    out = {}
    for level in set(train.obs[real.target].astype(str)) - {real.control}:
        share = model.get_normalized_expression(query, transform_batch=level, return_numpy=True)
        rng = np.random.default_rng([seed, 11])
        drawn = rng.poisson(share * size * rng.gamma(theta, 1 / theta, share.shape))
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


# few donors --------------------------------------------------------------------------------------------------------


def donors(results: Results, args, seed: int) -> None:
    """Trend with age when donors are few: refits over donors, and regression of donor means on the same cells."""
    key = f"donors/{seed}"
    if key in results.done:
        return
    import statsmodels.api as sm

    n_donors, per_donor = 10, 20 if args.small else 40
    adata = simulate_concepts(
        n_donors * per_donor, 150, n_donors=n_donors, age_by="donor", age_levels=0, donor_strength=0.1, seed=100 + seed
    )
    adata.layers["log_mean"] = log1p_norm(adata.layers["mean"])
    adata.X = log1p_norm(adata.X).astype(np.float32)
    old, young = (log1p_norm(concept_counterfactual(adata, {"age": v}).layers["mean"]) for v in (77, 23))
    effect = (old - young).mean(0)
    # relative expression moves every gene a little: null is what the concept does not act on and hardly moves
    null = ~adata.var["acts_age"].to_numpy() & (np.abs(effect) < 0.05)
    real = np.abs(effect) > 0.3
    model = fit(adata, ["a", "b"], seed, args, {"b": ["a"]}, time_key="age")
    epochs = 20 if args.small else 60
    table = scc.tl.concept_de(
        model, "age", 77.0, unit_key="donor", n_refits=4 if args.small else 12, train={"max_epochs": epochs}, seed=seed
    )
    means = pd.DataFrame(adata.X).groupby(adata.obs["donor"].astype(str).to_numpy()).mean()
    ages = adata.obs.groupby("donor", observed=True)["age"].first().loc[means.index].to_numpy()
    p = np.array([sm.OLS(means[g], sm.add_constant(ages)).fit().pvalues.iloc[1] for g in means])
    for method, found in (("CausCell, refits over donors", table["p_value"].to_numpy()), ("donor means on age", p)):
        results.add(
            f"{key}/{method}" if method != "donor means on age" else key, task="donors", method=method, seed=seed,
            false_positives=float((found[null] < 0.05).mean()), n_null=int(null.sum()),
            power=float((found[real] < 0.05).mean()), n_real=int(real.sum()),
        )  # fmt: skip


REAL = {"kang": kang, "melanoma": melanoma, "papalexi": papalexi}
TASKS = {"concepts": concepts, "sampler": sampler, "speed": speed, "donors": donors}


def run(args) -> Results:
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.tasks:
            if name in REAL:
                real_data(name, REAL[name](args), results, args, seed)
            else:
                TASKS[name](results, args, seed)
    return results


def report(results: Results) -> None:
    frame = results.frame()
    for task, part in frame.groupby("task", sort=False):
        part = part.dropna(axis=1, how="all").drop(columns=["key", "task", "seed"])
        keys = [c for c in ("method", "do", "solver", "steps") if c in part]
        numbers = part.select_dtypes("number").columns.difference(keys, sort=False)
        table = (
            part.groupby(keys, sort=False)[list(numbers)].mean() if keys else part[list(numbers)].mean().to_frame().T
        )
        show(table, str(task))


def main() -> None:
    p = parser(__doc__ or "", default_out="causcell.jsonl")
    p.add_argument("--tasks", nargs="+", default=[*TASKS, *REAL], choices=[*TASKS, *REAL])
    args = p.parse_args()
    report(Results(args.out) if args.report else run(args))


if __name__ == "__main__":
    main()
