"""From a control cell to the same cell under an intervention."""

from __future__ import annotations

import torch
from torch import Tensor

from sccausal.nn.levels import noise_levels
from sccausal.nn.score import Denoiser, heun

N_LEVELS = 12


def transport_levels(sigma_min: float, sigma_max: float, like: Tensor) -> Tensor:
    """Falling noise levels of the transport."""
    return noise_levels(N_LEVELS, sigma_min, sigma_max, spacing="edm").to(like)


def encode(control: Denoiser, z: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Noise that control cells (n, d) flow to, and what flows back from it under control."""
    noise = heun(control, z, levels.flip(0), finish=False)
    return noise, heun(control, noise, levels)


def move(x: Tensor, level: Tensor, change: Tensor, spike: Tensor, positive: Tensor, tail: Tensor, u: Tensor) -> Tensor:
    """Cells with their expected change, genes with a spike at zero keeping their spike.

    Where a gene is unseen in part of the cells, adding a number to every cell would make values that no cell has. The
    share of the change that falls on zeros is taken as the share of zeros among the cells: there cells drop to zero
    or leave it; the rest moves the values that are seen.

    Parameters
    ----------
    x
        Cells (n, d).
    level
        Mean of control cells like them (n, d) or (d,).
    change
        Expected change of each cell (n, d).
    spike
        Genes with a spike at zero (d,).
    positive, tail
        Share of control cells above zero (d,), and quantiles of their values (q, d).
    u
        Uniform random numbers (n, d).
    """
    out = x + change
    if not bool(spike.any()):
        return out
    s = spike
    v, mean = x[:, s], level.expand_as(x)[:, s].clamp_min(1e-6)
    delta, p, random = change[:, s], positive[s].clamp(1e-3, 1 - 1e-3), u[:, s]
    quantiles = tail[:, s]
    by_zero = delta * (1 - p)
    seen = v > 0
    # down: a cell loses the gene with the probability that lowers the mean by so much
    lost = seen & (random < (-by_zero / mean).clamp(0, 1))
    # up: an unseen gene appears, at a value of the control cells
    value = quantiles.mean(0).clamp_min(1e-6)
    chance = (by_zero / ((1 - p) * value)).clamp(0, 1)
    won = ~seen & (random < chance)
    place = (random / chance.clamp_min(1e-12) * len(quantiles)).long().clamp(0, len(quantiles) - 1)
    fresh = torch.gather(quantiles, 0, place)
    left = delta - by_zero + (by_zero - chance * (1 - p) * value).clamp_min(0)
    # no seen value is pushed to zero or below
    moved = torch.maximum(v + left / p, 0.25 * v)
    moved = torch.where(delta == 0, v, moved)
    kept = torch.where(seen, moved, torch.zeros_like(v))
    kept = torch.where(lost, torch.zeros_like(v), kept)
    out[:, s] = torch.where(won, fresh, kept)
    return out
