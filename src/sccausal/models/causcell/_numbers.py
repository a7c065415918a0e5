"""Concepts whose values are numbers: their place in the latent space and how they are read from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def standard_knots(values: Sequence[float] | np.ndarray) -> Tensor:
    """Numbers of the knots (k,) as multiples of half their range about its middle: from -1 to 1."""
    knots = torch.as_tensor(np.asarray(values, dtype=np.float64))
    middle, half = (knots[0] + knots[-1]) / 2, (knots[-1] - knots[0]) / 2
    return ((knots - middle) / half).float()


class NumberPrior(nn.Module):
    """Mean embedding of a number: a straight line.

    With a place of its own for every knot the values of single donors would be as many unrelated labels, and the
    difference between two values that of two donors. On a line all cells tell of one direction; the denoiser, which is
    not linear, bends the response of single genes.

    Parameters
    ----------
    knots
        Standard numbers of the knots (k,).
    n_latent
        Dimensions.
    """

    knots: Tensor

    def __init__(self, knots: Tensor, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("knots", knots)
        self.line = nn.Parameter(torch.randn(2, n_latent) * (2.0 / n_latent) ** 0.5)

    def forward(self, weights: Tensor) -> Tensor:
        """Means (n, n_latent) of knot weights (n, k)."""
        return self.line[0] + (weights @ self.knots).unsqueeze(1) * self.line[1]


class LabelPrior(nn.Module):
    """Mean embedding of a label: one place each; of doses: a start and one direction per target.

    Parameters
    ----------
    n_features
        Levels, or targets.
    n_latent
        Dimensions.
    start
        Whether there is a start, for doses.
    """

    def __init__(self, n_features: int, n_latent: int, start: bool = False) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(n_features, n_latent) / n_latent**0.5)
        self.start = nn.Parameter(torch.randn(n_latent) / n_latent**0.5) if start else None

    def forward(self, features: Tensor) -> Tensor:
        """Means (n, n_latent) of level weights or doses (n, features)."""
        mean = features @ self.places
        return mean if self.start is None else self.start + mean


class NumberHead(nn.Module):
    """Reads a number from an embedding along one direction, as logits of the knots.

    The logits fall with the squared distance between the knots and the number that is read, so that neighbours are
    mistaken for each other sooner than distant values and the classifier asks for no more than an order.

    Parameters
    ----------
    knots
        Standard numbers of the knots (k,).
    n_latent
        Dimensions.
    """

    knots: Tensor

    def __init__(self, knots: Tensor, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("knots", knots)
        self.read = nn.Linear(n_latent, 1)
        self.log_precision = nn.Parameter(torch.tensor(1.0))

    def forward(self, z: Tensor) -> Tensor:
        """Logits (n, k)."""
        distance = self.read(z) - self.knots
        return -F.softplus(self.log_precision) * distance.square()
