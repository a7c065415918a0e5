"""Activities of transcription factor communities in cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from sccausal._errors import SetupError, unknown_name
from sccausal.tl._communities import stored_communities
from sccausal.tl._grn import stored_network

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn import Communities, Network, TFActivity
    from sccausal.grn._activity import ActivityMethod


def tf_activity(
    adata: AnnData,
    communities: Communities | Mapping[str, Sequence[str]] | None = None,
    *,
    method: ActivityMethod = "eigengene",
    network: Network | None = None,
    include_global: bool = True,
    layer: str | None = None,
    train: Any = None,
    reference: AnnData | None = None,
    key: str = "tf_communities",
    network_key: str = "grn",
    key_added: str = "tf_activity",
) -> pd.DataFrame:
    """Activity of each community in each cell :cite:p:`gCRL2026`; see :func:`sccausal.grn.fit_activity`.

    Parameters
    ----------
    adata
        Cells x genes, on the scale of :func:`grn`. ``obsm``, ``varm``, ``var`` and ``uns`` get ``key_added``.
    communities
        Communities, or sets of genes by name (a pathway, any programme); default: those of ``uns[key]``.
    method
        ``"eigengene"`` (first principal component), ``"mean"``, or ``"ulm"`` (decoupler, from the targets).
    network
        Only for ``"ulm"``: edges to targets; default: the significant ones of ``uns[network_key]``.
    include_global
        Whether the activity over all regulators stands last, as ``"global"``.
    layer
        Layer with the values; ``None`` takes ``adata.X``.
    train
        Training cells (a split, row numbers or a mask) that loadings and scales are learned on; default all.
    reference
        Cells in which activities were computed: ``adata`` is projected on their loadings, nothing is fitted.
    key, network_key
        Where communities and network are in ``adata.uns``.
    key_added
        Where results go.

    Returns
    -------
    DataFrame (n_cells, n_activities), the same as ``adata.obsm[key_added]``.

    ``adata.varm[key_added + "_loadings"]``: loadings (n_genes, n_activities). ``adata.uns[key_added]``: ``scaling``
    (table of gene, mean and standard deviation), ``explained`` (share of the variance of its regulators
    that each activity holds, beside as many random regulators) and ``params``.

    Raises
    ------
    sccausal._errors.UnknownNameError
        There are no communities, or a gene of the reference is missing.
    sccausal._errors.InputDataError
        A community has no measured regulator that varies, or values are not finite.
    sccausal._errors.SetupError
        The method is not known, or the reference holds no activities.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0))
    >>> sets = {"first": list(adata.var_names[:8]), "second": list(adata.var_names[8:16])}
    >>> scc.tl.tf_activity(adata, sets).columns.tolist()
    ['first', 'second', 'global']
    >>> adata.obsm["tf_activity"].shape
    (200, 3)
    """
    from sccausal.grn import fit_activity
    from sccausal.pp._genes import _training_rows

    values = _matrix(adata, layer)
    genes = [str(g) for g in adata.var_names]
    if reference is not None:
        fitted = stored_activity(reference, key_added)
    else:
        chosen = stored_communities(adata, key) if communities is None else communities
        if method == "ulm" and network is None:
            network = stored_network(adata, network_key, "significant")
        rows = _training_rows(adata, train)
        fitted = fit_activity(
            values[rows], genes, chosen, method=method, network=network, include_global=include_global
        )
    scores = pd.DataFrame(fitted.transform(values, genes), index=adata.obs_names, columns=fitted.names)
    adata.obsm[key_added] = scores
    loadings = fitted.loadings.reindex(genes).fillna(0.0)
    loadings.index = adata.var_names
    adata.varm[f"{key_added}_loadings"] = loadings
    adata.uns[key_added] = {
        "scaling": pd.DataFrame(
            {"gene": fitted.loadings.index.astype(str), "mean": fitted.center.to_numpy(), "sd": fitted.scale.to_numpy()}
        ),
        "explained": fitted.explained.rename_axis("activity").reset_index(),
        "params": {**fitted.metadata, "method": fitted.method},
    }
    return scores


def _matrix(adata: AnnData, layer: str | None) -> Any:
    if layer is not None and layer not in adata.layers:
        raise unknown_name("layer", layer, adata.layers.keys(), "adata.layers")
    return adata.X if layer is None else adata.layers[layer]


def stored_activity(adata: AnnData, key: str = "tf_activity") -> TFActivity:
    """The loadings that :func:`tf_activity` left in an AnnData.

    Raises
    ------
    UnknownNameError
        There are none.
    SetupError
        They are not complete.
    """
    from sccausal.grn import TFActivity

    if key not in adata.uns:
        raise unknown_name("activity", key, adata.uns.keys(), "adata.uns of the reference; run `tl.tf_activity` on it")
    held, name = adata.uns[key], f"{key}_loadings"
    if not hasattr(held, "keys") or "scaling" not in held or name not in adata.varm:
        raise SetupError(f"The reference lacks varm[{name!r}] or uns[{key!r}]['scaling']; run `tl.tf_activity` on it.")
    scaling = held["scaling"]
    used = scaling["gene"].astype(str).to_numpy()
    loadings = pd.DataFrame(adata.varm[name])
    loadings.index = loadings.index.astype(str)
    explained = pd.DataFrame(held["explained"])
    return TFActivity(
        str(held["params"]["method"]),
        loadings.loc[used],
        pd.Series(scaling["mean"].to_numpy(), index=used),
        pd.Series(scaling["sd"].to_numpy(), index=used),
        explained.set_index(explained["activity"].astype(str)).drop(columns="activity"),
        dict(held["params"]),
    )
