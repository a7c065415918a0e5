"""Splits that cannot leak: whole combinations are held out, and that is checked on the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, InputDataError, SetupError

SCHEMA = 1
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Row numbers of training, validation and test cells, and how they were chosen.

    Parameters
    ----------
    train, test
        Row numbers, int64, sorted.
    validation
        Row numbers, or ``None``.
    task
        What is held out, e.g. ``"unseen_doubles"``.
    params
        How: keys, seed, the held-out units and a digest of the cell names. Plain content, fit for JSON.

    Raises
    ------
    InputDataError
        If a cell is in two sets, or twice in one.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.data import Split
    >>> split = Split(train=np.arange(80), test=np.arange(80, 100))
    >>> len(split.train), len(split.test)
    (80, 20)
    >>> Split.from_dict(split.to_dict()).task
    'custom'
    """

    train: np.ndarray
    test: np.ndarray
    validation: np.ndarray | None = None
    task: str = "custom"
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _PARTS:
            rows = getattr(self, name)
            if rows is not None:
                object.__setattr__(self, name, np.sort(np.asarray(rows, dtype=np.int64)))
        together = np.concatenate([r for r in (self.train, self.test, self.validation) if r is not None])
        if len(np.unique(together)) < len(together):
            raise InputDataError("A cell is in two sets of the split, or twice in one.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Split) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def external_indexing(self) -> list[np.ndarray]:
        """Training, validation and test rows, as ``external_indexing`` of scvi-tools' data splitters."""
        empty = np.empty(0, dtype=np.int64)
        return [self.train, empty if self.validation is None else self.validation, self.test]

    def apply(self, adata: ad.AnnData, key_added: str | None = None) -> pd.Series:
        """Name the set of each cell.

        Parameters
        ----------
        adata
            The cells the split was made for.
        key_added
            Also write the result to this column of ``adata.obs``.

        Returns
        -------
        Categorical with levels train, validation, test; missing for cells in none of them.

        Raises
        ------
        InputDataError
            If these are other cells, or the same in another order.
        """
        n, digest = self.params.get("n_obs"), self.params.get("cells")
        highest = max((int(r.max()) for r in self.external_indexing() if len(r)), default=-1)
        if highest >= adata.n_obs or (n is not None and n != adata.n_obs):
            raise InputDataError(f"The split was made for {n or highest + 1} cells, adata has {adata.n_obs}.")
        if digest is not None and digest != cell_digest(adata):
            raise InputDataError("The split was made for other cells, or for these in another order.")
        code: np.ndarray = np.full(adata.n_obs, -1)
        for k, rows in enumerate(self.external_indexing()):
            code[rows] = k
        column = pd.Series(pd.Categorical.from_codes(code, categories=pd.Index(_PARTS)), index=adata.obs_names)
        if key_added is not None:
            adata.obs[key_added] = column
        return column

    def to_dict(self) -> dict[str, Any]:
        """Plain content, fit for JSON."""
        rows = {name: None if getattr(self, name) is None else getattr(self, name).tolist() for name in _PARTS}
        return {"schema": SCHEMA, "task": self.task, "params": self.params, **rows}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Split:
        """Rebuild a split from :meth:`to_dict`.

        Raises
        ------
        FileFormatError
            If entries are missing or the schema is not known.
        """
        if content.get("schema") != SCHEMA or not {"train", "test", "task", "params"} <= set(content):
            raise FileFormatError(f"This is no split of schema {SCHEMA}.")
        return cls(content["train"], content["test"], content.get("validation"), content["task"], content["params"])

    def save(self, path: str | Path) -> None:
        """Write the split as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what :meth:`save` wrote; raises a :class:`~sccausal._errors.FileFormatError` for anything else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FileFormatError(f"{path} is not JSON.") from error
        if not isinstance(content, dict):
            raise FileFormatError(f"{path} holds no split.")
        return cls.from_dict(content)


def cell_digest(adata: ad.AnnData) -> str:
    """Fingerprint of the cell names and their order."""
    return hashlib.sha256("\n".join(map(str, adata.obs_names)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Units:
    """What a task can hold out.

    Parameters
    ----------
    of_cell
        Unit of every cell; cells of one unit stay together.
    eligible
        Units that may be drawn.
    nameable
        Further units that may be held out by name.
    dependent
        Unit -> further units that must leave training with it.
    """

    of_cell: np.ndarray
    eligible: list[str]
    nameable: frozenset[str] = frozenset()
    dependent: Mapping[str, frozenset[str]] = field(default_factory=dict)


def hold_out_units(
    units: Units,
    hold_out: str | Sequence[str] | None,
    test_fraction: float,
    validation: str | Sequence[str] | None,
    validation_fraction: float,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Choose test and validation units, by name or at random.

    Raises
    ------
    SetupError
        If a named unit cannot be held out, or nothing is left for training.
    """
    for name, value in (("test_fraction", test_fraction), ("validation_fraction", validation_fraction)):
        if not 0 <= value < 1:
            raise SetupError(f"`{name}` must be in [0, 1), got {value}.")
    rng = np.random.default_rng(seed)
    order = [str(u) for u in rng.permutation(np.array(sorted(units.eligible), dtype=object))]
    if not order and not units.nameable:
        raise SetupError("Nothing can be held out for this task: no unit is eligible.")
    if not order and hold_out is None:
        raise SetupError("Nothing can be drawn for this task; name what to hold out with `hold_out`.")
    test = _named(units, hold_out) if hold_out is not None else order[: max(1, round(test_fraction * len(order)))]
    rest = [u for u in order if u not in set(test)]
    if validation is not None:
        chosen = _named(units, validation)
        both = sorted(set(chosen) & set(test))
        if both:
            raise SetupError(f"{', '.join(both[:5])} cannot be in test and validation.")
    else:
        wanted = validation_fraction * len(order)
        chosen = rest[: min(len(rest), max(1, round(wanted)))] if wanted > 0 else []
    return test, chosen


def _named(units: Units, names: str | Sequence[str]) -> list[str]:
    names = [names] if isinstance(names, str) else [str(n) for n in names]
    allowed = set(units.eligible) | units.nameable
    wrong = [n for n in names if n not in allowed]
    if wrong:
        shown = ", ".join(sorted(allowed)[:10])
        raise SetupError(f"{wrong[0]!r} cannot be held out for this task. Choose among: {shown or 'none'}.")
    return names


def assemble(
    adata: ad.AnnData,
    task: str,
    units: Units,
    test: Sequence[str],
    validation: Sequence[str],
    params: Mapping[str, Any],
    *,
    unused: np.ndarray | None = None,
    test_only: np.ndarray | None = None,
) -> Split:
    """Turn held-out units into a split and check that none of them is left in training.

    Parameters
    ----------
    adata
        The cells.
    task, params
        Recorded in the split.
    units
        Units of the cells.
    test, validation
        Held-out units.
    unused
        Cells that belong to no set (boolean).
    test_only
        Further test cells (boolean), e.g. held-out controls; their units stay in training.
    """
    closure = {name: _with_dependents(units, chosen) for name, chosen in (("test", test), ("validation", validation))}
    code = np.zeros(adata.n_obs, dtype=np.int8)
    code[np.isin(units.of_cell, sorted(closure["validation"]))] = 1
    code[np.isin(units.of_cell, sorted(closure["test"]))] = 2
    if unused is not None:
        code[unused] = -1
    held = set(closure["test"]) | set(closure["validation"])
    leaked = held & set(units.of_cell[code == 0])
    if leaked:
        raise AssertionError(f"Held-out units in training: {sorted(leaked)[:5]}")
    if test_only is not None:
        code[test_only & (code == 0)] = 2
    rows = [np.flatnonzero(code == k) for k in range(3)]
    if len(rows[0]) == 0 or len(rows[2]) == 0:
        raise SetupError(
            f"The split has {len(rows[0])} training and {len(rows[2])} test cells; hold out something else."
        )
    recorded = {
        **{k: v for k, v in params.items() if v is not None},
        "test_units": sorted(test),
        "validation_units": sorted(validation),
        "n_obs": adata.n_obs,
        "cells": cell_digest(adata),
    }
    return Split(rows[0], rows[2], rows[1] if len(rows[1]) else None, task, recorded)


def _with_dependents(units: Units, chosen: Sequence[str]) -> set[str]:
    out = set(chosen)
    for unit in chosen:
        out |= units.dependent.get(unit, frozenset())
    return out
