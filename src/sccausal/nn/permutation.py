"""Scores of permuted communities from the correlations of genes: thousands in seconds, whatever the number of cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sccausal.nn.alignment import Moments, best_scores

_RIDGE = 1e-6


@dataclass(frozen=True)
class PermutationTest:
    """Observed score against a null of permuted memberships.

    Attributes
    ----------
    observed
        Score of the communities as they are.
    null
        Scores of permuted communities (B,).
    pvalue
        ``(1 + #{null >= observed}) / (1 + B)``.
    z
        ``(observed - mean(null)) / sd(null)``.
    t_pvalue
        One-sample t-test of the null against the observed value, as in the paper: it falls with the number of
        permutations, whatever the data, and is given for comparison only.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.nn import PermutationTest
    >>> test = PermutationTest(observed=0.9, null=np.array([0.1, 0.2, 0.3]), pvalue=0.25, z=7.0, t_pvalue=0.01)
    >>> test.pvalue  # the smallest that three permutations allow
    0.25
    """

    observed: float
    null: np.ndarray
    pvalue: float
    z: float
    t_pvalue: float


def eigengene_weights(correlation: Tensor, members: Tensor) -> Tensor:
    """Weights (..., k, s) of the first principal component of each set of genes, mean weight positive.

    Parameters
    ----------
    correlation
        Correlations of all genes (p, p).
    members
        Positions (..., k, s) of the genes of k sets; -1 fills sets with fewer than s genes.

    Returns
    -------
    Weights of standardised genes, scaled so that the component has unit variance; zero where filled.
    """
    index = members.clamp_min(0)
    present = (members >= 0).to(correlation)
    block = correlation[index.unsqueeze(-1), index.unsqueeze(-2)] * present.unsqueeze(-1) * present.unsqueeze(-2)
    value, vector = torch.linalg.eigh(block)
    first = vector[..., -1] / value[..., -1:].clamp_min(1e-9).sqrt()
    sign = torch.where(first.sum(-1, keepdim=True) < 0, -1.0, 1.0)
    return first * sign * present


def permuted_scores(
    gene_correlation: Tensor,
    gene_latent: Tensor,
    latent_correlation: Tensor,
    sizes: list[int],
    order: Tensor,
    n: int,
    ridge: float = _RIDGE,
    extra: tuple[Tensor, Tensor, Tensor] | None = None,
    chunk: int = 256,
) -> Tensor:
    """Scores of the best alignment (B, k) for communities cut, one after the other, out of orders of the genes.

    Parameters
    ----------
    gene_correlation, gene_latent, latent_correlation
        Correlations among genes (p, p), of genes and latents (p, d), among latents (d, d).
    sizes
        Sizes of the k communities; their sum is p.
    order
        Orders of the genes (B, p).
    n
        Cells.
    ridge
        As in :func:`partial_correlation`.
    extra
        Further activity that is conditioned on and does not change: its correlations with the genes (p,), with the
        latents (d,), and its variance (). Its own score is not returned.
    chunk
        Orders handled at once.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import permuted_scores
    >>> x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    >>> c = torch.corrcoef(x.T)
    >>> orders = torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2]])  # of four genes, for two communities of two
    >>> permuted_scores(c[:4, :4], c[:4, 4:], c[4:, 4:], [2, 2], orders, n=100).shape
    torch.Size([2, 2])
    """
    width = max(sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    slot = torch.full((len(sizes), width), -1, dtype=torch.long)
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        slot[i, :size] = torch.arange(start, start + size)
    out = []
    for part in torch.split(order, chunk):
        members = torch.where(slot >= 0, part[:, slot.clamp_min(0)], torch.tensor(-1))
        weight = eigengene_weights(gene_correlation, members)
        loading = torch.zeros(len(part), len(sizes), gene_correlation.shape[0], dtype=weight.dtype)
        loading.scatter_add_(2, members.clamp_min(0).flatten(2) if members.ndim > 3 else members.clamp_min(0), weight)
        tt = loading @ gene_correlation @ loading.transpose(1, 2)
        tz = loading @ gene_latent
        if extra is not None:
            tt, tz = _append(tt, tz, loading @ extra[0], extra[1], extra[2])
        scores = best_scores(Moments(tt, tz, latent_correlation.expand(len(part), -1, -1), n), ridge)
        out.append(scores[:, : len(sizes)])
    return torch.cat(out)


def permutation_pvalue(observed: float, null: np.ndarray) -> PermutationTest:
    """Permutation test of one score; see :class:`PermutationTest`."""
    from scipy.stats import ttest_1samp

    null = np.asarray(null, dtype=float)
    spread = float(null.std(ddof=1)) if len(null) > 1 else float("nan")
    return PermutationTest(
        observed=float(observed),
        null=null,
        pvalue=float((1 + np.sum(null >= observed)) / (1 + len(null))),
        z=float((observed - null.mean()) / spread) if spread > 0 else float("nan"),
        t_pvalue=float(ttest_1samp(null, observed, alternative="less").pvalue) if len(null) > 1 else float("nan"),
    )


def _append(tt: Tensor, tz: Tensor, cross: Tensor, with_latents: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    b, k, _ = tt.shape
    corner = variance.reshape(1, 1, 1).expand(b, 1, 1)
    top = torch.cat([tt, cross.unsqueeze(-1)], 2)
    bottom = torch.cat([cross.unsqueeze(1), corner], 2)
    return torch.cat([top, bottom], 1), torch.cat([tz, with_latents.reshape(1, 1, -1).expand(b, 1, -1)], 1)
