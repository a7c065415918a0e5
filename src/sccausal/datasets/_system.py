"""The simulated system: network, kinetics, cell types, batches, stimulus and design of the experiment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sccausal.datasets._counts import stream
from sccausal.datasets._kinetics import Kinetics
from sccausal.datasets._network import GeneNetwork, sample_network
from sccausal.datasets._parameters import Parameters

CONTROL = "control"
STIMULATED = "stimulated"
SEP = "+"
_MOST = 5.0
_N_PROGRAMMES = 4
_N_LINEAGES = 2


@dataclass(frozen=True, eq=False)
class System:
    """All fixed quantities of a simulation; t regulators, m genes, drawn from the seeds by :func:`build_system`.

    Parameters
    ----------
    parameters
        What it was drawn from.
    network, kinetics
        Regulation.
    abundance
        Basal share of each gene in the transcriptome, shape (m,), sums to 1.
    noise
        Standard deviation of the log-rate among cells of one type, shape (m,).
    dispersion
        Variance of the gamma part of the counts, shape (m,): var = mean + dispersion * mean^2.
    type_drive
        Type-specific log-rates, shape (n_types, m).
    competence
        Type-specific efficacy of regulators, shape (n_types, t).
    stimulus
        Direct effect of the condition on log-rates, shape (n_types, m).
    batch_effect
        Technical effect on log-counts, shape (n_batches, m).
    targets
        Positions of the genes intervened on, shape (n_targets,).
    membership, programme
        Epistasis of low rank: the interaction of genes i and j on the log-rate of gene g is proportional to
        ``tanh(sum_k membership[i, k] * membership[j, k] * programme[k, g])``; shapes (m, k) and (k, m).
    """

    parameters: Parameters
    network: GeneNetwork
    kinetics: Kinetics
    abundance: np.ndarray
    noise: np.ndarray
    dispersion: np.ndarray
    type_drive: np.ndarray
    competence: np.ndarray
    stimulus: np.ndarray
    batch_effect: np.ndarray
    targets: np.ndarray
    membership: np.ndarray
    programme: np.ndarray

    @property
    def target_names(self) -> list[str]:
        """Names of the genes intervened on."""
        return [str(name) for name in self.network.genes[self.targets]]

    def kind_of(self, gene: int) -> str:
        """Kind of intervention on a gene; genes that are no targets take the first kind."""
        kinds = self.parameters.interventions
        place = np.flatnonzero(self.targets == gene)
        return kinds[int(place[0]) % len(kinds)] if place.size else kinds[0]


def build_system(p: Parameters) -> System:
    """Draw a system from ``p.system_seed``."""
    seed, m = p.system_seed, p.n_genes
    network = sample_network(
        stream(seed, "network"),
        n_genes=m,
        n_regulators=p.regulators,
        mean_parents=p.mean_parents,
        strength=p.strength,
        activating=p.activating,
        n_feedback=p.n_feedback,
    )
    membership, programme = _sample_epistasis(stream(seed, "epistasis"), network)
    kinship = stream(seed, "kinship").standard_normal((p.n_types, _N_LINEAGES))
    rng = stream(seed, "types")
    type_drive = 0.8 * _between_types(rng, kinship, m) * (rng.random(m) < 0.4)
    competence = np.exp(p.type_response * _between_types(rng, kinship, p.regulators))
    rng = stream(seed, "genes")
    abundance = np.exp(rng.normal(0, 1.0, m))
    return System(
        parameters=p,
        network=network,
        kinetics=_sample_kinetics(stream(seed, "kinetics"), network),
        abundance=abundance / abundance.sum(),
        noise=p.noise * rng.uniform(0.5, 1.5, m),
        dispersion=p.dispersion * np.exp(rng.normal(0, 0.3, m)),
        type_drive=type_drive,
        competence=competence,
        stimulus=_sample_stimulus(stream(seed, "stimulus"), network, p, kinship),
        batch_effect=_sample_batches(stream(seed, "batches"), p),
        targets=_sample_targets(stream(seed, "targets"), network, p.n_targets),
        membership=membership,
        programme=programme,
    )


def _sample_kinetics(rng: np.random.Generator, network: GeneNetwork) -> Kinetics:
    t = len(network.regulators)
    return Kinetics(
        network=network,
        hill=rng.uniform(1.5, 3.0, t),
        half=np.exp(rng.normal(0.2, 0.3, t)),
        turnover=np.exp(rng.normal(0, 0.3, network.n_genes)),
    )


def _sample_targets(rng: np.random.Generator, network: GeneNetwork, n_targets: int) -> np.ndarray:
    """Regulators first, with more chance for those that reach many genes, then other genes."""
    reach = np.array([network.descendants(r).sum() for r in network.regulators], dtype=float)
    order = np.argsort(-np.log(reach) - rng.gumbel(size=len(reach)), kind="stable")
    others = rng.permutation(np.setdiff1d(np.arange(network.n_genes), network.regulators))
    return np.concatenate([network.regulators[order], others])[:n_targets]


def _between_types(rng: np.random.Generator, kinship: np.ndarray, n: int) -> np.ndarray:
    """Standard normal quantities of each type, alike in related types, shape (n_types, n); 0 for a single type.

    What sets a type apart in its basal programme also tells how it responds: types are positions in few lineages.
    """
    n_types, n_lineages = kinship.shape
    shared = kinship @ rng.standard_normal((n_lineages, n)) / np.sqrt(n_lineages)
    own = rng.standard_normal((n_types, n))
    return np.sqrt(0.8) * shared + np.sqrt(0.2) * own if n_types > 1 else np.zeros((1, n))


def _sample_stimulus(rng: np.random.Generator, network: GeneNetwork, p: Parameters, kinship: np.ndarray) -> np.ndarray:
    """The stimulus acts on a few regulators and a few other genes, more strongly in some types than in others."""
    m, t = network.n_genes, len(network.regulators)
    n_direct = max(2, m // 50)
    others = np.setdiff1d(np.arange(m), network.regulators)
    direct = np.concatenate(
        [
            rng.choice(network.regulators, min(t, max(1, n_direct // 2)), replace=False),
            rng.choice(others, min(len(others), n_direct - n_direct // 2), replace=False),
        ]
    ).astype(int)
    size = np.where(rng.random(len(direct)) < 0.8, 1.0, -1.0) * rng.uniform(0.6, 1.8, len(direct))
    by_type = np.exp(p.type_response * _between_types(rng, kinship, 1))
    by_gene = np.exp(0.5 * p.type_response * _between_types(rng, kinship, len(direct)))
    stimulus = np.zeros((p.n_types, m))
    # products of log-normal factors have no bound, transcription has: no stimulus changes a rate more than 150-fold
    stimulus[:, direct] = np.clip(p.condition_strength * size * by_type * by_gene, -_MOST, _MOST)
    return stimulus


def _sample_batches(rng: np.random.Generator, p: Parameters) -> np.ndarray:
    """Gene-specific effects and a common factor of the sequencing depth."""
    effect = rng.normal(0, p.batch_strength, (p.n_batches, p.n_genes))
    depth = rng.normal(0, 0.5 * p.batch_strength, (p.n_batches, 1))
    return np.zeros_like(effect) if p.n_batches == 1 else effect + depth


def _sample_epistasis(rng: np.random.Generator, network: GeneNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Each gene belongs to programmes; pairs from one programme change what they do to its genes."""
    m = network.n_genes
    membership = rng.standard_normal((m, _N_PROGRAMMES))
    programme = rng.standard_normal((_N_PROGRAMMES, m)) / np.sqrt(_N_PROGRAMMES)
    return membership, programme


def categorical(codes: np.ndarray, categories: list[str]) -> pd.Categorical:
    """Categorical from positions in ``categories``; categories without cells stay."""
    return pd.Categorical(np.array(categories, dtype=object)[codes], categories=categories)


def sample_design(system: System) -> pd.DataFrame:
    """Draw who is measured where under what, one row per cell.

    Returns
    -------
    Columns intervention, dose, cell_type, batch, condition, time (only where times are given), size (cells' own
    expected number of transcripts), cell_index.
    """
    p = system.parameters
    rng = stream(p.seed, "design")
    labels, group = _assign_interventions(rng, system)
    cell_type = rng.integers(0, p.n_types, p.n_cells)
    stimulated = rng.random(p.n_cells) < 0.5 if p.condition else np.zeros(p.n_cells, dtype=bool)
    # a confounded batch follows the stimulus, or without one the intervention
    preferred = (stimulated.astype(int) if p.condition else group) % p.n_batches
    follows = rng.random(p.n_cells) < p.confounded
    batch = np.where(follows, preferred, rng.integers(0, p.n_batches, p.n_cells))
    dose = np.where(group > 0, rng.choice(np.array(p.doses), p.n_cells), 0.0)
    design = pd.DataFrame(
        {
            "intervention": categorical(group, labels),
            "dose": dose,
            "cell_type": categorical(cell_type, [f"type_{k}" for k in range(p.n_types)]),
            "batch": categorical(batch, [f"batch_{k}" for k in range(p.n_batches)]),
            "condition": categorical(stimulated.astype(int), [CONTROL, STIMULATED] if p.condition else [CONTROL]),
            "size": p.library_size * np.exp(rng.normal(-0.5 * 0.35**2, 0.35, p.n_cells)),
            "cell_index": np.arange(p.n_cells),
        },
        index=pd.Index([f"cell_{i}" for i in range(p.n_cells)]),
    )
    if p.time is not None:
        design.insert(5, "time", rng.choice(np.array(p.time), p.n_cells))
    return design


def _assign_interventions(rng: np.random.Generator, system: System) -> tuple[list[str], np.ndarray]:
    """Labels (control first, then singles, then doubles) and the label of each cell; groups are equally large."""
    p, names = system.parameters, system.target_names
    pairs = [(a, b) for a in range(p.n_targets) for b in range(a + 1, p.n_targets)]
    chosen = [pairs[k] for k in sorted(rng.permutation(len(pairs))[: p.n_doubles])]
    labels = [CONTROL, *names, *(f"{names[a]}{SEP}{names[b]}" for a, b in chosen)]
    n_groups = len(labels) - 1
    n_control = round(p.control_fraction * p.n_cells) if n_groups else p.n_cells
    group = np.zeros(p.n_cells, dtype=int)
    if n_groups:
        group[n_control:] = 1 + np.arange(p.n_cells - n_control) % n_groups
    return labels, rng.permutation(group)
