"""CLIPR: direct effects from perturbations.

Tasks: ``edges`` (edges of linear and Hill systems from raw means), ``clipr`` (the same beside LCD's points of rest),
``dixit`` (edges against held-out cells), ``implication`` (edges of one half of the cells, differential expression of
the other) and ``speed``.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from _common import Results, clock, parser, show
from anndata import AnnData
from bench_lcd import CONTROL, Task, fit, plain
from scipy.stats import wilcoxon

import sccausal as scc
from sccausal.metrics import auprc, direction_accuracy

CASES = [("linear", 1.0, 200), ("linear", 2.0, 50), ("linear", 0.0, 200), ("hill", 0.0, 200)]


def edges(results: Results, args, seed: int) -> None:
    """AUPRC and direction of the estimators that need no model, cheap enough for many systems."""
    for case in CASES:
        key = f"edges/{'/'.join(map(str, case))}/{seed}"
        if key not in results.done:
            adata = _system(*case, seed)
            _judge(results, key, "edges", case, adata, _from_means(adata), seed)


def clipr(results: Results, args, seed: int) -> None:
    """AUPRC and direction of every estimator, on raw means and on LCD's points of rest."""
    for case in CASES:
        key = f"clipr/{'/'.join(map(str, case))}/{seed}"
        if key in results.done:
            continue
        adata = _system(*case, seed)
        found = _from_means(adata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = fit(Task(adata, adata, adata, "intervention", False), seed, 3 if args.small else 20)
            found |= {
                "LCD, response": model.clipr(),
                "LCD, response at modes": model.clipr(kind="mode"),
                "LCD, drift": model.clipr(estimator="drift"),
                "LCD, drift at origin": model.clipr(estimator="drift", reference="origin"),
                "LCD, drift+targets": model.clipr(estimator="drift+targets"),
            }
        _judge(results, key, "clipr", case, adata, found, seed)


def _system(kinetics: str, ratio: float, n: int, seed: int) -> AnnData:
    measurement = {"measurement": "gaussian", "noise_ratio": ratio} if ratio else {"measurement": "none"}
    return scc.datasets.simulate_stationary(
        30, kinetics=kinetics, n_cells=n, degree=2.9, seed=500 + seed, **measurement
    )


def _from_means(adata: AnnData) -> dict[str, Any]:
    keys = {"intervention_key": "intervention", "control": CONTROL, "n_bootstrap": 0, "key_added": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "raw means, response": scc.tl.clipr(adata, **keys),
            "raw means, response, ridge 1e-3": scc.tl.clipr(adata, tikhonov=1e-3, **keys),
            "raw means, drift+targets": scc.tl.clipr(adata, estimator="drift+targets", **keys),
        }


def _judge(
    results: Results, key: str, task: str, case: tuple, adata: AnnData, found: dict[str, Any], seed: int
) -> None:
    kinetics, ratio, n = case
    truth, off = adata.uns["truth"]["adjacency"] != 0, ~np.eye(adata.n_vars, dtype=bool)
    table = {k: v.direct_effects.loc[adata.var_names, adata.var_names].to_numpy() for k, v in found.items()}
    table["responses"] = found["raw means, response"].responses.loc[adata.var_names].to_numpy()
    values = {
        k: {"auprc": auprc(np.abs(m)[off], truth[off]), "direction": direction_accuracy(m, truth),
            "symmetry": getattr(found.get(k), "symmetry_ratio", float("nan"))}
        for k, m in table.items()
    }  # fmt: skip
    name = f"{task} {kinetics}, noise {ratio:g}, {n} cells"
    results.add(key, task=name, seed=seed, clipr=values, chance=float(truth[off].mean()))


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


def implication(results: Results, args, seed: int) -> None:
    """Whether strong effects in one half of the cells go with differential expression in the other."""
    from sccausal.metrics import de_test

    key = f"implication/{seed}"
    if key in results.done:
        return
    adata = sc.read_h5ad(args.data / "papalexi_eccite.h5ad")
    adata = plain(adata[adata.obs["perturbation"] != "unassigned"], ["perturbation", "replicate"])
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


def speed(results: Results, args, seed: int) -> None:
    """Seconds of the algebra; the same for every seed."""
    if "speed/clipr" in results.done:
        return
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


TASKS = {"edges": edges, "clipr": clipr, "dixit": dixit, "implication": implication, "speed": speed}


def report(results: Results) -> None:
    long = pd.DataFrame(
        {"task": r["task"], "seed": r["seed"], "method": m, **v}
        for r in results.rows
        for m, v in r.get("clipr", {}).items()
    )
    for task, part in long.groupby("task", sort=False) if len(long) else ():
        table = part.groupby("method", sort=False)[["auprc", "direction", "symmetry"]].mean()
        wide = part.pivot_table("auprc", "seed", "method", sort=False)
        rest = [m for m in wide if (wide[m] != wide["raw means, response"]).any()]
        table["p against raw means"] = pd.Series(
            {m: float(wilcoxon(wide[m], wide["raw means, response"]).pvalue) for m in rest}
        )
        show(table, f"Direct effects: {task}, {part['seed'].nunique()} systems")
    rows = [{"method": m, **v} for r in results.rows for m, v in r.get("structure", {}).items()]
    if rows:
        show(pd.DataFrame(rows).groupby("method", sort=False).mean(), "Dixit")
    rows = [{"effects": m, **v} for r in results.rows for m, k in r.get("implication", {}).items() for v in k]
    if rows:
        table = pd.DataFrame(rows).groupby(["effects", "quantile"], sort=False)
        show(table[["n_edges", "precision", "base_rate", "lift", "p_value"]].mean(), "Edge implies expression")
    times = {k: v for r in results.rows if r["key"] == "speed/clipr" for k, v in r["times"].items()}
    if times:
        show(pd.Series(times, name="seconds").rename_axis("what").to_frame(), "Seconds")


def main() -> None:
    p = parser(__doc__ or "", default_out="lcd.jsonl")
    p.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    args = p.parse_args()
    results = Results(args.out)
    for seed in range(args.first_seed, args.first_seed + (0 if args.report else args.seeds)):
        for name in args.tasks:
            TASKS[name](results, args, seed)
    report(results)


if __name__ == "__main__":
    main()
