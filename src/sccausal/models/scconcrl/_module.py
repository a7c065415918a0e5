"""Mathematics of scConCRL: a variational autoencoder whose latent genes obey a structural equation model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.models.scconcrl._components import AffineMap, DomainEncoder, DomainPrior, GeneMap, gene_map, line_of
from sccausal.models.scconcrl._domains import DomainsMixin
from sccausal.models.scconcrl._start import StartMixin
from sccausal.models.scconcrl._statistics import N_REFERENCE
from sccausal.models.scconcrl._terms import TermsMixin
from sccausal.nn.adversary import DomainDiscriminator, DomainWeights
from sccausal.nn.graph import AcyclicityKind, SEMGraph
from sccausal.nn.likelihood import Likelihood, check_likelihood, count_log_likelihood, gaussian
from sccausal.nn.response import InterventionResponse
from sccausal.train import register_lagrangian_buffers


class ScConCRLModule(DomainsMixin, TermsMixin, StartMixin, BaseModuleClass):
    r"""Block SEM over domain latents and genes, with its inverse in the encoder.

    With rows as sources, latent expression obeys :math:`z = zA^{xx} + n^b A^{xb} + n^x`. The encoder maps each gene of
    a cell to :math:`h` (gene by gene) and the posterior is :math:`q(z|x) = N(h, s^2)`; the exogenous part follows by
    the inverse SEM, :math:`n^x = h - hA^{xx} - n^b A^{xb}`. All expectations of the KL are in closed form, and
    training never solves a linear system of cells.

    Parameters
    ----------
    n_genes, n_batch, n_targets
        Sizes of the data.
    See :class:`sccausal.models.ScConCRL` for the others.
    """

    def __init__(
        self,
        n_genes: int,
        n_batch: int = 1,
        n_targets: int = 0,
        *,
        n_domain_latent: int | None = None,
        n_condition_latent: int | None = None,
        n_hidden: int = 128,
        n_state: int = 20,
        gene_likelihood: Likelihood = "gaussian",
        encoder: GeneMap = "affine",
        decoder: GeneMap = "affine",
        residual_width: int = 2,
        dropout: float = 0.1,
        regulators: Sequence[int] | np.ndarray | None = None,
        acyclicity: AcyclicityKind | None = None,
        sparsity: Literal["l1", "frobenius"] = "l1",
        response: Literal["state", "paper"] = "state",
        batch_response: Literal["state", "paper"] = "state",
        adversary: Literal["confusion", "reversal"] = "confusion",
        batch_adversary_weight: float = 0.2,
        condition_adversary_weight: float = 0.0,
        guide_weight: float = 0.1,
        guide_input: Literal["centred", "raw"] = "centred",
        sparsity_weight: float = 0.05,
        population_weight: float = 1.0,
        response_decay: float = 1.0,
        n_interventions: int = 0,
        loss_scale: Literal["gene", "paper"] = "gene",
        structure_every: int | None = None,
    ) -> None:
        super().__init__()
        check_likelihood(gene_likelihood)
        self.n_genes, self.n_batch, self.n_targets = n_genes, n_batch, n_targets
        self.gene_likelihood, self.response_kind, self.batch_response = gene_likelihood, response, batch_response
        self.acyclicity, self.sparsity, self.adversary = acyclicity, sparsity, adversary
        self.guide_weight, self.guide_input, self.sparsity_weight = guide_weight, guide_input, sparsity_weight
        self.population_weight = population_weight if response == "state" else 0.0
        self.response_decay = response_decay
        self.per_gene = 1.0 / n_genes if loss_scale == "gene" else 1.0
        self.is_gene_wise = encoder != "dense" and decoder != "dense"
        # blocks of n^b: batch first, condition second
        self.n_state = min(n_state, n_genes)
        # B batches differ in B - 1 directions, times what the state adds; more latents would be free to hold biology
        directions = (n_batch - 1) * (1 + self.n_state) if batch_response == "state" else n_batch - 1
        self.n_batch_latent = (n_domain_latent or min(directions, 32)) if n_batch > 1 else 0
        self.n_condition_latent = (n_condition_latent or max(16, min(64, n_targets + 8))) if n_targets else 0
        self.n_domain = self.n_batch_latent + self.n_condition_latent
        # genes
        self.encoder = gene_map(encoder, n_genes, width=residual_width, n_hidden=n_hidden)
        self.decoder = gene_map(decoder, n_genes, width=residual_width, n_hidden=n_hidden)
        self.log_posterior_var = nn.Parameter(torch.full((n_genes,), math.log(0.1)))
        self.log_exogenous_var = nn.Parameter(torch.full((n_genes,), math.log(0.7)))
        self.spread = nn.Parameter(torch.zeros(n_genes))
        self.dropout_logit = nn.Parameter(torch.full((n_genes,), -3.0)) if gene_likelihood == "zinb" else None
        # graph
        self.graph = SEMGraph(n_genes, None if regulators is None else np.asarray(regulators))
        n_regulators = self.graph.n_regulators
        self.structure_every = structure_every or max(1, math.ceil((n_regulators / 128) ** 1.5))
        self._step: int = 0
        register_lagrangian_buffers(self)
        # domains
        if self.n_domain:
            self.domain_encoder = DomainEncoder(n_genes, self.n_domain, n_hidden=n_hidden, dropout=dropout)
        self._add_total("batch_total", self.n_batch_latent)
        self._add_total("condition_total", self.n_condition_latent)
        if n_batch > 1:
            by_state = self.n_state if batch_response == "state" else 0
            self.batch_prior = DomainPrior(n_batch, self.n_batch_latent, by_state)
            if not by_state:
                self.log_reach = nn.Parameter(torch.zeros(()))
            # batches that query data bring later are no anchors
            self.register_buffer("n_anchors", torch.tensor(n_batch))
        if n_targets:
            state = self.n_state if response == "state" else 0
            self.response = InterventionResponse(n_targets, self.n_condition_latent, state)
            self.response_log_scale = nn.Parameter(torch.zeros(n_targets, self.n_condition_latent))
            self.control_log_scale = nn.Parameter(torch.full((self.n_condition_latent,), -0.5))
        self._add_discriminators(n_batch, n_interventions, batch_adversary_weight, condition_adversary_weight)
        self._register_statistics()

    def _add_total(self, name: str, k: int) -> None:
        if k:
            self.register_parameter(name, nn.Parameter(torch.randn(k, self.n_genes) / self.n_genes**0.5))
        else:
            self.register_buffer(name, torch.zeros(0, self.n_genes), persistent=False)

    def _add_discriminators(self, n_batch: int, n_interventions: int, batch: float, condition: float) -> None:
        self.adversary_weights = {}
        if n_batch > 1 and batch > 0:
            self.adversary_weights["batch"] = batch
            self.batch_discriminator = DomainDiscriminator(self.n_genes, n_batch)
            self.batch_weights = DomainWeights(n_batch)
        if self.n_targets and condition > 0:
            if self.n_targets > 64:
                raise SetupError("An adversary against the condition is for up to 64 targets; set its weight to 0.")
            self.adversary_weights["condition"] = condition
            self.condition_discriminator = DomainDiscriminator(self.n_genes, self.n_targets + 1)
            self.condition_weights = DomainWeights(self.n_targets + 1)

    def _register_statistics(self) -> None:
        m = self.n_genes
        self.register_buffer("mean", torch.zeros(m))
        self.register_buffer("scale", torch.ones(m))
        self.register_buffer("feature_sd", torch.ones(m))
        self.register_buffer("batch_effect", torch.zeros(self.n_batch, m))
        self.register_buffer("target_effect", torch.zeros(self.n_targets, m), persistent=self.n_targets > 0)
        self.register_buffer("axes", torch.zeros(m, self.n_state))
        self.register_buffer("total_effect", torch.zeros(self.n_domain, m), persistent=self.n_domain > 0)
        self.register_buffer("state_effect", torch.zeros(self.n_domain, self.n_state), persistent=self.n_domain > 0)
        self.register_buffer("reference_features", torch.zeros(N_REFERENCE, m))
        self.register_buffer("reference_cells", torch.zeros(N_REFERENCE))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    # ------------------------------------------------------------------ inference

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor | None]:
        x = tensors[REGISTRY_KEYS.X_KEY]
        dose, batch = tensors.get(KEYS.INTERVENTION), tensors.get(KEYS.BATCH)
        return {
            "x": x,
            "dose": x.new_zeros(x.shape[0], self.n_targets) if dose is None else dose,
            "batch": None if batch is None else batch.long().reshape(-1),
        }

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised log-normalised expression (n, m) and library sizes (n, 1)."""
        library = x.sum(1, keepdim=True).clamp_min(1e-4)
        if self.gene_likelihood != "gaussian":
            x = torch.log1p(x * (1e4 / library))
        return (x - self.mean) / self.scale, library

    @auto_move_data
    def inference(self, x: Tensor, dose: Tensor, batch: Tensor | None = None, n_samples: int = 1) -> dict[str, Tensor]:
        """Posterior of the latent genes, the domain latents and the exogenous part."""
        features, library = self.features(x)
        h = self.encoder(features)
        z = h
        if self.training and not self.integrates_noise:
            z = h + torch.randn_like(h) * torch.exp(0.5 * self.log_posterior_var)
        nb_mean = nb_var = h.new_zeros(h.shape[0], 0)
        code = self._known_batch(batch, h.shape[0])
        scores = features.detach() @ self.axes
        if self.n_domain:
            linear, rest, nb_var = self.domain_encoder(features)
            nb_mean = linear + rest
            if self.n_condition_latent:
                treated = (dose != 0).any(1, keepdim=True)
                k = self.n_batch_latent
                scores = scores - (nb_mean[:, k:].detach() * treated) @ self.state_effect[k:]
            if self.n_batch_latent:
                mine = self._batch_posterior(linear, rest, scores, code)
                nb_mean = torch.cat([mine, nb_mean[:, self.n_batch_latent :]], 1)
        state = self.state(scores, nb_mean, code)
        A = self.graph.matrix()
        out = {
            "features": features, "library": library, "h": h, "z": z,
            "nb_mean": nb_mean, "nb_var": nb_var, "scores": scores, "state": state, "A": A,
        }  # fmt: skip
        own = h
        if self.unseen is not None:
            out["unseen_offset"] = self.unseen_offset(scores, code)
            own = h - out["unseen_offset"]
        out["nx"] = self.exogenous(own, nb_mean, A)
        return out

    def exogenous(self, z: Tensor, nb: Tensor, A: Tensor | None = None) -> Tensor:
        """Inverse SEM: what neither regulators nor domains explain, (n, m); ``A`` if it is at hand."""
        A = self.graph.matrix() if A is None else A
        return self._direct(z - nb @ self.elbo_effect() if self.n_domain else z, A)

    def propagate(self, nx: Tensor, nb: Tensor) -> Tensor:
        """SEM: latent expression (n, m) that exogenous parts and domain latents lead to."""
        z = self.graph.solve(nx)
        return z + nb @ self.effect() if self.n_domain else z

    @torch.no_grad()
    def state_loading(self) -> tuple[Tensor, Tensor]:
        """Features as the state tells them: centre (m,) and change per unit of state (d, m)."""
        loading = torch.linalg.pinv(self.axes)
        weight = self.reference_cells / self.reference_cells.sum().clamp_min(1)
        mean = weight @ self.reference_features
        return mean - (mean @ self.axes) @ loading, loading

    @torch.no_grad()
    def refresh(self) -> None:
        """Renew what is derived from the total effect of the domain latents."""
        if self.n_domain:
            self.total_effect.copy_(self.effect().detach())
            slope = line_of(self.encoder).slope
            self.state_effect.copy_((self.total_effect / _away_from_zero(slope)) @ self.axes)

    def latent_scale(self) -> Tensor:
        """Standard deviation of each latent gene over the training cells, from the slope of its encoder (m,)."""
        return _away_from_zero(line_of(self.encoder).slope).abs() * self.feature_sd

    @torch.no_grad()
    def standardised_graph(self) -> np.ndarray:
        """Weights (T, m) per standard deviation of source and target."""
        scale = self.latent_scale()
        return (self.graph.matrix() * (scale[self.graph.regulators][:, None] / scale)).cpu().numpy()

    # ------------------------------------------------------------------ response

    def domain_shift(self, dose_from: Tensor, dose_to: Tensor, state: Tensor) -> Tensor:
        """Change of n^b (n, k) when cells of ``state`` go from one intervention to another."""
        shift = self.response(dose_to, state) - self.response(dose_from, state)
        return F.pad(shift, (self.n_batch_latent, 0))

    def condition_prior(self, dose: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Prior mean and variance of the condition block, (n, k) each."""
        log_scale = self.control_log_scale + dose @ self.response_log_scale
        return self.response(dose, state), (2 * log_scale).clamp(-12, 6).exp()

    # ------------------------------------------------------------------ generation

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]) -> dict[str, Any]:
        return {"z": inference_outputs["z"], "library": inference_outputs["library"]}

    @auto_move_data
    def generative(self, z: Tensor, library: Tensor) -> dict[str, Tensor]:
        """Mean expression (n, m) in the unit of the data."""
        return {"mean": self.decode(z, library)}

    def decode(self, z: Tensor, library: Tensor | float) -> Tensor:
        """Mean expression of latent genes ``z``; counts are scaled to ``library``."""
        y = self.decoder(z)
        if self.gene_likelihood == "gaussian":
            return y
        return library * torch.softmax(y, dim=-1)

    def log_profile(self, z: Tensor) -> Tensor:
        """Decoded expression on the log scale of the features (the data themselves if Gaussian)."""
        return self.decode(z, 0.0) if self.gene_likelihood == "gaussian" else torch.log1p(self.decode(z, 1e4))

    @torch.inference_mode()
    def sample(self, tensors: dict[str, Tensor], n_samples: int = 1) -> Tensor:
        """Draw expression from the posterior predictive, (n_samples, n, m)."""
        out = self.inference(**self._get_inference_input(tensors))
        std = torch.exp(0.5 * self.log_posterior_var)
        draws = [self._emit(out["h"] + torch.randn_like(out["h"]) * std, out["library"]) for _ in range(n_samples)]
        return torch.stack(draws)

    def _emit(self, z: Tensor, library: Tensor) -> Tensor:
        mean = self.decode(z, library)
        if self.gene_likelihood == "gaussian":
            return mean + torch.randn_like(mean) * torch.exp(0.5 * self.spread)
        theta = torch.exp(self.spread).expand_as(mean)
        counts = torch.poisson(torch.distributions.Gamma(theta, theta / mean.clamp_min(1e-8)).sample())
        if self.dropout_logit is not None:
            counts = counts * (torch.rand_like(counts) > torch.sigmoid(self.dropout_logit))
        return counts

    # ------------------------------------------------------------------ loss

    @property
    def integrates_noise(self) -> bool:
        """Whether the expectation over q(z|x) is taken in closed form (Gaussian, decoder affine) and not by a draw."""
        return self.gene_likelihood == "gaussian" and isinstance(self.decoder, AffineMap)

    def log_likelihood(self, x: Tensor, mean: Tensor) -> Tensor:
        """Expected log-likelihood of each cell, (n,), without constants."""
        if self.gene_likelihood != "gaussian":
            return count_log_likelihood(x, mean, self.spread, self.dropout_logit)
        extra = None
        if self.integrates_noise:  # bends are small beside the line, which carries the noise of z
            extra = self.decoder.slope * self.decoder.slope * self.log_posterior_var.exp()
        return gaussian(x, mean, self.spread, extra)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Negative ELBO per gene plus the weighted terms of the objective.

        Parameters
        ----------
        tensors
            Mini-batch.
        inference_outputs, generative_outputs
            Results of :meth:`inference` and :meth:`generative`.
        kl_weight
            Weight of the KL terms (warm-up).
        """
        out = inference_outputs
        x, dose = tensors[REGISTRY_KEYS.X_KEY], self._get_inference_input(tensors)["dose"]
        reconstruction = -self.log_likelihood(x, generative_outputs["mean"]) * self.per_gene
        kl = (self.kl_genes(out) + self.kl_domains(out, tensors, dose)) * self.per_gene
        terms = self.weighted_terms(out, tensors, dose)
        loss = (reconstruction + kl_weight * kl).mean() + sum(terms.values(), reconstruction.new_zeros(()))
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={name: value.detach() for name, value in terms.items()},
        )


def _away_from_zero(x: Tensor, floor: float = 0.1) -> Tensor:
    return torch.where(x.abs() < floor, torch.where(x < 0, -floor, floor), x)
