"""Moving control cells so that their mean becomes what a rule says."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sccausal._errors import SetupError

Clip = Literal["mean", "zero", "none"]


def shift_cells(X: np.ndarray, delta: np.ndarray, clip: Clip = "mean") -> np.ndarray:
    """Shift cells by one vector.

    Parameters
    ----------
    X
        Control cells (n, g), not negative unless ``clip="none"``.
    delta
        Wanted change of the mean (g,).
    clip
        ``"none"`` adds ``delta``. ``"zero"`` adds it and sets negative values to 0, which moves the mean less far down
        than the rule says. ``"mean"`` subtracts as much more as it takes for the clipped cells to have the rule's mean
        (at least 0): the rule is then judged by what it says, not by the clipping.

    Returns
    -------
    Shifted cells (n, g).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> cells = np.array([[0.0, 1.0], [2.0, 1.0]])  # cells x genes
    >>> scc.baselines.shift_cells(cells, np.array([-0.5, 1.0])).tolist()  # the mean falls by 0.5, no value below 0
    [[0.0, 2.0], [1.0, 2.0]]
    """
    if clip not in ("mean", "zero", "none"):
        raise SetupError(f"Unknown clip {clip!r}; use 'mean', 'zero' or 'none'.")
    if clip == "mean":
        delta = _exact(X, delta)
    out = X + delta
    return out if clip == "none" else np.maximum(out, 0.0, out=out)


def _exact(X: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Offset per gene so that the mean of ``max(X + offset, 0)`` is ``max(mean(X) + delta, 0)``."""
    offset = np.array(delta, dtype=np.float64)
    lowest = X.min(axis=0)
    down = np.flatnonzero(lowest + offset < 0)
    if not down.size:
        return offset
    n = len(X)
    ordered = -np.sort(-X[:, down], axis=0)
    wanted = np.maximum(X[:, down].mean(axis=0) + offset[down], 0.0) * n
    kept = np.arange(1, n + 1)[:, None]
    # with the k largest cells kept above 0 the offset is (wanted - their sum) / k; the right k keeps exactly those
    trial = (wanted - np.cumsum(ordered, axis=0)) / kept
    k = np.maximum((ordered + trial > 0).sum(axis=0) - 1, 0)
    found = trial[k, np.arange(down.size)]
    offset[down] = np.where(wanted > 0, found, -ordered[0])
    return offset
