from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from sccausal._errors import FileFormatError, InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network, base_network, network_from_celloracle, network_to_links

PAIRS = {("A", "B"), ("A", "C"), ("B", "C")}


def pairs(network: Network) -> set[tuple[str, str]]:
    frame = network.to_frame()
    return set(zip(frame["source"], frame["target"], strict=True))


def table() -> pd.DataFrame:
    return pd.DataFrame({"tf": ["A", "A", "B", "A"], "target": ["B", "C", "C", "B"], "mor": [1, -1, 1, 1.0]})


def test_every_form_gives_the_same_edges(tmp_path):
    network = base_network(table())
    assert pairs(network) == PAIRS
    assert network.regulators == ["A", "B"]
    assert base_network(network) is network
    assert pairs(base_network(network.to_celloracle())) == PAIRS
    assert pairs(base_network({"B": ["A"], "C": ["A", "B"]})) == PAIRS
    table().to_csv(tmp_path / "net.csv", index=False)
    with gzip.open(tmp_path / "net.tsv.gz", "wt") as handle:
        table().to_csv(handle, index=False, sep="\t")
    table().to_parquet(tmp_path / "net.parquet")
    network.write(tmp_path / "net.graphml")
    for name in ("net.csv", "net.tsv.gz", "net.parquet", "net.graphml"):
        assert pairs(base_network(tmp_path / name)) == PAIRS, name


def test_signs_and_levels():
    frame = table().assign(confidence=["A", "B", "C", "A"])
    assert base_network(frame).to_frame().set_index(["source", "target"])["weight"].to_dict() == {
        ("A", "B"): 1.0, ("A", "C"): -1.0, ("B", "C"): 1.0,
    }  # fmt: skip
    assert pairs(base_network(frame, levels=["A", "B"])) == {("A", "B"), ("A", "C")}
    with pytest.raises(UnknownNameError, match="confidence"):
        base_network(table(), levels=["A"])


def test_gene_called_na_survives(tmp_path):
    pd.DataFrame({"source": ["NA"], "target": ["NAN"]}).to_csv(tmp_path / "net.csv", index=False)
    assert pairs(base_network(tmp_path / "net.csv")) == {("NA", "NAN")}


def test_dorothea(test_data):
    network = base_network(test_data / "priors" / "dorothea_human_ABC.csv.gz")
    assert len(network.regulators) == 271
    assert len(network) == 13_223


def test_bad_input(tmp_path):
    with pytest.raises(SetupError, match="'target'"):
        base_network(pd.DataFrame({"source": ["A"]}))
    with pytest.raises(SetupError, match="int"):
        base_network(3)
    with pytest.raises(FileNotFoundError, match="dorothea"):
        base_network("dorotea")
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(FileFormatError):
        base_network(tmp_path / "broken.parquet")
    with pytest.raises(InputDataError, match="no edge"):
        base_network({"B": []})


class Links:
    """What is read of CellOracle's class."""

    def __init__(self):
        frame = pd.DataFrame(
            {
                "source": pd.Categorical(["A", "B"]), "target": ["B", "C"], "coef_mean": [0.5, -1.0],
                "coef_abs": [0.5, 1.0], "p": [0.2, 1e-9], "-logp": [0.7, 9.0],
            }
        )  # fmt: skip
        self.links_dict = {"T": frame, "1": frame.iloc[:1]}


def test_links_in_and_out():
    network = network_from_celloracle(Links(), "T")
    frame = network.to_frame()
    assert frame["weight"].tolist() == [-1.0, 0.5]
    assert frame["p_value"].tolist() == [1e-9, 0.2]
    assert network.metadata["cluster"] == "T"
    assert len(network_from_celloracle(Links(), "T", p_value=0.01)) == 1
    back = network_to_links(network)
    assert list(back.columns) == ["source", "target", "coef_mean", "coef_abs", "p", "-logp"]
    np.testing.assert_allclose(back["-logp"], [9.0, 0.69897], rtol=1e-5)
    again = network_from_celloracle({"T": back}).to_frame()
    columns = ["source", "target", "weight", "p_value"]
    pd.testing.assert_frame_equal(again[columns], frame[columns], check_dtype=False)
    with pytest.raises(SetupError, match="2 clusters"):
        network_from_celloracle(Links())
    with pytest.raises(UnknownNameError, match="cluster"):
        network_from_celloracle(Links(), "B")
