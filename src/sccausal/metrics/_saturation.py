"""How much of the possible gain the best simple rule already takes, group by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sccausal._errors import unknown_name
from sccausal.metrics._info import METRICS

STRATA = ("open", "partly taken", "saturated")
"""Below a half, below nine tenths, and above, of the way from the floor to the replicate."""

COLLAPSE = 0.5
"""Predictions whose mean pairwise distance is below this share of the true one are collapsed."""


def saturation(
    frame: pd.DataFrame,
    metric: str,
    *,
    baselines: Sequence[str],
    floor: str = "no change",
    replicate: str = "duplicate",
) -> pd.DataFrame:
    """Sort groups by what simple rules leave to be gained.

    Parameters
    ----------
    frame
        Columns ``method, group, metric, value`` (and ``seed``), as :func:`evaluate_predictions` returns them.
    metric
        Metric to judge by, with a direction.
    baselines
        Simple rules; the best of them on average over groups is taken, so that no group picks its own.
    floor, replicate
        Methods that mark 0 and 1.

    Returns
    -------
    DataFrame ``group`` (``seed``), ``rule``, ``share``, ``stratum``: the share ``(rule - floor) / (replicate - floor)``
    and one of :data:`STRATA`. Groups where the replicate is no better than the floor have no share and the stratum
    ``"no effect"``. A model can show its worth only where the stratum is open.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A method or the metric is not in the frame.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> methods = ["no change", "mean shift", "duplicate"]
    >>> frame = pd.DataFrame({"method": methods, "group": "A", "metric": "rmse", "value": [0.5, 0.12, 0.1]})
    >>> scc.metrics.saturation(frame, "rmse", baselines=["mean shift"])
      group        rule  share    stratum
    0     A  mean shift   0.95  saturated
    """
    known = list(dict.fromkeys(frame["method"]))
    for name in (*baselines, floor, replicate):
        if name not in known:
            raise unknown_name("method", name, known, "the frame")
    if metric not in set(frame["metric"]):
        raise unknown_name("metric", metric, list(dict.fromkeys(frame["metric"])), "the frame")
    sign = -1.0 if METRICS[metric].direction == "lower" else 1.0
    keys = [k for k in ("seed", "group") if k in frame.columns]
    wide = sign * frame[frame["metric"] == metric].pivot_table(index=keys, columns="method", values="value")
    rule = str(wide[list(baselines)].mean().idxmax())
    span = wide[replicate] - wide[floor]
    share = ((wide[rule] - wide[floor]) / span).where(span > 1e-12)
    stratum = np.select([share < 0.5, share < 0.9, share >= 0.9], STRATA, "no effect")
    return pd.DataFrame({"rule": rule, "share": share, "stratum": stratum}).reset_index()


def collapsed(diversity: float) -> bool:
    """Whether predictions resemble each other more than they may, from :func:`sccausal.metrics.diversity`."""
    return bool(np.isfinite(diversity) and diversity < COLLAPSE)
