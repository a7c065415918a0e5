"""Linear stationary diffusion fitted to means and covariances: what a mechanistic linear model can know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse.linalg import LinearOperator, lsmr

from sccausal._errors import InputDataError, SetupError
from sccausal.grn._network import Network

if TYPE_CHECKING:
    from anndata import AnnData


class LinearStationaryDiffusion:
    r"""Linear stochastic differential equation :math:`dx = (A x + b + u_k e_k)\,dt + \sqrt 2\,dW` in rest.

    A is the matrix that brings the observed means to rest off the targets, :math:`(A \mu_k + b)_i = 0` where
    perturbation k does not act on gene i, and has the observed covariance, :math:`A S + S A^T = -2I`, by least squares.
    The sizes :math:`u_k` follow. With one perturbation of each gene the means alone determine A up to the time
    constants of the genes, which the covariance fixes.

    Parameters
    ----------
    covariance_weight
        Weight of the equations of the covariance against those of the means. Measurement noise is in the covariance but
        not in the means: lower it where cells are noisy.
    ridge
        Penalty on A, relative.
    n_iter
        Most iterations of the solver.

    Attributes
    ----------
    drift_
        A (genes x genes), rows are targets.
    bias_
        b (genes,).
    shifts_
        :math:`u_k` of each perturbation on each of its targets (perturbations x genes).
    covariance_
        Stationary covariance that belongs to A (genes x genes).
    genes_
        Names of the genes.

    Examples
    --------
    >>> from sccausal.datasets import simulate_stationary
    >>> from sccausal.grn import LinearStationaryDiffusion
    >>> adata = simulate_stationary(8, n_cells=100, seed=0)
    >>> model = LinearStationaryDiffusion().fit(adata, intervention_key="intervention", control="control")
    >>> model.drift_.shape
    (8, 8)
    """

    def __init__(self, *, covariance_weight: float = 1.0, ridge: float = 1e-6, n_iter: int = 5000) -> None:
        if covariance_weight < 0 or ridge < 0 or n_iter < 1:
            raise SetupError("covariance_weight and ridge cannot be negative, and n_iter must be at least 1.")
        self.covariance_weight, self.ridge, self.n_iter = covariance_weight, ridge, n_iter

    def fit(
        self, adata: AnnData, *, intervention_key: str, control: str, layer: str | None = None, sep: str | None = "+"
    ) -> LinearStationaryDiffusion:
        """Fit to cells.

        Parameters
        ----------
        adata
            Cells x genes; not changed. Targets that are no genes are used for the covariance only.
        intervention_key, control, layer, sep
            As in the models.
        """
        from sccausal.tl._clipr import perturbation_means

        found = perturbation_means(
            adata, intervention_key=intervention_key, control=control, layer=layer, sep=sep, covariance=True
        )
        assert found.covariance is not None
        genes = list(found.responses.columns)
        place = {g: j for j, g in enumerate(genes)}
        acts = np.zeros(found.responses.shape, dtype=bool)
        for k, name in enumerate(found.responses.index):
            own = [place[t] for t in found.targets[name] if t in place]
            acts[k, own if len(own) == len(found.targets[name]) else slice(None)] = True
        return self.fit_moments(
            found.responses.to_numpy(), acts, found.covariance, found.control.to_numpy(), genes,
            list(found.responses.index),
        )  # fmt: skip

    def fit_moments(
        self,
        responses: np.ndarray,
        acts_on: np.ndarray,
        covariance: np.ndarray,
        control: np.ndarray,
        genes: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> LinearStationaryDiffusion:
        """Fit to moments.

        Parameters
        ----------
        responses
            Changes of the mean (K, d).
        acts_on
            Boolean (K, d): which genes a perturbation acts on.
        covariance
            Covariance of cells within a condition (d, d).
        control
            Mean of the control cells (d,).
        genes, names
            Names of genes and perturbations.
        """
        r, s = np.asarray(responses, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
        d = s.shape[0]
        if r.ndim != 2 or r.shape[1] != d or s.shape != (d, d) or np.shape(acts_on) != r.shape:
            raise InputDataError(f"Responses {r.shape}, acts_on {np.shape(acts_on)} and covariance {s.shape} differ.")
        # in standard deviations all equations are of one size
        sd = np.sqrt(np.maximum(np.diag(s), 1e-12))
        a = self._solve(r / sd, ~np.asarray(acts_on, dtype=bool), s / np.outer(sd, sd), 1 / sd**2)
        self.drift_ = a * sd[:, None] / sd
        self.genes_ = [str(g) for g in (genes if genes is not None else range(d))]
        self.control_ = np.asarray(control, dtype=np.float64)
        self.bias_ = -self.drift_ @ self.control_
        shifts = -(r @ self.drift_.T) * np.asarray(acts_on)
        self.shifts_ = pd.DataFrame(shifts, index=None if names is None else list(names), columns=self.genes_)
        self.covariance_ = _stationary_covariance(self.drift_, s)
        return self

    def _solve(self, r: np.ndarray, free: np.ndarray, s: np.ndarray, diffusion: np.ndarray) -> np.ndarray:
        (k, d), mask = r.shape, free.astype(np.float64)
        mean_weight = np.sqrt(1.0 / max(float((r**2).mean() * k), 1e-12))
        weight = np.sqrt(self.covariance_weight) / np.sqrt(d) if self.covariance_weight else 0.0

        def forward(flat: np.ndarray) -> np.ndarray:
            a = flat.reshape(d, d)
            product = a @ s
            return np.concatenate([(mean_weight * mask * (r @ a.T)).ravel(), (weight * (product + product.T)).ravel()])

        def backward(flat: np.ndarray) -> np.ndarray:
            first = mean_weight * mask * flat[: k * d].reshape(k, d)
            second = weight * flat[k * d :].reshape(d, d)
            return (first.T @ r + (second + second.T) @ s).ravel()

        right = np.concatenate([np.zeros(k * d), (-2 * weight * np.diag(diffusion)).ravel()])
        operator = LinearOperator((k * d + d * d, d * d), matvec=forward, rmatvec=backward, dtype=np.float64)
        found = lsmr(operator, right, damp=np.sqrt(self.ridge), atol=1e-12, btol=1e-12, maxiter=self.n_iter)[0]
        return found.reshape(d, d)

    def mean(self, intervention: str) -> np.ndarray:
        """Stationary mean (genes,) under a fitted perturbation, or a sum of them (``"A+B"``)."""
        self._fitted()
        total = np.zeros(len(self.genes_))
        parts = [intervention] if intervention in self.shifts_.index else intervention.split("+")
        for part in parts:
            if part not in self.shifts_.index:
                from sccausal._errors import unknown_name

                raise unknown_name("intervention", part, list(self.shifts_.index), "the fitted perturbations")
            total = total + self.shifts_.loc[part].to_numpy()
        return self.control_ - np.linalg.solve(self.drift_, total)

    def sample(self, intervention: str | None = None, n: int = 1000, seed: int = 0) -> np.ndarray:
        """Draws (n, genes) from the stationary law; ``None`` for control."""
        self._fitted()
        mean = self.control_ if intervention is None else self.mean(intervention)
        return np.random.default_rng(seed).multivariate_normal(mean, self.covariance_, n, method="eigh")

    def network(self) -> Network:
        """Drift per time constant of the target (diagonal -1), without it, as a network."""
        self._fitted()
        decay = -np.diag(self.drift_)
        scaled = self.drift_ / np.where(np.abs(decay) > 1e-12, decay, np.inf)[:, None]
        facts = {"method": "linear stationary diffusion", "units": "drift per decay of the target"}
        return Network.from_matrix(scaled.T, self.genes_, metadata=facts)

    def _fitted(self) -> Any:
        if not hasattr(self, "drift_"):
            raise SetupError("Call fit() first.")


def _stationary_covariance(drift: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    from scipy.linalg import solve_continuous_lyapunov

    if np.linalg.eigvals(drift).real.max() >= 0:  # noise can leave a drift that has no stationary law
        return fallback
    s = solve_continuous_lyapunov(drift, -2 * np.eye(len(drift)))
    return (s + s.T) / 2
