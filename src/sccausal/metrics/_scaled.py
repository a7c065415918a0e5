"""Scores between the mean baseline (0) and the replicate (1), and averages with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from sccausal._errors import SetupError, unknown_name
from sccausal.metrics._info import METRICS

FLAG = 0.2
"""Metrics whose dynamic range is below this cannot tell a good prediction from the mean baseline on the data."""


def scaled_score(value: float, baseline: float, replicate: float) -> float:
    """``(u - b) / (r - b)``: 0 at the mean baseline, 1 at the replicate, whichever way the metric points.

    Parameters
    ----------
    value, baseline, replicate
        Scores of a prediction, of the mean baseline and of the split-half replicate under one metric.

    Returns
    -------
    Share of the possible gain, not clipped: negative is worse than the baseline, above 1 better than the replicate.
    NaN if baseline and replicate agree.

    Examples
    --------
    >>> import sccausal as scc
    >>> round(scc.metrics.scaled_score(0.2, baseline=0.3, replicate=0.1), 2)
    0.5
    """
    span = replicate - baseline
    return float((value - baseline) / span) if np.isfinite(span) and abs(span) > 1e-12 else float("nan")


def dynamic_range(baseline: float, replicate: float, best: float = 1.0) -> float:
    """Share of the way from the mean baseline to the perfect score that the replicate covers, ``(r - b) / (best - b)``.

    Near 0 the metric cannot tell a replicate from the baseline on this data; 1 means that noise costs nothing.
    :cite:p:`Mejia2025`.

    Parameters
    ----------
    baseline, replicate
        Scores of the mean baseline and of the split-half replicate under one metric.
    best
        Score of a perfect prediction.

    Examples
    --------
    >>> import sccausal as scc
    >>> scc.metrics.dynamic_range(baseline=0.5, replicate=0.9)
    0.8
    """
    span = best - baseline
    return float((replicate - baseline) / span) if np.isfinite(span) and abs(span) > 1e-12 else float("nan")


def add_scaled(frame: pd.DataFrame, *, baseline: str = "mean shift", replicate: str = "duplicate") -> pd.DataFrame:
    """Add scaled scores to the result of :func:`sccausal.metrics.evaluate_predictions`.

    Parameters
    ----------
    frame
        Columns ``method, group, metric, value`` (and ``seed`` if there are several).
    baseline, replicate
        Methods of ``frame`` that mark 0 and 1.

    Returns
    -------
    A copy with ``scaled``, ``dynamic_range`` (over all groups of the metric) and ``low_range`` (below 0.2: flagged).
    Ratios with the optimum 1 are scaled by ``|log|``. Where the replicate is no better than the baseline there is no
    scale, and ``scaled`` is missing.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A method is not in the frame.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> methods = ["mean shift", "model", "duplicate"]
    >>> frame = pd.DataFrame({"method": methods, "group": "A", "metric": "rmse", "value": [0.3, 0.2, 0.1]})
    >>> scc.metrics.add_scaled(frame).loc[1:, ["method", "scaled"]]
          method  scaled
    1      model     0.5
    2  duplicate     1.0
    """
    for name in (baseline, replicate):
        if name not in set(frame["method"]):
            raise unknown_name("method", name, list(dict.fromkeys(frame["method"])), "the frame")
    keys = [k for k in ("seed", "group", "metric") if k in frame.columns]
    out = frame.copy()
    out["_u"] = _comparable(out)
    marks = out[out["method"].isin([baseline, replicate])].groupby([*keys, "method"], observed=True)["_u"].mean()
    wide = marks.unstack("method")
    at = pd.MultiIndex.from_frame(out[keys])
    b, r = (wide[name].reindex(at).to_numpy() for name in (baseline, replicate))
    better = np.where(out["metric"].map(_falls), r < b, r > b)
    scores = [scaled_score(*triple) for triple in zip(out["_u"], b, r, strict=True)]
    out["scaled"] = np.where(better, scores, np.nan)
    means = wide.groupby("metric").mean()
    spread = {m: dynamic_range(row[baseline], row[replicate], _best(str(m))) for m, row in means.iterrows()}
    out["dynamic_range"] = out["metric"].map(spread)
    out["low_range"] = ~(out["dynamic_range"] >= FLAG)
    return out.drop(columns="_u")


def summarise(
    frame: pd.DataFrame,
    *,
    value: str = "value",
    baselines: Sequence[str] = (),
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Average a tidy frame of scores over groups (and seeds).

    Parameters
    ----------
    frame
        Columns ``method, metric, group`` and ``value``; ``seed`` if there are several (averaged within a group first).
    value
        Column to average, e.g. ``"scaled"``.
    baselines
        Names of the simple rules: every other method gets a paired Wilcoxon test against the best of them.
    n_boot
        Bootstrap draws over groups for the 95 % interval.
    seed
        Seed of the bootstrap.

    Returns
    -------
    DataFrame ``method, metric, mean, low, high, n`` in the order of the frame (``n`` counts groups with a value), with
    ``best_baseline`` and ``p_value`` if ``baselines`` are given. Groups where a metric is not defined are left out.

    Raises
    ------
    sccausal._errors.SetupError
        A column is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> frame = pd.DataFrame({"method": "model", "metric": "rmse", "group": ["A", "B"], "value": [0.2, 0.4]})
    >>> scc.metrics.summarise(frame)[["method", "metric", "mean", "n"]].round(2)
      method metric  mean  n
    0  model   rmse   0.3  2
    """
    missing = [c for c in ("method", "metric", "group", value) if c not in frame.columns]
    if missing:
        raise SetupError(f"The frame lacks the column(s) {missing}; found {list(map(str, frame.columns))}.")
    cells = frame.groupby(["metric", "group", "method"], sort=False, observed=True)[value].mean().unstack("method")
    rng = np.random.default_rng(seed)
    rows = []
    for metric in dict.fromkeys(frame["metric"]):
        table = cells.xs(metric)
        for method in dict.fromkeys(frame["method"]):
            scores = table[method].dropna().to_numpy() if method in table else np.array([])
            rows.append({"method": method, "metric": metric, **_interval(scores, n_boot, rng)})
    out = pd.DataFrame(rows)
    out = out[out["n"] > 0].reset_index(drop=True)
    return _against_best(out, cells, list(baselines)) if len(baselines) else out


def _interval(scores: np.ndarray, n_boot: int, rng: np.random.Generator) -> dict[str, float]:
    if not scores.size:
        return {"mean": np.nan, "low": np.nan, "high": np.nan, "n": 0}
    draws = scores[rng.integers(0, scores.size, (n_boot, scores.size))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(scores.mean()), "low": float(low), "high": float(high), "n": int(scores.size)}


def _against_best(out: pd.DataFrame, cells: pd.DataFrame, baselines: list[str]) -> pd.DataFrame:
    best: dict[str, str] = {}
    for metric, rows in out[out["method"].isin(baselines)].groupby("metric"):
        score = _goodness(rows["mean"], str(metric))
        if score.notna().any():
            best[str(metric)] = str(rows["method"].to_numpy()[int(np.nanargmax(score.to_numpy()))])
    out["best_baseline"] = out["metric"].map(best)
    out["p_value"] = [
        np.nan if method in baselines or metric not in best else _paired(cells.xs(metric), method, best[metric])
        for method, metric in zip(out["method"], out["metric"], strict=True)
    ]
    return out


def _paired(table: pd.DataFrame | pd.Series, method: str, rival: str) -> float:
    pair = table[[method, rival]].dropna()
    gap = pair[method].to_numpy() - pair[rival].to_numpy()
    if len(gap) < 2 or not np.any(gap):
        return float("nan")
    return float(stats.wilcoxon(gap).pvalue)


def _goodness(values: pd.Series, metric: str) -> pd.Series:
    info = METRICS.get(metric)
    if info is not None and info.direction == "lower":
        return -values
    if info is not None and info.direction == "one":
        return -np.log(values.clip(lower=1e-12)).abs()
    return values


def _comparable(frame: pd.DataFrame) -> pd.Series:
    ratio = frame["metric"].map(lambda m: m in METRICS and METRICS[m].direction == "one")
    logged = frame["value"].clip(lower=1e-12).map(np.log).abs()
    return frame["value"].where(~ratio, logged)


def _falls(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].direction in ("lower", "one")


def _best(metric: str) -> float:
    if metric not in METRICS:
        return float("nan")
    return 0.0 if METRICS[metric].direction == "one" else METRICS[metric].best
