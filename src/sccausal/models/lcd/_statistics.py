"""What is read off the training cells in closed form: levels of batches, shrunken effects, covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import sparse

from sccausal._errors import SetupError
from sccausal.models._adaptive import grid_posterior, shrunken_singles

Effects = Literal["shrunken", "exact", "none"]
EFFECTS = ("shrunken", "exact", "none")
N_FEATURES = 4
N_TAIL = 16
"""Quantiles kept of the values of a gene where it is seen."""
# prior variance of the coefficients of the interaction, around none
_PRIOR = 0.25
_FEWEST_PAIRS = 4
# a gene is taken as a spike at zero and a tail if so many of its cells are zero
_ZERO_SHARE = 0.05


@dataclass
class StateStatistics:
    """Closed-form part of the model.

    Attributes
    ----------
    level
        Control mean of each batch (b, d).
    scale
        Standard deviation of cells within a condition (d,).
    singles, singles_error
        Effect of a unit of each target and its standard error (T, d).
    shared
        What all effects share: the error of the control mean (d,).
    interaction
        Coefficients of :func:`pair_features` (features,); zero without combinations in training.
    seen
        Whether cells of the target were seen (T,).
    covariance
        Of standardised cells within conditions (d, d).
    has_zeros, positive, tail
        Genes with a spike at zero (d,), share of control cells above zero (d,), and quantiles of the values above zero
        (quantiles, d).
    dose, change, n_cells, n_control
        Observed mean changes: doses (C, T), changes (C, d), cells (C,), control cells.
    """

    level: np.ndarray
    scale: np.ndarray
    singles: np.ndarray
    singles_error: np.ndarray
    shared: np.ndarray
    interaction: np.ndarray
    seen: np.ndarray
    covariance: np.ndarray
    has_zeros: np.ndarray
    positive: np.ndarray
    tail: np.ndarray
    dose: np.ndarray
    change: np.ndarray
    n_cells: np.ndarray
    n_control: int


def dense(X: Any) -> np.ndarray:
    """Dense float32 values of a matrix of any kind."""
    return np.asarray(X.toarray() if sparse.issparse(X) else X, dtype=np.float32)


def batch_levels(X: np.ndarray, batch: np.ndarray, control: np.ndarray, n_batch: int) -> np.ndarray:
    """Control mean (b, d) of each batch; the mean over all batches where one has no control cells."""
    total = X[control].mean(axis=0, dtype=np.float64)
    level = np.tile(total, (n_batch, 1))
    for b in np.unique(batch[control]):
        level[b] = X[control & (batch == b)].mean(axis=0, dtype=np.float64)
    return level


def state_statistics(
    X: np.ndarray,
    dose: np.ndarray,
    batch: np.ndarray,
    n_batch: int,
    effects: Effects = "shrunken",
    n_cells: np.ndarray | None = None,
    extra_variance: np.ndarray | None = None,
) -> StateStatistics:
    """Statistics of states under known doses.

    Parameters
    ----------
    X
        States (n, d).
    dose
        Doses (n, T).
    batch
        Batches (n,).
    n_batch
        Number of batches.
    effects
        ``"shrunken"`` by their sampling error, ``"exact"`` or ``"none"``.
    n_cells
        If the states are draws of a noise model: cells behind the condition of each draw (n,).
    extra_variance
        Measurement variance in the unit of the states (d,), part of the sampling error but not of the states.

    Raises
    ------
    sccausal._errors.SetupError
        There are no control cells or no cells under an intervention.
    """
    control = ~(dose != 0).any(axis=1)
    if not control.any() or control.all():
        raise SetupError("The training cells hold no control cell, or no treated one; both are needed.")
    level = batch_levels(X, batch, control, n_batch)
    centred = X - level[batch].astype(X.dtype)
    rows, code = np.unique(dose, axis=0, return_inverse=True)
    code = np.ravel(code)
    means = np.stack([centred[code == c].mean(axis=0, dtype=np.float64) for c in range(len(rows))])
    rest = centred - means[code].astype(X.dtype)
    scale = np.sqrt((rest.astype(np.float64) ** 2).sum(axis=0) / max(len(X) - len(rows), 1))
    treated = (rows != 0).any(axis=1)
    count = np.bincount(code).astype(float)
    if n_cells is not None:
        count = np.array([n_cells[code == c][0] for c in range(len(rows))], dtype=float)
    spread = scale if extra_variance is None else np.sqrt(scale**2 + extra_variance)
    n_control = int(round(count[~treated].sum()))
    change, cells = means[treated], count[treated]
    singles, errors, shared = _singles(change, rows[treated], cells, n_control, spread, effects)
    seen = (rows[treated] != 0).any(axis=0)
    pairs = np.zeros(N_FEATURES)
    single = (rows[treated] != 0).sum(axis=1) == 1
    # features of noisy effects are noise times noise: without shrinkage pairs stay additive
    if effects == "shrunken" and single.any() and not single.all():
        # judged by effects from single interventions only: those fitted to the pairs as well have part of it
        alone = _singles(change[single], rows[treated][single], cells[single], n_control, spread, effects)
        safe = np.where(scale > 1e-8, scale, 1.0)
        pairs = _interaction(change, rows[treated], cells, alone[0], alone[2], spread, safe, effects)
        if pairs.any():
            own = (rows[treated][single] != 0).any(axis=0)[:, None]
            singles, errors = np.where(own, alone[0], singles), np.where(own, alone[1], errors)
            shared = alone[2]
    safe = np.where(scale > 1e-8, scale, 1.0)
    if effects != "none" and seen.any() and not seen.all():  # a target without cells gets the mean of the others
        singles[~seen] = singles[seen].mean(axis=0)
    return StateStatistics(
        level=level,
        scale=safe,
        singles=singles,
        singles_error=errors,
        shared=shared,
        interaction=pairs,
        seen=seen,
        covariance=_covariance(rest / safe.astype(X.dtype), len(rows)),
        has_zeros=(X.min(axis=0) >= 0) & ((X == 0).mean(axis=0) > _ZERO_SHARE),
        positive=(X[control] > 0).mean(axis=0),
        tail=_tail(X[control], X),
        dose=rows[treated],
        change=change,
        n_cells=cells,
        n_control=n_control,
    )


def _singles(
    change: np.ndarray, dose: np.ndarray, n: np.ndarray, n_control: int, spread: np.ndarray, effects: Effects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    targets, d = dose.shape[1], change.shape[1]
    weight = np.sqrt(n)[:, None]
    gram = (dose * weight).T @ (dose * weight)
    inverse = np.linalg.pinv(gram + 1e-9 * np.eye(targets))
    errors = np.sqrt(np.maximum(np.diag(inverse), 0))[:, None] * spread
    if effects == "none":
        return np.zeros((targets, d)), errors, np.zeros(d)
    if effects == "exact":
        return inverse @ (dose * n[:, None]).T @ change, errors, np.zeros(d)
    # doses of one target make a design that the closed form handles; a target without cells stays at zero
    singles, shared = shrunken_singles(change, dose, n, n_control, spread)
    return _by_target(change, dose, n, spread, singles, shared), errors, shared


def _by_target(
    change: np.ndarray, dose: np.ndarray, n: np.ndarray, spread: np.ndarray, singles: np.ndarray, shared: np.ndarray
) -> np.ndarray:
    """Effects (T, d) of targets that were seen alone, shrunken by how many genes each target moves and how far.

    Shrinkage gene by gene over all targets loses genes that one target alone moves; here the frequencies of effect
    sizes are learned for each target over the genes :cite:p:`Stephens2016`.
    """
    out = singles.copy()
    sd = np.where(spread > 1e-8, spread, np.inf)
    grid = np.array([0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])[:, None]
    for c in np.flatnonzero((dose != 0).sum(axis=1) == 1):
        t = int(np.flatnonzero(dose[c])[0])
        z = (change[c] - shared) / sd
        total = grid + 1 / n[c]
        share = grid_posterior(-0.5 * (np.log(total) + z**2 / total), 50)
        out[t] = (share * (grid / total)).sum(axis=0) * z * np.where(np.isfinite(sd), sd, 0.0) / dose[c, t]
    return out


def pair_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Features (4, ...) of two effects in standard deviations from which their interaction is predicted.

    Common part of effects of one sign, its square, the sum of effects of opposite sign, and the sum: saturation,
    masking and scaling are linear in them. All vanish where one of the effects does, but the sum; that is weighted by
    the smaller share.
    """
    same = first * second > 0
    small = np.minimum(np.abs(first), np.abs(second))
    total = first + second
    common = np.where(same, np.sign(total) * small, 0.0)
    share = 2 * small / np.maximum(np.abs(first) + np.abs(second), 1e-12)
    return np.stack([common, common * np.abs(common), np.where(same, 0.0, total) * share, total * share])


def interaction_of(row: np.ndarray, singles: np.ndarray, scale: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """What a dose row (T,) does beyond the sum of its parts (d,)."""
    parts = [row[t] * singles[t] / scale for t in np.flatnonzero(row)]
    total = np.zeros_like(scale)
    if not coefficients.any():
        return total
    for i in range(len(parts)):
        for j in range(i):
            total = total + coefficients @ pair_features(parts[i], parts[j])
    return total * scale


def _interaction(
    change: np.ndarray,
    dose: np.ndarray,
    n: np.ndarray,
    singles: np.ndarray,
    shared: np.ndarray,
    spread: np.ndarray,
    scale: np.ndarray,
    effects: Effects,
) -> np.ndarray:
    """Coefficients common to genes and pairs, by ridge regression; zero unless they clearly help on pairs left out."""
    size = (dose != 0).sum(axis=1)
    alone = (dose[size == 1] != 0).any(axis=0)
    # a target that was seen in combinations only has its effect from them
    pairs = np.array([c for c in np.flatnonzero(size == 2) if alone[dose[c] != 0].all()], dtype=int)
    if effects == "none" or len(pairs) < _FEWEST_PAIRS:
        return np.zeros(N_FEATURES)
    grams, rights, blocks = [], [], []
    for c in pairs:
        i, j = np.flatnonzero(dose[c])
        features = pair_features(dose[c, i] * singles[i] / scale, dose[c, j] * singles[j] / scale)
        left = (change[c] - dose[c] @ singles - shared) / scale
        weight = n[c] * (scale / np.maximum(spread, 1e-12)) ** 2
        grams.append((features * weight) @ features.T)
        rights.append((features * weight) @ left)
        blocks.append((features, left, weight))
    prior = np.eye(N_FEATURES) / _PRIOR
    gram, right = np.sum(grams, axis=0), np.sum(rights, axis=0)
    gain = np.empty(len(blocks))
    for k, (features, left, weight) in enumerate(blocks):
        fitted = np.linalg.solve(gram - grams[k] + prior, right - rights[k])
        gain[k] = (weight * (left**2 - (left - fitted @ features) ** 2)).sum()
    # few strong pairs can carry a fit that helps no other: twice the error, and most of the pairs
    if gain.mean() <= 2 * gain.std(ddof=1) / np.sqrt(len(gain)) or (gain > 0).mean() < 0.6:
        return np.zeros(N_FEATURES)
    return np.linalg.solve(gram + prior, right)


def _tail(control: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Quantiles (quantiles, d) of positive values: of control cells, or of all where control shows too few."""
    out = np.zeros((N_TAIL, X.shape[1]))
    at = (np.arange(N_TAIL) + 0.5) / N_TAIL
    for j in range(X.shape[1]):
        values = control[control[:, j] > 0, j]
        values = values if len(values) >= N_TAIL else X[X[:, j] > 0, j]
        if len(values):
            out[:, j] = np.quantile(values, at)
    return out


def _covariance(z: np.ndarray, n_groups: int, max_cells: int = 20_000) -> np.ndarray:
    """Covariance (d, d) of centred standardised cells, shrunk towards the identity :cite:p:`Ledoit2004`."""
    if len(z) > max_cells:
        z = z[np.linspace(0, len(z) - 1, max_cells).astype(int)]
    n, d = z.shape
    sample = (z.T @ z).astype(np.float64) / max(n - n_groups, 1)
    fourth = float((z.astype(np.float64) ** 2).sum(axis=1) @ (z.astype(np.float64) ** 2).sum(axis=1)) / n
    mean = np.trace(sample) / d
    distance = float((sample**2).sum()) - d * mean**2
    noise = max((fourth - float((sample**2).sum())) / n, 0.0)
    share = min(noise / max(distance, 1e-12), 1.0)
    return (1 - share) * sample + share * mean * np.eye(d)
