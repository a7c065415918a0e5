"""Losses, penalties and multipliers over the epochs of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import SetupError, unknown_name
from sccausal.pl._base import BLUE, PALETTE, VERMILION, finish, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# quantities that fall over orders of magnitude
_LOG = {"constraint", "multiplier", "penalty"}
# what says most, first; everything else follows in the order it was logged
_FIRST = ("elbo", "loss", "reconstruction_loss", "kl_local", "constraint")
_HIDDEN = ("kl_weight", "validation_loss", "train_loss_step", "train_loss_epoch")


def history(
    model: Any,
    keys: Sequence[str] | None = None,
    *,
    n_columns: int = 3,
    max_panels: int = 9,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot what a model logged while it was trained, one panel per quantity.

    Parameters
    ----------
    model
        A trained model, or its ``history`` (mapping of name to a frame with one row per epoch).
    keys
        Quantities to show, without the endings ``_train`` and ``_validation`` (both are drawn into one panel).
        Default: the losses first, then the rest, up to ``max_panels``.
    n_columns
        Panels in a row.
    max_panels
        Largest number of panels when ``keys`` is not given.
    ax
        Axes for a single quantity.
    show, save, return_fig
        As in scanpy: show the figure, write it to a file, return it.

    Returns
    -------
    The axes (a list of them for several quantities), the figure if ``return_fig``, or ``None`` if shown.

    Raises
    ------
    sccausal._errors.SetupError
        The model was not trained, or ``ax`` was given for several quantities.
    sccausal._errors.UnknownNameError
        A key was not logged.

    Examples
    --------
    >>> import pandas as pd
    >>> from sccausal.pl import history
    >>> logged = {"elbo_train": pd.DataFrame({"elbo_train": [3.0, 2.0, 1.5]})}
    >>> history(logged, show=False).get_title()
    'elbo'
    """
    import matplotlib.pyplot as plt

    series = _series(model)
    if keys is None:
        keys = _default_keys(series)[: 1 if ax is not None else max_panels]
    for key in keys:
        if key not in series:
            raise unknown_name("quantity", key, series, "the training history")
    if ax is not None and len(keys) > 1:
        raise SetupError(f"One `ax` holds one quantity; got keys={list(keys)}. Leave `ax` out for several panels.")
    if ax is not None:
        axes = [ax]
    else:
        columns = min(n_columns, len(keys))
        rows = -(-len(keys) // columns)
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.5 * columns, 1.9 * rows), squeeze=False, layout="constrained"
        )
        axes = list(grid.flat)[: len(keys)]
        for spare in list(grid.flat)[len(keys) :]:
            spare.set_axis_off()
    for panel, key in zip(axes, keys, strict=True):
        _draw(panel, key, series[key])
    drawn = axes if len(axes) > 1 else axes[0]
    return finish(drawn, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _draw(ax: Axes, key: str, parts: Mapping[str, pd.Series]) -> None:
    colours = {"train": BLUE, "validation": VERMILION, "": PALETTE[2]}
    for part, values in parts.items():
        ax.plot(values.index, values.to_numpy(), color=colours[part], lw=1.2, label=part or None,
                marker="o" if len(values) < 3 else None, ms=3)  # fmt: skip
    pooled = np.concatenate([v.to_numpy() for v in parts.values()])
    if key in _LOG and (pooled > 0).sum() > 1:
        # rounding leaves zeros and tiny negative values, which have no place on the scale
        ax.set_yscale("log", nonpositive="mask")
    tidy(ax, title=key, xlabel="epoch")
    if len(parts) > 1:
        ax.legend(fontsize=6.5, frameon=False, handlelength=1.2)


def _series(model: Any) -> dict[str, dict[str, pd.Series]]:
    """Quantity -> part (train, validation or neither) -> values over epochs."""
    logged = model if isinstance(model, Mapping) else getattr(model, "history", None)
    if not logged:
        raise SetupError("There is no training history: call `model.train()` first.")
    out: dict[str, dict[str, pd.Series]] = {}
    for name, frame in logged.items():
        values = pd.to_numeric(pd.DataFrame(frame).iloc[:, 0], errors="coerce").dropna()
        if name.endswith("_step") or values.empty or name in _HIDDEN:
            continue
        for part in ("train", "validation", ""):
            if not part or name.endswith(f"_{part}"):
                out.setdefault(name.removesuffix(f"_{part}") if part else name, {})[part] = values
                break
    return out


def _default_keys(series: Mapping[str, Mapping[str, pd.Series]]) -> list[str]:
    """The most telling quantities first; those that never moved from zero are left out."""
    moving = [k for k, parts in series.items() if any((v != 0).any() for v in parts.values())]
    known = [k for k in _FIRST if k in moving]
    return known + [k for k in moving if k not in known]
