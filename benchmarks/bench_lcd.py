"""LCD: unseen doubles, knock-outs across replicates, targets never perturbed, and what it costs.

Tasks: ``linear`` and ``hill`` (simulated stationary diffusions, unseen doubles), ``norman`` (five unseen doubles),
``papalexi`` (replicate 2 predicted from its own control cells, trained on replicate 1), ``unseen`` (targets never
perturbed in training) and ``speed``. Predictions stand in one table with the simple rules and a technical duplicate.
Draws are in ``bench_lcd_draws.py``, direct effects in ``bench_clipr.py``, interactions of pairs in
``bench_interactions.py``; all write to one file.
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
from sccausal.metrics import energy_distance, log1p_norm, mmd2, split_half

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
    adata = plain(adata[:, np.asarray((adata[~held].X > 0).sum(0)).ravel() > 0], ["perturbation"])
    control = adata[(adata.obs["perturbation"] == CONTROL).to_numpy()].copy()
    return Task(adata[~held].copy(), adata[held].copy(), control, "perturbation", True)


def papalexi(args, seed: int) -> Task:
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    adata = plain(adata[adata.obs["perturbation"] != "unassigned"], ["perturbation", "replicate"])
    second = (adata.obs["replicate"] == "rep_2").to_numpy()
    label = adata.obs["perturbation"]
    number = label[second].value_counts()
    names = [n for n in number.index[number >= 20] if n != CONTROL]
    test = adata[second & label.isin(names).to_numpy()].copy()
    control = adata[second & (label == CONTROL).to_numpy()].copy()
    return Task(adata[~second].copy(), test, control, "perturbation", True, True)


def plain(adata: AnnData, columns: list[str]) -> AnnData:
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
        # the shift is closed form: the network is not asked
        epochs = 1 if kwargs.get("prediction") == "shift" else 3 if args.small else None
        with clock() as t:
            model = fit(task, seed, epochs, **kwargs)
        predicted = model.perturbation.predict(task.control, interventions=wanted, seed=seed)
        results.add(
            key, task=name, seed=seed, scores={method: by_label(predicted, model.prediction_units == "counts")},
            seconds=t["seconds"], gate=float(model.module.gate.mean()),
        )  # fmt: skip


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


def speed(results: Results, args, seed: int) -> None:
    """Seconds of both stages at 1 000 genes x 40 conditions x 100 cells."""
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


OTHER = {"unseen": unseen, "speed": speed}


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
        # repeating a run on the same cells adds no evidence
        pair = ["intervention"] if task in ("norman", "papalexi") else ["seed", "intervention"]
        wide = part.pivot_table("energy", pair, "method", sort=False).dropna(axis=1)
        for model in [m for m in MODELS if m in wide and len(wide) > 4]:
            table[f"p against {model}"] = pd.Series({m: _paired(wide[m], wide[model]) for m in wide})
        if task == "linear" and {"LCD", "additive", "no change"} <= set(wide):
            worse, margin = wide["LCD"] - wide["additive"], 0.05 * wide["no change"]
            p = wilcoxon(worse - margin, alternative="less").pvalue
            print(f"LCD above additive by {worse.mean():.4f}, margin {margin.mean():.4f}, p of non-inferiority {p:.2g}")
        show(table.sort_values("energy"), f"{task}: {part['intervention'].nunique()} interventions", 4)
    rows = [{"method": m, **v} for r in results.rows for m, v in r.get("unseen", {}).items()]
    if rows:
        show(pd.DataFrame(rows).groupby("method", sort=False).mean(), "Targets never perturbed")
    times = {k: v for r in results.rows for k, v in r.get("times", {}).items()}
    if times:
        show(pd.Series(times, name="seconds").rename_axis("what").to_frame(), "Seconds")


def _paired(a: pd.Series, b: pd.Series) -> float:
    return 1.0 if (a == b).all() else float(wilcoxon(a, b).pvalue)


def main() -> None:
    p = parser(__doc__ or "", default_out="lcd.jsonl")
    p.add_argument("--tasks", nargs="+", default=[*TASKS, *OTHER], choices=[*TASKS, *OTHER])
    p.add_argument("--models", nargs="+", default=["LCD", "LCD, shift only"], choices=list(MODELS))
    args = p.parse_args()
    report(Results(args.out) if args.report else run(args))


if __name__ == "__main__":
    main()
