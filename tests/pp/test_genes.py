from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from sccausal import pp
from sccausal._errors import InputDataError, SetupError
from sccausal.pp._genes import welch

ARGS = {"condition_key": "condition", "control": "control", "labels_key": "cell_type"}
INTERFERON = ["ISG20", "IFIT1", "IFIT3", "IFI6"]


def make_cells(seed: int = 0, n: int = 600, n_genes: int = 200) -> ad.AnnData:
    """Two types, of which one answers with gene 5 and, if it is a B cell, gene 6."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"condition": rng.choice(["control", "IFN"], n), "cell_type": rng.choice(["T", "B"], n)},
        index=[f"c{i}" for i in range(n)],
    )
    mean = np.tile(rng.lognormal(0, 1, n_genes), (n, 1))
    mean[:, [5, 6, 10]] = 1.0
    treated = (obs["condition"] == "IFN").to_numpy()
    mean[treated, 5] *= 3
    mean[treated & (obs["cell_type"] == "B").to_numpy(), 6] *= 3
    mean[:, 10] *= rng.gamma(0.3, 1 / 0.3, n)  # mean 1, like the others
    X = sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(n_genes)]))


def test_responding_and_kept_genes_are_found():
    adata = make_cells()
    pp.select_genes(adata, 10, **ARGS, keep=["g40"], regulators=["g41", "not measured"])
    by = adata.var["selected_by"]
    assert "de" in by["g5"] and "de" in by["g6"] and "hvg" in by["g10"]
    assert by["g40"] == "keep" and by["g41"] == "regulator"
    assert by.str.contains("de").sum() <= 6  # two true ones, and few others at 5 % false discoveries
    assert adata.uns["selected"]["n_genes"] == adata.var["selected"].sum()


def test_types_are_tested_apart():
    adata = make_cells()
    pp.select_genes(adata, 0, **ARGS, train=np.flatnonzero(adata.obs["cell_type"] == "T"))
    assert adata.var["selected"]["g5"] and not adata.var["selected"]["g6"]


@pytest.mark.parametrize("form", ["rows", "mask", "split"])
def test_test_cells_have_no_say(form):
    adata = make_cells()
    split = pp.split(adata, "condition_x_type", **ARGS, hold_out="B")
    train = {"rows": split.train, "mask": np.isin(np.arange(adata.n_obs), split.train), "split": split}[form]
    chosen = pp.select_genes(adata, 10, **ARGS, train=train, copy=True).var["selected"]
    assert not chosen["g6"]  # only held-out cells answer with it
    spoilt = adata.copy()
    X = spoilt.X.toarray()
    X[split.test] = np.random.default_rng(1).poisson(50, X[split.test].shape)
    spoilt.X = sparse.csr_matrix(X)
    pd.testing.assert_series_equal(pp.select_genes(spoilt, 10, **ARGS, train=train, copy=True).var["selected"], chosen)


def test_forms_of_the_matrix_and_order_of_cells_agree():
    adata = make_cells()
    expected = pp.select_genes(adata, 8, **ARGS, copy=True).var["selected"]
    dense = adata.copy()
    dense.X = dense.X.toarray()
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    layered = adata.copy()
    layered.layers["counts"], layered.X = adata.X, None
    for other, layer in ((dense, None), (shuffled, None), (layered, "counts")):
        found = pp.select_genes(other, 8, **ARGS, layer=layer, copy=True).var["selected"]
        pd.testing.assert_series_equal(found, expected)
    assert pp.select_genes(adata, 8, subset=True, copy=True).n_vars == 8


def test_no_genes_respond_where_nothing_happens():
    adata = make_cells()
    adata.obs["condition"] = np.random.default_rng(7).permutation(adata.obs["condition"].to_numpy())
    adata.X = sparse.csr_matrix(np.random.default_rng(3).poisson(1.0, adata.shape).astype(np.float32))
    pp.select_genes(adata, 0, **ARGS)
    assert adata.var["selected"].sum() <= 1


def test_welch_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (30, 6)), rng.normal(0.5, 2, (50, 6))
    a[:, 5] = b[:, 5] = 2.0
    moments = [(x.mean(0), x.var(0, ddof=1)) for x in (a, b)]
    found = welch(moments[0], 30, moments[1], 50)
    np.testing.assert_allclose(found[:5], stats.ttest_ind(a[:, :5], b[:, :5], equal_var=False).pvalue, rtol=1e-9)
    assert found[5] == 1


def test_errors_leave_the_cells_alone():
    adata = make_cells()
    for args, error in (
        ({**ARGS, "control": "Control"}, SetupError),
        ({**ARGS, "labels_key": "celltype"}, SetupError),
        ({"train": [0, 10_000]}, SetupError),
        ({"train": [True, False]}, SetupError),
        ({"layer": "counts"}, SetupError),
    ):
        with pytest.raises(error):
            pp.select_genes(adata, 10, **args)
    with pytest.warns(UserWarning, match="1 genes of `keep`.*nope"):
        pp.select_genes(adata.copy(), 10, keep=["nope"])
    adata.X.data[0] = np.nan
    with pytest.raises(InputDataError):
        pp.select_genes(adata, 10)
    assert adata.var.shape[1] == 0 and not adata.uns


@pytest.mark.parametrize("held", ["B", "CD14+Mono", "CD4T"])
def test_interferon_genes_on_kang(test_data, held):
    adata = ad.read_h5ad(test_data / "kang_ifnb.h5ad")
    split = pp.split(adata, "condition_x_type", **ARGS, hold_out=held)
    pp.select_genes(adata, 500, **ARGS, train=split)
    assert adata.var.loc[INTERFERON, "selected"].all()
    assert 500 <= adata.var["selected"].sum() < 1000
    # variable genes alone would miss them
    assert not adata.var.loc[INTERFERON, "selected_by"].str.contains("hvg").all()
