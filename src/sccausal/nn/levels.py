r"""Noise levels, what a denoiser's network sees at each, and a step from one to the next.

Noise adds up, :math:`x_\sigma = x_0 + \sigma n`. The variance-preserving process of :cite:p:`Ho2020` is the same one
divided by :math:`\sqrt{1 + \sigma^2}`, so its schedules are levels like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sccausal._errors import SetupError, unknown_name

Schedule = Literal["linear", "cosine"]
Spacing = Literal["geometric", "edm"]


def noise_levels(
    n: int, sigma_min: float = 0.03, sigma_max: float = 10.0, *, spacing: Spacing = "geometric", rho: float = 7.0
) -> Tensor:
    """Noise levels (n,), falling from ``sigma_max`` to ``sigma_min``.

    Parameters
    ----------
    n
        Number of levels.
    sigma_min, sigma_max
        Ends, in standard deviations of the data.
    spacing
        ``"geometric"``, or ``"edm"``: even in ``sigma^(1/rho)``, with more levels where the noise is small, which
        costs a sampler less error :cite:p:`Karras2022`.
    rho
        Exponent of ``"edm"``.

    Raises
    ------
    sccausal._errors.SetupError
        The ends are not in order, there are fewer than two levels, or the spacing is unknown.

    Examples
    --------
    >>> from sccausal.nn import noise_levels
    >>> [round(level, 2) for level in noise_levels(3, 0.1, 10.0).tolist()]
    [10.0, 1.0, 0.1]
    """
    if n < 2 or not 0 < sigma_min < sigma_max:
        raise SetupError(f"Need 2 levels or more and 0 < sigma_min < sigma_max; got {n}, {sigma_min}, {sigma_max}.")
    if spacing == "geometric":
        return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), n)
    if spacing == "edm":
        return karras_levels(n, sigma_min, sigma_max, rho).float()
    raise SetupError(f"Unknown spacing {spacing!r}; use 'geometric' or 'edm'.")


def vp_levels(n_steps: int = 1000, schedule: Schedule = "linear", *, low: float = 1e-4, high: float = 2e-2) -> Tensor:
    """Noise levels of a variance-preserving schedule.

    Parameters
    ----------
    n_steps
        Steps T of the forward process.
    schedule
        ``"linear"``: the square root of the variances of the steps rises linearly from ``low`` to ``high``;
        ``"cosine"``: the retained signal falls as a squared cosine :cite:p:`Nichol2021`.
    low, high
        First and last variance of a step, for ``"linear"``.

    Returns
    -------
    Levels (n_steps,), double, falling: the first is the noisiest.

    Examples
    --------
    >>> from sccausal.nn import vp_levels
    >>> levels = vp_levels(1000)
    >>> levels.shape, bool(levels[0] > levels[-1])
    (torch.Size([1000]), True)
    """
    if n_steps < 1:
        raise SetupError(f"A schedule needs one step or more; got {n_steps}.")
    t = torch.arange(1, n_steps + 1, dtype=torch.float64)
    if schedule == "linear":
        beta = torch.linspace(math.sqrt(low), math.sqrt(high), n_steps, dtype=torch.float64) ** 2
        kept = torch.cumprod(1 - beta, 0)
    elif schedule == "cosine":
        offset = 0.008

        def signal(share: Tensor) -> Tensor:
            return torch.cos((share + offset) / (1 + offset) * math.pi / 2) ** 2

        # the last step would keep nothing, which puts the level at infinity
        kept = torch.cumprod((signal(t / n_steps) / signal((t - 1) / n_steps)).clamp_min(1e-3), 0)
    else:
        raise unknown_name("schedule", schedule, ("linear", "cosine"))
    return ((1 - kept) / kept).sqrt().flip(0)


def karras_levels(n_steps: int, low: float = 0.02, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Levels that are evenly spaced after a power :cite:p:`Karras2022`, falling, (n_steps,), double.

    Parameters
    ----------
    n_steps
        Evaluations of the denoiser by a solver of first order, two or more.
    low, high
        Smallest and largest level, in units of the data.
    rho
        Power; large values put more steps at low noise.

    Examples
    --------
    >>> from sccausal.nn import karras_levels
    >>> [round(level, 2) for level in karras_levels(3, low=0.1, high=10.0).tolist()]
    [10.0, 1.45, 0.1]
    """
    if n_steps < 2 or not 0 < low < high:
        raise SetupError(f"Levels need n_steps >= 2 and 0 < low < high; got {n_steps}, {low}, {high}.")
    share = torch.linspace(0, 1, n_steps, dtype=torch.float64)
    return (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def spaced(levels: Tensor, n_steps: int) -> Tensor:
    """``n_steps`` of the given levels, evenly spaced by position, the first and the last among them."""
    if not 1 <= n_steps <= len(levels):
        raise SetupError(f"n_steps must be between 1 and {len(levels)}; got {n_steps}.")
    return levels[torch.linspace(0, len(levels) - 1, n_steps, dtype=torch.float64).round().long()]


def skip_scale(sigma: Tensor, spread: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Factors of :cite:p:`Karras2022` that keep what a network sees and has to give at unit size at every level.

    ``D(x) = skip * x + out * F(scale * x)``.

    Parameters
    ----------
    sigma
        Level, broadcastable against the data.
    spread
        Standard deviation of the data, one number or one per feature.

    Returns
    -------
    ``skip, out, scale``. The weight of the squared error that gives F unit variance targets is ``out ** -2``.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import skip_scale
    >>> skip, out, scale = skip_scale(torch.tensor(1.0), 1.0)
    >>> round(skip.item(), 2), round(out.item(), 2), round(scale.item(), 2)
    (0.5, 0.71, 0.71)
    """
    spread = torch.as_tensor(spread, dtype=sigma.dtype, device=sigma.device)
    total = sigma**2 + spread**2
    return spread**2 / total, sigma * spread / total.sqrt(), total.rsqrt()


def heun_step(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, denoised: Tensor, sigma: float, then: float
) -> Tensor:
    """One step of Heun's method along the probability flow :cite:p:`Karras2022`, towards less or more noise.

    Parameters
    ----------
    denoise
        Expected clean data of ``x`` at a level.
    x
        Data (n, ...) at level ``sigma``.
    denoised
        What ``denoise`` gives there.
    sigma, then
        Levels, both above zero.

    Returns
    -------
    Data (n, ...) at level ``then``; one call of ``denoise``.
    """
    slope = (x - denoised) / sigma
    trial = x + (then - sigma) * slope
    other = (trial - denoise(trial, then)) / then
    return x + (then - sigma) * 0.5 * (slope + other)
