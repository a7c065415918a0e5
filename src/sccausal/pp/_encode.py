"""Labels of interventions to a frame of doses."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.data._interventions import InterventionCodec, check_control
from sccausal.data._validation import check_obs_column

logger = logging.getLogger(__name__)


def encode_interventions(
    adata: ad.AnnData,
    key: str,
    control: str,
    sep: str | None = "+",
    dose_key: str | None = None,
    key_added: str = "intervention",
    copy: bool = False,
) -> ad.AnnData | None:
    """Write the interventions of the cells as a frame cells x targets of doses.

    Parameters
    ----------
    adata
        Cells x genes.
    key
        Column of ``obs`` with labels such as ``"A"``, ``"A+B"`` and the control.
    control
        Label of control cells.
    sep
        String between the targets of a combination; ``None`` if a label is always one target.
    dose_key
        Column of ``obs`` with the dose: a number for all targets of the cell, or a text such as ``"0.5+1"`` with one
        number per target in the order of the label. Dose 1 if ``None``.
    key_added
        Key of ``obsm`` to write to.
    copy
        Return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or the copy. Sets ``.obsm[key_added]``: DataFrame, float32, cells x targets (sorted by name); control
    cells are rows of zeros.

    Raises
    ------
    SetupError
        If a column is missing or incomplete, or the control is not in it. ``adata`` is unchanged then.
    InputDataError
        If a dose is not a finite number or does not fit its label.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0)
    >>> scc.pp.encode_interventions(adata, "intervention", control="control", key_added="doses")
    >>> adata.obsm["doses"].columns.tolist()
    ['G0007', 'G0010', 'G0019', 'G0026']
    """
    labels = check_obs_column(adata, key, "key")
    check_control([str(v).strip() for v in labels.unique()], control, f"adata.obs[{key!r}]")
    dose = None if dose_key is None else check_obs_column(adata, dose_key, "dose_key")
    if dose is not None and isinstance(dose.dtype, pd.CategoricalDtype):
        dose = dose.astype(dose.cat.categories.dtype)
    codec = InterventionCodec.fit(labels, control, sep)
    doses = codec.encode(labels, dose)
    lost = int((~doses.any(axis=1) & (labels.astype(str).str.strip() != control).to_numpy()).sum())
    if dose is not None and lost:
        raise SetupError(f"{lost} cells have an intervention of dose 0; label them {control!r} or drop them.")
    target = adata.copy() if copy else adata
    target.obsm[key_added] = pd.DataFrame(doses, index=target.obs_names, columns=list(codec.targets))
    logger.info("%d targets, %d control cells", len(codec), int(np.sum(~doses.any(axis=1))))
    return target if copy else None
