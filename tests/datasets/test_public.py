from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from sccausal._errors import FileFormatError, InputDataError, UnknownNameError
from sccausal.datasets import DownloadError, beeline, kang_2018, norman_2019, papalexi_2021
from sccausal.datasets._public import intervention_labels


def small(obs: dict[str, list[str]], counts: bool = True) -> anndata.AnnData:
    n = len(next(iter(obs.values())))
    values = np.random.default_rng(0).poisson(2.0, (n, 3)).astype(np.float32)
    frame = pd.DataFrame(obs, index=[f"c{i}" for i in range(n)]).astype("category")
    return anndata.AnnData(values if counts else np.log1p(values), obs=frame, var=pd.DataFrame(index=["A", "B", "C"]))


def test_kang_words_become_one_schema(tmp_path):
    made = small({"label": ["ctrl", "stim", "ctrl"], "cell_type": ["B", "NK", "B"], "replicate": ["1", "1", "2"]})
    made.write_h5ad(tmp_path / "kang.h5ad")
    adata = kang_2018(tmp_path / "kang.h5ad")
    assert adata.obs["condition"].tolist() == ["control", "stimulated", "control"]
    assert adata.obs["condition"].cat.categories.tolist() == ["control", "stimulated"]
    assert adata.obs["donor"].tolist() == ["1", "1", "2"]
    assert np.array_equal(adata.layers["counts"], made.X)


def test_norman_pairs_become_one_label(tmp_path):
    made = small({"guide_merged": ["ctrl", "A+ctrl", "B+A", "A+B", "ctrl+B"]})
    made.write_h5ad(tmp_path / "norman.h5ad")
    assert norman_2019(str(tmp_path / "norman.h5ad")).obs["intervention"].tolist() == [
        "control",
        "A",
        "A+B",
        "A+B",
        "B",
    ]


def test_papalexi_from_h5mu_and_unassigned_cells(tmp_path):
    mudata = pytest.importorskip("mudata")
    rna = small({"gene_target": ["NT", "STAT1", "unassigned", "JAK2"], "replicate": ["r1", "r1", "r2", "r2"]})
    mudata.MuData({"rna": rna, "adt": rna[:, :1].copy()}).write(tmp_path / "papalexi.h5mu")
    adata = papalexi_2021(tmp_path / "papalexi.h5mu")
    assert adata.obs["intervention"].tolist() == ["control", "STAT1", "JAK2"]
    assert papalexi_2021(tmp_path / "papalexi.h5mu", keep_unassigned=True).n_obs == 4


def test_labels_of_many_spellings():
    labels = intervention_labels(["NT", "A", "ctrl+A", "B,A", "", "control", "A;B"])
    assert labels.tolist() == ["control", "A", "A", "A+B", "control", "control", "A+B"]
    assert labels.categories[0] == "control"


def test_files_that_do_not_fit_are_refused(tmp_path):
    small({"other": ["x", "y"]}).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(FileFormatError, match="other"):
        norman_2019(tmp_path / "a.h5ad")
    small({"label": ["ctrl", "later"], "cell_type": ["B", "B"]}).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(FileFormatError, match="label"):
        kang_2018(tmp_path / "b.h5ad")
    small({"perturbation": ["A", "B"]}).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(FileFormatError, match="no control cells"):
        norman_2019(tmp_path / "c.h5ad")
    small({"perturbation": ["A", "control"]}, counts=False).write_h5ad(tmp_path / "d.h5ad")
    with pytest.raises(InputDataError, match="counts"):
        norman_2019(tmp_path / "d.h5ad")
    (tmp_path / "e.h5ad").write_text("not a file of this kind")
    with pytest.raises(FileFormatError, match="cannot be read"):
        norman_2019(tmp_path / "e.h5ad")
    with pytest.raises(FileFormatError, match="there is no file"):
        norman_2019(tmp_path / "f.h5ad")
    (tmp_path / "g.csv").write_text("a,b")
    with pytest.raises(FileFormatError, match="h5mu"):
        norman_2019(tmp_path / "g.csv")


@pytest.fixture
def beeline_folder(tmp_path):
    values = pd.DataFrame([[0.5, 1.0, 2.0], [3.0, 0.0, 1.5]], index=["A", "B"], columns=["E1_10", "E2_20", "E3_30"])
    values.to_csv(tmp_path / "ExpressionData.csv")
    edges = [("A", "B", "+"), ("B", "A", "-"), ("A", "A", "-"), ("A", "B", "+")]
    pd.DataFrame(edges, columns=["Gene1", "Gene2", "Type"]).to_csv(tmp_path / "refNetwork.csv", index=False)
    times = pd.DataFrame({"PseudoTime1": [0.1, np.nan, 0.3], "PseudoTime2": [0.1, 0.2, np.nan]}, index=values.columns)
    times.to_csv(tmp_path / "PseudoTime.csv")
    return tmp_path


def test_beeline_original_format(beeline_folder):
    adata = beeline(path=beeline_folder)
    assert adata.shape == (3, 2) and adata.X[2, 1] == 1.5
    assert adata.obs_names[0] == "E1_10"
    assert adata.obs["pseudotime"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert np.isnan(adata.obs["pseudotime_1"].iloc[1])
    network = adata.uns["truth"]["network"]
    assert network.to_numpy().tolist() == [["A", "B", 1.0], ["B", "A", -1.0], ["A", "A", -1.0]]
    assert adata.var["is_regulator"].tolist() == [True, True]
    adata.write_h5ad(beeline_folder / "again.h5ad")


def test_beeline_h5ad_with_several_networks(tmp_path):
    small({"time": ["1", "2"]}).write_h5ad(tmp_path / "expression.h5ad")
    for name, edge in (("string", "A,B"), ("specific", "B,C")):
        (tmp_path / f"{name}.csv").write_text(f"source,target\n{edge}\nA,elsewhere\n")
    with pytest.raises(FileFormatError, match=r"specific.csv, string.csv"):
        beeline(path=tmp_path)
    with pytest.raises(UnknownNameError, match="string"):
        beeline(path=tmp_path, network="strng")
    network = beeline(tmp_path, network="string").uns["truth"]["network"]
    assert network.to_numpy().tolist() == [["A", "B", 1.0]]


def test_beeline_refuses_what_it_cannot_read(beeline_folder):
    with pytest.raises(UnknownNameError, match="Did you mean"):
        beeline("GDS")
    with pytest.raises(FileFormatError, match="either"):
        beeline()
    (beeline_folder / "refNetwork.csv").write_text("x,y\n1,2\n")
    with pytest.raises(FileFormatError, match="Gene1"):
        beeline(path=beeline_folder)


@pytest.mark.parametrize("loader", [kang_2018, norman_2019, papalexi_2021])
def test_offline_error_says_what_to_do(loader, monkeypatch, tmp_path):
    import pertpy.data
    from requests.exceptions import ConnectionError as NoConnection

    def fail() -> None:
        raise NoConnection("no route")

    monkeypatch.setattr(pertpy.data, loader.__name__, fail)
    monkeypatch.setenv("SCCAUSAL_DATA_DIR", str(tmp_path))
    with pytest.raises(DownloadError, match=rf"{loader.__name__}\(path=") as caught:
        loader()
    assert str(tmp_path) in str(caught.value)


def test_real_files_have_the_schema(test_data):
    assert set(kang_2018(test_data / "kang_ifnb.h5ad").obs["condition"]) == {"control", "stimulated"}
    assert "KLF1+MAP2K6" in set(norman_2019(test_data / "norman_subset.h5ad").obs["intervention"])
    assert len(beeline(test_data / "beeline" / "GSD").uns["truth"]["network"]) == 79
