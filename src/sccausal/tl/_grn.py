"""A gene network from expression and a base network, kept in the AnnData."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.grn import Network

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn._bagged_ridge import PValue

logger = logging.getLogger(__name__)

Edges = Literal["tested", "significant", "strong"]
EDGES = ("tested", "significant", "strong")


def grn(
    adata: AnnData,
    base: Any = None,
    *,
    regulators: Sequence[str] | str | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    intervention_key: str | None = None,
    control: str | None = None,
    sep: str | None = "+",
    train: Any = None,
    organism: str = "human",
    levels: Sequence[str] | None = None,
    alpha: float = 10.0,
    n_bags: int = 20,
    feature_share: float = 0.8,
    scale_targets: bool = True,
    min_cells: int = 10,
    p_value: PValue = "bootstrap",
    fdr: float = 0.05,
    strong: float | Literal["mixture"] = "mixture",
    edges: Edges = "significant",
    key_added: str | None = "grn",
    n_jobs: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Network:
    r"""Fit a gene network: bagged ridge regression of each gene on the regulators a base network allows.

    The first step of gCRL :cite:p:`gCRL2026`, with CellOracle's estimator :cite:p:`Kamimoto2023`; see
    :func:`sccausal.grn.bagged_ridge` for it, and for where its p-values differ. The weights are associations given the
    other candidates; their direction is that of the base network. For a network without a base, or with interventions
    that orient edges, see :func:`sccausal.tl.structure`.

    Parameters
    ----------
    adata
        Cells x genes, log-normalised. Only ``uns[key_added]`` is written.
    base
        Base network: a :class:`~sccausal.grn.Network` (such as a model's), a table, a file, CellOracle's wide table,
        ``"collectri"`` or ``"dorothea"``; see :func:`sccausal.grn.base_network`. ``None``: every regulator may act on
        every gene.
    regulators
        Genes that may be sources: names, or a boolean column of ``adata.var``. Default: those of the base network, or
        all genes.
    layer
        Layer with the values; ``None`` takes ``adata.X``.
    batch_key
        Column of ``adata.obs``: values are centred within batches.
    intervention_key
        Column of ``adata.obs`` with labels: only control cells are used, as gCRL does. Default: all cells.
    control
        Label of the control cells; needed with ``intervention_key``.
    sep
        String between the targets of a combination.
    train
        Training cells (a split, row numbers or a mask); default all.
    organism, levels
        As for :func:`sccausal.grn.base_network`.
    alpha, n_bags, feature_share, scale_targets, min_cells, p_value, n_jobs, progress, seed
        As for :func:`sccausal.grn.bagged_ridge`.
    fdr
        False discovery rate (Benjamini and Hochberg) up to which an edge is significant.
    strong
        ``"mixture"``: a significant edge is strong from where two Gaussians on ``log|weight|`` cross
        (:func:`sccausal.grn.edge_mixture`); where they do not fall into two groups, all significant edges are strong,
        and a log message says so. A number: this share of the significant edges.
    edges
        Which edges to return: ``"tested"``, ``"significant"`` or ``"strong"``. All are kept in ``uns``.
    key_added
        Where in ``adata.uns`` the result goes; ``None`` leaves ``adata`` as it is.

    Returns
    -------
    :class:`~sccausal.grn.Network` with the columns of :func:`sccausal.grn.bagged_ridge`, ``significant``, ``strong``.

    ``adata.uns[key_added]`` holds ``edges`` (all tested edges as a table), ``genes``, ``regulators``, ``params`` and
    ``mixture`` (means, sds and shares of the two components, the cut, and the gain in BIC over one Gaussian).

    Raises
    ------
    sccausal._errors.SetupError, sccausal._errors.UnknownNameError
        A column, gene or setting is not known.
    sccausal._errors.InputDataError
        Values are not finite, there are too few cells, or no edge of the base network is measured.

    Examples
    --------
    >>> from sccausal import datasets, tl
    >>> adata = datasets.simulate_perturb_seq(300, 60, 4, seed=0, sortability=False)
    >>> net = tl.grn(adata, adata.uns["truth"]["network"], intervention_key="intervention", control="control")
    >>> sorted(adata.uns["grn"])
    ['edges', 'genes', 'mixture', 'params', 'regulators']
    """
    from sccausal.grn import bagged_ridge
    from sccausal.grn._base_network import base_network
    from sccausal.tl._structure_input import expression_values, find_regulators

    if edges not in EDGES:
        raise SetupError(f"`edges` is {edges!r}; choose one of {EDGES}.")
    if not 0 < fdr <= 1:
        raise SetupError(f"`fdr` lies in (0, 1], got {fdr}.")
    if strong != "mixture" and not (isinstance(strong, int | float) and 0 < strong <= 1):
        raise SetupError(f"`strong` is 'mixture' or a share in (0, 1], got {strong!r}.")
    known = None if base is None else base_network(base, organism=organism, levels=levels)
    rows = _rows(adata, train, intervention_key, control, sep)
    chosen = find_regulators(adata, regulators)
    values = expression_values(adata[rows], layer, batch_key)
    names = [str(g) for g in adata.var_names]
    network = bagged_ridge(
        values, names, known, regulators=None if chosen is None else [names[i] for i in chosen], alpha=alpha,
        n_bags=n_bags, feature_share=feature_share, scale_targets=scale_targets, min_cells=min_cells, p_value=p_value,
        n_jobs=n_jobs, progress=progress, seed=seed,
    )  # fmt: skip
    marked, mixture = _mark(network, fdr, strong, seed)
    marked.metadata |= {
        "layer": layer, "batch_key": batch_key, "intervention_key": intervention_key, "control": control, "fdr": fdr,
        "strong": strong,
    }  # fmt: skip
    if key_added is not None:
        adata.uns[key_added] = {
            "edges": marked.to_frame(),
            "genes": np.array(marked.genes, dtype=object),
            "regulators": np.array(marked.regulators, dtype=object),
            "params": {k: v for k, v in marked.metadata.items() if v is not None},
            "mixture": mixture,
        }
    return select_edges(marked, edges)


def _rows(adata: AnnData, train: Any, key: str | None, control: str | None, sep: str | None) -> np.ndarray:
    from sccausal.data import InterventionCodec
    from sccausal.pp._genes import _training_rows

    rows = _training_rows(adata, train)
    if key is None:
        if control is not None:
            raise SetupError(f"`control` is {control!r}, but no `intervention_key` says in which column it stands.")
        return rows
    if key not in adata.obs:
        raise unknown_name("intervention column", key, adata.obs.columns, "adata.obs")
    codec = InterventionCodec.fit(adata.obs[key], control, sep)
    untouched = np.asarray((codec.encode(adata.obs[key]) == 0).all(axis=1))
    kept = rows[untouched[rows]]
    if not len(kept):
        raise InputDataError(f"No cell of adata.obs[{key!r}] is control ({codec.control!r}).")
    return kept


def _mark(
    network: Network, fdr: float, strong: float | Literal["mixture"], seed: int
) -> tuple[Network, dict[str, Any]]:
    """Network with the columns ``significant`` and ``strong``, and the mixture."""
    import warnings

    from sccausal.grn import edge_mixture

    frame = network.to_frame()
    frame["significant"] = frame["q_value"] <= fdr
    size = frame["weight"].abs()
    found = network._with(frame[frame["significant"]])
    mixture: dict[str, Any] = {}
    cut = 0.0
    if strong != "mixture":
        # ties at the edge of the share go the way of the table: strongest first, then by name
        kept = np.cumsum(frame["significant"].to_numpy()) <= np.ceil(float(strong) * len(found))
        frame["strong"] = frame["significant"] & kept
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said below in the words of this function
                fitted = edge_mixture(found, seed=seed)
            mixture = fitted.to_dict()
            if fitted.two_groups:
                cut = fitted.cut
            else:
                logger.info("The weights are one group, not two: all significant edges count as strong.")
        except InputDataError as error:
            logger.info("No cut between weak and strong edges (%s): all significant edges count as strong.", error)
        frame["strong"] = frame["significant"] & (size >= cut)
    if not frame["significant"].any():
        logger.warning("None of the %d tested edges is significant at a false discovery rate of %g.", len(frame), fdr)
    return network._with(frame), mixture


def select_edges(network: Network, edges: Edges) -> Network:
    """The edges of a kind, of a network marked by :func:`grn`."""
    if edges == "tested":
        return network
    frame = network.to_frame()
    return network._with(frame[frame[edges].to_numpy(dtype=bool)])


def stored_network(adata: AnnData, key: str, edges: Edges) -> Network:
    """The network that :func:`grn` left in ``adata.uns[key]``.

    Raises
    ------
    UnknownNameError
        There is none.
    SetupError
        What stands there is no network, or the kind of edges is not known.
    """
    if edges not in EDGES:
        raise SetupError(f"`edges` is {edges!r}; choose one of {EDGES}.")
    if key not in adata.uns:
        raise unknown_name("network", key, adata.uns.keys(), "adata.uns; run `tl.grn` first")
    held = adata.uns[key]
    if not hasattr(held, "keys") or not isinstance(held.get("edges"), pd.DataFrame):
        raise SetupError(f"adata.uns[{key!r}] was not written by `tl.grn`; name its key, or give the network.")
    frame = held["edges"].astype({"source": str, "target": str})
    genes, regulators = ([str(g) for g in held[k]] for k in ("genes", "regulators"))
    return select_edges(Network(frame, genes, dict(held.get("params", {})), regulators), edges)
