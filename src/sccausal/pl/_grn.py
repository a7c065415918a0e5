"""A gene network as a drawing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sccausal._docs import docs
from sccausal._errors import InputDataError, SetupError
from sccausal.pl._base import BLUE, GREY, INK, LIGHT, ORANGE, SMALL, VERMILION, finish, new_axes

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Layout = Literal["spring", "kamada-kawai", "circular"]


@docs.dedent
def grn(
    network: Any,
    *,
    top: int | None = 50,
    genes: Iterable[str] | None = None,
    highlight: Iterable[str] = (),
    truth: Any = None,
    n_labels: int = 25,
    layout: Layout = "spring",
    seed: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Draw the strongest edges of a gene network.

    Activation is a blue arrow, repression a vermilion line with a bar; the width grows with ``|weight|`` and the size
    of a gene with the summed ``|weight|`` of the edges that leave it.

    Parameters
    ----------
    network
        A :class:`~sccausal.grn.Network` or an edge table with the columns source, target, weight.
    top
        Number of strongest edges to draw; ``None`` draws all.
    genes
        Draw only edges that touch one of these genes (``top`` counts among them).
    highlight
        Genes to mark with a ring and always to name.
    truth
        A known network; edges that are not in it are drawn dashed and pale.
    n_labels
        Number of genes to name, regulators first, then the most connected.
    layout
        How genes are placed.
    seed
        Start of the spring layout.
    %(plot)s

    Returns
    -------
    %(plot_returns)s

    Raises
    ------
    sccausal._errors.InputDataError
        No edge is left to draw.
    sccausal._errors.SetupError
        A table lacks a column, or the layout is not known.

    Examples
    --------
    >>> import pandas as pd
    >>> from sccausal.pl import grn
    >>> edges = pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"], "weight": [0.5, -2.0]})
    >>> ax = grn(edges, show=False)
    """
    edges = _strongest(_edge_table(network), top, genes)
    graph = _graph(edges, None if truth is None else _edge_table(truth))
    position = _place(graph, layout, seed)
    made = new_axes(ax, (4.6, 4.2))
    sizes = _node_sizes(graph)
    _draw_edges(made, graph, position, sizes)
    marked = {str(g) for g in highlight}
    _draw_nodes(made, graph, position, sizes, marked)
    _draw_labels(made, graph, position, sizes, n_labels, marked)
    _key(made, edges, truth is not None)
    made.set_axis_off()
    made.margins(0.08)
    if title:
        made.set_title(title, fontsize=8.5)
    return finish(made, given=ax is not None, show=show, save=save, return_fig=return_fig)


def _edge_table(network: Any) -> pd.DataFrame:
    frame = network.to_frame() if hasattr(network, "to_frame") else pd.DataFrame(network)
    missing = [c for c in ("source", "target", "weight") if c not in frame]
    if missing == ["weight"]:
        return frame.assign(weight=1.0)
    if missing:
        raise SetupError(f"An edge table needs the columns source, target, weight; {', '.join(missing)} missing.")
    return frame


def _strongest(edges: pd.DataFrame, top: int | None, genes: Iterable[str] | None) -> pd.DataFrame:
    if genes is not None:
        wanted = {str(g) for g in genes}
        edges = edges[edges["source"].isin(wanted) | edges["target"].isin(wanted)]
    edges = edges[(edges["weight"] != 0) & (edges["source"] != edges["target"])]
    if edges.empty:
        raise InputDataError("There is no edge to draw: all weights are zero, or none touches the genes asked for.")
    order = edges["weight"].abs().sort_values(ascending=False, kind="stable").index
    return edges.loc[order if top is None else order[:top]]


def _graph(edges: pd.DataFrame, truth: pd.DataFrame | None) -> nx.DiGraph:
    import networkx as nx

    known = None if truth is None else set(zip(truth["source"], truth["target"], strict=True))
    graph = nx.DiGraph()
    for source, target, weight in edges[["source", "target", "weight"]].itertuples(index=False, name=None):
        graph.add_edge(
            str(source), str(target), weight=float(weight), strength=abs(float(weight)),
            known=known is None or (source, target) in known,
        )  # fmt: skip
    return graph


def _place(graph: nx.DiGraph, layout: str, seed: int) -> dict[str, np.ndarray]:
    """Positions of the genes; unconnected parts are laid out one by one and packed side by side."""
    import networkx as nx

    if layout == "circular":
        return nx.circular_layout(graph)
    if layout not in ("spring", "kamada-kawai"):
        raise SetupError(f"Unknown layout {layout!r}; use 'spring', 'kamada-kawai' or 'circular'.")
    plain = graph.to_undirected()
    parts = sorted((sorted(p) for p in nx.connected_components(plain)), key=lambda p: (-len(p), p))
    out: dict[str, np.ndarray] = {}
    x, y, row = 0.0, 0.0, 0.0
    width = 1.15 * np.sqrt(sum(len(p) for p in parts))
    for part in parts:
        side = np.sqrt(len(part))
        if x and x + side > width:
            x, y, row = 0.0, y - row - 0.6, 0.0
        sub = nx.Graph(plain.subgraph(part))
        if layout == "spring":
            local = nx.spring_layout(sub, weight=None, seed=seed, k=1.6 / side, iterations=200)
        else:
            local = nx.kamada_kawai_layout(sub, weight=None)
        points = np.array([local[n] for n in part])
        span = np.ptp(points, axis=0)
        points = (points - points.min(axis=0)) / np.where(span > 0, span, 1) * side
        for name, point in zip(part, points, strict=True):
            out[name] = point + np.array([x, y - side])
        x, row = x + side + 0.6, max(row, side)
    return out


def _node_sizes(graph: nx.DiGraph) -> dict[str, float]:
    strength = {n: sum(d["strength"] for _, _, d in graph.out_edges(n, data=True)) for n in graph}
    largest = max(strength.values()) or 1.0
    return {n: 28 + 190 * value / largest for n, value in strength.items()}


def _draw_edges(ax: Axes, graph: nx.DiGraph, position: dict[str, np.ndarray], sizes: dict[str, float]) -> None:
    from matplotlib.patches import FancyArrowPatch

    largest = max(d["strength"] for _, _, d in graph.edges(data=True))
    for source, target, data in graph.edges(data=True):
        positive = data["weight"] > 0
        width = 0.5 + 1.7 * data["strength"] / largest
        bend = 0.15 if graph.has_edge(target, source) else 0.04
        ax.add_patch(
            FancyArrowPatch(
                position[source], position[target], connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>,head_width=2.2,head_length=3.6" if positive else "|-|,widthA=0,widthB=2.4",
                mutation_scale=1.0, lw=width, ls="-" if data["known"] else (0, (2, 2)),
                color=BLUE if positive else VERMILION, alpha=0.85 if data["known"] else 0.4,
                shrinkA=np.sqrt(sizes[source]) / 2, shrinkB=np.sqrt(sizes[target]) / 2 + 1, zorder=1,
            )
        )  # fmt: skip


def _draw_nodes(
    ax: Axes, graph: nx.DiGraph, position: dict[str, np.ndarray], sizes: dict[str, float], marked: set[str]
) -> None:
    names = list(graph)
    points = np.array([position[n] for n in names])
    ring = [ORANGE if n in marked else "white" for n in names]
    fill = [GREY if graph.out_degree(n) else LIGHT for n in names]
    ax.scatter(
        points[:, 0], points[:, 1], s=[sizes[n] for n in names], c=fill, edgecolors=ring,
        linewidths=[1.8 if n in marked else 0.6 for n in names], zorder=2,
    )  # fmt: skip


def _draw_labels(
    ax: Axes,
    graph: nx.DiGraph,
    position: dict[str, np.ndarray],
    sizes: dict[str, float],
    n_labels: int,
    marked: set[str],
) -> None:
    from matplotlib.patheffects import withStroke

    ranked = sorted(graph, key=lambda n: (not graph.out_degree(n), -graph.degree(n), n))  # regulators first
    for name in {*ranked[:n_labels], *(marked & set(graph))}:
        ax.annotate(
            name, position[name], xytext=(0, np.sqrt(sizes[name]) / 2 + 1), textcoords="offset points", ha="center",
            va="bottom", fontsize=SMALL, color=INK, zorder=3,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _key(ax: Axes, edges: pd.DataFrame, with_truth: bool) -> None:
    from matplotlib.lines import Line2D

    entries = []
    if (edges["weight"] > 0).any():
        entries.append(Line2D([], [], color=BLUE, lw=1.5, label="activation"))
    if (edges["weight"] < 0).any():
        entries.append(Line2D([], [], color=VERMILION, lw=1.5, label="repression"))
    if with_truth:
        entries.append(Line2D([], [], color=GREY, lw=1.5, ls=(0, (2, 2)), label="not in the known network"))
    ax.legend(
        handles=entries, fontsize=SMALL, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0),
        ncols=len(entries), handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip
