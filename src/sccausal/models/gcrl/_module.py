"""Mathematics of the gCRL variational autoencoders."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.models.gcrl._components import (
    VARIANCE_OFFSET,
    DecoderKind,
    InterventionEncoder,
    LatentDecoder,
    LatentEncoder,
)
from sccausal.models.gcrl._graph import LatentGraph
from sccausal.models.gcrl._posterior import PosteriorMixin
from sccausal.models.gcrl._schedule import ScheduleMixin
from sccausal.models.gcrl._statistics import LinearStart, Statistics
from sccausal.nn.alignment import Moments, partial_correlation, straight_through_permutation
from sccausal.nn.discrepancy import DiscrepancyKind, check_discrepancy, condition_discrepancy
from sccausal.nn.likelihood import count_log_likelihood, gaussian

InterventionKind = Literal["shift", "do"]
Permutation = Literal["hungarian", "sinkhorn", "fixed"]


class GCRLVAEModule(PosteriorMixin, ScheduleMixin, BaseModuleClass):
    r"""Variational autoencoder whose latents obey structural equations and are moved by interventions.

    The latent that is coded and decoded is :math:`y = u(I - G)`, the exogenous part in an undisturbed cell; the
    causal latents are :math:`u = y(I - G)^{-1}`. Any decoder of u is a decoder of y, so nothing is lost, and G enters
    only where data can speak about it: in the prior of cells whose edges an intervention has cut, and where activities
    pin u. Under shifts alone y has a prior without G.

    Parameters
    ----------
    n_genes, n_batch, n_targets, n_latent
        Sizes.
    See :class:`sccausal.models.GCRLVAE` for the others.
    """

    def __init__(
        self,
        n_genes: int,
        n_batch: int,
        n_targets: int,
        n_latent: int,
        *,
        encoder_genes: np.ndarray | None = None,
        n_activities: int = 0,
        has_global: bool = False,
        n_hidden: int = 128,
        decoder: DecoderKind = "mlp",
        gene_likelihood: Literal["gaussian", "nb"] = "gaussian",
        intervention: InterventionKind = "shift",
        discrepancy: DiscrepancyKind = "centroid",
        discrepancy_weight: float = 1.0,
        alignment_weight: float = 1.0,
        permutation: Permutation = "hungarian",
        l1_on: Literal["decoder", "graph"] = "decoder",
        l1_weight: float = 1e-3,
        n_interaction: int = 8,
        max_temperature: float = 5.0,
        loss_scale: Literal["gene", "paper"] = "gene",
    ) -> None:
        super().__init__()
        check_discrepancy(discrepancy)
        _check_choice("gene_likelihood", gene_likelihood, ("gaussian", "nb"))
        _check_choice("intervention", intervention, ("shift", "do"))
        _check_choice("permutation", permutation, ("hungarian", "sinkhorn", "fixed"))
        _check_choice("l1_on", l1_on, ("decoder", "graph"))
        _check_choice("loss_scale", loss_scale, ("gene", "paper"))
        if n_activities > n_latent:
            raise SetupError(f"{n_activities} activities need as many latents, but n_latent is {n_latent}.")
        self.n_genes, self.n_batch, self.n_targets, self.n_latent = n_genes, n_batch, n_targets, n_latent
        self.n_activities, self.has_global = n_activities, has_global
        self.gene_likelihood, self.intervention_kind = gene_likelihood, intervention
        self.discrepancy, self.discrepancy_weight = discrepancy, discrepancy_weight
        self.alignment_weight = alignment_weight if n_activities else 0.0
        self.permutation, self.l1_on, self.l1_weight = permutation, l1_on, l1_weight
        self.max_temperature, self.loss_scale = max_temperature, loss_scale
        index = np.arange(n_genes) if encoder_genes is None else np.asarray(encoder_genes)
        self.encoder = LatentEncoder(len(index), n_latent, n_hidden)
        self.decoder = LatentDecoder(n_latent, n_genes, n_hidden, decoder)
        self.mixing = nn.Parameter(torch.zeros(n_latent, n_latent))
        self.graph = LatentGraph(n_latent)
        self.graph_parameters = ("graph.weight",)
        self.interventions = InterventionEncoder(n_targets, n_latent, n_interaction)
        self.spread = nn.Parameter(torch.zeros(n_genes))
        self.batch_shift = nn.Parameter(torch.zeros(n_batch, n_genes))
        if permutation == "sinkhorn" and n_activities:
            self.permutation_logits = nn.Parameter(torch.eye(n_activities))
        self._register(index)

    def _register(self, index: np.ndarray) -> None:
        m, d, k, T = self.n_genes, self.n_latent, self.n_activities, self.n_targets
        self.register_buffer("encoder_genes", torch.as_tensor(index, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(m))
        self.register_buffer("scale", torch.ones(m))
        self.register_buffer("loadings", torch.zeros(m, k), persistent=k > 0)
        self.register_buffer("activity_mean", torch.zeros(k), persistent=k > 0)
        self.register_buffer("columns", torch.arange(k), persistent=k > 0)
        self.register_buffer("routes", torch.zeros(T, k), persistent=k > 0)
        # running second moments of activities and latents, for the matching of each epoch
        self.register_buffer("running_tt", torch.eye(k), persistent=k > 0)
        self.register_buffer("running_tz", torch.zeros(k, d), persistent=k > 0)
        self.register_buffer("running_zz", torch.eye(d))
        # second moments of y under an intervention on each latent, for the causal order
        self.register_buffer("running_do", torch.eye(d).repeat(d, 1, 1))
        self.register_buffer("residual", torch.zeros(T, m))
        self.register_buffer("residual_shared", torch.zeros(m))
        self.register_buffer("discrepancy_share", torch.zeros(()))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    # ------------------------------------------------------------------ start

    @torch.no_grad()
    def start(self, stats: Statistics, linear: LinearStart | None, log_mean: np.ndarray | None = None) -> None:
        """Take over centres and scales, and on the first call a linear model to start from."""
        if bool(self.started):
            return
        self.started.fill_(True)
        self.mean.copy_(torch.as_tensor(stats.mean))
        self.scale.copy_(torch.as_tensor(stats.scale))
        self.batch_shift.copy_(torch.as_tensor(stats.batch))
        if log_mean is not None:
            self.decoder.linear.bias.copy_(torch.as_tensor(log_mean))
        if linear is None:
            return
        genes = self.encoder_genes.cpu().numpy()
        self.encoder.linear.weight.copy_(torch.as_tensor(linear.encoder[genes].T))
        self.encoder.linear.bias.zero_()
        lower = np.linalg.cholesky(linear.covariance)
        variance = torch.as_tensor(np.diag(lower) ** 2, dtype=torch.float32)
        self.mixing.copy_(torch.as_tensor(lower / np.diag(lower)))
        self.encoder.head.bias[self.n_latent :] = torch.log(torch.expm1(variance.clamp_min(1e-4))) + VARIANCE_OFFSET
        unit = 1.0 if log_mean is None else stats.scale[:, None]
        self.decoder.linear.weight.copy_(torch.as_tensor(linear.decoder.T * unit))
        if log_mean is None:
            self.decoder.linear.bias.zero_()
            self.spread.copy_(torch.as_tensor(np.log(linear.noise)))
        effect = torch.as_tensor(linear.effect, dtype=torch.float32, device=self.mean.device)
        if effect.numel():
            size = effect.abs() / effect.abs().amax(1, keepdim=True).clamp_min(1e-6)
            self.interventions.logits.copy_(3.0 * size)
            self.interventions.magnitude.copy_(effect.sum(1))

    # ------------------------------------------------------------------ inference

    def _get_inference_input(self, tensors: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        if "target" in tensors:
            halves = [tensors["source"], tensors["target"]]
            tensors = {k: torch.cat([h[k] for h in halves]) for k in halves[0] if k in _USED}
        x = tensors[REGISTRY_KEYS.X_KEY]
        batch = tensors.get(KEYS.BATCH)
        dose = tensors.get(KEYS.INTERVENTION)
        return {
            "x": x,
            "batch": torch.zeros(len(x), dtype=torch.long, device=x.device)
            if batch is None
            else batch.long().squeeze(-1),
            "dose": x.new_zeros(len(x), self.n_targets) if dose is None else dose.to(x.dtype),
        }

    def features(self, x: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised (log-normalised) expression without the batch (n, m), and library sizes (n, 1)."""
        library = x.sum(1, keepdim=True).clamp_min(1e-4)
        if self.gene_likelihood != "gaussian":
            x = torch.log1p(x * (1e4 / library))
        return (x - self.mean) / self.scale - self.batch_shift[batch], library

    @auto_move_data
    def inference(self, x: Tensor, batch: Tensor, dose: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """Posterior of y under the cells' own interventions."""
        features, library = self.features(x, batch)
        mean, variance = self.encoder(features[:, self.encoder_genes])
        posterior = self.posterior(mean, variance, dose)
        y = posterior.draw() if self.training else posterior.mean
        return {"features": features, "library": library, "posterior": posterior, "y_mean": posterior.mean, "y": y}

    def causal(self, y: Tensor) -> Tensor:
        """Causal latents u (n, d) of undisturbed exogenous parts."""
        return self.graph.solve(y)

    def exogenous(self, y: Tensor, dose: Tensor) -> Tensor:
        """Exogenous parts (n, d) of cells under ``dose``, its shift included."""
        if self.intervention_kind == "shift":
            return y
        return self.graph.exogenous(self.causal(y), self.interventions.cut(dose))

    def moved(self, y: Tensor, dose: Tensor) -> Tensor:
        """Y (n, d) of the same cells, untreated so far, under ``dose``."""
        shift = self.interventions.shift(dose)
        if self.intervention_kind == "shift":
            return y + shift
        return self.graph.exogenous(self.graph.solve(y + shift, self.interventions.cut(dose)))

    # ------------------------------------------------------------------ generation

    def _get_generative_input(self, tensors: dict[str, Any], inference_outputs: dict[str, Tensor]) -> dict[str, Any]:
        batch = self._get_inference_input(tensors)["batch"]
        return {"y": inference_outputs["y"], "library": inference_outputs["library"], "batch": batch}

    @auto_move_data
    def generative(self, y: Tensor, library: Tensor, batch: Tensor) -> dict[str, Tensor]:
        """Mean expression (n, m): standardised features (Gaussian) or counts."""
        return {"mean": self.decode(y, library, batch)}

    def decode(self, y: Tensor, library: Tensor, batch: Tensor, extra: Tensor | None = None) -> Tensor:
        """Mean of standardised features without the batch, or expected counts; ``extra`` is added before the link."""
        out = self.decoder(y)
        if extra is not None:
            out = out + extra
        if self.gene_likelihood == "gaussian":
            return out
        return library * 1e-4 * torch.exp((out + self.batch_shift[batch] * self.scale).clamp(-15.0, 9.0))

    def gene_residual(self, dose: Tensor) -> Tensor:
        """What interventions do to genes past the latents (n, m), in the unit of the decoder."""
        return dose @ self.residual + dose.abs().sum(1, keepdim=True).clamp_max(1.0) * self.residual_shared

    # ------------------------------------------------------------------ loss

    def loss(
        self,
        tensors: dict[str, Any],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Negative ELBO per gene plus the weighted terms of the objective.

        Parameters
        ----------
        tensors
            Pairs of cells (``source`` and ``target``), or cells.
        inference_outputs, generative_outputs
            Results of :meth:`inference` and :meth:`generative`.
        kl_weight
            Weight of the KL divergence (warm-up).
        """
        out, cells = inference_outputs, self._get_inference_input(tensors)
        per_gene = 1.0 / self.n_genes
        reconstruction = -self.log_likelihood(cells["x"], out["features"], generative_outputs["mean"]) * per_gene
        kl = self.kl(out["posterior"], cells["dose"])
        kl = kl * (per_gene if self.loss_scale == "gene" else 2.0)
        terms = self.terms(tensors, out, cells, generative_outputs["mean"])
        loss = (reconstruction + kl_weight * kl).mean() + sum(terms.values(), reconstruction.new_zeros(()))
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={name: value.detach() for name, value in terms.items()},
        )

    def log_likelihood(self, x: Tensor, features: Tensor, mean: Tensor) -> Tensor:
        """Log-likelihood of each cell (n,) without constants."""
        if self.loss_scale == "paper" and self.gene_likelihood == "gaussian":
            return -(features - mean).square().sum(1)
        if self.gene_likelihood == "gaussian":
            return gaussian(features, mean, self.spread)
        return count_log_likelihood(x, mean, self.spread, None)

    def terms(
        self, tensors: dict[str, Any], out: dict[str, Tensor], cells: dict[str, Tensor], mean: Tensor
    ) -> dict[str, Tensor]:
        """Weighted terms beside the ELBO; what they need of the running moments is updated in training."""
        terms: dict[str, Tensor] = {}
        if "target" in tensors and self.n_targets:
            terms["discrepancy"] = self.discrepancy_weight * self.discrepancy_share * self._discrepancy(out, cells)
            if self.training and self.intervention_kind == "do":
                self._follow_interventions(out, cells)
        if self.alignment_weight:
            terms["alignment"] = self.alignment_weight * (1 - self._alignment(out))
        if self.l1_weight:
            size = self.decoder.l1() if self.l1_on == "decoder" else self.graph.matrix().abs().sum() / self.n_genes
            terms["l1"] = self.l1_weight * size
        return terms

    def _discrepancy(self, out: dict[str, Tensor], cells: dict[str, Tensor]) -> Tensor:
        """Discrepancy per gene of source cells, moved as their partners were treated, from these partners."""
        n = len(cells["x"]) // 2
        dose, batch, library = cells["dose"][n:], cells["batch"][:n], out["library"][:n]
        y = out["y_mean"][:n]
        before = self.decode(y, library, batch)
        after = self.decode(self.moved(y, dose), library, batch)
        if self.gene_likelihood == "gaussian":
            predicted, observed = out["features"][:n] + after - before, out["features"][n:]
        else:
            norm = torch.log1p(cells["x"] * 1e4 / out["library"])
            predicted = norm[:n] + torch.log1p(after * 1e4 / library) - torch.log1p(before * 1e4 / library)
            predicted, observed = predicted / self.scale, norm[n:] / self.scale
        code = torch.unique(dose, dim=0, return_inverse=True)[1]
        value = condition_discrepancy(predicted, observed, code, self.discrepancy)
        return value if self.discrepancy == "mmd" else value / self.n_genes

    # ------------------------------------------------------------------ activities

    def activities(self, features: Tensor) -> Tensor:
        """Activities (n, k) of cells from their standardised features."""
        return features @ self.loadings - self.activity_mean

    def _alignment(self, out: dict[str, Tensor]) -> Tensor:
        t, u = self.activities(out["features"]), self.causal(out["y_mean"])
        t, u = t - t.mean(0), u - u.mean(0)
        n = len(t)
        sd = t.square().mean(0).sqrt().clamp_min(1e-6)
        m = Moments((t / sd).T @ (t / sd) / n, (t / sd).T @ u / n, u.T @ u / n, n)
        if self.training:
            self._remember(m)
        rho = self._partial(m)
        if self.permutation == "sinkhorn":
            P = straight_through_permutation(self.permutation_logits)
            return (P * rho[:, : self.n_activities]).sum() / self.n_activities
        return rho[torch.arange(self.n_activities), self.columns].mean()

    def _partial(self, m: Moments, ridge: float = 1e-3) -> Tensor:
        """Partial correlations (k, d); communities condition on the other communities only."""
        if not self.has_global or self.n_activities < 2:
            return partial_correlation(m, ridge=ridge)
        rest = Moments(m.tt[1:, 1:], m.tz[1:], m.zz, m.n)
        first = partial_correlation(m, ridge=ridge)[:1]
        return torch.cat([first, partial_correlation(rest, ridge=ridge)])

    @torch.no_grad()
    def _remember(self, m: Moments, rate: float = 0.05) -> None:
        for name, value in (("tt", m.tt), ("tz", m.tz), ("zz", m.zz)):
            getattr(self, f"running_{name}").lerp_(value.detach().to(self.running_zz.dtype), rate)

    @torch.no_grad()
    def _follow_interventions(self, out: dict[str, Tensor], cells: dict[str, Tensor], rate: float = 0.1) -> None:
        n = len(cells["x"]) // 2
        dose, root = cells["dose"][n:], out["posterior"].root[n:]
        y = out["y_mean"][n:] - self.interventions.shift(dose)
        weight = self.interventions.cut(dose)
        total = weight.sum(0)
        # second moments of y itself: those of the posterior means and the uncertainty about them
        moment = torch.einsum("nj,nk,nl->jkl", weight, y, y)
        moment = moment + torch.einsum("nj,nkl->jkl", weight, root @ root.transpose(1, 2))
        moment = moment / total.clamp_min(1e-6)[:, None, None]
        # a batch says as much about a latent as it has cells under interventions on it
        step = (rate * total / (total + 10.0))[:, None, None]
        self.running_do.copy_(self.running_do + step * (moment - self.running_do))


_USED = (REGISTRY_KEYS.X_KEY, KEYS.BATCH, KEYS.INTERVENTION)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SetupError(f"Unknown {name} {value!r}; choose one of {', '.join(known)}.")
