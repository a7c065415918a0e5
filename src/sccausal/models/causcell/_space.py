"""Where noise is added: expression itself, or the latent space of a count autoencoder."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sccausal.nn.likelihood import move_counts, negative_binomial


class ExpressionSpace(nn.Module):
    """Log-normalised expression; coordinates are standardised genes.

    Parameters
    ----------
    n_genes
        Genes.
    """

    units = "as_given"
    mean: Tensor
    scale: Tensor

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.n_dims = n_genes
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))

    @torch.no_grad()
    def start(self, x: np.ndarray) -> None:
        """Take location and scale of genes from training cells (n, genes)."""
        x = self.shown(torch.as_tensor(x)).double()
        sd = x.std(0, correction=0)
        # genes that hardly vary would be blown up to the size of all others
        floor = 0.1 * float(sd[sd > 0].median()) if bool((sd > 0).any()) else 1.0
        self.mean.copy_(x.mean(0))
        self.scale.copy_(sd.clamp_min(floor))

    def shown(self, x: Tensor) -> Tensor:
        """Expression as the encoders take it, before standardisation."""
        return x

    def standardised(self, x: Tensor) -> Tensor:
        """Cells as the encoders see them (n, genes)."""
        return (self.shown(x) - self.mean) / self.scale

    def code(self, x: Tensor) -> Tensor:
        """Coordinates (n, dims) of cells in which noise is added."""
        return self.standardised(x)

    def training_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates to train on, and the loss (n,) of what makes them."""
        y = self.standardised(x)
        return y, y.new_zeros(len(y))

    def moved(self, x: Tensor, before: Tensor, after: Tensor, rng: np.random.Generator) -> Tensor:
        """Cells ``x`` after their coordinates went from ``before`` to ``after``."""
        return x + (after - before) * self.scale

    def drawn(self, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Cells at coordinates (n, dims)."""
        return self.mean + self.scale * y


class CountSpace(ExpressionSpace):
    """Latent space of a variational autoencoder with negative binomial counts, as in scVI :cite:p:`Lopez2018`.

    The library size is observed. Coordinates follow a standard normal law over all cells, which is the scale that the
    diffusion model expects. Its loss does not see the diffusion model, so that the space cannot shrink to please it.

    Parameters
    ----------
    n_genes
        Genes.
    n_dims
        Dimensions of the space.
    n_hidden
        Width of encoder and decoder.
    """

    units = "counts"
    library: Tensor

    def __init__(self, n_genes: int, n_dims: int = 24, n_hidden: int = 128) -> None:
        super().__init__(n_genes)
        self.n_dims = n_dims
        self.encoder = nn.Sequential(
            nn.Linear(n_genes, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(), nn.Linear(n_hidden, 2 * n_dims)
        )
        self.decoder = nn.Sequential(
            nn.Linear(n_dims, n_hidden), nn.LayerNorm(n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_genes)
        )
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes))
        self.register_buffer("library", torch.tensor([8.0, 0.5]))  # mean and sd of the logarithm

    @torch.no_grad()
    def start(self, x: np.ndarray) -> None:
        """Take location and scale of log-normalised genes, their mean rates and the library sizes from counts."""
        super().start(x)
        total = torch.as_tensor(x.sum(1)).clamp_min(1).log()
        self.library.copy_(torch.stack([total.mean(), total.std()]))
        share = torch.as_tensor(x.sum(0)) + 0.5
        self.decoder[-1].bias.copy_((share / share.sum()).log())

    def shown(self, x: Tensor) -> Tensor:
        """log1p of counts at 10 000 per cell."""
        return torch.log1p(x * (1e4 / x.sum(1, keepdim=True).clamp_min(1)))

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(self.standardised(x).clamp(-10, 10)).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 4)

    def code(self, x: Tensor) -> Tensor:
        """Posterior means (n, dims)."""
        return self._posterior(x)[0]

    def training_code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior draws without gradient, and the negative ELBO of the autoencoder per gene (n,)."""
        mean, log_variance = self._posterior(x)
        y = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        rate = self._share(y) * x.sum(1, keepdim=True)
        elbo = negative_binomial(x, rate, self.log_dispersion).sum(1) - kl
        return y.detach(), -elbo / x.shape[1]

    def _share(self, y: Tensor) -> Tensor:
        return self.decoder(y).softmax(1)

    def moved(self, x: Tensor, before: Tensor, after: Tensor, rng: np.random.Generator) -> Tensor:
        """Counts of the same cells at the new rates: lost ones are thinned, new ones drawn."""
        size = x.sum(1, keepdim=True)
        old, new = self._share(before) * size, self._share(after) * size
        theta = self.log_dispersion.exp()
        kept = move_counts(x, old, torch.minimum(old, new), theta, False)
        gain = move_counts(x, old, new, theta, False) - kept
        share = torch.where(x > 0, kept / x.clamp_min(1), torch.ones_like(x)).clamp(0, 1)
        # quantiles of uniform draws, so that what a cell gets does not depend on the cells computed after it
        level = rng.random((len(x), 2, x.shape[1]))
        out = x.round().cpu().numpy().astype(np.float64)
        lost = (share < 1).cpu().numpy()
        won = (gain > 0).cpu().numpy()
        out[lost] = stats.binom.ppf(level[:, 0][lost], out[lost], share.cpu().numpy().astype(np.float64)[lost])
        out[won] += stats.poisson.ppf(level[:, 1][won], gain.cpu().numpy().astype(np.float64)[won])
        return torch.as_tensor(out.astype(np.float32)).to(x)

    def drawn(self, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Counts at coordinates (n, dims), library sizes drawn as well."""
        mean, sd = self.library.tolist()
        size = np.exp(mean + sd * rng.standard_normal((len(y), 1)))
        theta = self.log_dispersion.exp().cpu().numpy().astype(np.float64)
        rate = self._share(y).cpu().numpy() * size
        counts = rng.poisson(rate * rng.gamma(theta, 1 / theta, rate.shape))
        return torch.as_tensor(counts.astype(np.float32)).to(y)
