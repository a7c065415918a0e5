"""Scores of learned latents against known ones."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._info import as_table


class Matching(NamedTuple):
    """Best one-to-one matching of learned to true latents.

    Parameters
    ----------
    mcc
        Mean absolute correlation over the true latents.
    learned
        Learned latent of each true one (k,), -1 without a partner.
    correlation
        Signed correlation of each pair (k,).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.random.default_rng(0).normal(size=(100, 2))
    >>> matching = scc.metrics.match_latents(-truth[:, ::-1], truth)
    >>> matching.learned.tolist()
    [1, 0]
    """

    mcc: float  # mean |correlation| over the true latents
    learned: np.ndarray  # (k,) learned column of each true one; -1 if there are fewer learned than true ones
    correlation: np.ndarray  # (k,) signed correlation of each pair


def match_latents(z: np.ndarray, truth: np.ndarray, method: Literal["pearson", "spearman"] = "pearson") -> Matching:
    """Mean correlation coefficient (MCC) by an exact assignment.

    Parameters
    ----------
    z
        Learned latents (n, d).
    truth
        True latents (n, k) of the same cells. A true latent without a partner (d < k) counts as 0.
    method
        ``"pearson"`` for identification up to scale, ``"spearman"`` up to a monotone map per component.

    Returns
    -------
    Matching; ``mcc`` in 0..1, higher is better. With many latents and few cells chance is far above 0: read it beside a
    permuted truth. The assignment is exact, so the value does not depend on a seed. Source: :cite:p:`Hyvarinen2016`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.random.default_rng(0).normal(size=(100, 2))
    >>> matching = scc.metrics.match_latents(-truth[:, ::-1], truth)  # swapped, with the wrong sign
    >>> round(matching.mcc, 2), matching.learned.tolist()
    (1.0, [1, 0])
    """
    z, truth = _latents(z, truth)
    if method not in ("pearson", "spearman"):
        raise SetupError(f"Unknown method {method!r}; use 'pearson' or 'spearman'.")
    if method == "spearman":
        z, truth = rankdata(z, axis=0), rankdata(truth, axis=0)
    correlation = _standardised(truth).T @ _standardised(z) / len(z)  # (k, d)
    rows, columns = linear_sum_assignment(-np.abs(correlation))
    learned = np.full(truth.shape[1], -1)
    learned[rows] = columns
    matched = np.where(learned >= 0, correlation[np.arange(len(learned)), learned], 0.0)
    return Matching(float(np.clip(np.abs(matched), 0.0, 1.0).mean()), learned, matched)


def mcc(z: np.ndarray, truth: np.ndarray, method: Literal["pearson", "spearman"] = "pearson") -> float:
    """Mean correlation coefficient of :func:`match_latents`; 0..1, higher is better.

    Parameters
    ----------
    z, truth, method
        As for :func:`match_latents`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.random.default_rng(0).normal(size=(100, 2))
    >>> round(scc.metrics.mcc(-truth[:, ::-1], truth), 2)
    1.0
    """
    return match_latents(z, truth, method).mcc


def r2_probe(
    z: np.ndarray, truth: np.ndarray, kind: Literal["linear", "mlp"] = "linear", *, n_folds: int = 5, seed: int = 0
) -> np.ndarray:
    """How well the true latents can be read from the learned ones: cross-validated R2 of each (k,).

    Parameters
    ----------
    z, truth
        Latents (n, d) and (n, k) of the same cells.
    kind
        ``"linear"`` (ridge on standardised latents) or ``"mlp"`` (one hidden layer of 64).
    n_folds
        Folds; every cell is predicted by a probe that has not seen it.
    seed
        Seed of the folds and of the MLP.

    Returns
    -------
    R2 per true latent, at most 1, higher is better; near 0 or below where nothing can be read.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.random.default_rng(0).normal(size=(100, 2))
    >>> scores = scc.metrics.r2_probe(truth[:, :1], truth)  # the second latent is not held
    >>> (scores > 0.9).tolist()
    [True, False]
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    z, truth = _latents(z, truth)
    if kind not in ("linear", "mlp"):
        raise SetupError(f"Unknown kind {kind!r}; use 'linear' or 'mlp'.")
    target = _standardised(truth)
    if kind == "linear":
        probe = Ridge(alpha=1.0)
    else:
        probe = MLPRegressor(
            hidden_layer_sizes=(64,), max_iter=300, early_stopping=True, n_iter_no_change=20, random_state=seed
        )
    folds = KFold(min(n_folds, len(z)), shuffle=True, random_state=seed)
    y = target.ravel() if target.shape[1] == 1 else target
    predicted = cross_val_predict(make_pipeline(StandardScaler(), probe), z, y, cv=folds).reshape(target.shape)
    total = np.sum(target**2, axis=0)
    residual = np.sum((target - predicted) ** 2, axis=0)
    return 1.0 - np.divide(residual, total, out=np.full(total.shape, np.nan), where=total > 0)


def latent_scores(
    z: np.ndarray | pd.DataFrame, truth: np.ndarray | pd.DataFrame, *, mlp: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Identification scores of learned latents.

    Parameters
    ----------
    z
        Learned latents (n, d), e.g. ``model.get_latent_representation()``.
    truth
        True latents (n, k) of the same cells.
    mlp
        Whether to train the MLP probe too.
    seed
        Seed of the folds, of the probe and of the permuted truth.

    Returns
    -------
    DataFrame ``metric, value, direction, unit, chance``; ``chance`` is the score against a truth whose cells are
    permuted.

    Raises
    ------
    sccausal._errors.InputDataError
        Numbers of cells differ, or values are not finite.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_latent_sem(200, n_genes=10, n_latent=2, seed=0)
    >>> table = scc.metrics.latent_scores(adata.obsm["latent"], adata.obsm["latent"], mlp=False)
    >>> table[["metric", "value"]].round(2)
             metric  value
    0           mcc    1.0
    1  spearman_mcc    1.0
    2     r2_linear    1.0
    """
    z, truth = _latents(np.asarray(z, dtype=np.float64), np.asarray(truth, dtype=np.float64))
    shuffled = truth[np.random.default_rng(seed).permutation(len(truth))]

    def values(target: np.ndarray) -> dict[str, float]:
        out = {"mcc": mcc(z, target), "spearman_mcc": mcc(z, target, "spearman")}
        out["r2_linear"] = float(r2_probe(z, target, "linear", seed=seed).mean())
        if mlp:
            out["r2_mlp"] = float(r2_probe(z, target, "mlp", seed=seed).mean())
        return out

    table = as_table(values(truth))
    table["chance"] = list(values(shuffled).values())
    return table


def _latents(z: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z, truth = np.asarray(z, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    z, truth = (a[:, None] if a.ndim == 1 else a for a in (z, truth))
    if len(z) != len(truth) or len(z) < 3:
        raise InputDataError(
            f"Latents and truth must cover the same cells, three at least; got {len(z)}, {len(truth)}."
        )
    if not (np.isfinite(z).all() and np.isfinite(truth).all()):
        raise InputDataError("Latents must be finite; found NaN or infinity.")
    return z, truth


def _standardised(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=0)
    spread = centred.std(axis=0)
    # a constant latent is correlated with nothing
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12 * (1 + np.abs(x).max()))
