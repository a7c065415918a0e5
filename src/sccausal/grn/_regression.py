"""Networks by regression of each gene on its candidate regulators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, close_names, unknown_name
from sccausal.grn._bagged_ridge import PValue, fit_edges
from sccausal.grn._base_network import base_network
from sccausal.grn._network import Network

_FEWEST_CELLS = 10
_MOST_EDGES = 20_000_000  # a table of so many takes gigabytes


def bagged_ridge(
    expression: Any,
    genes: Sequence[str],
    base: Any = None,
    *,
    regulators: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    alpha: float = 10.0,
    n_bags: int = 20,
    feature_share: float = 0.8,
    scale_targets: bool = True,
    min_cells: int = 10,
    p_value: PValue = "bootstrap",
    n_jobs: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Network:
    r"""Regress each gene on its candidate regulators by bagged ridge regression :cite:p:`Kamimoto2023`.

    The estimator is CellOracle's: regulators standardised, ridge penalty ``alpha``, each bag a bootstrap of the cells
    with a share of the candidates, the weight the mean over the bags that hold the regulator. It is computed from
    moments that all targets share, which is far faster. The result does not depend on the order of the edges or the
    number of workers; another order of the cells is another draw of the bags.

    P-values do differ by default. CellOracle tests whether the coefficients of the bags have mean zero; these are
    repeats of one estimate, so its p-value falls with the number of bags and most edges without any effect pass.
    ``p_value="bootstrap"`` takes the spread over the bags as the standard error of the estimate, but no less than the
    residuals allow. Both hold for
    independent cells: smoothing over neighbours, as CellOracle does before, makes either too small.

    Parameters
    ----------
    expression
        Log-normalised values, (n_cells, n_genes), dense or sparse.
    genes
        Names of the columns.
    base
        Base network (see :func:`base_network`): candidates are its edges. ``None``: all regulators for every gene.
    regulators
        Genes that may be sources; default: those of the base network, or all genes.
    targets
        Genes to explain; default: all that have candidates.
    alpha
        Ridge penalty, on the sum of squared residuals.
    n_bags
        Number of bags, at least 3.
    feature_share
        Share of the candidates each bag draws, in (0, 1].
    scale_targets
        Whether targets are standardised too, so that weights are standard deviations per standard deviation and can be
        compared between targets. ``False`` leaves them in the unit of the target, as CellOracle does; its largest
        weights are then those of the most expressed targets.
    min_cells
        Genes above their lowest value in fewer cells take no part. Two genes seen in a handful of cells each are seen
        together by luck or not at all, and no test of a slope is to be trusted.
    p_value
        ``"bootstrap"`` (Student's t of mean over standard deviation of the bags) or ``"bags"`` (CellOracle's).
    n_jobs
        Threads, as in joblib: ``None`` is one, -1 all cores.
    progress
        Whether a progress bar is shown.
    seed
        Seed of the bags.

    Returns
    -------
    Network of all candidate edges: ``weight``, ``std`` (over bags), ``n_bags``, ``p_value``, and ``q_value`` (Benjamini
    and Hochberg's over all edges). ``genes`` are those that took part; ``metadata`` counts what was left out.

    Raises
    ------
    sccausal._errors.InputDataError
        Values are not finite, there are fewer than 10 cells, or no edge of the base network is measured.
    sccausal._errors.SetupError
        A setting is out of range, or shapes do not fit.
    sccausal._errors.UnknownNameError
        A regulator or target is not a gene.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.grn.bagged_ridge(adata.X, adata.var_names, cells.uns["truth"]["network"])
    >>> sorted(network.to_frame().columns)
    ['n_bags', 'p_value', 'q_value', 'source', 'std', 'target', 'weight']
    """
    _check_settings(alpha, n_bags, feature_share, p_value, min_cells)
    names = [str(g) for g in genes]
    values = _dense(expression, names)
    varies = values.std(0) > 1e-12 * (1 + np.abs(values.mean(0)))
    varies &= (values > values.min(0)).sum(0) >= min_cells
    known = None if base is None else base_network(base)
    pairs, facts = _candidate_pairs(names, varies, known, regulators, targets)
    source_at, target_at = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
    held = [c for _, c in _groups(pairs, source_at, target_at)]
    x = values[:, source_at]
    x = (x - x.mean(0)) / x.std(0)
    y = values[:, target_at]
    if scale_targets:
        y = (y - y.mean(0)) / y.std(0)
    own = np.where(np.isin(target_at, source_at), np.searchsorted(source_at, target_at), -1)
    edges = fit_edges(
        x, y, held, own, alpha=alpha, n_bags=n_bags, feature_share=feature_share, p_value=p_value, n_jobs=n_jobs,
        progress=progress, seed=seed,
    )  # fmt: skip
    label = np.asarray(names, dtype=object)
    frame = pd.DataFrame(
        {
            "source": label[source_at[edges.source]],
            "target": label[target_at[edges.target]],
            "weight": edges.weight,
            "std": edges.std,
            "n_bags": edges.n_bags,
            "p_value": edges.p_value,
            "q_value": benjamini_hochberg(edges.p_value),
        }
    )
    metadata = {
        "method": "bagged ridge",
        "n_cells": len(values),
        "alpha": alpha,
        "bags": n_bags,
        "feature_share": feature_share,
        "scale_targets": scale_targets,
        "min_cells": min_cells,
        "p_value": p_value,
        "seed": seed,
        "units": "sd per sd" if scale_targets else "target per sd of regulator",
        "base": None if known is None else known.metadata.get("resource", known.metadata.get("file", "given")),
        **facts,
    }
    took_part = label[np.union1d(source_at, target_at)]
    return Network(frame, list(took_part), metadata, list(label[source_at]))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values that control the false discovery rate, in the order given."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(p, method="bh") if len(p) else np.asarray(p, dtype=float)


def _check_settings(alpha: float, n_bags: int, feature_share: float, p_value: str, min_cells: int) -> None:
    if not alpha > 0:
        raise SetupError(f"`alpha` is a penalty above zero, got {alpha}.")
    if n_bags < 3:
        raise SetupError(f"`n_bags` is {n_bags}; a spread over bags needs 3 at the least.")
    if not 0 < feature_share <= 1:
        raise SetupError(f"`feature_share` lies in (0, 1], got {feature_share}.")
    if min_cells < 1:
        raise SetupError(f"`min_cells` is at least 1, got {min_cells}.")
    if p_value not in ("bootstrap", "bags"):
        raise SetupError(f"`p_value` is {p_value!r}; choose 'bootstrap' or 'bags'.")


def _dense(expression: Any, names: Sequence[str]) -> np.ndarray:
    from scipy import sparse

    values = np.asarray(expression.toarray() if sparse.issparse(expression) else expression, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise SetupError(f"`expression` has shape {values.shape}, but there are {len(names)} genes (cells are rows).")
    if len(set(names)) != len(names):
        twice = pd.Index(names)[pd.Index(names).duplicated()][0]
        raise InputDataError(f"Gene {twice!r} is listed twice; make the names unique first.")
    if len(values) < _FEWEST_CELLS:
        raise InputDataError(f"A regression needs {_FEWEST_CELLS} cells at the least, found {len(values)}.")
    bad = ~np.isfinite(values).all(0)
    if bad.any():
        raise InputDataError(
            f"{int(bad.sum())} genes hold values that are missing or infinite: "
            f"{[names[i] for i in np.flatnonzero(bad)[:5]]}. Drop these genes or fill the values."
        )
    return values


def _positions(kind: str, wanted: Sequence[str] | None, place: dict[str, int], names: Sequence[str]) -> np.ndarray:
    if wanted is None:
        return np.arange(len(names))
    for name in wanted:
        if str(name) not in place:
            raise unknown_name(kind, str(name), names, "the genes")
    return np.unique([place[str(w)] for w in wanted]).astype(np.int64)


def _candidate_pairs(
    names: list[str],
    varies: np.ndarray,
    base: Network | None,
    regulators: Sequence[str] | None,
    targets: Sequence[str] | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Pairs (regulator, target) of positions, by target then regulator; and what was left out."""
    place = {g: i for i, g in enumerate(names)}
    may_act = np.zeros(len(names), dtype=bool)
    may_act[_positions("regulator", regulators, place, names)] = True
    explained = np.zeros(len(names), dtype=bool)
    explained[_positions("target", targets, place, names)] = True
    facts: dict[str, Any] = {"n_rare_genes": int((~varies).sum())}
    if base is None:
        n_edges = int((may_act & varies).sum()) * int((explained & varies).sum())
        if n_edges > _MOST_EDGES:
            raise SetupError(
                f"Without a base network {n_edges / 1e6:.0f} million edges would be fitted; name `regulators` (for "
                "instance the transcription factors) or `targets`."
            )
        s, t = np.nonzero((may_act & varies)[:, None] & (explained & varies)[None, :])
    else:
        frame = base.to_frame()
        source, target = frame["source"].map(place), frame["target"].map(place)
        measured = (source.notna() & target.notna()).to_numpy()
        if not measured.any():
            near = next((close_names(g, names) for g in base.genes[:200] if close_names(g, names)), [])
            raise InputDataError(
                f"None of the {len(frame)} edges of the base network joins measured genes (base: {base.genes[:3]}, "
                f"genes: {names[:3]}{', close: ' + near[0] if near else ''}). Check organism, case and kind of name."
            )
        s, t = (np.asarray(x[measured], dtype=np.intp) for x in (source, target))
        facts |= {"n_base_edges": len(frame), "n_base_edges_measured": int(measured.sum())}
        keep = may_act[s] & explained[t] & varies[s] & varies[t]
        s, t = s[keep], t[keep]
    apart = s != t
    pairs = np.stack([s[apart], t[apart]], axis=1)
    if not len(pairs):
        raise InputDataError(
            "No edge is left to fit: regulators or targets are seen in too few cells, or not in the base network."
        )
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))], facts


def _groups(pairs: np.ndarray, source_at: np.ndarray, target_at: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """For each target its candidates, as positions among the regulators."""
    local = np.searchsorted(source_at, pairs[:, 0])
    cuts = np.searchsorted(pairs[:, 1], target_at[1:])
    return list(zip(target_at.tolist(), np.split(local, cuts), strict=True))
