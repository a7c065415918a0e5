"""Splits by task, each holding out whole combinations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.data._interventions import InterventionCodec, check_control, split_label
from sccausal.data._splits import Split, Units, assemble, hold_out_units
from sccausal.data._validation import check_numeric_column, check_obs_column

Task = Literal[
    "unseen_doubles",
    "n_seen",
    "condition_x_type",
    "leave_intervention_out",
    "unseen_concepts",
    "leave_batch_out",
    "replicate",
]


@dataclass(frozen=True)
class _Request:
    """Arguments of :func:`split` that the tasks read."""

    adata: ad.AnnData
    keys: dict[str, Any]
    control: str | None
    sep: str | None
    times: Sequence[float] | None
    n_seen: int | None
    test_fraction: float
    seed: int

    def column(self, name: str, task: str) -> np.ndarray:
        if self.keys[name] is None:
            raise SetupError(f"Task {task!r} needs `{name}`.")
        column = check_obs_column(self.adata, self.keys[name], name, n_levels=2)
        return column.astype(str).str.strip().to_numpy(dtype=object)


def split(
    adata: ad.AnnData,
    task: Task,
    *,
    intervention_key: str | None = None,
    condition_key: str | None = None,
    control: str | None = None,
    labels_key: str | None = None,
    batch_key: str | None = None,
    time_key: str | None = None,
    concept_keys: Sequence[str] | None = None,
    hold_out: str | Sequence[str] | None = None,
    times: Sequence[float] | None = None,
    n_seen: int | None = None,
    validation: str | Sequence[str] | None = None,
    test_fraction: float = 0.2,
    validation_fraction: float = 0.0,
    control_fraction: float = 0.0,
    sep: str | None = "+",
    seed: int = 0,
    key_added: str | None = None,
) -> Split:
    """Split cells for a task so that nothing that is to be predicted is seen in training.

    Parameters
    ----------
    adata
        Cells x genes.
    task
        What is held out (a unit in brackets):

        - ``"unseen_doubles"``: combinations whose single interventions are all in training [``"A+B"``].
        - ``"n_seen"``: targets with all their combinations, and some of the other combinations. In training stay
          singles and combinations of seen targets only; ``params["n_seen"]`` says how many targets of each test
          label were seen [target].
        - ``"condition_x_type"``: one cell type under the non-control conditions [cell type, or
          ``"type | condition"`` for a single condition].
        - ``"leave_intervention_out"``: an intervention with all combinations that contain it; with ``time_key`` and
          ``times`` only at these times [target].
        - ``"unseen_concepts"``: combinations of concept levels; each level stays in training [``"a | b"``].
        - ``"leave_batch_out"``: batches [batch].
        - ``"replicate"``: replicates, named by ``batch_key``; all interventions of the test cells must be in training,
          others are left out of the test [replicate].
    intervention_key, condition_key, labels_key, batch_key, time_key, concept_keys
        Columns of ``obs``. Either of the first two may name the perturbed variable.
    control
        Label of control cells.
    hold_out
        Units to test on; drawn at random if ``None``.
    times
        For ``"leave_intervention_out"``: the times at which the intervention is held out.
    n_seen
        For ``"n_seen"``: test only labels with this number of seen targets; other held-out cells are in no set.
    validation
        Units to validate on.
    test_fraction, validation_fraction
        Share of the units to draw, at least one; no validation with 0.
    control_fraction
        Share of the control cells that join the test set, as an independent reference.
    sep
        String between the targets of a combination.
    seed
        Seed of all draws. The result does not depend on the order of cells.
    key_added
        Also write ``train``, ``validation``, ``test`` to this column of ``obs``.

    Returns
    -------
    :class:`~sccausal.data.Split`, which can be saved beside a result.

    Raises
    ------
    SetupError
        If a key is missing, a unit cannot be held out, or a set would be empty.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0)
    >>> split = scc.pp.split(adata, "unseen_doubles", intervention_key="intervention", control="control")
    >>> adata.obs["intervention"].iloc[split.test].unique().tolist()
    ['G0007+G0010']
    """
    if task not in _UNITS:
        raise SetupError(f"Unknown task {task!r}; known are {', '.join(_UNITS)}.")
    keys = {
        "intervention_key": intervention_key,
        "condition_key": condition_key,
        "labels_key": labels_key,
        "batch_key": batch_key,
        "time_key": time_key,
        "concept_keys": [concept_keys] if isinstance(concept_keys, str) else concept_keys and list(concept_keys),
    }
    request = _Request(adata, keys, control, sep, times, n_seen, test_fraction, seed)
    units = _UNITS[task](request)
    test, held = hold_out_units(units, hold_out, test_fraction, validation, validation_fraction, seed)
    consequence = _AFTER[task](request, units, test, held) if task in _AFTER else _Consequence()
    params = {**keys, "control": control, "sep": sep, "seed": seed, "times": times and [float(t) for t in times]}
    result = assemble(
        adata,
        task,
        units,
        [*test, *consequence.test],
        held,
        {**params, **consequence.params},
        unused=consequence.unused,
        test_only=_held_controls(request, control_fraction),
    )
    if key_added is not None:
        result.apply(adata, key_added)
    return result


# -- what each task can hold out -------------------------------------------------------------------------------------


def _labels(request: _Request, task: str) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    """Canonical label of each cell, and the targets of each label."""
    raw = request.column("intervention_key", task)
    codec = InterventionCodec.fit(pd.Series(raw), request.control, request.sep)
    canonical = {level: codec.canonical(level) for level in np.unique(raw)}
    parts = {name: split_label(name, codec.control, codec.sep) for name in canonical.values()}
    return np.array([canonical[v] for v in raw], dtype=object), parts


def _containing(parts: dict[str, tuple[str, ...]]) -> dict[str, frozenset[str]]:
    targets = sorted({t for p in parts.values() for t in p})
    return {t: frozenset(name for name, p in parts.items() if t in p) for t in targets}


def _doubles(request: _Request) -> Units:
    label, parts = _labels(request, "unseen_doubles")
    eligible = [name for name, p in parts.items() if len(p) > 1 and all(t in parts for t in p)]
    if not eligible:
        raise SetupError("No combination has all its single interventions in the data.")
    return Units(label, eligible)


def _targets(request: _Request) -> Units:
    label, parts = _labels(request, "n_seen")
    dependent = _containing(parts)
    return Units(label, sorted(dependent), dependent=dependent)


def _targets_at_times(request: _Request) -> Units:
    label, parts = _labels(request, "leave_intervention_out")
    dependent = _containing(parts)
    if request.times is not None:
        if request.keys["time_key"] is None:
            raise SetupError("`times` needs `time_key`.")
        time = check_numeric_column(request.adata, request.keys["time_key"], "time_key").to_numpy(dtype=float)
        absent = sorted(set(map(float, request.times)) - set(time))
        if absent:
            raise SetupError(f"No cell has time {absent[0]:g}. Found: {', '.join(f'{t:g}' for t in np.unique(time))}.")
        label = np.where(np.isin(time, list(request.times)), label, label + " at other times")
    return Units(label, sorted(dependent), dependent=dependent)


def _types(request: _Request) -> Units:
    task = "condition_x_type"
    name = "condition_key" if request.keys["condition_key"] is not None else "intervention_key"
    condition, cell_type = request.column(name, task), request.column("labels_key", task)
    check_control(list(np.unique(condition)), request.control, f"adata.obs[{request.keys[name]!r}]")
    pairs = cell_type + " | " + condition
    perturbed = condition != request.control
    dependent = {t: frozenset(pairs[perturbed & (cell_type == t)]) for t in np.unique(cell_type)}
    both = set(cell_type[perturbed]) & set(cell_type[~perturbed])
    return Units(pairs, sorted(both), frozenset(pairs[perturbed]), dependent)


def _concepts(request: _Request) -> Units:
    columns = request.keys["concept_keys"]
    if not columns or len(columns) < 2:
        raise SetupError("Task 'unseen_concepts' needs two or more `concept_keys`.")
    levels = [
        check_obs_column(request.adata, c, "concept_keys", n_levels=2).astype(str).str.strip().to_numpy(dtype=object)
        for c in columns
    ]
    combination = np.array([" | ".join(row) for row in zip(*levels, strict=True)], dtype=object)
    rows = dict(zip(combination, zip(*levels, strict=True), strict=True))
    left, eligible = dict(sorted(rows.items())), list[str]()
    for name in np.random.default_rng(request.seed).permutation(np.array(sorted(rows), dtype=object)):
        rest = {k: v for k, v in left.items() if k != name}
        if not _lost_levels(rows[name], rest.values()):
            left, eligible = rest, [*eligible, str(name)]
    return Units(combination, eligible, frozenset(rows))


def _lost_levels(row: Sequence[str], rest: Any) -> list[str]:
    """Levels of ``row`` that no combination in ``rest`` has in the same place."""
    rest = list(rest)
    return [level for j, level in enumerate(row) if all(other[j] != level for other in rest)]


def _batches(request: _Request) -> Units:
    batch = request.column("batch_key", "leave_batch_out")
    return Units(batch, sorted(set(batch)))


# -- what follows from the choice ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Consequence:
    test: Sequence[str] = ()
    unused: np.ndarray | None = None
    params: dict[str, Any] = field(default_factory=dict)


def _count_seen(request: _Request, units: Units, test: Sequence[str], held: Sequence[str]) -> _Consequence:
    """Add combinations of seen targets to the test and count the seen targets of every test label."""
    _, parts = _labels(request, "n_seen")
    unseen, away = set(test), set(test) | set(held)
    whole = sorted(name for name, p in parts.items() if len(p) > 1 and not away & set(p))
    n_more = round(request.test_fraction * len(whole))
    more = [
        str(n) for n in np.random.default_rng([request.seed, 1]).permutation(np.array(whole, dtype=object))[:n_more]
    ]
    tested = {name for name, p in parts.items() if unseen & set(p)} | set(more)
    count = {name: len([t for t in parts[name] if t not in away]) for name in sorted(tested)}
    unused = None
    if request.n_seen is not None:
        dropped = [n for n, k in count.items() if k != request.n_seen or len(parts[n]) < 2]
        unused = np.isin(units.of_cell, dropped)
        count = {n: k for n, k in count.items() if n not in dropped}
        if not count:
            raise SetupError(f"No held-out combination has {request.n_seen} seen targets; hold out others.")
    return _Consequence(more, unused, {"n_seen": count})


def _levels_stay(request: _Request, units: Units, test: Sequence[str], held: Sequence[str]) -> _Consequence:
    away = set(test) | set(held)
    rows = {name: name.split(" | ") for name in set(units.of_cell)}
    rest = [row for name, row in rows.items() if name not in away]
    lost = [level for name in sorted(away) for level in _lost_levels(rows[name], rest)]
    if lost:
        raise SetupError(
            f"Training would hold no cell of {', '.join(map(repr, lost[:5]))}; hold out fewer combinations."
        )
    return _Consequence()


def _only_trained(request: _Request, units: Units, test: Sequence[str], held: Sequence[str]) -> _Consequence:
    """Leave out test cells whose intervention no training replicate has."""
    name = "condition_key" if request.keys["condition_key"] is not None else "intervention_key"
    if request.keys[name] is None:
        return _Consequence()
    if name == "intervention_key":
        label = _labels(request, "replicate")[0]
    else:
        label = request.column(name, "replicate")
    training = ~np.isin(units.of_cell, [*test, *held])
    unknown = ~np.isin(label, np.unique(label[training])) & ~training
    return _Consequence(unused=unknown, params={"not_in_training": sorted(set(label[unknown]))})


def _held_controls(request: _Request, fraction: float) -> np.ndarray | None:
    if fraction == 0:
        return None
    if not 0 < fraction < 1:
        raise SetupError(f"`control_fraction` must be in [0, 1), got {fraction}.")
    name = "intervention_key" if request.keys["intervention_key"] is not None else "condition_key"
    label = request.column(name, "with control_fraction")
    check_control(list(np.unique(label)), request.control, f"adata.obs[{request.keys[name]!r}]")
    # by name, so that the order of the cells does not matter
    rows = np.argsort(request.adata.obs_names.to_numpy(dtype=str), kind="stable")
    rows = rows[label[rows] == request.control]
    chosen = np.random.default_rng([request.seed, 2]).permutation(rows)[: round(fraction * len(rows))]
    return np.isin(np.arange(len(label)), chosen)


_UNITS: dict[str, Callable[[_Request], Units]] = {
    "unseen_doubles": _doubles,
    "n_seen": _targets,
    "condition_x_type": _types,
    "leave_intervention_out": _targets_at_times,
    "unseen_concepts": _concepts,
    "leave_batch_out": _batches,
    "replicate": _batches,
}
_AFTER: dict[str, Callable[[_Request, Units, Sequence[str], Sequence[str]], _Consequence]] = {
    "n_seen": _count_seen,
    "unseen_concepts": _levels_stay,
    "replicate": _only_trained,
}
