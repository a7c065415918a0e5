"""Interactions of pairs: what predictions of unseen doubles know of them, and what is lost without them.

Tasks: ``screens`` (unseen doubles of simulated screens with epistasis) and ``gi`` (scores of genetic interactions of
held-out pairs, predicted against observed, by the task ``interactions`` of the package).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scvi
from _common import Results, parser, show
from anndata import AnnData
from scipy.stats import wilcoxon

import sccausal as scc
from sccausal.data import InterventionCodec
from sccausal.metrics import split_half


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


def gi(results: Results, args, seed: int) -> None:
    """Scores of genetic interactions of the benchmark's task, simple rules, LCD's shift and a duplicate."""
    from sccausal.benchmark import get_task, methods
    from sccausal.benchmark._task import Request

    task, request = get_task("interactions"), Request(seed, args.small, args.data)
    for dataset in task.datasets:
        key = f"gi/{dataset.name}/{seed}"
        if key in results.done:
            continue
        case = next(iter(task.cases(dataset.load(request), dataset, request)))
        p, found = case.problem, {}
        for name, method in methods("interactions").items():
            if method.kind != "model":
                answer = method.answer(case)
                found[name] = answer if isinstance(answer, pd.DataFrame) else task.score(case, answer)
        scvi.settings.seed = seed
        cells = p.train.copy()
        scc.LCD.setup_anndata(cells, **p.keys.perturbed())
        model = scc.LCD(cells, prediction="shift")
        model.train(1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        found["LCD, shift only"] = task.score(case, model.perturbation.predict(p.source, p.interventions, seed=seed))
        table = {
            k: {m: dict(zip(v["group"], v["value"], strict=True)) for m, v in frame.groupby("metric")}
            for k, frame in found.items()
        }
        results.add(key, task=f"gi, {dataset.name}", seed=seed, gi=table)


TASKS = {"screens": screens, "gi": gi}


def report(results: Results) -> None:
    rows = [{"task": r["task"], "method": m, **v} for r in results.rows for m, v in r.get("screens", {}).items()]
    if rows:
        show(pd.DataFrame(rows).groupby(["task", "method"], sort=False).mean(), "Simulated screens, unseen doubles")
    long = pd.DataFrame(
        {"task": r["task"], "seed": r["seed"], "method": m, "metric": name, "pair": pair, "value": value}
        for r in results.rows
        for m, per in r.get("gi", {}).items()
        for name, values in per.items()
        for pair, value in values.items()
    )
    for task, part in long.groupby("task", sort=False) if len(long) else ():
        table = part.pivot_table("value", "method", "metric", sort=False)
        # in simulated screens a pair of another seed is another pair
        own = part.assign(pair=part["pair"] + ("" if "norman" in str(task) else part["seed"].astype(str)))
        wide = own[own["metric"] == "gi_magnitude_error"].pivot_table("value", "pair", "method", sort=False)
        rest = [m for m in wide if (wide[m] != wide["LCD, shift only"]).any()]
        table["p, magnitude"] = pd.Series({m: float(wilcoxon(wide[m], wide["LCD, shift only"]).pvalue) for m in rest})
        show(table, f"Genetic interactions: {task}, {len(wide)} pairs")


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
