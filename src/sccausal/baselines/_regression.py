"""Rules that regress effects on control expression, on gene loadings or on targets."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy import sparse

from sccausal._errors import InputDataError
from sccausal.baselines._base import Baseline
from sccausal.baselines._effects import Effect
from sccausal.baselines._rules import MeanShift, target_features
from sccausal.baselines._shift import Clip


class RidgeOnMeans(MeanShift):
    """Ridge regression of a type's effect on its control mean, over the other cell types.

    With t types the problem is solved in its t x t dual form: the predicted effect is the mean effect plus a weighted
    sum of the types' deviations, the weights telling how much the control mean resembles each type.

    Parameters
    ----------
    penalty
        Ridge penalty in units of the mean eigenvalue of the types' Gram matrix, i.e. free of the data's scale.
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, n_types=3, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> rule = scc.baselines.RidgeOnMeans().fit(
    ...     adata, intervention_key="intervention", control="control", labels_key="cell_type"
    ... )
    >>> predicted = rule.predict(interventions=["G0007"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('ridge on type means', (40, 30))
    """

    name: ClassVar[str] = "ridge on type means"

    def __init__(self, *, penalty: float = 0.1, clip: Clip = "mean") -> None:
        super().__init__(clip=clip)
        self.penalty = float(penalty)

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        base, delta = self._training(self._others(row, name))
        centred, mean = base - base.mean(axis=0), delta.mean(axis=0)
        gram = centred @ centred.T
        size = np.trace(gram) / len(gram)
        if size <= 0:
            return mean
        weights = np.linalg.solve(
            gram + self.penalty * size * np.eye(len(gram)), centred @ (control - base.mean(axis=0))
        )
        return mean + weights @ (delta - mean)

    def _training(self, others: dict[str, Effect]) -> tuple[np.ndarray, np.ndarray]:
        """Control means and effects of the types (t, g)."""
        base = [self._effects.controls.get(t, self._effects.pooled_control) for t in others]
        return np.asarray(base), np.asarray([e.delta for e in others.values()])


class PerGeneRegression(RidgeOnMeans):
    """Regression of each gene's perturbed mean on its own control mean, over the other cell types.

    Parameters
    ----------
    penalty
        Added to the sum of squares of each gene's control means over types, in squared log1p(1e4).
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, n_types=3, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> rule = scc.baselines.PerGeneRegression().fit(
    ...     adata, intervention_key="intervention", control="control", labels_key="cell_type"
    ... )
    >>> predicted = rule.predict(interventions=["G0007"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('per-gene regression', (40, 30))
    """

    name: ClassVar[str] = "per-gene regression"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        base, delta = self._training(self._others(row, name))
        x, y = base - base.mean(axis=0), base + delta
        spread = np.sum(x**2, axis=0) + self.penalty
        slope = np.divide(np.sum(x * (y - y.mean(axis=0)), axis=0), spread, out=np.zeros_like(spread), where=spread > 0)
        return y.mean(axis=0) + slope * (control - base.mean(axis=0)) - control


class LinearGWP(Baseline):
    """Bilinear map from features of the targets to loadings of the genes, ``Y = G W P^T + b``.

    G holds the first principal components of the training centroids (genes x K), P the features of the interventions
    (sums over their targets), W is found by ridge on both sides, b is the mean over training interventions. By default
    the features of a target are its own row of G, so an unseen target needs to be measured. Source:
    :cite:p:`AhlmannEltze2025`.

    Parameters
    ----------
    n_components
        K, at most the number of training interventions.
    penalty
        Ridge penalty on both sides.
    embedding
        Features of the targets (targets x features) instead of rows of G.
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.LinearGWP(n_components=3).fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('linear GWP', (40, 30))
    """

    name: ClassVar[str] = "linear GWP"

    def __init__(
        self,
        *,
        n_components: int = 10,
        penalty: float = 0.1,
        embedding: pd.DataFrame | None = None,
        clip: Clip = "mean",
    ) -> None:
        super().__init__(clip=clip)
        self.n_components, self.penalty, self.embedding = int(n_components), float(penalty), embedding

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        seen = [int(k) for k in self._effects.interventions if self._effects.of(int(k))]
        Y = np.asarray([np.mean([e.delta for e in self._effects.of(k).values()], axis=0) for k in seen])  # (p, g)
        self._intercept = Y.mean(axis=0)
        centred = Y - self._intercept
        n = min(self.n_components, *Y.shape)
        _, _, v = np.linalg.svd(centred, full_matrices=False)
        self._loadings = v[:n].T  # G, (g, K)
        self._features = self._target_loadings() if self.embedding is None else target_features(self, self.embedding)
        P = self._effects.rows[seen] @ self._features  # (p, d)
        left = self._loadings.T @ self._loadings + self.penalty * np.eye(n)
        right = P.T @ P + self.penalty * np.eye(P.shape[1])
        inner = np.linalg.solve(left, self._loadings.T @ centred.T @ P)  # (K, d)
        self._weights = np.linalg.solve(right, inner.T).T

    def _target_loadings(self) -> np.ndarray:
        at = self._genes.get_indexer(pd.Index(self._codec.targets))
        if (at < 0).all():
            raise InputDataError(
                "None of the intervention targets is a measured gene, so they have no loadings; pass `embedding=`, "
                "a frame targets x features."
            )
        # a target that is not measured has no features and gets the mean effect
        return np.where((at >= 0)[:, None], self._loadings[at], 0.0)

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return self._loadings @ (self._weights @ (row @ self._features)) + self._intercept


class LatentAdditive(Baseline):
    """Ridge regression of latent effects on targets: additive in the principal components of the cells.

    Parameters
    ----------
    n_components
        Principal components of the training cells.
    penalty
        Ridge penalty, in interventions: effects of a target seen once are shrunk by ``1 / (1 + penalty)``.
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.LatentAdditive(n_components=5).fit(
    ...     adata, intervention_key="intervention", control="control"
    ... )
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('latent additive', (40, 30))
    """

    name: ClassVar[str] = "latent additive"

    def __init__(self, *, n_components: int = 50, penalty: float = 0.1, clip: Clip = "mean") -> None:
        super().__init__(clip=clip)
        self.n_components, self.penalty = int(n_components), float(penalty)

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        self._components = principal_axes(X, self.n_components)  # (K, g)
        keys = list(self._effects.effects)
        U = np.asarray([self._effects.rows[k] for _, k in keys], dtype=np.float64)
        Z = np.asarray([self._effects.effects[key].delta for key in keys]) @ self._components.T
        gram = U.T @ U + self.penalty * np.eye(U.shape[1])
        self._weights = np.linalg.solve(gram, U.T @ Z)  # (targets, K)

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return row @ self._weights @ self._components


def principal_axes(X: Any, n: int) -> np.ndarray:
    """First principal axes of cells (n, genes), rows orthonormal; deterministic."""
    from sklearn.decomposition import PCA

    dense = X.toarray() if sparse.issparse(X) else np.asarray(X)
    n = min(n, dense.shape[0] - 1, dense.shape[1])
    return (
        PCA(n_components=n, svd_solver="full" if min(dense.shape) <= 500 else "randomized", random_state=0)
        .fit(dense)
        .components_
    )
