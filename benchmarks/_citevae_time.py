"""Predictions of CITE-VAE over time: simulated interventions beside simple rules, and real time courses."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from _common import Results, clock
from anndata import AnnData

import sccausal as scc
from sccausal.metrics import auprc, auroc, energy_distance, log1p_norm

CONTROL = "control"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "CITE-VAE": {},
    "no alignment": {"alignment": "none"},
    "no sparsity": {"gate_weight": 0.0},
    "no alignment, no sparsity": {"alignment": "none", "gate_weight": 0.0},
    "no dynamics": {"dynamics_weight": 0.0},
}


def course(args: Any, seed: int) -> tuple[AnnData, dict[str, np.ndarray], list[str], list[str]]:
    size = (30, 100, 9) if args.small else (150, 300, 20)
    adata = scc.datasets.simulate_time_course(*size, seed=2000 + seed)
    cells = log1p_norm(adata)
    cells.uns["truth"] = adata.uns["truth"]
    label = cells.obs["intervention"].astype(str).to_numpy()
    names = np.random.default_rng(seed).permutation(sorted(set(label) - {CONTROL}))
    third = len(names) // 3
    unseen, early = list(names[:third]), list(names[third : 2 * third])
    late = cells.obs["time"].isin(np.unique(cells.obs["time"])[-2:]).to_numpy()
    masks = {"a": np.isin(label, unseen), "b": np.isin(label, early) & late}
    cells.obsm["doses"] = pd.DataFrame(
        {n: (label == n).astype(np.float32) for n in sorted(names)}, index=cells.obs_names
    )
    return cells, masks, unseen, early


def fit_course(train: AnnData, seed: int, args: Any, **init: Any) -> scc.CITEVAE:
    scvi.settings.seed = seed
    cells = train.copy()
    scc.CITEVAE.setup_anndata(cells, intervention_key="doses", control=CONTROL, time_key="time")
    model = scc.CITEVAE(cells, **init)
    model.train(args.epochs or (3 if args.small else None), train_size=1.0, **QUIET)
    return model


def means_of(predict: Any, cells: AnnData, names: list[str], times: list[float]) -> pd.DataFrame:
    """Predicted mean expression by (intervention, time), from control cells of the time."""
    rows = {}
    for time in times:
        at = ((cells.obs["intervention"] == CONTROL) & (cells.obs["time"] == time)).to_numpy()
        out = predict(cells[at].copy(), names, time)
        for name in names:
            own = (out.obs["intervention"] == name).to_numpy()
            rows[name, time] = np.asarray(out.X[own].mean(0)).ravel()
    return pd.DataFrame(rows, index=cells.var_names).T


def score_means(found: pd.DataFrame, cells: AnnData, de: set[str], own: bool) -> dict[str, float]:
    """Mean over groups of RMSE, MAE, Pearson of control-centred effects, and of the DE genes' ranking."""
    label, time = cells.obs["intervention"].astype(str).to_numpy(), cells.obs["time"].to_numpy()
    rows = []
    for (name, t), predicted in found.iterrows():
        keep = np.ones(cells.n_vars, bool) if own else (cells.var_names != name)
        true = np.asarray(cells.X[(label == name) & (time == t)].mean(0)).ravel()
        base = np.asarray(cells.X[(label == CONTROL) & (time == t)].mean(0)).ravel()
        p, y, b = predicted.to_numpy()[keep], true[keep], base[keep]
        top = np.zeros(len(y), bool)
        top[np.argsort(-np.abs(y - b))[: min(100, len(y) // 5)]] = True
        fixed = np.isin(cells.var_names[keep], list(de))
        size = np.abs(p - b) + 1e-12 * np.arange(len(p))  # ties of "no change" are no ranking
        rows.append(
            {
                "rmse": np.sqrt(np.mean((p - y) ** 2)),
                "mae": np.abs(p - y).mean(),
                "pearson": np.corrcoef(p - b, y - b)[0, 1] if np.std(p - b) > 1e-9 else 0.0,
                "auroc_own_de": auroc(size, top),
                "auprc_own_de": auprc(size, top),
                "auprc_train_de": auprc(size, fixed) if fixed.any() else np.nan,
            }  # fmt: skip
        )
    return pd.DataFrame(rows).mean().to_dict()


def time_task(results: Results, args: Any, seed: int) -> None:
    cells, masks, unseen, early = course(args, seed)
    train = cells[~(masks["a"] | masks["b"])].copy()
    train.uns.pop("truth", None)
    times = sorted(np.unique(cells.obs["time"]))
    asked = {"a": (unseen, times), "b": (early, times[-2:])}
    de = training_de(train)
    features = embedding_of(train)
    shuffled = pd.DataFrame(np.random.default_rng(seed).permutation(features.to_numpy()), index=features.index)
    variants: dict[str, Any] = VARIANTS | {
        "given features": {"intervention_embedding": features},
        "shuffled features": {"intervention_embedding": shuffled},
    }
    todo = ("no change", "persistence", "time mean", "time additive", "elastic net", "ridge")
    for name in [*todo, *(args.methods or variants)]:
        key = f"time/{seed}/{name}"
        if key in results.done or (name not in todo and name not in variants):
            continue
        with clock() as t, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predict = rule(name, train, features) if name in todo else model_predict(train, seed, args, variants[name])
            found = {k: means_of(predict, cells, *asked[k]) for k in asked}
        scores = {
            f"{k}{'' if own else ' without own genes'}": score_means(found[k], cells, de, own)
            for k in found
            for own in (True, False)
        }
        results.add(key, task="time", seed=seed, method=name, scores=scores, seconds=t["seconds"],
                    by_target=severity(found["a"], cells, features, train))  # fmt: skip


def model_predict(train: AnnData, seed: int, args: Any, init: dict[str, Any]) -> Any:
    model = fit_course(train, seed, args, **init)
    return lambda source, names, time: model.perturbation.predict(source, names, times=[time])


def rule(name: str, train: AnnData, features: pd.DataFrame) -> Any:
    if name == "ridge":
        return ridge_rule(train, features)
    bl = scc.baselines
    made = {
        "no change": None, "persistence": bl.Persistence(), "time mean": bl.TimeMean(),
        "time additive": bl.TimeAdditive(), "elastic net": bl.ElasticNetEmbedding(features),
    }[name]  # fmt: skip
    if made is None:
        return lambda source, names, time: _repeated(source, names)
    made.fit(train, intervention_key="doses", control=CONTROL, time_key="time")
    return lambda source, names, time: made.predict(source, names, times=[time])


def _repeated(source: AnnData, names: list[str]) -> AnnData:
    import anndata as ad

    parts = [AnnData(source.X, obs=pd.DataFrame({"intervention": [n] * source.n_obs}), var=source.var) for n in names]
    return ad.concat(parts, index_unique="-")


def ridge_rule(train: AnnData, features: pd.DataFrame) -> Any:
    """Ridge from features to mean effects, time by time, the penalty by leaving interventions out."""
    from sklearn.linear_model import RidgeCV

    label, time = train.obs["intervention"].astype(str).to_numpy(), train.obs["time"].to_numpy()
    fits = {}
    for t in np.unique(time):
        base = np.asarray(train.X[(label == CONTROL) & (time == t)].mean(0)).ravel()
        names = sorted(set(label[time == t]) - {CONTROL})
        y = np.stack([np.asarray(train.X[(label == n) & (time == t)].mean(0)).ravel() - base for n in names])
        fits[t] = RidgeCV(np.logspace(-1, 4, 11)).fit(features.loc[names].to_numpy(), y)

    def predict(source: AnnData, names: list[str], t: float) -> AnnData:
        out = _repeated(source, names)
        effect = fits[t].predict(features.loc[names].to_numpy())
        values = out.X.toarray() if hasattr(out.X, "toarray") else np.array(out.X)
        out.X = values + np.repeat(effect, source.n_obs, 0)
        return out

    return predict


def embedding_of(train: AnnData) -> pd.DataFrame:
    """Standardised loadings of each target's gene on principal components of training control cells."""
    control = train[(train.obs["intervention"] == CONTROL).to_numpy()]
    values = control.X.toarray() if hasattr(control.X, "toarray") else np.asarray(control.X)
    axes = np.linalg.svd(values - values.mean(0), full_matrices=False)[2][:20].T
    names = list(train.obsm["doses"].columns)
    table = pd.DataFrame(axes[train.var_names.get_indexer(names)], index=names)
    return (table - table.mean()) / table.std()


def training_de(train: AnnData, top: int = 50) -> set[str]:
    label = train.obs["intervention"].astype(str).to_numpy()
    base = np.asarray(train.X[label == CONTROL].mean(0)).ravel()
    size = np.zeros(train.n_vars)
    for name in set(label) - {CONTROL}:
        size = np.maximum(size, np.abs(np.asarray(train.X[label == name].mean(0)).ravel() - base))
    return set(train.var_names[np.argsort(-size)[: min(top, train.n_vars // 5)]])


def severity(found: pd.DataFrame, cells: AnnData, features: pd.DataFrame, train: AnnData) -> list[dict[str, Any]]:
    """Error of each unseen intervention beside the similarity of its features to the nearest training target."""
    label = train.obs["intervention"].astype(str)
    known = features.loc[sorted(set(label) - {CONTROL})].to_numpy()
    known = known / np.linalg.norm(known, axis=1, keepdims=True)
    rows = []
    for name, part in found.groupby(level=0):
        own = features.loc[name].to_numpy()
        similarity = float((known @ (own / np.linalg.norm(own))).max())
        rows.append({"target": name, "similarity": similarity, **score_means(part, cells, set(), False)})
    return rows


# ---------------------------------------------------------------------------------------------------- real time courses


def real(results: Results, args: Any, seed: int) -> None:
    """Every inner time held out in turn; energy distance of predicted to held-out cells."""
    for name, path in (("mesc", "mesc_semrau_timecourse.h5ad"), ("mdc", "beeline/mDC/expression.h5ad")):
        adata = sc.read_h5ad(args.data / path)
        values = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
        adata = AnnData(
            values.astype(np.float32), obs=adata.obs[["time"]].astype(float), var=pd.DataFrame(index=adata.var_names)
        )
        if adata.n_vars > 300:
            adata = adata[:, np.argsort(-adata.X.var(0))[:300]].copy()
        times = np.unique(adata.obs["time"])
        for held in times[1:-1]:
            key = f"real/{seed}/{name}/{held:g}"
            if key not in results.done:
                results.add(
                    key, task="real", seed=seed, data=name, time=held, scores=interpolated(adata, held, seed, args)
                )


def interpolated(adata: AnnData, held: float, seed: int, args: Any) -> dict[str, float]:
    time = adata.obs["time"].to_numpy()
    before, after = time[time < held].max(), time[time > held].min()
    cells = {t: np.asarray(adata.X[time == t]) for t in (before, held, after)}
    share = (held - before) / (after - before)
    rng = np.random.default_rng(seed)
    n = min(len(cells[before]), len(cells[after]))
    first, last = (rng.permutation(cells[t])[:n] for t in (before, after))
    scvi.settings.seed = seed
    train = adata[time != held].copy()
    scc.CITEVAE.setup_anndata(train, time_key="time")
    model = scc.CITEVAE(train, n_invariant=8, n_responsive=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(args.epochs or (3 if args.small else 60), train_size=1.0, **QUIET)
    rolled = np.asarray(model.rollout(adata[time == before].copy(), [held], seed=seed).X)
    picked = rng.random(n) < share
    half = rng.permutation(cells[held])
    return {
        "CITE-VAE": energy_distance(rolled, cells[held]),
        "nearest time": min(energy_distance(cells[t], cells[held]) for t in (before, after)),
        "linear interpolation of pairs": energy_distance((1 - share) * first + share * last, cells[held]),
        "mixture of neighbours": energy_distance(np.where(picked[:, None], last, first), cells[held]),
        "duplicate": energy_distance(half[: len(half) // 2], half[len(half) // 2 :]),
    }
