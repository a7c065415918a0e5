from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError


def concepts(n: int, dependence: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    batch = np.where(rng.random(n) < dependence, (kind > 0).astype(int), rng.integers(0, 2, n))
    return pd.DataFrame({"kind": kind.astype(str), "batch": batch.astype(str)})


def one_hot(values: pd.Series, seed: int) -> np.ndarray:
    levels = np.unique(values)
    noise = np.random.default_rng(seed).normal(0, 0.3, (len(values), len(levels)))
    return (values.to_numpy()[:, None] == levels[None, :]) + noise


@pytest.mark.parametrize("dependence", [0.0, 0.8])
def test_true_blocks_leak_nothing_beyond_the_dependence(dependence):
    train, test = concepts(600, dependence, 0), concepts(400, dependence, 1)
    apart = [{c: one_hot(f[c], i) for c in f} for i, f in enumerate((train, test))]
    table = m.concept_scores(apart[0], train, apart[1], test)
    leak = table[table["metric"] == "excess_leakage"]["value"]
    own = table[table["metric"] == "concept_accuracy"]["value"]
    assert leak.max() < 0.06
    assert own.min() > 0.9
    mixed = [{c: np.hstack([b["kind"], b["batch"]]) for c in b} for b in apart]
    leaky = m.concept_scores(mixed[0], train, mixed[1], test)
    found = leaky[leaky["metric"] == "excess_leakage"]
    assert found["value"].min() > (0.25 if dependence == 0 else 0.05)


def test_probe_agrees_with_scikit_learn_and_is_at_chance_on_noise():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(500, 5)), rng.integers(0, 4, 500).astype(str)
    probe = m.concept_probe(z[:300], y[:300], z[300:], y[300:])
    assert probe.accuracy == pytest.approx(0.25, abs=0.1)
    z[:, 0] += 3 * y.astype(int)
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(z[:300])
    net = LogisticRegression(max_iter=500, class_weight="balanced").fit(scale.transform(z[:300]), y[:300])
    want = balanced_accuracy_score(y[300:], net.predict(scale.transform(z[300:])))
    assert m.concept_probe(z[:300], y[:300], z[300:], y[300:]).accuracy == pytest.approx(want)


def test_concepts_need_blocks_and_levels():
    frame = concepts(50, 0, 0)
    with pytest.raises(SetupError, match="no block"):
        m.concept_scores({"kind": np.ones((50, 2))}, frame, {"kind": np.ones((50, 2))}, frame)
    with pytest.raises(SetupError, match="two levels"):
        m.concept_probe(np.ones((10, 1)), ["a"] * 10, np.ones((5, 1)), ["a"] * 5)


def test_dci_of_a_permutation_and_of_a_rotation():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, (600, 3))
    apart = m.dci(-2 * truth[:, [2, 0, 1]], truth).set_index("metric")["value"]
    angle = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    mixed = m.dci(truth @ angle, truth).set_index("metric")["value"]
    assert apart["disentanglement"] > 0.9 > mixed["disentanglement"] + 0.2
    assert apart["completeness"] > 0.9
    assert apart["informativeness"] > 0.9


def test_cluster_agreement():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 40)
    z = rng.normal(size=(4, 8))[label] * 6 + rng.normal(size=(160, 8))
    assert m.cluster_agreement(z, label)["value"].min() > 0.95
    assert m.cluster_agreement(z, rng.permutation(label)).set_index("metric").loc["ari", "value"] < 0.1
    with pytest.raises(InputDataError):
        m.cluster_agreement(z, label[:-1])


class TestTMEX:
    @pytest.fixture
    def references(self):
        rng = np.random.default_rng(0)
        common = rng.normal(size=(400, 1))
        return 0.7 * common + rng.normal(size=(400, 3)), rng

    def test_score_agrees_with_the_inverse_covariance(self, references):
        r, rng = references
        z = r + 0.5 * rng.normal(size=r.shape)
        want = []
        for i in range(3):
            # partial correlation of (z_i, r_i) given the other references, from the precision of the joint
            joint = np.column_stack([z[:, i], r[:, i], np.delete(r, i, axis=1)])
            precision = np.linalg.inv(np.cov(joint, rowvar=False))
            want.append(abs(-precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])))
        assert m.tmex_score(z, r) == pytest.approx(np.mean(want), rel=1e-9)

    def test_exclusive_latents_are_told_from_mixed_ones(self, references):
        r, rng = references
        z = r + 0.5 * rng.normal(size=r.shape)
        assert m.tmex_distance(z, r) == 0
        assert m.tmex_distance(z @ rng.normal(size=(3, 3)), r) > 2
        assert m.tmex_score(z, r) > m.tmex_score(z[:, [1, 2, 0]], r) + 0.5

    def test_permutations(self, references):
        r, rng = references
        score, p = m.tmex_test(r + rng.normal(size=r.shape), r, n_permutations=199)
        assert p == pytest.approx(1 / 200)
        assert score > 0.4
        _, p = m.tmex_test(rng.normal(size=r.shape), r, n_permutations=199)
        assert p > 0.02

    def test_bad_shapes(self, references):
        with pytest.raises(InputDataError, match="pair up"):
            m.tmex_score(references[0][:, :2], references[0])
