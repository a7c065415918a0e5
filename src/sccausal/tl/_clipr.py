"""Direct effects between genes from a perturbation screen, with or without a model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scvi import settings

from sccausal._errors import InputDataError, SetupError, unknown_name

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn import CliprResult
    from sccausal.grn._clipr_result import Estimator


class PerturbationMeans(NamedTuple):
    """Mean changes of a screen and their sampling errors.

    Attributes
    ----------
    responses
        Mean under each perturbation minus control, within batches (perturbations x genes).
    standard_errors
        Of the means of the perturbed cells (perturbations x genes).
    control, control_errors
        Mean of the control cells and its standard error (genes,).
    targets
        Targets of each perturbation.
    n_cells
        Cells of each perturbation.
    covariance
        Covariance of cells within conditions and batches (genes x genes), where asked for.
    """

    responses: pd.DataFrame
    standard_errors: pd.DataFrame
    control: pd.Series
    control_errors: pd.Series
    targets: dict[str, tuple[str, ...]]
    n_cells: pd.Series
    covariance: np.ndarray | None = None


def perturbation_means(
    adata: AnnData,
    *,
    intervention_key: str,
    control: str,
    layer: str | None = None,
    batch_key: str | None = None,
    sep: str | None = "+",
    min_cells: int = 3,
    covariance: bool = False,
) -> PerturbationMeans:
    """Mean changes of perturbed cells against the control cells of their own batch.

    Parameters
    ----------
    adata
        Cells x genes; not changed.
    intervention_key, control, sep
        As in ``setup_anndata`` of the models.
    layer
        Layer with the values, on the scale on which effects shall be read; default ``X``.
    batch_key
        Column of ``adata.obs``.
    min_cells
        Perturbations with fewer cells are left out.
    covariance
        Also estimate the covariance within conditions.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A column or layer does not exist.
    sccausal._errors.InputDataError
        There are not enough control or perturbed cells.
    """
    from sccausal.data import InterventionCodec

    for key in (intervention_key, *([batch_key] if batch_key else [])):
        if key not in adata.obs and not (key == intervention_key and key in adata.obsm):
            raise unknown_name("column", key, [*map(str, adata.obs.columns), *map(str, adata.obsm)], "adata.obs")
    if layer is not None and layer not in adata.layers:
        raise unknown_name("layer", layer, list(map(str, adata.layers)), "adata.layers")
    source = adata.obsm[intervention_key] if intervention_key in adata.obsm else adata.obs[intervention_key]
    codec = InterventionCodec.fit(source, control, sep)
    rows, code = np.unique(_dense(codec.encode(source)), axis=0, return_inverse=True)
    code = np.ravel(code)
    values = np.asarray(_dense(adata.X if layer is None else adata.layers[layer]), dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputDataError("The expression holds values that are not finite.")
    batch = np.zeros(adata.n_obs, int) if batch_key is None else pd.factorize(adata.obs[batch_key])[0]
    is_control = ~np.any(np.asarray(rows) != 0, axis=1)[code]
    if is_control.sum() < min_cells:
        raise InputDataError(
            f"There are {int(is_control.sum())} control cells ({codec.control!r}); {min_cells} needed."
        )
    base = _baselines(values, batch, is_control)
    centred = values - base[batch]
    counts = np.bincount(code, minlength=len(rows))
    kept = [k for k in range(len(rows)) if np.any(rows[k]) and counts[k] >= min_cells]
    if not kept:
        raise InputDataError(f"No perturbation has {min_cells} cells.")
    labels = [codec.label(rows[k], with_dose=True) for k in kept]
    mean = np.stack([centred[code == k].mean(axis=0) for k in kept])
    variance = np.stack([centred[code == k].var(axis=0, ddof=1) for k in kept])
    n = counts[kept].astype(float)
    # a variance pooled over conditions is far less noisy where cells are few
    pooled = ((n - 1) @ variance) / max(float((n - 1).sum()), 1.0)
    weight = (n / (n + 20))[:, None]
    variance = weight * variance + (1 - weight) * pooled
    genes = pd.Index([str(g) for g in adata.var_names])
    spread = np.sqrt(centred[is_control].var(axis=0, ddof=1) / is_control.sum())
    inner = None
    if covariance:
        rest = centred - np.stack([centred[code == k].mean(axis=0) for k in range(len(rows))])[code]
        inner = rest.T @ rest / max(len(rest) - len(rows), 1)
    return PerturbationMeans(
        pd.DataFrame(mean, index=labels, columns=genes),
        pd.DataFrame(np.sqrt(variance / n[:, None]), index=labels, columns=genes),
        pd.Series(values[is_control].mean(axis=0), index=genes),
        pd.Series(spread, index=genes),
        {name: tuple(codec.targets[t] for t in np.flatnonzero(rows[k])) for name, k in zip(labels, kept, strict=True)},
        pd.Series(n, index=labels),
        inner,
    )  # fmt: skip


def _baselines(values: np.ndarray, batch: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Control mean of each batch; that of all batches where one has no control cells."""
    total = values[control].mean(axis=0)
    out = np.tile(total, (batch.max() + 1, 1))
    for b in range(len(out)):
        own = control & (batch == b)
        if own.any():
            out[b] = values[own].mean(axis=0)
    return out


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def clipr(
    data: AnnData | pd.DataFrame | Any,
    *,
    estimator: Estimator = "response",
    intervention_key: str | None = None,
    control: str | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    sep: str | None = "+",
    min_cells: int = 3,
    n_bootstrap: int = 100,
    key_added: str | None = "clipr",
    seed: int = 0,
    **kwargs: Any,
) -> CliprResult:
    """Separate direct from total effects of perturbations on genes :cite:p:`Lorch2026`.

    Works without a model, on mean changes with their standard errors; with a trained :class:`~sccausal.models.LCD` on
    what the model makes of them.

    Parameters
    ----------
    data
        Cells x genes with interventions; a trained LCD; or responses (perturbations x genes) of any origin.
    estimator
        ``"response"`` (identifies directions), ``"drift"`` (of the paper; only for a model) or ``"drift+targets"``; see
        :func:`sccausal.grn.clipr`.
    intervention_key, control, layer, batch_key, sep
        Where interventions, values and batches of an AnnData are. Changes are compared within batches.
    min_cells
        Perturbations with fewer cells are left out.
    n_bootstrap
        Draws of the parametric bootstrap for q-values; 0 for none. Not used with plain responses without
        ``standard_errors``.
    key_added
        For an AnnData: where the result goes in ``adata.uns``; ``None`` writes nothing.
    seed
        Seed of the bootstrap.
    **kwargs
        Further arguments of :func:`sccausal.grn.clipr`, or of ``LCD.clipr``.

    Returns
    -------
    :class:`~sccausal.grn.CliprResult`. For an AnnData its edges also stand in ``adata.uns[key_added]["edges"]`` (with a
    q-value of at most 0.05, or the strongest 5 per gene without a bootstrap) beside ``params``.

    Raises
    ------
    sccausal._errors.SetupError
        What an estimator needs is missing.
    sccausal._errors.InputDataError
        No perturbation targets a measured gene.

    Warns
    -----
    UserWarning
        If there are fewer perturbed genes than sources: only effects among perturbed genes, or with a penalty, can be
        told.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(8, n_cells=100, seed=0)
    >>> result = scc.tl.clipr(adata, intervention_key="intervention", control="control", n_bootstrap=20)
    >>> result.direct_effects.shape
    (8, 8)
    """
    from sccausal.grn._clipr import clipr as solve

    if isinstance(data, pd.DataFrame):
        draws = n_bootstrap if kwargs.get("standard_errors") is not None else 0
        result = solve(data, estimator=estimator, n_bootstrap=draws, sep=sep, seed=seed, **kwargs)
    elif hasattr(data, "fixed_points"):
        result = data.clipr(estimator=estimator, n_bootstrap=n_bootstrap, seed=seed, **kwargs)
    elif hasattr(data, "obs") and hasattr(data, "var_names"):
        if intervention_key is None or control is None:
            raise SetupError("With an AnnData name `intervention_key` and `control`.")
        if estimator == "drift":
            raise SetupError("estimator='drift' needs the drift of a trained LCD: pass the model.")
        found = perturbation_means(
            data, intervention_key=intervention_key, control=control, layer=layer, batch_key=batch_key, sep=sep,
            min_cells=min_cells, covariance=estimator == "drift+targets",
        )  # fmt: skip
        if found.covariance is not None:
            genes = found.responses.columns
            ridge = 1e-3 * np.trace(found.covariance) / len(genes)
            inverse = np.linalg.inv(found.covariance + ridge * np.eye(len(genes)))
            kwargs = {"precision": pd.DataFrame(inverse, index=genes, columns=genes), "tikhonov": 1e-3, **kwargs}
        result = solve(
            found.responses, targets=found.targets, standard_errors=found.standard_errors,
            control_errors=found.control_errors, estimator=estimator, n_bootstrap=n_bootstrap, seed=seed, **kwargs,
        )  # fmt: skip
        if key_added is not None:
            data.uns[key_added] = _stored(result)
    else:
        raise SetupError(f"Expected an AnnData, a trained LCD or a DataFrame of responses, got {type(data).__name__}.")
    _warn(result)
    return result


def _stored(result: CliprResult) -> dict[str, Any]:
    top = 5 * len(result.direct_effects.columns)
    network = result.to_network(fdr=0.05) if result.q_values is not None else result.to_network(top=top)
    return {
        "edges": network.to_frame(),
        "params": {
            "estimator": result.estimator, "tikhonov": result.tikhonov, "rank": result.rank,
            "condition_number": result.condition_number, "symmetry_ratio": result.symmetry_ratio,
            "identified": result.identified, "n_perturbed": result.n_perturbed, "left_out": list(result.left_out),
        },
    }  # fmt: skip


def _warn(result: CliprResult) -> None:
    if not result.identified:
        warnings.warn(
            f"The responses to perturbations of {result.n_perturbed} genes (rank {result.rank}) do not determine the "
            f"effects of {len(result.sources)} sources: only their projection on the span of the responses is known.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )


def edge_implication(
    effects: pd.DataFrame,
    significant: pd.DataFrame,
    *,
    quantiles: tuple[float, ...] = (0.9995, 0.9998, 0.9999, 0.99997),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Whether strong direct effects go with differential expression more often than other pairs do.

    A direct effect of A on B implies that perturbing A changes B, not the other way round: differential expression also
    holds what runs through other genes. One-sided Fisher test, as in :cite:p:`Lorch2026`.

    Parameters
    ----------
    effects
        Direct effects, sources x targets.
    significant
        Boolean, perturbed genes x genes: differential expression, e.g. of :func:`sccausal.metrics.de_test`. To be worth
        something it comes from other cells than the effects.
    quantiles
        Cuts on ``|effect|`` over all pairs.
    confidence
        Level of the Wilson interval of the share.

    Returns
    -------
    DataFrame, one row per cut: ``quantile``, ``n_edges``, ``precision`` (share of the edges with differential
    expression), ``low``, ``high``, ``base_rate``, ``lift`` (precision over base rate), ``conviction``
    (``(1 - base) / (1 - precision)``) and ``p_value``.

    Raises
    ------
    sccausal._errors.InputDataError
        The tables have no sources or genes in common.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> genes = list("ABCDEF")
    >>> effects = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 6)), genes, genes)  # sources x targets
    >>> changed = effects.abs() > 1.5  # differential expression, in earnest from other cells
    >>> table = scc.tl.edge_implication(effects, changed, quantiles=(0.9,))
    >>> table[["n_edges", "precision"]].round(2)
       n_edges  precision
    0        3       0.33
    """
    from scipy.stats import fisher_exact
    from statsmodels.stats.proportion import proportion_confint

    rows = [str(r) for r in effects.index if str(r) in set(map(str, significant.index))]
    columns = [str(c) for c in effects.columns if str(c) in set(map(str, significant.columns))]
    if not rows or not columns:
        raise InputDataError("The tables of effects and of differential expression share no sources or no genes.")
    size = np.abs(effects.rename(index=str, columns=str).loc[rows, columns].to_numpy(dtype=np.float64))
    hit = significant.rename(index=str, columns=str).loc[rows, columns].to_numpy(dtype=bool)
    other = ~np.equal.outer(np.array(rows), np.array(columns))
    size, hit = size[other], hit[other]
    base = float(hit.mean())
    table = []
    for quantile in quantiles:
        edge = (size >= np.quantile(size, quantile)) & (size > 0)
        n, k = int(edge.sum()), int((edge & hit).sum())
        contingency = [[k, n - k], [int(hit.sum()) - k, int((~hit).sum()) - (n - k)]]
        low, high = proportion_confint(k, n, 1 - confidence, method="wilson") if n else (float("nan"),) * 2
        precision = k / n if n else float("nan")
        table.append(
            {
                "quantile": quantile, "n_edges": n, "precision": precision, "low": float(low), "high": float(high),
                "base_rate": base, "lift": precision / base if base else float("nan"),
                "conviction": (1 - base) / (1 - precision) if n and precision < 1 else float("inf"),
                "p_value": float(fisher_exact(contingency, alternative="greater").pvalue),
            }
        )  # fmt: skip
    return pd.DataFrame(table)


def clipr_modules(
    result: CliprResult,
    gene_sets: Any = None,
    *,
    by: Literal["sources", "targets"] = "sources",
    cut: float = 0.5,
    min_size: int = 5,
    fdr: float = 0.01,
    background: Any = None,
) -> tuple[pd.Series, pd.DataFrame | None]:
    """Groups of genes with similar direct effects, and what they have in common.

    Hierarchical clustering (average linkage) by the correlation of the genes' effects.

    Parameters
    ----------
    result
        Direct effects.
    gene_sets
        Gene sets as for :func:`sccausal.grn.read_gene_sets`, for over-representation; ``None`` leaves it out.
    by
        ``"sources"``: genes with similar effects on others; ``"targets"``: genes under similar influences.
    cut
        Correlation distance (0: equal, 1: uncorrelated) at which the tree is cut.
    min_size
        Smaller groups are none.
    fdr
        False discovery rate of the over-representation.
    background
        Genes that could have been found; default all genes of the result.

    Returns
    -------
    modules
        Group of each gene (``"module_0"`` is the largest), missing for those in none, in the order of the tree.
    enrichment
        As from :func:`sccausal.grn.over_representation`, or ``None``.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(12, n_cells=100, seed=0)
    >>> result = scc.tl.clipr(adata, intervention_key="intervention", control="control", n_bootstrap=0)
    >>> modules, _ = scc.tl.clipr_modules(result, min_size=2)
    >>> len(modules)
    12
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage

    from sccausal.grn import over_representation

    if by not in ("sources", "targets"):
        raise SetupError(f"by is 'sources' or 'targets', got {by!r}.")
    if cut <= 0 or min_size < 2:
        raise SetupError("cut must be positive and min_size at least 2.")
    table = result.direct_effects.copy()
    for gene in set(table.index) & set(table.columns):
        table.loc[gene, gene] = 0.0  # the own decay is no effect on others
    table = table if by == "sources" else table.T
    profile = table.to_numpy(dtype=np.float64)
    kept = profile.std(axis=1) > 0
    if kept.sum() < 2:
        raise InputDataError("Fewer than two genes have effects that differ between genes.")
    tree = linkage(np.asarray(profile[kept]), "average", metric="correlation")
    found = fcluster(tree, cut, criterion="distance")
    order = leaves_list(tree)
    names = np.asarray(table.index.astype(str))[kept]
    sizes = pd.Series(found).value_counts()
    big = [c for c in sizes.index if sizes[c] >= min_size]
    label = {c: f"module_{i}" for i, c in enumerate(sorted(big, key=lambda c: (-sizes[c], c)))}
    modules = pd.Series([label.get(found[i]) for i in order], index=names[order], dtype=object, name="module")
    enrichment = None
    if gene_sets is not None and modules.notna().any():
        members = {str(k): list(v.index) for k, v in modules.dropna().groupby(modules.dropna())}
        universe = list(map(str, result.direct_effects.columns)) if background is None else background
        enrichment = over_representation(members, gene_sets, background=universe, fdr=fdr)
    return modules, enrichment
