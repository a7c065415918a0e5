"""What is computed once from the training cells: scales, mean changes of the conditions, and starting directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

_MIN_SHARE = 0.1


@dataclass
class Conditions:
    """Mean changes under the interventions seen in training.

    Attributes
    ----------
    dose
        Dose rows (C, T), none of them zero.
    change
        Mean minus control mean within batches (C, m), in the unit of the features.
    n_cells
        Cells of each condition (C,).
    n_control
        Control cells they are compared with.
    spread
        Standard deviation of single cells within a condition (m,).
    """

    dose: np.ndarray
    change: np.ndarray
    n_cells: np.ndarray
    n_control: int
    spread: np.ndarray

    def singles(self, ridge: float = 1e-3) -> np.ndarray:
        """Change per unit of dose of each target (T, m): regression on the doses, weighted by cells."""
        weight = np.sqrt(self.n_cells)[:, None]
        design, change = self.dose * weight, self.change * weight
        penalty = ridge * np.trace(design.T @ design) / max(design.shape[1], 1) * np.eye(design.shape[1])
        return np.linalg.solve(design.T @ design + penalty, design.T @ change)


@dataclass
class Statistics:
    """Moments of the training cells in feature space.

    Attributes
    ----------
    mean, scale
        Centre and scale of each gene (m,); the scale of a gene that hardly varies is bounded below.
    batch
        Offset of each batch from the mean (B, m).
    features
        Standardised features of the training cells, batches taken out (n, m).
    control
        Which of them are control cells (n,).
    conditions
        Mean changes of standardised features, or ``None`` without interventions.
    """

    mean: np.ndarray
    scale: np.ndarray
    batch: np.ndarray
    features: np.ndarray
    control: np.ndarray
    conditions: Conditions | None


def dense_features(X: Any, counts: bool) -> np.ndarray:
    """Expression as float32, log1p of 1e4 per cell if it holds counts."""
    values = X.toarray() if sparse.issparse(X) else np.asarray(X)
    values = values.astype(np.float32)
    if counts:
        values = np.log1p(values * (1e4 / np.maximum(values.sum(1, keepdims=True), 1e-4)))
    return values


def training_statistics(features: np.ndarray, dose: np.ndarray, batch: np.ndarray, n_batch: int) -> Statistics:
    """Statistics of training cells.

    Parameters
    ----------
    features
        Expression in feature space (n, m).
    dose
        Dose rows (n, T); T may be 0.
    batch
        Batch codes (n,).
    n_batch
        Number of batches of the model.
    """
    control = ~(dose != 0).any(1) if dose.shape[1] else np.ones(len(features), dtype=bool)
    base = features[control] if control.sum() > 1 else features
    mean = base.mean(0, dtype=np.float64)
    offset = np.zeros((n_batch, features.shape[1]))
    for b in range(n_batch):
        own = (batch == b) & control
        own = own if own.any() else batch == b
        if own.any() and n_batch > 1:
            offset[b] = features[own].mean(0, dtype=np.float64) - mean
    sd = (features - offset[batch]).std(0, dtype=np.float64)
    positive = sd[sd > 1e-6]
    floor = _MIN_SHARE * float(np.median(positive)) if positive.size else 1.0
    scale = np.maximum(sd, floor)
    standard = ((features - mean - offset[batch]) / scale).astype(np.float32)
    conditions = condition_changes(standard, dose, control) if dose.shape[1] else None
    return Statistics(mean, scale, offset / scale, standard, control, conditions)


def condition_changes(features: np.ndarray, dose: np.ndarray, control: np.ndarray) -> Conditions | None:
    """Mean changes of cells whose batches are already taken out; ``None`` without control or treated cells."""
    if control.all() or not control.any():
        return None
    rows, code = np.unique(dose[~control], axis=0, return_inverse=True)
    treated, code = features[~control], np.ravel(code)
    count = np.bincount(code)
    mean = np.stack([treated[code == c].mean(0, dtype=np.float64) for c in range(len(rows))])
    base = features[control].mean(0, dtype=np.float64)
    square = ((treated - mean[code]) ** 2).sum(0) + ((features[control] - base) ** 2).sum(0)
    spread = np.sqrt(square / max(len(features) - len(rows) - 1, 1))
    return Conditions(rows, mean - base, count.astype(float), int(control.sum()), spread)


@dataclass
class LinearStart:
    """Linear model to start from: features = y F + noise, y ~ N(shift, I) under an intervention.

    Attributes
    ----------
    encoder, decoder
        (m, d) and (d, m): posterior mean of y, and F.
    noise
        Variance of the noise of each gene (m,).
    covariance
        Posterior covariance of y (d, d).
    effect
        Mean change of y per unit of dose of each target (T, d).
    """

    encoder: np.ndarray
    decoder: np.ndarray
    noise: np.ndarray
    covariance: np.ndarray
    effect: np.ndarray


def linear_start(
    stats: Statistics,
    dose: np.ndarray,
    n_latent: int,
    genes: np.ndarray,
    activities: np.ndarray | None = None,
    *,
    allowed: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    n_iter: int = 20,
    max_cells: int = 20_000,
) -> LinearStart:
    """Latents along the directions in which interventions move the mean, or along given activities.

    Parameters
    ----------
    stats
        Training statistics.
    dose
        Dose rows of the training cells (n, T).
    n_latent
        Number of latents d.
    genes
        Genes the encoder sees (p,).
    activities
        Loadings (m, k) of activities, as which the first k latents start and stay; ``None`` for the directions of the
        interventions, of which nearly parallel ones are put together.
    allowed, fixed
        Latents on which interventions may act (d,), and known assignments (T, d).
    n_iter
        Steps of the EM algorithm towards the maximum-likelihood linear model, in which every target acts on one latent.
    max_cells
        Cells used, at most.
    """
    control = stats.features[stats.control].astype(np.float64)
    seen = np.zeros(control.shape[1])
    seen[genes] = 1.0
    if activities is not None:
        encoder = activities[:, :n_latent] * seen[:, None]
    elif stats.conditions is not None:
        encoder = _from_directions(_directions(stats.conditions, n_latent), control, seen)
    else:
        encoder = np.zeros((control.shape[1], 0))
    if encoder.shape[1] < n_latent:
        encoder = np.hstack([encoder, _more(control, seen, encoder, n_latent - encoder.shape[1])])
    encoder = encoder / np.maximum((control @ encoder).std(0), 1e-6)
    effect = stats.conditions.singles() @ encoder if stats.conditions is not None else np.zeros((0, n_latent))
    y = control @ encoder
    F = np.linalg.solve(y.T @ y / len(y) + 0.1 * np.eye(n_latent), y.T @ control / len(y))
    noise = np.maximum(((control - y @ F) ** 2).mean(0), _LEAST_NOISE)
    rows = np.arange(len(dose))
    if len(rows) > max_cells:
        rows = np.random.default_rng(0).choice(len(rows), max_cells, replace=False)
    effect = _on_one_latent(effect, allowed, fixed)
    if activities is None:
        cells = stats.features[rows].astype(np.float64)
        F, noise, effect = _maximum_likelihood(cells, dose[rows], F, noise, effect, n_iter)
    covariance = np.linalg.inv(np.eye(n_latent) + (F * seen / noise) @ F.T)
    posterior = (F * seen / noise).T @ covariance
    return LinearStart(posterior, F, noise, covariance, effect)


_LEAST_NOISE = 1e-3


def _on_one_latent(effect: np.ndarray, allowed: np.ndarray | None, fixed: np.ndarray | None) -> np.ndarray:
    """Effects (T, d) with only the known, or the largest allowed, entry of each row left."""
    size = np.abs(effect) * (1.0 if allowed is None else allowed)
    if fixed is not None and fixed.size:
        size = np.where(fixed.sum(1, keepdims=True) > 0, fixed, size)
    keep = np.zeros_like(effect)
    if effect.size:
        keep[np.arange(len(effect)), size.argmax(1)] = 1.0
    return effect * keep


def _maximum_likelihood(
    X: np.ndarray, dose: np.ndarray, F: np.ndarray, noise: np.ndarray, effect: np.ndarray, n_iter: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """EM for factor analysis in which each intervention shifts the mean of one factor."""
    d, where = len(F), np.abs(effect).argmax(1) if effect.size else np.zeros(0, dtype=int)
    square = (X**2).mean(0)
    for _ in range(n_iter):
        covariance = np.linalg.inv(np.eye(d) + (F / noise) @ F.T)
        y = (X @ (F / noise).T + dose @ effect) @ covariance
        moment, cross = y.T @ y / len(y) + covariance, y.T @ X / len(y)
        F = np.linalg.solve(moment + 1e-6 * np.eye(d), cross)
        noise = np.maximum(square - (F * cross).sum(0), _LEAST_NOISE)
        for j in range(d):
            own = np.flatnonzero(where == j)
            if own.size:
                gram = dose[:, own].T @ dose[:, own] + 1e-6 * np.eye(own.size)
                effect[own, j] = np.linalg.solve(gram, dose[:, own].T @ y[:, j])
    return F, noise, effect


def _directions(conditions: Conditions, d: int) -> np.ndarray:
    """At most d directions (k, m) of the mean changes, those of nearly parallel targets put together."""
    change = conditions.singles()
    if len(change) <= d:
        return change
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    unit = change / np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1e-9)
    distance = 1 - np.abs(np.clip(unit @ unit.T, -1, 1))
    np.fill_diagonal(distance, 0.0)
    group = fcluster(linkage(squareform(distance, checks=False), "average"), d, criterion="maxclust")
    return np.stack([np.linalg.svd(change[group == g], full_matrices=False)[2][0] for g in np.unique(group)])


def _from_directions(directions: np.ndarray, control: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Encoder (m, k) that reads off how far a cell lies along each direction, the others held fixed."""
    part = directions * seen
    norm = np.linalg.norm(part, axis=1, keepdims=True)
    part = part / np.maximum(norm, 1e-9)
    # directions lie in the leading components of the cells; the rest of a measured mean change is sampling noise
    rest = control - control.mean(0)
    k = min(max(2 * len(part), 10), *rest.shape)
    axes = np.linalg.svd(rest * seen, full_matrices=False)[2][:k]
    part = part @ axes.T @ axes
    gram = part @ part.T
    return part.T @ np.linalg.inv(gram + 1e-2 * np.trace(gram) / len(gram) * np.eye(len(gram)))


def _more(control: np.ndarray, seen: np.ndarray, encoder: np.ndarray, n: int) -> np.ndarray:
    """Principal axes (m, n) of what the encoder leaves over."""
    rest = (control - control.mean(0)) * seen
    if encoder.shape[1]:
        y = rest @ encoder
        rest = rest - y @ np.linalg.lstsq(y, rest, rcond=None)[0]
    axes = np.linalg.svd(rest, full_matrices=False)[2][:n].T
    if axes.shape[1] < n:
        axes = np.hstack([axes, np.zeros((len(axes), n - axes.shape[1]))])
    return axes * seen[:, None]
