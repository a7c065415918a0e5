"""Encoder, decoder and features of interventions of CITE-VAE."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bent(nn.Module):
    """A linear map plus a net of two hidden layers whose last layer starts at zero, (n, p) to (n, q).

    Parameters
    ----------
    n_input, n_output, n_hidden
        Sizes; no net with ``n_hidden=0``.
    """

    def __init__(self, n_input: int, n_output: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(n_input, n_output)
        self.net: nn.Sequential | None = None
        if n_hidden:
            head = nn.Linear(n_hidden, n_output, bias=False)
            nn.init.zeros_(head.weight)
            self.net = nn.Sequential(
                nn.Linear(n_input, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden), nn.SiLU(), head
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        return out if self.net is None else out + self.net(x)


class Encoder(nn.Module):
    """Posterior of one latent block: means and log-variances (n, d) from features (n, p).

    Parameters
    ----------
    n_input, n_latent, n_hidden
        Sizes.
    """

    def __init__(self, n_input: int, n_latent: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.map = Bent(n_input, 2 * n_latent, n_hidden)
        with torch.no_grad():
            self.map.linear.weight[n_latent:] = 0.0
            self.map.linear.bias.zero_()
            self.map.linear.bias[n_latent:] = -2.0

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.map(features).chunk(2, dim=1)
        return mean, log_var.clamp(-9.0, 3.0)


class EarlierLaw(nn.Module):
    """Gaussian law of the responsive latents of a cell whose own past is not seen, given its block c.

    Such a cell has a past all the same, so that its responsive latents depend on c, on the intervention, on time and on
    each other. A prior in which they do not would make the encoder take these dependences out of them.

    Parameters
    ----------
    n_given
        Size of what is given: c, features of the intervention, time.
    n_latent
        Number d of the responsive latents.
    """

    def __init__(self, n_given: int, n_latent: int) -> None:
        super().__init__()
        self.net = Bent(n_given, 2 * n_latent, n_hidden=32)
        nn.init.zeros_(self.net.linear.weight)
        nn.init.zeros_(self.net.linear.bias)
        self.lower = nn.Parameter(torch.zeros(n_latent, n_latent))

    def kl(self, mean: Tensor, log_var: Tensor, given: Tensor) -> Tensor:
        """KL divergence of N(mean, exp(log_var)) from the law, one term per latent given those before it, (n, d)."""
        centre, spread = self.net(given).chunk(2, dim=1)
        spread = spread.clamp(-6.0, 4.0)
        whiten = torch.eye(len(self.lower), device=mean.device) + torch.tril(self.lower, -1)
        difference = (mean - centre) * torch.exp(-0.5 * spread)
        variance = torch.exp(log_var - spread)
        return 0.5 * ((difference @ whiten.T).square() + variance @ whiten.T.square() - 1.0 + spread - log_var)


def kl_normal(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(log_var)) from the prior, each coordinate by itself (n, d)."""
    difference = (mean - prior_mean).square()
    return 0.5 * (prior_log_var - log_var + (log_var.exp() + difference) * torch.exp(-prior_log_var) - 1.0)


def standardised(x: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1, with gradients through both, so that shrinking a column gains nothing."""
    centred = x - x.mean(0)
    return centred / centred.square().mean(0).add(1e-8).sqrt()
