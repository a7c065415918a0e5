"""LCD and CLIPR: unseen doubles, knock-outs across replicates, direct effects, samplers, and what they cost.

Tasks: ``linear`` and ``hill`` (simulated stationary diffusions, unseen doubles), ``norman`` (five unseen doubles),
``papalexi`` (replicate 2 predicted from its own control cells, trained on replicate 1), ``clipr`` (edges of linear and
Hill systems by every estimator), ``dixit`` (edges against held-out cells), ``unseen`` (targets never perturbed in
training), ``implication`` (edges of one half of the cells, differential expression of the other), ``screens`` (unseen
doubles of simulated screens with epistasis), ``sampler`` (probability flow against annealed Langevin) and ``speed``.
Predictions stand in one table with the simple rules and a technical duplicate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
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
from sccausal.metrics import auprc, direction_accuracy, energy_distance, log1p_norm, mmd2, split_half

CONTROL = "control"
NORMAN_DOUBLES = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
PAPALEXI_STRONG = ["IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "BRD4", "SMAD4", "CUL3", "STAT2"]
RULES = ("NoChange", "MeanShift", "ShrunkShift", "Additive", "MatchingMean")
# distinct parts switched off one at a time
MODELS: dict[str, dict[str, Any]] = {
    "LCD": {},
    "LCD, shift only": {"prediction": "shift"},
    "LCD, exact effects": {"effects": "exact"},
    "LCD, no calibration": {"calibrate": False},
    "LCD, drawn": {"prediction": "sample"},
    "LCD, noise model": {"noise_model": "zip"},
}
MAX_CELLS = 500


class Task(NamedTuple):
    train: AnnData
    test: AnnData
    control: AnnData
    key: str
    counts: bool
    aligned: bool = False  # whether source cells are a batch of their own


def norman(args, seed: int) -> Task:
    adata = sc.read_h5ad(args.data / "norman_subset.h5ad")
    held = adata.obs["perturbation"].isin(NORMAN_DOUBLES).to_numpy()
    # what a pipeline does before: drop genes that no training cell shows
    adata = _plain(adata[:, np.asarray((adata[~held].X > 0).sum(0)).ravel() > 0], ["perturbation"])
    control = adata[(adata.obs["perturbation"] == CONTROL).to_numpy()].copy()
    return Task(adata[~held].copy(), adata[held].copy(), control, "perturbation", True)


def papalexi(args, seed: int) -> Task:
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    adata = _plain(adata[adata.obs["perturbation"] != "unassigned"], ["perturbation", "replicate"])
    second = (adata.obs["replicate"] == "rep_2").to_numpy()
    label = adata.obs["perturbation"]
    number = label[second].value_counts()
    names = [n for n in number.index[number >= 20] if n != CONTROL]
    test = adata[second & label.isin(names).to_numpy()].copy()
    control = adata[second & (label == CONTROL).to_numpy()].copy()
    return Task(adata[~second].copy(), test, control, "perturbation", True, True)


def _plain(adata: AnnData, columns: list[str]) -> AnnData:
    """Cells on log1p(1e4) with their counts, dense and without notes."""
    counts = adata.layers["counts"]
    counts = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts, dtype=np.float32)
    X = np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=np.float32)
    var = pd.DataFrame(index=adata.var_names.astype(str))
    return AnnData(X, obs=adata.obs[columns].astype(str), var=var, layers={"counts": counts})


def simulated(kinetics: str, args, seed: int) -> Task:
    d = 20 if args.small else 60
    adata = scc.datasets.simulate_stationary(
        d, kinetics=kinetics, n_perturbed=min(d, 20), n_doubles=30, n_cells=60 if args.small else 100, n_control=400,
        degree=3.0, measurement="none" if kinetics == "linear" else "zip", knockdown=0.2, seed=100 + seed,
    )  # fmt: skip
    if kinetics == "hill":
        counts = np.asarray(adata.X)
        adata = log1p_norm(adata)
        adata.X, adata.layers["counts"] = adata.X.toarray(), counts
    adata.obs["intervention"] = adata.obs["intervention"].astype(str)
    doubles = sorted(v for v in adata.obs["intervention"].unique() if "+" in v)
    held = set(np.random.default_rng(seed).permutation(doubles)[: len(doubles) // 2])
    test = adata.obs["intervention"].isin(held).to_numpy()
    control = adata[(adata.obs["intervention"] == CONTROL).to_numpy()].copy()
    return Task(adata[~test].copy(), adata[test].copy(), control, "intervention", kinetics == "hill")


TASKS: dict[str, Callable[..., Task]] = {
    "linear": lambda a, s: simulated("linear", a, s),
    "hill": lambda a, s: simulated("hill", a, s),
    "norman": norman,
    "papalexi": papalexi,
}


def scores(predicted: AnnData | np.ndarray, truth: np.ndarray, counts: bool = False) -> dict[str, float]:
    X = predicted if isinstance(predicted, np.ndarray) else np.asarray(predicted.X)
    if counts:
        X = np.log1p(X / np.maximum(X.sum(1, keepdims=True), 1) * 1e4)
    X, Y = X[:MAX_CELLS], truth[:MAX_CELLS]
    rmse = float(np.sqrt(((X.mean(0) - Y.mean(0)) ** 2).mean()))
    return {"energy": energy_distance(X, Y), "mmd2": mmd2(X, Y), "rmse": rmse}


def rules(task: Task, wanted: list[str], signed: bool) -> Iterable[tuple[str, AnnData]]:
    for rule in RULES:
        options = [{"clip": "mean"}] if not signed else [{"clip": "none"}]
        if rule == "ShrunkShift" and not signed:
            options.append({"clip": "none"})
        for option in options:
            try:
                fitted = getattr(scc.baselines, rule)(**option)
                fitted.fit(task.train, intervention_key=task.key, control=CONTROL)
                name = fitted.name + (", not clipped" if not signed and option["clip"] == "none" else "")
                yield name, fitted.predict(task.control, interventions=wanted)
            except scc._errors.UnknownNameError:
                continue  # the rule needs to have seen the very intervention


def fit(task: Task, seed: int, epochs: int | None, **kwargs: Any) -> Any:
    scvi.settings.seed = seed
    train = task.train.copy()
    counted = kwargs.get("noise_model") is not None
    layer = {"layer": "counts"} if counted else {}
    scc.LCD.setup_anndata(train, intervention_key=task.key, control=CONTROL, **layer)
    model = scc.LCD(train, align_queries=task.aligned, **kwargs)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    return model


def prediction(name: str, results: Results, args, seed: int) -> None:
    task = TASKS[name](args, seed)
    codec = InterventionCodec.fit(task.train.obs[task.key], CONTROL)
    for cells in (task.train, task.test):
        cells.obs[task.key] = [codec.canonical(v) for v in cells.obs[task.key]]
    label = task.test.obs[task.key].to_numpy()
    wanted = sorted(set(label))
    truth = {w: np.asarray(task.test.X)[label == w] for w in wanted}
    signed = float(np.asarray(task.train.X).min()) < 0

    def by_label(predicted: AnnData, counts: bool = False) -> dict[str, dict[str, float]]:
        names = predicted.obs["intervention"].astype(str).to_numpy()
        return {w: scores(np.asarray(predicted.X)[names == w], truth[w], counts) for w in wanted}

    if f"{name}/{seed}/rules" not in results.done:
        found = {rule: by_label(cells) for rule, cells in rules(task, wanted, signed)}
        halves = {w: split_half(len(truth[w]), seed) for w in wanted}
        found["duplicate"] = {w: scores(truth[w][a], truth[w][b]) for w, (a, b) in halves.items()}
        results.add(f"{name}/{seed}/rules", task=name, seed=seed, scores=found)
    for method in args.models:
        key, kwargs = f"{name}/{seed}/{method}", MODELS[method]
        if key in results.done or ("noise_model" in kwargs and not task.counts):
            continue
        with clock() as t:
            model = fit(task, seed, 3 if args.small else None, **kwargs)
        predicted = model.perturbation.predict(task.control, interventions=wanted, seed=seed)
        results.add(
            key, task=name, seed=seed, scores={method: by_label(predicted, model.prediction_units == "counts")},
            seconds=t["seconds"], gate=float(model.module.gate.mean()),
        )  # fmt: skip


def clipr(results: Results, args, seed: int) -> None:
    """AUPRC and direction of every estimator, on raw means and on LCD's points of rest."""
    cases = [("linear", 1.0, 200), ("linear", 2.0, 50), ("linear", 0.0, 200), ("hill", 0.0, 200)]
    for kinetics, ratio, n in cases:
        key = f"clipr/{kinetics}/{ratio}/{n}/{seed}"
        if key in results.done:
            continue
        adata = scc.datasets.simulate_stationary(
            30, kinetics=kinetics, n_cells=n, degree=2.9, measurement="gaussian" if ratio else "none",
            noise_ratio=ratio or 1.0, seed=500 + seed,
        )  # fmt: skip
        truth, off = adata.uns["truth"]["adjacency"] != 0, ~np.eye(30, dtype=bool)
        keys = {"intervention_key": "intervention", "control": CONTROL, "n_bootstrap": 0, "key_added": None}
        task = Task(adata, adata, adata, "intervention", False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fit(task, seed, 3 if args.small else 20)
            found = {
                "raw means, response": scc.tl.clipr(adata, **keys),
                "raw means, response, ridge 1e-3": scc.tl.clipr(adata, tikhonov=1e-3, **keys),
                "raw means, drift+targets": scc.tl.clipr(adata, estimator="drift+targets", **keys),
                "LCD, response": model.clipr(),
                "LCD, response at modes": model.clipr(kind="mode"),
                "LCD, drift": model.clipr(estimator="drift"),
                "LCD, drift at origin": model.clipr(estimator="drift", reference="origin"),
                "LCD, drift+targets": model.clipr(estimator="drift+targets"),
            }
        table = {k: v.direct_effects.loc[adata.var_names, adata.var_names].to_numpy() for k, v in found.items()}
        table["responses"] = found["raw means, response"].responses.loc[adata.var_names].to_numpy()
        values = {
            k: {"auprc": auprc(np.abs(m)[off], truth[off]), "direction": direction_accuracy(m, truth),
                "symmetry": getattr(found.get(k), "symmetry_ratio", float("nan"))}
            for k, m in table.items()
        }  # fmt: skip
        results.add(key, task=f"clipr {kinetics}, noise {ratio:g}, {n} cells", seed=seed, clipr=values,
                    chance=float(truth[off].mean()))  # fmt: skip


def sampler(results: Results, args, seed: int) -> None:
    """Probability flow (36 calls) and annealed Langevin (15 000 calls) against held-out cells."""
    key = f"sampler/{seed}"
    if key in results.done:
        return
    task = papalexi(args, seed)
    rng = np.random.default_rng(seed)
    half = rng.random(task.train.n_obs) < 0.5
    held = task.train[~half].copy()
    model = fit(task._replace(train=task.train[half].copy()), seed, 3 if args.small else None)
    base = np.asarray(held[(held.obs[task.key] == CONTROL).to_numpy()].X)
    out: dict[str, Any] = {}
    for name, options in {
        "heun": {}, "annealed_langevin": {"n_steps": 5 if args.small else 500},
        "annealed_langevin, 25 steps": {"n_steps": 25, "step": 0.1},
    }.items():  # fmt: skip
        with clock() as t:
            drawn = model.sample(["IFNGR1", "STAT1", "IRF1"], 150, sampler=name.split(",")[0], seed=seed, **options)
        labels, energy, distance = drawn.obs["intervention"].astype(str).to_numpy(), [], []
        for k in np.unique(labels):
            truth = np.asarray(held[(held.obs[task.key] == k).to_numpy()].X)[:MAX_CELLS]
            energy.append(energy_distance(np.asarray(drawn.X)[labels == k], truth))
            distance.append(energy_distance(base[:MAX_CELLS], truth))
        out[name] = {"energy": float(np.mean(energy)), "control": float(np.mean(distance)), "seconds": t["seconds"]}
    results.add(key, task="sampler", seed=seed, sampler=out)


def dixit(results: Results, args, seed: int) -> None:
    """The structure task of the benchmark room on eight knock-outs."""
    key = f"dixit/{seed}"
    if key in results.done:
        return
    from sccausal.benchmark import get_task, methods
    from sccausal.benchmark._task import Request

    task = get_task("structure")
    dataset = next(d for d in task.datasets if d.name == "dixit")
    request = Request(seed, args.small, args.data)
    case = next(iter(task.cases(dataset.load(request), dataset, request)))
    wanted = ("CLIPR, response", "tl.structure", "ridge partial correlation", "Pearson", "random edges")
    found = {}
    for name in wanted:
        frame = task.score(case, methods("structure")[name].answer(case))
        found[name] = frame.groupby("metric")["value"].mean().to_dict()
    results.add(key, task="dixit", seed=seed, structure=found)


def unseen(results: Results, args, seed: int) -> None:
    """Targets that were never perturbed in training: five folds, the mean effect of the others is all there is."""
    key = f"unseen/{seed}"
    if key in results.done:
        return
    task = papalexi(args, seed)
    label = task.train.obs[task.key].to_numpy()
    targets = np.array(sorted(set(label) - {CONTROL}))
    fold = np.random.default_rng(seed).permutation(len(targets)) % 5
    base = np.asarray(task.train.X)[label == CONTROL].mean(0)
    rows = []
    for k in range(1 if args.small else 5):
        held = set(targets[fold == k])
        cells = task.train[~np.isin(label, list(held))].copy()
        own = cells.obs[task.key].to_numpy()
        cells.obsm["doses"] = pd.DataFrame(
            (own[:, None] == targets).astype(np.float32), index=cells.obs_names, columns=targets
        )
        scvi.settings.seed = seed
        scc.LCD.setup_anndata(cells, intervention_key="doses", control=CONTROL)
        model = scc.LCD(cells, prediction="shift")
        model.train(2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            effects = model.perturbation.effects(sorted(held)).pivot(
                index="intervention", columns="gene", values="change"
            )
        for name in sorted(held):
            true = np.asarray(task.train.X)[label == name].mean(0) - base
            found = effects.loc[name, list(task.train.var_names)].to_numpy()
            error = float(np.square(found - true).sum() / np.square(true).sum())
            rows.append([float(np.corrcoef(found, true)[0, 1]), error])
    r, error = np.mean(rows, axis=0)
    results.add(
        key, task="unseen", seed=seed, unseen={"LCD, mean of others": {"pearson": float(r), "nmse": float(error)}}
    )


def implication(results: Results, args, seed: int) -> None:
    """Whether strong effects in one half of the cells go with differential expression in the other."""
    from sccausal.metrics import de_test

    key = f"implication/{seed}"
    if key in results.done:
        return
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    adata = _plain(adata[adata.obs["perturbation"] != "unassigned"], ["perturbation", "replicate"])
    strata = adata.obs.groupby(["perturbation", "replicate"]).ngroup().to_numpy()
    first, rng = np.zeros(adata.n_obs, dtype=bool), np.random.default_rng(seed)
    for k in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == k))
        first[rows[: len(rows) // 2]] = True
    keys = {"intervention_key": "perturbation", "control": CONTROL, "batch_key": "replicate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = scc.tl.clipr(adata[first].copy(), **keys, n_bootstrap=0)
    other = adata[~first]
    label = other.obs["perturbation"].to_numpy()
    X = np.asarray(other.X)
    # differences between the replicates are no effects of the knock-outs
    for replicate in other.obs["replicate"].unique():
        own = (other.obs["replicate"] == replicate).to_numpy()
        X[own] -= X[own & (label == CONTROL)].mean(0)
    hit = pd.DataFrame(
        {k: de_test(X[label == k], X[label == CONTROL]).significant() for k in direct.responses.index},
        index=adata.var_names,
    ).T
    # effects are per unit of the source; knock-outs move sources by very different amounts
    own = [direct.responses.loc[g, g] for g in direct.sources]
    tables = {
        "direct": direct.direct_effects,
        "direct x own change": direct.direct_effects.mul(own, axis=0),
        "total": direct.responses.loc[direct.sources],
    }
    cuts = (0.9, 0.95, 0.99, 0.995)
    found = {k: scc.tl.edge_implication(t, hit, quantiles=cuts).to_dict("records") for k, t in tables.items()}
    results.add(key, task="implication", seed=seed, implication=found, sources=len(direct.sources))


def screens(results: Results, args, seed: int) -> None:
    """Unseen doubles of the benchmark's simulated screens; what is lost without the interactions of the very pairs."""
    from sccausal.benchmark import get_task
    from sccausal.benchmark._task import Request
    from sccausal.benchmark.tasks._cells import score_cells

    task, request = get_task("doubles"), Request(seed, args.small, args.data)
    for dataset in task.datasets[:2]:
        key = f"screens/{dataset.name}/{seed}"
        if key in results.done:
            continue
        case = next(iter(task.cases(dataset.load(request), dataset, request)))
        p = case.problem
        scvi.settings.seed = seed
        cells = p.train.copy()
        scc.LCD.setup_anndata(cells, **p.keys.perturbed())
        model = scc.LCD(cells, prediction="shift")
        model.train(1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        additive = scc.baselines.Additive().fit(p.train, **p.keys.rule())
        found = {
            "additive": additive.predict(p.source, p.interventions),
            "LCD, shift only": model.perturbation.predict(p.source, p.interventions, seed=seed),
        }
        wanted = ["wmse", "pearson_ref", "pds_l1", "pds_cosine", "energy_distance"]
        table = {k: score_cells(case, v, wanted).groupby("metric")["value"].mean().to_dict() for k, v in found.items()}
        table["LCD, interactions known"] = _known_interactions(case, found["LCD, shift only"], wanted)
        results.add(key, task=f"screens, {dataset.name}", seed=seed, screens=table)


def _known_interactions(case: Any, predicted: AnnData, wanted: list[str]) -> dict[str, float]:
    """Scores if the clear departures from the prediction were known from half of the cells, on the other half."""
    from dataclasses import replace

    from sccausal.benchmark.tasks._cells import score_cells

    truth, column = case.truth, case.problem.keys.target
    label, given = truth.obs[column].astype(str).to_numpy(), predicted.obs["intervention"].astype(str).to_numpy()
    codec = InterventionCodec.fit(case.problem.train.obs[column].astype(str), case.problem.keys.control)
    X, told, out = np.asarray(_array(truth.X)), np.zeros(truth.n_obs, dtype=bool), predicted.copy()
    values = np.asarray(_array(predicted.X)).copy()
    for k in np.unique(label):
        rows = np.flatnonzero(label == k)
        half = rows[split_half(len(rows), 0)[0]]
        told[half] = True
        mine = given == codec.canonical(k)
        rest = X[half].mean(0) - values[mine].mean(0)
        values[mine] += np.where(np.abs(rest) > 3 * X[half].std(0) / np.sqrt(len(half)), rest, 0.0)
    out.X = values
    held = replace(case, truth=truth[~told].copy())
    return score_cells(held, out, wanted).groupby("metric")["value"].mean().to_dict()


def _array(X: Any) -> np.ndarray:
    return X.toarray() if hasattr(X, "toarray") else X


def speed(results: Results, args, seed: int) -> None:
    """Seconds of both stages at 1 000 genes x 40 conditions x 100 cells, and of the algebra."""
    if "speed/clipr" not in results.done:
        rng = np.random.default_rng(0)
        times = {}
        for k, d in ((200, 200), (300, 800)) if args.small else ((1000, 1000), (2000, 5000)):
            names = [f"g{i}" for i in range(d)]
            values = 0.1 * rng.normal(size=(k, d))
            values[np.arange(k), np.arange(k)] -= 3
            frame = pd.DataFrame(values, index=names[:k], columns=names)
            with clock() as t:
                scc.tl.clipr(frame)
            times[f"response {k} x {d}"] = t["seconds"]
            with clock() as t, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scc.tl.clipr(frame, penalty="lasso")
            times[f"sparse {k} x {d}"] = t["seconds"]
        results.add("speed/clipr", task="speed", seed=0, times=times)
    for kind in ("none", "zip"):
        if f"speed/{kind}" in results.done:
            continue
        d, k, n = (100, 5, 40) if args.small else (1000, 40, 100)
        rng = np.random.default_rng(0)
        rate = np.exp(rng.normal(0, 1, d))
        change = np.exp(0.5 * rng.normal(size=(k, d)) * (rng.random((k, d)) < 0.1))
        change[0] = 1
        X = rng.poisson(np.repeat(change, n, axis=0) * rate * rng.gamma(5, 0.2, (k * n, d))).astype(np.float32)
        labels = np.repeat([CONTROL, *[f"g{i}" for i in range(1, k)]], n)
        adata = AnnData(X, obs=pd.DataFrame({"p": labels}, index=[f"c{i}" for i in range(k * n)]),
                        var=pd.DataFrame(index=[f"g{i}" for i in range(d)]), layers={"counts": X})  # fmt: skip
        adata.X = np.log1p(X)
        with clock() as t:
            fit(Task(adata, adata, adata, "p", True), 0, None, noise_model=None if kind == "none" else "zip")
        results.add(f"speed/{kind}", task="speed", seed=0, times={f"LCD, noise model {kind}, {d} genes": t["seconds"]})


OTHER = {
    "clipr": clipr, "unseen": unseen, "implication": implication, "screens": screens, "sampler": sampler,
    "dixit": dixit, "speed": speed,
}  # fmt: skip


def run(args) -> Results:
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.tasks:
            OTHER[name](results, args, seed) if name in OTHER else prediction(name, results, args, seed)
    return results


def report(results: Results) -> None:
    long = pd.DataFrame(
        {"task": r["task"], "seed": r["seed"], "method": m, "intervention": i, **v}
        for r in results.rows
        for m, per in r.get("scores", {}).items()
        for i, v in per.items()
    )
    for task, part in long.groupby("task") if len(long) else ():
        table = part.groupby("method", sort=False)[["energy", "mmd2", "rmse"]].mean()
        if task == "papalexi":
            strong = part[part["intervention"].isin(PAPALEXI_STRONG)]
            table["energy, strong"] = strong.groupby("method")["energy"].mean()
        wide = part.pivot_table("energy", ["seed", "intervention"], "method", sort=False).dropna(axis=1)
        if "LCD" in wide and len(wide) > 4:
            table["p against LCD"] = pd.Series(
                {
                    m: 1.0 if (wide[m] == wide["LCD"]).all() else float(wilcoxon(wide[m], wide["LCD"]).pvalue)
                    for m in wide
                }
            )
        show(table.sort_values("energy"), f"{task}: {part['intervention'].nunique()} interventions", 4)
    rows = [
        {"task": r["task"], "method": m, **v} for r in results.rows for m, v in r.get("clipr", {}).items()
    ]  # fmt: skip
    if rows:
        show(pd.DataFrame(rows).groupby(["task", "method"], sort=False).mean(), "Direct effects")
    for field, title in (("sampler", "Samplers"), ("structure", "Dixit"), ("unseen", "Targets never perturbed")):
        rows = [{"method": m, **v} for r in results.rows for m, v in r.get(field, {}).items()]
        if rows:
            show(pd.DataFrame(rows).groupby("method", sort=False).mean(), title)
    rows = [{"task": r["task"], "method": m, **v} for r in results.rows for m, v in r.get("screens", {}).items()]
    if rows:
        show(pd.DataFrame(rows).groupby(["task", "method"], sort=False).mean(), "Simulated screens, unseen doubles")
    rows = [{"effects": m, **v} for r in results.rows for m, k in r.get("implication", {}).items() for v in k]
    if rows:
        table = pd.DataFrame(rows).groupby(["effects", "quantile"], sort=False)
        show(table[["n_edges", "precision", "base_rate", "lift", "p_value"]].mean(), "Edge implies expression")
    times = {k: v for r in results.rows for k, v in r.get("times", {}).items()}
    if times:
        show(pd.Series(times, name="seconds").rename_axis("what").to_frame(), "Seconds")


def main() -> None:
    p = parser(__doc__ or "", default_out="lcd.jsonl")
    p.add_argument("--tasks", nargs="+", default=[*TASKS, *OTHER], choices=[*TASKS, *OTHER])
    p.add_argument("--models", nargs="+", default=["LCD", "LCD, shift only"], choices=list(MODELS))
    args = p.parse_args()
    report(Results(args.out) if args.report else run(args))


if __name__ == "__main__":
    main()
