"""Saturating regulation of transcription: steady states and the way towards them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from sccausal.datasets._network import GeneNetwork

logger = logging.getLogger(__name__)

# a knocked-out regulator has level 0; the logarithm of the damped iteration needs a floor far below any real level
_FLOOR = 1e-12
_MAX_ITERATIONS = 500
_TOLERANCE = 1e-11
_N_STEPS = 40


@dataclass(frozen=True, eq=False)
class _Inputs:
    """What regulates a set of genes: weights (genes x regulators) and F at the basal level (genes x 1)."""

    genes: np.ndarray
    activating: sparse.csr_matrix
    repressing: sparse.csr_matrix
    reference: np.ndarray

    def regulation(self, activity: np.ndarray) -> np.ndarray:
        """F relative to the basal state, genes x cells; ``activity`` is regulators x cells."""
        # sparse products: exact in the same order for every number of cells, so that one cell gives one result
        return (1.0 + self.activating @ activity) / (1.0 + self.repressing @ activity) / self.reference


@dataclass(frozen=True, eq=False)
class Kinetics:
    r"""Rates of all genes as a function of the levels of their regulators.

    Levels are relative: 1 is the basal level. A regulator at level :math:`r` has activity
    :math:`h = r^n / (k^n + r^n)`; gene g is produced at the rate

    .. math:: \exp(d_g) \, c_g \, \frac{F_g(h)}{F_g(h_0)}, \qquad
              F_g(h) = \frac{1 + \sum_{p \in act} w_{pg} m_p h_p}{1 + \sum_{p \in rep} w_{pg} m_p h_p}

    with the cell's own drive d (cell type, noise, stimulus), the factor c of an intervention and the competence m
    of a regulator in the cell's type. Degradation is proportional to the level, so that a steady state is a level
    equal to its rate.

    Parameters
    ----------
    network
        Who regulates whom.
    hill, half
        Hill exponent n and half-saturation level k of each regulator, shape (t,).
    turnover
        Rate at which each gene approaches its steady state, per unit of time, shape (m,).
    """

    network: GeneNetwork
    hill: np.ndarray
    half: np.ndarray
    turnover: np.ndarray

    @cached_property
    def _inputs(self) -> tuple[_Inputs, _Inputs, _Inputs, list[_Inputs]]:
        """Inputs of all genes, of the genes that regulate nothing, of the regulators, and of each level of these."""
        network = self.network
        incoming = sparse.csr_matrix(network.matrix.T)[:, network.regulators]
        basal = 1.0 / (1.0 + self.half**self.hill)

        def inputs_of(genes: np.ndarray) -> _Inputs:
            rows = incoming[genes]
            activating, repressing = rows.maximum(0).tocsr(), (-rows).maximum(0).tocsr()
            reference = (1.0 + activating @ basal) / (1.0 + repressing @ basal)
            return _Inputs(genes, activating, repressing, reference[:, None])

        everything = np.arange(network.n_genes)
        levels = [inputs_of(network.regulators[group]) for group in network.regulator_levels()]
        sinks = np.setdiff1d(everything, network.regulators)
        return inputs_of(everything), inputs_of(sinks), inputs_of(network.regulators), levels

    def _activity(self, levels: np.ndarray, among: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Activity of (some of the) regulators, given their levels."""
        with np.errstate(over="ignore"):
            power = (levels / self.half[among, None]) ** self.hill[among, None]
        # an activator far above its half-saturation is saturated, also where its power has no finite value
        return np.divide(power, 1.0 + power, out=np.ones_like(power), where=np.isfinite(power))

    def _steady_regulators(self, base: np.ndarray, competence: np.ndarray) -> np.ndarray:
        """Levels of the regulators, shape (t, n)."""
        regulators = self.network.regulators
        levels = np.zeros_like(base[regulators])
        activity = np.zeros_like(levels)
        for group, inputs in zip(self.network.regulator_levels(), self._inputs[3], strict=True):
            levels[group] = base[inputs.genes] * inputs.regulation(activity)
            activity[group] = competence[group] * self._activity(levels[group], group)
        if not self.network.feedback.any():
            return levels
        return self._iterate_loops(base[regulators], competence, levels)

    def _iterate_loops(self, base: np.ndarray, competence: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Damped fixed-point iteration on the logarithm of the levels, for networks with feedback."""
        inputs = self._inputs[2]
        state = np.log(np.maximum(levels, _FLOOR))
        for _ in range(_MAX_ITERATIONS):
            rate = base * inputs.regulation(competence * self._activity(np.exp(state)))
            change = np.log(np.maximum(rate, _FLOOR)) - state
            state += 0.5 * change
            if np.abs(change).max(initial=0.0) < _TOLERANCE:
                break
        else:
            logger.warning(
                "The feedback loops have no stable state in some cells (last change of a log-level %.2g); "
                "these cells hold the last iterate.",
                np.abs(change).max(),
            )
        settled = np.exp(state)
        settled[base == 0] = 0.0
        return settled

    def steady_state(self, drive: np.ndarray, factor: np.ndarray, competence: np.ndarray) -> np.ndarray:
        """Levels at which production and degradation balance.

        Parameters
        ----------
        drive
            Log-rate of each gene without its regulators, genes x cells.
        factor
            What interventions leave of the rate, genes x cells; 0 is a knock-out.
        competence
            Efficacy of each regulator in each cell, regulators x cells.

        Returns
        -------
        Relative levels, genes x cells.
        """
        base = np.exp(drive) * factor
        levels = np.empty_like(base)
        regulators = self.network.regulators
        levels[regulators] = self._steady_regulators(base, competence)
        activity = competence * self._activity(levels[regulators])
        sinks = self._inputs[1]
        levels[sinks.genes] = base[sinks.genes] * sinks.regulation(activity)
        return levels

    def relax(
        self,
        start: np.ndarray,
        drive: np.ndarray,
        factor: np.ndarray,
        competence: np.ndarray,
        time: np.ndarray,
    ) -> np.ndarray:
        """Levels some time after drive and factor changed.

        Parameters
        ----------
        start
            Levels at time 0, genes x cells.
        drive, factor, competence
            As in :meth:`steady_state`, from time 0 on.
        time
            Time of observation of each cell, shape (n,), in units of the inverse turnover.

        Returns
        -------
        Relative levels, genes x cells.
        """
        base = np.exp(drive) * factor
        inputs = self._inputs[0]
        # each cell takes the same number of steps of its own length: exponential Euler is stable for any of them
        share = -np.expm1(-self.turnover[:, None] * (time / _N_STEPS)[None, :])
        levels = start.copy()
        for _ in range(_N_STEPS):
            activity = competence * self._activity(levels[self.network.regulators])
            levels += share * (base * inputs.regulation(activity) - levels)
        return levels
