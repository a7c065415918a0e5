"""Communities of transcription factors in a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import SetupError, unknown_name
from sccausal.tl._grn import Edges, stored_network

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.grn import CohesionTest, Communities, Network
    from sccausal.grn._consensus import Backend


def tf_communities(
    adata: AnnData,
    network: Network | None = None,
    *,
    edges: Edges = "tested",
    resolutions: Sequence[float] | None = None,
    n_runs: int = 1000,
    n_pairs: int = 200,
    min_size: int = 3,
    n_iterations: int = 5,
    backend: Backend = "igraph",
    n_permutations: int = 1000,
    n_rewired: int = 100,
    key: str = "grn",
    key_added: str = "tf_communities",
    n_jobs: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Communities:
    """Find communities of transcription factors by consensus Leiden, and test their cohesion :cite:p:`gCRL2026`.

    See :func:`sccausal.grn.find_communities` for the search and :func:`sccausal.grn.cohesion_test` for the two tests:
    ``permuted`` is the paper's, ``rewired`` asks whether the network has communities at all.

    Parameters
    ----------
    adata
        Cells x genes with the network of :func:`grn`; ``uns[key_added]`` and ``var[key_added]`` are written.
    network
        Any network of regulators and targets; default: that of ``uns[key]``.
    edges
        Edges of ``uns[key]`` to use: ``"tested"``, ``"significant"`` or ``"strong"`` (the paper's choice). By default
        all count with their weight: on planted modules, a cut at a strict significance loses more than noise adds, the
        more the fewer cells there are.
    resolutions
        Resolutions to scan; default 0.9, 1.0, ..., 2.0.
    n_runs, n_pairs, min_size, n_iterations, backend, n_jobs, progress, seed
        As for :func:`sccausal.grn.find_communities`.
    n_permutations, n_rewired
        Sizes of the null distributions of the two tests; 0 leaves a test out.
    key
        Where the network is in ``adata.uns``.
    key_added
        Where results go.

    Returns
    -------
    :class:`~sccausal.grn.Communities`.

    ``adata.var[key_added]``: community of each gene, missing for those in none. ``adata.uns[key_added]``:
    ``regulators`` (table of regulator, community, confidence and strengths), ``weights`` (sparse matrix between them),
    ``stability`` (table over resolutions), ``resolution``, ``cohesion`` (for each test ``observed``, ``null``,
    ``p_value``), ``cohesion_per_community`` and ``params``.

    Raises
    ------
    sccausal._errors.UnknownNameError
        There is no network in ``uns[key]``.
    sccausal._errors.InputDataError
        The network has too few edges between regulators.
    sccausal._errors.SetupError
        A setting is out of range.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(300, 60, 4, n_regulators=20, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> network = scc.tl.grn(adata, cells.uns["truth"]["network"])
    >>> found = scc.tl.tf_communities(adata, resolutions=[1.0], n_runs=20, n_permutations=50, n_rewired=0)
    >>> len(found.names) >= 2
    True
    """
    from sccausal.grn import find_communities
    from sccausal.grn._communities import RESOLUTIONS

    used = stored_network(adata, key, edges) if network is None else network
    communities = find_communities(
        used, resolutions=RESOLUTIONS if resolutions is None else resolutions, n_runs=n_runs, n_pairs=n_pairs,
        min_size=min_size, n_iterations=n_iterations, backend=backend, n_jobs=n_jobs, progress=progress, seed=seed,
    )  # fmt: skip
    communities.metadata["edges"] = edges if network is None else "given"
    store_communities(adata, communities, key_added, n_permutations=n_permutations, n_rewired=n_rewired, seed=seed)
    return communities


def store_communities(
    adata: AnnData,
    communities: Communities,
    key_added: str,
    *,
    n_permutations: int = 0,
    n_rewired: int = 0,
    seed: int = 0,
) -> None:
    """Write communities, and tests of their cohesion, to an AnnData."""
    from scipy import sparse

    from sccausal.grn import cohesion_test

    tests: dict[str, CohesionTest] = {}
    if n_permutations:
        tests["permuted"] = cohesion_test(communities, n_permutations=n_permutations, seed=seed)
    if n_rewired:
        tests["rewired"] = cohesion_test(communities, null="rewired", n_permutations=n_rewired, seed=seed)
    names = communities.names
    labels = communities.labels.reindex(adata.var_names.astype(str))
    adata.var[key_added] = pd.Categorical(labels, categories=names)
    result: dict[str, Any] = {
        "regulators": _writable(communities.to_frame(), names),
        "weights": sparse.csr_matrix(communities.weights.to_numpy()),
        "stability": communities.stability,
        "resolution": communities.resolution,
        "cohesion": {
            name: {"statistic": t.statistic, "observed": t.observed, "null": t.null, "p_value": t.p_value}
            for name, t in tests.items()
        },
        "params": {k: v for k, v in communities.metadata.items() if v is not None},
    }
    if "permuted" in tests:
        result["cohesion_per_community"] = tests["permuted"].per_community
    adata.uns[key_added] = result


def _writable(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    return table.assign(community=pd.Categorical(table["community"], categories=names))


def stored_communities(adata: AnnData, key: str) -> Communities:
    """The communities that :func:`tf_communities` left in ``adata.uns[key]``.

    Raises
    ------
    UnknownNameError
        There are none.
    SetupError
        What stands there are no communities.
    """
    from sccausal.grn import Communities

    if key not in adata.uns:
        raise unknown_name("communities", key, adata.uns.keys(), "adata.uns; run `tl.tf_communities` first")
    held = adata.uns[key]
    if not hasattr(held, "keys") or not isinstance(held.get("regulators"), pd.DataFrame):
        raise SetupError(f"adata.uns[{key!r}] was not written by `tl.tf_communities`.")
    table = held["regulators"]
    names = table["regulator"].astype(str).to_numpy()
    labels = table["community"].astype(object)
    labels = labels.where(labels.notna(), None)
    return Communities(
        pd.Series(labels.to_numpy(), index=names, dtype=object),
        pd.Series(table["confidence"].to_numpy(), index=names),
        pd.DataFrame(np.asarray(held["weights"].todense()), index=names, columns=names),
        float(held["resolution"]),
        held["stability"],
        dict(held.get("params", {})),
    )
