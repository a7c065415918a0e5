"""Gene sets over-represented in communities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sccausal.tl._communities import stored_communities
from sccausal.tl._grn import stored_network

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from sccausal.grn import Communities, Network
    from sccausal.grn._enrichment import GeneSets


def community_enrichment(
    adata: AnnData,
    gene_sets: GeneSets,
    communities: Communities | Mapping[str, Sequence[str]] | None = None,
    *,
    network: Network | None = None,
    with_targets: bool = True,
    background: Sequence[str] | None = None,
    fdr: float = 0.05,
    min_size: int = 5,
    max_size: int = 500,
    background_share: float = 0.5,
    key: str = "tf_communities",
    network_key: str = "grn",
    key_added: str = "community_enrichment",
) -> pd.DataFrame:
    """Gene sets over-represented among the regulators of each community and their targets :cite:p:`gCRL2026`.

    Parameters
    ----------
    adata
        Cells x genes with the results of :func:`grn` and :func:`tf_communities`; ``uns[key_added]`` is written.
    gene_sets
        A dictionary, a GMT file or the name of an Enrichr library; see :func:`sccausal.grn.read_gene_sets`.
    communities
        Communities, or sets of genes by name; default: those of ``uns[key]``.
    network
        Network that names targets; default: the significant edges of ``uns[network_key]``.
    with_targets
        Whether targets are counted with the regulators.
    background
        Genes that could have been found; default: the genes the network was fitted on.
    fdr, min_size, max_size, background_share
        As for :func:`sccausal.grn.over_representation`.
    key, network_key
        Where communities and network are in ``adata.uns``.
    key_added
        Where the result goes.

    Returns
    -------
    DataFrame of :func:`sccausal.grn.over_representation`, the same as ``adata.uns[key_added]``. Rows with
    ``is_background`` are terms of the data set, not of one community.

    Raises
    ------
    sccausal._errors.UnknownNameError
        There are no communities or no network.
    sccausal._errors.InputDataError
        No gene set fits the background.
    ImportError
        gseapy is not installed.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.tl.grn(adata, cells.uns["truth"]["network"])
    >>> sets = {"first": list(adata.var_names[:10]), "second": list(adata.var_names[10:20])}
    >>> communities = {"A": network.regulators[:5], "B": network.regulators[5:10]}
    >>> table = scc.tl.community_enrichment(adata, sets, communities, min_size=3)
    >>> sorted(table.columns)[:4]
    ['community', 'enriched', 'genes', 'is_background']
    """
    from sccausal.grn import over_representation

    chosen = stored_communities(adata, key) if communities is None else communities
    if network is None and (with_targets or background is None):
        network = stored_network(adata, network_key, "significant")
    if background is None and network is not None:
        background = network.genes
    table = over_representation(
        chosen, gene_sets, network=network if with_targets else None, background=background, fdr=fdr,
        min_size=min_size, max_size=max_size, background_share=background_share,
    )  # fmt: skip
    adata.uns[key_added] = table
    return table
