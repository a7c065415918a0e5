r"""Scores of noisy data and what is drawn from them: preconditioning, samplers, fixed points.

A *denoiser* is a function ``D(x, sigma)`` of states (n, d) and a noise level (float) that gives the expected clean
state (n, d) of :math:`x = x_0 + \sigma\epsilon`; the score of the noisy density is :math:`(D(x) - x)/\sigma^2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sccausal.nn.levels import heun_step, skip_scale

Denoiser = Callable[[Tensor, float], Tensor]
Parametrisation = Literal["gaussian", "edm", "reference"]
PARAMETRISATIONS = get_args(Parametrisation)


class Preconditioning(NamedTuple):
    """Factors of ``D(x) = c_skip x + c_out F(c_in x)`` around a network F, for levels of any shape."""

    skip: Tensor
    out: Tensor
    into: Tensor


def preconditioning(sigma: Tensor, kind: Parametrisation = "edm") -> Preconditioning:
    r"""Factors at noise levels, for data of unit standard deviation.

    ``"edm"`` :cite:p:`Karras2022` keeps input, output and target of the network at unit size at every level:
    :math:`c_{skip} = 1/(\sigma^2+1)`, :math:`c_{out} = \sigma/\sqrt{\sigma^2+1}`. ``"reference"`` is the form of
    :cite:p:`Lorch2026`, :math:`D(x) = \tilde x - \sigma F(\tilde x)` with :math:`\tilde x = x/\sqrt{1+\sigma^2}`, whose
    network must cancel :math:`\tilde x` where the noise is large.

    Parameters
    ----------
    sigma
        Noise levels, of any shape; the factors have the same.
    kind
        ``"edm"`` or ``"reference"``.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import preconditioning
    >>> factors = preconditioning(torch.tensor([1.0]))
    >>> round(factors.skip.item(), 2), round(factors.out.item(), 2)
    (0.5, 0.71)
    """
    if kind == "edm":
        return Preconditioning(*skip_scale(sigma, 1.0))
    into = torch.rsqrt(sigma.square() + 1)
    return Preconditioning(into, -sigma, into)


class GaussianDenoiser(nn.Module):
    r"""The exact denoiser of a Gaussian with mean zero.

    Its covariance is :math:`V(\Lambda - \lambda_0 I)V^T + \lambda_0 I`. A network that adds to it has
    only to learn what is not Gaussian.

    Parameters
    ----------
    n_dims
        Dimension d.
    n_axes
        Number k of axes with a variance of their own.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import GaussianDenoiser
    >>> denoiser = GaussianDenoiser(n_dims=2, n_axes=2)
    >>> denoiser.set_covariance(torch.eye(2))
    >>> denoiser(torch.tensor([[2.0, 0.0]]), 1.0).tolist()  # half way to the mean
    [[1.0, 0.0]]
    """

    axes: Tensor
    variance: Tensor
    rest: Tensor

    def __init__(self, n_dims: int, n_axes: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.zeros(n_dims, n_axes))
        self.register_buffer("variance", torch.ones(n_axes))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def set_covariance(self, covariance: Tensor) -> None:
        """Take the leading axes of a covariance matrix (d, d)."""
        values, vectors = torch.linalg.eigh(covariance.double())
        k, d = self.variance.shape[0], self.axes.shape[0]
        top = torch.argsort(values, descending=True)[:k]
        # signs are free; a fixed choice keeps runs equal on all machines
        chosen = vectors[:, top]
        chosen = chosen * torch.sign(chosen.gather(0, chosen.abs().argmax(0, keepdim=True)))
        self.axes.copy_(chosen.to(self.axes))
        self.variance.copy_(values[top].clamp_min(1e-4).to(self.variance))
        left = (values.sum() - values[top].sum()) / max(d - k, 1)
        self.rest.copy_((left if d > k else values.mean()).clamp_min(1e-4).to(self.rest))

    def covariance(self) -> Tensor:
        """The covariance matrix (d, d)."""
        eye = torch.eye(self.axes.shape[0], device=self.axes.device, dtype=self.axes.dtype)
        return self.rest * eye + (self.axes * (self.variance - self.rest)) @ self.axes.T

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Expected clean state (n, d) of ``x`` (n, d); ``sigma`` is a number or one per row (n, 1)."""
        square = sigma**2
        keep = self.rest / (self.rest + square)
        own = self.variance / (self.variance + square)
        return keep * x + ((x @ self.axes) * (own - keep)) @ self.axes.T


def score(denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
    """Score (n, d) of the noisy density at ``x``."""
    return (denoiser(x, sigma) - x) / sigma**2


def heun(denoiser: Denoiser, x: Tensor, levels: Tensor, *, finish: bool = True) -> Tensor:
    """Follow the probability flow from the first to the last of ``levels``, by Heun's method :cite:p:`Karras2022`.

    Parameters
    ----------
    denoiser
        The denoiser.
    x
        States (n, d) at the noise of ``levels[0]``.
    levels
        Noise levels, falling (data are generated) or rising (cells are turned into noise).
    finish
        After falling levels, end with the expected clean state.

    Returns
    -------
    States (n, d). Two calls of the denoiser per step, no randomness.
    """
    grid = levels.tolist()
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        x = heun_step(denoiser, x, denoiser(x, now), now, then)
    return denoiser(x, grid[-1]) if finish else x


def draw(denoiser: Denoiser, n: int, n_dims: int, levels: Tensor, *, like: Tensor | None = None) -> Tensor:
    """Draw states (n, d) by the probability flow from noise; random numbers come from PyTorch's state."""
    device = None if like is None else like.device
    x = torch.randn(n, n_dims, device=device)
    return heun(denoiser, x * math.sqrt(float(levels[0]) ** 2 + 1), levels)


def annealed_langevin(
    denoiser: Denoiser, x: Tensor, levels: Tensor, *, n_steps: int = 500, step: float = 0.01, noise: bool = True
) -> Tensor:
    r"""Langevin steps at each of the falling ``levels`` :cite:p:`Song2019`, the sampler of :cite:p:`Lorch2026`.

    Parameters
    ----------
    denoiser
        The denoiser.
    x
        States to start from (n, d).
    levels
        Noise levels, falling.
    n_steps
        Steps per level.
    step
        Step size relative to the squared level.
    noise
        Whether steps are random; without noise the states climb to a mode.

    Returns
    -------
    States (n, d), noisy at the last level; ``len(levels) * n_steps`` calls of the denoiser.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import GaussianDenoiser, annealed_langevin, noise_levels
    >>> denoiser = GaussianDenoiser(2, 2)
    >>> denoiser.set_covariance(torch.eye(2))
    >>> annealed_langevin(denoiser, torch.randn(50, 2), noise_levels(3), n_steps=5).shape
    torch.Size([50, 2])
    """
    for sigma in levels.tolist():
        size = step * sigma**2
        for _ in range(n_steps):
            x = x + size * score(denoiser, x, sigma)
            if noise:
                x = x + math.sqrt(2 * size) * torch.randn_like(x)
    return x


def fixed_points(denoiser: Denoiser, x: Tensor, levels: Tensor, *, n_iter: int = 15, tolerance: float = 1e-5) -> Tensor:
    """Points of rest (n, d) of the noise-free dynamics: ``D(x) = x``, followed down the ``levels``.

    Replaces x by its denoised value, which is a step of the size of the squared level: ten times and more cheaper than
    following the flow, with the same end.

    Parameters
    ----------
    denoiser
        The denoiser D.
    x
        Points to start from (n, d).
    levels
        Noise levels, falling.
    n_iter
        Most steps at each level.
    tolerance
        Largest change at which to go on to the next level.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import GaussianDenoiser, fixed_points, noise_levels
    >>> denoiser = GaussianDenoiser(2, 2)
    >>> denoiser.set_covariance(torch.eye(2))
    >>> bool(fixed_points(denoiser, torch.ones(1, 2), noise_levels(5)).abs().max() < 0.1)  # the mean is at rest
    True
    """
    for sigma in levels.tolist():
        for _ in range(n_iter):
            moved = denoiser(x, sigma)
            done = float((moved - x).abs().max()) < tolerance
            x = moved
            if done:
                break
    return x


def stationary_path(
    drift: Callable[[Tensor], Tensor], x: Tensor, times: Tensor, *, step: float, noise: Tensor | float | None = 1.0
) -> Tensor:
    r"""States of :math:`dx = f(x)\,dt + \sqrt 2\,D\,dW` at rising ``times`` (from time 0), by Euler and Maruyama.

    Parameters
    ----------
    drift
        f, of states (n, d).
    x
        States at time 0 (n, d).
    times
        Times (t,), not negative and rising.
    step
        Largest step.
    noise
        D, a number or one per dimension (d,); ``None`` for no random part.

    Returns
    -------
    States (t, n, d).
    """
    now, path = 0.0, []
    for time in times.tolist():
        n = max(math.ceil((time - now) / step - 1e-9), 0)
        size = (time - now) / n if n else 0.0
        for _ in range(n):
            x = x + size * drift(x)
            if noise is not None:
                x = x + math.sqrt(2 * size) * noise * torch.randn_like(x)
        now = time
        path.append(x)
    return torch.stack(path)
