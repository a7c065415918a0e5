"""Identifiability of a trained model, as a function."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sccausal.models import CausalModel, IdentifiabilityReport


def identifiability(model: CausalModel) -> IdentifiabilityReport:
    """Which assumptions of a model's method hold on its data.

    Parameters
    ----------
    model
        A trained model of this package.

    Returns
    -------
    The report of ``model.identifiability_report()``: one line per assumption with its verdict (``"holds"``,
    ``"violated"`` or ``"unknown"``), the statistic behind it and what follows from it.

    Examples
    --------
    >>> import sccausal as scc
    >>> report = scc.tl.identifiability(model)
    >>> sorted(report.to_frame().columns)
    ['assumption', 'checkable', 'explanation', 'name', 'statistic', 'verdict']
    """
    return model.identifiability_report()
