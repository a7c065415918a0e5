"""Encoders and decoders of the gCRL models, and how interventions find their latents."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal._errors import SetupError
from sccausal.nn.response import InterventionResponse

DecoderKind = Literal["linear", "mlp"]
VARIANCE_OFFSET = 2.0
"""Posterior variances are ``softplus(output - VARIANCE_OFFSET)``, so that they start below the prior's."""


class LatentEncoder(nn.Module):
    """Features (n, p) to posterior means and variances of the latents (n, d).

    The mean is a linear map plus a small net whose last layer starts at zero, so that training starts from the linear
    model, which can be computed.

    Parameters
    ----------
    n_input, n_latent, n_hidden
        Sizes.
    """

    def __init__(self, n_input: int, n_latent: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(n_input, n_latent)
        self.hidden = nn.Linear(n_input, n_hidden)
        self.head = nn.Linear(n_hidden, 2 * n_latent)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        bend, raw = self.head(F.leaky_relu(self.hidden(features), 0.2)).chunk(2, dim=1)
        return self.linear(features) + bend, F.softplus(raw - VARIANCE_OFFSET) + 1e-6


class LatentDecoder(nn.Module):
    """Latents (n, d) to standardised features (n, m): a linear map plus, for ``"mlp"``, a net that starts at zero.

    Parameters
    ----------
    n_latent, n_output, n_hidden
        Sizes.
    kind
        ``"linear"`` or ``"mlp"``.
    """

    def __init__(self, n_latent: int, n_output: int, n_hidden: int = 128, kind: DecoderKind = "mlp") -> None:
        super().__init__()
        if kind not in ("linear", "mlp"):
            raise SetupError(f"Unknown decoder {kind!r}; use 'linear' or 'mlp'.")
        self.linear = nn.Linear(n_latent, n_output)
        self.kind = kind
        if kind == "mlp":
            self.hidden = nn.Linear(n_latent, n_hidden)
            self.head = nn.Linear(n_hidden, n_output, bias=False)
            nn.init.zeros_(self.head.weight)

    def forward(self, u: Tensor) -> Tensor:
        out = self.linear(u)
        if self.kind == "mlp":
            out = out + self.head(F.leaky_relu(self.hidden(u), 0.2))
        return out

    def l1(self) -> Tensor:
        """Mean size of the weights that lead to genes."""
        size = self.linear.weight.abs().mean()
        return size + self.head.weight.abs().mean() if self.kind == "mlp" else size


class InterventionEncoder(nn.Module):
    r"""Where and how strongly interventions act on the latents.

    A target t shifts latent j by :math:`a_t\,p_{tj}` with p a softmax over the latents, sharpened by a temperature;
    targets that are known to belong to a latent have a fixed p. Several targets add up, plus an interaction of pairs
    that starts at zero (:class:`~sccausal.nn.response.InterventionResponse`).

    Parameters
    ----------
    n_targets, n_latent
        Sizes.
    n_interaction
        Rank of the interaction; 0 keeps combinations additive.
    """

    def __init__(self, n_targets: int, n_latent: int, n_interaction: int = 8) -> None:
        super().__init__()
        self.n_targets, self.n_latent = n_targets, n_latent
        self.logits = nn.Parameter(0.1 * torch.randn(n_targets, n_latent))
        self.magnitude = nn.Parameter(torch.ones(n_targets))
        pairs = InterventionResponse(n_targets, n_latent, n_interaction=n_interaction if n_targets > 1 else 0)
        pairs.mean.requires_grad_(False)  # the single shifts are assigned here; only the pair term is used
        self.pairs = pairs
        self.register_buffer("allowed", torch.ones(n_latent))
        self.register_buffer("fixed", torch.zeros(n_targets, n_latent))
        self.register_buffer("temperature", torch.ones(()))
        self.allowed: Tensor
        self.fixed: Tensor
        self.temperature: Tensor

    def assignment(self) -> Tensor:
        """Probability that a target acts on a latent (T, d)."""
        logits = torch.where(self.allowed > 0, self.logits, torch.tensor(-1e4).to(self.logits))
        learned = torch.softmax(self.temperature * logits, dim=1)
        known = self.fixed.sum(1, keepdim=True) > 0
        return torch.where(known, self.fixed, learned)

    def shift(self, dose: Tensor) -> Tensor:
        """Shift of the exogenous parts (n, d) under doses (n, T)."""
        return dose @ (self.assignment() * self.magnitude.unsqueeze(1)) + self.pairs.interaction(dose)

    def cut(self, dose: Tensor) -> Tensor:
        """How far the edges into each latent are cut (n, d), 0..1, if interventions are ``do``."""
        keep = 1 - dose.abs().clamp_max(1.0).unsqueeze(2) * self.assignment().unsqueeze(0)
        return 1 - keep.prod(1)
