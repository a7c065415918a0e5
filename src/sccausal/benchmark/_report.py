"""Markdown and HTML report of a results folder."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sccausal.benchmark._figures import draw
from sccausal.benchmark._notices import notices
from sccausal.benchmark._results import facts_of, load_results, load_runs, per_run_costs, scaled, table
from sccausal.benchmark._task import Task, get_task

_ARROW = {"higher": "↑", "lower": "↓", "one": "→1", "none": ""}


class Section(NamedTuple):
    """One task and data set of the report."""

    title: str
    text: list[str]
    notices: list[str]
    tables: dict[str, pd.DataFrame]  # by title
    figures: dict[str, Path]  # by title
    details: dict[str, pd.DataFrame]  # folded


def write_report(out: str | Path, *, n_boot: int = 1000) -> dict[str, Path]:
    """Write ``report.md``, ``report.html``, figures and the tables behind them into a results folder.

    Parameters
    ----------
    out
        Folder that :func:`run` wrote to.
    n_boot
        Bootstrap draws of the intervals.

    Returns
    -------
    Paths: ``markdown``, ``html``, ``scores`` (all scores as csv), ``summary`` (means, intervals and tests as csv).

    Raises
    ------
    sccausal._errors.SetupError
        The folder holds no finished run.

    Examples
    --------
    >>> from sccausal.benchmark import run, write_report
    >>> records = run("identify", "results", models=(), seeds=1, small=True, progress=False)
    >>> sorted(write_report("results", n_boot=20))
    ['html', 'markdown', 'scores', 'summary']
    """
    root = Path(out)
    frame, runs = load_results(root), load_runs(root)
    sections, summaries = [], []
    for name, dataset in frame[["task", "dataset"]].drop_duplicates().itertuples(index=False):
        task = get_task(name)
        scores = scaled(frame[(frame["task"] == name) & (frame["dataset"] == dataset)], task)
        own = runs[(runs["task"] == name) & (runs["dataset"] == dataset)]
        section, summary = _section(scores, own, task, str(dataset), root / "figures", n_boot)
        sections.append(section)
        summaries.append(summary.assign(task=name, dataset=dataset))
    paths = {
        "markdown": root / "report.md",
        "html": root / "report.html",
        "scores": root / "scores.csv",
        "summary": root / "summary.csv",
    }
    paths["markdown"].write_text(_markdown(sections, root, runs), encoding="utf-8")
    paths["html"].write_text(_html(sections, root, runs), encoding="utf-8")
    frame.to_csv(paths["scores"], index=False)
    pd.concat(summaries, ignore_index=True).to_csv(paths["summary"], index=False)
    return paths


def _section(
    scores: pd.DataFrame, runs: pd.DataFrame, task: Task, dataset: str, folder: Path, n_boot: int
) -> tuple[Section, pd.DataFrame]:
    shown = [m for m in task.headline if m in set(scores["metric"])]
    summary = table(scores, list(dict.fromkeys(scores["metric"])), n_boot=n_boot)
    tables = {"Mean over groups and seeds, 95 % bootstrap interval": _wide(summary, scores, shown, _interval)}
    if (summary["kind"] == "model").any():
        title = f"Models against the best rule (paired Wilcoxon test over {task.paired_by})"
        tables[title] = _tests(summary, shown)
    if "scaled" in scores:
        kept = scores[scores["metric"].isin(shown) & scores["scaled"].notna()]
        if not kept.empty:
            means = kept.groupby(["method", "metric"], sort=False)["scaled"].mean().unstack("metric")
            tables[f"Scaled: 0 is {task.zero}, 1 is {task.one}"] = _rounded(
                means.reindex(columns=shown).dropna(how="all")
            )
    note = next((d.note for d in task.datasets if d.name == dataset), "")
    text = [f"{task.question} {note}".strip(), _facts(runs)]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", f"{task.name}-{dataset}").lower()
    section = Section(
        f"{task.name}: {dataset}",
        [t for t in text if t],
        notices(scores, runs, task),
        tables,
        draw(scores, task, folder, stem),
        {
            "All metrics": _wide(
                summary, scores, list(dict.fromkeys(scores["metric"])), lambda row: f"{row['mean']:.3g}"
            ),
            "By case": _by_case(scores, shown[:1]),
            "Cost": _rounded(per_run_costs(runs)),
        },
    )
    return section, summary


def _wide(
    summary: pd.DataFrame, scores: pd.DataFrame, metrics: Sequence[str], show: Callable[[pd.Series], str]
) -> pd.DataFrame:
    """Methods in rows, models first; the best of models and rules in bold."""
    ways = scores.drop_duplicates("metric").set_index("metric")["direction"]
    rows = summary[summary["metric"].isin(list(metrics))].copy()
    rows["text"] = [show(r) for _, r in rows.iterrows()]
    best = _best(rows, ways)
    rows["text"] = [f"**{t}**" if i in best else t for i, t in zip(rows.index, rows["text"], strict=True)]
    out = rows.pivot(index=["kind", "method"], columns="metric", values="text").reindex(columns=list(metrics))
    order = {k: i for i, k in enumerate(("model", "baseline", "reference", "negative", "ceiling"))}
    out = out.reindex(sorted(out.index, key=lambda k: order.get(k[0], 9))).fillna("–").reset_index()
    return out.rename(columns={m: f"{m.replace('_', ' ')} {_ARROW[ways[m]]}".strip() for m in metrics})


def _best(rows: pd.DataFrame, ways: pd.Series) -> set[int]:
    rivals = rows[rows["kind"].isin(["model", "baseline"])]
    found: set[int] = set()
    for metric, part in rivals.groupby("metric"):
        if ways[metric] == "none" or part["mean"].isna().all():
            continue
        bad = {"lower": part["mean"], "higher": -part["mean"], "one": (part["mean"] - 1).abs()}[ways[metric]]
        found |= set(bad.index[np.isclose(bad, bad.min(), rtol=1e-6, atol=1e-12)])
    return found


def _mean(row: pd.Series) -> str:
    return f"{row['mean']:.3g}"


def _interval(row: pd.Series) -> str:
    if row["n"] < 2:
        return f"{row['mean']:.3g}"
    return f"{row['mean']:.3g} ({row['low']:.3g}, {row['high']:.3g})"


def _tests(summary: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    rows = []
    for metric in metrics:
        part = summary[summary["metric"] == metric]
        for r in part[part["kind"] == "model"].to_dict("records"):
            if not isinstance(r["best_baseline"], str):
                continue
            rule = float(part.loc[part["method"] == r["best_baseline"], "mean"].iloc[0])
            p = "–" if np.isnan(r["p_value"]) else f"{r['p_value']:.2g}"
            rows.append(
                (
                    r["method"],
                    metric.replace("_", " "),
                    f"{r['mean']:.3g}",
                    r["best_baseline"],
                    f"{rule:.3g}",
                    p,
                    int(r["n"]),
                )
            )
    return pd.DataFrame(rows, columns=["model", "metric", "model's mean", "best rule", "rule's mean", "p", "pairs"])


def _by_case(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    kept = scores[scores["metric"].isin(list(metrics))]
    out = kept.pivot_table(index="method", columns="case", values="value", sort=False)
    out.columns.name = None
    return _rounded(out)


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.copy()
    for column in out.columns:
        if pd.api.types.is_float_dtype(out[column]):
            out[column] = [f"{v:.3g}" if np.isfinite(v) else "–" for v in out[column]]
    out.columns = [str(c).replace("_", " ") for c in out.columns]
    return out.reset_index()


def _facts(runs: pd.DataFrame) -> str:
    facts = facts_of(runs)
    if not facts:
        return ""
    names = [k for k in facts[0] if k not in ("case", "seed")]
    parts = []
    for name in names:
        values = [f.get(name) for f in facts]
        numbers = [v for v in values if isinstance(v, int | float)]
        label = name.replace("_", " ")
        if numbers:
            low, high = min(numbers), max(numbers)
            parts.append(f"{label} {low:.4g}" if low == high else f"{label} {low:.4g} to {high:.4g}")
        elif values[0]:
            parts.append(f"{label} {values[0]}")
    cases = ", ".join(dict.fromkeys(str(f["case"]) for f in facts))
    seeds = sorted({f["seed"] for f in facts})
    return f"Cases: {cases}. Seeds: {', '.join(map(str, seeds))}. " + "; ".join(parts) + "."


def _markdown(sections: list[Section], root: Path, runs: pd.DataFrame) -> str:
    lines = ["# Benchmark report", "", _head(runs), ""]
    for s in sections:
        lines += [f"## {s.title}", "", *[x for t in s.text for x in (t, "")]]
        lines += [*[f"- {n}" for n in s.notices], ""] if s.notices else []
        for title, content in s.tables.items():
            lines += [f"**{title}**", "", _pipes(content), ""]
        for title, path in s.figures.items():
            lines += [f"![{title}]({path.relative_to(root).as_posix()})", ""]
        for title, content in s.details.items():
            lines += ["<details>", f"<summary>{title}</summary>", "", _pipes(content), "", "</details>", ""]
    return "\n".join(lines)


def _head(runs: pd.DataFrame) -> str:
    versions: dict[str, str] = next((v for v in runs["versions"] if v), {})
    shown = ", ".join(f"{k} {v}" for k, v in versions.items())
    return (
        f"{len(runs)} runs, {int((runs['status'] == 'done').sum())} finished. {shown}. The best of models and rules is "
        "bold; ceilings see the truth and are scored on half of the cells, so noise lets a method pass them."
    )


def _pipes(frame: pd.DataFrame) -> str:
    rows = [[str(c) for c in frame.columns], ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; color: #1c1c1c; }
table { border-collapse: collapse; margin: .6em 0 1.4em; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .25em .7em; border-bottom: 1px solid #e3e3e3; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #999; } tr.model td { background: #eef4fb; } tr.ceiling td { color: #3a7a49; }
tr.negative td { color: #a3562b; }
ul.notices { background: #fdf6e3; padding: .8em 2em; border-left: 4px solid #d9a514; }
img { max-width: 100%; margin: .5em 0; } summary { cursor: pointer; color: #1f5fa8; }
"""


def _html(sections: list[Section], root: Path, runs: pd.DataFrame) -> str:
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Benchmark report</title>",
        f"<style>{_STYLE}</style></head><body><h1>Benchmark report</h1><p>{_inline(_head(runs))}</p>",
    ]
    for s in sections:
        parts.append(f"<h2>{_inline(s.title)}</h2>" + "".join(f"<p>{_inline(t)}</p>" for t in s.text))
        if s.notices:
            parts.append("<ul class='notices'>" + "".join(f"<li>{_inline(n)}</li>" for n in s.notices) + "</ul>")
        for title, content in s.tables.items():
            parts.append(f"<h3>{_inline(title)}</h3>{_rows(content)}")
        for title, path in s.figures.items():
            parts.append(f"<h3>{_inline(title)}</h3><img src='{_embedded(path)}' alt='{html.escape(title)}'>")
        for title, content in s.details.items():
            parts.append(f"<details><summary>{_inline(title)}</summary>{_rows(content)}</details>")
    return "\n".join([*parts, "</body></html>\n"])


def _rows(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{_inline(str(c))}</th>" for c in frame.columns)
    body = []
    for row in frame.astype(str).to_numpy().tolist():
        kind = f" class='{html.escape(row[0])}'" if frame.columns[0] == "kind" else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))


def _embedded(path: Path) -> str:
    """The figure inside the page, so that one file can be sent."""
    import base64

    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
