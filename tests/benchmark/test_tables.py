"""Tables made from result files of the benchmark scripts."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="tests of a package without its benchmarks")


@pytest.fixture(scope="module")
def tables():
    spec = spec_from_file_location("benchmark_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write(path: Path, *records: dict) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def only(found):
    (item,) = found
    return item


def test_scores_by_method_and_metric_are_averaged_over_groups(tables, tmp_path):
    def record(group, seed, value):
        scores = [{"method": m, "metric": "nmse_top", "value": v} for m, v in (("model", value), ("rule", 1.0))]
        return {"key": f"{group}/{seed}", "held_out": group, "seed": seed, "scores": scores}

    # seeds are averaged within a group first, so that a group run more often does not count more
    write(tmp_path / "condition.jsonl", record("B", 0, 0.1), record("B", 1, 0.3), record("NK", 0, 0.6))
    title, table, note = only(tables.tables("condition", tmp_path))
    assert title == "condition" and note == "mean over 2 groups and seeds 0, 1"
    assert table.loc["model", "nmse_top"] == pytest.approx(0.4) and table.loc["rule", "nmse_top"] == 1.0
    assert "| model | 0.4 |" in tables.markdown(table)


def test_scores_of_groups_by_method_make_a_table_per_task(tables, tmp_path):
    write(
        tmp_path / "gcrl.jsonl",
        {"key": "a", "task": "norman", "seed": 2, "scores": {"additive": {"A+B": 0.4, "A+C": 0.6}}},
        {"key": "b", "task": "norman", "seed": 2, "scores": {"VAE": {"A+B": 0.2, "A+C": 0.4}}, "seconds": 3.0},
        {"key": "c", "task": "weak", "seed": 2, "scores": {"additive": {"A+B": 2.0}}},
    )
    found = {title: table for title, table, _ in tables.tables("gcrl", tmp_path)}
    assert list(found) == ["gcrl: norman", "gcrl: weak"]
    assert found["gcrl: norman"]["AECD"].to_dict() == pytest.approx({"additive": 0.5, "VAE": 0.3})
    assert found["gcrl: weak"].loc["additive", "AECD"] == 2.0


def test_metrics_inside_groups_and_flat_records(tables, tmp_path):
    inner = {"A": {"energy": 0.1, "rmse": 0.2}, "B": {"energy": 0.3, "rmse": 0.4}}
    write(tmp_path / "lcd.jsonl", {"key": "a", "task": "norman", "seed": 1, "scores": {"LCD": inner}})
    _, table, note = only(tables.tables("lcd", tmp_path))
    assert table.loc["LCD"].to_dict() == pytest.approx({"energy": 0.2, "rmse": 0.3}) and "2 groups" in note
    write(tmp_path / "denoise.jsonl", {"key": "a", "method": "raw", "seed": 0, "query_rmse": 1.25, "ready": True})
    _, table, _ = only(tables.tables("denoise", tmp_path))
    assert table.to_dict() == {"query_rmse": {"raw": 1.25}}
