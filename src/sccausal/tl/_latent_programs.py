"""Genes behind the latents of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import NotSupportedError, SetupError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sccausal.grn._enrichment import GeneSets


def latent_programs(
    model: Any,
    latents: Sequence[str] | None = None,
    *,
    top: int = 50,
    gene_sets: GeneSets | None = None,
    fdr: float = 0.05,
    min_size: int = 5,
    max_size: int = 500,
) -> pd.DataFrame:
    """Genes that each latent moves most, and gene sets among them.

    Parameters
    ----------
    model
        A trained model with ``latent_loadings()``, e.g. :class:`~sccausal.models.CITEVAE`.
    latents
        Names of latents; default the responsive ones (all where a model makes no difference).
    top
        Genes per latent and sign.
    gene_sets
        A dictionary, a GMT file or the name of an Enrichr library; with it the genes of each latent and sign are tested
        against all genes of the model (hypergeometric test).
    fdr, min_size, max_size
        As for :func:`sccausal.grn.over_representation`.

    Returns
    -------
    Without ``gene_sets``: ``latent``, ``sign`` (``"up"``, ``"down"``), ``gene``, ``loading`` (change of the gene per
    standard deviation of the latent) and ``rank``, strongest first. With them: the table of
    :func:`sccausal.grn.over_representation`, whose communities are ``"<latent> up"`` and ``"<latent> down"``.

    Raises
    ------
    sccausal._errors.NotSupportedError
        The model has no latents that genes can be read from.
    sccausal._errors.UnknownNameError
        A latent does not exist.
    sccausal._errors.SetupError
        ``top`` is less than 1.

    Notes
    -----
    Loadings are derivatives of the decoder at the mean cell. Latents that are identified only as a block are programs
    up to a mixing of that block; see ``model.identifiability_report()``.

    Examples
    --------
    >>> import sccausal as scc
    >>> table = scc.tl.latent_programs(model, top=3)
    >>> table.columns.tolist()
    ['latent', 'sign', 'gene', 'loading', 'rank']
    """
    if not callable(getattr(model, "latent_loadings", None)):
        raise NotSupportedError(f"{type(model).__name__} does not tell the genes of its latents (latent_loadings).")
    if top < 1:
        raise SetupError(f"top must be at least 1, got {top}.")
    loadings = model.latent_loadings()
    known = list(loadings.columns)
    if latents is None:
        latents = [name for name in known if name.startswith("responsive")] or known
    missing = next((name for name in latents if name not in loadings), None)
    if missing is not None:
        raise unknown_name("latent", missing, known, type(model).__name__)
    frames = []
    for name in latents:
        values = loadings[name]
        for sign, part in (("up", values[values > 0]), ("down", values[values < 0])):
            strongest = part.reindex(part.abs().sort_values(ascending=False, kind="stable").index[:top])
            frames.append(
                pd.DataFrame(
                    {
                        "latent": name,
                        "sign": sign,
                        "gene": strongest.index.astype(str),
                        "loading": strongest.to_numpy(),
                        "rank": np.arange(1, len(strongest) + 1),
                    }
                )
            )
    table = pd.concat(frames, ignore_index=True)
    if gene_sets is None:
        return table
    from sccausal.grn import over_representation

    label = table["latent"] + " " + table["sign"]
    members = {str(name): list(table.loc[label == name, "gene"]) for name in label.unique()}
    return over_representation(
        members, gene_sets, background=list(loadings.index), fdr=fdr, min_size=min_size, max_size=max_size
    )
