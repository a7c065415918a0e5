"""Latents, the edges among them, and where interventions act."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sccausal._docs import docs
from sccausal._errors import SetupError
from sccausal.pl._base import BLUE, GREY, INK, LIGHT, SMALL, VERMILION, finish, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIGN = {True: "+", False: "\N{MINUS SIGN}"}


@docs.dedent
def latent_graph(
    model: Any,
    *,
    threshold: float = 0.1,
    interventions: int | None = 20,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the graph among the latents, and beside each latent the interventions that act on it.

    Blue arrows raise, vermilion arrows lower their target; the width grows with the weight. Behind an intervention
    stands the sign of its shift. Where the interventions do not identify the graph the plot says so.

    Parameters
    ----------
    model
        A trained :class:`~sccausal.models.GCRLVAE` or :class:`~sccausal.models.DiscrepancyVAE`.
    threshold
        Draw edges with ``|weight| > threshold``, in standard deviations of the exogenous parts.
    interventions
        Number of strongest interventions to name; ``None`` for all, 0 for none.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.SetupError
        ``threshold`` is negative.

    Examples
    --------
    >>> import sccausal as scc
    >>> ax = scc.pl.latent_graph(model, show=False)
    """
    if threshold < 0:
        raise SetupError(f"threshold is compared with |weight| and cannot be {threshold}.")
    names = model.latent_names
    edges = model.get_latent_graph(threshold).to_frame()
    made = new_axes(ax, (4.6, 4.2))
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    place = {n: (float(np.cos(a)), float(np.sin(a))) for n, a in zip(names, angle, strict=True)}
    strongest = float(edges["weight"].abs().max()) if len(edges) else 1.0
    for source, target, weight in edges[["source", "target", "weight"]].itertuples(index=False):
        made.annotate(
            "", place[target], place[source],
            arrowprops={
                "arrowstyle": "-|>", "color": BLUE if weight > 0 else VERMILION,
                "lw": 0.6 + 2.4 * abs(weight) / strongest,
                "shrinkA": 13, "shrinkB": 13, "connectionstyle": "arc3,rad=0.12",
            },
        )  # fmt: skip
    x, y = np.array([place[n] for n in names]).T
    made.scatter(x, y, s=420, c=LIGHT, edgecolors=GREY, linewidths=0.8, zorder=3)
    for name, a in zip(names, angle, strict=True):
        made.text(*place[name], _short(name), ha="center", va="center", fontsize=SMALL - 1, color=INK, zorder=4)
        text = _acting(model, name, interventions)
        side = "left" if np.cos(a) > 0.05 else "right" if np.cos(a) < -0.05 else "center"
        level = "bottom" if np.sin(a) > 0.5 else "top" if np.sin(a) < -0.5 else "center"
        made.text(1.22 * np.cos(a), 1.22 * np.sin(a), text, ha=side, va=level, fontsize=SMALL - 1, color=GREY)
    if model.module.intervention_kind == "shift":
        known = "edges rest on the activities" if model.module.n_activities else "shifts do not identify edges"
        made.text(
            0.5, -0.02, known, transform=made.transAxes, ha="center", va="top", fontsize=SMALL - 1, color=VERMILION
        )
    made.set(xlim=(-1.9, 1.9), ylim=(-1.6, 1.6))
    made.set_aspect("equal")
    made.set_axis_off()
    if title:
        made.set_title(title, fontsize=8.5)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _short(name: str) -> str:
    name = name.removeprefix("HALLMARK_").removeprefix("latent_")
    return name if len(name) <= 10 else name[:9] + "."


def _acting(model: Any, latent: str, number: int | None) -> str:
    table = model.get_intervention_targets()
    table = table.reindex(table["magnitude"].abs().sort_values(ascending=False).index)
    own = table.iloc[: len(table) if number is None else number]
    own = own[own["latent"] == latent]
    return "\n".join(f"{r.intervention} {_SIGN[r.magnitude > 0]}" for r in own.itertuples())
