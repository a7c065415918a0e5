from __future__ import annotations

import gzip

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from sccausal._errors import FileFormatError, SetupError, UnknownNameError
from sccausal.datasets import DownloadError, cardiac_timecourse, clone_split, hipsc_timecourse

GENES = ["POU5F1", "GATA4", "CHD7"]


def cells(n=6, **obs) -> anndata.AnnData:
    values = np.random.default_rng(0).poisson(2.0, (n, 3)).astype(np.float32)
    frame = pd.DataFrame(obs, index=[f"c{i}" for i in range(n)])
    return anndata.AnnData(sparse.csr_matrix(values), obs=frame, var=pd.DataFrame(index=GENES))


def test_hipsc_from_h5ad(tmp_path):
    made = cells(4, target_gene=["control", "POU5F1", "NT", "GATA4"], day=["D2", "D3", "day 5", "D2"])
    made.write_h5ad(tmp_path / "a.h5ad")
    adata = hipsc_timecourse(tmp_path / "a.h5ad")
    assert adata.obs["intervention"].tolist() == ["control", "POU5F1", "control", "GATA4"]
    assert adata.obs["time"].tolist() == [2.0, 3.0, 5.0, 2.0]
    assert (adata.layers["counts"] != made.X).nnz == 0


def test_hipsc_from_the_tables_of_renge(tmp_path):
    names = ["a", "b", "c"]
    expression = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=names, columns=GENES)
    design = pd.DataFrame([[0, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 4]], index=names, columns=[*GENES, "t"])
    expression.to_csv(tmp_path / "E.csv")
    design.to_csv(tmp_path / "X.csv")
    adata = hipsc_timecourse(tmp_path)
    assert adata.obs["intervention"].tolist() == ["control", "GATA4", "CHD7"]
    assert adata.obs["time"].tolist() == [2.0, 3.0, 4.0]
    np.testing.assert_array_equal(adata.X, expression)
    design.iloc[0, 0] = 0.5
    design.to_csv(tmp_path / "X.csv")
    with pytest.raises(FileFormatError, match="one-hot"):
        hipsc_timecourse(tmp_path)
    design.iloc[::-1].to_csv(tmp_path / "X.csv")
    with pytest.raises(FileFormatError, match="same order"):
        hipsc_timecourse(tmp_path)


def cardiac(n_per=3) -> anndata.AnnData:
    rows = [
        (time, target, clone)
        for time in ("D0", "D2", "D23")
        for target, clones in {"SCR": "ab", "CHD7": "cde", "B2M": "f"}.items()
        for clone in clones
        for _ in range(n_per if (target, clone, time) != ("CHD7", "e", "D2") else 1)
    ]
    frame = pd.DataFrame(rows, columns=["stage", "perturbation", "clone_id"])
    return cells(len(rows), **{c: frame[c].to_numpy() for c in frame})


def test_cardiac_drops_sparse_strata_and_later_times(tmp_path):
    cardiac().write_h5ad(tmp_path / "a.h5ad")
    adata = cardiac_timecourse(tmp_path / "a.h5ad", min_cells=2)
    assert set(adata.obs["time"]) == {0.0, 2.0}
    assert list(adata.obs["intervention"].cat.categories) == ["control", "B2M", "CHD7"]
    at_two = adata.obs[(adata.obs["time"] == 2) & (adata.obs["intervention"] == "CHD7")]
    assert set(at_two["clone"]) == {"c", "d"}
    assert set(cardiac_timecourse(tmp_path / "a.h5ad", times=None, min_cells=2).obs["time"]) == {0.0, 2.0, 23.0}
    with pytest.raises(FileFormatError, match="20 cells"):
        cardiac_timecourse(tmp_path / "a.h5ad")


def test_cardiac_from_a_folder(tmp_path):
    made = cardiac()
    with gzip.open(tmp_path / "matrix.mtx.gz", "wb") as file:
        io.mmwrite(file, sparse.coo_matrix(made.X.T))
    with gzip.open(tmp_path / "features.tsv.gz", "wt") as file:
        file.writelines(f"ENSG{i}\t{g}\tGene Expression\n" for i, g in enumerate(GENES))
    with gzip.open(tmp_path / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{c}\n" for c in made.obs_names)
    with pytest.raises(FileFormatError, match=r"metadata\.csv"):
        cardiac_timecourse(tmp_path)
    made.obs.iloc[::-1].to_csv(tmp_path / "metadata.csv")  # in another order, and one cell short
    made.obs.iloc[1:].iloc[::-1].to_csv(tmp_path / "metadata.csv")
    adata = cardiac_timecourse(tmp_path, min_cells=2)
    whole = made[adata.obs_names]
    assert adata.obs["clone"].tolist() == whole.obs["clone_id"].tolist()
    assert (adata.X != whole.X).nnz == 0 and "c0" not in adata.obs_names


def test_clones_are_held_out_whole_and_every_intervention_stays(tmp_path):
    cardiac(4).write_h5ad(tmp_path / "a.h5ad")
    adata = cardiac_timecourse(tmp_path / "a.h5ad", min_cells=2)
    for seed in range(5):
        split = clone_split(adata, test_size=0.3, seed=seed)
        clone, label = adata.obs["clone"].astype(str).to_numpy(), adata.obs["intervention"].astype(str).to_numpy()
        assert len(split.test) and not set(clone[split.train]) & set(clone[split.test])
        assert set(label[split.train]) == set(label)
        assert "f" not in set(clone[split.test])  # the only clone of its target
        assert len(split.train) + len(split.test) == adata.n_obs
    with pytest.raises(UnknownNameError, match="clon"):
        clone_split(adata, "clon")
    with pytest.raises(SetupError, match="test_size"):
        clone_split(adata, test_size=1.0)
    with pytest.raises(SetupError, match="one clone"):
        clone_split(adata[adata.obs["clone"] == "f"].copy())


def test_what_does_not_fit_is_refused(tmp_path):
    for loader in (hipsc_timecourse, cardiac_timecourse):
        with pytest.raises(DownloadError, match=r"path=\.\.\."):
            loader()
    cells(2, target_gene=["control", "A"], day=["early", "late"]).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(FileFormatError, match="early"):
        hipsc_timecourse(tmp_path / "a.h5ad")
    cells(2, target_gene=["B", "A"], day=[1, 2]).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(FileFormatError, match="control"):
        hipsc_timecourse(tmp_path / "b.h5ad")
    cells(2, target_gene=["SCR", "A"], day=[1, 2]).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(FileFormatError, match="clone"):
        cardiac_timecourse(tmp_path / "c.h5ad")
