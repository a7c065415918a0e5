"""Posterior of the latents of a cell that knows the cell's own intervention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """Gaussian posterior of y, one row per cell.

    Attributes
    ----------
    mean
        (n, d).
    root
        Matrix R with covariance ``R R^T``, (n, d, d).
    log_det
        Log-determinant of the covariance (n,).
    """

    mean: Tensor
    root: Tensor
    log_det: Tensor

    def draw(self) -> Tensor:
        """One draw per cell (n, d), differentiable."""
        noise = torch.randn_like(self.mean).unsqueeze(2)
        return self.mean + (self.root @ noise).squeeze(2)


class PosteriorMixin:
    r"""Inference of y for :class:`~sccausal.models.gcrl._module.GCRLVAEModule`.

    The encoder gives the posterior :math:`N(m, V)` that a control cell of the same expression would have, with
    :math:`V = L\,\mathrm{diag}(v)L^T` and L shared by all cells. What an intervention changes is the prior alone,
    from N(0, I) to N(mu, P^-1), so the posterior of a treated cell follows by Bayes' rule, with precision
    :math:`V^{-1} - I + P`, and no net has to learn it.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def factor(self) -> Tensor:
        """Unit lower triangular L (d, d): latents of a cell are uncertain together."""
        return torch.tril(self.mixing, -1) + torch.eye(self.n_latent, device=self.mixing.device)

    def posterior(self, mean: Tensor, variance: Tensor, dose: Tensor) -> Posterior:
        """Posterior under the cells' own doses from the encoder's ``mean`` and ``variance`` (n, d)."""
        L = self.factor()
        root = L * variance.sqrt().unsqueeze(1)
        log_det = variance.log().sum(1)
        if not self.n_targets:
            return Posterior(mean, root, log_det)
        if self.intervention_kind == "shift":
            shift = self.interventions.shift(dose)
            return Posterior(mean + ((shift @ L) * variance) @ L.T, root, log_det)
        treated = torch.nonzero((dose != 0).any(1)).squeeze(1)
        if not len(treated):
            return Posterior(mean, root, log_det)
        own = self._under_cut(mean[treated], variance[treated], dose[treated], L)
        return Posterior(
            mean.index_copy(0, treated, own.mean),
            root.index_copy(0, treated, own.root),
            log_det.index_copy(0, treated, own.log_det),
        )

    def _under_cut(self, mean: Tensor, variance: Tensor, dose: Tensor, L: Tensor) -> Posterior:
        eye = torch.eye(self.n_latent, device=mean.device)
        inverse = torch.linalg.solve_triangular(L, eye, upper=False, unitriangular=True)
        precision = (inverse.T / variance.unsqueeze(1)) @ inverse
        B = self.exogenous_map(dose)
        joint = precision - eye + B @ B.transpose(1, 2)
        natural = (precision @ mean.unsqueeze(2) + B @ self.interventions.shift(dose).unsqueeze(2)).squeeze(2)
        # an encoder that is vaguer than the prior has no likelihood to combine: such cells keep its answer
        lower, failed = torch.linalg.cholesky_ex(joint)
        if bool(failed.any()):
            sound = (failed == 0)[:, None]
            joint = torch.where(sound.unsqueeze(2), joint, precision)
            natural = torch.where(sound, natural, (precision @ mean.unsqueeze(2)).squeeze(2))
            lower = torch.linalg.cholesky(joint)
        # J = C C^T: the root of its inverse is C^-T
        root = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False).transpose(1, 2)
        found = torch.cholesky_solve(natural.unsqueeze(2), lower).squeeze(2)
        return Posterior(found, root, -2 * lower.diagonal(dim1=1, dim2=2).log().sum(1))

    def exogenous_map(self, dose: Tensor) -> Tensor:
        """Matrix B (n, d, d) with exogenous parts ``y B`` under ``dose``; its determinant is one."""
        eye, G = torch.eye(self.n_latent, device=dose.device), self.graph.matrix()
        if self.intervention_kind == "shift":
            return eye.expand(len(dose), -1, -1)
        back = self.graph.solve(eye)
        return back - (back @ G) * (1 - self.interventions.cut(dose)).unsqueeze(1)

    def kl(self, posterior: Posterior, dose: Tensor) -> Tensor:
        r"""KL divergence (n,) of the posterior of y from its prior under the cell's own intervention.

        In exogenous parts the prior is N(shift, I), and the map between the two has determinant one.
        """
        shift = self.interventions.shift(dose)
        if self.intervention_kind == "shift":
            square = (posterior.mean - shift).square().sum(1)
            trace = posterior.root.square().sum((1, 2))
        else:
            B = self.exogenous_map(dose)
            square = ((posterior.mean.unsqueeze(1) @ B).squeeze(1) - shift).square().sum(1)
            trace = (B.transpose(1, 2) @ posterior.root).square().sum((1, 2))
        return 0.5 * (square + trace - self.n_latent - posterior.log_det)
