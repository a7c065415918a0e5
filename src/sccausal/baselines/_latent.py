"""A plain latent shift: autoencoder plus one vector per intervention."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.baselines._base import Source, _dense
from sccausal.baselines._regression import principal_axes
from sccausal.baselines._rules import MeanShift, _seen
from sccausal.baselines._shift import Clip


class LatentShift(MeanShift):
    """Mean shift in the latent space of small variational autoencoders (the idea of scGen, :cite:p:`Lotfollahi2019`).

    Cells are encoded, moved by the mean latent difference between intervention and control over the *other* cell types
    (each type counts once), and decoded. The decoder is what lets the effect differ between types. Which effect a
    network gives a type it has not seen depends much on its random start, so several are trained and averaged.

    Parameters
    ----------
    method
        ``"vae"``, or ``"pca"`` for the linear version without training.
    n_latent, n_hidden
        Sizes of the latent space and of the two hidden layers on either side.
    n_members
        Networks that are trained from different starts; predicted changes are averaged.
    max_epochs, batch_size, learning_rate, dropout
        Training of an autoencoder (Adam, squared error summed over genes).
    kl_weight
        Weight of the prior; default three times the mean variance of a gene within type and intervention (a proper
        evidence bound has twice the noise variance). Far below it the latent space has no common direction of the
        intervention, far above it nothing is encoded. The factor and the other defaults were chosen on the interferon
        data of :cite:p:`Kang2018`, to the advantage of the rule there.
    keep_residual
        Add the decoded *difference* to the cell instead of replacing it by its reconstruction: means keep what the
        autoencoder cannot express, and cells keep their noise (without it, reconstructions have almost no variance).
    seed
        Seed of the training.
    clip
        As in :class:`Baseline`; ``"mean"`` acts like ``"zero"`` here, the shift being different in each cell.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, n_types=3, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> rule = scc.baselines.LatentShift(method="pca", n_latent=5).fit(
    ...     adata, intervention_key="intervention", control="control", labels_key="cell_type"
    ... )
    >>> predicted = rule.predict(interventions=["G0007"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('latent shift', (40, 30))
    """

    name: ClassVar[str] = "latent shift"

    def __init__(
        self,
        *,
        method: Literal["vae", "pca"] = "vae",
        n_latent: int = 32,
        n_hidden: int = 256,
        n_members: int = 3,
        max_epochs: int = 50,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        dropout: float = 0.1,
        kl_weight: float | None = None,
        keep_residual: bool = True,
        seed: int = 0,
        clip: Clip = "mean",
    ) -> None:
        super().__init__(clip=clip)
        if method not in ("vae", "pca"):
            raise SetupError(f"Unknown method {method!r}; use 'vae' or 'pca'.")
        self.method, self.n_latent, self.n_hidden = method, int(n_latent), int(n_hidden)
        self.n_members, self.max_epochs = (int(n_members) if method == "vae" else 1), int(max_epochs)
        self.batch_size, self.learning_rate = int(batch_size), float(learning_rate)
        self.dropout, self.kl_weight = float(dropout), kl_weight
        self.keep_residual, self.seed = bool(keep_residual), int(seed)

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        dense = _dense(X).astype(np.float32)
        self._centre = dense.mean(axis=0)
        if self.method == "pca":
            self._axes = principal_axes(dense, self.n_latent).astype(np.float32)
        else:
            weight = _noise(dense, types, codes) * 3 if self.kl_weight is None else float(self.kl_weight)
            self._networks = [self._train(dense, self.seed + 1000 * m, weight) for m in range(self.n_members)]
        control = np.asarray(~np.any(self._effects.rows, axis=1))[codes]
        self._shifts: list[dict[tuple[str, int], np.ndarray]] = []
        for member in range(self.n_members):
            z = self._encode(dense, member)
            shifts = {}
            for name, k in self._effects.effects:
                own = control & (types == name)
                base = z[own if own.any() else control].mean(axis=0)
                shifts[name, k] = z[(types == name) & (codes == k)].mean(axis=0) - base
            self._shifts.append(shifts)

    def _cells(self, source: Source, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        if not row.any():
            return source.X.copy(), source.obs
        out = np.empty_like(source.X)
        k = _seen(self, row)
        for name in pd.unique(pd.Series(source.types)):
            here = np.flatnonzero(source.types == name)
            cells = source.X[here].astype(np.float32)
            out[here] = np.mean([self._moved(cells, str(name), k, m) for m in range(self.n_members)], axis=0)
        return out if self.clip == "none" else np.maximum(out, 0.0, out=out), source.obs

    def _moved(self, cells: np.ndarray, name: str, k: int, member: int) -> np.ndarray:
        """Cells of one type after the shift of one network (n, g)."""
        known = {t: s for (t, i), s in self._shifts[member].items() if i == k}
        others = [s for t, s in known.items() if t != name] or list(known.values())
        z = self._encode(cells, member)
        moved = self._decode(z + np.mean(others, axis=0), member).astype(np.float64)
        return moved + cells - self._decode(z, member) if self.keep_residual else moved

    def _encode(self, X: np.ndarray, member: int) -> np.ndarray:
        if self.method == "pca":
            return (X - self._centre) @ self._axes.T
        return self._run(self._networks[member][0], X)[:, : self.n_latent]

    def _decode(self, z: np.ndarray, member: int) -> np.ndarray:
        if self.method == "pca":
            return z @ self._axes + self._centre
        return self._run(self._networks[member][1], z.astype(np.float32))

    @staticmethod
    def _run(network: Any, x: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            parts = [network(torch.from_numpy(x[i : i + 4096])).numpy() for i in range(0, len(x), 4096)]
        return np.concatenate(parts)

    def _train(self, X: np.ndarray, seed: int, kl_weight: float) -> Any:
        """Encoder and decoder as a ModuleList."""
        import torch
        from torch import nn

        def stack(n_in: int, n_out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for size in (n_in, self.n_hidden):
                # no normalisation layers: the shifted code must be able to grow beyond what was seen
                layers += [nn.Linear(size, self.n_hidden), nn.LeakyReLU(), nn.Dropout(self.dropout)]
            return nn.Sequential(*layers, nn.Linear(self.n_hidden, n_out))

        # the caller's random state is neither used nor changed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = stack(X.shape[1], 2 * self.n_latent), stack(self.n_latent, X.shape[1])
            decoder[-1].bias.data = torch.from_numpy(self._centre.copy())
            networks = nn.ModuleList([encoder, decoder])
            optimiser = torch.optim.Adam(networks.parameters(), lr=self.learning_rate)
            data = torch.from_numpy(X)
            for _ in range(self.max_epochs):
                for rows in torch.randperm(len(data)).split(self.batch_size):
                    x = data[rows]
                    mean, log_variance = encoder(x).chunk(2, dim=1)
                    log_variance = log_variance.clamp(-10.0, 10.0)
                    z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
                    kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
                    loss = (decoder(z) - x).square().sum(dim=1).mean() + kl_weight * kl
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            return networks.eval()


def _noise(X: np.ndarray, types: np.ndarray, codes: np.ndarray) -> float:
    """Mean variance of a gene within type and intervention."""
    groups = pd.Series(range(len(codes))).groupby([codes, types], sort=True).indices.values()
    return float(np.average([X[g].var(axis=0).mean() for g in groups], weights=[len(g) for g in groups]))
