from __future__ import annotations

import itertools
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sccausal import pp
from sccausal._errors import FileFormatError, InputDataError, SetupError
from sccausal.data import Split

GENES = list("ABCDEF")
LABELS = ["ctrl", *GENES, *("+".join(p) for p in itertools.combinations(GENES, 2))]
PERTURBED = {"intervention_key": "pert", "control": "ctrl"}


def make_cells(n: int = 1200, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    label = rng.choice(LABELS, n)
    flipped = ["+".join(reversed(v.split("+"))) if rng.random() < 0.5 else v for v in label]
    obs = pd.DataFrame(
        {
            "pert": flipped,
            "type": rng.choice(["T", "B", "NK"], n),
            "donor": rng.choice(["d1", "d2", "d3"], n),
            "condition": rng.choice(["rest", "IFN", "TNF"], n),
            "time": rng.choice([0.0, 6.0, 24.0], n),
        },
        index=[f"c{i}" for i in range(n)],
    )
    return ad.AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return make_cells()


def targets(label: str) -> frozenset[str]:
    return frozenset(label.split("+")) - {"ctrl"}


def combinations(adata, rows) -> set[frozenset[str]]:
    return {targets(v) for v in adata.obs["pert"].iloc[rows]}


def complete(split, adata) -> bool:
    return sum(map(len, split.external_indexing())) == adata.n_obs


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.6]), st.sampled_from([0.0, 0.2]))
def test_unseen_doubles_never_leak(cells, seed, test_fraction, validation_fraction):
    split = pp.split(
        cells,
        "unseen_doubles",
        **PERTURBED,
        seed=seed,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )
    train, val, test = (combinations(cells, rows) for rows in split.external_indexing())
    assert not train & test and not train & val and not val & test
    assert all(len(c) == 2 for c in test | val)
    assert {frozenset(g) for g in GENES} <= train
    assert complete(split, cells) and bool(val) == (validation_fraction > 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.4]))
def test_n_seen_counts_are_true_and_unseen_targets_stay_out(cells, seed, fraction):
    split = pp.split(cells, "n_seen", **PERTURBED, seed=seed, test_fraction=fraction)
    train, test = combinations(cells, split.train), combinations(cells, split.test)
    assert not train & test
    seen = frozenset().union(*train)
    counts = {targets(k): v for k, v in split.params["n_seen"].items()}
    assert counts.keys() == test
    for combination, n in counts.items():
        assert len(combination & seen) == n
    assert complete(split, cells)


@pytest.mark.parametrize("n_seen", [0, 1, 2])
def test_one_kind_of_n_seen(cells, n_seen):
    split = pp.split(cells, "n_seen", **PERTURBED, hold_out=["A", "B"], test_fraction=0.5, n_seen=n_seen)
    test = combinations(cells, split.test)
    assert all(len(c) == 2 and len(c - {"A", "B"}) == n_seen for c in test) and test
    assert not any(c & {"A", "B"} for c in combinations(cells, split.train))


def test_validation_targets_stay_out_of_training_too(cells):
    split = pp.split(cells, "n_seen", **PERTURBED, hold_out="A", validation="B")
    assert not any(c & {"A", "B"} for c in combinations(cells, split.train))
    assert all("B" in c for c in combinations(cells, split.validation))


def test_condition_by_type(cells):
    split = pp.split(
        cells, "condition_x_type", condition_key="condition", control="rest", labels_key="type", hold_out="B"
    )
    obs = cells.obs
    held = (obs["type"] == "B") & (obs["condition"] != "rest")
    np.testing.assert_array_equal(split.test, np.flatnonzero(held))
    np.testing.assert_array_equal(split.train, np.flatnonzero(~held))
    pair = pp.split(
        cells,
        "condition_x_type",
        condition_key="condition",
        control="rest",
        labels_key="type",
        hold_out="B | IFN",
        validation="NK",
    )
    assert set(map(tuple, obs.iloc[pair.test][["type", "condition"]].to_numpy())) == {("B", "IFN")}
    assert set(obs.iloc[pair.validation]["type"]) == {"NK"}


def test_leave_intervention_out_takes_its_combinations(cells):
    split = pp.split(cells, "leave_intervention_out", **PERTURBED, hold_out="C")
    assert not any("C" in c for c in combinations(cells, split.train))
    assert all("C" in c for c in combinations(cells, split.test))


def test_leave_intervention_out_at_later_times(cells):
    split = pp.split(cells, "leave_intervention_out", **PERTURBED, hold_out="C", time_key="time", times=[24])
    test, train = cells.obs.iloc[split.test], cells.obs.iloc[split.train]
    assert set(test["time"]) == {24.0} and all("C" in targets(v) for v in test["pert"])
    with_c = train[[("C" in targets(v)) for v in train["pert"]]]
    assert set(with_c["time"]) == {0.0, 6.0}
    with pytest.raises(SetupError, match="No cell has time 12"):
        pp.split(cells, "leave_intervention_out", **PERTURBED, hold_out="C", time_key="time", times=[12])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.9]))
def test_concept_levels_stay_in_training(cells, seed, fraction):
    keys = ["type", "condition", "donor"]
    split = pp.split(cells, "unseen_concepts", concept_keys=keys, seed=seed, test_fraction=fraction)
    rows = [set(map(tuple, cells.obs.iloc[r][keys].to_numpy())) for r in (split.train, split.test)]
    assert not rows[0] & rows[1] and complete(split, cells)
    for key in keys:
        assert set(cells.obs.iloc[split.train][key]) == set(cells.obs[key])


def test_losing_a_concept_level_is_refused(cells):
    every_b = [f"B | {c}" for c in ("rest", "IFN", "TNF")]
    with pytest.raises(SetupError, match="no cell of 'B'"):
        pp.split(cells, "unseen_concepts", concept_keys=["type", "condition"], hold_out=every_b)


@pytest.mark.parametrize("task", ["leave_batch_out", "replicate"])
def test_batches_stay_whole(cells, task):
    split = pp.split(cells, task, batch_key="donor", hold_out="d2")
    assert set(cells.obs["donor"].iloc[split.test]) == {"d2"}
    assert set(cells.obs["donor"].iloc[split.train]) == {"d1", "d3"}


def test_replicate_tests_only_what_was_trained(cells):
    adata = cells.copy()
    adata.obs.loc[(adata.obs["donor"] != "d2") & (adata.obs["pert"] == "A"), "pert"] = "B"
    split = pp.split(adata, "replicate", **PERTURBED, batch_key="donor", hold_out="d2")
    assert split.params["not_in_training"] == ["A"]
    assert combinations(adata, split.test) <= combinations(adata, split.train)
    assert "A" not in set(adata.obs["pert"].iloc[split.test])


def test_controls_can_be_shared_out(cells):
    split = pp.split(cells, "unseen_doubles", **PERTURBED, control_fraction=0.5)
    control = np.flatnonzero(cells.obs["pert"] == "ctrl")
    n_test = len(set(control) & set(split.test))
    assert abs(n_test - len(control) / 2) <= 1
    assert set(control) <= set(split.test) | set(split.train)


@pytest.mark.parametrize(
    ("task", "args"),
    [
        ("unseen_doubles", {**PERTURBED, "control_fraction": 0.3, "validation_fraction": 0.2}),
        ("n_seen", PERTURBED),
        ("unseen_concepts", {"concept_keys": ["type", "condition"]}),
        ("leave_batch_out", {"batch_key": "donor"}),
        ("condition_x_type", {"condition_key": "condition", "control": "rest", "labels_key": "type"}),
    ],
)
def test_order_of_cells_does_not_matter(cells, task, args):
    order = np.random.default_rng(1).permutation(cells.n_obs)
    split, shuffled = pp.split(cells, task, **args), pp.split(cells[order].copy(), task, **args)
    for rows, moved in zip(split.external_indexing(), shuffled.external_indexing(), strict=True):
        assert set(cells.obs_names[rows]) == set(cells.obs_names[order][moved])
    assert pp.split(cells, task, **args) == split


def test_saved_and_applied(cells, tmp_path):
    split = pp.split(cells, "unseen_doubles", **PERTURBED, validation_fraction=0.2)
    split.save(tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["task"] == "unseen_doubles"
    loaded = Split.load(tmp_path / "split.json")
    assert loaded == split
    column = loaded.apply(cells)
    np.testing.assert_array_equal(np.flatnonzero(column == "test"), split.test)
    assert "split" not in cells.obs
    copied = cells.copy()
    pp.split(copied, "unseen_doubles", **PERTURBED, key_added="split")
    assert set(copied.obs["split"].cat.categories) == {"train", "validation", "test"}


def test_split_of_other_cells_is_refused(cells, tmp_path):
    split = pp.split(cells, "leave_batch_out", batch_key="donor")
    with pytest.raises(InputDataError, match="other cells"):
        split.apply(cells[::-1].copy())
    with pytest.raises(InputDataError, match="1200 cells, adata has 1199"):
        split.apply(cells[1:].copy())
    with pytest.raises(InputDataError, match="two sets"):
        Split([0, 1], [1, 2])
    for text in ("not json", "[]", '{"schema": 9}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FileFormatError):
            Split.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("unseen_triples", {}, "Unknown task"),
        ("unseen_doubles", {}, "needs `intervention_key`"),
        ("unseen_doubles", {**PERTURBED, "hold_out": "A"}, "'A' cannot be held out"),
        ("unseen_doubles", {**PERTURBED, "test_fraction": 1.0}, "test_fraction"),
        ("unseen_doubles", {"intervention_key": "pert", "control": "NT"}, "Did you mean"),
        ("leave_batch_out", {"batch_key": "donr"}, "Did you mean 'donor'"),
        ("leave_batch_out", {"batch_key": "donor", "hold_out": ["d1", "d2", "d3"]}, "0 training"),
        ("leave_batch_out", {"batch_key": "donor", "hold_out": "d1", "validation": "d1"}, "test and validation"),
        ("leave_intervention_out", {**PERTURBED, "times": [24]}, "needs `time_key`"),
    ],
)
def test_unusable_requests_are_named(cells, task, args, message):
    with pytest.raises(SetupError, match=message):
        pp.split(cells, task, **args)
