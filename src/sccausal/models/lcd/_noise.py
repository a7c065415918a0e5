"""Stage 1: noise-free states of cells from counts, by the Monte-Carlo marginal likelihood of a generator."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal.nn.response import InterventionResponse

Generator = Literal["film", "per_env"]
_FLOOR = 1e-6


def zip_log_likelihood(x: Tensor, rate: Tensor, pi: Tensor) -> Tensor:
    r"""Log-probability of each cell's counts under each state's rates, (n, M), by two matrix products.

    .. math::
        \log p(x|r) = \sum_j a_j + \sum_j x_j \log r_j + \sum_j 1\{x_j>0\}(\log(1-\pi_j) - r_j - a_j) - \log x_j!

    with :math:`a_j = \log(\pi_j + (1-\pi_j)e^{-r_j})`: nothing of the size cells x states x genes is made.

    Parameters
    ----------
    x
        Counts (n, d).
    rate
        Rates (M, d), positive.
    pi
        Probability that a count is lost (d,).
    """
    a = torch.logaddexp(torch.log(pi), torch.log1p(-pi) - rate)
    seen = (x > 0).to(x.dtype)
    inside = torch.log1p(-pi) - rate - a
    return x @ torch.log(rate).T + seen @ inside.T + a.sum(1) - torch.lgamma(x + 1).sum(1, keepdim=True)


class StateGenerator(nn.Module):
    r"""Draws of states :math:`s = \mu_e + \eta L_e + g(\eta; e)`, :math:`\eta \sim N(0, I)`.

    Mean and loadings start from the moments of the counts; the net, which starts at zero, bends the law. With
    ``kind="film"`` all environments share it, modulated by their embedding (the sum over targets, and the batch); with
    ``"per_env"`` each has its own, as in :cite:p:`Lorch2026`.

    Parameters
    ----------
    n_dims, n_targets, n_batch
        Sizes.
    n_environments
        Environments of ``"per_env"``.
    n_noise
        Dimension of the noise.
    n_hidden
        Width of the net.
    kind
        ``"film"`` or ``"per_env"``.
    """

    def __init__(
        self,
        n_dims: int,
        n_targets: int,
        n_batch: int,
        *,
        n_environments: int = 0,
        n_noise: int = 64,
        n_hidden: int = 128,
        kind: Generator = "film",
    ) -> None:
        super().__init__()
        self.kind, self.n_noise = kind, n_noise
        copies = n_environments if kind == "per_env" else 1
        self.loading = nn.Parameter(torch.zeros(n_noise, n_dims))
        self.effect = InterventionResponse(n_targets, n_dims, 0, n_hidden=0, n_interaction=8)
        self.first = nn.ModuleList(nn.Linear(n_noise, n_hidden) for _ in range(copies))
        self.second = nn.ModuleList(nn.Linear(n_hidden, n_hidden) for _ in range(copies))
        self.last = nn.ModuleList(nn.Linear(n_hidden, n_dims) for _ in range(copies))
        for layer in self.last:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.response = InterventionResponse(n_targets, 64, 0, n_hidden=0, n_interaction=8)
        self.batch = nn.Parameter(torch.zeros(n_batch, 64))
        self.scale_shift = nn.Linear(64, 2 * n_hidden, bias=False)
        self.spread = nn.Linear(64, n_dims, bias=False)
        nn.init.zeros_(self.spread.weight)

    def forward(self, noise: Tensor, level: Tensor, dose: Tensor, batch: Tensor, environment: int = 0) -> Tensor:
        """States (M, d) of one environment.

        Parameters
        ----------
        noise
            Standard normal (M, k).
        level
            Control mean of the batch (d,).
        dose, batch
            Dose row (T,) and batch (0-d) of the environment.
        environment
            Its number, for ``"per_env"``.
        """
        i = environment if self.kind == "per_env" else 0
        e = self.response(dose.unsqueeze(0)) + self.batch[batch].unsqueeze(0)
        gain, offset = self.scale_shift(e).chunk(2, 1)
        h = F.silu(self.first[i](noise) * (1 + gain) + offset)
        h = h + F.silu(self.second[i](h) * (1 + gain) + offset)
        body = noise @ self.loading + self.last[i](h)
        return level + self.effect(dose.unsqueeze(0)) + body * torch.exp(self.spread(e).clamp(-2, 2))


class NoiseModel(nn.Module):
    r"""Counts x of states s: rates :math:`r = u\,\mathrm{softplus}(s)`, zero-inflated Poisson :cite:p:`Lorch2026`.

    Parameters
    ----------
    generator
        The generator of the states.
    n_states
        States drawn per environment and step.
    temperatures
        Temperatures over which the evidence is averaged; above 1 many draws count instead of the one nearest to a cell.
    """

    unit: Tensor

    def __init__(self, generator: StateGenerator, n_dims: int, n_states: int, temperatures: tuple[float, ...]) -> None:
        super().__init__()
        self.generator, self.n_states, self.temperatures = generator, n_states, temperatures
        self.register_buffer("unit", torch.ones(n_dims))
        self.pi_logit = nn.Parameter(torch.full((n_dims,), -4.0))

    @property
    def pi(self) -> Tensor:
        """Probability (d,) that a count is lost."""
        return torch.sigmoid(self.pi_logit)

    def rate(self, states: Tensor) -> Tensor:
        """Rates (n, d) of states."""
        return self.unit * F.softplus(states) + _FLOOR

    def state_of(self, mean: Tensor) -> Tensor:
        """States whose rates are mean counts without loss."""
        ratio = (mean / self.unit).clamp_min(1e-3)
        return ratio + torch.log(-torch.expm1(-ratio))

    @torch.no_grad()
    def start(self, mean: Tensor, covariance: Tensor, pi: Tensor) -> None:
        """Unit, loss and loadings from the moments of control counts.

        Parameters
        ----------
        mean, covariance
            Mean (d,) and covariance (d, d) of the counts of control cells.
        pi
            First guess of the loss (d,).
        """
        variance = torch.diag(covariance)
        self.unit.copy_((variance / mean.clamp_min(1e-3) + mean - 1).clamp_min(1.0))
        self.pi_logit.copy_(torch.logit(pi.clamp(0.005, 0.9)))
        kept = 1 - self.pi
        centre = self.state_of(mean / kept)
        # variance beyond the Poisson part, brought to states by the slope of the rate
        slope = (self.unit * torch.sigmoid(centre) * kept).clamp_min(1e-3)
        lost = self.pi * kept * (mean / kept) ** 2
        own = covariance - torch.diag(mean + lost)
        own = own / torch.outer(slope, slope)
        limit = 2.0 / torch.diag(own).clamp_min(1e-6).sqrt().clamp_min(2.0)
        values, vectors = torch.linalg.eigh((own * torch.outer(limit, limit)).double())
        k = min(self.generator.n_noise, len(values))
        top = torch.argsort(values, descending=True)[:k]
        loading = (vectors[:, top] * values[top].clamp_min(0).sqrt()).T
        self.generator.loading.zero_()
        self.generator.loading[:k].copy_(loading.to(self.generator.loading))

    def states(self, level: Tensor, dose: Tensor, batch: Tensor, n: int, environment: int = 0) -> Tensor:
        """Draw ``n`` states (n, d) of one environment; ``level`` is the control mean of its batch (d,)."""
        noise = torch.randn(n, self.generator.n_noise, device=level.device)
        return self.generator(noise, level, dose, batch, environment)

    def evidence(self, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Log-evidence (n,) of cells given draws from their environment, averaged over temperatures, and at 1."""
        logs = zip_log_likelihood(x, self.rate(states), self.pi)
        total = torch.zeros_like(logs[:, 0])
        for t in self.temperatures:
            total = total + t * (torch.logsumexp(logs / t, 1) - math.log(len(states)))
        plain = torch.logsumexp(logs.detach(), 1) - math.log(len(states))
        return total / len(self.temperatures), plain

    @torch.no_grad()
    def posterior_state(self, x: Tensor, states: Tensor, temperature: float) -> Tensor:
        """Expected state (n, d) of cells under tempered weights of the draws (M, d)."""
        logs = zip_log_likelihood(x, self.rate(states), self.pi)
        return torch.softmax(logs / temperature, 1) @ states


def sampling_noise(model: NoiseModel, level: Tensor) -> Tensor:
    """Variance (d,) that Poisson counting and loss add to states at ``level`` (d,), to first order."""
    rate, kept = model.rate(level), 1 - model.pi
    slope = (model.unit * torch.sigmoid(level) * kept).clamp_min(1e-3)
    return (kept * rate + model.pi * kept * rate**2) / slope**2
