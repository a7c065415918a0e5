from __future__ import annotations

import time
import tracemalloc
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccausal._errors import InputDataError, SetupError
from sccausal.data import check_matrix, check_obs_column
from sccausal.data._validation import check_numeric_column, row_blocks

FORMS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "dense": np.asarray,
}


def _cells(X, form="csr") -> ad.AnnData:
    X = FORMS[form](np.asarray(X, dtype=np.float32))
    n, m = X.shape
    return ad.AnnData(
        X,
        obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{j}" for j in range(m)]),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("value", "counts", "message"),
    [
        (np.nan, False, "1 missing values"),
        (np.inf, False, "1 infinite values"),
        (-np.inf, False, "1 infinite values"),
        (-2.0, True, "1 negative values"),
        (0.5, True, "1 values that are not counts"),
    ],
)
def test_bad_value_is_located(form, value, counts, message):
    X = np.random.default_rng(0).poisson(2.0, (9, 5)).astype(float)
    X[4, 3] = value
    with pytest.raises(InputDataError, match=f"(?s){message}.*cell 'c4', gene 'g3'"):
        check_matrix(_cells(X, form), counts=counts)


@pytest.mark.parametrize("form", FORMS)
def test_good_matrix_passes_silently(form):
    X = np.random.default_rng(0).poisson(2.0, (9, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_matrix(_cells(X, form), counts=True)
        check_matrix(_cells(np.log1p(X) - 1, form), counts=False)


@pytest.mark.parametrize("form", FORMS)
def test_constant_genes_are_named(form):
    X = np.random.default_rng(0).poisson(2.0, (30, 6)) + 1
    X[:, 2], X[:, 4] = 3, 0
    with pytest.warns(UserWarning, match=r"2 of 6 genes.*g2, g4"):
        check_matrix(_cells(X, form))


def test_explicit_zeros_do_not_hide_a_constant_gene():
    X = sparse.csr_matrix(np.array([[1.0, 5.0], [2.0, 0.0], [3.0, 1.0]]))
    X.data[X.data == 5] = 0
    X.data[-1] = 0
    adata = ad.AnnData(X, var=pd.DataFrame(index=["a", "b"]))
    with pytest.warns(UserWarning, match=r"1 of 2 genes.*\(b\)"):
        check_matrix(adata)


def test_shape_and_names():
    with pytest.raises(InputDataError, match="empty: 0 cells"):
        check_matrix(_cells(np.zeros((0, 3))))
    with pytest.raises(InputDataError, match="empty: 3 cells x 0"):
        check_matrix(_cells(np.zeros((3, 0))))
    with pytest.raises(InputDataError, match="1 cell"):
        check_matrix(_cells(np.ones((1, 3))))
    adata = _cells(np.arange(12).reshape(4, 3))
    adata.var_names = ["a", "b", "a"]
    with pytest.raises(InputDataError, match="repeat: a.*var_names_make_unique"):
        check_matrix(adata)
    adata = _cells(np.arange(12).reshape(4, 3))
    adata.obs_names = ["c", "c", "d", "e"]
    with pytest.warns(UserWarning, match="1 cell names repeat: c"):
        check_matrix(adata)


def test_layers():
    adata = _cells(np.log1p(np.arange(12).reshape(4, 3)))
    adata.layers["counts"] = np.arange(12).reshape(4, 3)
    with pytest.raises(SetupError, match="Did you mean 'counts'"):
        check_matrix(adata, "count")
    with pytest.raises(InputDataError, match="`layer='counts'` holds counts"):
        check_matrix(adata, counts=True)
    check_matrix(adata, "counts", counts=True, warn=False)


def test_empty_cells_are_counted():
    X = np.random.default_rng(0).poisson(3.0, (20, 4)) + np.arange(4)
    X[[2, 7]] = 0
    with pytest.warns(UserWarning, match="2 cells"):
        check_matrix(_cells(X), counts=True)


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_backed_is_read_in_blocks(tmp_path, form):
    X = np.random.default_rng(0).poisson(2.0, (50, 5)).astype(float)
    X[41, 1] = 0.25
    _cells(X, form).write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert sum(block.shape[0] for _, block in row_blocks(backed.X, block=35)) == 50
    with pytest.raises(InputDataError, match="cell 'c41', gene 'g1': 0.25"):
        check_matrix(backed, counts=True)
    check_matrix(backed, warn=False)


def test_blocks_put_together_are_the_matrix():
    X = sparse.random(101, 7, density=0.3, format="csr", random_state=0)
    blocks = list(row_blocks(X, block=50))
    assert len(blocks) > 2
    np.testing.assert_array_equal(sparse.vstack([b for _, b in blocks]).toarray(), X.toarray())


def test_sparse_matrix_is_not_densified():
    rng = np.random.default_rng(0)
    n, m, per_row = 20_000, 2_000, 20
    columns = np.sort(rng.integers(0, m // per_row, (n, per_row)) + np.arange(per_row) * (m // per_row), axis=1)
    counts = rng.integers(1, 9, n * per_row).astype(np.float32)
    X = sparse.csr_matrix((counts, columns.ravel(), np.arange(0, n * per_row + 1, per_row)), shape=(n, m))
    adata = ad.AnnData(X)
    tracemalloc.start()
    begin = time.perf_counter()
    check_matrix(adata, counts=True, warn=False)
    spent = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6  # dense: 160 MB
    assert spent < 5


def test_columns():
    adata = _cells(np.ones((4, 2)))
    adata.obs["batch"] = ["x", "x", None, "y"]
    adata.obs["one"] = "a"
    adata.obs["hours"] = ["0h", "1h", "2h", "3h"]
    with pytest.raises(SetupError, match="Did you mean 'batch'"):
        check_obs_column(adata, "bach", "batch_key")
    with pytest.raises(SetupError, match="'batch' .* no value in 1 of 4"):
        check_obs_column(adata, "batch", "batch_key")
    with pytest.raises(SetupError, match="only the level 'a'"):
        check_obs_column(adata, "one", "batch_key", n_levels=2)
    with pytest.raises(SetupError, match="must hold numbers, found '0h'"):
        check_numeric_column(adata, "hours", "time_key")
    adata.obs["inf"] = [0, 1, np.inf, 2]
    with pytest.raises(SetupError, match="infinite in 1 cells"):
        check_numeric_column(adata, "inf", "time_key")
