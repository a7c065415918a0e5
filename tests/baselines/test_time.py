from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sccausal import baselines as bl
from sccausal._errors import SetupError, UnknownNameError

# mean of three genes by intervention and time, two cells each, half a unit to either side
MEANS = {
    ("control", 0): [1.0, 2.0, 3.0],
    ("control", 1): [2.0, 2.0, 3.0],
    ("control", 2): [4.0, 2.0, 3.0],
    ("A", 0): [1.0, 3.0, 3.0],
    ("A", 1): [2.0, 5.0, 3.0],
    ("B", 0): [1.0, 2.0, 4.0],
    ("B", 1): [2.0, 2.0, 5.0],
    ("B", 2): [4.0, 2.0, 8.0],
}
KEYS = {"intervention_key": "guide", "control": "control", "time_key": "hour"}


@pytest.fixture
def cells() -> ad.AnnData:
    X, guide, hour = [], [], []
    for (label, time), mean in MEANS.items():
        for sign in (-0.5, 0.5):
            X.append(np.asarray(mean) + sign)
            guide.append(label)
            hour.append(time)
    obs = pd.DataFrame({"guide": guide, "hour": hour}, index=[f"c{i}" for i in range(len(X))])
    return ad.AnnData(np.asarray(X), obs=obs, var=pd.DataFrame(index=["g0", "g1", "g2"]))


def mean(pred: ad.AnnData, label: str, time: float) -> list[float]:
    here = (pred.obs["intervention"] == label) & (pred.obs["time"] == time)
    assert here.sum() == 2
    return np.asarray(pred[here.to_numpy()].X).mean(axis=0).round(5).tolist()


def test_persistence_stays_at_the_last_observation(cells):
    pred = bl.Persistence().fit(cells, **KEYS).predict(interventions=["A", "B"], times=[1, 2])
    assert mean(pred, "A", 2) == [2.0, 5.0, 3.0]  # A at time 1, although the control has moved on
    assert mean(pred, "B", 2) == [2.0, 2.0, 5.0]  # not B at time 2, which is asked for
    assert mean(pred, "A", 1) == [1.0, 3.0, 3.0]


def test_persistence_of_an_unseen_intervention_is_the_control_before(cells):
    pred = bl.Persistence().fit(cells, **KEYS).predict(interventions=["A+B"], times=[2])
    assert mean(pred, "A+B", 2) == [2.0, 2.0, 3.0]


def test_time_mean_is_the_mean_effect_at_the_time(cells):
    pred = bl.TimeMean().fit(cells, **KEYS).predict(interventions=["A"], times=[1, 2])
    assert mean(pred, "A", 1) == [2.0, 3.5, 4.0]  # half of A's and half of B's effect
    assert mean(pred, "A", 2) == [4.0, 2.0, 8.0]  # only B is there


def test_time_additive_adds_the_mean_effect_to_the_control_of_the_time(cells):
    pred = bl.TimeAdditive().fit(cells, **KEYS).predict(interventions=["A", "B", "A+B"], times=[2])
    assert mean(pred, "A", 2) == [4.0, 4.0, 3.0]  # effects 1 and 3
    assert mean(pred, "B", 2) == pytest.approx([4.0, 2.0, 3 + 8 / 3], abs=1e-4)  # effects 1, 2 and 5
    assert mean(pred, "A+B", 2) == pytest.approx([4.0, 4.0, 3 + 8 / 3], abs=1e-4)


def test_times_default_to_those_of_the_source_and_labels_stay_apart(cells):
    cells.obs["kind"] = ["x", "y"] * 8
    rule = bl.TimeMean().fit(cells, **KEYS, labels_key="kind")
    pred = rule.predict(cells[(cells.obs["guide"] == "control") & (cells.obs["hour"] < 2)], ["A"])
    assert sorted(pred.obs["time"].unique()) == [0.0, 1.0]
    assert set(pred.obs["kind"]) == {"x", "y"}
    assert "_sccausal_stratum" not in pred.obs


def test_a_later_time_starts_from_the_latest_control_cells(cells):
    pred = bl.TimeAdditive().fit(cells, **KEYS).predict(interventions=["B"], times=[3])
    assert mean(pred, "B", 3) == pytest.approx([4.0, 2.0, 3 + 8 / 3], abs=1e-4)


def test_user_data_is_unchanged_and_errors_name_the_column(cells):
    before = cells.copy()
    bl.Persistence().fit(cells, **KEYS)
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    with pytest.raises(UnknownNameError, match="hour"):
        bl.Persistence().fit(cells, intervention_key="guide", control="control", time_key="hours")
    cells.obs["hour"] = "soon"
    with pytest.raises(SetupError, match="no number in 16 cells"):
        bl.Persistence().fit(cells, **KEYS)


def embedded(n: int, shuffled: bool, seed: int = 0) -> float:
    """Correlation of predicted with true effects of unseen interventions whose effect is linear in an embedding."""
    rng = np.random.default_rng(seed)
    names = [f"T{i}" for i in range(n)]
    features = rng.normal(size=(n, 4))
    effects = features @ rng.normal(size=(4, 30))
    labels = np.repeat(["control", *names], 20)
    X = 5 + rng.normal(size=(len(labels), 30)) + np.repeat(np.vstack([np.zeros(30), effects]), 20, axis=0)
    adata = ad.AnnData(X, obs=pd.DataFrame({"guide": labels}, index=[f"c{i}" for i in range(len(X))]))
    table = pd.DataFrame(features[rng.permutation(n)] if shuffled else features, index=names)
    held = names[-6:]
    rule = bl.ElasticNetEmbedding(table, clip="none")
    kept = adata[~adata.obs["guide"].isin(held)]
    rule.fit(_with_known_targets(kept, held), intervention_key="guide", control="control")
    base = kept[kept.obs["guide"] == "control"].X.mean(axis=0)
    pred = rule.predict(interventions=held)
    guess = [np.asarray(pred[pred.obs["intervention"] == h].X).mean(axis=0) - base for h in held]
    return float(np.corrcoef(np.ravel(guess), effects[-6:].ravel())[0, 1])


def _with_known_targets(adata: ad.AnnData, more: list[str]) -> ad.AnnData:
    """Doses as a frame with a column for targets that no training cell has."""
    names = sorted(set(adata.obs["guide"]) - {"control"}) + more
    doses = pd.DataFrame(0.0, index=adata.obs_names, columns=names)
    for name in names:
        doses[name] = (adata.obs["guide"] == name).astype(float).to_numpy()
    adata = adata.copy()
    adata.obsm["guide"] = doses
    del adata.obs["guide"]
    return adata


def test_elastic_net_uses_the_embedding():
    assert embedded(30, shuffled=False) > 0.9
    assert abs(embedded(30, shuffled=True)) < 0.4  # nothing is left of it when rows are shuffled


def test_elastic_net_is_exact_where_effects_grow_with_time():
    """Effect = embedding x time: features that are multiplied by time can say it, an intercept per time cannot."""
    rng = np.random.default_rng(1)
    names = [f"T{i}" for i in range(12)]
    features = rng.normal(size=(12, 2))
    loadings = rng.normal(size=(2, 10))
    X, guide, hour = [], [], []
    for time in (1.0, 2.0):
        for i, name in enumerate(["control", *names]):
            shift = time * features[i - 1] @ loadings if i else 0
            X.append(6 + shift + 0.05 * rng.normal(size=(8, 10)))
            guide += [name] * 8
            hour += [time] * 8
    obs = pd.DataFrame({"guide": guide, "hour": hour}, index=[f"c{i}" for i in range(len(guide))])
    adata = ad.AnnData(np.concatenate(X), obs=obs)
    held = (adata.obs["guide"].isin(names[:3]) & (adata.obs["hour"] == 2)).to_numpy()
    rule = bl.ElasticNetEmbedding(pd.DataFrame(features, index=names), clip="none").fit(adata[~held], **KEYS)
    error, size = 0.0, 0.0
    for i, name in enumerate(names[:3]):
        guess = np.asarray(rule.predict(interventions=[name], times=[2]).X).mean(axis=0) - 6
        true = 2 * features[i] @ loadings
        error, size = error + np.sum((guess - true) ** 2), size + np.sum(true**2)
    additive = bl.TimeAdditive(clip="none").fit(adata[~held], **KEYS)
    guess = np.asarray(additive.predict(interventions=names[:1], times=[2]).X).mean(axis=0) - 6
    assert error / size < 0.1
    assert np.sum((guess - 2 * features[0] @ loadings) ** 2) / np.sum((2 * features[0] @ loadings) ** 2) > 0.2
