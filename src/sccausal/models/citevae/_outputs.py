"""What a trained CITE-VAE tells about its latents: codes, lagged graph, trajectories, effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.data._interventions import Intervention
from sccausal.grn import Network
from sccausal.models._cells import local_seed


class LatentOutputsMixin:
    """Latents of :class:`~sccausal.models.CITEVAE`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def latent_names(self) -> list[str]:
        """Names of the latents: ``invariant_<i>``, then ``responsive_<i>``."""
        module = self.module
        return [
            *(f"invariant_{i}" for i in range(module.n_invariant)),
            *(f"responsive_{i}" for i in range(module.n_responsive)),
        ]

    def _encode(self, tensors: dict[str, Tensor], representation: str) -> Tensor:
        out = self.module.inference(**self.module._get_inference_input(tensors))
        if representation == "invariant":
            return out["c_mean"]
        return out["s_mean"] if representation == "responsive" else torch.cat([out["c_mean"], out["s_mean"]], 1)

    @torch.inference_mode()
    def _invariant_moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Variance of posterior means of c between cells, and mean posterior variance, (d_c,) each."""
        means, spreads = [], []
        for tensors in self._make_data_loader(self.adata, indices=np.sort(rows), batch_size=1024):
            out = self.module.inference(**self.module._get_inference_input(tensors))
            means.append(out["c_mean"].cpu().numpy())
            spreads.append(out["c_log_var"].exp().cpu().numpy())
        return np.concatenate(means).var(0), np.concatenate(spreads).mean(0)

    # ------------------------------------------------------------------ cells of the training

    def _training_rows(self) -> np.ndarray:
        rows = getattr(self, "train_indices", None)
        return np.arange(self.adata.n_obs) if rows is None else np.sort(np.asarray(rows))

    def _doses(self) -> np.ndarray:
        if not self._has_interventions:
            return np.zeros((self.adata.n_obs, 0))
        return np.asarray(self.adata_manager.get_from_registry(KEYS.INTERVENTION), dtype=float)

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """Expression of training cells as effects are measured, without batch effects (n, m)."""
        X = self.adata_manager.get_from_registry(KEYS.X)[rows]
        values = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float64)
        module = self.module
        shift = module.batch_shift.detach().cpu().numpy()
        batch = np.asarray(self.adata_manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)[rows]
        scale = module.scale.cpu().numpy()
        if module.gene_likelihood == "gaussian":
            nonnegative = values.size > 0 and values.min() >= 0
            values = values - (shift * scale)[batch]
            return np.maximum(values, 0) if nonnegative and module.n_batch > 1 else values
        values = values * (1e4 / np.maximum(values.sum(1, keepdims=True), 1e-4))
        return values / np.exp(shift * scale)[batch]

    def _own_genes(self) -> np.ndarray:
        """Position of each target's own gene, -1 if it is not measured (T,)."""
        genes = pd.Index([str(g) for g in self.get_var_names()])
        return genes.get_indexer(pd.Index(list(self.codec.targets))) if self._has_interventions else np.zeros(0, int)

    # ------------------------------------------------------------------ lagged graph

    def get_lagged_graph(self, threshold: float = 0.0) -> Network:
        """Which latent acts on which responsive latent one step later.

        Parameters
        ----------
        threshold
            Only edges with ``|weight| > threshold``.

        Returns
        -------
        Network of the latents by name. A weight is the mean change of the target one unit of time later per standard
        deviation of the source, in standard deviations of the target; that of a latent on itself is its persistence.
        """
        self._check_if_trained(warn=False)
        names = self.latent_names
        weight = np.zeros((len(names), len(names)))
        weight[:, self.module.n_invariant :] = self.module.standardised_graph()
        metadata = {"method": "CITEVAE", "units": "standard deviations per unit of time", "lag": 1}
        return Network.from_matrix(weight, names, threshold=threshold, self_loops=True, metadata=metadata)

    def _network(self, **kwargs: Any) -> Network:
        if kwargs:
            raise SetupError(f"The lagged graph takes no choice {', '.join(kwargs)}.")
        return self.get_lagged_graph()

    # ------------------------------------------------------------------ trajectories and effects

    @torch.inference_mode()
    def get_trajectories(
        self,
        interventions: Sequence[Intervention] | None = None,
        times: Sequence[float] | None = None,
        *,
        n_cells: int = 200,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Roll training control cells of the first time through the latent dynamics.

        Parameters
        ----------
        interventions
            What is done to them; default every target that was in training, and the control.
        times
            Ascending times; default those measured.
        n_cells
            Cells that are followed.
        seed
            Seed of the cells and of the noise, the same for all interventions.

        Returns
        -------
        DataFrame, one row per intervention, cell and time: ``intervention``, ``cell``, ``time``, then one column per
        latent.
        """
        self._check_if_trained(warn=False)
        module, rows = self.module, self._training_rows()
        module.eval()
        time = np.ravel(self.adata_manager.get_from_registry(KEYS.TIME)).astype(float)[rows]
        control = ~(self._doses()[rows] != 0).any(1)
        first = time[control].min()
        here = rows[control & (time == first)]
        here = np.sort(np.random.default_rng(seed).choice(here, min(n_cells, len(here)), replace=False))
        asked = self.table_["times"] if times is None else np.asarray(times, dtype=float)
        moments = np.unique(np.r_[first, asked[asked >= first]])
        start = next(iter(self._make_data_loader(self.adata, indices=here, batch_size=len(here))))
        out = module.inference(**module._get_inference_input(start))
        frames = []
        for label, row in self._asked_rows(interventions):
            dose = torch.as_tensor(row, dtype=torch.float32, device=module.scale.device).expand(len(here), -1)
            with local_seed(seed, self.device):
                for moment, z in self._followed(out, dose @ module.embedding, moments):
                    frame = pd.DataFrame(z, columns=self.latent_names)
                    frame.insert(0, "intervention", label)
                    frame.insert(1, "cell", self.adata.obs_names[here].to_numpy())
                    frame.insert(2, "time", moment)
                    frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def _asked_rows(self, interventions: Sequence[Intervention] | None) -> list[tuple[str, np.ndarray]]:
        if not self._has_interventions:
            return [("control", np.zeros(0))]
        codec = self.codec
        if interventions is None:
            interventions = [t for t, seen in zip(codec.targets, self.table_["trained"], strict=True) if seen]
            interventions = [codec.control, *interventions]
        return [(codec.label(row, with_dose=True), row) for row in codec.parse_many(list(interventions))]

    def _followed(self, out: dict[str, Tensor], e: Tensor, moments: np.ndarray) -> Any:
        c, s = out["c_mean"], out["s_mean"]
        yield float(moments[0]), torch.cat([c, s], 1).cpu().numpy()
        for before, after in zip(moments[:-1], moments[1:], strict=True):
            gap = torch.full((len(c), 1), (after - before) / float(self.module.time_unit), device=c.device)
            c, s = self._roll(c, s, e, gap)
            yield float(after), torch.cat([c, s], 1).cpu().numpy()

    def get_responsive_effects(self) -> pd.DataFrame:
        """How far each training intervention moves each responsive latent, and how it changes its noise.

        Returns
        -------
        DataFrame ``intervention``, ``latent``, ``shift`` (of the goal, in standard deviations of the innovations under
        control), ``noise_ratio`` (standard deviation of the innovations against control) and ``parents_kept`` (share of
        what the parents say that is left, 0..1).
        """
        self._check_if_trained(warn=False)
        block = self.module.responsive
        names = self.latent_names[self.module.n_invariant :]
        rows = self._asked_rows(None)[1:]
        dose = torch.as_tensor(np.stack([r for _, r in rows]), dtype=torch.float32, device=self.module.scale.device)
        with torch.inference_mode():
            e = dose @ self.module.embedding
            mean, log_var = block.natural(e, len(e))
            base, base_log_var = block.natural(None, 1)
            shift = ((mean - base) * torch.exp(-0.5 * base_log_var)).cpu().numpy()
            ratio = torch.exp(0.5 * (log_var - base_log_var)).cpu().numpy()
            kept = block.kept(e, len(e)).cpu().numpy()
        labels = [label for label, _ in rows]
        return pd.DataFrame(
            {
                "intervention": np.repeat(labels, len(names)),
                "latent": np.tile(names, len(labels)),
                "shift": shift.ravel(),
                "noise_ratio": ratio.ravel(),
                "parents_kept": kept.ravel(),
            }
        )

    def latent_loadings(self) -> pd.DataFrame:
        """Change of each gene per standard deviation of each latent (genes x latents), at the mean control cell.

        In the unit of the data for ``gene_likelihood="gaussian"``, as a log rate for counts.
        """
        self._check_if_trained(warn=False)
        module = self.module
        z = module.latent_mean.clone()[None]
        jacobian = torch.autograd.functional.jacobian(lambda v: module.decoder(v).sum(0), z)[:, 0]
        unit = module.scale[:, None] if module.gene_likelihood == "gaussian" else 1.0
        values = (jacobian * unit * module.latent_sd).detach().cpu().numpy()
        genes = pd.Index([str(g) for g in self.get_var_names()], name="gene")
        return pd.DataFrame(values, index=genes, columns=self.latent_names)
