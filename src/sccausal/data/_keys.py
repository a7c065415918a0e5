"""Registry keys: the one list of names under which tensors arrive in a batch."""

from __future__ import annotations

from typing import NamedTuple


class _Keys(NamedTuple):
    """Names of the registered tensors; each is a key of every mini-batch that uses it."""

    X: str = "X"
    """Expression, float32 (n, genes)."""
    BATCH: str = "batch"
    """Batch code, int64 (n, 1)."""
    LABELS: str = "labels"
    """Cell type (stratum) code, int64 (n, 1)."""
    CONDITION: str = "condition"
    """Condition code, float32 (n, 1): scvi-tools hands out its own keys only as integers."""
    INTERVENTION: str = "intervention"
    """Dose of each target, float32 (n, targets); a row of zeros is a control cell."""
    TIME: str = "time"
    """Time in the unit of the column, float32 (n, 1)."""
    CONCEPTS: str = "concepts"
    """Codes of the concept columns, float32 (n, concepts)."""
    INDEX: str = "ind_x"
    """Row number of the cell, int64 (n, 1)."""


KEYS = _Keys()
