"""What changes in the course of training: warm-ups, the matching of activities, the causal order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from sccausal.models.gcrl._graph import graph_from_interventions, order_from_effects
from sccausal.nn.alignment import Moments, matching

_WAIT, _FULL = 0.05, 0.5
_ORDER_FROM, _ORDER_UNTIL = 0.1, 0.8


class ScheduleMixin:
    """Hooks of the training plan for :class:`~sccausal.models.gcrl._module.GCRLVAEModule`."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @torch.no_grad()
    def on_epoch_start(self, epoch: int, max_epochs: int | None) -> None:
        """Set the weight of the discrepancy and the temperature, renew matching and order."""
        progress = 1.0 if max_epochs is None else epoch / max_epochs
        ramp = min(max((progress - _WAIT) / (_FULL - _WAIT), 0.0), 1.0)
        self.discrepancy_share.fill_(ramp)
        self.interventions.temperature.fill_(1.0 + (self.max_temperature - 1.0) * ramp)
        if self.n_activities and epoch > 0:
            self._renew_matching()
        if self.intervention_kind == "do" and _ORDER_FROM < progress <= _ORDER_UNTIL:
            self._renew_graph()

    def _renew_matching(self) -> None:
        if self.permutation == "hungarian":
            rho = self._partial(Moments(self.running_tt, self.running_tz, self.running_zz, 0))
            self.columns.copy_(torch.as_tensor(matching(rho)))
        elif self.permutation == "sinkhorn":
            self.columns.copy_(torch.as_tensor(matching(self.permutation_logits)))
        self.route()

    def route(self) -> None:
        """Send targets that belong to an activity to its latent, and order the graph by the activities."""
        fixed = torch.zeros_like(self.interventions.fixed)
        fixed[:, self.columns] = self.routes
        self.interventions.fixed.copy_(fixed)
        if self.has_global:
            self.interventions.allowed.fill_(1.0)
            self.interventions.allowed[self.columns[0]] = 0.0
        if self.intervention_kind == "shift":
            rest = [j for j in range(self.n_latent) if j not in set(self.columns.tolist())]
            self.graph.set_order(torch.tensor([*self.columns.tolist(), *rest]))

    def total_effects(self) -> Tensor:
        """Total effects among latents (d, d) that the cells under ``do`` interventions show.

        Where the edges into j are cut, ``y_j = exogenous_j - sum_k y_k T_kj`` with ``T = (I - G)^-1 - I``, and the
        other y are independent: T is read off the second moments.
        """
        moment = self.running_do
        diagonal = moment.diagonal(dim1=1, dim2=2).clamp_min(1e-6)
        effects = -(moment[torch.arange(self.n_latent), :, torch.arange(self.n_latent)] / diagonal).T
        return effects.fill_diagonal_(0.0)

    def _renew_graph(self) -> None:
        first = int(self.columns[0]) if self.has_global else None
        order = order_from_effects(self.total_effects().square().cpu().numpy(), first)
        self.graph.set_order(order)
        found = graph_from_interventions(self.running_do.double().cpu().numpy(), order)
        self.graph.weight.copy_(torch.as_tensor(found))

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The graph by itself: few numbers with a weak gradient, which weight decay would pull to zero."""
        return [{"params": [self.graph.weight], "name": "structure", "weight_decay": 0.0, "lr": 10 * lr}]

    @torch.no_grad()
    def proximal_step(self, lr: float) -> None:
        """Shrink edges towards zero (``l1_on="graph"``), which leaves exact zeros."""
        if self.l1_on == "graph" and self.l1_weight:
            weight = self.graph.weight
            weight.copy_(softshrink(weight, lr * self.l1_weight))
