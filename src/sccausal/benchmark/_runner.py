"""Run methods on the cases of a task: one JSON file per run, so that a killed run continues where it was."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import SCCausalError, SetupError
from sccausal.benchmark._folder import available, data_folder
from sccausal.benchmark._measure import measured
from sccausal.benchmark._methods import Method, choose
from sccausal.benchmark._task import Case, Dataset, Request, Task, get_task

if TYPE_CHECKING:
    from anndata import AnnData
    from rich.progress import Progress

logger = logging.getLogger(__name__)

SCHEMA = 1
_PACKAGES = ("sccausal", "scvi-tools", "torch", "numpy", "scipy", "scikit-learn", "anndata", "scanpy", "pertpy")
_MARK = "benchmark.json"


def run(
    task: str,
    out: str | Path,
    *,
    models: Iterable[str] | None = None,
    data: Sequence[str | Dataset] | None = None,
    folder: str | Path | None = None,
    seeds: int = 5,
    first_seed: int = 0,
    small: bool = False,
    predictions: dict[str, AnnData] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run a task and write one JSON file per data set, case, method and seed.

    Parameters
    ----------
    task
        Name of the task.
    out
        Folder of the results. Runs that are there and finished are not repeated; those that failed are.
    models
        Models to run beside the rules; default all that stand, ``()`` for the rules alone.
    data
        Names of data sets, or :class:`Dataset` objects; ``"all"`` takes all that can be loaded. Default: the first
        (simulated) data set of the task.
    folder
        Folder of the real data; default the environment variable ``SCCAUSAL_DATA``.
    seeds, first_seed
        Number of seeds, and the first one. Report on seeds that settings were not tuned on.
    small
        The shortest run that still exercises every step.
    predictions
        Predicted cells from elsewhere by name, in the prediction schema; they are scored like a method's.
    progress
        Show a progress bar.

    Returns
    -------
    The records of all runs, as in the files.

    Raises
    ------
    sccausal._errors.UnknownNameError
        The task, a data set or a model is not known.
    sccausal._errors.SetupError
        Data are missing, or the folder holds runs of the other size.

    Examples
    --------
    >>> from sccausal.benchmark import run
    >>> records = run("identify", "results", models=(), seeds=1, small=True, progress=False)
    >>> sorted({record["status"] for record in records})
    ['done']
    """
    if seeds < 1:
        raise SetupError(f"`seeds` must be at least 1, got {seeds}.")
    chosen = get_task(task)
    methods = choose(task, models)
    root, place = Path(out), data_folder(folder)
    datasets = _datasets(chosen, data, place)
    _claim(root, small)
    records: list[dict[str, Any]] = []
    bar = _bar(progress)
    with bar:
        for dataset in datasets:
            for seed in range(first_seed, first_seed + seeds):
                line = bar.add_task(f"{task} · {dataset.name} · seed {seed}", total=None)
                request = Request(seed, small, place)
                for case in chosen.cases(dataset.load(request), dataset, request):
                    runs = [m for m in methods if m.can(case.problem)] + _from_elsewhere(predictions)
                    bar.update(line, total=(bar.tasks[line].total or 0) + len(runs))
                    for method in runs:
                        bar.update(line, description=f"{task} · {dataset.name} · seed {seed} · {method.name}")
                        records.append(_one(chosen, case, method, root))
                        bar.advance(line)
    return records


def export_cases(
    task: str,
    out: str | Path,
    *,
    data: str | Dataset | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    small: bool = False,
) -> list[Path]:
    """Write the training cells and questions of a task, so that a tool from elsewhere can answer them.

    Parameters
    ----------
    task, data, folder, seed, small
        As for :func:`run`; one data set and one seed.
    out
        Folder; each case gets a folder in it with ``train.h5ad``, ``source.h5ad`` or ``cells.h5ad`` (where the task has
        them) and ``problem.json`` (keys, interventions, times, digest of the split). The truth is not written.

    Returns
    -------
    Folders of the cases.

    Examples
    --------
    >>> from sccausal.benchmark import export_cases
    >>> folders = export_cases("identify", "questions", small=True)
    >>> sorted(path.name for path in folders[0].iterdir())
    ['cells.h5ad', 'problem.json', 'train.h5ad']
    """
    chosen, place = get_task(task), data_folder(folder)
    dataset = _datasets(chosen, None if data is None else [data], place)[0]
    request = Request(seed, small, place)
    written = []
    for case in chosen.cases(dataset.load(request), dataset, request):
        p = case.problem
        here = Path(out) / _slug(dataset.name) / f"{_slug(case.problem.case)}-seed-{seed}"
        here.mkdir(parents=True, exist_ok=True)
        for name, cells in (("train", p.train), ("source", p.source), ("cells", p.cells)):
            if cells is not None:
                _plain_uns(cells).write_h5ad(here / f"{name}.h5ad")
        content = {
            "task": task,
            "dataset": dataset.name,
            "case": p.case,
            "seed": seed,
            "keys": {k: v for k, v in vars(p.keys).items() if v},
            "interventions": p.interventions,
            "times": p.times,
            "output": chosen.output,
            "fingerprint": case.fingerprint(),
        }
        _write(here / "problem.json", content)
        written.append(here)
    return written


def _plain_uns(cells: AnnData) -> AnnData:
    """A copy without what is known of the truth."""
    out = cells.copy()
    for key in [k for k in out.uns if k != "sccausal"]:
        del out.uns[key]
    for layer in [k for k in out.layers if k != "counts"]:
        del out.layers[layer]
    return out


def _datasets(task: Task, data: Sequence[str | Dataset] | None, folder: Path | None) -> list[Dataset]:
    if data is None:
        return [task.datasets[0]]
    found: list[Dataset] = []
    for item in data:
        if isinstance(item, Dataset):
            found.append(item)
        elif item == "all":
            found += [d for d in task.datasets if available(d, folder)]
        else:
            found.append(task.dataset(item))
    return list({d.name: d for d in found}.values())


def _from_elsewhere(predictions: dict[str, AnnData] | None) -> list[Method]:
    def method(name: str, cells: AnnData) -> Method:
        return Method(name, "model", lambda problem: cells)

    return [method(name, cells) for name, cells in (predictions or {}).items()]


def _claim(root: Path, small: bool) -> None:
    """Make ``root`` a folder of benchmark results of one size."""
    mark = root / _MARK
    if root.exists() and not root.is_dir():
        raise SetupError(f"{root} is a file; name a folder.")
    if mark.exists():
        if bool(json.loads(mark.read_text(encoding="utf-8")).get("small")) != small:
            raise SetupError(f"{root} holds runs {'without' if small else 'with'} --small; name another folder.")
        return
    if root.exists() and any(root.iterdir()):
        raise SetupError(f"{root} is not empty and holds no benchmark; name another folder.")
    root.mkdir(parents=True, exist_ok=True)
    _write(mark, {"schema": SCHEMA, "small": small})


def _one(task: Task, case: Case, method: Method, root: Path) -> dict[str, Any]:
    p = case.problem
    path = root / "runs" / p.task / _slug(p.dataset) / _slug(p.case) / _slug(method.name) / f"seed-{p.seed}.json"
    digest = case.fingerprint()
    done = _finished(path, digest)
    if done is not None:
        return done
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "task": p.task,
        "dataset": p.dataset,
        "case": p.case,
        "method": method.name,
        "kind": method.kind,
        "seed": p.seed,
        "small": p.small,
        "fingerprint": digest,
        "held_out": case.held_out,
        "facts": case.facts,
        "versions": _versions(),
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        },
    }
    try:
        with measured() as cost:
            output = method.answer(case)
        scores = output if _is_scored(output) else task.score(case, output)
        record |= {"status": "done", "scores": _records(scores)}
    except (SCCausalError, ImportError) as error:
        logger.warning("%s on %s (%s): %s", method.name, p.dataset, p.case, error)
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}", "scores": []}
    except Exception as error:  # noqa: BLE001 - a method's fault must not end the runs of the others
        logger.warning("%s on %s (%s) broke: %s", method.name, p.dataset, p.case, error)
        record |= {"status": "failed", "error": traceback.format_exc(limit=8), "scores": []}
    record |= cost
    _write(path, record)
    return record


def _finished(path: Path, digest: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # written by a process that was killed on a file system without atomic renames
        return None
    same = record.get("schema") == SCHEMA and record.get("fingerprint") == digest and record.get("status") == "done"
    return record if same else None


def _is_scored(output: Any) -> bool:
    return isinstance(output, pd.DataFrame) and {"metric", "value"} <= set(output.columns)


def _records(scores: pd.DataFrame) -> list[dict[str, Any]]:
    columns = [c for c in ("group", "metric", "value", "direction", "unit", "stratum") if c in scores]
    return [{str(k): _plain(v) for k, v in row.items()} for row in scores[columns].to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    # JSON has no NaN
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")
    part.replace(path)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _slug(name: str) -> str:
    """Name as part of a path; names that differ only in signs stay apart through a short digest."""
    import hashlib

    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") or "x"
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _bar(show: bool) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        disable=not show,
    )  # fmt: skip


def iterate_records(root: Path) -> Iterator[dict[str, Any]]:
    """All records below a results folder, in a fixed order."""
    for path in sorted((root / "runs").rglob("seed-*.json")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            logger.warning("%s is not JSON and is left out.", path)
