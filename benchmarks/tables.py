"""Turn result files of the benchmarks into the Markdown tables of docs/benchmarks.md.

    python benchmarks/tables.py                      # every result file there is
    python benchmarks/tables.py condition gcrl       # some of them
    python benchmarks/tables.py --results other/dir

Values are means over groups and seeds; the line above a table says how many, and which seeds. Nothing is chosen or
rounded by hand, so that a table can be compared with the page it stands on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Spec:
    """How one result file becomes tables: one per value of ``split``, methods in rows, metrics in columns."""

    file: str
    metrics: tuple[str, ...] = ()  # columns in this order; empty: all
    split: str | None = None  # field of the record that separates tables
    rows: str = "method"  # field of the record that names rows, where scores do not
    leaf: str = "value"  # name of scores that stand without one


SPECS = {
    "ablation": Spec("ablation", ("nmse_top", "energy_distance", "epr", "batch_leak_nx", "blood_total"), rows="part"),
    "causcell": Spec("causcell", ("energy", "pearson_change", "mse", "slope", "pearson", "ratio", "oracle"), "task"),
    "citevae": Spec("citevae", split="task"),
    "citevae_10": Spec("citevae_10", split="task"),
    "condition": Spec("condition", ("nmse_top", "pearson_change_top", "r2_top", "adjusted_r2_top", "energy_distance")),
    "denoise": Spec("denoise"),
    "gcrl": Spec("gcrl", ("AECD", "mcc", "targets", "shd"), "task", leaf="AECD"),
    "grn": Spec("grn", ("epr", "auprc_ratio", "auroc", "direction_accuracy"), "truth"),
    "integration": Spec("integration", ("bio_conservation", "batch_correction", "total"), "data"),
    "key_genes": Spec("key_genes"),
    "lcd": Spec("lcd", split="task"),
    "sem": Spec("sem", rows="m"),
}
_FIELDS = {
    "key",
    "seed",
    "task",
    "method",
    "part",
    "data",
    "truth",
    "group",
    "mode",
    "held_out",
    "output",
    "do",
    "versions",
}


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def long(record: dict[str, Any], spec: Spec) -> Iterator[dict[str, Any]]:
    """Scores of a record, one per row: method, group, metric, value."""
    base = {"seed": record.get("seed"), "split": str(record.get(spec.split, "")) if spec.split else ""}
    base["method"] = str(record.get(spec.rows) or record.get("method") or record.get("mode") or "")
    base["group"] = str(record.get("group") or record.get("held_out") or record.get("do") or "")
    for name in ("scores", "seconds", "times"):
        if isinstance(record.get(name), dict | list):
            yield from _nested(record[name], base, spec)
    for name, value in record.items():
        if name not in _FIELDS and _is_number(value):
            yield {**base, "metric": name, "value": value}


def _nested(scores: Any, base: dict[str, Any], spec: Spec) -> Iterator[dict[str, Any]]:
    if isinstance(scores, list):  # of rows with a metric, or of rows whose fields are metrics
        for row in scores:
            named = {**base, "method": str(row.get("method") or row.get("output") or base["method"])}
            if "metric" in row:
                yield {**named, "metric": row["metric"], "value": row["value"]}
            else:
                yield from ({**named, "metric": k, "value": v} for k, v in row.items() if _is_number(v))
        return
    for name, value in scores.items():
        if _is_number(value):  # metric -> value
            yield {**base, "metric": name, "value": value}
        elif isinstance(value, dict):  # method or setting -> (group ->) metric -> value
            yield from _of_method(str(name), value, base, spec)


def _of_method(name: str, scores: dict[str, Any], base: dict[str, Any], spec: Spec) -> Iterator[dict[str, Any]]:
    method = base["method"] or name
    inside = {**base, "method": method, "group": name if base["method"] else ""}
    for key, value in scores.items():
        if isinstance(value, dict):
            yield from (
                {**inside, "group": str(key), "metric": k, "value": v} for k, v in value.items() if _is_number(v)
            )
        elif not _is_number(value):
            continue
        elif spec.leaf != "value":  # group -> value
            yield {**inside, "group": str(key), "metric": spec.leaf, "value": value}
        elif base["method"]:  # setting -> metric -> value
            yield {**inside, "metric": f"{name}: {key}", "value": value}
        else:
            yield {**inside, "metric": str(key), "value": value}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def tables(name: str, results: Path) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield (title, methods x metrics, note) for a result file."""
    spec = SPECS[name]
    rows = [row for record in read(results / f"{spec.file}.jsonl") for row in long(record, spec)]
    if not rows:
        return
    frame = pd.DataFrame(rows)
    for split, part in frame.groupby("split", sort=False):
        wanted = [m for m in spec.metrics if m in set(part["metric"])] or list(dict.fromkeys(part["metric"]))
        part = part[part["metric"].isin(wanted)]
        by_group = part.groupby(["method", "group", "metric"], sort=False)["value"].mean()  # seeds first
        table = (
            by_group.groupby(["method", "metric"], sort=False)
            .mean()
            .unstack()
            .reindex(columns=wanted)
            .dropna(how="all")
        )
        seeds = sorted({int(s) for s in part["seed"].dropna()})
        groups = part["group"].nunique()
        note = f"mean over {groups} group{'s' * (groups != 1)} and seed{'s' * (len(seeds) != 1)} " + ", ".join(
            map(str, seeds)
        )
        yield (
            f"{name}{f': {split}' if split else ''}",
            table.reindex([m for m in part["method"].unique() if m in table.index]),
            note,
        )


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table with three significant digits."""
    head = ["method", *map(str, table.columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method, row in table.iterrows():
        lines.append("| " + " | ".join([str(method), *(_short(v) for v in row)]) + " |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3g}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", choices=[*SPECS, []], help="result files; default all that are there")
    p.add_argument("--results", type=Path, default=HERE / "results", help="folder of the JSON lines files")
    args = p.parse_args()
    for name in args.names or [n for n, s in SPECS.items() if (args.results / f"{s.file}.jsonl").exists()]:
        for title, table, note in tables(name, args.results):
            print(f"### {title}\n\n{note}\n\n{markdown(table)}\n")


if __name__ == "__main__":
    main()
