"""Where training starts: statistics into buffers, gene maps at the identity, domains and response in closed form."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sccausal.grn._elastic_net import default_penalties, elastic_net_from_correlation
from sccausal.models.scconcrl._components import line_of
from sccausal.models.scconcrl._populations import Populations
from sccausal.models.scconcrl._shrinkage import shrunken_response
from sccausal.models.scconcrl._statistics import TrainingStatistics, ridge_graph, shrunken_correlation
from sccausal.nn.graph import acyclicity

logger = logging.getLogger(__name__)

_NOISE = 0.05
# beyond as many genes only regulators explain at the start: the regression on all is cubic in the genes
_ALL_EXPLAIN = 1500
_LOOP_GAIN = 0.8


class PopulationTargets(NamedTuple):
    """Rows of the population loss as tensors; see :class:`~sccausal.models.scconcrl._populations.Populations`."""

    control: Tensor
    dose: Tensor
    state: Tensor
    change: Tensor
    weight: Tensor
    noise: Tensor

    def take(self, rows: Tensor) -> PopulationTargets:
        """Some of the rows."""
        return PopulationTargets(**{k: v if k == "noise" else v[rows] for k, v in self._asdict().items()})


class StartMixin:
    """Initialisation of :class:`~sccausal.models.scconcrl._module.ScConCRLModule` from the training cells."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    populations: PopulationTargets | None = None
    _response_start: dict[str, Tensor]

    @torch.no_grad()
    def start(
        self, statistics: TrainingStatistics, *, response_start: str = "shrinkage", graph_start: str = "elastic_net"
    ) -> None:
        """Set buffers, and on the first call also the parameters, from the training cells.

        Parameters
        ----------
        statistics
            Statistics of the training cells.
        response_start
            ``"shrinkage"``: closed-form response that depends on the state; ``"mean"``: mean shift; ``"zero"``.
        graph_start
            ``"elastic_net"`` or ``"ridge"``: regression of each gene on the regulators; ``"random"``: weights of size
            1 / (m - 1).
        """
        first = not bool(self.started)
        # steps of Adam are as large as a learning rate whatever the evidence: a graph that was found is only refined
        self.structure_rate = 0.02 if graph_start == "elastic_net" else 0.2
        if first:
            self._set_buffers(statistics)
            self._start_gene_maps(statistics)
            if graph_start != "random":
                self._start_graph(statistics, graph_start)
            if self.n_batch_latent:
                self._start_batches(statistics)
        rows, known = statistics.populations, self.n_batch_latent > 0
        if self.n_targets and rows is not None:
            if first and response_start != "zero" and self.response_kind == "state":
                self._start_response(rows, response_start)
                known = True
            self._set_populations(rows)
        # the posterior of latents whose effects are still random would be read off noise
        if first and known:
            self._start_domain_encoder(statistics)
        self.started.fill_(True)
        self.refresh()

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=self.mean.device)

    def _set_buffers(self, s: TrainingStatistics) -> None:
        self.mean.copy_(self._tensor(s.mean))
        self.scale.copy_(self._tensor(s.scale))
        self.feature_sd.copy_(self._tensor(s.sd / s.scale).clamp_min(1e-3))
        self.batch_effect.copy_(self._tensor(s.offsets.level))
        self.target_effect.copy_(self._tensor(s.target_effect / s.scale))
        self.axes.copy_(self._tensor(s.axes))
        kept = len(s.reference.n)
        self.reference_features[:kept] = self._tensor(s.reference.features)
        self.reference_cells[:kept] = self._tensor(s.reference.n)

    def _start_gene_maps(self, s: TrainingStatistics) -> None:
        line = line_of(self.decoder)
        if self.gene_likelihood == "gaussian":
            line.slope.copy_(self.scale)
            line.intercept.copy_(self.mean)
            # the bound is tight where both noises are small and alike; wide ones would hide the graph at first
            self.spread.copy_(torch.log(_NOISE * self.scale.square()))
            self.log_posterior_var.fill_(math.log(_NOISE))
            return
        rate = self._tensor(np.maximum(s.rate, 1e-3))
        # d log(rate) / d log1p(rate), bounded for genes that are hardly seen
        line.slope.copy_(self.scale * ((1 + rate) / (rate + 0.5)))
        line.intercept.copy_(rate.log())

    def _start_graph(self, s: TrainingStatistics, kind: str) -> None:
        regulators = self.graph.regulators.cpu().numpy()
        if kind == "ridge":
            weight = ridge_graph(s.correlation, regulators, s.n_used)
        else:
            penalties = default_penalties(s.n_used, len(s.correlation))
            # what other genes explain as well is no regulator's merit; their rows are not edges of the model
            m = len(s.correlation)
            rows = np.arange(m) if m <= _ALL_EXPLAIN else regulators
            weight = elastic_net_from_correlation(s.correlation.astype(np.float32), *penalties, rows)
            weight = weight[regulators] if m <= _ALL_EXPLAIN else weight
        weight *= s.spread / s.spread[regulators][:, None]
        self.graph.weight.copy_(self._tensor(weight))
        # the regressions run both ways along each edge, which may amplify without end: keep the loop gain below 1
        radius = float(acyclicity(self.graph.block().abs().sqrt(), "spectral"))
        if radius > _LOOP_GAIN:
            block = self.graph.block() * (_LOOP_GAIN / radius)
            self.graph.weight.index_copy_(1, self.graph.regulators, block)
        explained = self._tensor(
            np.einsum("tm,tm->m", weight, (s.correlation * np.outer(s.spread, s.spread))[regulators])
        )
        # a gene that hardly varies would otherwise hold the whole bound by its tiny noise
        left = (self._tensor(s.spread**2) - explained).clamp_min(0.05 * self._tensor(s.spread**2)).clamp_min(_NOISE)
        self.log_exogenous_var.copy_(left.log())

    def _start_batches(self, s: TrainingStatistics) -> None:
        k = self.n_batch_latent
        if self.batch_response == "paper":
            loadings, scores = _factors(self.batch_effect, k)
            self.batch_total.copy_(loadings)
            self.batch_prior.mean.copy_(scores)
            return
        # directions are ranked by their size in expression: slopes count by how far states reach
        sd = self._tensor(np.maximum(s.state_sd, 1e-6))[:, None]
        rows = torch.cat([self._tensor(s.offsets.level)[:, None], self._tensor(s.offsets.slope) * sd], 1)
        loadings, scores = _factors(rows.flatten(0, 1), k)
        self.batch_total.copy_(loadings)
        scores = scores.view(*rows.shape[:2], k)
        self.batch_prior.mean.copy_(scores[:, 0])
        self.batch_prior.slope.copy_(scores[:, 1:] / sd)

    def _start_domain_encoder(self, s: TrainingStatistics) -> None:
        """Posterior mean of the domain latents in the linear model: features = n^b E + noise of the cells."""
        condition = self.condition_total if self.response_kind == "state" else torch.zeros_like(self.condition_total)
        effect = torch.cat([self.batch_total, condition]).double().cpu().numpy()
        covariance = shrunken_correlation(s.correlation, s.n_used) * np.outer(s.spread, s.spread)
        gain = np.linalg.solve(covariance, effect.T)
        # shrunken in the condition block only: a batch latent that fell short would leave batch behind in n^x
        prior = np.ones(len(effect))
        prior[: self.n_batch_latent] = 1e-6 * max(float(np.trace(effect @ gain)), 1e-6)
        weight = np.linalg.solve(effect @ gain + np.diag(prior), gain.T)
        linear = self.domain_encoder.linear
        linear.weight.copy_(self._tensor(weight))
        linear.bias.zero_()
        if self.n_batch_latent and self.batch_response == "paper":
            within = np.diag(weight @ covariance @ weight.T)[: self.n_batch_latent]
            self.log_reach.fill_(0.5 * math.log(max(float(within.mean()), 1e-4)))

    def _start_response(self, rows: Populations, kind: str) -> None:
        unit = line_of(self.decoder).slope if self.gene_likelihood == "gaussian" else self.scale
        maps = torch.zeros(self.n_targets, 1 + self.n_state, self.n_genes, device=unit.device)
        for t in range(self.n_targets):
            mine = (rows.dose[:, t] != 0) & ((rows.dose != 0).sum(1) == 1)
            if not mine.any():
                continue
            dose = rows.dose[mine, t : t + 1]
            change, variance = rows.change[mine] / dose, rows.variance[mine] / dose**2
            if kind == "mean":
                maps[t, 0] = self._tensor(np.average(change, axis=0, weights=rows.weight[mine])) / unit
                continue
            fit = shrunken_response(change, variance, rows.state[mine], weight=rows.weight[mine])
            maps[t, 0] = self._tensor(fit.level) / unit
            maps[t, 1:] = self._tensor(fit.slope) / unit
        # components are ranked by their size in expression, weighted by how far states reach
        loadings, scores = _factors(maps.flatten(0, 1), self.n_condition_latent)
        self.condition_total.copy_(loadings)
        scores = scores.view(self.n_targets, 1 + self.n_state, self.n_condition_latent)
        self.response.mean.copy_(scores[:, 0])
        self.response.slope.copy_(scores[:, 1:])

    def _set_populations(self, rows: Populations) -> None:
        t = self._tensor
        noise = self.scale.square() if self.gene_likelihood == "gaussian" else torch.full_like(self.scale, 0.25)
        control = (t(rows.control) - self.mean) / self.scale
        weight = t(np.sqrt(rows.weight))
        self.populations = PopulationTargets(control, t(rows.dose), t(rows.state), t(rows.change), weight, noise)
        if self.response_kind == "state":
            self._response_start = {n: p.detach().clone() for n, p in self.response.named_parameters()}


def _factors(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Loadings (k, m) and scores (r, k), scores of unit root mean square where there is signal."""
    u, values, vt = torch.linalg.svd(rows, full_matrices=False)
    rank = min(k, int((values > 1e-6 * values.max().clamp_min(1e-12)).sum()))
    # factors without signal stay at zero: a free one would take covariance of the genes away from the graph
    loadings, scores = rows.new_zeros(k, rows.shape[1]), rows.new_zeros(rows.shape[0], k)
    size = values[:rank] / max(rows.shape[0], 1) ** 0.5
    loadings[:rank] = vt[:rank] * size[:, None]
    scores[:, :rank] = u[:, :rank] * max(rows.shape[0], 1) ** 0.5
    return loadings, scores
