"""Embeddings of concepts, and what cells say about their concepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._docs import docs
from sccausal._errors import unknown_name
from sccausal.data import KEYS
from sccausal.models._cells import registered, take_modality
from sccausal.models.causcell._steps import normal

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from sccausal.models._base import CausalModel


class EmbeddingsMixin:
    """Embeddings of :class:`~sccausal.models.CausCell`."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    def _encode(self, tensors: dict[str, Tensor], representation: str) -> Tensor:
        eps = self.module.inference(tensors[KEYS.X])["mean"]
        if representation == "unexplained":
            return eps[:, -1]
        shown = eps if representation == "exogenous" else self.module.embed(eps)
        return shown[:, :-1].flatten(1)

    @torch.inference_mode()
    @docs.dedent
    def get_concept_embeddings(
        self,
        adata: AnnData | MuData | None = None,
        *,
        kind: str = "endogenous",
        sample: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Embedding of each concept in each cell.

        Parameters
        ----------
        %(query_adata)s
        kind
            ``"endogenous"``: after the structural model; ``"exogenous"``: what a concept has of its own.
        sample
            Draws in place of means. The denoiser sees draws; means show more of what is nearly hidden by their noise.
        %(seed)s
        %(batch_size)s

        Returns
        -------
        Concept -> array (cells, n_latent), float32; ``"unexplained"`` as well.
        """
        if kind not in ("endogenous", "exogenous"):
            raise unknown_name("kind of embedding", kind, ("endogenous", "exogenous"))
        eps = self._exogenous(adata, n_samples=1 if sample else 0, seed=seed, batch_size=batch_size)[0]
        tokens = self.module.embed(eps) if kind == "endogenous" else eps
        arrays = tokens.cpu().numpy()
        return {name: arrays[:, j] for j, name in enumerate([*self.concepts, "unexplained"])}

    @torch.inference_mode()
    @docs.dedent
    def predict_concepts(
        self,
        adata: AnnData | MuData | None = None,
        *,
        soft: bool = False,
        batch_size: int | None = None,
    ) -> pd.DataFrame | dict[str, pd.DataFrame]:
        """What cells say about their concepts.

        Parameters
        ----------
        %(query_adata)s
        soft
            Give probabilities.
        %(batch_size)s

        Returns
        -------
        DataFrame cells x concepts with the most likely level (the expectation, for continuous concepts); with ``soft``
        a frame cells x levels per concept.
        """
        tokens = self.module.embed(self._exogenous(adata, n_samples=0, batch_size=batch_size)[0])
        names = self._cell_names(adata)
        found = {}
        for j, concept in enumerate(self.module.concepts):
            p = self.module.heads[j](tokens[:, j]).softmax(1).cpu().numpy()
            levels = pd.Index(concept.levels)
            found[concept.name] = pd.DataFrame(p, names, levels) if soft else concept.named(p)
        return found if soft else pd.DataFrame(found, index=names)

    def _cell_names(self, adata: AnnData | MuData | None) -> pd.Index:
        return (self.adata if adata is None else take_modality(adata)).obs_names

    def _exogenous(
        self, adata: AnnData | MuData | None, *, n_samples: int, seed: int = 0, batch_size: int | None = None
    ) -> list[Tensor]:
        """Exogenous parts (cells, concepts + 1, d): draws, or with ``n_samples=0`` the means."""
        self._check_if_trained(warn=False)
        self.module.eval()
        with registered(cast("CausalModel", self), self._filled(adata), as_control=True) as cells:
            return self._exogenous_of(cells, n_samples, seed, batch_size)

    def _exogenous_of(self, cells: AnnData, n_samples: int, seed: int, batch_size: int | None) -> list[Tensor]:
        means, spreads = [], []
        for tensors in self._make_data_loader(cells, batch_size=batch_size):
            out = self.module.inference(tensors[KEYS.X])
            means.append(out["mean"])
            spreads.append(out["spread"])
        mean, spread = torch.cat(means), torch.cat(spreads)
        if n_samples == 0:
            return [mean]
        return [mean + spread * normal(mean.shape, mean, seed, 1, k) for k in range(n_samples)]
