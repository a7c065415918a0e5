from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=200), rng.normal(size=200)
    return a, b


def test_gi_scores_of_known_combinations(parts):
    a, b = parts
    added = m.gi_scores(a + b, a, b)
    assert (added["c1"], added["c2"]) == pytest.approx((1, 1))
    assert added["magnitude"] == pytest.approx(np.sqrt(2))
    assert added["fit"] == pytest.approx(1)
    assert added["equality"] == pytest.approx(1)
    assert added["dominance"] == pytest.approx(0, abs=1e-9)
    epistatic = m.gi_scores(0.9 * a + 0.09 * b, a, b)
    assert epistatic["dominance"] == pytest.approx(1)
    assert epistatic["equality"] == pytest.approx(0.1)
    assert m.gi_scores(2 * a + 2 * b, a, b)["magnitude"] == pytest.approx(2 * np.sqrt(2))
    new = np.random.default_rng(9).normal(size=200)
    assert abs(m.gi_scores(new, a, b)["fit"]) < 0.3
    for nothing in (np.zeros(200), 1e-6 * np.random.default_rng(9).normal(size=200)):
        assert np.isnan(m.gi_scores(nothing, a, b)["fit"])


def test_interaction_auprc_agrees_with_scikit_learn(parts):
    a, b = parts
    rng = np.random.default_rng(1)
    beyond = np.where(rng.random(200) < 0.15, rng.normal(0, 3, 200), 0)
    true, pred = a + b + beyond, a + b + beyond + rng.normal(0, 0.8, 200)
    labels = np.zeros(200, dtype=bool)
    labels[np.argsort(-np.abs(beyond), kind="stable")[:20]] = True
    want = average_precision_score(labels, np.round(np.abs(pred - a - b), 6))
    assert m.interaction_auprc(pred, true, a + b, top=20) == pytest.approx(want)


def test_the_additive_rule_knows_no_interaction(parts):
    a, b = parts
    true = a + b + np.where(np.arange(200) < 20, 2.0, 0.0)
    table = m.interaction_scores((a + b).astype(np.float32), true, [a, b]).set_index("metric")["value"]
    assert table["interaction_pearson"] == 0
    assert m.interaction_auprc(a + b, true, a + b, top=20) == pytest.approx(20 / 200)
    best = m.interaction_scores(true, true, [a, b]).set_index("metric")["value"]
    assert best["interaction_pearson"] == pytest.approx(1)
    assert best["gi_fit_error"] == best["gi_magnitude_error"] == 0


def test_removing_the_error_of_the_parts_is_no_knowledge_of_the_interaction(parts):
    """Parts measured twice: against the other measurement, a prediction without their error scores nothing."""
    rng = np.random.default_rng(2)
    a, b = (np.repeat(p, 10) for p in parts)
    first, second = ([p + 0.5 * rng.normal(size=p.size) for p in (a, b)] for _ in range(2))
    pred, true = a + b, a + b + 0.3 * rng.normal(size=a.size)
    same = m.interaction_scores(pred, true, first).set_index("metric")["value"]
    apart = m.interaction_scores(pred, true, second, pred_singles=first).set_index("metric")["value"]
    assert same["interaction_pearson"] > 0.8
    assert abs(apart["interaction_pearson"]) < 0.1
    beyond = np.where(np.arange(a.size) < 100, 4.0, 0.0)
    knows = m.interaction_scores(pred + beyond, true + beyond, second, pred_singles=first).set_index("metric")["value"]
    assert knows["interaction_pearson"] > 0.4 and knows["interaction_auprc"] > 2 * apart["interaction_auprc"]


def test_ranks_of_pairs(parts):
    a, b = parts
    rng = np.random.default_rng(3)
    true = [m.gi_scores(c * (a + b) + c * rng.normal(size=a.size), a, b) for c in (0.4, 0.8, 1.0, 1.3, 2.0)]
    shrunk = [m.gi_scores((0.5 + 0.5 * c) * (a + b), a, b) for c in (0.4, 0.8, 1.0, 1.3, 2.0)]
    flat = [m.gi_scores((a + b).astype(np.float32), a.astype(np.float32), b.astype(np.float32))] * 5
    value = {k: m.gi_ranks(v, true).set_index("metric")["value"] for k, v in (("shrunk", shrunk), ("flat", flat))}
    assert value["shrunk"]["gi_magnitude_rank"] > 0.85
    assert (value["flat"] == 0).all()
    with pytest.raises(InputDataError, match="four pairs"):
        m.gi_ranks(true[:3], true[:3])
    with pytest.raises(InputDataError, match="5 and 4"):
        m.gi_ranks(true, true[:4])


def test_bad_input(parts):
    a, b = parts
    with pytest.raises(SetupError, match="two parts"):
        m.interaction_scores(a, a, [a])
    with pytest.raises(InputDataError):
        m.interaction_scores(a, a[:-1], [a, b])
    with pytest.raises(SetupError, match="1 parts"):
        m.interaction_scores(a, a, [a, b], pred_singles=[a])
