from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network

GENES = ["a", "b", "c", "d", "e", "f"]


def _value(table: pd.DataFrame, metric: str, column: str = "value") -> float:
    return float(table.set_index("metric").loc[metric, column])


@pytest.fixture
def truth():
    return pd.DataFrame({"source": ["a", "a", "b"], "target": ["b", "c", "d"]})


def test_candidates_are_regulators_x_genes_without_self_loops(truth):
    net = pd.DataFrame(np.ones((6, 6)), GENES, GENES)
    universe = m.edge_universe(net, truth)
    assert universe.regulators == ["a", "b"] and universe.genes == ["a", "b", "c", "d"]
    assert universe.candidate.sum() == 2 * 4 - 2
    assert universe.labels.sum() == 3
    wider = m.edge_universe(net, Network(truth.assign(weight=1.0), GENES))
    assert wider.candidate.sum() == 6  # genes of the truth are those with an edge


def test_early_precision_by_hand(truth):
    edges = [("a", "b", 3.0), ("b", "a", -2.5), ("a", "c", 2.0), ("a", "d", 1.0)]
    net = pd.DataFrame(edges, columns=["source", "target", "weight"])
    table = m.graph_scores(net, truth)
    # top 3 of 6 candidates hold 2 of the 3 true edges: precision 2/3, density 1/2
    assert _value(table, "epr") == pytest.approx(4 / 3)
    assert _value(table, "early_precision") == pytest.approx(2 / 3)
    assert table["n_edges_taken"].unique().tolist() == [3]
    assert table["n_candidates"].unique().tolist() == [6]


def test_all_ties_at_the_cut_are_taken():
    scores = np.array([5.0, 4.0, 4.0, 4.0, 1.0])
    labels = np.array([True, True, False, False, False])
    found = m.early_precision(scores, labels)
    assert found.n_taken == 4 and found.early_precision == pytest.approx(0.5)
    # the order of tied edges cannot help
    assert m.early_precision(scores, labels[[0, 2, 1, 3, 4]]).early_precision == pytest.approx(0.5)


def test_a_short_list_cannot_fake_epr():
    labels = np.array([True] * 10 + [False] * 90)
    scores = np.zeros(100)
    scores[0] = 1.0
    raw = m.early_precision(scores, labels)
    assert raw.epr == pytest.approx(10.0) and raw.n_taken == 1
    filled = m.filled_early_precision(scores, labels)
    # one hit, nine places filled at the density 9/99 of the rest
    assert filled == pytest.approx((1 + 9 * 9 / 99) / 10 / 0.1)


def test_filling_changes_nothing_for_a_full_list():
    rng = np.random.default_rng(0)
    scores, labels = rng.random(200), rng.random(200) < 0.1
    assert m.filled_early_precision(scores, labels) == m.early_precision(scores, labels).epr


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_areas_agree_with_scikit_learn(seed, ties):
    rng = np.random.default_rng(seed)
    scores, labels = rng.random(60), rng.random(60) < 0.3
    labels[:2] = True, False
    scores = np.round(scores, 1) if ties else scores
    assert m.auprc(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    assert m.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_chance_is_one_and_truth_is_best():
    rng = np.random.default_rng(0)
    A = (rng.random((30, 30)) < 0.1) * 1.0
    np.fill_diagonal(A, 0)
    names = [f"g{i}" for i in range(30)]
    frame = pd.DataFrame(A, names, names)
    perfect = m.graph_scores(frame, frame)
    assert _value(perfect, "early_precision") == _value(perfect, "auroc") == _value(perfect, "auprc") == 1.0
    random = [m.graph_scores(pd.DataFrame(rng.random((30, 30)), names, names), frame, n_null=0) for _ in range(40)]
    assert np.mean([_value(t, "epr") for t in random]) == pytest.approx(1.0, abs=0.15)
    assert np.mean([_value(t, "auroc") for t in random]) == pytest.approx(0.5, abs=0.03)


def test_symmetric_weights_have_no_direction():
    rng = np.random.default_rng(0)
    S = rng.random((8, 8))
    truth = np.triu(np.ones((8, 8)), 1)
    assert m.direction_accuracy(S + S.T, truth) == 0.5
    assert m.direction_accuracy(truth, truth) == 1.0
    assert m.direction_accuracy(truth.T, truth) == 0.0
    assert np.isnan(m.direction_accuracy(truth, np.ones((8, 8))))  # every pair is true both ways
    with pytest.raises(SetupError):
        m.direction_accuracy(truth, truth[:4])


def test_shd_by_hand():
    truth = np.zeros((4, 4))
    truth[0, 1] = truth[1, 2] = 1
    assert m.shd(truth, truth) == 0
    assert m.shd(truth.T, truth) == 2  # two reversals
    more = truth.copy()
    more[2, 3] = 1
    more[0, 1] = 0
    assert m.shd(more, truth) == 2  # one added, one missing


def test_sign_scores():
    truth = pd.DataFrame({"source": ["a", "a", "b"], "target": ["b", "c", "d"], "sign": ["+", "-", "+"]})
    right = pd.DataFrame({"source": ["a", "a", "b"], "target": ["b", "c", "d"], "weight": [1.0, -1.0, 1.0]})
    wrong = right.assign(weight=-right["weight"])
    assert _value(m.graph_scores(right, truth), "signed_epr") == pytest.approx(2.0)
    assert _value(m.graph_scores(right, truth), "sign_accuracy") == 1.0
    assert _value(m.graph_scores(wrong, truth), "signed_epr") == 0.0
    assert _value(m.graph_scores(wrong, truth), "epr") == pytest.approx(2.0)


def test_nulls_tell_degree_from_edges():
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(40)]
    # truth made by node degree alone: hubs x frequent targets
    out, into = rng.gamma(0.5, size=40), rng.gamma(0.5, size=40)
    chance = out[:, None] * into[None, :]
    truth = pd.DataFrame((rng.random((40, 40)) < 0.4 * chance / chance.mean()) * 1.0, names, names)
    net = pd.DataFrame(chance * rng.gamma(3.0, size=(40, 40)), names, names)
    table = m.graph_scores(net, truth)
    assert _value(table, "auprc_ratio", "null_degree") > 0.9 * _value(table, "auprc_ratio")
    assert _value(table, "auprc_ratio", "null_shuffled") < 0.8 * _value(table, "auprc_ratio")


def test_network_matrix_and_table_agree(truth):
    A = np.random.default_rng(0).normal(size=(6, 6))
    frame = pd.DataFrame(A, GENES, GENES)
    net = Network.from_matrix(A, GENES)
    first, second = m.graph_scores(frame, truth), m.graph_scores(net, truth)
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(first, m.graph_scores(net.to_frame(), truth))


def test_unmeasured_genes_leave_the_candidates(truth):
    small = Network.from_matrix(np.eye(3, k=1), ["a", "b", "c"])
    assert m.edge_universe(small, truth).genes == ["a", "b", "c"]


def test_errors(truth):
    net = pd.DataFrame(np.ones((6, 6)), GENES, GENES)
    with pytest.raises(UnknownNameError, match="'a'"):
        m.graph_scores(net, truth, regulators=["A"])
    with pytest.raises(InputDataError, match="true"):
        m.graph_scores(Network.from_matrix(np.zeros((2, 2)), ["x", "y"]), truth)
    with pytest.raises(SetupError):
        m.graph_scores(np.ones((3, 3)), truth)
    with pytest.raises(InputDataError):
        m.graph_scores(pd.DataFrame(np.full((6, 6), np.nan), GENES, GENES), truth)
