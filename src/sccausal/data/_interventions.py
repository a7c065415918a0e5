"""Interventions as labels ("A", "A+B", control) and as a matrix of doses, cells x targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, close_names, unknown_name

Intervention = str | Sequence[str] | Mapping[str, float]
"""One intervention: a label, several targets, or targets with their doses."""

# words by which public data sets name their control cells; only ever suggested, never assumed
_USUAL_CONTROLS = ("control", "ctrl", "ctl", "nt", "non-targeting", "nontargeting", "unperturbed", "untreated", "dmso")


def split_label(label: str, control: str, sep: str | None) -> tuple[str, ...]:
    """Targets named by a label, in their first order; the control gives none.

    ``"A+control"`` means the same as ``"A"``, and ``"A+A"`` (two guides of one target) too.

    Raises
    ------
    SetupError
        If a part of the label is empty, as in ``"CD4+"`` with ``sep="+"``.
    """
    label = str(label).strip()
    if label == control:
        return ()
    if sep is None:
        return (label,)
    parts = [p.strip() for p in label.split(sep)]
    if not all(parts):
        raise SetupError(
            f"Intervention {label!r} has an empty part when split at {sep!r}. "
            "Choose another `sep`, or `sep=None` if labels never name combinations."
        )
    return tuple(dict.fromkeys(p for p in parts if p != control))


@dataclass(frozen=True)
class InterventionCodec:
    """Translate between intervention labels and dose rows.

    Parameters
    ----------
    targets
        Names of the targets; their order is the order of the columns.
    control
        Label of cells without intervention, i.e. of a row of zeros.
    sep
        String between the targets of a combination; ``None`` if a label is always one target.

    Raises
    ------
    SetupError
        If targets repeat, are empty, equal the control or contain ``sep``.

    Examples
    --------
    >>> from sccausal.data import InterventionCodec
    >>> codec = InterventionCodec(("KLF1", "MAP2K6"), control="control")
    >>> codec.parse("MAP2K6+KLF1")
    array([1., 1.], dtype=float32)
    >>> codec.label(codec.parse({"MAP2K6": 0.5}))
    'MAP2K6'
    """

    targets: tuple[str, ...]
    control: str
    sep: str | None = "+"

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(str(t) for t in self.targets))
        if self.sep == "":
            raise SetupError("`sep` is empty; use `sep=None` if labels never name combinations.")
        if not self.targets:
            raise SetupError("There is no target: every cell is a control cell.")
        repeated = [t for t, k in Counter(self.targets).items() if k > 1]
        if repeated:
            raise SetupError(f"Targets must be unique; repeated: {', '.join(repeated[:5])}.")
        if self.control in self.targets:
            raise SetupError(f"{self.control!r} is both the control and a target. Drop it from the targets.")
        clash = [t for t in self.targets if not t.strip() or (self.sep is not None and self.sep in t)]
        if clash:
            raise SetupError(
                f"Target names must be neither empty nor contain `sep` ({self.sep!r}): {clash[:5]}. "
                "Choose another `sep`."
            )

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.targets)

    @classmethod
    def fit(
        cls, labels: pd.Series | pd.DataFrame | Sequence[str], control: str | None, sep: str | None = "+"
    ) -> InterventionCodec:
        """Learn the targets from a column of labels or from a frame of doses.

        Parameters
        ----------
        labels
            One label per cell, or a frame cells x targets (its columns are the targets).
        control
            Label of control cells. A frame needs none; its rows of zeros are called ``"control"`` then.
        sep
            String between the targets of a combination, or ``None``.

        Returns
        -------
        Targets of labels are sorted by name, so that the order of the cells does not matter.

        Raises
        ------
        SetupError
            If labels are missing, the control is not among them, or nothing but the control is.
        """
        if isinstance(labels, pd.DataFrame):
            return cls(tuple(str(c) for c in labels.columns), control if control is not None else "control", sep)
        levels = _levels(labels)
        check_control(levels, control, where="the labels")
        assert control is not None
        names = {t for label in levels for t in split_label(label, control, sep)}
        return cls(tuple(sorted(names)), control, sep)

    def parse(self, intervention: Intervention) -> np.ndarray:
        """Dose row of one intervention.

        Parameters
        ----------
        intervention
            ``"A"``, ``"A+B"``, ``("A", "B")``, ``{"A": 0.5}``, or the control label.

        Returns
        -------
        float32 array (targets,).

        Raises
        ------
        UnknownNameError
            If a target is not known; close names are suggested.
        InputDataError
            If a dose is not a finite number.
        """
        doses = self._doses(intervention)
        row = np.zeros(len(self.targets), dtype=np.float32)
        for target, dose in doses.items():
            if target not in self._position:
                raise unknown_name("intervention target", target, self.targets, "the targets the codec knows")
            if not np.isfinite(dose):
                raise InputDataError(f"The dose of {target!r} is {dose}; doses must be finite numbers.")
            row[self._position[target]] = dose
        return row

    def parse_many(self, interventions: Sequence[Intervention] | Intervention) -> np.ndarray:
        """Dose rows of several interventions, float32 (interventions, targets).

        A single string or mapping is one intervention; any other sequence is several of them.
        """
        if isinstance(interventions, str | Mapping):
            interventions = [interventions]
        rows = [self.parse(i) for i in interventions]
        return np.stack(rows) if rows else np.zeros((0, len(self.targets)), dtype=np.float32)

    def label(self, row: np.ndarray, *, with_dose: bool = False) -> str:
        """Canonical label of a dose row: targets in codec order, the control for zeros.

        Parameters
        ----------
        row
            Doses (targets,).
        with_dose
            Write doses other than 1 as ``"A:0.5"``; :meth:`parse` reads this form.
        """
        row = np.asarray(row, dtype=np.float32).ravel()
        if row.shape != (len(self.targets),):
            raise InputDataError(f"A dose row has {len(self.targets)} entries, got {row.size}.")
        parts = []
        for j in np.flatnonzero(row):
            shown = f":{row[j]:.6g}" if with_dose and row[j] != 1 else ""
            parts.append(f"{self.targets[j]}{shown}")
        return (self.sep or "+").join(parts) if parts else self.control

    def canonical(self, intervention: Intervention) -> str:
        """Canonical label of an intervention, e.g. ``"A+B"`` for ``"B+A"``."""
        return self.label(self.parse(intervention))

    def encode(
        self,
        labels: pd.Series | pd.DataFrame | Sequence[str],
        dose: Sequence[float] | Sequence[str] | pd.Series | None = None,
    ) -> np.ndarray:
        """Dose matrix of labelled cells.

        Parameters
        ----------
        labels
            One label per cell, or a frame of doses, whose columns are matched by name; targets it lacks get dose 0.
        dose
            With labels: one number per cell (for all its targets) or one string per cell that gives a number per
            target in the order of the label, e.g. ``"0.5+1"``. Control cells stay 0.

        Returns
        -------
        float32 array (cells, targets).

        Raises
        ------
        SetupError
            If a label is missing.
        UnknownNameError
            If a label names an unknown target.
        InputDataError
            If a dose is missing, not finite or does not fit its label.
        """
        rows, code = self.encode_levels(labels, dose)
        return rows[code]

    def encode_levels(
        self,
        labels: pd.Series | pd.DataFrame | Sequence[str],
        dose: Sequence[float] | Sequence[str] | pd.Series | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distinct dose rows and the row of each cell: ``encode(labels) == rows[code]``.

        Returns
        -------
        rows
            float32 (distinct, targets).
        code
            int64 (cells,).
        """
        if isinstance(labels, pd.DataFrame):
            if dose is not None:
                raise InputDataError("A frame of doses holds the doses itself; leave `dose` out.")
            rows = self._align(labels)
            return rows, np.arange(len(rows))
        labels = pd.Series(labels).reset_index(drop=True)
        _levels(labels)
        text = labels.astype(str).str.strip()
        if dose is None:
            code, levels = pd.factorize(text)
            doses = [self.parse(_Label(v)) for v in levels]
        else:
            shown = pd.Series(np.asarray(dose)).reset_index(drop=True)
            if len(shown) != len(text):
                raise InputDataError(f"{len(shown)} doses were given for {len(text)} cells.")
            if shown.isna().any():
                raise InputDataError(f"The dose is missing in {int(shown.isna().sum())} cells.")
            code, levels = pd.factorize(pd.MultiIndex.from_arrays([text, shown]))
            doses = [self._parse_with_dose(label, value) for label, value in levels]
        return np.asarray(doses, dtype=np.float32).reshape(-1, len(self.targets)), code.astype(np.int64)

    def decode(self, matrix: np.ndarray | Any, *, with_dose: bool = False) -> list[str]:
        """Canonical label of each row of a dose matrix (dense or sparse, cells x targets)."""
        if hasattr(matrix, "toarray"):
            matrix = matrix.toarray()
        matrix = np.asarray(matrix, dtype=np.float32).reshape(-1, len(self.targets))
        if len(matrix) == 0:
            return []
        levels, code = np.unique(matrix, axis=0, return_inverse=True)
        names = np.array([self.label(row, with_dose=with_dose) for row in levels], dtype=object)
        return names[np.ravel(code)].tolist()

    def to_dict(self) -> dict[str, Any]:
        """Plain content, fit for JSON."""
        return {"targets": list(self.targets), "control": self.control, "sep": self.sep}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> InterventionCodec:
        """Rebuild a codec from :meth:`to_dict` (other entries are ignored)."""
        return cls(tuple(content["targets"]), str(content["control"]), content["sep"])

    @cached_property
    def _position(self) -> dict[str, int]:
        return {t: j for j, t in enumerate(self.targets)}

    def _doses(self, intervention: Intervention) -> dict[str, float]:
        """Target -> dose, whatever the form of the intervention."""
        if isinstance(intervention, Mapping):
            return {str(k).strip(): float(v) for k, v in intervention.items() if str(k).strip() != self.control}
        if not isinstance(intervention, str) and isinstance(intervention, Sequence):
            return {str(t).strip(): 1.0 for t in intervention if str(t).strip() != self.control}
        parts = split_label(str(intervention), self.control, self.sep)
        plain = isinstance(intervention, _Label)
        return dict((p, 1.0) if plain else self._named_dose(p) for p in parts)

    def _named_dose(self, part: str) -> tuple[str, float]:
        """Read ``"A:0.5"``, the form :meth:`label` writes, unless the whole part is a target."""
        name, colon, value = part.rpartition(":")
        if part in self._position or not colon or name not in self._position:
            return part, 1.0
        try:
            return name, float(value)
        except ValueError:
            return part, 1.0

    def _parse_with_dose(self, label: str, dose: Any) -> np.ndarray:
        parts = split_label(label, self.control, self.sep)
        values = [dose] * len(parts)
        if isinstance(dose, str) and self.sep is not None and self.sep in dose:
            values = dose.split(self.sep)
            named = [p.strip() for p in label.split(self.sep)]
            # "A+control" with dose "0.5+0": the control's own dose says nothing
            if len(values) == len(named):
                values = [dict(zip(named, values, strict=True))[p] for p in parts]
        if len(values) != len(parts):
            raise InputDataError(f"Dose {dose!r} does not give one number per target of {label!r}.")
        try:
            doses = [float(v) for v in values]
        except ValueError as error:
            raise InputDataError(f"Dose {dose!r} of intervention {label!r} is not a number.") from error
        return self.parse(dict(zip(parts, doses, strict=True)))

    def _align(self, frame: pd.DataFrame) -> np.ndarray:
        """Columns of ``frame`` in codec order; a target it lacks was not touched."""
        frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
        values = frame.to_numpy(dtype=np.float32)
        if not np.isfinite(values).all():
            bad = frame.columns[~np.isfinite(values).all(axis=0)].tolist()
            raise InputDataError(f"Doses must be finite; missing or infinite values for {', '.join(bad[:5])}.")
        extra = [c for c in frame.columns[(values != 0).any(axis=0)] if c not in self._position]
        if extra:
            raise unknown_name("intervention target", extra[0], self.targets, "the targets the codec knows")
        out = np.zeros((len(frame), len(self.targets)), dtype=np.float32)
        for j, column in enumerate(frame.columns):
            if column in self._position:
                out[:, self._position[column]] = values[:, j]
        return out


class _Label(str):
    """A label from a data column: taken at its word, so ``"A:1"`` is never read as a dose."""


def _levels(labels: pd.Series | Sequence[str]) -> list[str]:
    series = pd.Series(labels)
    missing = int(series.isna().sum())
    if missing:
        name = f"Column {series.name!r}" if series.name is not None else "The intervention column"
        raise SetupError(f"{name} has no label in {missing} of {len(series)} cells. Drop these cells or label them.")
    return [str(v).strip() for v in series.unique()]


def check_control(levels: Sequence[str], control: str | None, where: str) -> None:
    """Raise a :class:`SetupError` unless ``control`` and at least one other level are present."""
    shown = ", ".join(repr(v) for v in sorted(levels)[:10]) + (f", ... ({len(levels)})" if len(levels) > 10 else "")
    if control is None:
        usual = [v for v in levels if v.lower() in _USUAL_CONTROLS]
        hint = f" Did you mean control={usual[0]!r}?" if usual else ""
        raise SetupError(f"Name the control label with `control=`.{hint} Labels in {where}: {shown}.")
    if control not in levels:
        near = close_names(control, levels) or [v for v in levels if v.lower() in _USUAL_CONTROLS]
        hint = f" Did you mean {' or '.join(repr(n) for n in near[:3])}?" if near else ""
        raise SetupError(f"Control {control!r} is not in {where}.{hint} Labels found: {shown}.")
    if len(levels) < 2:
        raise SetupError(f"All cells of {where} are {control!r}: there is no intervention to learn from.")
