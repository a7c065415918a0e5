"""One number per cell and community: what its regulators do together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.grn._communities import Communities
from sccausal.grn._network import Network

logger = logging.getLogger(__name__)

ActivityMethod = Literal["eigengene", "mean", "ulm"]
GLOBAL = "global"
"""Name of the activity over all regulators."""


@dataclass(frozen=True)
class TFActivity:
    """A way from expression to activities, learned on some cells and applied to any.

    Parameters
    ----------
    method
        ``"eigengene"``, ``"mean"`` or ``"ulm"``.
    loadings
        Weights of genes in activities, (n_genes, n_activities), zero for genes that take no part.
    center, scale
        Mean and standard deviation of each gene in the cells it was learned on, (n_genes,); not used by ``"ulm"``.
    explained
        One row per activity: ``explained``, the share of the variance of its standardised regulators that it holds;
        ``chance``, the mean share for as many random regulators; ``p_value``, the share of random sets that reach it.
        Not for ``"ulm"``.
    metadata
        JSON-able settings.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0))
    >>> sets = {"first": list(adata.var_names[:8]), "second": list(adata.var_names[8:16])}
    >>> activity = scc.grn.fit_activity(adata.X[:100], adata.var_names, sets)
    >>> activity.transform(adata.X[100:], adata.var_names).shape  # other cells x activities
    (100, 3)
    """

    method: ActivityMethod
    loadings: pd.DataFrame
    center: pd.Series
    scale: pd.Series
    explained: pd.DataFrame
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the activities: the communities, then ``"global"`` if there is one."""
        return list(self.loadings.columns)

    def transform(self, expression: Any, genes: Sequence[str]) -> np.ndarray:
        """Activities of cells, by projection: nothing is refitted.

        Parameters
        ----------
        expression
            Values on the scale that was learned on, (n_cells, n_genes), dense or sparse.
        genes
            Names of the columns; all genes with a loading must be among them.

        Returns
        -------
        Array (n_cells, n_activities).

        Raises
        ------
        sccausal._errors.UnknownNameError
            A gene is missing.
        sccausal._errors.InputDataError
            A value is not finite.
        """
        place = {str(g): i for i, g in enumerate(genes)}
        missing = [g for g in self.loadings.index if g not in place]
        if missing and self.method != "ulm":
            raise unknown_name("gene", missing[0], place, f"the cells ({len(missing)} genes of the activities missing)")
        if self.method == "ulm":
            return _ulm(expression, list(place), self.loadings)
        values = _columns(expression, [place[g] for g in self.loadings.index])
        standardised = (values - self.center.to_numpy()) / self.scale.to_numpy()
        return standardised @ self.loadings.to_numpy()


def fit_activity(
    expression: Any,
    genes: Sequence[str],
    communities: Communities | Mapping[str, Sequence[str]],
    *,
    method: ActivityMethod = "eigengene",
    network: Network | None = None,
    include_global: bool = True,
    n_random: int = 200,
    seed: int = 0,
) -> TFActivity:
    r"""Learn the activities of communities :cite:p:`Alter2000`.

    ``"eigengene"`` is the first principal component of the standardised expression of a community's regulators,
    :math:`X_C v_1` with :math:`|v_1| = 1`, its sign such that the mean loading is positive. ``"mean"`` is their mean.
    ``"ulm"`` reads the genes that a community regulates instead, each weighted by the sum of the edges from its
    members, by decoupler's univariate linear model :cite:p:`BadiaIMompel2022`.

    Parameters
    ----------
    expression
        Log-normalised values, (n_cells, n_genes), dense or sparse.
    genes
        Names of the columns.
    communities
        Communities, or sets of genes by name (any programme a user knows, such as a pathway).
    method
        How a community becomes one number.
    network
        Only for ``"ulm"``: edges from regulators to targets.
    include_global
        Whether the same is computed over all regulators, as the last activity, ``"global"``.
    n_random
        Random sets of regulators that the explained variance of a community is compared with.
    seed
        Seed of these sets.

    Returns
    -------
    TFActivity

    Raises
    ------
    sccausal._errors.InputDataError
        A community has no measured regulator that varies, or a value is not finite.
    sccausal._errors.SetupError
        The method is not known, or needs a network.
    ImportError
        ``"ulm"`` without decoupler.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0))
    >>> sets = {"first": list(adata.var_names[:8]), "second": list(adata.var_names[8:16])}
    >>> scc.grn.fit_activity(adata.X, adata.var_names, sets).names
    ['first', 'second', 'global']
    """
    members = communities.members() if isinstance(communities, Communities) else communities
    sets = {str(k): [str(g) for g in v] for k, v in members.items()}
    if not sets:
        raise InputDataError("There is no community.")
    if GLOBAL in sets and include_global:
        raise SetupError(f"A community is called {GLOBAL!r}, the name of the activity over all; rename it.")
    if include_global:
        sets[GLOBAL] = list(dict.fromkeys(g for held in sets.values() for g in held))
    if method == "ulm":
        return _fit_ulm(genes, sets, network)
    if method not in ("eigengene", "mean"):
        raise SetupError(f"`method` is {method!r}; choose 'eigengene', 'mean' or 'ulm'.")
    place = {str(g): i for i, g in enumerate(genes)}
    everyone = list(dict.fromkeys(g for held in sets.values() for g in held if g in place))
    values = _columns(expression, [place[g] for g in everyone])
    center, scale = values.mean(0), values.std(0)
    varies = scale > 1e-12 * (1 + np.abs(center))
    n_flat = int((~varies).sum())
    if n_flat:
        logger.info("%d regulators are constant in these cells and take no part in the activities.", n_flat)
    used = [g for g, v in zip(everyone, varies, strict=True) if v]
    standardised = (values[:, varies] - center[varies]) / scale[varies]
    loadings, explained = _loadings(standardised, used, sets, method)
    explained = _beside_chance(explained, standardised, loadings, method, n_random, seed)
    n_unmeasured = len({g for held in sets.values() for g in held} - set(place))
    return TFActivity(
        method,
        loadings,
        pd.Series(center[varies], index=used),
        pd.Series(scale[varies], index=used),
        explained,
        {"method": method, "n_cells": len(values), "n_constant": n_flat, "n_unmeasured": n_unmeasured},
    )


def _loadings(
    standardised: np.ndarray, used: list[str], sets: Mapping[str, Sequence[str]], method: ActivityMethod
) -> tuple[pd.DataFrame, pd.DataFrame]:
    at = {g: i for i, g in enumerate(used)}
    loadings = np.zeros((len(used), len(sets)))
    explained = np.zeros(len(sets))
    for k, (name, held) in enumerate(sets.items()):
        columns = [at[g] for g in held if g in at]
        if not columns:
            raise InputDataError(f"No regulator of community {name!r} is measured and varies ({list(held)[:5]}).")
        covariance = standardised[:, columns].T @ standardised[:, columns] / len(standardised)
        if method == "mean":
            vector = np.full(len(columns), 1 / len(columns))
        else:
            vector = np.linalg.eigh(covariance)[1][:, -1]
            vector = vector * (-1.0 if vector.mean() < 0 else 1.0)
        loadings[columns, k] = vector
        explained[k] = _share(covariance, method)
    names = list(sets)
    return pd.DataFrame(loadings, index=used, columns=names), pd.DataFrame({"explained": explained}, index=names)


def _share(correlation: np.ndarray, method: ActivityMethod) -> float:
    """Share of the variance of standardised variables along their first component, or along their mean."""
    n = len(correlation)
    return float(correlation.sum() / n**2 if method == "mean" else np.linalg.eigvalsh(correlation)[-1] / n)


def _beside_chance(
    explained: pd.DataFrame,
    standardised: np.ndarray,
    loadings: pd.DataFrame,
    method: ActivityMethod,
    n_random: int,
    seed: int,
) -> pd.DataFrame:
    """``explained`` beside as many random regulators; the activity over all has no such comparison."""
    correlation = standardised.T @ standardised / len(standardised)
    rng = np.random.default_rng(seed)
    total = len(correlation)
    chance, p = np.full(len(explained), np.nan), np.full(len(explained), np.nan)
    for k, size in enumerate((loadings != 0).sum()):
        if size < total and n_random:
            drawn = [rng.choice(total, size, replace=False) for _ in range(n_random)]
            null = np.array([_share(correlation[np.ix_(d, d)], method) for d in drawn])
            chance[k] = null.mean()
            p[k] = (1 + (null >= explained["explained"].iloc[k] - 1e-12).sum()) / (1 + n_random)
    return explained.assign(chance=chance, p_value=p)


def _fit_ulm(genes: Sequence[str], sets: Mapping[str, Sequence[str]], network: Network | None) -> TFActivity:
    from scipy import sparse

    if network is None:
        raise SetupError("method='ulm' reads the targets of a community: give the `network` that names them.")
    measured, place = {str(g) for g in genes}, {g: i for i, g in enumerate(network.genes)}
    matrix = sparse.csr_matrix(network.to_matrix(as_sparse=True))
    targets = [g for g in network.genes if g in measured]
    loadings = pd.DataFrame(0.0, index=targets, columns=list(sets))
    for name, held in sets.items():
        sources = [g for g in held if g in place]
        if sources:
            rows = matrix[[place[s] for s in sources]]
            loadings[name] = np.asarray(rows.sum(0)).ravel()[[place[t] for t in targets]]
        if not (loadings[name] != 0).any():
            raise InputDataError(f"Community {name!r} has no measured target in the network.")
    loadings = loadings.loc[(loadings != 0).any(axis=1)]
    nothing = pd.Series(np.nan, index=loadings.index)
    explained = pd.DataFrame(np.nan, index=loadings.columns, columns=["explained", "chance", "p_value"])
    return TFActivity("ulm", loadings, nothing, nothing, explained, {"method": "ulm"})


def _ulm(expression: Any, genes: list[str], loadings: pd.DataFrame) -> np.ndarray:
    try:
        import decoupler as dc
    except ModuleNotFoundError as error:
        raise ImportError('method="ulm" needs decoupler: pip install "sccausal[enrichment]"') from error
    values = _columns(expression, list(range(len(genes))))
    net = loadings.rename_axis("target").reset_index().melt("target", var_name="source", value_name="weight")
    net = net[net["weight"] != 0]
    frame = pd.DataFrame(values, columns=genes, index=[str(i) for i in range(len(values))])
    # genes that are zero in a cell are observations of the linear model as much as others
    scores = dc.mt.ulm(frame, net[["source", "target", "weight"]], tmin=1, empty=False)[0]
    lost = [n for n in loadings.columns if n not in scores.columns]
    if lost:
        raise InputDataError(f"No gene regulated by community {lost[0]!r} is among the cells' genes.")
    return scores[list(loadings.columns)].to_numpy()


def _columns(expression: Any, columns: Sequence[int]) -> np.ndarray:
    from scipy import sparse

    picked = expression[:, list(columns)]
    values = np.asarray(picked.toarray() if sparse.issparse(picked) else picked, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputDataError("The expression holds values that are missing or infinite.")
    return values
