from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sccausal._errors import FileFormatError, InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network

GENES = ["a", "b", "c", "d"]


def make(**kwargs) -> Network:
    frame = pd.DataFrame(
        {
            "source": ["a", "a", "b", "d"],
            "target": ["b", "c", "c", "d"],
            "weight": [0.5, -2.0, 0.5, 1.0],
            "stability": [1.0, 0.8, 0.2, 0.1],
        }
    )
    return Network(frame, GENES, {"method": "test", "n": 3}, **kwargs)


def matrices():
    entry = st.sampled_from([0.0, 0.0, 0.5, -0.5, 1.0, -3.0])
    return st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(entry, min_size=n, max_size=n), min_size=n, max_size=n).map(np.array)
    )


def test_edges_are_sorted_by_size_with_ties_by_name():
    frame = make().to_frame()
    assert list(frame.columns) == ["source", "target", "weight", "stability"]
    assert [*zip(frame.source, frame.target, strict=True)] == [("a", "c"), ("d", "d"), ("a", "b"), ("b", "c")]
    assert make().sign.tolist() == [-1, 1, 1, 1]


def test_the_table_is_a_copy():
    network = make()
    network.to_frame()["weight"] = 0
    assert network == make()


@given(matrices())
@settings(max_examples=60, deadline=None)
def test_matrix_round_trip(matrix):
    genes = [f"g{i}" for i in range(len(matrix))]
    network = Network.from_matrix(matrix, genes, self_loops=True)
    np.testing.assert_array_equal(network.to_matrix(), matrix)
    assert network == Network.from_matrix(sparse.csc_matrix(matrix), genes, self_loops=True)
    off = matrix * (1 - np.eye(len(matrix)))
    np.testing.assert_array_equal(Network.from_matrix(matrix, genes).to_matrix(), off)
    order = genes[::-1]
    np.testing.assert_array_equal(network.to_matrix(order), matrix[::-1, ::-1])


def test_rows_are_sources_everywhere():
    matrix = np.zeros((2, 4))
    matrix[1, 2] = 5.0  # b -> c
    network = Network.from_matrix(matrix, GENES, regulators=["a", "b"])
    assert network.to_frame().iloc[0].tolist() == ["b", "c", 5.0]
    assert network.to_matrix()[1, 2] == 5.0
    assert network.to_networkx()["b"]["c"]["weight"] == 5.0
    assert network.to_anndata()["b", "c"].X.toarray().item() == 5.0
    wide = network.to_celloracle()
    assert wide.columns.tolist() == ["peak_id", "gene_short_name", "b"]
    assert wide["gene_short_name"].tolist() == ["c"] and wide["b"].tolist() == [1.0]


def test_from_matrix_threshold_and_extra():
    matrix = np.array([[0, 0.2], [-0.9, 0]])
    network = Network.from_matrix(
        matrix, ["a", "b"], threshold=0.2, extra={"stability": np.array([[0, 0.1], [0.7, 0]])}
    )
    assert network.to_frame().to_dict("records") == [{"source": "b", "target": "a", "weight": -0.9, "stability": 0.7}]
    with pytest.raises(SetupError, match="rows are sources"):
        Network.from_matrix(matrix[:1], ["a", "b"])
    with pytest.raises(InputDataError, match="not finite"):
        Network.from_matrix(matrix * np.nan, ["a", "b"])


def test_celloracle_frame_has_one_row_per_regulated_gene():
    wide = make().to_celloracle()
    assert wide["gene_short_name"].tolist() == ["b", "c", "d"]
    assert wide[["a", "b", "d"]].to_numpy().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert wide["peak_id"].is_unique


def test_networkx_keeps_isolated_genes_and_columns():
    graph = make().to_networkx()
    assert isinstance(graph, nx.DiGraph)
    assert set(graph) == set(GENES)
    assert graph["a"]["c"] == {"weight": -2.0, "stability": 0.8}
    isolated = Network(make().to_frame(), [*GENES, "e"]).to_networkx()
    assert "e" in isolated


def test_anndata_layers():
    adata = make().to_anndata()
    assert adata.layers["stability"].toarray()[0, 2] == 0.8
    assert adata.uns["network"]["method"] == "test"
    assert adata.obs["n_targets"].tolist() == [2, 1, 0, 1]


def test_top_and_self_loops():
    assert make().top(2).to_frame()["weight"].tolist() == [-2.0, 1.0]
    assert len(make().top(99)) == 4
    assert ("d", "d") not in {
        *zip(*make().drop_self_loops().to_frame()[["source", "target"]].to_numpy().T, strict=True)
    }
    assert make().drop_self_loops().genes == GENES
    with pytest.raises(SetupError):
        make().top(-1)


def test_equality_ignores_order_and_metadata_but_not_content():
    shuffled = Network(make().to_frame().sample(frac=1, random_state=0), GENES)
    assert shuffled == make()
    changed = make().to_frame()
    changed.loc[0, "weight"] = -2.1
    assert Network(changed, GENES) != make()
    assert Network(make().to_frame(), [*GENES, "e"]) != make()


@pytest.mark.parametrize("ending", ["csv", "parquet", "graphml"])
@pytest.mark.parametrize("regulators", [None, ["a", "b", "d"]])
def test_write_and_read(tmp_path, ending, regulators):
    network = Network(make().to_frame(), [*GENES, "NA"], {"method": "test", "values": [1, 2]}, regulators)
    path = network.write(tmp_path / f"net.{ending}")
    back = Network.read(path)
    assert back == network
    assert back.metadata == network.metadata
    assert back.regulators == network.regulators


@pytest.mark.parametrize("ending", ["csv", "parquet", "graphml"])
def test_empty_network(tmp_path, ending):
    network = Network.from_matrix(np.zeros((4, 4)), GENES)
    assert len(network) == 0 and network.to_celloracle().empty
    back = Network.read(network.write(tmp_path / f"net.{ending}"))
    assert back.genes == GENES and len(back) == 0


def test_csv_is_a_plain_table_and_names_like_na_survive(tmp_path):
    frame = pd.DataFrame({"source": ["NA"], "target": ["nan"], "weight": [1 / 3]})
    path = Network(frame).write(tmp_path / "net.csv")
    (tmp_path / "net.csv.json").unlink()
    assert path.read_text().splitlines()[0] == "source,target,weight"
    back = Network.read(path)
    assert back.genes == ["NA", "nan"]
    assert back.to_frame()["weight"].item() == 1 / 3


def test_bad_input_raises_typed_errors(tmp_path):
    frame = make().to_frame()
    with pytest.raises(UnknownNameError, match="Did you mean 'Gata1'"):
        Network(pd.DataFrame({"source": ["Gata1x"], "target": ["b"], "weight": [1.0]}), ["Gata1", "b"])
    with pytest.raises(UnknownNameError, match="source"):
        Network(frame, GENES, regulators=["a", "b"])
    with pytest.raises(InputDataError, match="more than once"):
        Network(pd.concat([frame, frame]), GENES)
    with pytest.raises(InputDataError, match="d -> d"):
        Network(frame.assign(weight=[1, np.nan, 1, 1]), GENES)
    with pytest.raises(InputDataError, match="twice"):
        Network(frame, [*GENES, "a"])
    with pytest.raises(SetupError, match="weight"):
        Network(frame.drop(columns="weight"), GENES)
    with pytest.raises(FileFormatError, match="graphml"):
        make().write(tmp_path / "net.xlsx")
    with pytest.raises(UnknownNameError):
        make().to_matrix(["a", "zzz"])


@pytest.mark.parametrize("ending", ["csv", "parquet", "graphml"])
def test_damaged_files(tmp_path, ending):
    path = tmp_path / f"net.{ending}"
    path.write_bytes(b"\x00\x01 not a network")
    with pytest.raises(FileFormatError):
        Network.read(path)
    with pytest.raises(FileNotFoundError):
        Network.read(tmp_path / f"absent.{ending}")


def test_repr_shows_size_and_method():
    assert "4 edges, 4 genes" in repr(make()) and "method test" in repr(make())
