from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from sccausal import metrics as m
from sccausal._errors import InputDataError


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    control, true = rng.gamma(2.0, size=(90, 40)), rng.gamma(2.0, size=(70, 40))
    true[:, :8] += 1.5
    true[:, 8:12] *= 0.3
    return true, control


def test_welch_agrees_with_scipy(cells):
    true, control = cells
    found = m.de_test(true, control)
    want = stats.ttest_ind(true, control, equal_var=False)
    np.testing.assert_allclose(found.score, want.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.p, want.pvalue, rtol=1e-7)
    np.testing.assert_allclose(found.q, stats.false_discovery_control(want.pvalue), rtol=1e-7)


def test_wilcoxon_agrees_with_scipy(cells):
    true, control = (np.round(c, 1) for c in cells)  # with ties
    found = m.de_test(true, control, "wilcoxon")
    want = stats.mannwhitneyu(true, control, use_continuity=False, method="asymptotic")
    np.testing.assert_allclose(found.p, want.pvalue, rtol=1e-5)


def test_constant_genes_are_not_significant():
    x = np.ones((10, 3))
    x[:, 2] = np.arange(10)
    for method in ("welch", "wilcoxon"):
        found = m.de_test(x, x[:6], method)  # type: ignore[arg-type]
        assert found.p[:2].tolist() == [1.0, 1.0]


def test_a_perfect_prediction_scores_best(cells):
    true, control = cells
    test = m.de_test(true, control)
    scores = m.de_scores(test, test, top=12)
    for name in ("direction_match", "direction_fidelity", "direction_reach", "de_jaccard"):
        assert scores[name] == 1.0
    assert scores["lfc_nmae"] == 0.0
    assert scores["de_auroc"] > 0.99


def test_no_change_scores_at_the_floor(cells):
    true, control = cells
    scores = m.de_scores(m.de_test(control, control), m.de_test(true, control))
    assert scores["lfc_nmae"] == 1.0
    assert scores["de_auroc"] == 0.5
    assert scores["de_jaccard"] == scores["direction_match"] == scores["direction_reach"] == 0.0
    assert np.isnan(scores["direction_fidelity"])  # nothing was called


def test_the_opposite_change_scores_zero(cells):
    true, control = cells
    good = m.de_test(true, control)
    bad = good._replace(change=-good.change)
    assert m.direction_match(bad, good) == m.direction_fidelity(bad, good) == m.direction_reach(bad, good) == 0.0
    assert m.lfc_nmae(bad, good) == pytest.approx(2.0)


def _test(change, q):
    change, q = np.asarray(change, dtype=float), np.asarray(q, dtype=float)
    return m.DETest(change, change, q, q)


def test_reach_by_hand():
    # ten significant genes; the prediction ranks them in order and errs on the third and the last
    true = _test(np.ones(10), np.full(10, 1e-3))
    change = np.ones(10)
    change[[2, 9]] = -1
    pred = _test(change, np.arange(1, 11) * 1e-4)
    # prefixes: 1, 1, 2/3, 3/4, ..., 8/9 = .889, 8/10: only the first two stay at .9
    assert m.direction_reach(pred, true) == pytest.approx(0.2)
    assert m.direction_reach(pred, true, purity=0.85) == pytest.approx(0.9)


def test_fidelity_counts_called_genes_only():
    true = _test([1, -1, 1, 0], [0.9, 0.9, 0.9, 0.9])
    pred = _test([1, 1, -1, 1], [0.01, 0.01, 0.5, 0.01])
    assert m.direction_fidelity(pred, true) == pytest.approx(0.5)


def test_jaccard_by_hand():
    assert m.de_jaccard(_test([1, 1, 1], [0.01, 0.01, 0.9]), _test([1, 1, 1], [0.9, 0.01, 0.01])) == pytest.approx(
        1 / 3
    )
    assert np.isnan(m.de_jaccard(_test([1.0], [1.0]), _test([1.0], [1.0])))


def test_ranking_agrees_with_scikit_learn(cells):
    true, control = cells
    rng = np.random.default_rng(1)
    test, pred = m.de_test(true, control), m.de_test(true + rng.normal(size=true.shape), control)
    labels = np.zeros(40, dtype=bool)
    labels[np.argsort(-np.abs(test.score))[:12]] = True
    roc, pr = m.de_ranking(pred, test, top=12)
    assert roc == pytest.approx(roc_auc_score(labels, np.abs(pred.change)))
    assert pr == pytest.approx(average_precision_score(labels, np.abs(pred.change)))


def test_groups_must_have_the_same_genes(cells):
    with pytest.raises(InputDataError):
        m.de_test(cells[0], cells[1][:, :3])
