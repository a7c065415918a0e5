r"""Linear structural model over embeddings of concepts.

Every concept j has an exogenous part :math:`\epsilon_j` and an embedding
:math:`z_j = \epsilon_j + \sum_i z_i W_{ij}` over its parents i in a given graph without cycles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sccausal._errors import SetupError

EdgeKind = Literal["scalar", "map"]


class ConceptSCM(nn.Module):
    """Embeddings of concepts from their exogenous parts, and what interventions make of them.

    Parameters
    ----------
    parents
        Parents of each concept, as positions.
    n_latent
        Dimensions of an embedding.
    edge
        ``"scalar"``: one weight per edge; ``"map"``: a matrix n_latent x n_latent per edge.
    learned
        Whether weights are learned; otherwise they stay 1 (the identity).

    Raises
    ------
    sccausal._errors.SetupError
        The graph has a cycle, or a parent is out of range.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import ConceptSCM
    >>> scm = ConceptSCM(parents=[[], [0]], n_latent=3)  # the first concept acts on the second
    >>> eps = torch.zeros(5, 2, 3)  # cells x concepts x dimensions
    >>> scm(eps).shape, scm.ancestors(1)
    (torch.Size([5, 2, 3]), (0,))
    """

    def __init__(
        self, parents: Sequence[Sequence[int]], n_latent: int, edge: EdgeKind = "map", learned: bool = True
    ) -> None:
        super().__init__()
        if edge not in ("scalar", "map"):
            raise SetupError(f"edge must be 'scalar' or 'map'; found {edge!r}.")
        self.parents = [tuple(int(i) for i in p) for p in parents]
        self.order = topological_order(self.parents)
        self.n_latent, self.edge = int(n_latent), edge
        start = torch.ones(()) if edge == "scalar" else torch.eye(n_latent)
        self.weights = nn.ParameterDict(
            {
                f"{i}_{j}": nn.Parameter(start.clone(), requires_grad=learned)
                for j, above in enumerate(self.parents)
                for i in above
            }
        )

    def push(self, i: int, j: int, z: Tensor) -> Tensor:
        """What the embedding ``z (n, n_latent)`` of parent i adds to its child j."""
        weight = self.weights[f"{i}_{j}"]
        return z * weight if self.edge == "scalar" else z @ weight

    def inflow(self, j: int, z: Mapping[int, Tensor]) -> Tensor | float:
        """Sum of what the parents of j give it; 0 for a root."""
        return sum((self.push(i, j, z[i]) for i in self.parents[j]), start=0.0)

    def forward(self, eps: Tensor, set_to: Mapping[int, Tensor] | None = None) -> Tensor:
        """Embeddings of exogenous parts, under an intervention if ``set_to`` is given.

        Parameters
        ----------
        eps
            Exogenous parts (n, concepts, n_latent).
        set_to
            Concept -> embedding (n, n_latent) it is set to. Its incoming edges are cut; descendants follow with their
            own exogenous parts.

        Returns
        -------
        Embeddings (n, concepts, n_latent).
        """
        fixed = dict(set_to or {})
        z: dict[int, Tensor] = {}
        for j in self.order:
            z[j] = fixed[j] if j in fixed else eps[:, j] + self.inflow(j, z)
        return torch.stack([z[j] for j in range(len(self.parents))], dim=1)

    def exogenous(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`forward`: exogenous parts (n, concepts, n_latent) behind embeddings."""
        given = {j: z[:, j] for j in range(len(self.parents))}
        return torch.stack([z[:, j] - self.inflow(j, given) for j in range(len(self.parents))], dim=1)

    def ancestors(self, j: int) -> tuple[int, ...]:
        """Concepts from which a directed path leads to j, in rising order."""
        found: set[int] = set()
        stack = list(self.parents[j])
        while stack:
            i = stack.pop()
            if i not in found:
                found.add(i)
                stack.extend(self.parents[i])
        return tuple(sorted(found))

    def strengths(self) -> dict[tuple[int, int], float]:
        """Size of each edge (parent, child): the weight, or the root mean square of a map's singular values."""
        out = {}
        for key, weight in self.weights.items():
            i, j = map(int, key.split("_"))
            size = weight.abs() if self.edge == "scalar" else weight.square().sum().div(self.n_latent).sqrt()
            out[i, j] = float(size.detach())
        return out


def topological_order(parents: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Positions such that every parent comes before its children.

    Raises
    ------
    sccausal._errors.SetupError
        There is a cycle, or a parent that does not exist.
    """
    n = len(parents)
    if any(not 0 <= i < n for above in parents for i in above):
        raise SetupError(f"Parents must be positions between 0 and {n - 1}; found {list(map(list, parents))}.")
    order: list[int] = []
    left = set(range(n))
    while left:
        ready = sorted(j for j in left if all(i in order for i in parents[j]))
        if not ready:
            raise SetupError(f"The concepts at {sorted(left)} lie on or below a cycle.")
        order += ready
        left -= set(ready)
    return tuple(order)


def level_weights(values: Tensor, knots: Tensor) -> Tensor:
    """Share of each knot in a value: linear between the two neighbours, constant beyond the ends.

    Parameters
    ----------
    values
        Numbers (n,).
    knots
        Rising numbers (k,), two or more.

    Returns
    -------
    Weights (n, k), not negative, rows sum to 1.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import level_weights
    >>> level_weights(torch.tensor([10.0, 25.0, 99.0]), torch.tensor([20.0, 40.0])).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    x = values.clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    share = ((x - low) / (high - low)).unsqueeze(1)
    out = torch.zeros(len(x), len(knots), dtype=share.dtype, device=share.device)
    out.scatter_(1, (right - 1).unsqueeze(1), 1 - share)
    return out.scatter_add_(1, right.unsqueeze(1), share)
