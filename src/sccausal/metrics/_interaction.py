"""How far a combination departs from the sum of its parts, and whether a prediction knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._graph import auprc
from sccausal.metrics._info import as_table
from sccausal.metrics._input import vectors

# means of float32 predictions leave about 1e-6 per gene where there is no change at all
_RESIDUE = 1e-5


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

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> first, second = np.random.default_rng(0).normal(size=(2, 20))  # changes of 20 genes
    >>> scores = scc.metrics.gi_scores(1.5 * (first + second), first, second)
    >>> round(scores["magnitude"], 2)  # above 1.41: synergy
    2.12
    """
    y, a, b = vectors(combined, first, second)
    if min(np.linalg.norm(v) for v in (y, a, b)) <= _RESIDUE * np.sqrt(y.size):
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

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> additive = np.zeros(20)
    >>> true = np.where(np.arange(20) < 2, 1.0, 0.0)  # two genes depart from the sum
    >>> scc.metrics.interaction_auprc(true, true, additive, top=2)
    1.0
    >>> scc.metrics.interaction_auprc(additive, true, additive, top=2)  # chance
    0.1
    """
    p, t, a = vectors(pred, true, additive)
    k = min(top, t.size // 5)
    if k < 1:
        return float("nan")
    labels = np.zeros(t.size, dtype=bool)
    labels[np.argsort(-np.abs(t - a), kind="stable")[:k]] = True
    return auprc(np.round(np.abs(p - a), 6), labels)


def interaction_scores(
    pred: np.ndarray,
    true: np.ndarray,
    singles: Sequence[np.ndarray],
    *,
    pred_singles: Sequence[np.ndarray] | None = None,
    genes: np.ndarray | None = None,
    top: int = 50,
) -> pd.DataFrame:
    """Scores of a predicted combination against what its parts alone say.

    Parameters
    ----------
    pred, true
        Predicted and observed change of the combination from control (genes,), log1p(1e4).
    singles
        Changes of the parts alone, two or more, that ``true`` is compared with.
    pred_singles
        Changes of the parts that ``pred`` is compared with, those of the same model say; default ``singles``. With
        ``singles`` of other cells than the model has seen, the sampling error of one side stays out of the other: a
        prediction that merely removes the error of the parts would else count as one that knows the interaction.
    genes
        Positions or mask of the genes of the ``gi`` scores, chosen on other cells; default all. Genes that the parts do
        not move bring noise alone, which pulls the observed coefficients down.
    top
        As for :func:`interaction_auprc`.

    Returns
    -------
    DataFrame ``metric, value, direction, unit``: ``interaction_auprc``; ``interaction_pearson``, the correlation of the
    predicted with the observed departure from additivity; and for pairs ``gi_magnitude_error``, ``gi_fit_error`` and
    ``gi_equality_error``, absolute errors of the scores of :func:`gi_scores`. No predicted change at all counts as
    scores of 0.

    Raises
    ------
    sccausal._errors.SetupError
        Fewer than two parts are given.
    sccausal._errors.InputDataError
        Lengths differ or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> first, second, interaction = np.random.default_rng(0).normal(size=(3, 40))
    >>> true = first + second + 0.5 * interaction
    >>> table = scc.metrics.interaction_scores(first + second + 0.4 * interaction, true, [first, second])
    >>> table.set_index("metric").loc[["interaction_auprc", "interaction_pearson"], "value"].round(2).tolist()
    [1.0, 1.0]
    """
    if len(singles) < 2:
        raise SetupError("A combination has two parts or more.")
    own = singles if pred_singles is None else pred_singles
    if len(own) != len(singles):
        raise SetupError(f"`pred_singles` names {len(own)} parts and `singles` {len(singles)}.")
    if len({np.shape(s) for s in (pred, true, *singles, *own)}) != 1:
        raise InputDataError("All changes must be over the same genes.")
    additive, beyond = np.sum(singles, axis=0), np.asarray(pred) - np.sum(own, axis=0)
    values = {
        "interaction_auprc": interaction_auprc(additive + beyond, true, additive, top),
        "interaction_pearson": _correlation(beyond, np.asarray(true) - additive),
    }
    if len(singles) == 2:
        where = slice(None) if genes is None else genes
        mine, theirs = (gi_scores(*(np.asarray(v)[where] for v in s)) for s in ((pred, *own), (true, *singles)))
        for score in ("magnitude", "fit", "equality"):
            values[f"gi_{score}_error"] = abs(np.nan_to_num(mine[score]) - theirs[score])
    return as_table(values)


def gi_ranks(pred: Sequence[Mapping[str, float]], true: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Whether pairs are put in the right order by their scores of interaction.

    Parameters
    ----------
    pred, true
        Scores of :func:`gi_scores` of the same pairs, predicted and observed; four pairs or more.

    Returns
    -------
    DataFrame ``metric, value, direction, unit`` with Spearman correlations over pairs: ``gi_magnitude_rank`` (synergy
    or buffering) and ``gi_fit_rank`` (neomorphic or not). 0 for a rule that gives all pairs the same score.

    Raises
    ------
    sccausal._errors.InputDataError
        The two lists differ in length, or name fewer than four pairs.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> first, second, noise = np.random.default_rng(0).normal(size=(3, 20))
    >>> pairs = [c * (first + second) + 0.1 * noise for c in (0.5, 1.0, 1.5, 2.0)]  # changes of 20 genes
    >>> scores = [scc.metrics.gi_scores(pair, first, second) for pair in pairs]
    >>> scc.metrics.gi_ranks(scores, scores)["value"].round(2).tolist()
    [1.0, 1.0]
    """
    if len(pred) != len(true) or len(true) < 4:
        raise InputDataError(f"Ranks need the same four pairs or more on both sides, got {len(pred)} and {len(true)}.")
    values = {}
    for score in ("magnitude", "fit"):
        sides = np.array([[p[score], t[score]] for p, t in zip(pred, true, strict=True)])
        # float32 predictions leave differences of 1e-7 between equal scores
        ranks = rankdata(np.round(np.nan_to_num(sides[np.isfinite(sides[:, 1])]), 5), axis=0)
        values[f"gi_{score}_rank"] = _correlation(ranks[:, 0], ranks[:, 1]) if len(ranks) > 3 else float("nan")
    return as_table(values)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if np.linalg.norm(a) > _RESIDUE * np.sqrt(a.size) and scale > 0 else 0.0
