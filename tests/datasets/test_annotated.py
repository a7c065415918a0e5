"""Atlases read from small files made in their format, and the reader behind them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccausal._errors import FileFormatError, InputDataError, SetupError, UnknownNameError
from sccausal.datasets import DownloadError, heart_cell_atlas, immune_atlas, merfish_brain, read_annotated, yost_2019


def cells(obs: dict[str, list], genes: tuple[str, ...] = ("A", "B", "C"), seed: int = 0) -> ad.AnnData:
    n = len(next(iter(obs.values())))
    values = np.random.default_rng(seed).poisson(2.0, (n, len(genes))).astype(np.float32)
    frame = pd.DataFrame(obs, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(values), obs=frame, var=pd.DataFrame(index=list(genes)))


def test_columns_get_the_names_of_the_package(tmp_path):
    made = cells({"celltype": ["beta", "alpha"], "tech": ["celseq", "smartseq2"]})
    made.write_h5ad(tmp_path / "a.h5ad")
    adata = read_annotated(
        tmp_path / "a.h5ad",
        {"cell_type": ("annotation", "celltype"), "batch": "tech"},
        optional={"donor": "patient"},
    )
    assert adata.obs["cell_type"].tolist() == ["beta", "alpha"] and "donor" not in adata.obs
    assert {"celltype", "tech"} <= set(adata.obs)
    assert isinstance(adata.obs["batch"].dtype, pd.CategoricalDtype)
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), made.X.toarray())
    with pytest.raises(FileFormatError, match="lineage.*celltype"):
        read_annotated(tmp_path / "a.h5ad", {"cell_type": "lineage"})


def test_several_files_become_batches_on_shared_genes(tmp_path):
    cells({"kind": ["beta", "alpha"]}).write_h5ad(tmp_path / "a.h5ad")
    cells({"kind": ["beta"]}, ("B", "C", "D"), seed=1).write_h5ad(tmp_path / "b.h5ad")
    places = {"baron": tmp_path / "a.h5ad", "muraro": tmp_path / "b.h5ad"}
    adata = read_annotated(places, {"cell_type": "kind"})
    assert adata.var_names.tolist() == ["B", "C"] and adata.obs_names.is_unique
    assert adata.obs["batch"].tolist() == ["baron", "baron", "muraro"]
    assert adata.obs["cell_type"].cat.categories.tolist() == ["alpha", "beta"]
    with pytest.raises(SetupError, match="batch"):
        read_annotated(places, {"cell_type": "kind", "batch": "kind"})
    cells({"kind": ["beta"]}, ("X", "Y")).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(FileFormatError, match="share no gene.*'baron': 'A'"):
        read_annotated(places, {"cell_type": "kind"})


def test_counts_are_found_in_raw_or_refused(tmp_path):
    made = cells({"kind": ["beta", "alpha"]})
    full = made.copy()
    made = made[:, ["C", "A"]].copy()
    made.X = made.X.log1p()
    made.write_h5ad(tmp_path / "log.h5ad")
    with pytest.raises(InputDataError, match="raw"):
        read_annotated(tmp_path / "log.h5ad")
    assert "counts" not in read_annotated(tmp_path / "log.h5ad", counts=False).layers
    made.raw = full
    made.write_h5ad(tmp_path / "raw.h5ad")
    adata = read_annotated(tmp_path / "raw.h5ad")
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), full[:, ["C", "A"]].X.toarray())


def test_heart_of_a_file_and_of_scvi(tmp_path, monkeypatch):
    made = cells({"donor": ["D1", "D2"], "cell_type": ["CM", "FB"], "cell_source": ["Sanger-Nuclei", "Sanger-Cells"]})
    made.write_h5ad(tmp_path / "heart.h5ad")
    adata = heart_cell_atlas(tmp_path / "heart.h5ad")
    assert adata.obs["batch"].tolist() == ["D1", "D2"] and adata.obs["source"].tolist()[0] == "Sanger-Nuclei"

    import scvi.data

    asked = []
    monkeypatch.setenv("SCCAUSAL_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(scvi.data, "heart_cell_atlas_subsampled", lambda save_path: asked.append(save_path) or made)
    assert heart_cell_atlas().obs["cell_type"].tolist() == ["CM", "FB"]
    assert asked == [str(tmp_path)]


def test_immune_atlas_in_both_spellings(tmp_path):
    own = cells({"Donor": ["A29", "A31"], "Organ": ["BMA", "LIV"], "Manually_curated_celltype": ["Tem", "Mono"]})
    own.write_h5ad(tmp_path / "own.h5ad")
    adata = immune_atlas(tmp_path / "own.h5ad")
    assert adata.obs[["donor", "tissue", "cell_type"]].iloc[1].tolist() == ["A31", "LIV", "Mono"]
    cells({"donor_id": ["A29"], "tissue": ["liver"], "cell_type": ["T cell"], "sex": ["male"]}).write_h5ad(
        tmp_path / "copy.h5ad"
    )
    assert immune_atlas(tmp_path / "copy.h5ad").obs["sex"].tolist() == ["male"]


def test_merfish_ages_are_numbers_and_positions_are_found(tmp_path):
    made = cells({"donor_id": ["1", "2"], "age": ["4wk", "90wk"], "cell_type": ["microglia", "astrocyte"]})
    made.X = made.X * 0.37
    made.write_h5ad(tmp_path / "no.h5ad")
    with pytest.raises(FileFormatError, match="center_x"):
        merfish_brain(tmp_path / "no.h5ad")
    made.obs["center_x"], made.obs["center_y"] = [1.0, 2.0], [3.0, 4.0]
    made.write_h5ad(tmp_path / "yes.h5ad")
    adata = merfish_brain(tmp_path / "yes.h5ad")
    assert adata.obs["age_weeks"].tolist() == [4.0, 90.0]
    assert adata.obsm["spatial"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert "counts" not in adata.layers


@pytest.fixture
def geo(tmp_path):
    values = pd.DataFrame(
        np.arange(6).reshape(2, 3), index=["CD8A", "PDCD1"], columns=["bcc.su001.pre_A", "bcc.su001.post_B", "x"]
    )
    values.to_csv(tmp_path / "GSE123813_bcc_scRNA_counts.txt.gz", sep="\t")
    pd.DataFrame(
        {
            "cell.id": ["bcc.su001.post_B", "bcc.su001.pre_A"],
            "patient": ["su001", "su001"],
            "treatment": ["post", "pre"],
            "cluster": ["CD8_ex", "B_cells"],
        }
    ).to_csv(tmp_path / "GSE123813_bcc_all_metadata.txt.gz", sep="\t", index=False)
    return tmp_path


def test_yost_from_the_files_of_geo(geo):
    adata = yost_2019(geo, response={"su001": "yes"})
    assert adata.obs["treatment"].tolist() == ["pre", "post"] and adata.var_names.tolist() == ["CD8A", "PDCD1"]
    assert adata.layers["counts"].toarray().tolist() == [[0.0, 3.0], [1.0, 4.0]]
    assert adata.obs[["donor", "cell_type", "response"]].iloc[1].tolist() == ["su001", "CD8_ex", "yes"]
    with pytest.raises(UnknownNameError, match="su001"):
        yost_2019(geo, response={"su002": "yes"})


def test_yost_header_without_a_corner(geo):
    """Tables written by R have no name over the first column."""
    table = "a\tb\nCD8A\t1\t2\nPDCD1\t0\t5\n"
    (geo / "GSE123813_bcc_scRNA_counts.txt.gz").unlink()
    (geo / "GSE123813_bcc_scRNA_counts.txt").write_text(table.replace("a\tb", "bcc.su001.pre_A\tbcc.su001.post_B"))
    assert yost_2019(geo).layers["counts"].toarray().tolist() == [[1.0, 0.0], [2.0, 5.0]]


def test_yost_refuses_what_it_cannot_read(geo):
    notes = geo / "GSE123813_bcc_all_metadata.txt.gz"
    pd.read_csv(notes, sep="\t").drop(columns="cluster").to_csv(notes, sep="\t", index=False)
    with pytest.raises(FileFormatError, match="cluster"):
        yost_2019(geo)
    notes.unlink()
    with pytest.raises(FileFormatError, match="must hold one file"):
        yost_2019(geo)


@pytest.mark.parametrize("loader", [immune_atlas, merfish_brain, yost_2019])
def test_without_a_path_the_source_is_named(loader):
    with pytest.raises(DownloadError, match=rf"{loader.__name__}\(path="):
        loader()
