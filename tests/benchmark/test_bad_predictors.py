"""Predictions that are bad in a known way are ranked as they should be by the scaled scores."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sccausal import baselines as bl
from sccausal import metrics as m
from sccausal.data import prediction_anndata

N_GENES, N_CELLS = 120, 80
METRICS = ["wmse", "pearson_ref", "pds_l1", "pds_cosine", "energy_distance", "centroid_distance", "diversity"]


@pytest.fixture(scope="module")
def screen():
    """A screen with a response that all perturbations share, and one of their own; the last four are held out."""
    rng = np.random.default_rng(3)
    names = [f"P{i}" for i in range(14)]
    base = rng.gamma(2.0, 0.8, N_GENES)
    shared = rng.normal(0, 0.5, N_GENES) * (rng.random(N_GENES) < 0.3)
    shift = {n: shared + rng.normal(0, 1.0, N_GENES) * (rng.random(N_GENES) < 0.25) for n in names}

    def cells(mean: np.ndarray, n: int = N_CELLS) -> np.ndarray:
        return np.maximum(mean + rng.normal(0, 0.7, (n, N_GENES)), 0)

    blocks, labels = [cells(base, 200)], ["control"] * 200
    for n in names:
        blocks.append(cells(base + shift[n]))
        labels += [n] * N_CELLS
    obs = pd.DataFrame({"intervention": labels}, index=[f"c{i}" for i in range(len(labels))])
    adata = ad.AnnData(np.concatenate(blocks), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    return adata, names[-4:]


def predicted(blocks: dict[str, np.ndarray], var: pd.Index) -> ad.AnnData:
    labels = [n for n, x in blocks.items() for _ in range(len(x))]
    obs = pd.DataFrame(index=[f"p{i}" for i in range(len(labels))])
    X = np.maximum(np.concatenate(list(blocks.values())), 0)
    return prediction_anndata(X, obs, var, interventions=labels, units="log1p_norm", method="made up")


@pytest.fixture(scope="module")
def scores(screen):
    adata, held = screen
    rng = np.random.default_rng(11)
    label = adata.obs["intervention"].to_numpy()
    train, control = adata[~np.isin(label, held)], adata[label == "control"]
    truth = adata[np.isin(label, held)]
    base = control.X.mean(axis=0)
    change = {n: adata.X[label == n].mean(axis=0) - base for n in held}
    mean = bl.PerturbedMean().fit(train, intervention_key="intervention", control="control")
    average = np.mean([adata.X[label == n].mean(axis=0) for n in set(label) - set(held) - {"control"}], axis=0)
    turned = dict(zip(held, held[1:] + held[:1], strict=True))
    good = {n: control.X + 0.8 * d + rng.normal(0, 0.15, N_GENES) for n, d in change.items()}
    copy = adata.X[label == "P0"]
    made = {
        "good": good,
        "constant": {n: np.full((N_CELLS, N_GENES), base.mean()) for n in held},
        "shuffled labels": {n: good[turned[n]] for n in held},
        "variance inflated": {n: x.mean(axis=0) + 3 * (x - x.mean(axis=0)) for n, x in good.items()},
        "mean collapsed": {n: average + 0.1 * (x - average) for n, x in good.items()},
        "copy of a training perturbation": dict.fromkeys(held, copy),
    }
    predictions = {k: predicted(v, adata.var_names) for k, v in made.items()}
    # the mean baseline of every held-out label is the same
    cells = mean.predict(interventions=["P0"]).X
    predictions["perturbed mean"] = predicted(dict.fromkeys(held, cells), adata.var_names)
    reference = np.mean([adata.X[label == n].mean(axis=0) for n in set(label) - set(held) - {"control"}], axis=0)
    frame = m.evaluate_predictions(predictions, truth, control, metrics=METRICS, reference=reference)
    scaled = m.add_scaled(frame, baseline="perturbed mean", replicate="duplicate")
    return frame, scaled.groupby(["method", "metric"])["scaled"].mean().unstack("metric")


BAD = ["constant", "shuffled labels", "copy of a training perturbation"]


@pytest.mark.parametrize("metric", ["wmse", "pearson_ref", "energy_distance", "centroid_distance"])
def test_the_good_prediction_stands_between_baseline_and_replicate(scores, metric):
    table = scores[1][metric]
    assert table["perturbed mean"] == pytest.approx(0)
    assert table["duplicate"] == pytest.approx(1)
    assert 0.3 < table["good"] < 1.2


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("metric", ["wmse", "pearson_ref", "energy_distance", "centroid_distance"])
def test_bad_predictions_stand_at_or_below_the_mean_baseline(scores, bad, metric):
    table = scores[1][metric]
    # a label that is wrong still shares the common response, which the mean baseline has too
    assert table[bad] < 0.25
    assert table[bad] < table["good"] - 0.3


def test_inflated_variance_is_seen_by_the_distribution_and_not_by_the_mean(scores):
    table = scores[1]
    assert table.loc["variance inflated", "energy_distance"] < -0.5
    assert table.loc["good", "energy_distance"] - table.loc["variance inflated", "energy_distance"] > 1


def test_a_collapsed_prediction_is_flagged_and_gains_little(scores):
    frame, table = scores
    spread = frame[frame["metric"] == "diversity"].groupby("method")["value"].mean()
    assert spread["mean collapsed"] < 0.5 < spread["good"]
    assert table.loc["mean collapsed", "energy_distance"] < 0.6 * table.loc["good", "energy_distance"]
    assert table.loc["mean collapsed", "wmse"] < 0.6 * table.loc["good", "wmse"]


def test_shuffled_and_constant_predictions_do_not_find_their_perturbation(scores):
    frame = scores[0]
    for metric in ("pds_l1", "pds_cosine"):
        found = frame[frame["metric"] == metric].groupby("method")["value"].mean()
        assert found["good"] > 0.9
        for bad in ("constant", "copy of a training perturbation", "perturbed mean"):
            assert found[bad] == pytest.approx(0.5, abs=0.02), (metric, bad)
        assert found["shuffled labels"] <= 0.7  # chance, with four labels of which none is right
