from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.data import prediction_anndata


def _cells(rng, means, labels, kind, n=60):
    X = np.concatenate([np.maximum(mu + 0.3 * rng.normal(size=(n, len(mu))), 0) for mu in means])
    names = np.repeat(labels, n)
    obs = pd.DataFrame(
        {"intervention": names, "cell_type": kind, "source_cell": "x"}, index=[f"{kind}{i}" for i in range(len(X))]
    )
    return AnnData(X.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(X.shape[1])]))


@pytest.fixture(scope="module")
def study():
    """True, control and predicted cells: a good, a bad (shuffled) and a collapsed method."""
    rng = np.random.default_rng(0)
    g, labels = 60, ["A", "B", "C", "D"]
    base = rng.gamma(4.0, size=g) * 0.5 + 1
    effects = np.zeros((4, g))
    for i in range(4):
        effects[i, 10 * i : 10 * i + 8] = rng.normal(size=8) * 1.0
        effects[i, 50:55] = 0.8  # shared response
    control = _cells(rng, [base], ["control"], "T", 120)
    true = _cells(rng, base + effects, labels, "T")
    predictions = {
        "good": _cells(rng, base + 0.9 * effects, labels, "T"),
        "mean": _cells(rng, np.tile(base + effects.mean(axis=0), (4, 1)), labels, "T"),
        "shuffled": _cells(rng, base + effects[[1, 2, 3, 0]], labels, "T"),
        "inflated": _cells(rng, base + 3 * effects, labels, "T"),
    }
    collapsed = predictions["good"].copy()
    for label in labels:
        rows = np.flatnonzero(collapsed.obs["intervention"] == label)
        collapsed.X[rows] = collapsed.X[rows].mean(axis=0)
    predictions["collapsed"] = collapsed
    return predictions, true, control


@pytest.fixture(scope="module")
def frame(study):
    return m.evaluate_predictions(*study, top=20)


def _mean(frame, method, metric):
    return frame[(frame["method"] == method) & (frame["metric"] == metric)]["value"].mean()


def test_floor_and_ceiling_stand_in_the_table(frame):
    assert {"no change", "duplicate", "good"} <= set(frame["method"])
    no_change = frame[(frame["method"] == "no change") & (frame["metric"] == "nmse_top")]["value"]
    np.testing.assert_allclose(no_change, 1.0)
    assert _mean(frame, "duplicate", "nmse_top") < 0.05


def test_bad_predictors_are_ranked_as_they_should_be(frame):
    for metric in ("nmse_top", "energy_distance", "rmse"):
        good, mean, shuffled = (_mean(frame, k, metric) for k in ("good", "mean", "shuffled"))
        assert good < mean < shuffled, metric
        assert _mean(frame, "inflated", metric) > mean
    assert _mean(frame, "collapsed", "energy_distance") > 5 * _mean(frame, "good", "energy_distance")
    assert _mean(frame, "collapsed", "variance_ratio") < 0.01
    assert _mean(frame, "good", "pds_cosine") == 1.0
    assert _mean(frame, "mean", "pds_cosine") == pytest.approx(0.5)
    assert _mean(frame, "shuffled", "pds_l1") < 0.5
    assert _mean(frame, "mean", "diversity") < 0.5 < _mean(frame, "good", "diversity")
    assert _mean(frame, "good", "pearson_ref") > 0.9 > 0.4 > abs(_mean(frame, "mean", "pearson_ref"))


def test_scaled_scores_put_the_marks_at_zero_and_one(frame):
    scaled = m.add_scaled(frame, baseline="mean")
    means = scaled[scaled["metric"] == "nmse_top"].groupby("method")["scaled"].mean()
    assert means["mean"] == pytest.approx(0.0) and means["duplicate"] == pytest.approx(1.0)
    assert means["shuffled"] < 0 < 0.8 < means["good"]
    clouds = scaled[scaled["metric"] == "energy_distance"].groupby("method")["scaled"].mean()
    assert clouds["collapsed"] < 0 < clouds["good"]
    # the shifted mean has the right variance already: nothing to gain, so no scale, and the metric is flagged
    ratio = scaled[scaled["metric"] == "variance_ratio"]
    assert ratio["scaled"].isna().any() and ratio["low_range"].all()
    with pytest.raises(UnknownNameError, match="mean"):
        m.add_scaled(frame, baseline="meen")


def test_low_range_is_flagged():
    rows = [("mean", "rmse", 1.0), ("duplicate", "rmse", 0.9), ("mean", "mae", 1.0), ("duplicate", "mae", 0.1)]
    frame = pd.DataFrame(rows, columns=["method", "metric", "value"]).assign(group="A")
    flagged = m.add_scaled(frame, baseline="mean").groupby("metric")["low_range"].first()
    assert flagged["rmse"] and not flagged["mae"]
    assert m.dynamic_range(1.0, 0.9, 0.0) == pytest.approx(0.1)
    assert m.scaled_score(0.5, 1.0, 0.0) == 0.5 and m.scaled_score(2.0, 1.0, 0.0) == -1.0
    assert np.isnan(m.scaled_score(1.0, 1.0, 1.0))


def test_summary_averages_groups_and_tests_against_the_best_baseline(frame):
    table = m.summarise(frame, baselines=["mean", "no change"]).set_index(["method", "metric"])
    row = table.loc[("good", "nmse_top")]
    assert row["mean"] == pytest.approx(_mean(frame, "good", "nmse_top"))
    assert row["low"] <= row["mean"] <= row["high"] and row["n"] == 4
    assert row["best_baseline"] == "mean" and row["p_value"] == pytest.approx(0.125)
    assert np.isnan(table.loc[("mean", "nmse_top"), "p_value"])
    with pytest.raises(SetupError, match="group"):
        m.summarise(frame.drop(columns="group"))


def test_strata_use_their_own_controls():
    rng = np.random.default_rng(0)
    base = {"S": np.full(30, 1.0), "T": np.full(30, 3.0)}
    change = np.r_[np.ones(10), np.zeros(20)]
    parts = {k: _cells(rng, [b + change], ["stimulated"], k) for k, b in base.items()}
    controls = {k: _cells(rng, [b], ["control"], k) for k, b in base.items()}
    true, control = (_concat(list(p.values())) for p in (parts, controls))
    frame = m.evaluate_predictions(
        {"copy": control_as(control)}, true, control, by=["intervention", "cell_type"], top=10
    )
    rows = frame[(frame["method"] == "copy") & (frame["metric"] == "nmse_top")]
    assert rows["group"].tolist() == ["stimulated | S", "stimulated | T"]
    np.testing.assert_allclose(rows["value"], 1.0)
    # both types are real stimulated cells, so the adjusted R2 is there; across metrics are not
    assert "adjusted_r2_top" in set(frame["metric"]) and "pds_l1" not in set(frame["metric"])


def control_as(control):
    out = control.copy()
    out.obs["intervention"] = "stimulated"
    return out


def _concat(parts):
    obs = pd.concat([p.obs for p in parts])
    return AnnData(np.concatenate([p.X for p in parts]), obs=obs, var=parts[0].var)


def test_the_perturbed_column_may_have_any_name_and_order(study):
    predictions, true, control = study
    renamed = true.copy()
    renamed.obs["gene"] = true.obs["intervention"].replace({"A": "Y+X"})
    good = predictions["good"].copy()
    good.obs["intervention"] = good.obs["intervention"].replace({"A": "X+Y"})
    frame = m.evaluate_predictions({"good": good}, renamed, control, intervention_key="gene", metrics=["rmse"])
    assert set(frame["group"]) == {"X+Y", "B", "C", "D"}


def test_names_of_strata_keep_a_plus_and_targets_any_order(study):
    predictions, true, control = study
    good = predictions["good"].copy()
    for adata in (good, true := true.copy(), control := control.copy()):
        adata.obs["cell_type"] = "CD14+ Monocytes"
    true.obs["intervention"] = true.obs["intervention"].astype(str).replace({"A": "B+A", "B": "stim+"})
    good.obs["intervention"] = good.obs["intervention"].astype(str).replace({"A": "A+B", "B": "stim+"})
    frame = m.evaluate_predictions({"good": good}, true, control, by=("intervention", "cell_type"), metrics=["rmse"])
    assert set(frame["intervention"]) == {"A+B", "stim+", "C", "D"}
    assert set(frame["cell_type"]) == {"CD14+ Monocytes"}


def test_gene_order_does_not_matter(study):
    predictions, true, control = study
    turned = predictions["good"][:, ::-1].copy()
    a = m.evaluate_predictions({"x": predictions["good"]}, true, control, metrics=["bulk"], duplicate=False)
    b = m.evaluate_predictions({"x": turned}, true, control, metrics=["bulk"], duplicate=False)
    pd.testing.assert_frame_equal(a, b)


def test_scores_repeat_and_sparse_input_is_the_same(study):
    predictions, true, control = study
    thin = true.copy()
    thin.X = sparse.csr_matrix(true.X)
    a = m.evaluate_predictions({"x": predictions["good"]}, true, control, max_cells=30)
    b = m.evaluate_predictions({"x": predictions["good"]}, thin, control, max_cells=30)
    pd.testing.assert_frame_equal(a, b)


def test_errors_name_what_is_wrong(study):
    predictions, true, control = study
    good = predictions["good"]
    with pytest.raises(InputDataError, match="no cells for 1 of 4"):
        m.evaluate_predictions({"x": good[good.obs["intervention"] != "A"].copy()}, true, control)
    with pytest.raises(InputDataError, match="lacks 1 of 60 genes, e.g. 'g59'"):
        m.evaluate_predictions({"x": good[:, :59].copy()}, true, control)
    with pytest.raises(UnknownNameError, match="energy_distance"):
        m.evaluate_predictions({"x": good}, true, control, metrics=["energy_distanc"])
    with pytest.raises(UnknownNameError, match="cell_type"):
        m.evaluate_predictions({"x": good}, true, control, by=["intervention", "celltype"])
    with pytest.raises(SetupError, match="intervention"):
        m.evaluate_predictions({"x": good}, true, control, by="cell_type")
    broken = good.copy()
    broken.X[3, 2] = np.nan
    with pytest.raises(InputDataError, match="not finite, in 1 of 60"):
        m.evaluate_predictions({"x": broken}, true, control)


def test_counts_are_refused_and_converted():
    counts = AnnData(np.random.default_rng(0).poisson(20, size=(8, 5)).astype(np.float32))
    with pytest.raises(InputDataError, match="log1p_norm"):
        m.perturbation_scores(counts, counts, counts)
    logged = m.log1p_norm(counts)
    want = np.log1p(counts.X / counts.X.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(logged.X.toarray(), want, rtol=1e-5)
    assert m.perturbation_scores(logged, logged, logged).set_index("metric").loc["rmse", "value"] == 0.0
    counts.obs["size"] = 200.0
    np.testing.assert_allclose(m.log1p_norm(counts, size_key="size").X.toarray(), np.log1p(counts.X * 50), rtol=1e-5)
    with pytest.raises(UnknownNameError, match="size"):
        m.log1p_norm(counts, size_key="sizes")
    marked = prediction_anndata(
        np.ones((2, 5)), counts.obs[:2], counts.var, interventions="A", units="counts", method="x"
    )
    with pytest.raises(InputDataError, match="counts"):
        m.perturbation_scores(marked, logged, logged)


def test_table_of_one_group(study):
    predictions, true, control = study
    a = true[true.obs["intervention"] == "A"]
    pred = predictions["good"][predictions["good"].obs["intervention"] == "A"]
    table = m.perturbation_scores(pred, a, control, top=15).set_index("metric")
    assert table.loc["nmse_top", "value"] < 0.1 and table.loc["nmse_top", "direction"] == "lower"
    assert "pearson_ref" not in table.index
    more = m.perturbation_scores(pred, a, control, reference=np.asarray(control.X.mean(axis=0)), drop_genes=["g0"][:0])
    assert "pearson_ref" in set(more["metric"])
    dropped = m.perturbation_scores(pred, a, control, drop_genes=["g3"]).set_index("metric")
    assert dropped.loc["rmse", "value"] != table.loc["rmse", "value"]
    with pytest.raises(UnknownNameError, match="g3"):
        m.perturbation_scores(pred, a, control, top_genes=["g3x"])
    clouds = m.distribution_scores(pred, a, control).set_index("metric")
    assert clouds.loc["energy_distance", "value"] < 0.3 * clouds.loc["energy_distance", "control"]
