"""Graph among latent variables: free weights, an order that allows them, and the edges that interventions cut."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class LatentGraph(nn.Module):
    r"""Linear structural equations :math:`u = uG + \epsilon` of latents; rows of G are sources.

    G has an edge only from an earlier to a later latent of an order, so it has no cycle and the constraint costs
    nothing. The order is a buffer: changing it changes which weights count, not their values.

    Parameters
    ----------
    n_latent
        Number of latents d.
    init_scale
        Standard deviation of the initial weights.
    """

    def __init__(self, n_latent: int, init_scale: float = 0.0) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.weight = nn.Parameter(torch.randn(n_latent, n_latent) * init_scale)
        self.register_buffer("rank", torch.arange(n_latent))
        self.rank: Tensor

    def matrix(self) -> Tensor:
        """Weights with those against the order at zero (d, d)."""
        return self.weight * (self.rank[:, None] < self.rank[None, :])

    def exogenous(self, u: Tensor, cut: Tensor | None = None) -> Tensor:
        """What the parents of each latent do not explain (n, d), under ``cut`` (n, d): 1 where edges are cut."""
        explained = u @ self.matrix()
        return u - (explained if cut is None else explained * (1 - cut))

    def solve(self, exogenous: Tensor, cut: Tensor | None = None) -> Tensor:
        """Latents (n, d) that exogenous parts lead to; inverse of :meth:`exogenous`."""
        G, order = self.matrix(), torch.argsort(self.rank)
        upper = G[order][:, order]
        eye = torch.eye(self.n_latent, dtype=G.dtype, device=G.device)
        b = exogenous[:, order]
        if cut is None:
            u = torch.linalg.solve_triangular(eye - upper, b, upper=True, left=False, unitriangular=True)
        else:
            system = eye - upper * (1 - cut[:, order]).unsqueeze(1)
            u = torch.linalg.solve_triangular(system, b.unsqueeze(1), upper=True, left=False, unitriangular=True)
            u = u.squeeze(1)
        return u[:, torch.argsort(order)]

    @torch.no_grad()
    def set_order(self, order: np.ndarray | Tensor) -> None:
        """Set the order: ``order[0]`` is the first latent, which no other acts on."""
        order = torch.as_tensor(np.asarray(order), device=self.rank.device)
        self.rank[order] = torch.arange(self.n_latent, device=self.rank.device)


def order_from_effects(total: np.ndarray, first: int | None = None) -> np.ndarray:
    """Causal order that total effects fit best.

    Parameters
    ----------
    total
        Squared total effects (d, d), rows are sources.
    first
        Latent that is the root whatever the effects say.

    Returns
    -------
    Order (d,): in each step the latent on which those that are left have the least effect.
    """
    left = list(range(len(total)))
    order = []
    if first is not None:
        order.append(left.pop(first))
    while left:
        incoming = total[np.ix_(left, left)].sum(0)
        order.append(left.pop(int(np.argmin(incoming))))
    return np.array(order)


def graph_from_interventions(moment: np.ndarray, order: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Weights (d, d) that fit best how a latent goes with its possible parents once its edges are cut.

    With y = u (I - G) and the edges into j cut, ``y_j = exogenous_j - sum_i u_i G_ij``: a regression of y_j on the
    latents before j in the order. These are known from the columns found before.

    Parameters
    ----------
    moment
        Second moments of y, its shift subtracted, under interventions on each latent (d, d, d): ``moment[j]`` is that
        under an intervention on j.
    order
        Causal order (d,).
    ridge
        Penalty relative to the variances of the regressors.
    """
    d = len(order)
    G = np.zeros((d, d))
    for position, j in enumerate(order):
        before = order[:position]
        if not position:
            continue
        # u of the predecessors is a combination of their own y, which no edge into j enters
        back = np.linalg.inv(np.eye(position) - G[np.ix_(before, before)])
        own = moment[j][np.ix_(before, before)]
        gram = back.T @ own @ back
        gram += ridge * np.trace(gram) / position * np.eye(position)
        G[before, j] = -np.linalg.solve(gram, back.T @ moment[j][before, j])
    return G
