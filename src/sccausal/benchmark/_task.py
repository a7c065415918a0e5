"""What a task is made of: data, what is held out, what is asked, and how answers are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sccausal._errors import unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

TASK_NAMES = (
    "doubles",
    "interactions",
    "condition",
    "time",
    "counterfactual",
    "disentangle",
    "identify",
    "grn",
    "structure",
    "integrate",
    "sampler",
    "speed",
)


@dataclass(frozen=True)
class Keys:
    """Columns of a data set, by the names that ``setup_anndata`` and the baselines use.

    Parameters
    ----------
    intervention_key, condition_key
        Column of the perturbed variable, at most one of the two; ``intervention_key`` may name an ``obsm`` frame.
    control
        Label of the control cells in it.
    labels_key, batch_key, time_key
        Columns of cell types, batches and times.
    concept_keys
        Columns of the concepts that latents are to hold apart.
    label_column
        Column with the labels of the perturbed variable, where ``intervention_key`` is an ``obsm`` frame.
    sep
        String between the targets of a combination.

    Examples
    --------
    >>> from sccausal.benchmark import Keys
    >>> keys = Keys(condition_key="condition", control="control", labels_key="cell_type")
    >>> keys.target, keys.setup()
    ('condition', {'condition_key': 'condition', 'control': 'control', 'labels_key': 'cell_type'})
    """

    intervention_key: str | None = None
    condition_key: str | None = None
    control: str | None = None
    labels_key: str | None = None
    batch_key: str | None = None
    time_key: str | None = None
    concept_keys: tuple[str, ...] = ()
    label_column: str | None = None
    sep: str = "+"

    @property
    def target(self) -> str:
        """Column of ``obs`` with the labels of the perturbed variable."""
        return str(self.label_column or self.intervention_key or self.condition_key)

    def perturbed(self) -> dict[str, Any]:
        """Keyword arguments that name the perturbed variable and its control."""
        name = "intervention_key" if self.intervention_key is not None else "condition_key"
        value = self.intervention_key if self.intervention_key is not None else self.condition_key
        return {} if value is None else {name: value, "control": self.control}

    def rule(self, *, time: bool = False) -> dict[str, Any]:
        """Arguments of ``fit`` of a baseline."""
        out = {**self.perturbed(), "labels_key": self.labels_key, "batch_key": self.batch_key, "sep": self.sep}
        return out | ({"time_key": self.time_key} if time else {})

    def setup(self) -> dict[str, Any]:
        """Arguments of ``setup_anndata`` of a model, those that are there."""
        out = {**self.perturbed(), "labels_key": self.labels_key, "batch_key": self.batch_key}
        return {k: v for k, v in out.items() if v is not None}


class Request(NamedTuple):
    """What a data source is asked for.

    Parameters
    ----------
    seed
        Seed of simulators and draws.
    small
        Whether the shortest run is wanted.
    folder
        Folder of the real data, or ``None``.

    Examples
    --------
    >>> from sccausal.benchmark import Request, get_task
    >>> data = get_task("identify").datasets[0]
    >>> data.load(Request(seed=0, small=True)).n_obs > 0
    True
    """

    seed: int
    small: bool
    folder: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A data source of a task: a simulator, or a file of the data folder.

    Parameters
    ----------
    name
        Name on the command line and in results.
    load
        Function of a :class:`Request` that returns cells with log1p(1e4) values (or what the task says) in ``X``.
    keys
        Columns.
    file
        File or folder below the data folder, or ``None`` for a simulator.
    note
        What a reader of results has to know about the data; printed in the report.
    options
        What is held out, as the task reads it.

    Examples
    --------
    >>> from sccausal.benchmark import Dataset, Keys
    >>> from sccausal.datasets import kang_2018
    >>> Dataset("kang", lambda request: kang_2018(), Keys(condition_key="condition", control="control")).name
    'kang'
    """

    name: str
    load: Callable[[Request], AnnData]
    keys: Keys = field(default_factory=Keys)
    file: str | None = None
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Problem:
    """What a method sees: training cells and a question, never the answer.

    Parameters
    ----------
    task, dataset, case
        Where the problem stands.
    train
        Training cells.
    keys
        Their columns.
    seed, small
        Seed of the method; whether the shortest honest run is wanted.
    source
        Control cells to predict from.
    interventions, times
        What is to be predicted.
    cells
        Cells to encode, integrate or answer counterfactuals for, without their truth.
    extra
        What a task hands over besides, as its page says.

    Examples
    --------
    >>> from sccausal.benchmark import Request, get_task
    >>> task = get_task("identify")
    >>> data = task.datasets[0]
    >>> request = Request(seed=0, small=True)
    >>> problem = next(task.cases(data.load(request), data, request)).problem
    >>> problem.task, problem.train.n_obs > 0
    ('identify', True)
    """

    task: str
    dataset: str
    case: str
    train: AnnData
    keys: Keys
    seed: int = 0
    small: bool = False
    source: AnnData | None = None
    interventions: list[str] = field(default_factory=list)
    times: list[float] | None = None
    cells: AnnData | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Case:
    """A problem with its answer.

    Parameters
    ----------
    problem
        What methods see.
    truth
        What they are scored against: held-out cells, a network, latents.
    facts
        Numbers about the data that the report prints (cells, groups, genes with an effect, ...).
    held_out
        What was held out, in words.

    Examples
    --------
    >>> from sccausal.benchmark import Request, get_task
    >>> task = get_task("identify")
    >>> data = task.dataset(task.datasets[0].name)
    >>> request = Request(seed=0, small=True)
    >>> case = next(task.cases(data.load(request), data, request))
    >>> case.problem.task, len(case.fingerprint()) > 0
    ('identify', True)
    """

    problem: Problem
    truth: Any
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Digest of training cells, genes, question and held-out cells: equal only for equal problems."""
        p = self.problem
        parts = [p.task, p.dataset, p.case, str(p.train.shape), *map(str, p.train.var_names)]
        parts += ["train", *map(str, p.train.obs_names), "asked", *p.interventions, *map(str, p.times or ())]
        for cells in (p.source, p.cells, self.truth):
            names = getattr(cells, "obs_names", None)
            parts += ["cells", *map(str, names if names is not None else ())]
        # names of simulated cells are the same for all seeds, so that values must speak too
        digest = hashlib.sha256("\n".join(parts).encode())
        digest.update(f"{float(p.train.X.sum(dtype='float64')):.6g}".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """Data sources, a split, metrics and reference points.

    Parameters
    ----------
    name, question
        Name, and what it asks in one sentence.
    output
        What a method returns, in words.
    datasets
        Data sources; the first one is the default.
    cases
        Cuts cells into problems: ``(cells, dataset, request) -> cases``.
    score
        Scores an answer: ``(case, output) -> DataFrame`` with ``group, metric, value, direction, unit``.
    headline
        The metrics of the summary, the most telling one first.
    zero, one
        Methods that mark 0 and 1 of the scaled scores: the mean baseline and the replicate; ``None`` without them.
    floor
        The method that changes nothing.
    paired_by
        What a pair of the paired test is, in words.

    Examples
    --------
    >>> from sccausal.benchmark import get_task
    >>> task = get_task("doubles")
    >>> task.question
    'What do cells look like under two interventions together, when only each alone was measured?'
    """

    name: str
    question: str
    output: str
    datasets: tuple[Dataset, ...]
    cases: Callable[[AnnData, Dataset, Request], Iterator[Case]]
    score: Callable[[Case, Any], pd.DataFrame]
    headline: tuple[str, ...]
    zero: str | None = None
    one: str | None = None
    floor: str | None = None
    paired_by: str = "group of cells"

    def dataset(self, name: str) -> Dataset:
        """Data source by name.

        Raises
        ------
        sccausal._errors.UnknownNameError
            There is none of that name; close names are given.
        """
        for d in self.datasets:
            if d.name == name:
                return d
        raise unknown_name("data set", name, [d.name for d in self.datasets], f"the task {self.name!r}")


def get_task(name: str) -> Task:
    """Task by name.

    Parameters
    ----------
    name
        Name of the task.

    Raises
    ------
    sccausal._errors.UnknownNameError
        There is none of that name.

    Examples
    --------
    >>> from sccausal.benchmark import get_task
    >>> get_task("doubles").headline[0]
    'wmse'
    """
    if name not in TASK_NAMES:
        raise unknown_name("task", name, TASK_NAMES, "sccausal.benchmark")
    return import_module(f"sccausal.benchmark.tasks.{name}").TASK
