from __future__ import annotations

import numpy as np
import pytest

from sccausal._errors import SetupError
from sccausal.datasets import simulate_denoising
from sccausal.datasets._perturb_seq import log_normalised


@pytest.fixture(scope="module")
def pair():
    return simulate_denoising(n_cells=800, n_genes=150, n_types=3, n_batches=3, n_query=1, seed=0)


def test_batches_are_split_into_reference_and_query(pair):
    table = pair.obs.groupby("batch", observed=True)["split"].unique()
    assert [list(t) for t in table] == [["reference"], ["reference"], ["query"]]


def test_clean_expression_is_normalised_and_free_of_batch(pair):
    clean = pair.layers["clean"]
    assert np.allclose(np.expm1(clean).sum(axis=1), 1e4, rtol=1e-4)
    same = (pair.obs["cell_type"] == "type_0").to_numpy()
    noisy = log_normalised(pair.X)
    batch = pair.obs["batch"].to_numpy()

    def gap(values: np.ndarray) -> float:
        means = [values[same & (batch == b)].mean(axis=0) for b in ("batch_0", "batch_1")]
        return float(np.abs(means[0] - means[1]).mean())

    assert gap(clean) < 0.2 * gap(noisy)


def test_average_of_noisy_cells_approaches_the_clean_state_without_technical_effects():
    pair = simulate_denoising(
        n_cells=3000, n_genes=60, n_types=1, n_batches=1, n_query=0, dropout=0.0, noise=0.0, seed=1
    )
    total = np.asarray(pair.X.sum(axis=0)).ravel()
    share = np.expm1(pair.layers["clean"][0]) / 1e4
    assert np.allclose(total / total.sum(), share, rtol=0.08)


def test_query_must_leave_a_reference():
    with pytest.raises(SetupError, match="n_query"):
        simulate_denoising(n_batches=2, n_query=2)
