"""What a trained model was set up with, for functions that need the same cells."""

from __future__ import annotations

from typing import Any, NamedTuple


class Keys(NamedTuple):
    """Names of columns and labels."""

    target: str  # column (or obsm key) of the variable that is intervened on
    is_condition: bool  # whether that is the condition column
    control: str
    labels: str | None
    batch: str | None
    layer: str | None
    sep: str | None


def describe(model: Any) -> Keys:
    """Keys a model was set up with.

    Parameters
    ----------
    model
        Model with interventions.
    """
    from sccausal._compat import setup_args, state_registry
    from sccausal.data import KEYS

    args = setup_args(model.registry_)
    target = str(state_registry(model.registry_, KEYS.INTERVENTION)["original_key"])
    return Keys(
        target,
        args.get("intervention_key") != target,
        str(model.codec.control),
        args.get("labels_key"),
        args.get("batch_key"),
        args.get("layer"),
        model.codec.sep,
    )
