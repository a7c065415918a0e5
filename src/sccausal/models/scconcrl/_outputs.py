"""What a trained ScConCRL gives: predicted cells, integrated expression, network, key genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from sccausal._compat import state_registry
from sccausal._docs import docs
from sccausal._errors import NotSupportedError, SetupError, unknown_name
from sccausal.data import KEYS
from sccausal.grn import Network
from sccausal.models._cells import registered

if TYPE_CHECKING:
    from anndata import AnnData


class OutputsMixin:
    """Outputs of :class:`~sccausal.models.ScConCRL`."""

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
            return (x + after - before).clamp_min(float(x.min().clamp_max(0)))
        return _move_counts(x, before, after, torch.exp(module.spread), sample)

    def _condition_shift(self, out: dict[str, Tensor], dose: Tensor) -> Tensor:
        module = self.module
        if module.response_kind == "state":
            return module.domain_shift(torch.zeros_like(dose), dose, out["state"])
        k = module.n_batch_latent
        if not bool(dose.any()):
            return torch.zeros_like(out["nb_mean"])
        return F.pad(module.response(dose) - out["nb_mean"][:, k:], (k, 0))


def _move_counts(x: Tensor, before: Tensor, after: Tensor, theta: Tensor, sample: bool) -> Tensor:
    """Counts of the same cell at another rate: lost counts are thinned, new ones come from its own rate.

    The rate of a cell given its count is ``before * (x + theta) / (before + theta)`` on average (gamma-Poisson).
    """
    ratio = after / before.clamp_min(1e-8)
    gain = (ratio - 1).clamp_min(0) * before * (x + theta) / (before + theta)
    kept = ratio.clamp_max(1)
    if not sample:
        return x * kept + gain
    return torch.binomial(x, kept.expand_as(x)) + torch.poisson(gain)
