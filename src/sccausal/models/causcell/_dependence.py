"""Dependence of labels, given other labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Dependence(NamedTuple):
    """Mutual information in nats, and p-value of the G-test against independence."""

    information: float
    p_value: float


def dependence(a: np.ndarray, b: np.ndarray, given: Sequence[np.ndarray] = ()) -> Dependence:
    """Conditional dependence of two label codes (cells,), strata being the combinations of ``given``."""
    stratum = np.zeros(len(a), dtype=int)
    for codes in given:
        stratum = stratum * (int(codes.max()) + 1) + codes
    statistic, freedom = 0.0, 0
    for s in np.unique(stratum):
        here = stratum == s
        table = stats.contingency.crosstab(a[here], b[here]).count
        if min(table.shape) < 2:
            continue
        found = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        statistic += float(found.statistic)
        freedom += int(found.dof)
    p = float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0
    return Dependence(statistic / (2 * len(a)), p)
