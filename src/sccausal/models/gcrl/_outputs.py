"""What trained gCRL models share: predicted cells, the calibrated rest, and tables of what was learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sccausal._errors import SetupError
from sccausal.data import KEYS
from sccausal.models._adaptive import shrunken_singles
from sccausal.models.gcrl._priors import Prior
from sccausal.models.gcrl._statistics import Conditions, condition_changes, dense_features
from sccausal.nn.likelihood import move_counts

if TYPE_CHECKING:
    from anndata import AnnData

Residual = Literal["shrunken", "exact", "none"]
RESIDUALS = ("shrunken", "exact", "none")


def check_residual(kind: str) -> None:
    """Raise :class:`SetupError` if ``kind`` is unknown."""
    if kind not in RESIDUALS:
        raise SetupError(f"Unknown residual {kind!r}; choose one of {', '.join(RESIDUALS)}.")


class ResidualMixin:
    """Predictions of a model whose module decodes latents, with what the latents leave of the training means.

    The module offers ``features``, ``change`` (below), ``gene_residual`` with the buffers ``residual`` (T, m) and
    ``residual_shared`` (m,), and ``gene_likelihood``.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    # no property: scvi-tools reads all properties of a model, also of one without activities
    def _prior(self) -> Prior:
        return Prior(**self.prior_)

    # ------------------------------------------------------------------ predictions

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
        dose = torch.as_tensor(row, dtype=torch.float32, device=self.module.scale.device)
        draws: list[list[np.ndarray]] = [[] for _ in range(n_samples)]
        for tensors in self._make_data_loader(adata, batch_size=batch_size):
            for draw in draws:
                draw.append(self._moved(tensors, dose, sample=n_samples > 1).cpu().numpy())
        return np.concatenate([np.concatenate(d) for d in draws])

    def _moved(self, tensors: dict[str, Tensor], dose: Tensor, *, sample: bool) -> Tensor:
        module = self.module
        cells = module._get_inference_input(tensors)
        cells["dose"] = torch.zeros_like(cells["dose"])
        out = module.inference(**cells)
        x = cells["x"].to(out["features"].device)
        doses = dose.expand(len(x), -1)
        batch = cells["batch"].to(x.device)
        y = out["posterior"].draw() if sample and "posterior" in out else out["y_mean"]
        before = module.decode(y, out["library"], batch)
        after = module.decode(module.moved(y, doses), out["library"], batch, module.gene_residual(doses))
        if module.gene_likelihood == "gaussian":
            # what the model does not explain of the cell is not changed by the intervention
            return x + (after - before) * module.scale
        return move_counts(x, before, after, torch.exp(module.spread), sample)

    # ------------------------------------------------------------------ calibration

    def _calibrate(self) -> None:
        """Give every target the effect on genes that the latents leave of the mean changes in training."""
        module, stats = self.module, self._conditions()
        module.residual.zero_()
        module.residual_shared.zero_()
        self.explained_ = None
        if stats is None:
            return
        with torch.inference_mode():
            latent = self._decoded_changes(stats.dose)
        rest = stats.change - latent
        self.explained_ = self._explained(stats, latent)
        if self.residual_ == "none":
            return
        arguments = (rest, stats.dose, stats.n_cells, stats.n_control, stats.spread)
        if self.residual_ == "shrunken":
            singles, shared = shrunken_singles(*arguments)
        else:
            singles = Conditions(stats.dose, rest, stats.n_cells, stats.n_control, stats.spread).singles(1e-9)
            shared = np.zeros(rest.shape[1])
        module.residual.copy_(torch.as_tensor(singles))
        module.residual_shared.copy_(torch.as_tensor(shared))

    def _training_tensors(self, rows: np.ndarray) -> Iterator[dict[str, Tensor]]:
        return iter(self._make_data_loader(self.adata, indices=rows, batch_size=1024))

    def _decoded_changes(self, dose: np.ndarray) -> np.ndarray:
        """Mean change (C, m) of the decoder's output that the latents give the training control cells."""
        module = self.module
        rows = self._training_rows()
        treated = np.asarray(self.adata_manager.get_from_registry(KEYS.INTERVENTION))[rows]
        rows = rows[~(treated != 0).any(1)][:2000]
        total = np.zeros((len(dose), module.n_genes))
        base, n = np.zeros(module.n_genes), 0
        doses = torch.as_tensor(dose, dtype=torch.float32, device=module.scale.device)
        for tensors in self._training_tensors(rows):
            cells = module._get_inference_input(tensors)
            cells["dose"] = torch.zeros_like(cells["dose"])
            out = module.inference(**cells)
            n += len(out["y_mean"])
            base += self._comparable(out["y_mean"]).sum(0).cpu().numpy()
            for c, row in enumerate(doses):
                moved = module.moved(out["y_mean"], row.expand(len(out["y_mean"]), -1))
                total[c] += self._comparable(moved).sum(0).cpu().numpy()
        mean, start = total / n, base / n
        return np.log(mean) - np.log(start) if module.gene_likelihood != "gaussian" else mean - start

    def _comparable(self, y: Tensor) -> Tensor:
        # counts are compared on the log of mean rates, on which the residual acts
        out = self.module.decoder(y)
        return out if self.module.gene_likelihood == "gaussian" else torch.exp(out.clamp(-15.0, 9.0))

    def _conditions(self) -> Conditions | None:
        """Mean changes of the training cells in the unit of the decoder."""
        manager, module = self.adata_manager, self.module
        if not module.n_targets:
            return None
        rows = self._training_rows()
        dose = np.asarray(manager.get_from_registry(KEYS.INTERVENTION), dtype=float)[rows]
        batch = np.asarray(manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)[rows]
        X = manager.get_from_registry(KEYS.X)[rows]
        control = ~(dose != 0).any(1)
        if module.gene_likelihood == "gaussian":
            values = (dense_features(X, False) - module.mean.cpu().numpy()) / module.scale.cpu().numpy()
            return condition_changes(_centred(values, batch, control), dose, control)
        values = np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=np.float32)
        values = values * (1e4 / np.maximum(values.sum(1, keepdims=True), 1e-4))
        found = condition_changes(values, dose, control)
        if found is None:
            return None
        base = values[control].mean(0, dtype=np.float64)
        pseudo = 1e4 / values.shape[1] * 1e-2
        change = np.log(np.maximum(base + found.change, 0.0) + pseudo) - np.log(base + pseudo)
        return Conditions(found.dose, change, found.n_cells, found.n_control, found.spread / (base + pseudo))

    def _training_rows(self) -> np.ndarray:
        rows = getattr(self, "train_indices", None)
        return np.arange(self.adata.n_obs) if rows is None else np.sort(np.asarray(rows))

    def _explained(self, stats: Conditions, latent: np.ndarray) -> pd.DataFrame:
        noise = (stats.spread**2).sum() * (1 / stats.n_cells + 1 / stats.n_control)
        size = (stats.change**2).sum(1)
        rest = ((stats.change - latent) ** 2).sum(1)
        labels = [self.codec.label(r, with_dose=True) for r in stats.dose.astype(np.float32)]
        return pd.DataFrame(
            {
                "explained": 1 - rest / np.maximum(size, 1e-12),
                "change": np.sqrt(size),
                "noise": np.sqrt(noise),
                "n_cells": stats.n_cells.astype(int),
            },
            index=pd.Index(labels, name="intervention"),
        )


def _centred(values: np.ndarray, batch: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Cells minus the mean of their batch's control cells (of all cells where a batch has none)."""
    out = values.astype(np.float64)
    for b in np.unique(batch):
        own = batch == b
        base = own & control if (own & control).any() else own
        out[own] -= values[base].mean(0, dtype=np.float64)
    return out
