"""Terms of the objective of scConCRL, and the hooks by which the training plan drives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from sccausal.data import KEYS
from sccausal.nn.adversary import adversarial_losses
from sccausal.nn.graph import acyclicity
from sccausal.train import augmented_lagrangian

if TYPE_CHECKING:
    from sccausal.models.scconcrl._start import PopulationTargets

_MAX_ROWS = 64


class TermsMixin:
    """KL, auxiliary losses and training hooks of :class:`~sccausal.models.scconcrl._module.ScConCRLModule`."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    graph: Any
    populations: PopulationTargets | None
    _step: int = 0
    structure_rate: float = 0.2
    """Learning rate of the graph as a share of that of the nets."""

    # ------------------------------------------------------------------ KL, in closed form

    def kl_genes(self, out: dict[str, Tensor]) -> Tensor:
        r"""KL(q(z|x) || p(z|n^b)) per cell, expectation over q(n^b).

        The prior of z is the push-forward of :math:`n^x \sim N(0, \sigma^2)` through the SEM, so its log-density is
        that of the exogenous part plus :math:`\log|\det(I - A)|` (zero for a DAG).
        """
        A, nx = out["A"], out["nx"]
        log_s2, log_sigma2 = self.log_posterior_var, self.log_exogenous_var
        s2, precision = log_s2.exp(), torch.exp(-log_sigma2)
        noise = s2 + s2[self.graph.regulators] @ (A * A)
        # sums over genes are taken as products with the precisions: no further (n, m) tensors
        second = (nx * nx) @ precision + noise @ precision
        if self.n_domain:
            loading = self._direct(self.elbo_effect(), A)
            second = second + out["nb_var"] @ ((loading * loading) @ precision)
        kl = 0.5 * (second + (log_sigma2 - log_s2 - 1).sum())
        return kl - self._log_det(A)

    def _block(self, A: Tensor) -> Tensor:
        return A if self.graph.is_square else A.index_select(1, self.graph.regulators)

    def _log_det(self, A: Tensor) -> Tensor:
        if not self._is_structure_step():
            return self.log_posterior_var.new_zeros(())
        block = self._block(A)
        eye = torch.eye(block.shape[0], dtype=block.dtype, device=block.device)
        # computed on every few steps only where the graph is large; its gradient is scaled up in return
        return torch.linalg.slogdet(eye - block)[1] * (self.structure_every if self.training else 1)

    def _is_structure_step(self) -> bool:
        return not self.training or self._step % self.structure_every == 0

    def kl_domains(self, out: dict[str, Tensor], tensors: dict[str, Tensor], dose: Tensor) -> Tensor:
        """KL of the domain latents to their priors, per cell."""
        k = self.n_batch_latent
        mean, var = out["nb_mean"], out["nb_var"]
        kl = mean.new_zeros(mean.shape[0])
        if k:
            batch = tensors[KEYS.BATCH].long().reshape(-1)
            prior_mean = self.batch_prior.location(batch, out["scores"])
            prior_mean = prior_mean.detach() if self.holds_batches else prior_mean
            kl = kl + _gaussian_kl(mean[:, :k], var[:, :k], prior_mean, self.batch_prior.variance(batch))
        if self.n_condition_latent:
            prior_mean, prior_var = self.condition_prior(dose, out["state"])
            if self.cuts_response:
                prior_mean = prior_mean.detach()
            kl = kl + _gaussian_kl(mean[:, k:], var[:, k:], prior_mean, prior_var)
        return kl

    # ------------------------------------------------------------------ weighted terms

    def weighted_terms(self, out: dict[str, Tensor], tensors: dict[str, Tensor], dose: Tensor) -> dict[str, Tensor]:
        """All terms beside the ELBO, each with its weight, by name."""
        terms: dict[str, Tensor] = {}
        for domain, weight in self.adversary_weights.items():
            discriminator, encoder = self._adversary(domain, out["nx"], tensors, dose)
            terms[f"{domain}_discriminator"] = discriminator
            terms[f"{domain}_adversary"] = weight * encoder
        if self.guide_weight > 0:
            terms["guide"] = self.guide_weight * self._guide(out, tensors, dose)
        if self.sparsity == "frobenius" and self.sparsity_weight > 0:
            terms["sparsity"] = self.sparsity_weight * self.graph.matrix().square().sum() * self.per_gene
        if self.acyclicity is not None and self.training and self._is_structure_step():
            terms["acyclicity"] = self.structure_every * augmented_lagrangian(self, self.constraint(out["A"]))
        if self.population_weight > 0 and self.populations is not None and self.training:
            terms["population"] = self.population_weight * self._population()
            if self.response_decay > 0:
                terms["response_decay"] = self.response_decay * self._departure()
        if self.training:
            self._step += 1
        return terms

    def _adversary(self, domain: str, nx: Tensor, tensors: dict[str, Tensor], dose: Tensor) -> tuple[Tensor, Tensor]:
        if domain == "batch":
            target = tensors[KEYS.BATCH]
        else:  # the strongest target stands for the class of a combination
            target = torch.where((dose != 0).any(1), dose.abs().argmax(1) + 1, 0)
        if self.training:
            # the adversary sees draws from the posterior: it would learn the means of few cells by heart
            nx = torch.addcmul(nx, torch.randn_like(nx), torch.exp(0.5 * self.log_posterior_var))
        net, weights = getattr(self, f"{domain}_discriminator"), getattr(self, f"{domain}_weights")
        return adversarial_losses(net, nx, target, weights, self.adversary)

    def _guide(self, out: dict[str, Tensor], tensors: dict[str, Tensor], dose: Tensor) -> Tensor:
        # L_u: expression regressed on its regulators by the graph itself
        features = out["features"]
        if self.guide_input == "centred":
            offset = self._batch_offset(out, tensors)
            if self.n_targets:
                offset = offset + dose @ self.target_effect
            features = features - offset
        rest = features - (features if self.graph.is_square else features[:, self.graph.regulators]) @ out["A"]
        return (rest * rest).sum() / len(rest) * self.per_gene

    def _batch_offset(self, out: dict[str, Tensor], tensors: dict[str, Tensor]) -> Tensor:
        # in features; constant for the guide, which is about genes
        if self.batch_response == "paper" or not self.n_batch_latent:
            return self.batch_effect[tensors[KEYS.BATCH].long().reshape(-1)]
        k = self.n_batch_latent
        return out["nb_mean"][:, :k].detach() @ self.batch_total.detach()

    def _population(self) -> Tensor:
        """Squared error of the predicted mean changes, in units of the noise of a cell."""
        rows = self.populations
        assert rows is not None
        if len(rows.weight) > _MAX_ROWS:
            rows = rows.take(torch.randint(len(rows.weight), (_MAX_ROWS,), device=rows.weight.device))
        predicted = self.predicted_change(rows.control, rows.dose, rows.state)
        error = (predicted - rows.change).square() / rows.noise
        return 0.5 * (rows.weight @ error.sum(1)) / rows.weight.sum() * self.per_gene

    def predicted_change(self, control: Tensor, dose: Tensor, state: Tensor) -> Tensor:
        """Change of the decoded profile (r, m) of populations with mean features ``control`` under ``dose``."""
        h = self.encoder(control)
        # without the batch block, which would get a gradient of zeros and decay
        shift = self.domain_shift(torch.zeros_like(dose), dose, state)
        moved = shift[:, self.n_batch_latent :] @ self.condition_total
        return self.log_profile(h + moved) - self.log_profile(h)

    def _departure(self) -> Tensor:
        # pull of the response towards its start: few populations cannot carry a free function of the state
        total = self.response.mean.new_zeros(())
        for name, start in self._response_start.items():
            total = total + (self.response.get_parameter(name) - start).square().sum()
        return total / max(self.n_condition_latent, 1)

    # ------------------------------------------------------------------ hooks of the training plan

    def constraint(self, A: Tensor | None = None) -> Tensor:
        """Acyclicity of the graph, 0 for a DAG; ``A`` if the weights (T, m) are at hand."""
        if self.acyclicity is None:
            return self.graph.weight.new_zeros(())
        block = self.graph.block() if A is None else self._block(A)
        return acyclicity(block, self.acyclicity, s=float(self.graph.scale)).float()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The graph learns at a rate of its own, without weight decay; discriminators with more of it."""
        rate = lr * self.structure_rate
        groups = [{"params": [self.graph.weight], "name": "structure", "lr": rate, "weight_decay": 0.0}]
        for domain in self.adversary_weights:
            net = getattr(self, f"{domain}_discriminator")
            groups.append({"params": list(net.parameters()), "name": f"{domain}_discriminator", "weight_decay": 1e-2})
        return groups

    @torch.no_grad()
    def proximal_step(self, lr: float) -> None:
        """Soft threshold of the graph (l1), and return into the domain of the log-determinant."""
        if self.sparsity == "l1" and self.sparsity_weight > 0:
            weight = self.graph.weight
            weight.copy_(softshrink(weight, lr * self.sparsity_weight))
        if self.acyclicity == "logdet" and self._step % self.structure_every == 0:
            self.graph.guard()

    @torch.no_grad()
    def on_epoch_start(self, epoch: int, max_epochs: int | None) -> None:
        """Renew what is cached from the graph; keep a cyclic graph stable where cycles are allowed."""
        if self.acyclicity is None:
            radius = float(acyclicity(self.graph.block().abs().sqrt(), "spectral"))
            if radius > 0.95:
                self.graph.weight.mul_(0.95 / radius)
        self.refresh()


def _gaussian_kl(mean: Tensor, var: Tensor, prior_mean: Tensor, prior_var: Tensor) -> Tensor:
    return 0.5 * ((var + (mean - prior_mean).square()) / prior_var - 1 + prior_var.log() - var.log()).sum(1)
