"""Linear axes of single responsive latents, from what interventions move first."""

from __future__ import annotations

import numpy as np

_WORST_CONDITION = 20.0


def components(
    z: np.ndarray, moved: np.ndarray, rest: np.ndarray, dose: np.ndarray, time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Axes of both blocks, one responsive axis per group of interventions that move the same latent.

    Three steps, each a consequence of the model: (1) soon after an intervention only the latent that it acts on has
    moved, so that the first mean shifts lie on as many lines as there are latents; (2) the coordinates along these
    lines are read by the dual axes, in the metric of the noise within conditions; (3) an intervention takes the parents
    of its latent away, so that the latent is then independent of the invariant block, and what is not is taken out.

    Parameters
    ----------
    z
        Standardised features (n, m).
    moved, rest
        Orthonormal axes (m, k) that interventions move and (m, d_c) of the other directions.
    dose, time
        Doses (n, T) and times (n,).

    Returns
    -------
    Axes (m, k) and (m, d_c). If the first shifts do not span k lines, those of ``moved`` whitened.
    """
    basis = np.column_stack([moved, rest])
    condition = np.unique(np.column_stack([dose, time]), axis=0, return_inverse=True)[1].ravel()
    scores = z @ basis
    value, vector = np.linalg.eigh(np.cov(_centred(scores, condition).T))
    white = vector / np.sqrt(np.maximum(value, 1e-6 * value.max()))
    scores = scores @ white
    k = moved.shape[1]
    _, dose_code = np.unique(dose, axis=0, return_inverse=True)
    dose_code = dose_code.ravel()
    control = ~(dose != 0).any(1)
    labels = np.unique(dose_code[~control])
    shifts = {t: _shifts(scores, dose_code, labels, control, time == t) for t in np.unique(time)}
    everything = np.concatenate([s[np.isfinite(s[:, 0])] for s in shifts.values()])
    if not len(everything):
        return moved, rest
    turn = np.linalg.svd(everything, full_matrices=True)[2]
    first = np.full((len(labels), scores.shape[1]), np.nan)
    for t in sorted(shifts, reverse=True):
        seen = np.isfinite(shifts[t][:, 0])
        first[seen] = shifts[t][seen]
    known = np.isfinite(first[:, 0])
    directions, own = lines(first[known] @ turn[:k].T, k)
    invariant = scores @ turn[k:].T
    dual = turn[:k].T @ np.linalg.inv(directions)
    leaks = np.zeros((turn.shape[0] - k, k))
    later = time > time.min() if len(shifts) > 1 else np.ones(len(time), bool)
    responsive, c = _centred(scores @ dual, condition), _centred(invariant, condition)
    for i in range(k):
        rows = later & np.isin(dose_code, labels[known][own == i])
        if rows.sum() > 10 * c.shape[1]:
            leaks[:, i] = np.linalg.lstsq(c[rows], responsive[rows, i], rcond=None)[0]
    back = basis @ white
    return back @ (dual - turn[k:].T @ leaks), back @ turn[k:].T


def lines(shifts: np.ndarray, k: int, n_rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions (k, k) of lines through the origin near which shifts (n, k) lie, and the line of each (n,)."""
    from scipy.linalg import qr

    unit = shifts / np.maximum(np.linalg.norm(shifts, axis=1, keepdims=True), 1e-12)
    if len(unit) < k:
        return np.eye(k), np.full(len(unit), -1)
    picked = unit[qr(unit.T, pivoting=True, mode="r")[1][:k]]
    found = picked.copy()
    for _ in range(n_rounds):
        own = np.abs(unit @ found.T).argmax(1)
        for i in np.unique(own):
            found[i] = np.linalg.svd(shifts[own == i], full_matrices=False)[2][0]
    if np.linalg.cond(found) > _WORST_CONDITION:
        found = picked
    if np.linalg.cond(found) > _WORST_CONDITION:
        return np.eye(k), np.full(len(unit), -1)
    return found, np.abs(unit @ found.T).argmax(1)


def _shifts(
    scores: np.ndarray, code: np.ndarray, labels: np.ndarray, control: np.ndarray, now: np.ndarray
) -> np.ndarray:
    """Mean of each intervention minus that of control cells of the time (labels, d); not a number if not seen."""
    out = np.full((len(labels), scores.shape[1]), np.nan)
    base = now & control
    if not base.any():
        return out
    for i, label in enumerate(labels):
        rows = now & (code == label)
        if rows.any():
            out[i] = scores[rows].mean(0) - scores[base].mean(0)
    return out


def _centred(x: np.ndarray, code: np.ndarray) -> np.ndarray:
    count = np.maximum(np.bincount(code), 1)
    mean = np.stack([np.bincount(code, weights=column) for column in x.T], 1) / count[:, None]
    return x - mean[code]
