"""Perturb-seq with known regulation, known effects and the counterfactual of every cell."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal.datasets._parameters import VERSION, resolve
from sccausal.datasets._response import Response, factual, respond, untreated
from sccausal.datasets._sortability import r2_sortability, varsortability
from sccausal.datasets._system import CONTROL, STIMULATED, System, build_system, sample_design

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

logger = logging.getLogger(__name__)

_SCALE = 1e4


def simulate_perturb_seq(
    n_cells: int | None = None,
    n_genes: int | None = None,
    n_targets: int | None = None,
    n_types: int | None = None,
    n_batches: int | None = None,
    confounded: float | None = None,
    interventions: str | Sequence[str] | None = None,
    doses: float | Sequence[float] | None = None,
    n_doubles: int | None = None,
    interaction: float | None = None,
    condition: bool | None = None,
    time: float | Sequence[float] | None = None,
    dropout: float | None = None,
    library_size: float | None = None,
    preset: str | None = None,
    seed: int = 0,
    *,
    n_regulators: int | None = None,
    control_fraction: float | None = None,
    condition_strength: float | None = None,
    type_response: float | None = None,
    batch_strength: float | None = None,
    dispersion: float | None = None,
    strength: float | None = None,
    mean_parents: float | None = None,
    activating: float | None = None,
    n_feedback: int | None = None,
    noise: float | None = None,
    network_seed: int | None = None,
    sortability: bool = True,
) -> AnnData:
    r"""Simulate Perturb-seq counts from a gene network with saturating kinetics.

    A structural causal model: regulators act on rates of transcription through Hill functions, activators add up,
    repressors divide; the exogenous noise of a cell (state, bursts, sampling) is kept, so that the same cell is
    known under control (``layers["counterfactual"]``) and, through :func:`simulate_counterfactual`, under any other
    intervention. Arguments left at None take the value of the preset, or else the default named here.

    Parameters
    ----------
    n_cells
        Number of cells (2000).
    n_genes
        Number of genes (500).
    n_targets
        Number of genes intervened on, one group of cells each (20). Regulators come first.
    n_types
        Number of cell types (1), each with its own basal programme and its own efficacy of regulators.
    n_batches
        Number of batches (1) with gene-specific effects on log-counts and their own depth.
    confounded
        Chance that a cell's batch is set by its condition (without a condition: by its intervention) instead of being
        random (0): 0 is a randomised design, 1 a fully confounded one.
    interventions
        ``"knockout"`` (default), ``"knockdown"``, ``"activation"``, or several that are dealt to the targets in turn.
    doses
        Doses drawn per perturbed cell (1). Knock-out: fraction removed; knock-down: ``0.15 ** dose`` of the rate
        remains; activation: ``6 ** dose`` times the rate.
    n_doubles
        Number of pairs of targets that are intervened on together (0).
    interaction
        Strength of epistasis beyond the network's own non-linearity (0): bound of the additional log-rate of genes
        downstream of both partners; similar pairs interact in similar ways.
    condition
        Whether half of the cells receive a stimulus that acts on some genes, spreads through the network and differs
        between types (False). ``obs["condition"]`` is ``"control"`` or ``"stimulated"``.
    time
        Times of observation after interventions and stimulus began, drawn per cell, in units of the mean life time of
        a transcript; None (default) is the steady state.
    dropout
        Chance that the count of a silent gene is lost, ``dropout / (1 + mean)`` for others (0).
    library_size
        Mean number of transcripts of a cell at basal expression (5000).
    preset
        ``"mild"`` (500 genes, 40 perturbations of 200 cells, weak epistasis), ``"strong"`` (1000 genes, 60
        perturbations of 100 cells) or ``"condition"`` (1000 genes, a stimulus in 6 types, 300 cells each); see
        :doc:`/benchmarks` for the scores of simple rules on them.
    seed
        Seed of network, effects and cells.
    n_regulators
        Number of genes that may regulate others (a tenth of the genes).
    control_fraction
        Fraction of cells without intervention (0.2).
    condition_strength
        Factor on the direct effects of the stimulus (1).
    type_response
        Spread of log-efficacy of regulators and stimulus between types (0.4).
    batch_strength
        Standard deviation of the batch effects on log-counts (0.3).
    dispersion
        Median overdispersion of the counts: ``variance = mean + dispersion * mean ** 2`` (0.2).
    strength
        Median edge weight (3): what a fully active activator adds to a basal rate of 1.
    mean_parents
        Mean number of regulators of a gene (2.5).
    activating
        Fraction of activating edges (0.7).
    n_feedback
        Number of edges that close loops (0: the network is acyclic).
    noise
        Mean standard deviation of log-rates between cells of one type (0.4).
    network_seed
        Seed of network and effects if it shall differ from that of the cells: the same system, new cells.
    sortability
        Whether to compute varsortability and R2-sortability (a second or two at 2000 genes).

    Returns
    -------
    AnnData, cells x genes:

    - ``X`` and ``layers["counts"]``: negative binomial counts, CSR float32;
    - ``layers["mean"]``: expected counts given the cell's state; ``layers["counterfactual"]`` and
      ``layers["counterfactual_mean"]``: counts and their expectation for the same cell and noise under control
      (neither intervention nor stimulus);
    - ``obs``: intervention ("control", "A", "A+B"), dose, cell_type, batch, condition, time (if given), size_factor,
      library_size (total of ``X``), cell_index (identity of the cell's noise);
    - ``var``: is_regulator, is_target;
    - ``uns["truth"]``: ``network`` (source, target, weight), ``targets`` (target, kind), ``effects`` (genes x
      interventions: mean change of log1p of expected counts per 10 000, against the same cells under control, among
      unstimulated cells), ``condition_effects`` and ``stimulus`` (genes x types: total change and direct log-rate),
      ``varsortability``, ``r2_sortability`` (on log1p of counts per 10 000), ``parameters`` (JSON), ``seed``,
      ``preset``, ``version``.

    Raises
    ------
    SetupError
        If an argument is out of range.
    UnknownNameError
        If the preset or a kind of intervention is not known.

    Notes
    -----
    Genes that are no descendants of a target have exactly the same mean in a perturbed cell and its counterfactual:
    there is no competition for sequencing depth. Sortability :cite:p:`Reisach2021` tells how much of the causal order
    could be read off variances; compare methods on standardised values.

    Examples
    --------
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(n_cells=300, n_genes=60, n_targets=4, n_doubles=2, seed=1)
    >>> adata.shape
    (300, 60)
    >>> sorted(adata.uns["truth"]["network"].columns)
    ['source', 'target', 'weight']
    """
    parameters = resolve(
        preset,
        n_cells=n_cells,
        n_genes=n_genes,
        n_targets=n_targets,
        n_types=n_types,
        n_batches=n_batches,
        confounded=confounded,
        interventions=interventions,
        doses=doses,
        n_doubles=n_doubles,
        interaction=interaction,
        condition=condition,
        time=time,
        dropout=dropout,
        library_size=library_size,
        seed=seed,
        n_regulators=n_regulators,
        control_fraction=control_fraction,
        condition_strength=condition_strength,
        type_response=type_response,
        batch_strength=batch_strength,
        dispersion=dispersion,
        strength=strength,
        mean_parents=mean_parents,
        activating=activating,
        n_feedback=n_feedback,
        noise=noise,
        network_seed=network_seed,
    )
    system = build_system(parameters)
    design = sample_design(system)
    observed, control = respond(system, design, [factual(system, design), untreated(design)])
    adata = assemble(system, design, observed)
    adata.layers["counterfactual"] = control.counts
    adata.layers["counterfactual_mean"] = control.mean
    adata.uns["truth"] = _truth(system, design, observed, control, preset)
    if sortability:
        _add_sortability(adata)
    return adata


def assemble(system: System, design: pd.DataFrame, response: Response) -> AnnData:
    """AnnData of counts, their expectation, and annotation of cells and genes."""
    from anndata import AnnData

    obs = design.drop(columns=["size", "cell_index"])
    obs["size_factor"] = design["size"] / system.parameters.library_size
    obs["library_size"] = np.asarray(response.counts.sum(axis=1)).ravel()
    obs["cell_index"] = design["cell_index"]
    genes = np.arange(system.network.n_genes)
    var = pd.DataFrame(
        {
            "is_regulator": np.isin(genes, system.network.regulators),
            "is_target": np.isin(genes, system.targets),
        },
        index=pd.Index(system.network.genes.astype(str)),
    )
    adata = AnnData(X=response.counts, obs=obs, var=var)
    adata.layers["counts"] = response.counts.copy()
    adata.layers["mean"] = response.mean
    return adata


def _log_change(design: pd.DataFrame, response: Response, control: Response, cells: np.ndarray) -> np.ndarray:
    """Mean change of log1p of expected counts per 10 000 at one depth for both sides, shape (m,)."""
    scale = (_SCALE / design["size"].to_numpy()[cells])[:, None]
    change = np.log1p(response.mean[cells] * scale) - np.log1p(control.mean[cells] * scale)
    return change.mean(axis=0) if cells.size else np.full(response.mean.shape[1], np.nan)


def _truth(
    system: System, design: pd.DataFrame, observed: Response, control: Response, preset: str | None
) -> dict[str, Any]:
    p = system.parameters
    genes = pd.Index(system.network.genes.astype(str), name="gene")
    stimulated = (design["condition"] == STIMULATED).to_numpy()
    effects = {
        label: _log_change(
            design, observed, control, np.flatnonzero((design["intervention"] == label).to_numpy() & ~stimulated)
        )
        for label in design["intervention"].cat.categories
        if label != CONTROL
    }
    truth: dict[str, Any] = {
        "network": system.network.to_frame(),
        "targets": pd.DataFrame(
            {"target": system.target_names, "kind": [system.kind_of(int(g)) for g in system.targets]}
        ),
        "effects": pd.DataFrame(effects, index=genes),
        "parameters": p.to_json(),
        "seed": p.seed,
        "preset": preset or "",
        "version": VERSION,
    }
    if p.condition:
        alone = stimulated & (design["intervention"] == CONTROL).to_numpy()
        types = list(design["cell_type"].cat.categories)
        in_type = {t: np.flatnonzero(alone & (design["cell_type"] == t).to_numpy()) for t in types}
        truth["condition_effects"] = pd.DataFrame(
            {t: _log_change(design, observed, control, cells) for t, cells in in_type.items()}, index=genes
        )
        truth["stimulus"] = pd.DataFrame(system.stimulus.T, index=genes, columns=types)
    return truth


def log_normalised(counts: sparse.csr_matrix) -> np.ndarray:
    """log1p of counts per 10 000, dense float32; empty cells stay zero."""
    total = np.maximum(np.asarray(counts.sum(axis=1)), 1.0)
    return np.log1p(counts.toarray() / total * _SCALE).astype(np.float32)


def _add_sortability(adata: AnnData) -> None:
    truth = adata.uns["truth"]
    place = {name: i for i, name in enumerate(adata.var_names)}
    adjacency = np.zeros((adata.n_vars, adata.n_vars), dtype=bool)
    frame = truth["network"]
    adjacency[frame["source"].map(place), frame["target"].map(place)] = True
    values = log_normalised(adata.X)
    truth["varsortability"] = varsortability(values, adjacency)
    truth["r2_sortability"] = r2_sortability(values, adjacency)
    logger.info(
        "Simulated %d cells x %d genes, %d edges; varsortability %.2f, R2-sortability %.2f (0.5: order not visible).",
        adata.n_obs,
        adata.n_vars,
        len(frame),
        truth["varsortability"],
        truth["r2_sortability"],
    )
