from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, hypergeom

from sccausal._errors import FileFormatError, InputDataError, SetupError
from sccausal.grn import Network, over_representation, read_gene_sets

pytest.importorskip("gseapy")
GENES = [f"g{i}" for i in range(200)]
LISTS = {"C1": GENES[:20], "C2": GENES[15:45], "C3": GENES[45:60]}
SETS = {
    "own": GENES[:10], "shared": [*GENES[:6], *GENES[20:27], *GENES[50:56]], "nowhere": GENES[100:120],
    "wide": GENES[10:190:3], "tiny": GENES[:2], "outside": ["x1", "x2", "x3", "x4", "x5", "x6"],
}  # fmt: skip


def test_is_the_hypergeometric_test():
    table = over_representation(LISTS, SETS, background=GENES)
    assert set(table["term"]) == {"own", "shared", "wide"}  # too small, not measured, or no gene in common
    for row in table.itertuples():
        common = set(LISTS[row.community]) & set(SETS[row.term])
        assert row.overlap == len(common)
        assert set(row.genes.split(";")) == common
        expected = hypergeom.sf(len(common) - 1, 200, row.n_term, row.n_community)
        assert row.p_value == pytest.approx(expected, rel=1e-9)
    for _, group in table.groupby("community"):
        np.testing.assert_allclose(group["q_value"], false_discovery_control(group["p_value"]), rtol=1e-9)


def test_terms_of_half_of_the_communities_are_background():
    table = over_representation(LISTS, SETS, background=GENES).set_index(["community", "term"])
    assert table.loc[("C1", "own"), "enriched"] and not table.loc[("C1", "own"), "is_background"]
    assert table.loc[("C1", "shared"), "n_communities"] == 3
    assert table.loc[("C1", "shared"), "is_background"] and table.loc[("C2", "shared"), "is_background"]


def test_targets_and_background_of_a_network():
    edges = pd.DataFrame({"source": ["g0"] * 10, "target": GENES[100:110], "weight": 1.0})
    network = Network(edges, GENES)
    without = over_representation({"C1": GENES[:5]}, SETS, background=GENES)
    with_targets = over_representation({"C1": GENES[:5]}, SETS, network=network)
    assert "nowhere" not in set(without["term"])
    assert with_targets.set_index("term").loc["nowhere", "overlap"] == 10
    assert with_targets["n_community"].iloc[0] == 15


def test_gmt_files(tmp_path):
    text = "own\tnote\tg0\tg1\tg1\nweighted\t\tg2,1.0\tg3,0.5\nempty\tnote\n"
    (tmp_path / "a.gmt").write_text(text)
    with gzip.open(tmp_path / "a.gmt.gz", "wt") as handle:
        handle.write(text)
    expected = {"own": ["g0", "g1"], "weighted": ["g2", "g3"]}
    assert read_gene_sets(tmp_path / "a.gmt") == expected == read_gene_sets(str(tmp_path / "a.gmt.gz"))
    assert read_gene_sets({"a": ("x", "y", "x")}) == {"a": ["x", "y"]}
    (tmp_path / "b.gmt").write_text("no tabs here\n")
    with pytest.raises(FileFormatError, match="no gene sets"):
        read_gene_sets(tmp_path / "b.gmt")
    (tmp_path / "c.gmt.gz").write_bytes(b"not gzip")
    with pytest.raises(FileFormatError, match="GMT"):
        read_gene_sets(tmp_path / "c.gmt.gz")
    with pytest.raises(FileNotFoundError):
        read_gene_sets(tmp_path / "absent.gmt")


def test_real_gene_sets(test_data):
    sets = read_gene_sets(test_data / "priors" / "go_bp_2021.gmt.gz")
    assert len(sets) == 6036
    assert "STAT1" in sets["cytokine-mediated signaling pathway (GO:0019221)"]
    assert len(read_gene_sets(test_data / "priors" / "hallmark.gmt")) == 50


def test_bad_input():
    with pytest.raises(InputDataError, match="organism"):
        over_representation(LISTS, {"a": ["Sox2", "Klf4"]}, background=GENES)
    with pytest.raises(InputDataError, match="'C9'"):
        over_representation({"C9": ["x"]}, SETS, background=GENES)
    with pytest.raises(SetupError, match="fdr"):
        over_representation(LISTS, SETS, fdr=0)
    with pytest.raises(InputDataError, match="shares a gene"):
        over_representation({"C1": GENES[:5]}, {"nowhere": GENES[100:120]}, background=GENES)
