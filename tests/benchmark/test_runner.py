from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sccausal import benchmark
from sccausal._cli import app
from sccausal._errors import SetupError, UnknownNameError
from sccausal.benchmark import _methods, _runner
from sccausal.benchmark._folder import file_dataset, log1p_if_counts, parse_keys
from sccausal.benchmark._measure import measured

runner = CliRunner()


@pytest.fixture
def screen(tmp_path):
    """A small screen of the user: counts, two singles and their double, two cell types."""
    import anndata as ad

    rng = np.random.default_rng(0)
    labels = np.repeat(["NT", "A", "B", "C", "A+B", "A+C", "B+C"], 40)
    rate = np.full(30, 4.0)
    effect = {"A": (0, 3.0), "B": (5, 3.0), "C": (9, 4.0)}
    X = np.empty((len(labels), 30))
    for i, name in enumerate(labels):
        r = rate.copy()
        for part in name.split("+"):
            if part in effect:
                at, factor = effect[part]
                r[at : at + 4] *= factor
        X[i] = rng.poisson(r)
    obs = pd.DataFrame({"guide": labels}, index=[f"c{i}" for i in range(len(labels))])
    cells = ad.AnnData(X.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    path = tmp_path / "screen.h5ad"
    cells.write_h5ad(path)
    return path


KEYS = "intervention_key=guide,control=NT"


def run(screen, out, **more):
    dataset = file_dataset(screen, parse_keys(KEYS))
    return benchmark.run("doubles", out, data=[dataset], seeds=1, small=True, progress=False, **{"models": (), **more})


def test_one_json_per_run_with_everything_that_is_promised(screen, tmp_path):
    records = run(screen, tmp_path / "out")
    files = sorted((tmp_path / "out" / "runs").rglob("*.json"))
    assert len(files) == len(records) >= 10
    record = json.loads(files[0].read_text())
    assert {"seed", "versions", "seconds", "peak_memory_mb", "fingerprint", "scores", "held_out"} <= set(record)
    assert record["peak_memory_mb"] > 10
    assert record["versions"]["python"]
    assert {r["status"] for r in records} == {"done"}
    assert record["held_out"]
    assert all("+" in name for name in record["held_out"])


def test_a_killed_run_continues_where_it_was(screen, tmp_path, monkeypatch):
    calls: list[str] = []
    real = _methods.Method.answer

    def counted(self, case):
        calls.append(self.name)
        if len(calls) == 4 and not survived:
            raise KeyboardInterrupt
        return real(self, case)

    survived: list[int] = []
    monkeypatch.setattr(_methods.Method, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        run(screen, tmp_path / "out")
    finished = set(calls[:3])
    survived.append(1)
    calls.clear()
    records = run(screen, tmp_path / "out")
    assert not finished & set(calls)
    assert len(calls) == len(records) - 3
    calls.clear()
    run(screen, tmp_path / "out")
    assert calls == []


def test_failed_and_broken_runs_are_tried_again(screen, tmp_path):
    register = benchmark.register
    state = {"broken": True}

    @register("doubles", "Fragile")
    def fragile(problem):
        if state["broken"]:
            raise RuntimeError("no such thing")
        from sccausal.baselines import Additive

        return Additive().fit(problem.train, **problem.keys.rule()).predict(problem.source, problem.interventions)

    try:
        first = run(screen, tmp_path / "out", models=["fragile"])
        failed = [r for r in first if r["status"] == "failed"]
        assert [r["method"] for r in failed] == ["Fragile"]
        assert "no such thing" in failed[0]["error"]
        assert benchmark.write_report(tmp_path / "out")["markdown"].read_text().count("Fragile on unseen doubles") == 1
        state["broken"] = False
        assert {r["status"] for r in run(screen, tmp_path / "out", models=["fragile"])} == {"done"}
    finally:
        del _methods._REGISTRY["doubles"]["Fragile"]
    path = next((tmp_path / "out" / "runs").rglob("seed-0.json"))
    path.write_text(path.read_text()[:40])
    assert all(r["status"] == "done" for r in run(screen, tmp_path / "out"))


def test_other_cells_are_another_run(screen, tmp_path):
    import anndata as ad

    first = run(screen, tmp_path / "out")
    cells = ad.read_h5ad(screen)
    cells[:-1].copy().write_h5ad(screen)
    second = run(screen, tmp_path / "out")
    assert {r["fingerprint"] for r in first}.isdisjoint({r["fingerprint"] for r in second})


def test_a_folder_holds_runs_of_one_size_and_nothing_else(screen, tmp_path):
    run(screen, tmp_path / "out")
    dataset = file_dataset(screen, parse_keys(KEYS))
    with pytest.raises(SetupError, match="--small"):
        benchmark.run("doubles", tmp_path / "out", data=[dataset], seeds=1, models=(), progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SetupError, match="not empty"):
        run(screen, tmp_path / "full")


def test_predictions_from_elsewhere_are_scored_like_a_method(screen, tmp_path):
    import anndata as ad

    folders = benchmark.export_cases("doubles", tmp_path / "cases", data=file_dataset(screen, parse_keys(KEYS)))
    content = json.loads((folders[0] / "problem.json").read_text())
    train = ad.read_h5ad(folders[0] / "train.h5ad")
    assert not set(content["interventions"]) & set(train.obs["guide"].astype(str))
    from sccausal.baselines import Additive

    rule = Additive().fit(train, intervention_key="guide", control="NT")
    pred = rule.predict(interventions=content["interventions"])
    records = run(screen, tmp_path / "out", predictions={"tool": pred})
    scores = {r["method"]: {(s["group"], s["metric"]): s["value"] for s in r["scores"]} for r in records}
    for key, value in scores["additive"].items():
        assert scores["tool"][key] == pytest.approx(value, abs=1e-5), key
    with_fewer = pred[pred.obs["intervention"] != content["interventions"][0]].copy()
    failed = [r for r in run(screen, tmp_path / "o2", predictions={"tool": with_fewer}) if r["status"] == "failed"]
    assert len(failed) == 1
    assert "no cells for 1 of" in failed[0]["error"]


def test_methods_never_see_the_truth():
    task = benchmark.get_task("condition")
    request = benchmark.Request(0, True)
    for case in task.cases(task.datasets[0].load(request), task.datasets[0], request):
        p = case.problem
        assert not set(case.truth.obs_names) & set(p.train.obs_names)
        assert "truth" not in p.train.uns
        for cells in (p.train, p.source):
            assert set(cells.layers) <= {"counts"}
    with pytest.raises(SetupError, match="must not see the truth"):
        benchmark.register("doubles", "cheat", sees_truth=True)(lambda case: case.truth)


def test_names_are_checked(tmp_path):
    with pytest.raises(UnknownNameError, match="doubles"):
        benchmark.get_task("double")
    with pytest.raises(UnknownNameError, match="Did you mean 'norman_subset'"):
        benchmark.run("doubles", tmp_path / "o", data=["norman_subse"])
    with pytest.raises(UnknownNameError, match="Did you mean 'ScConCRL'"):
        benchmark.run("doubles", tmp_path / "o", models=["scconcr"])
    with pytest.raises(UnknownNameError, match="condition_key"):
        parse_keys("conditon_key=x")
    with pytest.raises(SetupError, match="SCCAUSAL_DATA"):
        benchmark.run("doubles", tmp_path / "o", data=["norman_subset"], folder=tmp_path / "nowhere")


def test_measured_sees_memory_and_time():
    with measured(interval=0.001) as cost:
        block = np.ones((40, 2**17))  # 40 MB
        block.sum()
    del block
    assert 30 < cost["added_memory_mb"] < 80
    assert 0 < cost["seconds"] < 30


def test_counts_become_log_values(screen):
    import anndata as ad

    cells = log1p_if_counts(ad.read_h5ad(screen))
    total = np.expm1(np.asarray(cells.X.todense())).sum(axis=1)
    np.testing.assert_allclose(total, 1e4, rtol=1e-4)
    assert log1p_if_counts(cells) is cells


def test_slugs_keep_names_apart():
    assert _runner._slug("A | B") != _runner._slug("A + B")
    assert _runner._slug("kang") == "kang"


class TestCommandLine:
    def call(self, *arguments):
        return runner.invoke(app, ["benchmark", *map(str, arguments)])

    def test_run_and_report_of_a_file(self, screen, tmp_path):
        out = tmp_path / "out"
        done = self.call("run", "doubles", "-m", "none", "--data", screen, "--keys", KEYS, "--seeds", 2, "-o", out)
        assert done.exit_code == 0, done.output
        assert "runs finished" in done.output
        for name in ("report.md", "report.html", "scores.csv", "summary.csv"):
            assert (out / name).is_file()
        assert self.call("report", out).exit_code == 0
        text = (out / "report.md").read_text()
        assert "doubles: screen" in text
        assert "| baseline | additive |" in text
        assert len(list((out / "figures").glob("*.png"))) >= 2

    def test_mistakes_are_answered_with_one_line(self, screen, tmp_path):
        done = self.call("run", "doubles", "--data", screen, "-o", tmp_path / "o")
        assert done.exit_code == 2
        assert "--keys" in done.output
        done = self.call("run", "triples", "-o", tmp_path / "o")
        assert done.exit_code == 2
        assert "Unknown task" in done.output
        done = self.call("report", tmp_path)
        assert done.exit_code == 2

    def test_list_names_tasks_and_methods(self):
        assert "counterfactual" in self.call("list").output
        text = self.call("list", "doubles").output
        assert "additive" in text
        assert "norman_subset" in text
