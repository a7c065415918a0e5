"""Mean effect of every intervention in every cell type, the raw material of the simple rules."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

logger = logging.getLogger(__name__)

POOLED = "all"
"""Name of the stratum that holds all cells when no cell types are given."""


class Effect(NamedTuple):
    """Change of mean expression of one intervention in one type."""

    delta: np.ndarray  # (g,) mean under the intervention minus control mean, compared within batches
    variance: np.ndarray  # (g,) squared standard error of delta
    n: int  # cells under the intervention


class Effects:
    """Control means per type and effects per (type, intervention).

    Parameters
    ----------
    X
        Expression (n, g), dense or sparse.
    types, batches
        Names (n,).
    codes
        Number of each cell's intervention (n,), an index into ``rows``.
    rows
        Dose rows of the interventions (k, targets); the row of zeros is control.
    """

    def __init__(self, X: Any, types: np.ndarray, batches: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> None:
        self.rows = rows
        is_control = ~np.any(rows, axis=1)
        self.interventions = np.flatnonzero(~is_control)
        control: np.ndarray = np.asarray(is_control)[codes]
        self.types = [str(t) for t in pd.unique(pd.Series(types))]
        self.pooled_control = _moments(X, control)[0]
        self.controls: dict[str, np.ndarray] = {}
        self._control_variance: dict[str, np.ndarray] = {}
        for t in self.types:
            here = control & (types == t)
            if here.any():
                self.controls[t], self._control_variance[t] = _moments(X, here)
        self.effects: dict[tuple[str, int], Effect] = {}
        for t in self.types:
            for k in self.interventions:
                here = (types == t) & (codes == k)
                if here.any():
                    self.effects[t, int(k)] = self._effect(X, t, here, control & (types == t), batches)

    def _effect(self, X: Any, name: str, treated: np.ndarray, control: np.ndarray, batches: np.ndarray) -> Effect:
        mean, variance = _moments(X, treated)
        n = int(treated.sum())
        if name not in self.controls:
            logger.warning("Type %r has no control cells; the control cells of all types stand in for them.", name)
            return Effect(mean - self.pooled_control, variance, n)
        delta = np.zeros_like(mean)
        for batch in pd.unique(pd.Series(batches[treated])):
            part, own = treated & (batches == batch), control & (batches == batch)
            base = _moments(X, own)[0] if own.any() else self.controls[name]
            delta += part.sum() / n * (_moments(X, part)[0] - base)
        return Effect(delta, variance + self._control_variance[name], n)

    def of(self, k: int) -> dict[str, Effect]:
        """Effects of intervention ``k`` by type."""
        return {t: e for (t, i), e in self.effects.items() if i == k}

    def find(self, row: np.ndarray) -> int | None:
        """Number of the intervention with exactly this dose row, or ``None``."""
        same = np.flatnonzero((np.abs(self.rows - row) < 1e-6).all(axis=1))
        return int(same[0]) if same.size else None

    def delta(self, k: int, name: str) -> np.ndarray | None:
        """Effect (g,) of intervention ``k`` in a type, or its mean over types; ``None`` if no type has seen it."""
        if (name, k) in self.effects:
            return self.effects[name, k].delta
        found = [e.delta for e in self.of(k).values()]
        return np.mean(found, axis=0) if found else None


def _moments(X: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and squared standard error of the mean per gene (g,)."""
    part = X[np.flatnonzero(rows)]
    n = part.shape[0]
    if sparse.issparse(part):
        mean = np.asarray(part.mean(axis=0), dtype=np.float64).ravel()
        square = np.asarray(part.multiply(part).mean(axis=0), dtype=np.float64).ravel()
    else:
        mean = part.mean(axis=0, dtype=np.float64)
        square = np.mean(np.square(part, dtype=np.float64), axis=0)
    spread = np.maximum(square - mean**2, 0.0)
    return mean, spread / max(n - 1, 1)
