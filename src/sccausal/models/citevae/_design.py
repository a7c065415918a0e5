"""Whether the design of an experiment lets time and interventions be told apart."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scvi import settings

from sccausal._errors import SetupError, unknown_name

if TYPE_CHECKING:
    from anndata import AnnData

_SNAPSHOT = "ScConCRL (one condition) or GCRLVAE (several interventions)"


def check_times(adata: AnnData, time_key: str, track_key: str | None) -> None:
    """Raise if the column of times holds no numbers or one time only, or if that of tracks is missing.

    Raises
    ------
    sccausal._errors.SetupError
        The times are labels, or all the same.
    sccausal._errors.UnknownNameError
        There is no column ``track_key``.
    """
    if time_key in adata.obs:
        given = adata.obs[time_key].astype(object)
        time = pd.to_numeric(given, errors="coerce")
        labels = sorted(map(str, given[time.isna() & given.notna()].unique()))
        if labels and time.isna().all():
            numbers = ", ".join(f"{name!r}: {i}" for i, name in enumerate(labels[:3]))
            raise SetupError(
                f"adata.obs[{time_key!r}] must hold times as numbers, found {', '.join(map(repr, labels[:3]))}. If "
                f"they are times, give each its number, e.g. adata.obs['hours'] = adata.obs[{time_key!r}].map("
                f"{{{numbers}}}).astype(float). If they are conditions of one snapshot, use {_SNAPSHOT}."
            )
        time = time.dropna()
        if len(time) and time.nunique() < 2:
            raise SetupError(
                f"All cells have the time {time.iloc[0]:g} in adata.obs[{time_key!r}]; dynamics need two times at "
                f"least. For one snapshot use {_SNAPSHOT}."
            )
    if track_key is not None and track_key not in adata.obs:
        raise unknown_name("column", track_key, adata.obs.columns, "adata.obs (track_key)")


def check_design(time: np.ndarray, dose: np.ndarray, time_key: str) -> None:
    """Raise or warn if interventions cannot be told from the passing of time.

    Parameters
    ----------
    time, dose
        Times (n,) and doses (n, T) of the cells; without interventions T is 0.
    time_key
        Column of the times, for messages.

    Raises
    ------
    sccausal._errors.SetupError
        There are two times, and no time holds both control and perturbed cells.

    Warns
    -----
    UserWarning
        There are two times only; or more, of which none holds both control and perturbed cells.
    """
    perturbed = (dose != 0).any(1)
    times = np.unique(time)
    shared = np.isin(times, time[perturbed]) & np.isin(times, time[~perturbed])
    confounded = perturbed.any() and not perturbed.all() and not shared.any()
    if confounded and len(times) == 2:
        raise SetupError(
            f"Control cells have {_listed(time_key, time[~perturbed])}, perturbed ones "
            f"{_listed(time_key, time[perturbed])}: the two columns say the same, so that an intervention cannot be "
            f"told from the passing of time. Leave `intervention_key` out to follow time alone, measure control cells "
            f"at the later time too, or use {_SNAPSHOT}."
        )
    if confounded:
        _warn(
            f"No time holds both control ({_listed(time_key, time[~perturbed])}) and perturbed cells "
            f"({_listed(time_key, time[perturbed])}): what interventions do holds only if control cells do not change "
            "over time."
        )
    if len(times) == 2:
        _warn(
            "There are two times only: one step of the dynamics is seen, so nothing can be told about times beyond "
            f"the second, and a model without time may serve as well: {_SNAPSHOT}."
        )


def _listed(key: str, time: np.ndarray) -> str:
    found = np.unique(time)
    return f"{key} = " + ", ".join(f"{t:g}" for t in found[:4]) + (", ..." if len(found) > 4 else "")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)
