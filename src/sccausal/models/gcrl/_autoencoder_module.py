"""Mathematics of gCRL-AE: an autoencoder with a polynomial decoder, and shifts of its latents under interventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn

from sccausal.data import KEYS
from sccausal.models.gcrl._statistics import Statistics
from sccausal.nn.response import InterventionResponse


class PolynomialDecoder(nn.Module):
    """Latents (n, d) to standardised features (n, m) by all monomials up to degree two.

    Parameters
    ----------
    n_latent, n_output
        Sizes.
    """

    def __init__(self, n_latent: int, n_output: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_latent, n_output)
        row, column = np.triu_indices(n_latent)
        self.register_buffer("first", torch.as_tensor(row), persistent=False)
        self.register_buffer("second", torch.as_tensor(column), persistent=False)
        self.quadratic = nn.Linear(len(row), n_output, bias=False)
        nn.init.zeros_(self.quadratic.weight)
        self.first: Tensor
        self.second: Tensor

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.quadratic(z[:, self.first] * z[:, self.second])


class GCRLAEModule(BaseModuleClass):
    """Autoencoder of gCRL-AE.

    Parameters
    ----------
    n_genes, n_batch, n_targets, n_latent, n_activities
        Sizes.
    encoder_genes
        Positions of the genes the encoder sees; default all.
    n_hidden
        Width of the encoder.
    """

    gene_likelihood = "gaussian"

    def __init__(
        self,
        n_genes: int,
        n_batch: int,
        n_targets: int,
        n_latent: int,
        n_activities: int,
        *,
        encoder_genes: np.ndarray | None = None,
        n_hidden: int = 64,
    ) -> None:
        super().__init__()
        self.n_genes, self.n_batch, self.n_targets, self.n_latent = n_genes, n_batch, n_targets, n_latent
        self.n_activities = n_activities
        index = np.arange(n_genes) if encoder_genes is None else np.asarray(encoder_genes)
        self.encoder = nn.Sequential(nn.Linear(len(index), n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_latent))
        self.decoder = PolynomialDecoder(n_latent, n_genes)
        if n_targets:
            self.response = InterventionResponse(n_targets, n_latent)
            self.response.requires_grad_(False)  # the shifts are mean changes of the latents, set after training
        self.batch_shift = nn.Parameter(torch.zeros(n_batch, n_genes))
        self.register_buffer("encoder_genes", torch.as_tensor(index, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("loadings", torch.zeros(n_genes, n_activities))
        self.register_buffer("activity_mean", torch.zeros(n_activities))
        self.register_buffer("latent_mean", torch.zeros(n_latent))
        self.register_buffer("latent_scale", torch.ones(n_latent))
        self.register_buffer("alignment", torch.eye(n_latent, n_activities))
        self.register_buffer("residual", torch.zeros(n_targets, n_genes), persistent=n_targets > 0)
        self.register_buffer("residual_shared", torch.zeros(n_genes))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def start(self, stats: Statistics, loadings: np.ndarray, activity_mean: np.ndarray) -> None:
        """Take over centres, scales and activities on the first call."""
        if bool(self.started):
            return
        self.started.fill_(True)
        for name, value in (
            ("mean", stats.mean), ("scale", stats.scale), ("batch_shift", stats.batch), ("loadings", loadings),
            ("activity_mean", activity_mean),
        ):  # fmt: skip
            getattr(self, name).copy_(torch.as_tensor(value))

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        x = tensors[REGISTRY_KEYS.X_KEY]
        batch, dose = tensors.get(KEYS.BATCH), tensors.get(KEYS.INTERVENTION)
        return {
            "x": x,
            "batch": torch.zeros(len(x), dtype=torch.long) if batch is None else batch.long().squeeze(-1),
            "dose": x.new_zeros(len(x), self.n_targets) if dose is None else dose.to(x.dtype),
        }

    @auto_move_data
    def inference(self, x: Tensor, batch: Tensor, dose: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """Latents of cells, as the autoencoder has them (``y_mean``)."""
        features = (x - self.mean) / self.scale - self.batch_shift[batch]
        library = x.sum(1, keepdim=True)
        return {"features": features, "library": library, "y_mean": self.encoder(features[:, self.encoder_genes])}

    def aligned(self, y: Tensor) -> Tensor:
        """Latents aligned with the activities (n, k)."""
        return ((y - self.latent_mean) / self.latent_scale) @ self.alignment

    def activities(self, features: Tensor) -> Tensor:
        """Activities (n, k) of cells from their standardised features."""
        return features @ self.loadings - self.activity_mean

    def moved(self, y: Tensor, dose: Tensor) -> Tensor:
        """Latents of the same cells, untreated so far, under ``dose``."""
        return y + self.response(dose)

    def decode(self, y: Tensor, library: Tensor, batch: Tensor, extra: Tensor | None = None) -> Tensor:
        """Standardised features without the batch (n, m)."""
        out = self.decoder(y)
        return out if extra is None else out + extra

    def gene_residual(self, dose: Tensor) -> Tensor:
        """What interventions do to genes past the latents (n, m)."""
        return dose @ self.residual + dose.abs().sum(1, keepdim=True).clamp_max(1.0) * self.residual_shared

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]) -> dict[str, Any]:
        return {"y": inference_outputs["y_mean"]}

    @auto_move_data
    def generative(self, y: Tensor) -> dict[str, Tensor]:
        """Mean of the standardised features (n, m)."""
        return {"mean": self.decoder(y)}

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor], generative_outputs: dict[str, Tensor]
    ) -> LossOutput:
        """Mean squared error of the standardised features."""
        error = (inference_outputs["features"] - generative_outputs["mean"]).square().mean(1)
        return LossOutput(loss=error.mean(), reconstruction_loss=error, kl_local=torch.zeros_like(error))
