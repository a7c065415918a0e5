"""Several methods scored on the same groups of cells, with floor and ceiling in the same table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.metrics import _bulk
from sccausal.metrics._info import METRICS
from sccausal.metrics._input import gene_names, matrix
from sccausal.metrics._scores import DISTRIBUTION, Truth, _at_most, check_metrics

ACROSS = ("centroid_accuracy", "pds_cosine", "pds_l1", "diversity")
"""Metrics that compare interventions with each other; they need two interventions in a stratum."""

Key = tuple[str, ...]


class _Side(NamedTuple):
    """One set of cells with the group of each."""

    X: np.ndarray
    keys: pd.Series  # (n,) tuples

    def cells(self, key: Key) -> np.ndarray:
        return self.X[np.flatnonzero((self.keys == key).to_numpy())]


def evaluate_predictions(
    predictions: Mapping[str, AnnData],
    true: AnnData,
    control: AnnData,
    *,
    by: Sequence[str] | str = ("intervention",),
    intervention_key: str | None = None,
    metrics: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    top: int = 100,
    duplicate: bool = True,
    no_change: bool = True,
    reference: pd.Series | np.ndarray | None = None,
    context: AnnData | None = None,
    de_method: Literal["welch", "wilcoxon"] = "welch",
    layer: str | None = None,
    max_cells: int | None = 1000,
    sep: str = "+",
    seed: int = 0,
) -> pd.DataFrame:
    """Score predictions of several methods, group by group, on the same genes, cells and DE sets.

    Parameters
    ----------
    predictions
        Predicted cells by method, in the prediction schema.
    true
        Observed cells under the interventions, log1p(1e4); without control cells.
    control
        Observed control cells.
    by
        Columns that define a group. ``"intervention"`` is the perturbed variable; further ones, such as the cell type,
        must be columns of all sets, and control cells are then taken from the same stratum.
    intervention_key
        Column of ``true`` with the perturbed variable (a condition, say); default ``"intervention"``.
    metrics
        Names or the groups "bulk", "de", "distribution", "across"; default all.
    genes
        Genes to score, fixed in advance; default all of ``true``.
    top
        Genes in the "top" scores: largest absolute Welch t between true and control cells of the group.
    duplicate
        Add the ceiling ``"duplicate"``: one half of the true cells predicts the other half.
    no_change
        Add the floor ``"no change"``: the control cells themselves, unless a method has that name.
    reference
        Mean of the (training) perturbation centroids for ``pearson_ref``; default the mean of the true centroids of the
        stratum where it has three or more.
    context
        More observed cells under the interventions, such as those of the training types, for ``adjusted_r2_top``; needs
        a second column in ``by``.
    de_method
        ``"welch"`` or ``"wilcoxon"``.
    layer
        Layer of ``true``, ``control`` and ``context``.
    max_cells
        At most so many cells per side in the distribution metrics.
    sep
        ``"B+A"`` and ``"A+B"`` are one group.
    seed
        Seed of all halves and draws; every method sees the same.

    Returns
    -------
    Tidy DataFrame ``method, group, <by...>, metric, value, direction, unit``. Average it with :func:`summarise`, scale
    it with :func:`add_scaled`.

    Raises
    ------
    sccausal._errors.InputDataError
        A method has no cells for a group, genes differ, or values are not finite or look like counts.
    sccausal._errors.UnknownNameError
        A column or metric does not exist.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0))
    >>> control = adata[(adata.obs["intervention"] == "control").to_numpy()].copy()
    >>> true = adata[(adata.obs["intervention"] == "G0007").to_numpy()].copy()
    >>> rule = scc.baselines.PerturbedMean().fit(adata, intervention_key="intervention", control="control")
    >>> predictions = {"perturbed mean": rule.predict(interventions=["G0007"])}
    >>> scc.metrics.evaluate_predictions(predictions, true, control, metrics=["rmse"])[["method", "group", "metric"]]
               method  group metric
    0  perturbed mean  G0007   rmse
    1       no change  G0007   rmse
    2       duplicate  G0007   rmse
    """
    columns = [by] if isinstance(by, str) else list(by)
    if "intervention" not in columns:
        raise SetupError(f"`by` must hold 'intervention', the perturbed variable; got {columns}.")
    wanted = check_metrics(_expand(metrics), ACROSS)
    strata = [c for c in columns if c != "intervention"]
    order = gene_names(true) if genes is None else pd.Index([str(g) for g in genes])
    names = {c: c for c in columns} | {"intervention": intervention_key or "intervention"}
    truth = _side(true, "The true cells", order, [names[c] for c in columns], sep, layer, names["intervention"])
    base = _side(control, "The control cells", order, strata, sep, layer)
    sides = {m: _side(p, f"The prediction of {m!r}", order, columns, sep) for m, p in predictions.items()}
    extra = (
        None
        if context is None
        else _side(context, "`context`", order, [names[c] for c in columns], sep, layer, names["intervention"])
    )
    groups: list[Key] = sorted(set(truth.keys))
    _check_groups(groups, sides, base, columns)
    fixed = None if reference is None else np.asarray(reference, dtype=np.float64)
    means = {k: truth.cells(k).mean(axis=0) for k in groups}
    rows: list[dict[str, object]] = []
    pred_means: dict[tuple[str, Key], np.ndarray] = {}
    for key in groups:
        cells = truth.cells(key)
        judge = Truth(
            cells,
            base.cells(_stratum(key, columns)),
            top=top,
            reference=_reference(fixed, means, key, columns),
            true_types=_types(means, extra, key, columns) if strata else None,
            seed=seed,
            de_method=de_method,
        )
        sets = {m: s.cells(key) for m, s in sides.items()}
        if no_change:
            sets.setdefault("no change", judge.control)
        for method, X in sets.items():
            pred_means[method, key] = X.mean(axis=0)
            rows += _rows(method, key, columns, _score(judge, X, wanted, max_cells, seed))
        if duplicate and len(cells) >= 4:
            half, scores = _duplicate(judge, wanted, max_cells, seed)
            pred_means["duplicate", key] = half
            rows += _rows("duplicate", key, columns, scores)
    rows += _across(pred_means, means, base, columns, wanted)
    out = pd.DataFrame(rows)
    if out.empty:
        raise InputDataError("No score could be computed: the metrics asked for need two interventions in a stratum.")
    return out


def _score(judge: Truth, X: np.ndarray, wanted: set[str], max_cells: int | None, seed: int) -> dict[str, float]:
    within = [m for m in wanted if m not in ACROSS and m not in DISTRIBUTION]
    values = judge.scores(X, within)
    clouds = [m for m in DISTRIBUTION if m in wanted]
    if clouds:
        rng = np.random.default_rng(seed)
        if judge.cloud is None:
            judge.cloud = _at_most(judge.true, max_cells, rng)
        values |= judge.distribution(_at_most(X, max_cells, np.random.default_rng(seed + 1)), clouds)
    return values


def _duplicate(judge: Truth, wanted: set[str], max_cells: int | None, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """One half of the true cells scored against the other, on the genes and control cells of the group."""
    first, second = _bulk.split_half(len(judge.true), seed)
    other = Truth(
        judge.true[second],
        judge.control,
        top=judge.top,
        top_genes=judge.top_genes,
        reference=judge.reference,
        true_types=judge.true_types,
        seed=seed,
        de_method=judge.de_method,
    )
    X = judge.true[first]
    return X.mean(axis=0), _score(other, X, wanted, max_cells, seed)


def _across(
    preds: dict[tuple[str, Key], np.ndarray],
    means: dict[Key, np.ndarray],
    base: _Side,
    columns: list[str],
    wanted: set[str],
) -> list[dict[str, object]]:
    """Scores of interventions against each other within a stratum."""
    rows: list[dict[str, object]] = []
    for stratum in sorted({_stratum(k, columns) for k in means}):
        keys = [k for k in means if _stratum(k, columns) == stratum]
        if len(keys) < 2 or not wanted & set(ACROSS):
            continue
        control = base.cells(stratum).mean(axis=0)
        true = np.asarray([means[k] for k in keys])
        for method in dict.fromkeys(m for m, _ in preds):
            if any((method, k) not in preds for k in keys):
                continue
            pred = np.asarray([preds[method, k] for k in keys])
            scores = {
                "centroid_accuracy": _bulk.centroid_accuracy(pred, true),
                "pds_cosine": _bulk.discrimination_score(pred, true, metric="cosine", reference=control),
                "pds_l1": _bulk.discrimination_score(pred, true, metric="l1", reference=control),
                "diversity": np.full(len(keys), _bulk.diversity(pred, true)),
            }
            for i, key in enumerate(keys):
                rows += _rows(method, key, columns, {m: float(scores[m][i]) for m in ACROSS if m in wanted})
    return rows


def _rows(method: str, key: Key, columns: list[str], scores: Mapping[str, float]) -> list[dict[str, object]]:
    head = {"method": method, "group": " | ".join(key), **dict(zip(columns, key, strict=True))}
    return [
        {**head, "metric": m, "value": float(v), "direction": METRICS[m].direction, "unit": METRICS[m].unit}
        for m, v in scores.items()
    ]


def _side(
    adata: AnnData,
    what: str,
    genes: pd.Index,
    columns: list[str],
    sep: str,
    layer: str | None = None,
    perturbed: str = "intervention",
) -> _Side:
    parts = []
    for column in columns:
        if column not in adata.obs:
            raise unknown_name("column", column, adata.obs.columns, f"obs of {what[0].lower()}{what[1:]}")
        if adata.obs[column].isna().any():
            raise InputDataError(f"{what} has no {column!r} in {int(adata.obs[column].isna().sum())} cells.")
        values = adata.obs[column].astype(str)
        # names of strata keep the separator they may hold ("CD14+ Monocytes")
        parts.append(values.map({v: _one_order(v, sep) for v in values.unique()}) if column == perturbed else values)
    keys: list[Key] = list(zip(*parts, strict=True)) if parts else [()] * adata.n_obs
    return _Side(matrix(adata, what, genes, layer=layer), pd.Series(keys, dtype=object))


def _one_order(label: str, sep: str) -> str:
    targets = label.split(sep)
    return sep.join(sorted(targets)) if all(t.strip() for t in targets) else label


def _check_groups(groups: list[Key], sides: Mapping[str, _Side], base: _Side, columns: list[str]) -> None:
    for method, side in sides.items():
        lost = [k for k in groups if k not in set(side.keys)]
        if lost:
            raise InputDataError(
                f"The prediction of {method!r} has no cells for {len(lost)} of {len(groups)} groups of true cells, "
                f"e.g. {' | '.join(lost[0])!r}; it has {', '.join(sorted(' | '.join(k) for k in set(side.keys))[:6])}."
            )
    for key in groups:
        if _stratum(key, columns) not in set(base.keys):
            raise InputDataError(f"There are no control cells for the stratum {' | '.join(_stratum(key, columns))!r}.")


def _stratum(key: Key, columns: list[str]) -> Key:
    return tuple(v for v, c in zip(key, columns, strict=True) if c != "intervention")


def _reference(
    fixed: np.ndarray | None, means: Mapping[Key, np.ndarray], key: Key, columns: list[str]
) -> np.ndarray | None:
    if fixed is not None:
        return fixed
    peers = [m for k, m in means.items() if _stratum(k, columns) == _stratum(key, columns)]
    return np.mean(peers, axis=0) if len(peers) >= 3 else None


def _types(means: Mapping[Key, np.ndarray], extra: _Side | None, key: Key, columns: list[str]) -> np.ndarray | None:
    """Real means of all strata under the intervention of ``key`` (types, g)."""
    at = columns.index("intervention")
    found = {k: m for k, m in means.items() if k[at] == key[at]}
    if extra is not None:
        for k in set(extra.keys):
            if k[at] == key[at] and k not in found:
                found[k] = extra.cells(k).mean(axis=0)
    return np.asarray(list(found.values())) if len(found) > 1 else None


def _expand(metrics: Sequence[str] | None) -> Sequence[str] | None:
    if metrics is None:
        return None
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    return [n for m in names for n in (ACROSS if m == "across" else (m,))]
