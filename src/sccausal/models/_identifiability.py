"""Which assumptions of a method hold on the data at hand, which do not, and which no data can tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any, Literal

import pandas as pd

from sccausal._errors import SetupError, unknown_name

Verdict = Literal["holds", "violated", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("holds", "violated", "unknown")
_STYLE = {"holds": "green", "violated": "red", "unknown": "yellow"}


@dataclass(frozen=True)
class Check:
    """One assumption of a method and what was found about it.

    Parameters
    ----------
    name
        Short name, e.g. ``"acyclic graph"``.
    assumption
        The assumption in one sentence.
    checkable
        Whether data can speak about it at all.
    verdict
        ``"holds"``, ``"violated"`` or ``"unknown"``; an assumption that cannot be checked is always ``"unknown"``.
    statistic
        The number the verdict rests on, or ``None``.
    explanation
        How the number was obtained and what follows from the verdict.

    Raises
    ------
    sccausal._errors.SetupError
        The verdict is none of the three, or one is given for an assumption that cannot be checked.

    Examples
    --------
    >>> import sccausal as scc
    >>> check = scc.models.Check("acyclic graph", "The network has no loops.", checkable=False, verdict="unknown")
    >>> check.verdict
    'unknown'
    """

    name: str
    assumption: str
    checkable: bool
    verdict: Verdict
    statistic: float | None = None
    explanation: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise SetupError(f"The verdict of {self.name!r} is {self.verdict!r}; allowed are {', '.join(VERDICTS)}.")
        if not self.checkable and self.verdict != "unknown":
            raise SetupError(f"{self.name!r} cannot be checked, so its verdict must be 'unknown'.")


class IdentifiabilityReport:
    """Checks of one model on its data, shown as a table.

    Parameters
    ----------
    model
        Name of the model class.
    checks
        The checks, in the order they are shown.

    Examples
    --------
    >>> import sccausal as scc
    >>> report = model.identifiability_report()
    >>> report.model, set(report.to_frame()["verdict"]) <= {"holds", "violated", "unknown"}
    ('ScConCRL', True)
    """

    def __init__(self, model: str, checks: Sequence[Check]) -> None:
        self.model = model
        self.checks: tuple[Check, ...] = tuple(checks)

    def to_frame(self) -> pd.DataFrame:
        """One row per check: name, assumption, checkable, verdict, statistic, explanation."""
        columns = ["name", "assumption", "checkable", "verdict", "statistic", "explanation"]
        return pd.DataFrame([asdict(c) for c in self.checks], columns=columns)

    @property
    def violated(self) -> list[Check]:
        """Checks whose assumption the data contradict."""
        return [c for c in self.checks if c.verdict == "violated"]

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise unknown_name("check", name, [c.name for c in self.checks], f"the report of {self.model}")

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=f"What identifies {self.model} on these data", show_lines=True)
        for column in ("assumption", "verdict", "statistic", "explanation"):
            table.add_column(column, overflow="fold")
        for c in self.checks:
            shown = "" if c.statistic is None else f"{c.statistic:.3g}"
            verdict = c.verdict if c.checkable else "cannot be checked"
            table.add_row(f"{c.name}: {c.assumption}", f"[{_STYLE[c.verdict]}]{verdict}[/]", shown, c.explanation)
        return table

    def __repr__(self) -> str:
        from rich.console import Console

        stream = StringIO()
        Console(file=stream, width=120, force_terminal=False, force_jupyter=False).print(self)
        return stream.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)
