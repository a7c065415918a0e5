from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sccausal import pp
from sccausal._errors import InputDataError, SetupError


@pytest.fixture
def adata() -> ad.AnnData:
    obs = pd.DataFrame({"pert": ["NT", "B", "B+A", "A"], "dose": [0.0, 2.0, 0.5, 1.0], "text": ["0", "2", "1+3", "4"]})
    return ad.AnnData(np.ones((4, 2)), obs=obs.set_index(pd.Index(list("abcd"))))


def test_frame_of_doses(adata):
    pp.encode_interventions(adata, "pert", "NT")
    frame = adata.obsm["intervention"]
    assert frame.columns.tolist() == ["A", "B"] and frame.index.tolist() == list("abcd")
    np.testing.assert_array_equal(frame, [[0, 0], [0, 1], [1, 1], [1, 0]])


def test_doses_as_number_and_text(adata):
    pp.encode_interventions(adata, "pert", "NT", dose_key="dose", key_added="u")
    np.testing.assert_array_equal(adata.obsm["u"], [[0, 0], [0, 2], [0.5, 0.5], [1, 0]])
    adata.obs["text"] = adata.obs["text"].astype("category")
    pp.encode_interventions(adata, "pert", "NT", dose_key="text", key_added="v")
    np.testing.assert_array_equal(adata.obsm["v"], [[0, 0], [0, 2], [3, 1], [4, 0]])


def test_copy_and_h5ad(adata, tmp_path):
    made = pp.encode_interventions(adata, "pert", "NT", copy=True)
    assert "intervention" not in adata.obsm
    made.write_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "x.h5ad").obsm["intervention"], made.obsm["intervention"])


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"key": "prt", "control": "NT"}, SetupError, "Did you mean 'pert'"),
        ({"key": "pert", "control": "nt"}, SetupError, "Did you mean 'NT'"),
        ({"key": "pert", "control": "NT", "dose_key": "dos"}, SetupError, "Did you mean 'dose'"),
        ({"key": "pert", "control": "NT", "dose_key": "bad"}, InputDataError, "not a number"),
        ({"key": "pert", "control": "NT", "dose_key": "zero"}, SetupError, "of dose 0"),
    ],
)
def test_errors_leave_the_cells_alone(adata, args, error, message):
    adata.obs["bad"], adata.obs["zero"] = ["0", "high", "1+1", "1"], 0.0
    with pytest.raises(error, match=message):
        pp.encode_interventions(adata, **args)
    assert not adata.obsm
