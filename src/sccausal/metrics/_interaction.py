"""How far a combination departs from the sum of its parts, and whether a prediction knows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._graph import auprc
from sccausal.metrics._info import as_table
from sccausal.metrics._input import vectors


def gi_scores(combined: np.ndarray, first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Scores of a genetic interaction from the fit ``combined = c1 first + c2 second``.

    Parameters
    ----------
    combined, first, second
        Changes of mean expression from control (genes,) under both interventions and under each alone.

    Returns
    -------
    Dict of

    - ``c1``, ``c2``: coefficients of least squares without intercept (1 and 1 if effects add up);
    - ``magnitude``: ``sqrt(c1^2 + c2^2)``; above sqrt(2) is synergy, below is buffering;
    - ``fit``: correlation of the fitted with the combined change; low is neomorphic;
    - ``equality``: smaller over larger absolute coefficient, 1 if both count alike;
    - ``similarity``: correlation of the two single changes;
    - ``dominance``: ``|log10(|c1| / |c2|)|``.

    NaN where a change is zero. Source: :cite:p:`Norman2019`, with least squares for its robust regression and Pearson
    for its distance correlation.
    """
    y, a, b = vectors(combined, first, second)
    if not (np.any(y) and np.any(a) and np.any(b)):
        return dict.fromkeys(("c1", "c2", "magnitude", "fit", "equality", "similarity", "dominance"), float("nan"))
    design = np.column_stack([a, b])
    c1, c2 = np.linalg.lstsq(design, y, rcond=None)[0]
    small, large = sorted((abs(c1), abs(c2)))
    return {
        "c1": float(c1),
        "c2": float(c2),
        "magnitude": float(np.hypot(c1, c2)),
        "fit": _correlation(design @ np.array([c1, c2]), y),
        "equality": float(small / large) if large > 0 else float("nan"),
        "similarity": _correlation(a, b),
        "dominance": float(abs(np.log10(large / small))) if small > 0 else float("nan"),
    }


def interaction_auprc(pred: np.ndarray, true: np.ndarray, additive: np.ndarray, top: int = 50) -> float:
    """Area under the precision-recall curve of finding the genes that depart most from additivity.

    Parameters
    ----------
    pred, true, additive
        Changes from control (genes,): predicted and observed for the combination, and the sum of the singles'.
    top
        Number of genes with the largest observed departure that count as positive, at most a fifth of all.

    Returns
    -------
    Area in 0..1, higher is better. The additive rule itself names no gene and gets ``top / genes``, which is chance. On
    noisy data the genes that depart most are those that move most, so that predicting no change scores high too: read
    the correlation of :func:`interaction_scores` beside it.
    """
    p, t, a = vectors(pred, true, additive)
    k = min(top, t.size // 5)
    if k < 1:
        return float("nan")
    labels = np.zeros(t.size, dtype=bool)
    labels[np.argsort(-np.abs(t - a), kind="stable")[:k]] = True
    return auprc(np.round(np.abs(p - a), 6), labels)


def interaction_scores(
    pred: np.ndarray, true: np.ndarray, singles: Sequence[np.ndarray], *, top: int = 50
) -> pd.DataFrame:
    """Scores of a predicted combination against what its parts alone say.

    Parameters
    ----------
    pred, true
        Predicted and observed change of the combination from control (genes,), log1p(1e4).
    singles
        Changes of the parts alone, two or more.
    top
        As for :func:`interaction_auprc`.

    Returns
    -------
    DataFrame ``metric, value, direction, unit``: ``interaction_auprc``; ``interaction_pearson``, the correlation of the
    predicted with the observed departure from additivity; and for pairs ``gi_magnitude_error`` and ``gi_fit_error``,
    absolute errors of the scores of :func:`gi_scores`.

    Raises
    ------
    sccausal._errors.SetupError
        Fewer than two parts are given.
    sccausal._errors.InputDataError
        Lengths differ or values are not finite.
    """
    if len(singles) < 2:
        raise SetupError("A combination has two parts or more.")
    if len({np.shape(s) for s in (pred, true, *singles)}) != 1:
        raise InputDataError("All changes must be over the same genes.")
    additive = np.sum(singles, axis=0)
    values = {
        "interaction_auprc": interaction_auprc(pred, true, additive, top),
        "interaction_pearson": _correlation(np.asarray(pred) - additive, np.asarray(true) - additive),
    }
    if len(singles) == 2:
        mine, theirs = gi_scores(pred, *singles), gi_scores(true, *singles)
        values["gi_magnitude_error"] = abs(mine["magnitude"] - theirs["magnitude"])
        values["gi_fit_error"] = abs(mine["fit"] - theirs["fit"])
    return as_table(values)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    # float32 predictions leave a residue of 1e-7 where there is no departure at all
    return float(a @ b / scale) if np.linalg.norm(a) > 1e-5 and scale > 0 else 0.0
