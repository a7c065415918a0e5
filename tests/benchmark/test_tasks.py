"""Every task runs with its rules, on simulated cells and on the real sets where they are there."""

from __future__ import annotations

import numpy as np
import pytest

from sccausal import benchmark
from sccausal import metrics as m
from sccausal._errors import InputDataError
from sccausal.benchmark._notices import notices
from sccausal.benchmark._results import load_results, load_runs, scaled, table
from sccausal.benchmark._task import Request

CHEAP = ("time", "counterfactual", "disentangle", "identify", "sampler", "structure")


def run(name, out, *, data=None, folder=None, seeds=1, models=()):
    records = benchmark.run(name, out, data=data, folder=folder, seeds=seeds, small=True, models=models, progress=False)
    failed = [(r["method"], r["error"]) for r in records if r["status"] != "done"]
    assert not failed, failed
    return load_results(out)


def means(frame, metric):
    return frame[frame["metric"] == metric].groupby("method")["value"].mean()


@pytest.mark.parametrize("name", benchmark.TASK_NAMES)
def test_tasks_say_what_they_need(name):
    task = benchmark.get_task(name)
    known = benchmark.methods(name)
    assert task.name == name
    assert task.question.endswith("?")
    assert task.datasets[0].file is None, "the default must run on a fresh install"
    for marker in (task.zero, task.one, task.floor):
        assert marker is None or marker in known
    assert set(task.headline) <= set(m.METRICS)
    assert sum(k.kind == "baseline" for k in known.values()) >= 1


@pytest.mark.parametrize("name", CHEAP)
def test_the_ceiling_is_best_and_the_report_is_written(name, tmp_path):
    frame = run(name, tmp_path / "out")
    task = benchmark.get_task(name)
    paths = benchmark.write_report(tmp_path / "out", n_boot=50)
    assert all(p.stat().st_size > 200 for p in paths.values())
    if task.one is None:
        return
    metric = task.headline[0]
    found = means(frame, metric)
    lower = frame.loc[frame["metric"] == metric, "direction"].iloc[0] == "lower"
    ceiling = found[task.one]
    assert (ceiling < found[task.zero]) if lower else (ceiling > found[task.zero])


def test_interventions_help_to_find_the_structure(tmp_path):
    found = means(run("structure", tmp_path / "out", models=["tl.structure"]), "shd")
    assert found["tl.structure"] < 0.5 * found["ridge partial, best cut"]
    assert found["ridge partial correlation"] < found["random edges"]


def test_a_shuffled_embedding_gains_nothing(tmp_path):
    frame = run("time", tmp_path / "out", seeds=2)
    unseen = frame[frame["case"] == "intervention never seen"]
    found = means(unseen, "rmse")
    assert found["elastic net, shuffled embedding"] > 0.97 * found["no change"]
    early = means(frame[frame["case"] != "intervention never seen"], "rmse")
    assert early["time additive"] < early["no change"]


def test_discriminants_hold_concepts_apart_and_principal_components_do_not(tmp_path):
    frame = run("disentangle", tmp_path / "out")
    leakage = means(frame, "excess_leakage")
    assert leakage["linear discriminants"] < 0.5 * leakage["PCA"]
    assert leakage["true labels"] == 0


def test_interactions_are_scored_on_cells_that_methods_do_not_see(tmp_path):
    frame = run("interactions", tmp_path / "out")
    pearson, fit = means(frame, "interaction_pearson"), means(frame, "gi_fit_error")
    assert abs(pearson["additive"]) < 0.1 < 0.3 < pearson["duplicate"]
    # a rule that has nothing to say about the very pair is near chance; the duplicate is far better
    assert abs(pearson["scaled additive"]) < 0.5 * pearson["duplicate"]
    # no change at all is a fit of 0, which is worse than that of any sum
    assert fit["duplicate"] < 0.5 * fit["additive"] < 0.5 * 0.8 * fit["no change"]
    ranks = means(frame, "gi_fit_rank")
    assert ranks["matching mean"] == 0 < ranks["duplicate"]
    request = Request(0, True, None)
    task = benchmark.get_task("interactions")
    dataset = task.datasets[0]
    case = next(iter(task.cases(dataset.load(request), dataset, request)))
    train, asked = case.problem.train, case.problem.interventions
    assert not set(train.obs_names) & set(case.truth.obs_names)
    assert "counterfactual_mean" not in case.truth.layers
    parts = {p for name in asked for p in name.split("+")}
    assert parts - set(asked) == set()
    for cells in (train, case.truth):
        assert {*parts, "control"} <= set(cells.obs["intervention"].astype(str))
    pairs = {n for n in asked if "+" in n}
    assert not pairs & set(train.obs["intervention"].astype(str))
    scored = frame[(frame["metric"] == "gi_fit_error") & (frame["method"] == "additive")]["group"]
    assert len(scored) == len(pairs)
    answer = benchmark.methods("interactions")["additive"].answer(case)
    with pytest.raises(InputDataError, match="pairs and their parts"):
        task.score(case, answer[answer.obs["intervention"].astype(str).str.contains("+", regex=False).to_numpy()])


def test_interactions_of_all_pairs_are_scored_whatever_the_order_of_their_parts():
    task, request = benchmark.get_task("doubles"), Request(0, True, None)
    dataset = task.datasets[1]
    case = next(iter(task.cases(dataset.load(request), dataset, request)))
    asked = case.problem.interventions
    assert any(name != "+".join(sorted(name.split("+"))) for name in asked)
    frame = task.score(case, benchmark.methods("doubles")["additive"].answer(case))
    assert set(frame.loc[frame["metric"] == "interaction_pearson", "group"]) == set(asked)


def test_norman_keeps_the_known_order_and_is_called_thin_and_saturated(test_data, tmp_path):
    if not (test_data / "norman_subset.h5ad").is_file():
        pytest.skip("norman_subset.h5ad is not there")
    frame = run("doubles", tmp_path / "out", data=["norman_subset"], folder=test_data)
    both = frame[frame["case"] == "unseen doubles"]
    distance = means(both, "centroid_distance")
    order = ["no change", "matching mean", "additive"]
    assert (np.diff(distance[order]) < -0.2).all(), distance[order]
    assert distance["no change"] == pytest.approx(1.38, abs=0.07)
    assert distance["matching mean"] == pytest.approx(0.78, abs=0.07)
    assert set(frame["case"]) == {"unseen doubles", "1 of 2 targets seen", "0 of 2 targets seen"}
    task = benchmark.get_task("doubles")
    text = " ".join(notices(scaled(frame, task), load_runs(tmp_path / "out"), task))
    assert "Thin data" in text
    assert "Saturated by a simple rule" in text
    assert "unseen doubles: " in text.split("Saturated by a simple rule")[1].split("What the best")[0]


def test_norman_distances_on_the_held_back_half(test_data):
    """The duplicate is scored on half of the cells; on the same half the known figures come back."""
    import anndata as ad

    from sccausal import baselines as bl

    path = test_data / "norman_subset.h5ad"
    if not path.is_file():
        pytest.skip("norman_subset.h5ad is not there")
    cells = ad.read_h5ad(path)
    doubles = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
    held = cells.obs["perturbation"].isin(doubles).to_numpy()
    keys = {"intervention_key": "perturbation", "control": "control"}
    rules = [r.fit(cells[~held], **keys) for r in (bl.NoChange(), bl.MatchingMean(), bl.Additive())]
    found: dict[str, list[float]] = {}
    control = cells[(cells.obs["perturbation"] == "control").to_numpy()]
    for seed in range(10):
        half = bl.TechnicalDuplicate(seed=seed).fit(cells[held | (cells.obs["perturbation"] == "control")], **keys)
        truth = half.held_back(doubles)
        predictions = {r.name: r.predict(interventions=doubles) for r in (*rules, half)}
        frame = m.evaluate_predictions(
            predictions, truth, control, metrics=["centroid_distance"], duplicate=False, no_change=False
        )
        for method, value in frame.groupby("method")["value"].mean().items():
            found.setdefault(str(method), []).append(float(value))
    average = {k: float(np.mean(v)) for k, v in found.items()}
    order = ["no change", "matching mean", "additive", "duplicate"]
    assert average["no change"] > average["matching mean"] + 0.4 > average["additive"] + 0.6, average
    # additive and replicate cannot be told apart: the set is saturated
    assert average["additive"] == pytest.approx(average["duplicate"], abs=0.03), average
    for name, known in zip(order, (1.38, 0.78, 0.51, 0.48), strict=True):
        assert average[name] == pytest.approx(known, abs=0.04), average


def test_the_negative_control_is_called_one(test_data, tmp_path):
    if not (test_data / "mcfaline_subset.h5ad").is_file():
        pytest.skip("mcfaline_subset.h5ad is not there")
    frame = run("condition", tmp_path / "out", data=["mcfaline_subset"], folder=test_data)
    task = benchmark.get_task("condition")
    text = notices(scaled(frame, task), load_runs(tmp_path / "out"), task)
    assert any("No effect in the data" in t for t in text)
    claims = next(t for t in text if "False claims" in t)
    assert "per-gene regression" in claims
    assert "no change (" not in claims
    error = means(frame, "nmse_top")
    assert error["no change"] == error.drop(["duplicate", "interpolated duplicate"]).min()


def test_tests_are_paired_over_groups_and_seeds():
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = []
    for seed in range(3):
        for g in range(8):
            hard = rng.normal()
            for method, kind, gain in (("model", "model", 0.3), ("rule", "baseline", 0.0), ("worse", "baseline", -5.0)):
                rows.append((method, kind, f"g{g}", seed, "pearson_ref", hard + gain + 0.01 * rng.normal(), "higher"))
    frame = pd.DataFrame(rows, columns=["method", "kind", "group", "seed", "metric", "value", "direction"])
    found = table(frame, ["pearson_ref"]).set_index("method")
    assert found.loc["model", "best_baseline"] == "rule"
    assert found.loc["model", "n"] == 24
    assert found.loc["model", "p_value"] < 1e-5
    assert np.isnan(found.loc["rule", "p_value"])
    # the same cells with other seeds are no further evidence
    repeated = table(frame.assign(fingerprint="one problem"), ["pearson_ref"]).set_index("method")
    assert repeated.loc["model", "n"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark.TASK_NAMES)
def test_every_task_runs_with_all_its_models(name, tmp_path):
    frame = run(name, tmp_path / "out", models=None)
    expected = {m.name for m in benchmark.methods(name).values() if m.kind == "model"}
    assert set(frame.loc[frame["kind"] == "model", "method"]) == expected
    benchmark.write_report(tmp_path / "out", n_boot=50)
