from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from citevae_data import QUIET, fit_factors, log_normalised

from sccausal import CITEVAE
from sccausal.datasets import simulate_time_course


@pytest.fixture(scope="session")
def factors():
    return fit_factors()


@pytest.fixture(scope="session")
def loose():
    """The same factors without alignment, from a random start."""
    return fit_factors(alignment="none", start="random")[0]


@pytest.fixture(scope="session")
def course() -> AnnData:
    """Counts of ten activations at three times, with their truth."""
    return simulate_time_course(60, 100, 10, (0.5, 1.5, 4.0), seed=11)


@pytest.fixture(scope="session")
def followed(course):
    """Model of the course in which two targets were never seen and two only at the first two times; and the masks."""
    cells = log_normalised(course)
    label, time = cells.obs["intervention"].astype(str).to_numpy(), cells.obs["time"].to_numpy()
    names = sorted(set(label) - {"control"})
    unseen, early = names[:2], names[2:4]
    train = ~np.isin(label, unseen) & ~(np.isin(label, early) & (time > 2))
    held = AnnData(cells.X[train].copy(), obs=cells.obs[train].copy(), var=cells.var)
    held.obsm["doses"] = pd.DataFrame({n: (label[train] == n).astype(np.float32) for n in names}, index=held.obs_names)
    scvi.settings.seed = 0
    CITEVAE.setup_anndata(held, intervention_key="doses", control="control", time_key="time")
    model = CITEVAE(held, n_responsive=3, n_invariant=4, n_hidden=32)
    model.train(12, **QUIET)
    return model, cells, unseen, early
