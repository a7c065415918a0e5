"""Noisy counts beside the clean expression they come from, in reference and query batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.datasets._parameters import VERSION, resolve
from sccausal.datasets._perturb_seq import assemble
from sccausal.datasets._response import clean_levels, factual, respond
from sccausal.datasets._system import build_system, sample_design

if TYPE_CHECKING:
    from anndata import AnnData

_SCALE = 1e4


def simulate_denoising(
    n_cells: int = 3000,
    n_genes: int = 500,
    n_types: int = 5,
    n_batches: int = 4,
    n_query: int = 1,
    *,
    library_size: float = 2000.0,
    dispersion: float = 0.2,
    dropout: float = 0.3,
    batch_strength: float = 0.4,
    noise: float = 0.3,
    seed: int = 0,
) -> AnnData:
    """Simulate noisy counts of several batches together with their clean normalised expression.

    Parameters
    ----------
    n_cells, n_genes, n_types
        Size of the data; types differ in basal programmes that spread through a gene network.
    n_batches
        Number of batches, reference and query together.
    n_query
        How many of them (the last ones) are query batches, to be mapped without training on them.
    library_size
        Mean number of transcripts per cell.
    dispersion, dropout
        Overdispersion of the counts, and chance that the count of a silent gene is lost.
    batch_strength
        Standard deviation of the batch effects on log-counts.
    noise
        Mean standard deviation of log-rates between cells of one type: part of the clean signal.
    seed
        Seed of network, effects and cells.

    Returns
    -------
    AnnData with counts in ``X`` and ``layers["counts"]``; ``layers["clean"]`` = log1p of the cell's true expression
    per 10 000, free of batch effects, sampling noise and dropout (dense float32); ``layers["mean"]`` = expected
    counts, batch effect included; ``obs``: cell_type, batch, split ("reference" or "query"), size_factor,
    library_size; ``uns["truth"]``: network, parameters, seed, version.

    Raises
    ------
    SetupError
        If an argument is out of range.

    Examples
    --------
    >>> from sccausal.datasets import simulate_denoising
    >>> adata = simulate_denoising(n_cells=200, n_genes=50, seed=1)
    >>> adata.obs["split"].cat.categories.tolist()
    ['reference', 'query']
    """
    if not 0 <= n_query < n_batches:
        raise SetupError(f"n_query must lie between 0 and n_batches - 1 = {n_batches - 1}, got {n_query}.")
    parameters = resolve(
        None,
        n_cells=n_cells,
        n_genes=n_genes,
        n_targets=0,
        n_types=n_types,
        n_batches=n_batches,
        library_size=library_size,
        dispersion=dispersion,
        dropout=dropout,
        batch_strength=batch_strength,
        noise=noise,
        seed=seed,
    )
    system = build_system(parameters)
    design = sample_design(system)
    treatment = factual(system, design)
    (response,) = respond(system, design, [treatment])
    adata = assemble(system, design, response)
    adata.obs = adata.obs.drop(columns=["intervention", "dose", "condition"])
    query = (design["batch"].cat.codes >= n_batches - n_query).to_numpy()
    adata.obs["split"] = pd.Categorical(np.where(query, "query", "reference"), categories=["reference", "query"])
    adata.layers["clean"] = np.log1p(clean_levels(system, design, treatment) * np.float32(_SCALE))
    adata.uns["truth"] = {
        "network": system.network.to_frame(),
        "parameters": parameters.to_json(),
        "seed": seed,
        "version": VERSION,
    }
    return adata
