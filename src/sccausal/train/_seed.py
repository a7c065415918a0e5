"""Random states of a run: one number from which each epoch's noise and shuffling follow."""

from __future__ import annotations

import random

import numpy as np
import torch
from scvi import settings


def reseed(*entropy: int) -> None:
    """Seed Python, NumPy and PyTorch from a few non-negative integers, e.g. ``(seed, epoch, rank)``.

    Parameters
    ----------
    entropy
        Non-negative integers; the same ones give the same random state.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.train import reseed
    >>> reseed(0, 5)
    >>> first = np.random.normal()
    >>> reseed(0, 5)
    >>> first == np.random.normal()
    True
    """
    words = np.random.SeedSequence([int(e) for e in entropy]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  other packages draw from the legacy state
    torch.manual_seed(int(words[2]))


def run_seed() -> int:
    """Seed of a run: ``scvi.settings.seed``, or a draw from PyTorch's state where that is ``None``."""
    if settings.seed is not None:
        return int(settings.seed)
    return int(torch.randint(2**31 - 1, ()).item())
