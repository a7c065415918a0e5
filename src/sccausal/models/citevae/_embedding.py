"""Features of the targets of interventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import SetupError, unknown_name

if TYPE_CHECKING:
    from anndata import AnnData


def read_embedding(given: Any, targets: list[str], adata: AnnData | None) -> str | pd.DataFrame:
    """A named embedding, or the rows of a frame for the targets.

    Raises
    ------
    sccausal._errors.UnknownNameError
        The name is not known, or a target has no row.
    sccausal._errors.SetupError
        A feature is not finite.
    """
    if isinstance(given, str):
        if given in ("coexpression", "onehot"):
            return given
        frames = [] if adata is None else [k for k, v in adata.uns.items() if isinstance(v, pd.DataFrame)]
        if given not in frames:
            raise unknown_name("intervention_embedding", given, ["coexpression", "onehot", *frames], "adata.uns")
        given = adata.uns[given]  # type: ignore[union-attr]
    frame = pd.DataFrame(given)
    frame.index = frame.index.astype(str)
    missing = next((t for t in targets if t not in frame.index), None)
    if missing is not None:
        raise unknown_name("target", missing, frame.index, "intervention_embedding")
    frame = frame.loc[targets].astype(float)
    if not np.isfinite(frame.to_numpy()).all():
        raise SetupError("intervention_embedding holds values that are not finite.")
    return frame


def standard_columns(features: np.ndarray) -> np.ndarray:
    """Columns scaled to mean square 1 over the rows that are not zero, not centred: zero stays control."""
    size = np.sqrt((features**2).mean(0))
    return (features / np.where(size > 1e-9, size, 1.0) / np.sqrt(max(features.shape[1], 1))).astype(np.float32)
