"""Gene networks of linear structural equations, from observed cells or from cells under interventions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sccausal._errors import SetupError
from sccausal.grn import Network
from sccausal.tl._structure_input import Cells, Standardisation, find_regulators, prepare_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn._intervention_stats import InterventionKind


def structure(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    intervention_key: str | None = None,
    control: str | None = None,
    sep: str | None = "+",
    kind: InterventionKind = "hard",
    regulators: Sequence[str] | str | None = None,
    regulators_only: bool = False,
    standardise: Standardisation | None = None,
    acyclicity: Literal["auto", "logdet"] | None = "auto",
    lambda1: float | None = None,
    lambda2: float | None = None,
    gamma: float = 1.0,
    max_regulators: int = 50,
    refine: bool = True,
    complete: bool = True,
    seed: int = 0,
) -> Network:
    r"""Learn a gene network of linear structural equations :math:`x = A^T x + c + e`, without a neural network.

    **With interventions** (``intervention_key``), the likelihood of each gene uses the cells in which its own
    mechanism is intact, with a noise variance per gene. The graph is a DAG found over the log-det central path and a
    search over orders and turned edges by the extended BIC (``acyclicity="logdet"``), or may have stable feedback loops
    (``acyclicity=None``, which keeps the determinant in the likelihood). Edges that touch an intervened gene are
    oriented by the interventions, others only as far as the score can.

    **Without interventions**, every gene is regressed on all others by an elastic net on rank-Gaussian values. The
    weights rank associations; their direction is **not identified**, which ``metadata`` says and a warning repeats
    if a DAG is asked for.

    Parameters
    ----------
    adata
        Cells x genes; values of any sign. Not changed.
    layer
        Layer with the values; ``None`` takes ``adata.X``.
    batch_key
        Column of ``adata.obs``: values are centred within batches (at the control cells where each batch has 10 of
        them or more), so that shifts between batches make no edges.
    intervention_key
        Column of ``adata.obs`` with labels (``"A"``, ``"A+B"``, control) or key of ``adata.obsm`` with a frame cells x
        targets, not zero where the target is intervened on. Cells with a target that is no gene of ``adata`` are left
        out.
    control
        Label of the control cells; needed for labels.
    sep
        String between the targets of a combination.
    kind
        ``"hard"``: the intervention cuts the target's regulation (knock-out). ``"soft"``: it shifts the target's level.
    regulators
        Genes that may be sources: names, or a boolean column of ``adata.var``. ``None`` for all.
    regulators_only
        Only without interventions: whether genes that are no regulators are left out as explanations too. Faster, but
        their influence is then ascribed to regulators; by default all genes explain and the regulators are read out.
    standardise
        ``"rank-gaussian"`` (default without interventions), ``"zscore"`` (default with them) or ``"none"``.
    acyclicity
        ``"logdet"``, ``None``, or ``"auto"``: ``"logdet"`` with interventions, ``None`` without.
    lambda1
        L1 weight of the elastic net (default 0.45 sqrt(2 log m / n), the noise of the largest correlation) or of the
        log-det path (default 0.15).
    lambda2
        Weight of the squared norm in the elastic net (default 2 sqrt(m / n), the spread of noise eigenvalues).
    gamma
        Strength of the extended BIC; larger is sparser.
    max_regulators
        Most regulators of a gene.
    refine
        Whether the search follows the log-det path; ``False`` is faster and far less exact.
    complete
        Only for the elastic net: rank the edges it leaves at zero below all others by ridge partial correlation.
    seed
        Seed of the search.

    Returns
    -------
    :class:`~sccausal.grn.Network` on the standardised scale. With interventions or ``acyclicity="logdet"``, further
    columns are ``evidence`` (log-likelihood lost without the edge, net of the criterion) and ``intervened`` (whether
    one of its ends is intervened on). ``metadata`` holds the settings, what was left out and what is identified.

    Raises
    ------
    SetupError, UnknownNameError
        If a column, gene or setting is not known.
    InputDataError
        If values are not finite, or no target of an intervention is a gene of ``adata``.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_stationary(8, n_cells=100, seed=0)
    >>> network = scc.tl.structure(adata, intervention_key="intervention", control="control")
    >>> sorted(network.to_frame().columns)
    ['evidence', 'intervened', 'source', 'target', 'weight']
    """
    if acyclicity not in ("auto", "logdet", None):
        raise SetupError(f"`acyclicity` is {acyclicity!r}; choose 'auto', 'logdet' or None.")
    cells = prepare_cells(
        adata,
        layer=layer,
        batch_key=batch_key,
        intervention_key=intervention_key,
        control=control,
        sep=sep,
        standardise=standardise,
    )
    sources = find_regulators(adata, regulators)
    if cells.intervened is None and acyclicity != "logdet":
        return _elastic_net(cells, sources, regulators_only, lambda1, lambda2, complete)
    settings = {"gamma": gamma, "max_regulators": max_regulators, "refine": refine, "seed": seed}
    if lambda1 is not None:
        settings["lambda1"] = lambda1
    return _sem(cells, sources, kind, None if acyclicity is None else "logdet", settings)


def _elastic_net(
    cells: Cells,
    sources: np.ndarray | None,
    regulators_only: bool,
    lambda1: float | None,
    lambda2: float | None,
    complete: bool,
) -> Network:
    from sccausal.grn._elastic_net import (
        complete_ranking,
        default_penalties,
        elastic_net_sem,
        ridge_partial_correlation,
    )

    values, genes = cells.values, cells.genes
    default1, default2 = default_penalties(*values.shape)
    l1, l2 = default1 if lambda1 is None else lambda1, default2 if lambda2 is None else lambda2
    weights = elastic_net_sem(values, l1, l2, sources=sources if regulators_only else None)
    n_found = int((weights != 0).sum())
    if complete:
        weights = complete_ranking(weights, ridge_partial_correlation(values, max(l2, 0.1)))
    rows = np.arange(len(genes)) if sources is None else sources
    metadata = cells.metadata | {
        "estimator": "elastic net",
        "lambda1": l1,
        "lambda2": l2,
        "n_elastic_net_edges": n_found,
        "direction_identified": False,
        "direction": "not identified: observed cells alone leave the direction of a linear Gaussian edge open",
    }
    names = None if sources is None else [genes[i] for i in rows]
    return Network.from_matrix(weights[rows], genes, regulators=names, metadata=metadata)


def _sem(
    cells: Cells,
    sources: np.ndarray | None,
    kind: InterventionKind,
    acyclicity: Literal["logdet"] | None,
    settings: dict[str, Any],
) -> Network:
    from sccausal.grn._linear_sem import fit_linear_sem

    genes, intervened = cells.genes, cells.intervened
    touched = np.zeros(len(genes), dtype=bool) if intervened is None else np.asarray(intervened.any(0))
    if intervened is None:
        warnings.warn(
            "Without interventions a DAG is determined only up to its equivalence class; after standardisation even "
            "variances do not help. Read the direction of edges with care (metadata['direction_identified']).",
            stacklevel=3,
        )
    rows = np.arange(len(genes)) if sources is None else sources
    allowed = np.zeros((len(genes), len(genes)), dtype=bool)
    allowed[rows] = True
    fit = fit_linear_sem(cells.values, intervened, kind=kind, acyclicity=acyclicity, allowed=allowed, **settings)
    either = touched[:, None] | touched[None, :]
    n_edges = int((fit.weights != 0).sum())
    metadata = cells.metadata | {
        "estimator": "linear SEM",
        "acyclicity": acyclicity,
        "intervention_kind": kind if intervened is not None else None,
        "n_intervened_genes": int(touched.sum()),
        "score": float(fit.score),
        "direction_identified": bool(intervened is not None and touched.any()),
        "direction": "by interventions where `intervened` is true, else by the score within the equivalence class",
        "share_of_edges_touching_an_intervention": float((either & (fit.weights != 0)).sum() / max(n_edges, 1)),
        "residual_variance": dict(zip(genes, fit.residual_variance.round(6).tolist(), strict=True)),
        **settings,
        **fit.info,
    }
    if intervened is None:
        metadata["direction"] = "not identified beyond the equivalence class of the DAG"
    extra = {"evidence": fit.evidence[rows], "intervened": either[rows]}
    names = None if sources is None else [genes[i] for i in rows]
    return Network.from_matrix(fit.weights[rows], genes, regulators=names, metadata=metadata, extra=extra)
