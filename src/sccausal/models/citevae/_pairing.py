"""Which cell of one snapshot stands before which of the next: optimal transport within a mini-batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def recouple(source: Tensor, target: Tensor, group: Tensor, regularisation: float = 0.05) -> Tensor:
    """Draw a source for every target from an entropic optimal coupling, group by group.

    Parameters
    ----------
    source, target
        Coordinates (n, d) of source and target cells; row i of both is in the same group.
    group
        Integer code of the group of each row (n,).
    regularisation
        Entropic regularisation, as a share of the mean cost.

    Returns
    -------
    Row of the source of every target (n,), drawn from the coupling by PyTorch's random state.
    """
    import ot

    found = torch.arange(len(source), device=source.device)
    scale = torch.cat([source, target]).std(0).clamp_min(1e-6)
    for code in torch.unique(group):
        rows = torch.nonzero(group == code).squeeze(1)
        if len(rows) < 2:
            continue
        cost = torch.cdist(source[rows] / scale, target[rows] / scale).square().double().cpu().numpy()
        weight = np.full(len(rows), 1 / len(rows))
        plan = ot.sinkhorn(weight, weight, cost, regularisation * max(cost.mean(), 1e-12), numItermax=200, warn=False)
        chances = torch.as_tensor(np.nan_to_num(plan.T) + 1e-12).to(source.device)
        found[rows] = rows[torch.multinomial(chances, 1).squeeze(1)]
    return found
