r"""Diffusion on any tensor: samplers, exact inversion, averaged weights.

Everything is written for noise that adds up, :math:`x_\sigma = x_0 + \sigma n`, with a denoiser
:math:`D(x_\sigma, \sigma) \approx E[x_0 \mid x_\sigma]`; levels come from :mod:`sccausal.nn.levels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from sccausal._errors import SetupError, unknown_name
from sccausal.nn.levels import heun_step, skip_scale

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``(x (n, ...), sigma 0-d) -> x0 (n, ...)``."""
Solver = Literal["ddpm", "ddim", "heun", "dpm++2m", "sde-dpm++2m"]
SOLVERS: tuple[Solver, ...] = ("ddpm", "ddim", "heun", "dpm++2m", "sde-dpm++2m")

# -------------------------------------------------------------------------------------------------------- sampling


def sample(
    denoise: Denoiser,
    x: Tensor,
    levels: Tensor,
    solver: Solver = "dpm++2m",
    *,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Take the noise out, level by level.

    Parameters
    ----------
    denoise
        Denoiser.
    x
        Start ``levels[0] * standard normal``, plus the mean of the data if the levels do not drown it.
    levels
        Falling levels (steps,); the last step goes to 0.
    solver
        ``"ddpm"`` (ancestral), ``"ddim"`` (first order), ``"heun"`` (second order, two evaluations a step),
        ``"dpm++2m"`` (second order, one evaluation) :cite:p:`Lu2022`, ``"sde-dpm++2m"`` (the same with noise).
    noise
        Standard normal draws of the shape of ``x``, for the solvers that need them; default PyTorch's own.

    Returns
    -------
    Draw, shape of ``x``.
    """
    if solver not in SOLVERS:
        raise unknown_name("solver", solver, SOLVERS)
    if levels.ndim != 1 or bool((levels <= 0).any()) or bool((levels.diff() >= 0).any()):
        raise SetupError("Levels must be positive and fall from step to step.")
    draw = noise or (lambda: torch.randn_like(x))
    path = [*levels.tolist(), 0.0]
    before: tuple[float, Tensor] | None = None  # level and denoised value of the last step
    for s, t in zip(path[:-1], path[1:], strict=True):
        x0 = denoise(x, x.new_tensor(s))
        if t == 0:
            return x0
        if solver == "ddpm":
            keep = (t / s) ** 2
            x = keep * x + (1 - keep) * x0 + t * math.sqrt(1 - keep) * draw()
        elif solver == "ddim":
            x = _euler(x, x0, s, t)
        elif solver == "heun":
            x = heun_step(lambda y, sigma: denoise(y, y.new_tensor(sigma)), x, x0, s, t)
        else:
            x = _second_order(x, x0, s, t, before, draw if solver.startswith("sde") else None)
        before = (s, x0)
    return x


def _euler(x: Tensor, x0: Tensor, s: float, t: float) -> Tensor:
    return x0 + (t / s) * (x - x0)


def _second_order(
    x: Tensor, x0: Tensor, s: float, t: float, before: tuple[float, Tensor] | None, draw: Callable[[], Tensor] | None
) -> Tensor:
    """Multistep in log level: the denoised value is extrapolated to the middle of the step."""
    h = math.log(s / t)
    target = x0
    if before is not None:
        target = x0 + h / (2 * math.log(before[0] / s)) * (x0 - before[1])
    if draw is None:
        return (t / s) * x + (1 - t / s) * target
    keep = (t / s) * math.exp(-h)
    return keep * x + (1 - math.exp(-2 * h)) * target + t * math.sqrt(1 - math.exp(-2 * h)) * draw()


def encode_pair(denoise: Denoiser, x: Tensor, levels: Tensor, *, spread: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Noise from which :func:`decode_pair` brings back ``x``, exactly up to rounding.

    With :math:`w = x / \sqrt{\sigma^2 + s^2}` and :math:`\theta = \arctan(\sigma / s)` the probability flow is
    :math:`dw / d\theta = -F`, F being the output of a preconditioned network (:func:`skip_scale`); for Gaussian data
    of spread s it stands still. It is followed by leaps over one level,
    :math:`w_{i-1} = w_{i+1} + F(w_i) \Delta\theta`, which two neighbours are enough to undo: the idea of coupled
    inversion :cite:p:`Wallace2023`, of second order and with one evaluation a step.

    Parameters
    ----------
    denoise
        Denoiser, deterministic.
    x
        Data (n, ...), centred, taken to be at ``levels[-1]``.
    levels
        Falling levels (steps,), three or more.
    spread
        Standard deviation s of the data, one number or one per feature.

    Returns
    -------
    Values of w at ``levels[0]`` and ``levels[1]``, each of about unit size.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import GaussianDenoiser, encode_pair, karras_levels
    >>> denoiser = GaussianDenoiser(2, 2)
    >>> denoiser.set_covariance(torch.eye(2))
    >>> first, second = encode_pair(denoiser, torch.tensor([[1.0, -1.0]]), karras_levels(8).float())
    >>> first.shape
    torch.Size([1, 2])
    """
    flow = _Flow(denoise, levels, spread)
    after = x / flow.size(-1)
    before = after - flow.rate(-1, after) * flow.angle(-2, -1)
    for i in range(len(levels) - 2, 0, -1):
        before, after = after - flow.rate(i, before) * flow.angle(i - 1, i + 1), before
    return before, after


def decode_pair(
    denoise: Denoiser, pair: tuple[Tensor, Tensor], levels: Tensor, *, spread: Tensor | float = 1.0
) -> Tensor:
    """Data behind a pair of :func:`encode_pair`, perhaps for another denoiser than that which gave the pair.

    Parameters
    ----------
    denoise, levels, spread
        As for :func:`encode_pair`.
    pair
        Values at ``levels[0]`` and ``levels[1]``.

    Returns
    -------
    Data (n, ...), centred.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import GaussianDenoiser, decode_pair, encode_pair, karras_levels
    >>> denoiser = GaussianDenoiser(2, 2)
    >>> denoiser.set_covariance(torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
    >>> x, levels = torch.tensor([[1.0, -1.0]]), karras_levels(8).float()
    >>> bool(torch.allclose(decode_pair(denoiser, encode_pair(denoiser, x, levels), levels), x, atol=1e-3))
    True
    """
    flow = _Flow(denoise, levels, spread)
    before, after = pair
    for i in range(1, len(levels) - 1):
        before, after = after, before + flow.rate(i, after) * flow.angle(i - 1, i + 1)
    return after * flow.size(-1)


class _Flow:
    """Probability flow in the coordinates in which Gaussian data stand still."""

    def __init__(self, denoise: Denoiser, levels: Tensor, spread: Tensor | float) -> None:
        if len(levels) < 3 or bool((levels.diff() >= 0).any()) or bool((levels <= 0).any()):
            raise SetupError("Inversion needs three levels or more that are positive and fall.")
        self.denoise, self.levels, self.spread = denoise, levels.tolist(), spread

    def size(self, i: int) -> Tensor:
        return (self.levels[i] ** 2 + torch.as_tensor(self.spread) ** 2).sqrt()

    def angle(self, i: int, k: int) -> Tensor:
        s = torch.as_tensor(self.spread)
        return torch.atan(self.levels[i] / s) - torch.atan(self.levels[k] / s)

    def rate(self, i: int, w: Tensor) -> Tensor:
        x, sigma = w * self.size(i), w.new_tensor(self.levels[i])
        skip, out, _ = skip_scale(sigma, self.spread)
        return (self.denoise(x, sigma) - skip * x) / out


def invert_ddim(denoise: Denoiser, x: Tensor, levels: Tensor, *, n_iterations: int = 1) -> Tensor:
    """Noise behind ``x`` by steps of first order solved for their start by fixed-point iteration.

    Parameters
    ----------
    denoise
        Denoiser, deterministic.
    x
        Data, taken to be at ``levels[-1]``.
    levels
        Falling levels (steps,).
    n_iterations
        Iterations per step. With 1 it is the usual approximate inversion; more make it exact where the denoiser
        changes less than its input, i.e. for small steps.

    Returns
    -------
    Tensor at ``levels[0]``.
    """
    path = levels.tolist()
    for s, t in reversed(list(zip(path[:-1], path[1:], strict=True))):
        start = x
        for _ in range(n_iterations):
            x0 = denoise(start, x.new_tensor(s))
            start = x0 + (s / t) * (x - x0)
        x = start
    return x


# ------------------------------------------------------------------------------------------------- averaged weights


class EMA(nn.Module):
    """Exponential moving average of the parameters of a module, kept in buffers so that it is saved with it.

    Parameters
    ----------
    module
        Module whose trainable parameters are followed.
    decay
        Share of the old average that is kept at each update, in [0, 1); less in the first updates, so that the start
        is forgotten.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import EMA
    >>> net = torch.nn.Linear(3, 2)
    >>> average = EMA(net)
    >>> average.update(net)  # after each step of the optimizer
    >>> average.copy_to(net)
    """

    n_updates: Tensor

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise SetupError(f"The decay of averaged weights must be in [0, 1); found {decay}.")
        self.decay = float(decay)
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))
        for name, p in module.named_parameters():
            self.register_buffer(_key(name), p.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the averages towards the parameters."""
        self.n_updates += 1
        n = int(self.n_updates)
        decay = min(self.decay, n / (n + 9))
        averages, values = self._pairs(module)
        torch._foreach_lerp_(averages, values, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the averages in the place of the parameters."""
        averages, values = self._pairs(module)
        for average, value in zip(averages, values, strict=True):
            value.copy_(average)

    @contextmanager
    @torch.no_grad()
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the block the averages stand in the place of the parameters."""
        averages, values = self._pairs(module)
        kept = [value.clone() for value in values]
        self.copy_to(module)
        try:
            yield
        finally:
            for before, value in zip(kept, values, strict=True):
                value.copy_(before)

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        named = list(module.named_parameters())
        return [getattr(self, _key(name)) for name, _ in named], [p.detach() for _, p in named]


def _key(name: str) -> str:
    return "mean_" + name.replace(".", "__")
