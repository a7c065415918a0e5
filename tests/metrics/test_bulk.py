from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError


@pytest.fixture
def means(rng=None):
    rng = np.random.default_rng(0)
    control = rng.gamma(2.0, size=40)
    true = control + rng.normal(size=40)
    return true + 0.3 * rng.normal(size=40), true, control


def test_errors_agree_with_scikit_learn(means):
    pred, true, _ = means
    assert m.rmse(pred, true) == pytest.approx(np.sqrt(mean_squared_error(true, pred)))
    assert m.mae(pred, true) == pytest.approx(mean_absolute_error(true, pred))
    assert m.r2(pred, true) == pytest.approx(r2_score(true, pred))
    weights = np.linspace(0, 1, 40)
    assert m.wmse(pred, true, weights) == pytest.approx(mean_squared_error(true, pred, sample_weight=weights))


def test_correlations_agree_with_scipy(means):
    pred, true, control = means
    assert m.pearson_change(pred, true, control) == pytest.approx(stats.pearsonr(pred - control, true - control)[0])
    assert m.pearson_reference(pred, true, control) == pytest.approx(stats.pearsonr(pred - control, true - control)[0])
    assert m.r2(pred, true, "pearson") == pytest.approx(stats.linregress(true, pred).rvalue ** 2)


def test_normalised_mse_by_hand():
    control, true = np.zeros(2), np.array([3.0, 4.0])
    assert m.normalised_mse(control, true, control) == 1.0
    assert m.normalised_mse(true, true, control) == 0.0
    assert m.normalised_mse(np.array([3.0, 3.0]), true, control) == pytest.approx(1 / 25)
    assert m.normalised_mse(-true, true, control) == pytest.approx(4.0)
    assert np.isnan(m.normalised_mse(true, control, control))


def test_no_change_names_no_gene(means):
    _, true, control = means
    assert m.pearson_change(control, true, control) == 0.0
    assert m.pearson_change(control + 1.0, true, control) == 0.0


def test_r2_kinds_differ_on_a_scaled_prediction(means):
    _, true, _ = means
    assert m.r2(0.5 * true, true, "pearson") == pytest.approx(1.0)
    assert m.r2(0.5 * true, true) < 0.9
    with pytest.raises(SetupError):
        m.r2(true, true, "spearman")  # type: ignore[arg-type]


def test_weights_come_from_responding_genes():
    rng = np.random.default_rng(0)
    control, true = rng.normal(size=(200, 30)), rng.normal(size=(200, 30))
    true[:, :3] += 3.0
    weights = m.de_weights(true, control)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[:3].sum() > 0.95
    assert set(m.top_de_genes(true, control, 3)) == {0, 1, 2}
    np.testing.assert_allclose(m.de_weights(control, control), 1 / 30)


def test_split_half_is_a_partition_and_repeatable():
    a, b = m.split_half(11, seed=3)
    assert sorted([*a, *b]) == list(range(11)) and len(a) == 5
    assert np.array_equal(a, m.split_half(11, seed=3)[0])


def test_discrimination_by_hand():
    true = np.eye(3)
    assert m.discrimination_score(true, true).tolist() == [1.0, 1.0, 1.0]
    # the first prediction is the second truth: of three truths its own ties for last
    swapped = true[[1, 0, 2]]
    assert m.discrimination_score(swapped, true, metric="l1").tolist() == [0.25, 0.25, 1.0]
    assert m.discrimination_score(swapped, true, metric="l1", denominator="n").tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize("metric", ["cosine", "l1", "l2"])
def test_constant_predictions_are_at_chance(metric):
    true = np.random.default_rng(0).normal(size=(12, 30))
    score = m.discrimination_score(np.zeros_like(true), true, metric=metric).mean()
    assert score == pytest.approx(0.5)


def test_l1_sees_effect_size_and_cosine_does_not():
    true = np.random.default_rng(0).normal(size=(10, 50))
    assert m.discrimination_score(8 * true, true, metric="cosine").mean() == 1.0
    assert m.discrimination_score(-true, true, metric="cosine").mean() == 0.0
    # effects predicted ten times too small all look like the weakest one
    graded = true * np.arange(1, 11)[:, None]
    assert m.discrimination_score(graded / 10, graded, metric="cosine").mean() == 1.0
    assert m.discrimination_score(graded / 10, graded, metric="l1").mean() < 0.8


def test_dropped_genes_do_not_count():
    true = np.array([[0.0, 9.0], [1.0, 0.0]])
    pred = np.array([[0.9, 9.0], [0.1, 0.0]])
    assert m.discrimination_score(pred, true, metric="l1").tolist() == [1.0, 1.0]
    assert m.discrimination_score(pred, true, metric="l1", drop=[1]).tolist() == [0.0, 0.0]


def test_centroid_accuracy_counts_nearer_truths():
    rng = np.random.default_rng(0)
    pred, true = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    want = [
        np.mean([np.linalg.norm(p - t) < np.linalg.norm(p - u) for j, u in enumerate(true) if j != i])
        for i, (p, t) in enumerate(zip(pred, true, strict=True))
    ]
    np.testing.assert_allclose(m.centroid_accuracy(pred, true), want)


def test_aecd_and_diversity():
    true = np.array([[0.0, 0.0], [6.0, 8.0]])
    assert m.aecd(true + np.array([3.0, 4.0]), true) == pytest.approx(5.0)
    assert m.diversity(true, true) == pytest.approx(1.0)
    assert m.diversity(0 * true, true) == 0.0
    assert np.isnan(m.diversity(true[:1], true[:1]))


def test_r2_matrix_is_best_on_the_diagonal():
    rng = np.random.default_rng(0)
    true = pd.DataFrame(rng.normal(size=(3, 60)), index=list("abc"))
    pred = true + 0.2 * rng.normal(size=true.shape)
    table = m.r2_matrix(pred, true)
    assert (table.idxmax(axis=1) == table.index).all()
    assert m.adjusted_r2(pred.loc["a"], true) == pytest.approx(table.loc["a"].mean())


@given(st.integers(0, 10_000), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_bulk_errors_do_not_see_a_common_offset(seed, offset):
    rng = np.random.default_rng(seed)
    p, t, c = rng.normal(size=(3, 12))
    assert m.rmse(p + offset, t + offset) == pytest.approx(m.rmse(p, t))
    assert m.normalised_mse(p + offset, t + offset, c + offset) == pytest.approx(m.normalised_mse(p, t, c))


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([1.0, np.inf]), np.array([1.0])])
def test_bad_vectors_are_refused(bad):
    with pytest.raises(InputDataError):
        m.rmse(bad, np.array([1.0, 2.0]))
    with pytest.raises(InputDataError):
        m.wmse(np.zeros(2), np.ones(2), np.array([-1.0, 2.0]))
