"""Batches that the model was not trained on: aligned, as whole populations, with what it has kept of training."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import settings

from sccausal.models.scconcrl._alignment import SmallPopulations, align_query
from sccausal.models.scconcrl._domains import UnseenBatches
from sccausal.models.scconcrl._statistics import feature_chunks

if TYPE_CHECKING:
    from sccausal.models.scconcrl._module import ScConCRLModule

_MIN_CELLS = 40


def unseen_batches(module: ScConCRLModule, X: Any, batch: np.ndarray, dose: np.ndarray) -> UnseenBatches | None:
    """Offsets of the batches among the cells that the model does not know.

    Parameters
    ----------
    module
        The trained module.
    X
        Expression of the query cells (n, m), dense or CSR, in the unit of training.
    batch
        Their batch codes (n,); codes from ``module.n_batch`` on are new.
    dose
        Their doses (n, T).

    Returns
    -------
    ``None`` if there is nothing new, or nothing to align with. A batch of fewer than 40 cells gets no offset, with a
    warning: its mean says more about its composition than about the batch.
    """
    codes = np.unique(batch[batch >= module.n_batch])
    reference = _reference(module)
    if not len(codes) or reference is None or module.batch_response == "paper":
        return None
    n_new = int(codes.max()) - module.n_batch + 1
    m, d = module.axes.shape
    level, slope = np.zeros((n_new, m)), np.zeros((n_new, d, m))
    few = []
    for code in codes:
        rows = np.flatnonzero(batch == code)
        if len(rows) < _MIN_CELLS:
            few.append(len(rows))
            continue
        features = _features(module, X, rows, dose)
        at = code - module.n_batch
        level[at], slope[at] = align_query(features, _array(module.axes), reference)
    if few:
        warnings.warn(
            f"{len(few)} batch(es) that the model was not trained on hold fewer than {_MIN_CELLS} cells "
            f"({', '.join(map(str, few[:5]))}), too few to tell their offset from their composition: they are taken "
            "as they are. Give more cells of the batch at once, or train on them with load_query_data().",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    device = module.mean.device
    return UnseenBatches(*(torch.as_tensor(x, dtype=torch.float32, device=device) for x in (level, slope)))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _reference(module: ScConCRLModule) -> SmallPopulations | None:
    n = _array(module.reference_cells)
    kept = n > 0
    if kept.sum() < 2:
        return None
    features = _array(module.reference_features)[kept]
    return SmallPopulations(features, features @ _array(module.axes), np.zeros(kept.sum(), dtype=int), n[kept])


def _features(module: ScConCRLModule, X: Any, rows: np.ndarray, dose: np.ndarray) -> np.ndarray:
    features = np.vstack(list(feature_chunks(X[rows], module.gene_likelihood != "gaussian")))
    features = (features - _array(module.mean)) / _array(module.scale)
    return features - dose[rows] @ _array(module.target_effect) if dose.shape[1] else features
