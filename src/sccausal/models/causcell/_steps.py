"""Passes of the diffusion model over many cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sccausal._errors import SetupError, unknown_name
from sccausal.nn.diffusion import SOLVERS, Solver, decode_pair, encode_pair, sample
from sccausal.nn.levels import karras_levels, vp_levels

if TYPE_CHECKING:
    from sccausal.models.causcell._module import CausCellModule

_CHUNK = 512


@dataclass(frozen=True)
class Settings:
    """How the diffusion model is run.

    Parameters
    ----------
    n_steps
        Noise levels; the solver ``"ddpm"`` takes them from the schedule of 1000 steps of the paper.
    solver
        One of :data:`sccausal.nn.diffusion.SOLVERS`.
    abduction
        ``"shared"`` or ``"inverted"``.
    low, high
        Smallest and largest level.
    """

    n_steps: int
    solver: Solver
    abduction: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise unknown_name("solver", self.solver, SOLVERS)
        if self.abduction not in ("shared", "inverted"):
            raise unknown_name("abduction", self.abduction, ("shared", "inverted"))
        if self.n_steps < 3:
            raise SetupError(f"n_steps must be at least 3; got {self.n_steps}.")

    def levels(self) -> Tensor:
        """Falling noise levels (n_steps,)."""
        if self.solver == "ddpm":
            return vp_levels(self.n_steps)
        return karras_levels(self.n_steps, self.low, self.high)


@dataclass
class Request:
    """An intervention as asked for.

    Parameters
    ----------
    mode, source, keep_own
        See :meth:`sccausal.models.CausCell.counterfactual`.
    features
        Position of the concept -> level weights or doses.
    values
        Name of the concept -> the same, and how it is shown.
    """

    mode: str
    source: str
    keep_own: bool
    features: dict[int, Tensor] = field(default_factory=dict)
    values: dict[str, tuple[Tensor, str]] = field(default_factory=dict)


def normal(shape: Sequence[int], like: Tensor, *key: int) -> Tensor:
    """Standard normal draws that depend on the key only; those of the first cells do not depend on how many follow."""
    values = np.random.default_rng([int(k) for k in key]).standard_normal(tuple(shape), dtype=np.float32)
    return torch.as_tensor(values).to(like)


def change_cells(
    module: CausCellModule,
    x: np.ndarray,
    before: Tensor,
    after: Tensor,
    settings: Settings,
    seed: int,
    draw: int,
    batch_size: int | None,
) -> np.ndarray:
    """Cells ``x (n, genes)``, moved by the difference between two passes that share their noise.

    Parameters
    ----------
    module
        The module.
    x
        Observed cells.
    before, after
        Tokens (n, concepts + 1, d); cells for which they are equal are returned as they are.
    settings
        Steps and solver.
    seed, draw
        Key of the noise.
    batch_size
        Cells computed together.
    """
    changed = torch.nonzero((before != after).flatten(1).any(1)).ravel()
    out = x.copy()
    if len(changed) == 0:
        return out
    start = None
    if settings.abduction == "shared":
        start = normal((len(x), module.space.n_dims), before, seed, 2, draw)
    for part in changed.split(batch_size or _CHUNK):
        rows = part.cpu().numpy()
        cells = torch.as_tensor(x[rows]).to(before)
        y = module.space.code(cells)
        noise = None if start is None else start[part]
        key = [seed, 6, draw, int(rows[0])]
        moved = y + _change(module, y, before[part], after[part], noise, settings, key)
        counted = np.random.default_rng([seed, 8, draw, int(rows[0])])
        out[rows] = module.space.moved(cells, y, moved, counted).cpu().numpy()
    return out


def _change(
    module: CausCellModule,
    y: Tensor,
    before: Tensor,
    after: Tensor,
    noise: Tensor | None,
    settings: Settings,
    key: list[int],
) -> Tensor:
    levels = settings.levels()
    if noise is None:
        pair = encode_pair(_denoiser(module, before), y, levels)
        return decode_pair(_denoiser(module, after), pair, levels) - y
    ends = []
    for tokens in (before, after):
        rng = np.random.default_rng(key)  # the same steps for both

        def fresh(rng: Any = rng) -> Tensor:
            return torch.as_tensor(rng.standard_normal(tuple(y.shape), dtype=np.float32)).to(y)

        ends.append(sample(_denoiser(module, tokens), levels[0].item() * noise, levels, settings.solver, noise=fresh))
    return ends[1] - ends[0]


def draw_cells(
    module: CausCellModule, tokens: Tensor, settings: Settings, seed: int, batch_size: int | None
) -> np.ndarray:
    """Cells (n, genes) drawn from noise under tokens (n, concepts + 1, d)."""
    levels = settings.levels()
    noise = normal((len(tokens), module.space.n_dims), tokens, seed, 2, 0)
    parts = []
    for part in torch.arange(len(tokens)).split(batch_size or _CHUNK):
        rng = np.random.default_rng([seed, 6, int(part[0])])

        def fresh(rng: Any = rng, n: int = len(part)) -> Tensor:
            shape = (n, module.space.n_dims)
            return torch.as_tensor(rng.standard_normal(shape, dtype=np.float32)).to(noise)

        start = levels[0].item() * noise[part]
        y = sample(_denoiser(module, tokens[part]), start, levels, settings.solver, noise=fresh)
        parts.append(module.space.drawn(y, np.random.default_rng([seed, 8, int(part[0])])).cpu().numpy())
    return np.concatenate(parts)


def _denoiser(module: CausCellModule, tokens: Tensor) -> Any:
    condition = module.denoiser.condition(tokens)
    return lambda y, sigma: module.denoiser.denoise(y, sigma, condition)
