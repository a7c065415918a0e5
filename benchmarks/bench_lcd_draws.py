"""LCD's draws on the papalexi knock-outs: samplers against each other, and draws of the noise model against counts.

Tasks: ``sampler`` (probability flow against annealed Langevin of the paper, in energy distance to held-out cells) and
``counts`` (moments, zeros and dependence of genes of drawn and held-out counts). Models are trained on half of the
cells of replicate 1 and judged on the other half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from _common import Results, clock, parser, show
from anndata import AnnData
from bench_lcd import CONTROL, MAX_CELLS, Task, fit, papalexi
from scipy.spatial.distance import cdist

from sccausal.metrics import energy_distance

SAMPLERS: dict[str, dict[str, Any]] = {
    "heun, 36 calls": {},
    "heun, 60 calls": {"n_levels": 30},
    "annealed Langevin, 15000 calls": {"sampler": "annealed_langevin", "n_steps": 500},
    "annealed Langevin, 750 calls": {"sampler": "annealed_langevin", "n_steps": 25, "step": 0.1},
}


def sampler(results: Results, args, seed: int) -> None:
    """Probability flow and annealed Langevin against held-out cells of replicate 1, knock-out by knock-out."""
    key = f"sampler/{seed}"
    if key in results.done:
        return
    train, held = _halves(papalexi(args, seed), seed)
    model = fit(train, seed, 3 if args.small else None)
    labels, own = held.obs[train.key].to_numpy(), train.train.obs[train.key].to_numpy()
    base, cells = np.asarray(held.X)[labels == CONTROL], np.asarray(train.train.X)
    asked = ["IFNGR1", "STAT1", "IRF1"]
    truth = {k: np.asarray(held.X)[labels == k][:MAX_CELLS] for k in asked}
    drawn, seconds = {}, {}
    for name, options in SAMPLERS.items():
        if args.small and "15000" in name:
            options = {**options, "n_steps": 5}
        with clock() as t:
            found = model.sample(asked, 60 if args.small else 300, seed=seed, **options)
        names = found.obs["intervention"].astype(str).to_numpy()
        drawn[name], seconds[name] = {k: np.asarray(found.X)[names == k] for k in asked}, t["seconds"]
    rules = {
        "control cells": dict.fromkeys(asked, base[:MAX_CELLS]),
        "label mean": {k: np.repeat(cells[own == k].mean(0, keepdims=True), 300, axis=0) for k in asked},
        "training cells again": {k: cells[own == k][:300] for k in asked},
    }
    out = {
        name: {k: {"energy": energy_distance(x[k], truth[k])} for k in asked} for name, x in {**drawn, **rules}.items()
    }
    first, slow = list(SAMPLERS)[0], list(SAMPLERS)[2]
    for k in asked:
        out[first][k]["error of difference"] = _difference_error(drawn[first][k], drawn[slow][k], truth[k], seed)
    results.add(key, task="sampler", seed=seed, samplers=out, seconds=seconds)


def _halves(task: Task, seed: int) -> tuple[Task, AnnData]:
    """The task with half of its training cells, and the other half."""
    half = np.random.default_rng(seed).random(task.train.n_obs) < 0.5
    return task._replace(train=task.train[half].copy()), task.train[~half].copy()


def _difference_error(x: np.ndarray, y: np.ndarray, truth: np.ndarray, seed: int, n: int = 200) -> float:
    """Bootstrap standard error of the difference of two energy distances to the same cells."""
    rng, sizes = np.random.default_rng(seed), (len(x), len(y), len(truth))
    joint = np.concatenate([x, y, truth])
    distance = cdist(joint, joint)
    a, b, c = np.split(np.arange(len(joint)), np.cumsum(sizes)[:2])
    values = []
    for _ in range(n):
        w = [rng.multinomial(k, np.full(k, 1 / k)) / k for k in sizes]
        # the spread of the truth is in both distances and cancels
        to_x, to_y = (2 * w[i] @ distance[np.ix_(r, c)] @ w[2] for i, r in ((0, a), (1, b)))
        within = [w[i] @ distance[np.ix_(r, r)] @ w[i] for i, r in ((0, a), (1, b))]
        values.append((to_x - within[0]) - (to_y - within[1]))
    return float(np.std(values, ddof=1))


def counts(results: Results, args, seed: int) -> None:
    """What draws of each label have in common with held-out cells of it: moments, zeros, dependence of genes."""
    key = f"counts/{seed}"
    if key in results.done:
        return
    task, held = _halves(papalexi(args, seed), seed)
    labels, own = held.obs[task.key].to_numpy(), task.train.obs[task.key].to_numpy()
    asked = sorted(k for k in set(labels) if (labels == k).sum() >= 100 and k != CONTROL)
    X, Y = np.asarray(task.train.layers["counts"]), np.asarray(held.layers["counts"])
    rng, n, out = np.random.default_rng(seed), 60 if args.small else 500, {}
    drawn = {"training cells again": {k: X[own == k][:n] for k in asked}}
    drawn["gamma-Poisson, gene by gene"] = {k: _gamma_poisson(X[own == k], n, rng) for k in asked}
    for name, kwargs in (("LCD, noise model", {"noise_model": "zip"}), ("LCD, log-normalised", {})):
        with clock() as t:
            model = fit(task, seed, 3 if args.small else None, **kwargs)
        found = model.sample(asked, n, seed=seed)
        names = found.obs["intervention"].astype(str).to_numpy()
        drawn[name] = {k: np.asarray(found.X)[names == k] for k in asked}
        out[f"seconds, {name}"] = t["seconds"]
    table = {}
    for name, per in drawn.items():
        counted = "log" not in name
        rows = [_moments(per[k], Y[labels == k][:MAX_CELLS], counted) for k in asked]
        table[name] = {m: float(np.mean([r[m] for r in rows])) for m in rows[0]}
    results.add(key, task="counts", seed=seed, counts=table, labels=asked, **out)


def _gamma_poisson(X: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Counts (n, d) of independent genes with the mean and variance of the cells."""
    mean, variance = X.mean(0), X.var(0)
    size = np.clip(mean**2 / np.maximum(variance - mean, 1e-6), 1e-2, 1e4)
    return rng.poisson(rng.gamma(size, np.maximum(mean, 1e-9) / size, (n, X.shape[1]))).astype(np.float32)


def _moments(x: np.ndarray, y: np.ndarray, counted: bool) -> dict[str, float]:
    """Agreement of draws with cells, on log1p(1e4) for all and on counts for those who draw counts."""
    scale = [v / np.maximum(v.sum(1, keepdims=True), 1) * 1e4 for v in (x, y)]
    a, b = np.log1p(scale[0]) if counted else x, np.log1p(scale[1])
    seen = (y > 0).mean(0) > 0.05
    upper = np.triu_indices(int(seen.sum()), 1)
    dependence = [np.corrcoef(v[:, seen].T)[upper] for v in (a + 1e-9 * np.random.default_rng(0).random(a.shape), b)]
    out = {
        "energy": energy_distance(a[:MAX_CELLS], b),
        "mean error": float(np.sqrt(((a.mean(0) - b.mean(0)) ** 2).mean())),
        "variance ratio": float(np.median(a[:, seen].var(0) / b[:, seen].var(0))),
        "zero share error": float(np.abs((a <= 1e-6).mean(0) - (b == 0).mean(0))[seen].mean()),
        "correlation of correlations": float(np.corrcoef(*dependence)[0, 1]),
    }
    nan = float("nan")
    out["variance ratio of counts"] = float(np.median(x[:, seen].var(0) / y[:, seen].var(0))) if counted else nan
    out["log error of mean counts"] = (
        float(np.abs(np.log((x[:, seen].mean(0) + 0.01) / (y[:, seen].mean(0) + 0.01))).mean()) if counted else nan
    )
    return out


def report(results: Results) -> None:
    rows = [r for r in results.rows if "samplers" in r]
    long = pd.DataFrame(
        {"seed": r["seed"], "method": m, "intervention": k, **v}
        for r in rows
        for m, per in r["samplers"].items()
        for k, v in per.items()
    )
    if len(long):
        table = long.groupby("method", sort=False)[["energy"]].mean()
        table["seconds"] = pd.DataFrame([r["seconds"] for r in rows]).mean()
        show(table, "Samplers: energy distance to held-out cells")
        wide = long.pivot_table("energy", ["seed", "intervention"], "method", sort=False)
        first, slow = list(SAMPLERS)[0], list(SAMPLERS)[2]
        error = long[long["method"] == first].set_index(["seed", "intervention"])["error of difference"]
        found = pd.DataFrame({"difference": (wide[first] - wide[slow]).abs(), "2 SE": 2 * error})
        found["5 % of control"] = 0.05 * wide["control cells"]
        found["met"] = found["difference"] <= found[["2 SE", "5 % of control"]].max(axis=1)
        show(found.groupby("intervention").mean(), f"{first} against {slow}")
    rows = [{"method": m, **v} for r in results.rows if r["task"] == "counts" for m, v in r["counts"].items()]
    if rows:
        show(pd.DataFrame(rows).groupby("method", sort=False).mean(), "Drawn against held-out counts")


TASKS = {"sampler": sampler, "counts": counts}


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
