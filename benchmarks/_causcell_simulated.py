"""CausCell on simulated concepts: counterfactuals, disentanglement, and trends in few donors."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from _causcell import CONCEPTS, DAG, fit, leakage, log1p_norm
from _common import Results, clock
from anndata import AnnData
from scipy.special import logsumexp
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score

import sccausal as scc
from sccausal.datasets import _concepts as simulator
from sccausal.datasets import concept_counterfactual, simulate_concepts


def concepts(results: Results, args, seed: int) -> None:
    for dependence in (0.6, 0.8):
        train, test, readers = simulated(args, dependence, seed)
        for method, dag in (("CausCell", DAG), ("CausCell, dag=None", None)):
            if f"concepts-{dependence}/{method}/{seed}" not in results.done:
                with clock() as t:
                    model = fit(train, CONCEPTS, seed, args, dag)
                judge(results, model, train, test, readers, method, dependence, seed, t["seconds"])


def simulated(args, dependence: float, seed: int) -> tuple[AnnData, AnnData, dict]:
    """Training cells, held-out cells and independent classifiers of the labels."""
    adata = simulate_concepts(
        800 if args.small else 3000, 100 if args.small else 400, correlation=dependence, seed=100 + seed
    )
    adata.layers["log_mean"] = log1p_norm(adata.layers["mean"])
    adata.X = log1p_norm(adata.X).astype(np.float32)
    held = np.random.default_rng(seed).random(adata.n_obs) < 0.2
    return adata[~held].copy(), adata[held].copy(), {c: reader(adata, c) for c in CONCEPTS}


def judge(
    results: Results, model, train: AnnData, test: AnnData, readers, method: str, dependence: float, seed: int,
    seconds: float,
) -> None:  # fmt: skip
    """Rows of one trained model: disentanglement, then effects in each mode."""
    for mode in ("do", "shift", "hold") if model.dag else ("do",):
        for do in ({"a": "a1"}, {"b": "b1"}, {"d": "d2"}):
            name = method if mode == "do" else f"{method}, {mode}"
            (k, v), *_ = do.items()
            results.add(
                f"effect-{dependence}/{name}/{k}={v}/{seed}", task=f"effect-{dependence}", method=name, seed=seed,
                do=f"{k}={v}", **judged(model, train, test, do, mode, readers),
            )  # fmt: skip
    for do in ({"b": "b1"}, {"d": "d2"}) if model.dag else ():
        (k, v), *_ = do.items()
        results.add(
            f"effect-{dependence}/{method}, shared noise/{k}={v}/{seed}", task=f"effect-{dependence}", seed=seed,
            method=f"{method}, shared noise", do=f"{k}={v}",
            **judged(model, train, test, do, "do", readers, abduction="shared"),
        )  # fmt: skip
    results.add(
        f"concepts-{dependence}/{method}/{seed}", task=f"concepts-{dependence}", method=method, seed=seed,
        seconds=seconds, **leakage(model, train, test, CONCEPTS), **legible(test),
    )  # fmt: skip


def legible(test: AnnData) -> dict[str, float]:
    """Balanced accuracy of reading each concept from counts by one who knows all else about the cell.

    The likelihood of the counts under each level, over the law of how strongly the cell responds to this concept, with
    the cell's size, state, donor, other concepts and all parameters known. No probe can be better.
    """
    p = simulator._Parameters(**json.loads(str(test.uns["truth"]["concepts"])))
    system, noise = simulator._build(p), simulator._draw(p)
    cells = test.obs["cell_index"].to_numpy().astype(int)
    codes = simulator._labels(p, noise, {}).iloc[cells]
    counts, r = np.asarray(test.layers["counts"], dtype=float), 1 / p.dispersion
    states = p.state * np.tanh(noise.state[cells] @ system.programmes.T)
    basal = np.exp(system.basal + states + system.donor[noise.donor[cells]])
    age = 2.0 * simulator._hill(np.maximum(codes["age"].to_numpy() - 10.0, 0.0) / 40.0)[:, None] * system.drive["age"]
    drives = {c: system.drive[c][codes[c].to_numpy().astype(int)] for c in CONCEPTS} | {"age": age}
    drives = {c: x * noise.gain[cells, k][:, None] for k, (c, x) in enumerate(drives.items())}
    gains = np.exp(0.5 * norm.ppf((np.arange(21) + 0.5) / 21))

    def log_likelihood(others: list[np.ndarray], drive: np.ndarray) -> np.ndarray:
        up, down = (sum(np.maximum(s * x, 0) for x in [*others, drive]) for s in (1, -1))
        rate = basal * (1 + system.amplitude * simulator._hill(up)) / (1 + system.amplitude * simulator._hill(down))
        mean = p.library_size * noise.library[cells][:, None] * rate / rate.sum(1, keepdims=True)
        return (counts * np.log(mean / (mean + r)) - r * np.log1p(mean / r)).sum(1)

    out = {}
    for c in CONCEPTS:
        others = [x for name, x in drives.items() if name != c]
        found = [
            logsumexp([log_likelihood(others, level * g) for g in gains], axis=0) for level in system.drive[c]
        ]  # fmt: skip
        out[f"legible_{c}"] = float(balanced_accuracy_score(codes[c], np.argmax(found, axis=0)))
    return out


def reader(adata: AnnData, concept: str):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=300).fit(adata.X, adata.obs[concept])


def judged(
    model, train: AnnData, test: AnnData, do: dict[str, str], mode: str, readers, **options
) -> dict[str, float]:  # fmt: skip
    (name, value), *_ = do.items()
    source = test[(test.obs[name] != value).to_numpy()].copy()
    truth = concept_counterfactual(source, do)
    change = log1p_norm(truth.layers["mean"]) - source.layers["log_mean"]
    has = (train.obs[name] == value).to_numpy()
    shift = train.X[has].mean(0) - train.X[~has].mean(0)
    predicted = model.counterfactual(source, do, mode, n_samples=4, **options)
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


def donors(results: Results, args, seed: int, affected: float = 0.15, task: str = "donors") -> None:
    """Trend with age when donors are few: refits over donors, and regression of donor means on the same cells."""
    key = f"{task}/{seed}"
    if key in results.done:
        return
    import statsmodels.api as sm

    n_donors, per_donor = 10, 20 if args.small else 30
    adata = simulate_concepts(
        n_donors * per_donor,
        150,
        n_donors=n_donors,
        age_by="donor",
        age_levels=0,
        donor_strength=0.1,
        affected=affected,
        seed=100 + seed,
    )
    adata.layers["log_mean"] = log1p_norm(adata.layers["mean"])
    adata.X = log1p_norm(adata.X).astype(np.float32)
    old, young = (log1p_norm(concept_counterfactual(adata, {"age": v}).layers["mean"]) for v in (77, 23))
    effect = (old - young).mean(0)
    # relative expression moves every gene a little: null is what the concept does not act on and hardly moves
    null = ~adata.var["acts_age"].to_numpy() & (np.abs(effect) < 0.05)
    real = np.abs(effect) > 0.3
    model = fit(adata, ["a", "b"], seed, args, {"b": ["a"]}, time_key="age")
    table = scc.tl.concept_de(
        model, "age", 77.0, unit_key="donor", n_refits=4 if args.small else 10, warm_start=True,
        train={"max_epochs": 10 if args.small else 40}, seed=seed,
    )  # fmt: skip
    means = pd.DataFrame(adata.X).groupby(adata.obs["donor"].astype(str).to_numpy()).mean()
    ages = adata.obs.groupby("donor", observed=True)["age"].first().loc[means.index].to_numpy()
    p = np.array([sm.OLS(means[g], sm.add_constant(ages)).fit().pvalues.iloc[1] for g in means])
    for method, found in (("CausCell, refits over donors", table["p_value"].to_numpy()), ("donor means on age", p)):
        results.add(
            f"{key}/{method}" if method != "donor means on age" else key, task=task, method=method, seed=seed,
            false_positives=float((found[null] < 0.05).mean()), n_null=int(null.sum()),
            power=float((found[real] < 0.05).mean()), n_real=int(real.sum()),
        )  # fmt: skip
