"""Training history kept beside the loggers that a user brings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.loggers import Logger

from sccausal._compat import SimpleLogger


class HistoryLogger(SimpleLogger):
    """The logger behind ``model.history``, which leaves what it is given to the loggers after it."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics; scvi-tools' own takes the epoch out of the dictionary that all loggers share."""
        super().log_metrics(dict(metrics), step)


def with_history(logger: Any) -> Any:
    """Loggers of the user after one that fills the history; ``None``, ``True`` and ``False`` stay what they are.

    Parameters
    ----------
    logger
        Argument ``logger`` of ``train``: one Lightning logger, several, or a truth value.

    Returns
    -------
    A list whose first logger fills ``model.history`` (scvi-tools reads it from the first one only), or ``logger``.
    """
    if isinstance(logger, Logger):
        logger = [logger]
    if not isinstance(logger, Iterable):
        return logger
    given = list(logger)
    return given if given and isinstance(given[0], SimpleLogger) else [HistoryLogger(), *given]
