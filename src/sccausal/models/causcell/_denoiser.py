"""Narrow denoiser: genes are projected to a few tokens that attend to concept tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal.nn.levels import skip_scale

Condition = list[tuple[Tensor, Tensor]]
"""Keys and values of the concept tokens, by block."""


class Denoiser(nn.Module):
    """Expected expression of noisy cells, given the embeddings of their concepts.

    Genes are read and written once; in between, ``n_tokens`` tokens of width ``n_hidden`` attend to each other and to
    one token per concept. Gates of low rank let the net keep or drop the noisy value of single genes.

    Parameters
    ----------
    n_genes
        Genes, standardised.
    n_concepts
        Concept tokens, the unexplained one among them.
    n_latent
        Dimensions of a concept embedding.
    n_tokens, n_hidden, n_layers, n_heads
        Gene tokens, their width, attention blocks and heads.
    n_gate
        Rank of the gates.
    """

    def __init__(
        self,
        n_genes: int,
        n_concepts: int,
        n_latent: int,
        n_tokens: int = 4,
        n_hidden: int = 96,
        n_layers: int = 3,
        n_heads: int = 4,
        n_gate: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_tokens, self.n_hidden = n_tokens, n_hidden
        width = n_tokens * n_hidden
        self.read = nn.Linear(n_genes, width)
        self.level = nn.Sequential(nn.Linear(32, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden), nn.SiLU())
        self.token = nn.Linear(n_latent, n_hidden)
        self.concept = nn.Parameter(0.02 * torch.randn(n_concepts, n_hidden))
        self.blocks = nn.ModuleList(Block(n_hidden, n_heads, dropout) for _ in range(n_layers))
        self.last = nn.LayerNorm(width)
        self.write = nn.Linear(width, n_genes)
        self.gate = nn.Sequential(nn.Linear(width, n_gate), nn.Linear(n_gate, n_genes))
        # nothing but the skip at the start
        for layer in (self.write, self.gate[1]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("frequencies", torch.exp(torch.linspace(math.log(0.25), math.log(8.0), 16)))

    def condition(self, z: Tensor) -> Condition:
        """Keys and values of embeddings (n, concepts, n_latent): the same at all noise levels."""
        tokens = F.silu(self.token(z) + self.concept)
        return [block.keys(tokens) for block in self.blocks]

    def forward(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Output F of the preconditioned net for noisy standardised cells ``x (n, genes)`` at levels ``(n,)``."""
        scaled = x * skip_scale(sigma, 1.0)[2].unsqueeze(1)
        angle = (sigma.log() / 4).unsqueeze(1) * self.frequencies * 2 * math.pi
        level = self.level(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.read(scaled).view(len(x), self.n_tokens, self.n_hidden)
        for block, pair in zip(self.blocks, condition, strict=True):
            h = block(h, level, pair)
        flat = F.silu(self.last(h.flatten(1)))
        return self.write(flat) + self.gate(flat) * scaled

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Expected clean cells (n, genes); ``sigma`` one level for all cells or one per cell."""
        levels = sigma.expand(len(x)) if sigma.ndim == 0 else sigma
        skip, out, _ = skip_scale(levels, 1.0)
        return skip.unsqueeze(1) * x + out.unsqueeze(1) * self(x, levels, condition)


class Block(nn.Module):
    """Attention of gene tokens to concept tokens and each other, then a small net; shifted by the noise level."""

    def __init__(self, n_hidden: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm, self.norm_net = (nn.LayerNorm(n_hidden, elementwise_affine=False) for _ in range(2))
        self.shift = nn.Linear(n_hidden, 4 * n_hidden)
        self.own = nn.Linear(n_hidden, 3 * n_hidden)
        self.other = nn.Linear(n_hidden, 2 * n_hidden)
        self.out = nn.Linear(n_hidden, n_hidden)
        self.net = nn.Sequential(
            nn.Linear(n_hidden, 4 * n_hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * n_hidden, n_hidden)
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.n_heads, -1).transpose(1, 2)

    def keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (n, heads, concepts, width) of concept tokens."""
        key, value = self.other(tokens).chunk(2, dim=-1)
        return self._heads(key), self._heads(value)

    def forward(self, h: Tensor, level: Tensor, condition: tuple[Tensor, Tensor]) -> Tensor:
        """Tokens (n, tokens, width) after the block."""
        a, b, c, d = self.shift(level).unsqueeze(1).chunk(4, dim=-1)
        query, key, value = self.own(self.norm(h) * (1 + a) + b).chunk(3, dim=-1)
        keys = torch.cat([condition[0], self._heads(key)], dim=2)
        values = torch.cat([condition[1], self._heads(value)], dim=2)
        mixed = F.scaled_dot_product_attention(self._heads(query), keys, values)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.net(self.norm_net(h) * (1 + c) + d)
