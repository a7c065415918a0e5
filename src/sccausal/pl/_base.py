"""What all plots share: axes, colours, and how a finished figure is handed over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with the common forms of colour blindness
# (their yellow is left out: lines and small points in it can hardly be seen on white)
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
GREY, LIGHT, INK = "#8A8A8A", "#D9D9D9", "#222222"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, GREY, INK)
SEQUENTIAL = "cividis"
SMALL, NORMAL = 7.0, 8.5
"""Font sizes in points, legible when the figure is one column (85 mm) wide."""


def new_axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """``ax``, or the axes of a new figure of ``figsize`` inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    _, made = plt.subplots(figsize=figsize, layout="constrained")
    return made


def matrix_height(n_rows: int, least: float) -> float:
    """Height in inches at which ``n_rows`` names beside a matrix can be read, at most 6.6."""
    return float(np.clip(0.11 * n_rows, least, 6.6))


def row_label_size(ax: Axes, n_rows: int) -> float:
    """Font size at which ``n_rows`` names fit beside the matrix in ``ax``."""
    height = 72 * ax.get_position().height * ax.figure.get_figheight()
    return float(np.clip(height / max(n_rows, 1), 3.5, SMALL))


def tidy(ax: Axes, *, title: str | None = None, xlabel: str | None = None, ylabel: str | None = None) -> None:
    """Spines left and bottom only, small labels."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    if title is not None:
        ax.set_title(title, fontsize=NORMAL)
    if xlabel is not None:
        ax.set_xlabel(xlabel, fontsize=NORMAL)
    if ylabel is not None:
        ax.set_ylabel(ylabel, fontsize=NORMAL)


def finish(
    axes: Axes | list[Axes], *, given: bool, show: bool | None, save: str | Path | None, return_fig: bool
) -> Axes | list[Axes] | Figure | None:
    """Save, show and return a finished plot as scanpy does.

    Parameters
    ----------
    axes
        What was drawn on.
    given
        Whether the caller brought the axes; then nothing is shown unless asked for.
    show
        ``None`` follows ``scanpy.settings.autoshow``.
    save
        File to write; the ending names the format.
    return_fig
        Return the figure in any case.
    """
    from matplotlib import get_backend

    first = axes[0] if isinstance(axes, list) else axes
    figure = first.get_figure()
    if save is not None:
        Path(save).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(save, dpi=200, bbox_inches="tight")
    if show is None:
        show = not (given or return_fig) and _autoshow()
    if show and get_backend().lower() not in {"agg", "pdf", "svg", "ps", "cairo", "template"}:
        import matplotlib.pyplot as plt

        plt.show()
    if return_fig:
        return figure
    return None if show else axes


def place_labels(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], colour: str = INK) -> None:
    """Write ``names`` beside their points, pushed apart vertically, each with a thin line to its point.

    Labels stand on the side of the diagonal on which their point lies, so that a cloud along it stays readable. Leave
    room for them at the left and right border of the axes.
    """
    labels = np.asarray(names, dtype=object)
    if not len(labels):
        return
    low, high = ax.get_ylim()
    left, right = ax.get_xlim()
    step = 0.045 * (high - low)
    across = (np.asarray(x) - left) / (right - left)
    above = (np.asarray(y) - low) / (high - low) >= across
    for side, members in ((-1, np.flatnonzero(above)), (1, np.flatnonzero(~above))):
        members = members[np.argsort(np.asarray(y)[members])]
        heights = _spread(np.asarray(y, dtype=float)[members], step, low + step / 2, high - step / 2)
        for i, height in zip(members, heights, strict=True):
            ax.annotate(
                labels[i], (x[i], y[i]), xytext=(x[i] + side * 0.03 * (right - left), height), fontsize=SMALL,
                ha="right" if side < 0 else "left", va="center", color=colour, annotation_clip=False,
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 1},
            )  # fmt: skip


def _spread(values: np.ndarray, step: float, low: float, high: float) -> np.ndarray:
    """Sorted ``values`` moved as little as possible until neighbours are ``step`` apart (least squares).

    Subtracting ``i * step`` turns "at least a step apart" into "not falling", which isotonic regression solves.
    """
    from sklearn.isotonic import isotonic_regression

    if not len(values):
        return values
    offsets = step * np.arange(len(values))
    top = max(high - offsets[-1], low)
    return np.clip(isotonic_regression(values - offsets), low, top) + offsets


def _autoshow() -> bool:
    # scanpy takes seconds to import; who has set it to be quiet has imported it
    scanpy: Any = sys.modules.get("scanpy")
    return True if scanpy is None else bool(scanpy.settings.autoshow)
