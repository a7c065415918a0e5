"""Scores of two learned blocks, one that interventions leave alone and one that responds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sccausal._errors import InputDataError, unknown_name
from sccausal.metrics._latent import mcc

_BLOCKS = ("invariant", "responsive")
_MOST_TRAIN = 8000


def block_scores(
    learned: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    environment: np.ndarray,
    train: np.ndarray,
    *,
    kind: Literal["mlp", "linear"] = "mlp",
    seed: int = 0,
) -> pd.DataFrame:
    """How well two blocks are found, and how well they are kept apart.

    Parameters
    ----------
    learned, truth
        ``"invariant"`` and ``"responsive"`` latents, (n, d) each, of the same cells. One array under both names stands
        for a representation that knows no blocks.
    environment
        Label of the intervention of each cell (n,).
    train
        Marks the cells probes are fitted on (n,); scores are of the others.
    kind
        Probe of ``r2_*`` and of the leakage: ``"mlp"`` (two hidden layers) or ``"linear"``.
    seed
        Seed of the probes.

    Returns
    -------
    DataFrame ``metric, value, floor``; ``floor`` is the score that the true blocks get where they do not get 1 or 0 by
    construction:

    - ``r2_responsive``, ``r2_invariant``: each true block from its own learned block; ``r2_global``: all factors from
      both blocks; ``spearman_*``: rank correlation of the same predictions.
    - ``r2_invariant_linear``: by a linear probe, the form of identification the theory promises.
    - ``mcc``: responsive factors one by one.
    - ``excess_invariant``, ``excess_responsive``: how much of the *other* true block can be read from a learned block,
      beyond what the true block tells (dependent blocks leak by themselves).
    - ``environment_accuracy``: how well the intervention can be read from the invariant block; ``floor`` is that of the
      true block. ``environment_chance``: share of the most frequent one.

    A global nonlinear R2 passes for every representation that loses nothing, principal components included; read it
    beside the others.

    Raises
    ------
    sccausal._errors.InputDataError
        Numbers of cells differ.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> rng = np.random.default_rng(0)
    >>> truth = {"invariant": rng.normal(size=(200, 1)), "responsive": rng.normal(size=(200, 2))}
    >>> environment, train = np.tile(["control", "A"], 100), np.arange(200) < 150
    >>> table = scc.metrics.block_scores(truth, truth, environment, train, kind="linear").set_index("metric")
    >>> round(float(table.loc["r2_responsive", "value"]), 2)
    1.0
    """
    z, y = ({k: _block(source, k, len(train)) for k in _BLOCKS} for source in (learned, truth))
    train = np.asarray(train, dtype=bool)
    fit = np.flatnonzero(train)
    fit = np.random.default_rng(seed).permutation(fit)[:_MOST_TRAIN]
    test = np.flatnonzero(~train)
    if not len(fit) or not len(test):
        raise InputDataError("Probes need cells to be fitted on and others to be scored on.")

    def read(a: np.ndarray, b: np.ndarray, how: str = kind) -> tuple[float, float]:
        return _probe(a, b, fit, test, how, seed)

    together = {k: np.column_stack([v["invariant"], v["responsive"]]) for k, v in (("z", z), ("y", y))}
    rows: list[tuple[str, float, float]] = []
    pairs = {k: (z[k], y[k]) for k in ("responsive", "invariant")} | {"global": (together["z"], together["y"])}
    for name, (a, b) in pairs.items():
        r2, rank = read(a, b)
        rows += [(f"r2_{name}", r2, 1.0), (f"spearman_{name}", rank, 1.0)]
    rows.append(("r2_invariant_linear", read(z["invariant"], y["invariant"], "linear")[0], 1.0))
    rows.append(("mcc", mcc(z["responsive"][test], y["responsive"][test]), 1.0))
    for own, other in (("invariant", "responsive"), ("responsive", "invariant")):
        floor = read(y[own], y[other])[0]
        rows.append((f"excess_{own}", read(z[own], y[other])[0] - floor, floor))
    code = np.unique(np.asarray(environment).astype(str), return_inverse=True)[1]
    known, found = (_classified(v["invariant"], code, fit, test, seed) for v in (y, z))
    rows.append(("environment_accuracy", found, known))
    rows.append(("environment_chance", float(np.bincount(code[test]).max() / len(test)), np.nan))
    return pd.DataFrame(rows, columns=["metric", "value", "floor"])


def _block(source: Mapping[str, Any], name: str, n: int) -> np.ndarray:
    if name not in source:
        raise unknown_name("block", name, list(source), "the latents given")
    values = np.asarray(source[name], dtype=np.float64)
    if values.ndim != 2 or len(values) != n or not np.isfinite(values).all():
        raise InputDataError(f"The {name} block must be finite and ({n}, d); got shape {values.shape}.")
    return values


def _standard(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    spread = x[fit].std(0)
    return (x - x[fit].mean(0)) / np.where(spread > 1e-9, spread, 1.0)


def _probe(
    a: np.ndarray, b: np.ndarray, fit: np.ndarray, test: np.ndarray, kind: str, seed: int
) -> tuple[float, float]:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.neural_network import MLPRegressor

    x, y = _standard(a, fit), _standard(b, fit)
    rule: Any = Ridge(1.0)
    if kind == "mlp":
        rule = MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, max_iter=200, random_state=seed)
    predicted = rule.fit(x[fit], y[fit].ravel() if y.shape[1] == 1 else y[fit]).predict(x[test]).reshape(-1, y.shape[1])
    ranks = [spearmanr(p, t).statistic if p.std() > 1e-9 else 0.0 for p, t in zip(predicted.T, y[test].T, strict=True)]
    return float(r2_score(y[test], predicted)), float(np.mean(ranks))


def _classified(x: np.ndarray, code: np.ndarray, fit: np.ndarray, test: np.ndarray, seed: int) -> float:
    from sklearn.neural_network import MLPClassifier

    rule = MLPClassifier(hidden_layer_sizes=(64,), early_stopping=True, max_iter=100, random_state=seed)
    values = _standard(x, fit)
    return float(rule.fit(values[fit], code[fit]).score(values[test], code[test]))
