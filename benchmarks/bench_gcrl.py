"""gCRL: what identifies the toy of the discrepancy-VAE, and centroid distances (AECD) of unseen interventions.

Tasks: ``toy`` (shift and do interventions on five latents), ``norman`` (five unseen doubles), ``papalexi`` (replicate 2
predicted from its own control cells, trained on replicate 1), ``weak`` and ``strong`` (simulated doubles). All methods
stand in one table with no change, matching mean, additive and a split half as ceiling; ``share`` is the share of the
way from no change to the split half.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _common import Results, clock, parser, show
from anndata import AnnData
from scipy.stats import wilcoxon

import sccausal as scc
from sccausal.data import InterventionCodec
from sccausal.metrics import match_latents, shd, split_half
from sccausal.models.gcrl._priors import read_prior

CONTROL = "control"
NORMAN_DOUBLES = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
# distinct parts switched off one at a time
ABLATIONS: dict[str, dict[str, Any]] = {
    "gCRL-VAE": {},
    "gCRL-VAE, exact rest": {"residual": "exact"},
    "gCRL-VAE, no rest": {"residual": "none"},
    "gCRL-VAE, no discrepancy": {"discrepancy_weight": 0.0},
    "gCRL-VAE, MMD": {"discrepancy": "mmd"},
    "gCRL-VAE, linear decoder": {"decoder": "linear"},
    "gCRL-VAE, random start": {"start": "random"},
}


class Task(NamedTuple):
    train: AnnData
    test: AnnData  # cells under the interventions to predict
    control: AnnData  # cells to start from
    key: str
    activities: Any
    kwargs: dict[str, Any]


def norman(args, seed: int) -> Task:
    adata = sc.read_h5ad(args.data / "norman_subset.h5ad")
    # what a pipeline does before: drop genes that no training cell shows
    held = adata.obs["perturbation"].isin(NORMAN_DOUBLES).to_numpy()
    adata = adata[:, np.asarray((adata[~held].X > 0).sum(0)).ravel() > 0].copy()
    adata = AnnData(
        adata.X.toarray(), obs=adata.obs[["perturbation"]].astype(str), var=pd.DataFrame(index=adata.var_names)
    )
    control = adata[adata.obs["perturbation"] == CONTROL].copy()
    sets = {"activities": args.data / "priors" / "hallmark.gmt", "min_genes": 5, "max_activities": 6}
    return Task(adata[~held].copy(), adata[held].copy(), control, "perturbation", sets.pop("activities"), sets)


def papalexi(args, seed: int) -> Task:
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    adata = adata[adata.obs["perturbation"] != "unassigned"].copy()
    obs = adata.obs[["perturbation", "replicate"]].astype(str)
    adata = AnnData(adata.X.toarray(), obs=obs, var=pd.DataFrame(index=adata.var_names))
    second = adata.obs["replicate"] == "rep_2"
    control = adata[second & (adata.obs["perturbation"] == CONTROL)].copy()
    counts = adata.obs.loc[second, "perturbation"].value_counts()
    names = [n for n in counts.index[counts >= 20] if n != CONTROL]
    test = adata[second & adata.obs["perturbation"].isin(names)].copy()
    sets = {"activities": args.data / "priors" / "hallmark.gmt", "min_genes": 5, "max_activities": 8}
    return Task(adata[~second].copy(), test, control, "perturbation", sets.pop("activities"), sets)


def simulated(strength: float, args, seed: int) -> Task:
    adata = scc.datasets.simulate_perturb_seq(
        2400 if args.small else 6000, 150 if args.small else 300, 12, n_doubles=12, strength=strength,
        interventions="activation", library_size=4000.0, seed=100 + seed, sortability=False,
    )  # fmt: skip
    network = adata.uns["truth"]["network"]
    adata = AnnData(adata.X, obs=adata.obs[["intervention"]].astype(str), var=pd.DataFrame(index=adata.var_names))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.X = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
    labels = adata.obs["intervention"].unique()
    doubles = sorted(v for v in labels if "+" in v and set(v.split("+")) <= set(labels))
    held = list(np.random.default_rng(seed).permutation(doubles)[: max(1, len(doubles) // 2)])
    test = adata.obs["intervention"].isin(held).to_numpy()
    control = adata[adata.obs["intervention"] == CONTROL].copy()
    # communities as a known network would give them: a regulator with its targets
    frame = network.to_frame() if hasattr(network, "to_frame") else network
    top = frame["source"].value_counts().index[:8]
    sets = {str(r): [str(r), *map(str, frame.loc[frame["source"] == r, "target"])] for r in top}
    return Task(adata[~test].copy(), adata[test].copy(), control, "intervention", sets, {})


def centroids(adata: AnnData, key: str) -> pd.DataFrame:
    X = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    return pd.DataFrame(X, index=adata.obs[key].astype(str).to_numpy()).groupby(level=0).mean()


def distances(predicted: pd.DataFrame, true: pd.DataFrame) -> dict[str, float]:
    return {name: float(np.linalg.norm(predicted.loc[name] - true.loc[name])) for name in true.index}


def rules(task: Task, wanted: list[str]) -> Iterable[tuple[str, pd.DataFrame]]:
    for rule in ("NoChange", "MatchingMean", "Additive", "ShrunkShift", "LinearGWP"):
        try:
            fitted = getattr(scc.baselines, rule)()
            fitted.fit(task.train, intervention_key=task.key, control=CONTROL)
            yield fitted.name, centroids(fitted.predict(task.control, interventions=wanted), "intervention")
        except scc._errors.SCCausalError as error:
            print(f"{rule}: {error}")


def fit(task: Task, name: str, seed: int, epochs: int | None, **kwargs):
    scvi.settings.seed = seed
    if name == "d-VAE":
        cls, extra = scc.DiscrepancyVAE, {}
    elif name == "id-VAE":
        prior = read_prior(task.activities, list(task.train.var_names), **task.kwargs)
        cls, extra = scc.DiscrepancyVAE, {"n_latent": len(prior.names)}
    else:
        cls, extra = scc.GCRLVAE, {"activities": task.activities, **task.kwargs}
    train = task.train.copy()
    cls.setup_anndata(train, intervention_key=task.key, control=CONTROL)
    model = cls(train, **extra, **kwargs)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, train_size=1.0)
    return model


def prediction(name: str, task: Task, results: Results, args, seed: int) -> None:
    codec = InterventionCodec.fit(task.train.obs[task.key], CONTROL)
    for cells in (task.train, task.test):
        cells.obs[task.key] = [codec.canonical(v) for v in cells.obs[task.key]]
    true = centroids(task.test, task.key)
    wanted = list(true.index)
    if f"{name}/{seed}/rules" not in results.done:
        scores = {rule: distances(frame, true) for rule, frame in rules(task, wanted)}
        halves = {}
        for label in wanted:
            own = np.asarray(task.test.X)[(task.test.obs[task.key] == label).to_numpy()]
            a, b = split_half(len(own), seed)
            halves[label] = float(np.linalg.norm(own[a].mean(0) - own[b].mean(0)))
        results.add(f"{name}/{seed}/rules", task=name, seed=seed, scores=scores | {"split half": halves})
    free = {"gCRL-VAE, a latent per target": {"n_latent": max(len(codec.targets), 10)}}
    methods: dict[str, dict] = {"d-VAE": {}, "id-VAE": {}, "gCRL-VAE": {}, **free, **(ABLATIONS if args.ablate else {})}
    for method, kwargs in methods.items():
        key = f"{name}/{seed}/{method}"
        if key in results.done:
            continue
        with clock() as t:
            model = fit(task, method.split(",")[0], seed, 3 if args.small else None, **kwargs)
        predicted = model.perturbation.predict(task.control, interventions=wanted)
        scores = {method: distances(centroids(predicted, "intervention"), true)}
        explained = float(model.explained_["explained"].mean())
        results.add(key, task=name, seed=seed, scores=scores, seconds=t["seconds"], explained=explained)


def toy(kind: str, results: Results, args, seed: int) -> None:
    if f"toy-{kind}/{seed}" in results.done:
        return
    adata = scc.datasets.simulate_latent_sem(3000, intervention=kind, seed=1000 + seed)
    scvi.settings.seed = seed
    scc.DiscrepancyVAE.setup_anndata(adata, intervention_key="intervention", control=CONTROL)
    model = scc.DiscrepancyVAE(adata, intervention=kind, l1_on="graph")
    with clock() as t:
        model.train(3 if args.small else 40, accelerator="cpu", enable_progress_bar=False)
    z, truth = model.get_latent_representation(representation="exogenous"), adata.uns["truth"]
    control = (adata.obs["intervention"] == CONTROL).to_numpy()
    found = match_latents(z[control], adata.obsm["exogenous"][control])
    where = model.module.interventions.assignment().argmax(1).numpy(force=True)
    hits = float(np.mean(found.learned[truth["targets"]["latent"]] == where))
    order = [model.latent_names[j] for j in found.learned]
    graph = model.get_latent_graph(0.3).to_matrix(order)
    results.add(
        f"toy-{kind}/{seed}", task=f"toy-{kind}", seed=seed, mcc=found.mcc, targets=hits,
        shd=shd(graph != 0, truth["graph"] != 0), seconds=t["seconds"],
    )  # fmt: skip


TASKS = {"norman": norman, "papalexi": papalexi, "weak": None, "strong": None}


def run(args) -> Results:
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.tasks:
            if name == "toy":
                for kind in ("shift", "do"):
                    toy(kind, results, args, seed)
            elif name in ("weak", "strong"):
                prediction(name, simulated({"weak": 2.0, "strong": 6.0}[name], args, seed), results, args, seed)
            else:
                prediction(name, TASKS[name](args, seed), results, args, seed)
    return results


def report(results: Results) -> None:
    frame = results.frame()
    toys = frame[frame["task"].str.startswith("toy")]
    if len(toys):
        show(toys.groupby("task")[["mcc", "targets", "shd", "seconds"]].mean(), "Toy: five latents, chain")
    rows = [
        {"task": r["task"], "seed": r["seed"], "method": m, "intervention": i, "distance": v}
        for r in results.rows
        for m, per in r.get("scores", {}).items()
        for i, v in per.items()
    ]
    if not rows:
        return
    long = pd.DataFrame(rows)
    for task, part in long.groupby("task"):
        table = part.pivot_table("distance", ["seed", "intervention"], "method", sort=False)
        mean = table.mean()
        base, top = mean["no change"], mean["split half"]
        out = pd.DataFrame({"AECD": mean, "share": (base - mean) / (base - top)})
        per = table.groupby("intervention").mean()
        for other in ("gCRL-VAE", "additive"):
            if other in per and len(per) > 4:
                out[f"p against {other}"] = [
                    1.0 if m == other or (per[m] == per[other]).all() else float(wilcoxon(per[m], per[other]).pvalue)
                    for m in per
                ]
        show(out.sort_values("AECD").reset_index(), f"{task}: AECD over {len(per)} interventions", 4)


def main() -> None:
    p = parser(__doc__ or "", default_out="gcrl.jsonl")
    p.add_argument("--tasks", nargs="+", default=["toy", "norman", "papalexi", "weak", "strong"])
    p.add_argument("--ablate", action="store_true", help="switch the distinctive parts off one at a time")
    args = p.parse_args()
    report(Results(args.out) if args.report else run(args))


if __name__ == "__main__":
    main()
