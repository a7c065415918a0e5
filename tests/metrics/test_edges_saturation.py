from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError, UnknownNameError

GENES = ["A", "B", "C", "D"]


@pytest.fixture
def cells():
    """A drives B and nothing else; C is intervened on without any consequence."""
    rng = np.random.default_rng(0)
    label = np.repeat(["control", "A", "C"], [200, 60, 60])
    X = rng.normal(size=(320, 4))
    X[label == "A", 0] += 3
    X[label == "C", 2] += 3
    X[:, 1] += 0.8 * X[:, 0]
    return X, label


def edges(*pairs: tuple[str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["source", "target", "weight"])


def values(network, cells, **more):
    return m.interventional_scores(network, *cells, GENES, "control", **more).set_index("metric")["value"]


def test_the_true_edge_scores_best(cells):
    right, wrong = values(edges(("A", "B", 1.0)), cells), values(edges(("C", "D", 1.0)), cells)
    assert right["edge_precision"] == 1
    assert right["false_omission_rate"] == 0
    assert wrong["edge_precision"] == 0
    assert wrong["false_omission_rate"] == pytest.approx(1 / 5)
    X, label = cells
    base = X[label == "control"]
    want = wasserstein_distance(X[label == "A", 1], base[:, 1]) / base[:, 1].std()
    assert right["edge_wasserstein"] == pytest.approx(want)


def test_edges_from_genes_without_intervention_cannot_be_judged(cells):
    found = values(edges(("A", "B", 1.0), ("B", "D", 5.0), ("A", "A", 9.0)), cells)
    assert found["n_edges"] == 1


def test_only_the_strongest_edges_count_if_asked(cells):
    found = values(edges(("A", "B", 2.0), ("A", "C", 1.0), ("C", "D", 0.5)), cells, n_edges=1)
    assert (found["n_edges"], found["edge_precision"]) == (1, 1)


def test_chance_is_the_share_of_moved_pairs(cells):
    table = m.interventional_scores(edges(("A", "B", 1.0)), *cells, GENES, "control").set_index("metric")
    assert table.loc["edge_precision", "chance"] == pytest.approx(1 / 6)


def test_bad_input_of_edges(cells):
    with pytest.raises(SetupError, match="Five control cells"):
        m.interventional_scores(edges(("A", "B", 1.0)), *cells, GENES, "none")
    with pytest.raises(InputDataError):
        m.interventional_scores(edges(("A", "B", 1.0)), cells[0], cells[1], GENES[:3], "control")


def frame(rule: list[float]) -> pd.DataFrame:
    rows = []
    for i, value in enumerate(rule):
        for method, v in (("no change", 1.0), ("rule", value), ("poor", 0.95), ("duplicate", 0.0)):
            rows.append((method, f"g{i}", "energy_distance", v))
    return pd.DataFrame(rows, columns=["method", "group", "metric", "value"])


def test_strata_by_hand():
    table = m.saturation(frame([0.8, 0.3, 0.05]), "energy_distance", baselines=["rule", "poor"])
    assert table["rule"].unique().tolist() == ["rule"]
    np.testing.assert_allclose(table["share"], [0.2, 0.7, 0.95])
    assert table["stratum"].tolist() == ["open", "partly taken", "saturated"]


def test_groups_without_effect_have_no_share():
    rows = frame([0.5])
    rows.loc[rows["method"] == "duplicate", "value"] = 1.2
    table = m.saturation(rows, "energy_distance", baselines=["rule"])
    assert table["share"].isna().all()
    assert table["stratum"].tolist() == ["no effect"]
    with pytest.raises(UnknownNameError, match="additive"):
        m.saturation(rows, "energy_distance", baselines=["additive"])


def test_de_overlap_by_hand():
    def test(change, q):
        change, q = np.asarray(change, float), np.asarray(q, float)
        return m.DETest(change, change, q, q)

    true = test([1, 1, 1, 0, 0], [0, 0, 0, 1, 1])
    pred = test([3, 0.1, 0, 2, 1], [0, 0, 1, 0, 0])
    assert m.de_overlap(pred, true) == pytest.approx(1 / 3)  # of the three largest calls 0, 3, 4 one is right
    assert m.de_overlap(pred, true, size=np.array([1, 9, 0, 2, 0.5])) == pytest.approx(2 / 3)
    assert np.isnan(m.de_overlap(pred, test([1] * 5, [1] * 5)))


def test_own_gene_is_left_out_of_the_discrimination_score():
    true = np.array([[0.0, 5.0, 1.0], [5.0, 0.0, 2.0]])
    pred = np.array([[9.0, 5.0, 1.0], [5.0, 0.0, 2.0]])
    with_own = m.discrimination_score(pred, true, metric="l1")
    without = m.discrimination_score(pred, true, metric="l1", own=[0, -1])
    assert with_own.tolist() == [1.0, 1.0]
    assert without.tolist() == [1.0, 1.0]
    pred[0] = [5.0, 3.0, 1.0]  # wrong only by its own gene
    assert m.discrimination_score(pred, true, metric="l1").tolist() == [0.0, 1.0]
    assert m.discrimination_score(pred, true, metric="l1", own=[0, -1]).tolist() == [1.0, 1.0]
