"""Scores of a network against cells under interventions, where the true network is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._distribution import wasserstein_1d
from sccausal.metrics._graph import _edges
from sccausal.metrics._info import as_table


def interventional_scores(
    network: Any,
    cells: np.ndarray,
    labels: Sequence[str],
    genes: Sequence[str],
    control: str,
    *,
    n_edges: int | None = None,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Does intervening on a source move its targets? Judged on cells the network was not learned from.

    Parameters
    ----------
    network
        ``grn.Network``, or an edge table with ``source, target, weight``.
    cells
        Held-out cells (n, genes).
    labels
        Gene that was intervened on, or ``control`` (n,). Cells of other labels are left out.
    genes
        Names of the columns.
    control
        Label of cells without intervention.
    n_edges
        Count only so many of the strongest edges among the pairs that can be judged; default all with a weight.
    alpha
        False discovery rate of the rank-sum tests over all pairs.

    Returns
    -------
    DataFrame ``metric, value, direction, unit, chance``: ``edge_wasserstein``, mean distance between the target's
    distribution under control and under the intervention on the source, in standard deviations under control;
    ``edge_precision``, the share of edges whose target moves significantly; ``false_omission_rate``, the share of
    absent pairs whose target moves; ``n_edges``. ``chance`` is the value for edges drawn at random. A descendant moves
    as well as a child: an indirect edge counts as right. Source: :cite:p:`Chevalley2023`.

    Raises
    ------
    sccausal._errors.SetupError
        No intervened gene is among ``genes``, or there are no control cells.
    sccausal._errors.InputDataError
        Shapes differ.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(6, n_cells=100, seed=0)
    >>> train, test = adata[::2].copy(), adata[1::2].copy()
    >>> network = scc.tl.clipr(train, intervention_key="intervention", control="control").to_network(top=8)
    >>> table = scc.metrics.interventional_scores(network, test.X, test.obs["intervention"], test.var_names, "control")
    >>> table["metric"].tolist()
    ['edge_wasserstein', 'edge_precision', 'false_omission_rate', 'n_edges']
    """
    X, label = np.asarray(cells, dtype=np.float64), np.asarray(labels).astype(str)
    names = [str(g) for g in genes]
    if X.ndim != 2 or X.shape != (len(label), len(names)):
        raise InputDataError(f"Cells {X.shape} do not fit {len(label)} labels and {len(names)} genes.")
    base = X[label == control]
    sources = [g for g in names if g != control and (label == g).sum() >= 5]
    if len(base) < 5 or not sources:
        raise SetupError(
            f"Five control cells ({control!r}) and five cells of a measured target are needed; labels: "
            f"{', '.join(sorted(set(label))[:8])}."
        )
    distance, p = np.zeros((len(sources), len(names))), np.ones((len(sources), len(names)))
    spread = np.maximum(base.std(axis=0), 1e-9)
    varies = base.std(axis=0) > 1e-9
    for i, source in enumerate(sources):
        hit = X[label == source]
        distance[i] = np.where(varies, wasserstein_1d(hit, base) / spread, 0.0)
        p[i] = np.where(varies, stats.mannwhitneyu(hit, base, axis=0).pvalue, 1.0)
    judged = np.asarray(sources, dtype=object)[:, None] != np.asarray(names, dtype=object)[None, :]
    moved = np.zeros_like(judged)
    moved[judged] = stats.false_discovery_control(np.nan_to_num(p[judged], nan=1.0)) < alpha
    strength = np.abs(_weights(network, sources, names))
    chosen = judged & (strength > 0)
    if n_edges is not None and chosen.sum() > n_edges:
        cut = np.sort(strength[chosen])[-n_edges]
        chosen &= strength >= cut
    values = {
        "edge_wasserstein": float(distance[chosen].mean()) if chosen.any() else float("nan"),
        "edge_precision": float(moved[chosen].mean()) if chosen.any() else float("nan"),
        "false_omission_rate": float(moved[judged & ~chosen].mean()) if (judged & ~chosen).any() else float("nan"),
        "n_edges": float(chosen.sum()),
    }
    table = as_table(values)
    share = float(moved[judged].mean())
    table["chance"] = [float(distance[judged].mean()), share, share, float("nan")]
    return table


def _weights(network: Any, sources: list[str], names: list[str]) -> np.ndarray:
    edges, _ = _edges(network, "network")
    out = np.zeros((len(sources), len(names)))
    row, column = {g: i for i, g in enumerate(sources)}, {g: i for i, g in enumerate(names)}
    for source, target, weight in edges[["source", "target", "weight"]].itertuples(index=False):
        if str(source) in row and str(target) in column:
            out[row[str(source)], column[str(target)]] = weight
    return out
