"""Interventions followed over time while all cells change: a time course with known trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.datasets._parameters import VERSION, Parameters, resolve
from sccausal.datasets._perturb_seq import assemble
from sccausal.datasets._response import Treatment, factual, respond
from sccausal.datasets._system import CONTROL, STIMULATED, System, build_system, categorical, sample_design

if TYPE_CHECKING:
    from anndata import AnnData

_SCALE = 1e4
_N_TRACED = 64


def simulate_time_course(
    n_cells_per_group: int = 150,
    n_genes: int = 300,
    n_targets: int = 20,
    times: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    *,
    interventions: str | Sequence[str] = "activation",
    n_control_groups: int = 4,
    differentiation: float = 1.5,
    n_batches: int = 1,
    library_size: float = 6000.0,
    strength: float = 3.0,
    noise: float = 0.3,
    dispersion: float = 0.15,
    n_regulators: int | None = None,
    n_doubles: int = 0,
    interaction: float = 0.0,
    trace: Sequence[float] | None = None,
    seed: int = 0,
    network_seed: int | None = None,
) -> AnnData:
    """Simulate counts of cells that differentiate under interventions, seen once each at one of several times.

    The kinetics of :func:`simulate_perturb_seq` (Hill functions of regulators, transcripts of different life times). At
    time 0 a stimulus starts differentiation in all cells and interventions begin; both spread through one network, so
    that what an intervention does depends on the time and on what differentiation does to the same genes. No linear
    dynamics and no latent space stands behind it.

    Parameters
    ----------
    n_cells_per_group
        Mean number of cells per intervention and time.
    n_genes, n_targets
        Genes, and genes intervened on.
    times
        Times of observation in mean life times of a transcript; each cell is seen at one.
    interventions
        Kinds of interventions, dealt to the targets in turn; see :func:`simulate_perturb_seq`.
    n_control_groups
        Control cells, as a multiple of the cells of an intervention.
    differentiation
        Factor on the direct effects of the stimulus; 0 leaves control cells where they are.
    n_batches, library_size, strength, noise, dispersion, n_regulators, n_doubles, interaction
        As in :func:`simulate_perturb_seq`; ``n_regulators`` defaults to a fifth of the genes.
    trace
        Times at which true trajectories are given; default 0 and the times of observation.
    seed, network_seed
        Seed, and that of network and effects if it shall differ.

    Returns
    -------
    AnnData as of :func:`simulate_perturb_seq` with ``obs["time"]``; ``layers["counterfactual"]`` and
    ``layers["counterfactual_mean"]`` hold the same cell and noise at the same time without the intervention (but with
    differentiation). ``uns["truth"]`` has ``network``, ``targets``, ``effects`` (genes x "intervention @ time": mean
    change of log1p of expected counts per 10 000 against the same cells at the same time),
    ``trajectories`` (frame intervention, time, then one column per gene: mean log1p of expected counts per 10 000 of
    the same cells followed through time), ``parameters``, ``seed``, ``version``.

    Raises
    ------
    sccausal._errors.SetupError
        An argument is out of range.

    Examples
    --------
    >>> from sccausal.datasets import simulate_time_course
    >>> adata = simulate_time_course(5, n_genes=50, n_targets=3, times=(1, 2), seed=1)
    >>> sorted(adata.obs["time"].unique().tolist())
    [1.0, 2.0]
    """
    moments = sorted({float(t) for t in times})
    if len(moments) < 2 or moments[0] <= 0:
        raise SetupError(f"`times` needs at least two different times greater than 0, got {list(times)}.")
    if n_cells_per_group < 1 or n_targets < 1 or n_control_groups < 1:
        raise SetupError("n_cells_per_group, n_targets and n_control_groups must be at least 1.")
    groups = n_targets + n_doubles + n_control_groups
    parameters = resolve(
        None,
        n_cells=groups * len(moments) * n_cells_per_group,
        n_genes=n_genes,
        n_targets=n_targets,
        n_regulators=n_regulators or max(2, n_genes // 5),
        interventions=interventions,
        n_doubles=n_doubles,
        interaction=interaction,
        condition=True,
        condition_strength=differentiation,
        control_fraction=n_control_groups / groups,
        time=moments,
        n_batches=n_batches,
        library_size=library_size,
        strength=strength,
        noise=noise,
        dispersion=dispersion,
        seed=seed,
        network_seed=network_seed,
    )
    system = build_system(parameters)
    design = sample_design(system)
    design["condition"] = categorical(np.ones(len(design), dtype=int), [CONTROL, STIMULATED])
    treated = factual(system, design)
    observed, without = respond(system, design, [treated, _without_intervention(treated)])
    adata = assemble(system, design.drop(columns="condition"), observed)
    adata.layers["counterfactual"], adata.layers["counterfactual_mean"] = without.counts, without.mean
    adata.uns["truth"] = _truth(system, parameters, design, [0.0, *moments] if trace is None else trace)
    return adata


def _without_intervention(treated: Treatment) -> Treatment:
    actions: tuple[dict[int, tuple[str, float]], ...] = tuple({} for _ in treated.actions)
    return Treatment(actions, treated.action, treated.dose, treated.stimulated, treated.time)


def _truth(system: System, p: Parameters, design: pd.DataFrame, trace: Sequence[float]) -> dict[str, Any]:
    """Trajectories of the same few cells under every intervention at all times, and effects from them."""
    genes = pd.Index(system.network.genes.astype(str), name="gene")
    labels = [str(v) for v in design["intervention"].cat.categories]
    cells = design.iloc[: min(_N_TRACED, len(design))]
    rows, names = [], []
    for time in sorted({float(t) for t in trace}):
        for code, label in enumerate(labels):
            asked = cells.assign(
                intervention=categorical(np.full(len(cells), code), labels),
                dose=float(label != CONTROL),
                time=time,
            )
            (response,) = respond(system, asked, [factual(system, asked)])
            scaled = response.mean * (_SCALE / asked["size"].to_numpy()[:, None])
            rows.append(np.log1p(scaled).mean(0))
            names.append((label, time))
    table = pd.DataFrame(np.asarray(rows, dtype=np.float64), columns=genes)
    base = {t: table.iloc[i].to_numpy() for i, (label, t) in enumerate(names) if label == CONTROL}
    effects = {
        f"{label} @ {time:g}": table.iloc[i].to_numpy() - base[time]
        for i, (label, time) in enumerate(names)
        if label != CONTROL
    }
    table.insert(0, "intervention", [label for label, _ in names])
    table.insert(1, "time", [time for _, time in names])
    return {
        "network": system.network.to_frame(),
        "targets": pd.DataFrame(
            {"target": system.target_names, "kind": [system.kind_of(int(g)) for g in system.targets]}
        ),
        "effects": pd.DataFrame(effects, index=genes),
        "trajectories": table,
        "parameters": p.to_json(),
        "seed": p.seed,
        "version": VERSION,
    }
