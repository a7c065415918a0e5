"""Stage 2: the network behind the drift, conditional on interventions and batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sccausal.nn.response import InterventionResponse

Injection = Literal["inject", "mult"]
_N_FREQUENCIES = 16


class DriftNetwork(nn.Module):
    r"""Hidden layers into which level of noise, interventions and batch are added.

    .. math::
        h_1 = \tanh(W_0 x + b_0 + t_0(\sigma) + L_0 e), \quad h_2 = \tanh(W_1 h_1 + b_1 + t_1(\sigma) + L_1 e), \quad
        F = W_2 h_2 + b_2

    with the embedding e of the condition: the sum over the targets (times their dose), what pairs add to it (starting
    at zero), and the batch :cite:p:`Lorch2026`. Everything that depends on the level or the condition alone is computed
    once for each, not for each cell.

    Parameters
    ----------
    n_dims, n_targets, n_batch
        Sizes of states and conditions.
    n_hidden, n_layers
        Width and number of hidden layers.
    n_embedding
        Size of the embedding of conditions.
    n_interaction
        Rank of what pairs add.
    injection
        ``"inject"`` adds conditions, ``"mult"`` multiplies the hidden layers by ``1 + L e``.
    init_scale
        Standard deviation of the embeddings at the start; at 0 all conditions start as control.
    """

    n_reference: Tensor

    def __init__(
        self,
        n_dims: int,
        n_targets: int,
        n_batch: int,
        *,
        n_hidden: int = 256,
        n_layers: int = 2,
        n_embedding: int = 64,
        n_interaction: int = 8,
        injection: Injection = "inject",
        init_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.injection = injection
        sizes = [n_dims, *[n_hidden] * n_layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.last = nn.Linear(n_hidden, n_dims)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.response = InterventionResponse(n_targets, n_embedding, 0, n_hidden=0, n_interaction=n_interaction)
        nn.init.normal_(self.response.mean, std=init_scale) if init_scale else None
        self.batch = nn.Parameter(torch.zeros(n_batch, n_embedding))
        # batches of a query do not move the average batch
        self.register_buffer("n_reference", torch.tensor(n_batch))
        self.condition = nn.ModuleList(nn.Linear(n_embedding, n_hidden, bias=False) for _ in range(n_layers))
        self.time = nn.Sequential(nn.Linear(2 * _N_FREQUENCIES, n_hidden), nn.Tanh())
        self.time_layers = nn.ModuleList(nn.Linear(n_hidden, n_hidden, bias=False) for _ in range(n_layers))

    def level(self, sigma: Tensor) -> list[Tensor]:
        """What noise levels (l,) add to each hidden layer, each (l, h)."""
        position = torch.log(sigma).unsqueeze(1) / 4
        frequency = torch.exp(torch.linspace(math.log(0.5), math.log(30.0), _N_FREQUENCIES, device=sigma.device))
        angle = position * frequency
        hidden = self.time(torch.cat([torch.sin(angle), torch.cos(angle)], 1))
        return [layer(hidden) for layer in self.time_layers]

    def embed(self, dose: Tensor, batch: Tensor | None) -> Tensor:
        """Embedding (n, e) of doses (n, T) and batches (n,); ``None`` is the average batch."""
        extra = self.batch[: int(self.n_reference)].mean(0) if batch is None else self.batch[batch]
        return self.response(dose) + extra

    def inject(self, embedding: Tensor) -> list[Tensor]:
        """What embeddings (n, e) do to each hidden layer, each (n, h)."""
        return [layer(embedding) for layer in self.condition]

    def forward(self, x: Tensor, level: list[Tensor], condition: list[Tensor]) -> Tensor:
        """Output (n, d) for inputs (n, d) and per-layer terms that broadcast over cells."""
        h = x
        for layer, t, c in zip(self.layers, level, condition, strict=True):
            before = layer(h)
            h = torch.tanh(before + t + c) if self.injection == "inject" else torch.tanh((before + t) * (1 + c))
        return self.last(h)
