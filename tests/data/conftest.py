from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse


def toy_cells(n: int = 240, n_genes: int = 12, seed: int = 0) -> ad.AnnData:
    """Counts whose first gene is the number of the row, so that every batch says which rows it holds."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.0, (n, n_genes)).astype(np.float32)
    counts[:, 0] = np.arange(n) + 1
    obs = pd.DataFrame(
        {
            "perturbation": rng.choice(["ctrl", "A", "B", "A+B"], n),
            "batch": rng.choice(["x", "y"], n),
            "cell_type": rng.choice(["T", "B cell", "NK"], n),
            "time": rng.choice([0.0, 1.0, 4.0], n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(n_genes)]))


@pytest.fixture
def cells() -> ad.AnnData:
    return toy_cells()


def content(adata: ad.AnnData) -> dict:
    """All that a registration could change."""
    X = adata.X.toarray() if sparse.issparse(adata.X) else adata.X
    return {
        "obs": adata.obs.copy(),
        "obsm": {k: np.asarray(v).copy() for k, v in adata.obsm.items()},
        "uns": sorted(adata.uns),
        "X": X.copy(),
        "layers": sorted(adata.layers),
    }


@pytest.fixture
def unchanged():
    """Check that an AnnData is as it was: ``with unchanged(adata): ...``."""
    from contextlib import contextmanager

    @contextmanager
    def guard(adata: ad.AnnData):
        before = content(adata)
        yield
        after = content(adata)
        pd.testing.assert_frame_equal(before["obs"], after["obs"])
        assert before["obsm"].keys() == after["obsm"].keys()
        for key in before["obsm"]:
            np.testing.assert_array_equal(before["obsm"][key], after["obsm"][key])
        assert before["uns"] == after["uns"] and before["layers"] == after["layers"]
        np.testing.assert_array_equal(before["X"], after["X"])

    return guard
