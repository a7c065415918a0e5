"""What a trained ScConCRL gives: predicted cells, integrated expression, network, key genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import NotSupportedError, unknown_name
from sccausal.data import KEYS
from sccausal.grn import Network
from sccausal.models._cells import registered
from sccausal.models.scconcrl._components import line_of
from sccausal.models.scconcrl._unseen import unseen_batches
from sccausal.nn.graph import forward_edges
from sccausal.nn.likelihood import move_counts

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._base import CausalModel


class OutputsMixin:
    """Outputs of :class:`~sccausal.models.ScConCRL`."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    # ------------------------------------------------------------------ perturbation

    def _predict_cells(
        self,
        adata: AnnData,
        row: np.ndarray,
        *,
        condition: str | None,
        time: float | None,
        n_samples: int,
        seed: int,
        batch_size: int | None,
    ) -> np.ndarray:
        dose = torch.as_tensor(row, dtype=torch.float32)
        draws: list[list[np.ndarray]] = [[] for _ in range(n_samples)]
        for tensors in self._make_data_loader(adata, batch_size=batch_size):
            for draw in draws:
                draw.append(self._moved(tensors, dose, sample=n_samples > 1).cpu().numpy())
        return np.concatenate([np.concatenate(d) for d in draws])

    def _moved(self, tensors: dict[str, Tensor], dose: Tensor, *, sample: bool) -> Tensor:
        module = self.module
        out = module.inference(**module._get_inference_input(tensors))
        x = tensors[KEYS.X].to(out["h"].device)
        shift = self._condition_shift(out, dose.to(x.device).expand(x.shape[0], -1))
        moved = out["h"] + shift @ module.total_effect
        before, after = module.decode(out["h"], out["library"]), module.decode(moved, out["library"])
        if module.gene_likelihood == "gaussian":
            # the residual of the cell is kept: what the model does not explain is not changed by the intervention
            return x + after - before
        return move_counts(x, before, after, torch.exp(module.spread), sample)

    def _condition_shift(self, out: dict[str, Tensor], dose: Tensor) -> Tensor:
        module = self.module
        if module.response_kind == "state":
            return module.domain_shift(torch.zeros_like(dose), dose, out["state"])
        k = module.n_batch_latent
        if not bool(dose.any()):
            return torch.zeros_like(out["nb_mean"])
        return F.pad(module.response(dose) - out["nb_mean"][:, k:], (k, 0))

    # ------------------------------------------------------------------ expression

    @torch.inference_mode()
    @docs.dedent
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        batch: str | None = None,
        condition: str | None = None,
        library_size: float = 1e4,
        denoise: bool = False,
        residual: float = 0.0,
        batch_size: int | None = None,
        return_numpy: bool = False,
    ) -> pd.DataFrame | np.ndarray:
        """Expression as the model explains it, with the batch taken out or set: integration in molecular space.

        Parameters
        ----------
        %(query_adata)s Batches may be new: their latent is inferred from the cells.
        %(indices)s
        batch
            ``None`` integrates: the batch latent of each cell is set to its average over the batches of training.
            A batch of training renders all cells as if measured there; ``"own"`` leaves each cell in its batch.
        condition
            Intervention to render the cells under, as in ``model.perturbation.predict``; ``None`` leaves their own.
        library_size
            Sum of each cell's expression for count likelihoods; Gaussian models answer in the unit of the data.
        denoise
            Render the state of the cells instead of each gene's own value: what genes share remains, what is in one
            gene of one cell only is left out.
        residual
            Share of what the model does not explain of a cell that is added back, 0..1 (Gaussian only).
        %(batch_size)s
        return_numpy
            Give an array instead of a DataFrame.

        Returns
        -------
        Cells x genes.
        """
        self._check_if_trained(warn=False)
        module = self.module
        module.eval()
        self._check_batch(batch)
        dose = None if condition is None else torch.as_tensor(self.codec.parse(condition), device=module.mean.device)
        parts = []
        with registered(cast("CausalModel", self), adata, as_control=True) as cells:
            rows = np.arange(cells.n_obs) if indices is None else np.asarray(indices)
            names = cells.obs_names[rows]
            for tensors in self._make_data_loader(cells, indices=rows, batch_size=batch_size):
                parts.append(self._rendered(tensors, batch, dose, library_size, denoise, residual).cpu().numpy())
        values = np.concatenate(parts)
        if return_numpy:
            return values
        return pd.DataFrame(values, index=names, columns=[str(g) for g in self.get_var_names()])

    @contextmanager
    def _met(self, adata: AnnData) -> Iterator[None]:
        manager = cast("CausalModel", self).get_anndata_manager(adata, required=True)
        batch = np.ravel(manager.get_from_registry(KEYS.BATCH)).astype(int)
        dose = np.zeros((adata.n_obs, 0))
        if self.module.n_targets:
            dose = np.asarray(manager.get_from_registry(KEYS.INTERVENTION), dtype=float)
        if self.align_queries_:
            batch = np.full(adata.n_obs, self.module.n_batch)
        unseen = unseen_batches(self.module, manager.get_from_registry(KEYS.X), batch, dose)
        self.module.unseen = None if unseen is None else unseen._replace(is_all=self.align_queries_)
        try:
            yield
        finally:
            self.module.unseen = None

    def _check_batch(self, batch: str | None) -> None:
        known = self._batch_names()
        if batch not in (None, "own") and str(batch) not in known:
            raise unknown_name("batch", str(batch), known, "the batches of training")

    def _batch_names(self) -> list[str]:
        return [str(b) for b in state_registry(self.registry_, KEYS.BATCH)["categorical_mapping"]]

    def _batch_shift(self, out: dict[str, Tensor], batch: str | None) -> Tensor:
        """What brings the batch latents of the cells (n, k) to those of ``batch``, ``None`` for the average batch."""
        module, state = self.module, out["state"]
        own = out["nb_mean"][:, : module.n_batch_latent]
        if batch == "own" or not module.n_batch_latent:
            return torch.zeros_like(own)
        if batch is None:
            return module.average_batch() - own
        return module.latent_in_batch(state, self._batch_names().index(str(batch))) - own

    def _rendered(
        self,
        tensors: dict[str, Tensor],
        batch: str | None,
        dose: Tensor | None,
        library: float,
        denoise: bool,
        residual: float,
    ) -> Tensor:
        module = self.module
        out = module.inference(**module._get_inference_input(tensors))
        h = out["h"]
        shift = F.pad(self._batch_shift(out, batch), (0, module.n_condition_latent))
        if dose is not None:
            shift = shift + self._condition_shift(out, dose.expand(len(shift), -1))
        seen = self._of_state(out, tensors) if denoise else h
        moved = seen + shift @ module.total_effect
        if batch != "own" and not denoise:
            moved = moved - out.get("unseen_offset", 0.0)
        elif batch == "own" and denoise:
            moved = moved + out.get("unseen_offset", 0.0)
        rendered = module.decode(moved, library)
        if residual and module.gene_likelihood == "gaussian":
            rest = tensors[KEYS.X].to(rendered.device) - module.decode(seen, library)
            rendered = rendered + residual * rest
        return rendered

    def _of_state(self, out: dict[str, Tensor], tensors: dict[str, Tensor]) -> Tensor:
        """Latent genes (n, m) that the state, the batch and the intervention of the cells lead to."""
        module = self.module
        nb = out["nb_mean"].clone()
        k = module.n_batch_latent
        nb[:, k:] *= self._treated(tensors, nb)
        nb[:, :k] -= module.average_batch() if k else 0.0
        centre, loading = module.state_loading()
        return module.encoder(centre + out["state"] @ loading) + nb @ module.total_effect

    def _treated(self, tensors: dict[str, Tensor], like: Tensor) -> Tensor:
        return (self.module._get_inference_input(tensors)["dose"] != 0).any(1, keepdim=True).to(like)

    def _coordinates(self, out: dict[str, Tensor], tensors: dict[str, Tensor]) -> Tensor:
        """Denoised expression without batch, (n, d), turned into as many coordinates as it has dimensions."""
        module, k = self.module, self.module.n_batch_latent
        rows, parts = [module.state_loading()[1]], [out["state"]]
        if module.n_condition_latent:
            rows.append(module.total_effect[k:] / line_of(module.encoder).slope)
            parts.append(out["nb_mean"][:, k:] * self._treated(tensors, out["nb_mean"]))
        triangle = torch.linalg.qr((torch.cat(rows) * module.scale).T, mode="r")[1]
        return torch.cat(parts, 1) @ triangle.T

    # ------------------------------------------------------------------ network

    def _network(self, *, prune: bool | None = None, standardise: bool = True) -> Network:
        """Network of the genes, from ``A_xx``.

        Parameters
        ----------
        prune
            Cut cycles: of the edges on a cycle, those go that run against the order of the stronger ones. Default: only
            if the model was trained with an acyclicity constraint.
        standardise
            Weights per standard deviation of source and target.
        """
        module = self.module
        if not module.is_gene_wise:
            raise NotSupportedError(
                "With encoder='dense' or decoder='dense' a latent variable mixes genes, so A_xx is no gene network. "
                "Use 'affine' or 'genewise', or sccausal.tl.structure."
            )
        weight = module.graph.matrix().detach().cpu().numpy().copy()
        n_cut = 0
        if prune if prune is not None else module.acyclicity is not None:
            n_cut = _cut_cycles(weight, module.graph.regulators.cpu().numpy())
        scale = module.latent_scale().detach().cpu().numpy() if standardise else np.ones(module.n_genes)
        sources = module.graph.regulators.cpu().numpy()
        weight *= scale[sources][:, None] / scale
        genes = [str(g) for g in self.get_var_names()]
        metadata = {
            "units": "standard deviations" if standardise else "latent units",
            "acyclicity": module.acyclicity,
            "constraint": float(module.constraint().detach()),
            "n_cut": n_cut,
        }
        extra: dict[str, Any] = {}
        if self.ensemble_ is not None:
            kept = weight != 0
            # rank by the mean of |A| over runs, signed by the mean weight
            weight = np.sign(self.ensemble_["mean"]) * self.ensemble_["mean_abs"] * kept
            extra = {"stability": self.ensemble_["stability"]}
            metadata["n_runs"] = int(self.ensemble_["n_runs"])
        return Network.from_matrix(
            weight,
            genes,
            None if module.graph.is_square else [genes[i] for i in sources],
            metadata=metadata,
            extra=extra,
        )

    # ------------------------------------------------------------------ domains

    def get_domain_effects(self, *, total: bool = False) -> pd.DataFrame:
        """Edges from the domain latents to the genes, ``A_xb``.

        The paper reads key genes off ``|A_xb|``. The slope of the decoder is not in it, so sizes do not compare between
        genes; :func:`sccausal.tl.key_genes` scores the decoded shift instead.

        Parameters
        ----------
        total
            With what reaches a gene through others, ``A_xb (I - A_xx)^-1``.

        Returns
        -------
        Latents (``batch_0``, ..., ``condition_0``, ...) x genes. The norm of a column over the rows of one block is the
        score of the paper for several latents.
        """
        module = self.module
        values = module.total_effect if total else module.domain_loading.detach()
        k = module.n_batch_latent
        rows = [f"batch_{i}" for i in range(k)] + [f"condition_{i}" for i in range(module.n_condition_latent)]
        return pd.DataFrame(values.cpu().numpy(), index=rows, columns=[str(g) for g in self.get_var_names()])


def combine_graphs(graphs: Sequence[np.ndarray]) -> dict[str, Any]:
    """Mean, mean size and stability of the weights over runs.

    An edge is held by a run if it is non-zero, has the sign of the mean, and is among the run's strongest: as many as
    a hundredth of all edges, but no fewer than there are genes.
    """
    stack = np.stack(graphs)
    mean = stack.mean(0)
    n_top = min(mean.size, max(mean.shape[1], mean.size // 100))
    held = np.zeros_like(mean)
    for graph in stack:
        size = np.abs(graph)
        cut = np.partition(size.ravel(), -n_top)[-n_top]
        held += (size >= cut) & (size > 0) & (np.sign(graph) == np.sign(mean))
    return {"mean": mean, "mean_abs": np.abs(stack).mean(0), "stability": held / len(stack), "n_runs": len(stack)}


def _cut_cycles(weight: np.ndarray, regulators: np.ndarray) -> int:
    """Zero, in place, edges among regulators that run against the order of the stronger ones; how many."""
    block = weight[:, regulators]
    _, component = connected_components(csr_matrix(block != 0), directed=True, connection="strong")
    inside = component[:, None] == component[None, :]
    against = inside & (block != 0) & ~forward_edges(np.where(inside, block, 0.0))
    block[against] = 0
    weight[:, regulators] = block
    return int(against.sum())
