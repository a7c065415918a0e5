"""Times that are conditions, and interventions that are times."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from anndata import AnnData
from citevae_data import KEYS, QUIET

from sccausal import CITEVAE
from sccausal._errors import SetupError
from sccausal.models.citevae._design import check_design


def stimulated(n=60, m=12, seed=0):
    """A snapshot of two conditions, as interferon data have them: control at 0, stimulated at 1."""
    rng = np.random.default_rng(seed)
    after = np.arange(n) >= n // 2
    X = rng.gamma(2.0, 0.5, (n, m)).astype(np.float32)
    X[after, :4] += 1.5
    adata = AnnData(X)
    adata.var_names = [f"g{j}" for j in range(m)]
    adata.obs["condition"] = np.where(after, "stimulated", "control")
    adata.obs["time"] = after.astype(float)
    return adata


def small(adata):
    scvi.settings.seed = 0
    return CITEVAE(adata, n_responsive=1, n_invariant=2, n_hidden=8)


def test_conditions_are_no_times_and_the_mend_works():
    adata = stimulated()
    with pytest.raises(SetupError, match="'control', 'stimulated'.*ScConCRL") as caught:
        CITEVAE.setup_anndata(adata, time_key="condition")
    mend = str(caught.value).split("e.g. ")[1].split(". If they are")[0]
    exec(mend, {"adata": adata})
    np.testing.assert_array_equal(adata.obs["hours"], adata.obs["time"])
    CITEVAE.setup_anndata(adata, time_key="hours")


def test_a_condition_as_time_is_one_step_and_said_to_be():
    adata = stimulated()
    CITEVAE.setup_anndata(adata, time_key="time")
    model = small(adata)
    with pytest.warns(UserWarning, match="two times only.*ScConCRL"):
        model.train(2, train_size=1.0, **QUIET)
    before, after = adata[adata.obs["time"] == 0].copy(), adata[adata.obs["time"] == 1].copy()
    rolled = np.asarray(model.rollout(before, [1.0]).X).mean(0)
    gap = np.linalg.norm(before.X.mean(0) - after.X.mean(0))
    assert np.linalg.norm(rolled - after.X.mean(0)) < 0.5 * gap
    assert set(model.rollout(before, [2.0]).obs["time_support"]) == {"beyond"}


def test_a_condition_as_time_and_as_intervention_is_refused():
    adata = stimulated()
    CITEVAE.setup_anndata(adata, intervention_key="condition", control="control", time_key="time")
    with pytest.raises(SetupError, match=r"Control cells have time = 0, perturbed ones time = 1.*intervention_key"):
        small(adata).train(1, **QUIET)


def test_designs_are_judged_by_the_times_that_hold_both():
    dose = np.array([[0], [0], [1], [1]])
    check_design(np.array([0, 1, 0, 2]), dose, "day")
    check_design(np.array([0, 1, 2, 3]), np.zeros((4, 0)), "day")
    with pytest.warns(UserWarning, match="No time holds both control .day = 0, 1. and perturbed"):
        check_design(np.array([0, 1, 2, 2]), dose, "day")
    with pytest.warns(UserWarning, match="two times only"):
        check_design(np.array([0, 1, 1, 1]), dose, "day")
    with pytest.raises(SetupError, match="day = 0, perturbed ones day = 1"):
        check_design(np.array([0, 0, 1, 1]), dose, "day")


def test_interferon_data_as_a_time_course(test_data):
    import anndata as ad

    path = test_data / "kang_ifnb.h5ad"
    if not path.exists():
        pytest.skip("kang_ifnb.h5ad is not there")
    adata = ad.read_h5ad(path)[:, :50].copy()
    with pytest.raises(SetupError, match="'control', 'stimulated'"):
        CITEVAE.setup_anndata(adata, time_key="condition")
    adata.obs["time"] = (adata.obs["condition"] == "stimulated").astype(float)
    CITEVAE.setup_anndata(adata, **KEYS | {"intervention_key": "condition"})
    with pytest.raises(SetupError, match="cannot be told from the passing of time"):
        small(adata).train(1, **QUIET)
