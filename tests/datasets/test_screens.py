"""Screens of the papers, read from small files made in the format of the real ones."""

from __future__ import annotations

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

from sccausal._errors import FileFormatError, InputDataError, UnknownNameError
from sccausal.datasets import DownloadError, beeline, joung_2023, replogle_2022, wessels_2023


def screen(obs: dict[str, list], var: pd.DataFrame | None = None) -> ad.AnnData:
    n = len(next(iter(obs.values())))
    values = np.random.default_rng(0).poisson(2.0, (n, 3)).astype(np.float32)
    var = pd.DataFrame(index=["KLF1", "GATA1", "B"]) if var is None else var
    return ad.AnnData(sparse.csr_matrix(values), obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]), var=var)


def test_joung_joins_reading_frames_and_controls(tmp_path):
    factors = ["TFORF0001-HIF3A", "TFORF0002-HIF3A", "TFORF3549-GFP", "TFORF3550-mCherry", "TFORF1234-KLF1"]
    screen({"TF": factors, "batch": ["1"] * 5}).write_h5ad(tmp_path / "atlas.h5ad")
    adata = joung_2023(tmp_path / "atlas.h5ad")
    assert adata.obs["intervention"].tolist() == ["HIF3A", "HIF3A", "control", "control", "KLF1"]
    apart = joung_2023(tmp_path / "atlas.h5ad", isoforms=True).obs["intervention"].tolist()
    assert apart == ["TFORF0001-HIF3A", "TFORF0002-HIF3A", "control", "control", "TFORF1234-KLF1"]
    assert "counts" in adata.layers


def test_replogle_of_the_authors_and_of_scperturb(tmp_path):
    var = pd.DataFrame({"gene_name": ["KLF1", "GATA1", "B"]}, index=["ENSG01", "ENSG02", "ENSG03"])
    screen({"gene": ["non-targeting", "KLF1", "GATA1"], "gem_group": [1, 1, 2]}, var).write_h5ad(tmp_path / "own.h5ad")
    adata = replogle_2022("rpe1", tmp_path / "own.h5ad")
    assert adata.obs["intervention"].tolist() == ["control", "KLF1", "GATA1"]
    assert adata.var_names.tolist() == ["KLF1", "GATA1", "B"] and adata.var["gene_id"].tolist() == list(var.index)
    assert adata.obs["batch"].tolist() == ["1", "1", "2"]
    screen({"perturbation": ["control", "KLF1", "GATA1"]}).write_h5ad(tmp_path / "other.h5ad")
    assert replogle_2022(path=tmp_path / "other.h5ad").obs["intervention"].tolist() == ["control", "KLF1", "GATA1"]


def test_replogle_refuses_another_screen(tmp_path):
    places = ["chr1.10050_top_two_chr11.1801_top_two", "chrX.5_top_two", "nan"]
    screen({"perturbation": places}).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(FileFormatError, match="another screen"):
        replogle_2022(path=tmp_path / "a.h5ad")
    with pytest.raises(DownloadError, match="figshare"):
        replogle_2022()
    with pytest.raises(UnknownNameError, match="rpe1"):
        replogle_2022("rpe")


def test_replogle_downloads_through_pertpy(monkeypatch):
    import pertpy.data

    made = screen({"perturbation": ["control", "KLF1", "GATA1"]})
    monkeypatch.setattr(pertpy.data, "replogle_2022_rpe1", lambda: made)
    assert replogle_2022("rpe1").obs["intervention"].tolist() == ["control", "KLF1", "GATA1"]


def lane(folder, number: int, barcodes: list[str]) -> None:
    """One 10x matrix as GEO holds it, with the lane in the name."""
    stem = f"THP1-CaRPool-seq_and_HEK293FTstabRNA.GEXGDO{number}."
    values = np.random.default_rng(number).poisson(3.0, (3, len(barcodes)))
    mmwrite(folder / f"{stem}matrix.mtx", sparse.coo_matrix(values))
    (folder / f"{stem}matrix.mtx.gz").write_bytes(gzip.compress((folder / f"{stem}matrix.mtx").read_bytes()))
    (folder / f"{stem}matrix.mtx").unlink()
    genes = "".join(f"ENSG0{i}\tgene{i}\tGene Expression\n" for i in range(3))
    (folder / f"{stem}features.tsv.gz").write_bytes(gzip.compress(genes.encode()))
    (folder / f"{stem}barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{b}\n" for b in barcodes).encode()))


def test_wessels_from_geo_and_from_h5ad(tmp_path):
    geo = tmp_path / "geo"
    geo.mkdir()
    lane(geo, 1, ["AAA-1", "CCC-1"])
    lane(geo, 2, ["AAA-1", "GGG-1"])
    notes = pd.DataFrame(
        {"GenePair": ["NT_NT", "NT_HDAC3", "KEAP1_HDAC3"], "TenX.Lane": ["L1", "L1", "L2"]},
        index=["L1_AAA-1", "L1_CCC-1", "L2_GGG-1"],
    )
    notes.to_csv(geo / "GSE213957_THP1-CaRPool-seq.metadata.tsv", sep="\t")
    adata = wessels_2023(geo)
    assert adata.obs["intervention"].tolist() == ["control", "HDAC3", "HDAC3+KEAP1"]
    assert adata.obs["batch"].tolist() == ["1", "1", "2"] and adata.n_vars == 3
    expected = np.random.default_rng(2).poisson(3.0, (3, 2))[:, 1]
    assert adata.layers["counts"][2].toarray().ravel().tolist() == expected.tolist()
    screen({"perturbation": ["control", "HDAC3", "KEAP1_HDAC3"]}).write_h5ad(tmp_path / "sc.h5ad")
    assert wessels_2023(tmp_path / "sc.h5ad").obs["intervention"].tolist() == ["control", "HDAC3", "HDAC3+KEAP1"]
    notes.rename(index=lambda i: f"x{i}").to_csv(geo / "GSE213957_THP1-CaRPool-seq.metadata.tsv", sep="\t")
    with pytest.raises(FileFormatError, match="no barcode"):
        wessels_2023(geo)
    (geo / "GSE213957_THP1-CaRPool-seq.metadata.tsv").unlink()
    with pytest.raises(FileFormatError, match="lacks the metadata"):
        wessels_2023(geo)


@pytest.mark.parametrize("loader", [joung_2023, wessels_2023])
def test_without_a_path_the_source_is_named(loader):
    with pytest.raises(DownloadError, match=rf"GSE2\d+.*{loader.__name__}\(path="):
        loader()


def test_log_values_are_refused(tmp_path):
    made = screen({"TF": ["TFORF0001-HIF3A", "TFORF3549-GFP"]})
    made.X = made.X.log1p()
    made.write_h5ad(tmp_path / "log.h5ad")
    with pytest.raises(InputDataError, match="counts"):
        joung_2023(tmp_path / "log.h5ad")


def test_real_beeline_set_beside_its_gene_order(tmp_path):
    """As mESC of BEELINE: an order of the genes and several networks stand beside the expression."""
    table = pd.DataFrame(np.arange(6.0).reshape(3, 2), index=["SOX2", "POU5F1", "KLF4"], columns=["c1", "c2"])
    table.to_csv(tmp_path / "ExpressionData.csv")
    pd.DataFrame({"VGAMpValue": [0.1] * 3}, index=table.index).to_csv(tmp_path / "GeneOrdering.csv")
    for name in ("STRING-network", "mESC-ChIP-seq-network"):
        pd.DataFrame([("SOX2", "KLF4")], columns=["Gene1", "Gene2"]).to_csv(tmp_path / f"{name}.csv", index=False)
    adata = beeline(path=tmp_path, network="STRING-network")
    assert adata.uns["truth"]["network"].to_numpy().tolist() == [["SOX2", "KLF4", 1.0]]
    with pytest.raises(FileFormatError, match=r"found: STRING-network.csv, mESC-ChIP-seq-network.csv"):
        beeline(path=tmp_path)
