"""Reference lines of tasks about latents."""

from __future__ import annotations

from typing import Any

import numpy as np


def dense(X: Any) -> np.ndarray:
    """Dense float64 copy."""
    return np.asarray(X.todense() if hasattr(X, "todense") else X, dtype=np.float64)


def fit_apply(transform: Any, train: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents of both sets from a scikit-learn transformer that has seen the first."""
    transform.fit(train)
    return transform.transform(train), transform.transform(cells)


def pca(d: int, seed: int) -> Any:
    """Principal components."""
    from sklearn.decomposition import PCA

    return PCA(d, random_state=seed)


def ica(d: int, seed: int) -> Any:
    """Independent components after whitening."""
    from sklearn.decomposition import FastICA

    return FastICA(d, whiten="unit-variance", random_state=seed, max_iter=1000, tol=1e-3)


def random_projection(d: int, seed: int) -> Any:
    """Gaussian random projection."""
    from sklearn.random_projection import GaussianRandomProjection

    return GaussianRandomProjection(d, random_state=seed)
