"""Maps between expression and latent genes: gene by gene (latent i is gene i), or dense where a network is not read."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sccausal._errors import SetupError

GeneMap = Literal["affine", "genewise", "dense"]


class _Hinges(torch.autograd.Function):
    """``c + a x + sum_j v_j (x - t_j)_+`` with a backward pass that keeps no (n, m) intermediates but ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, intercept: Tensor, knots: Tensor, bend: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope, knots, bend)
        y = torch.addcmul(intercept, x, slope)
        for knot, weight in zip(knots, bend, strict=True):
            y.addcmul_((x - knot).clamp_min_(0), weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, slope, knots, bend = ctx.saved_tensors
        grad_x = grad * slope if ctx.needs_input_grad[0] else None
        grad_knots, grad_bend = [], []
        for knot, weight in zip(knots, bend, strict=True):
            above = x - knot
            on = above > 0
            here = grad * on
            grad_bend.append((here * above).sum(0))
            total = here.sum(0)
            grad_knots.append(-(total * weight).sum())
            if grad_x is not None:
                grad_x.addcmul_(here, weight)
        empty = len(knots) == 0
        return (
            grad_x,
            (grad * x).sum(0),
            grad.sum(0),
            knots.new_zeros(0) if empty else torch.stack(grad_knots),
            bend.new_zeros(bend.shape) if empty else torch.stack(grad_bend),
        )


class AffineMap(nn.Module):
    r"""Per-gene line plus a small residual, :math:`y_i = a_i x_i + c_i + \sum_j v_{ji}\,(x_i - t_j)_+`.

    The knots :math:`t` are shared by all genes, their weights are not and start at zero: the map starts as the line and
    bends where the data ask for it. Everything is vectorised over genes; a hinge costs a fraction of a hidden layer.

    Parameters
    ----------
    n_genes
        Number of genes m.
    width
        Number of knots; 0 leaves the line.
    """

    def __init__(self, n_genes: int, width: int = 2) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(n_genes))
        self.intercept = nn.Parameter(torch.zeros(n_genes))
        self.width = width
        if width:
            # standardised expression of a sparse gene is near -0.5 where it is not seen
            self.knots = nn.Parameter(torch.linspace(0.0, 2.0, width))
            self.bend = nn.Parameter(torch.zeros(width, n_genes))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, m) to (n, m), gene by gene."""
        if not self.width:
            return torch.addcmul(self.intercept, x, self.slope)
        return _Hinges.apply(x, self.slope, self.intercept, self.knots, self.bend)


class GeneWiseMap(nn.Module):
    """One small perceptron of its own for every gene, 1 -> width -> 1, beside a line.

    Parameters
    ----------
    n_genes
        Number of genes m.
    width
        Hidden units per gene.
    """

    def __init__(self, n_genes: int, width: int = 8) -> None:
        super().__init__()
        self.line = AffineMap(n_genes, 0)
        self.inner = nn.Parameter(torch.randn(width, n_genes))
        self.inner_bias = nn.Parameter(torch.randn(width, n_genes))
        self.outer = nn.Parameter(torch.zeros(width, n_genes))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, m) to (n, m), gene by gene."""
        y = self.line(x)
        for inner, bias, outer in zip(self.inner, self.inner_bias, self.outer, strict=True):
            y = torch.addcmul(y, torch.tanh(torch.addcmul(bias, x, inner)), outer)
        return y


class DenseMap(nn.Module):
    """Perceptron over all genes, beside a line per gene: latent i then mixes genes and is no longer gene i.

    Parameters
    ----------
    n_genes
        Number of genes m.
    n_hidden
        Width of the hidden layer.
    """

    def __init__(self, n_genes: int, n_hidden: int = 128) -> None:
        super().__init__()
        self.line = AffineMap(n_genes, 0)
        self.net = nn.Sequential(nn.Linear(n_genes, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_genes))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, m) to (n, m), each output depending on all inputs."""
        return self.line(x) + self.net(x)


def gene_map(kind: GeneMap, n_genes: int, *, width: int, n_hidden: int) -> AffineMap | GeneWiseMap | DenseMap:
    """Build the map called ``kind``.

    Raises
    ------
    SetupError
        ``kind`` is unknown.
    """
    if kind == "affine":
        return AffineMap(n_genes, width)
    if kind == "genewise":
        return GeneWiseMap(n_genes, max(width, 1))
    if kind == "dense":
        return DenseMap(n_genes, n_hidden)
    raise SetupError(f"Unknown gene map {kind!r}; choose one of {', '.join(get_args(GeneMap))}.")


def line_of(gene_map: nn.Module) -> AffineMap:
    """The per-gene line of a map."""
    line = gene_map if isinstance(gene_map, AffineMap) else gene_map.line
    assert isinstance(line, AffineMap)
    return line


class DomainEncoder(nn.Module):
    """Posterior of the domain latents from expression alone, so that cells of an unseen batch have one too.

    The mean is a linear map, which can be set in closed form, plus what a hidden layer adds to it (at first nothing).

    Parameters
    ----------
    n_genes
        Number of genes m.
    n_latent
        Dimension k of all domain blocks together.
    n_hidden
        Width of the hidden layer.
    dropout
        Share of hidden units left out in training.
    """

    def __init__(self, n_genes: int, n_latent: int, *, n_hidden: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(n_genes, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(), nn.Dropout(dropout))
        self.linear = nn.Linear(n_genes, n_latent)
        self.mean = nn.Linear(n_hidden, n_latent, bias=False)
        self.log_var = nn.Linear(n_hidden, n_latent)
        nn.init.normal_(self.mean.weight, std=0.01)
        nn.init.zeros_(self.log_var.weight)
        nn.init.constant_(self.log_var.bias, -2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Linear part of the mean, the rest of it, and the variance, each (n, k), from expression (n, m)."""
        hidden = self.trunk(x)
        return self.linear(x), self.mean(hidden), self.log_var(hidden).clamp(-12, 6).exp()


class DomainPrior(nn.Module):
    """Prior of one block of domain latents given a category: a mean, which may follow the cell state, and a scale.

    On a single label a table is the most general map there is, so no net stands behind it.

    Parameters
    ----------
    n_category
        Number of categories.
    n_latent
        Dimension of the block.
    n_state
        Dimension of the state on which the mean depends; 0 for none.
    """

    def __init__(self, n_category: int, n_latent: int, n_state: int = 0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(n_category, n_latent) * 0.1)
        self.slope = nn.Parameter(torch.zeros(n_category, n_state, n_latent)) if n_state else None
        self.log_scale = nn.Parameter(torch.full((n_category, n_latent), -0.5))

    def location(self, category: Tensor, state: Tensor | None = None) -> Tensor:
        """Mean (n, k) for integer codes (n,) and scores (n, d)."""
        mean = self.mean[category]
        if self.slope is None or state is None:
            return mean
        return mean + torch.bmm(state.unsqueeze(1), self.slope[category]).squeeze(1)

    def variance(self, category: Tensor) -> Tensor:
        """Variance (n, k) for integer codes (n,)."""
        return (2 * self.log_scale[category]).clamp(-12, 6).exp()
