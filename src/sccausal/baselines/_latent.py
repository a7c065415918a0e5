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
    """Mean shift in the latent space of a small variational autoencoder (the idea of scGen, :cite:p:`Lotfollahi2019`).

    Cells are encoded, moved by the mean latent difference between intervention and control over the *other* cell types
    (each type counts once), and decoded. The decoder is what lets the effect differ between types.

    Parameters
    ----------
    method
        ``"vae"``, or ``"pca"`` for the linear version without training.
    n_latent, n_hidden
        Sizes of the latent space and of the two hidden layers on either side.
    max_epochs, batch_size, learning_rate, dropout, kl_weight
        Training of the autoencoder (Adam, squared error).
    keep_residual
        Add the decoded *difference* to the cell instead of replacing it by its reconstruction: means keep what the
        autoencoder cannot express, and cells keep their noise (without it, reconstructions have almost no variance).
    seed
        Seed of the training.
    clip
        As in :class:`Baseline`; ``"mean"`` acts like ``"zero"`` here, the shift being different in each cell.
    """

    name: ClassVar[str] = "latent shift"

    def __init__(
        self,
        *,
        method: Literal["vae", "pca"] = "vae",
        n_latent: int = 32,
        n_hidden: int = 256,
        max_epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        dropout: float = 0.0,
        kl_weight: float = 5e-5,
        keep_residual: bool = True,
        seed: int = 0,
        clip: Clip = "mean",
    ) -> None:
        super().__init__(clip=clip)
        if method not in ("vae", "pca"):
            raise SetupError(f"Unknown method {method!r}; use 'vae' or 'pca'.")
        self.method, self.n_latent, self.n_hidden = method, int(n_latent), int(n_hidden)
        self.max_epochs, self.batch_size, self.learning_rate = int(max_epochs), int(batch_size), float(learning_rate)
        self.dropout, self.kl_weight = float(dropout), float(kl_weight)
        self.keep_residual, self.seed = bool(keep_residual), int(seed)

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        dense = _dense(X).astype(np.float32)
        self._centre = dense.mean(axis=0)
        if self.method == "pca":
            self._axes = principal_axes(dense, self.n_latent).astype(np.float32)
        else:
            self._train(dense)
        z = self._encode(dense)
        control = np.asarray(~np.any(self._effects.rows, axis=1))[codes]
        self._shifts: dict[tuple[str, int], np.ndarray] = {}
        for name, k in self._effects.effects:
            own = control & (types == name)
            base = z[own if own.any() else control].mean(axis=0)
            self._shifts[name, k] = z[(types == name) & (codes == k)].mean(axis=0) - base

    def _cells(self, source: Source, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        if not row.any():
            return source.X.copy(), source.obs
        out = np.empty_like(source.X)
        k = _seen(self, row)
        for name in pd.unique(pd.Series(source.types)):
            here = np.flatnonzero(source.types == name)
            known = {t: s for (t, i), s in self._shifts.items() if i == k}
            others = [s for t, s in known.items() if t != str(name)] or list(known.values())
            z = self._encode(source.X[here].astype(np.float32))
            moved = self._decode(z + np.mean(others, axis=0)).astype(np.float64)
            if self.keep_residual:
                moved += source.X[here] - self._decode(z)
            out[here] = moved
        return out if self.clip == "none" else np.maximum(out, 0.0, out=out), source.obs

    def _encode(self, X: np.ndarray) -> np.ndarray:
        if self.method == "pca":
            return (X - self._centre) @ self._axes.T
        return self._run(self._encoder, X)[:, : self.n_latent]

    def _decode(self, z: np.ndarray) -> np.ndarray:
        if self.method == "pca":
            return z @ self._axes + self._centre
        return self._run(self._decoder, z.astype(np.float32))

    @staticmethod
    def _run(network: Any, x: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            parts = [network(torch.from_numpy(x[i : i + 4096])).numpy() for i in range(0, len(x), 4096)]
        return np.concatenate(parts)

    def _train(self, X: np.ndarray) -> None:
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
            torch.manual_seed(self.seed)
            self._encoder, self._decoder = stack(X.shape[1], 2 * self.n_latent), stack(self.n_latent, X.shape[1])
            self._decoder[-1].bias.data = torch.from_numpy(self._centre.copy())
            networks = nn.ModuleList([self._encoder, self._decoder])
            optimiser = torch.optim.Adam(networks.parameters(), lr=self.learning_rate)
            data = torch.from_numpy(X)
            for _ in range(self.max_epochs):
                for rows in torch.randperm(len(data)).split(self.batch_size):
                    x = data[rows]
                    mean, log_variance = self._encoder(x).chunk(2, dim=1)
                    log_variance = log_variance.clamp(-10.0, 10.0)
                    z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
                    kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
                    loss = (self._decoder(z) - x).square().sum(dim=1).mean() + self.kl_weight * kl
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            networks.eval()
