"""From a design to levels and counts: what each cell does under what is done to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from sccausal.datasets._counts import CellNoise, expected_counts, noise_of_cells, sample_counts
from sccausal.datasets._system import CONTROL, STIMULATED, System

_KNOCKDOWN_RESIDUAL = 0.15
_ACTIVATION_GAIN = 6.0


@dataclass(frozen=True, eq=False)
class Treatment:
    """What is done to each of n cells.

    Parameters
    ----------
    actions
        Distinct interventions, each gene position -> (kind, dose).
    action
        Which of them each cell receives, shape (n,).
    dose
        Factor on all doses of a cell's intervention, shape (n,).
    stimulated
        Whether the cell is stimulated, shape (n,).
    time
        Time since interventions and stimulus began, shape (n,); None for the steady state.
    """

    actions: tuple[dict[int, tuple[str, float]], ...]
    action: np.ndarray
    dose: np.ndarray
    stimulated: np.ndarray
    time: np.ndarray | None

    def take(self, cells: np.ndarray) -> Treatment:
        """The same for some of the cells."""
        time = None if self.time is None else self.time[cells]
        return Treatment(self.actions, self.action[cells], self.dose[cells], self.stimulated[cells], time)

    @property
    def active(self) -> np.ndarray:
        """Whether anything is done to a cell, shape (n,)."""
        acts = np.array([bool(a) for a in self.actions])
        return (acts[self.action] & (self.dose > 0)) | self.stimulated


def untreated(design: pd.DataFrame) -> Treatment:
    """Control for every cell of a design."""
    n = len(design)
    return Treatment(({},), np.zeros(n, dtype=int), np.ones(n), np.zeros(n, dtype=bool), None)


def remaining_rate(kind: str, dose: np.ndarray) -> np.ndarray:
    """Factor that an intervention of a given dose leaves of a gene's rate of transcription."""
    if kind == "knockout":
        return np.clip(1.0 - dose, 0.0, None)
    return (_KNOCKDOWN_RESIDUAL if kind == "knockdown" else _ACTIVATION_GAIN) ** dose


@dataclass(frozen=True, eq=False)
class Response:
    """Outcome of a treatment: ``counts`` (n x m, CSR) and their expectation ``mean`` (n x m), both float32."""

    counts: sparse.csr_matrix
    mean: np.ndarray


def _interaction(system: System, treatment: Treatment, shape: tuple[int, int]) -> np.ndarray:
    """Epistatic part of the log-rates, genes x cells; only genes downstream of both partners can have one."""
    extra = np.zeros(shape)
    scale = system.parameters.interaction
    if not scale:
        return extra
    for index, action in enumerate(treatment.actions):
        cells = np.flatnonzero(treatment.action == index)
        genes = sorted(action)
        if len(genes) < 2 or not cells.size:
            continue
        reach = {g: system.network.descendants(g) for g in genes}
        for i, first in enumerate(genes):
            for second in genes[i + 1 :]:
                profile = np.tanh((system.membership[first] * system.membership[second]) @ system.programme)
                profile = scale * np.where(reach[first] & reach[second], profile, 0.0)
                size = action[first][1] * action[second][1] * treatment.dose[cells] ** 2
                extra[:, cells] += profile[:, None] * size
    return extra


def _levels(system: System, cell_type: np.ndarray, noise: CellNoise, treatment: Treatment) -> np.ndarray:
    """Relative levels of all genes, genes x cells."""
    drive = system.noise[:, None] * noise.state + system.type_drive[cell_type].T
    competence = np.ascontiguousarray(system.competence[cell_type].T)
    factor = np.ones_like(drive)
    start = system.kinetics.steady_state(drive, factor, competence) if treatment.time is not None else None
    for index, action in enumerate(treatment.actions):
        cells = np.flatnonzero(treatment.action == index)
        if cells.size:
            for gene, (kind, dose) in action.items():
                factor[gene, cells] = remaining_rate(kind, dose * treatment.dose[cells])
    drive += np.where(treatment.stimulated, system.stimulus[cell_type].T, 0.0)
    drive += _interaction(system, treatment, drive.shape)
    if start is None:
        return system.kinetics.steady_state(drive, factor, competence)
    assert treatment.time is not None
    levels = start
    moving = np.flatnonzero(treatment.active)
    if moving.size:
        levels[:, moving] = system.kinetics.relax(
            start[:, moving], drive[:, moving], factor[:, moving], competence[:, moving], treatment.time[moving]
        )
    return levels


def respond(system: System, design: pd.DataFrame, treatments: list[Treatment]) -> list[Response]:
    """Outcomes of the same cells, with the same noise, under each treatment.

    Parameters
    ----------
    system
        What was drawn by :func:`build_system`.
    design
        Rows of :func:`sample_design`; their order is the order of the result.
    treatments
        Each for all rows of ``design``.
    """
    p = system.parameters
    cells = design["cell_index"].to_numpy()
    cell_type = design["cell_type"].cat.codes.to_numpy()
    batch = design["batch"].cat.codes.to_numpy()
    size = design["size"].to_numpy()
    means = [np.empty((len(cells), p.n_genes), dtype=np.float32) for _ in treatments]
    parts: list[list[sparse.csr_matrix]] = [[] for _ in treatments]
    order: list[np.ndarray] = []
    for rows, noise in noise_of_cells(p.seed, cells, system.dispersion, bool(p.dropout)):
        order.append(rows)
        technical = size[rows] * system.abundance[:, None] * np.exp(system.batch_effect[batch[rows]].T)
        first: tuple[np.ndarray, np.ndarray] | None = None
        for k, treatment in enumerate(treatments):
            mean = technical * _levels(system, cell_type[rows], noise, treatment.take(rows))
            if first is None:
                counts = sample_counts(mean, noise, p.dropout)
                first = mean, counts
            else:  # where the mean is the same, the kept noise gives the same count
                counts, moved = first[1].copy(), mean != first[0]
                counts[moved] = sample_counts(mean[moved], noise.at(moved), p.dropout)
            means[k][rows] = expected_counts(mean, p.dropout).T
            parts[k].append(sparse.csr_matrix(np.ascontiguousarray(counts.T)))
    back = np.argsort(np.concatenate(order), kind="stable")
    return [Response(sparse.vstack(part, format="csr")[back], mean) for part, mean in zip(parts, means, strict=True)]


def clean_levels(system: System, design: pd.DataFrame, treatment: Treatment) -> np.ndarray:
    """Expected share of each gene without batch effects and without differences in depth, n x m, rows sum to 1."""
    p = system.parameters
    cell_type = design["cell_type"].cat.codes.to_numpy()
    share = np.empty((len(design), p.n_genes), dtype=np.float32)
    for rows, noise in noise_of_cells(p.seed, design["cell_index"].to_numpy(), system.dispersion, bool(p.dropout)):
        amount = system.abundance[:, None] * _levels(system, cell_type[rows], noise, treatment.take(rows))
        share[rows] = (amount / amount.sum(axis=0)).T
    return share


def factual(system: System, design: pd.DataFrame) -> Treatment:
    """The treatment that a design describes."""
    labels = list(design["intervention"].cat.categories)
    place = {str(name): i for i, name in enumerate(system.network.genes)}
    actions = tuple(
        {} if label == CONTROL else {place[n]: (system.kind_of(place[n]), 1.0) for n in label.split("+")}
        for label in labels
    )
    return Treatment(
        actions=actions,
        action=design["intervention"].cat.codes.to_numpy().astype(int),
        dose=design["dose"].to_numpy(),
        stimulated=(design["condition"] == STIMULATED).to_numpy(),
        time=design["time"].to_numpy() if "time" in design else None,
    )
