from __future__ import annotations

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccausal._errors import InputDataError, NumericalError
from sccausal.data import prediction_anndata

COLUMNS = ["intervention", "condition", "time", "source_cell", "sample"]


def source(n=4):
    return pd.DataFrame(
        {"batch": pd.Categorical(list("xyxy")[:n]), "_scvi_batch": range(n), "condition": ["c"] * n},
        index=[f"c{i}" for i in range(n)],
    )


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_schema_and_round_trip(tmp_path, make):
    X = make(np.arange(12, dtype=float).reshape(4, 3))
    predicted = prediction_anndata(
        X, source(), ["a", "b", "c"], interventions="A+B", time=[0, 1, 2, 3], units="counts", method="m", extra={"k": 1}
    )
    predicted.write_h5ad(tmp_path / "p.h5ad")
    read = ad.read_h5ad(tmp_path / "p.h5ad")
    for adata in (predicted, read):
        assert list(adata.obs.columns[:5]) == COLUMNS and "_scvi_batch" not in adata.obs
        assert adata.obs["source_cell"].tolist() == ["c0", "c1", "c2", "c3"]
        assert set(adata.obs["intervention"]) == {"A+B"} and set(adata.obs["condition"]) == {"c"}
        assert (adata.obs["sample"] == 0).all() and adata.obs["batch"].tolist() == list("xyxy")
        assert adata.uns["sccausal"]["units"] == "counts" and adata.uns["sccausal"]["k"] == 1
        assert adata.X.dtype == np.float32
    assert list(read.var_names) == ["a", "b", "c"]


def test_several_interventions_samples_and_times_have_unique_names():
    obs = source(2)
    repeated = obs.iloc[[0, 1, 0, 1, 0]]
    predicted = prediction_anndata(
        np.ones((5, 2)), repeated, ["a", "b"], interventions=["A", "A", "B", "B", "B"], units="as_given", method="m"
    )
    assert predicted.obs_names.is_unique
    assert predicted.obs["source_cell"].tolist() == ["c0", "c1", "c0", "c1", "c0"]
    assert predicted.obs["time"].isna().all()


def test_unusable_predictions():
    args = {"interventions": "A", "units": "counts", "method": "m"}
    with pytest.raises(InputDataError, match="'log1p_norm'"):
        prediction_anndata(np.ones((4, 2)), source(), ["a", "b"], **{**args, "units": "log"})
    with pytest.raises(InputDataError, match="4 source cells and 3 genes"):
        prediction_anndata(np.ones((4, 2)), source(), ["a", "b", "c"], **args)
    with pytest.raises(InputDataError, match="`interventions` needs one value or 4"):
        prediction_anndata(np.ones((4, 2)), source(), ["a", "b"], **{**args, "interventions": ["A", "B"]})
    with pytest.raises(NumericalError, match="m predicted"):
        prediction_anndata(np.full((4, 2), np.nan), source(), ["a", "b"], **args)


def test_light_parts_do_not_import_torch():
    code = "import sys, sccausal.data, sccausal.pp; sccausal.data.Split; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
