"""What batches and conditions do to the latent genes: effects, posterior of the batch, and the state of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sccausal.models.scconcrl._components import line_of


class UnseenBatches(NamedTuple):
    """Offsets of batches from the average one, by state, in standardised features: (q, m) and (q, d, m)."""

    level: Tensor
    slope: Tensor
    is_all: bool = False
    """Whether all cells at hand are of one such batch."""


class DomainsMixin:
    """Domain block of :class:`~sccausal.models.scconcrl._module.ScConCRLModule`."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    unseen: UnseenBatches | None = None
    """Batches of the cells at hand that the model was not trained on, for the length of one query."""

    def _known_batch(self, batch: Tensor | None, n: int) -> Tensor:
        # codes beyond the batches of the model and those aligned with it stand for the average batch, which is last
        n_unseen = 0 if self.unseen is None else len(self.unseen.level)
        last = self.n_batch + n_unseen
        if self.unseen is not None and self.unseen.is_all:
            return torch.full((n,), self.n_batch, device=self.mean.device)
        if batch is None:
            return torch.full((n,), last, device=self.mean.device)
        return torch.where((batch < 0) | (batch > last), last, batch).to(self.mean.device)

    def _batch_posterior(self, linear: Tensor, rest: Tensor, scores: Tensor, code: Tensor) -> Tensor:
        """Mean of q(n^b|x) in the batch block, (n, k).

        With offsets that follow the state, a cell has the latent of its batch at its scores, and the average batch is
        at zero. In the paper's form expression alone tells: the linear part says how near a cell is to the prior mean
        of each batch, and the mean is the average of these, weighted by nearness. Beyond the reach of all of them (an
        unseen batch) the linear part itself counts.
        """
        k = self.n_batch_latent
        if self.batch_response == "state":
            known = code < self.n_batch
            mean = self.batch_prior.location(torch.where(known, code, 0), scores) * known[:, None]
            return mean.detach() if self.holds_batches else mean
        anchors = self.batch_prior.mean[: int(self.n_anchors)]
        distance = torch.cdist(linear[:, :k], anchors).square()
        square = distance * torch.exp(-2 * self.log_reach)
        near = torch.softmax(-0.5 * square, dim=1) @ anchors
        # within a batch the distance is about sqrt(k) of its spread; three more are not chance
        known = torch.sigmoid(4 * (k**0.5 + 2.5 - square.min(1, keepdim=True).values.clamp_min(1e-12).sqrt()))
        return known * near + (1 - known) * linear[:, :k] + rest[:, :k]

    def _direct(self, total: Tensor, A: Tensor) -> Tensor:
        # what arrives beside the edges among genes, total (I - A)
        return total - (total if self.graph.is_square else total[:, self.graph.regulators]) @ A

    @property
    def domain_loading(self) -> Tensor:
        """Edges from domain latents to genes, A_xb (k, m).

        The parameter is their total effect ``A_xb (I - A_xx)^-1``: what a domain does to expression then stays what it
        is while the graph is learned, and the graph explains what domains leave over.
        """
        return self._direct(self.effect(), self.graph.matrix())

    @property
    def cuts_response(self) -> bool:
        """Whether the population loss alone trains the response and its edges.

        The mean changes of whole populations say how cells respond; the ELBO of single cells, whose noise model is
        only roughly right, would trade that knowledge for a better fit of the noise.
        """
        return self.training and self.populations is not None and self.population_weight > 0

    @property
    def holds_batches(self) -> bool:
        """Whether the effect of the batches stays as measured between matched populations.

        The ELBO would shrink it, since cells pay for it through the noise of their domain latents. Batches that a
        query brings are learned.
        """
        if not (self.training and self.n_batch_latent and self.batch_response == "state"):
            return False
        return self.n_batch == int(self.n_anchors)

    def effect(self) -> Tensor:
        """Total effect of the domain latents on the latent genes (k, m)."""
        return torch.cat([self._batch_effect(), self.condition_total])

    def _batch_effect(self) -> Tensor:
        if self.batch_response == "paper":
            return self.batch_total
        # measured in features: latent genes follow by the slope of the encoder, wherever training has brought it
        return self.batch_total * line_of(self.encoder).slope.detach()

    def elbo_effect(self) -> Tensor:
        """The same as the ELBO sees it: what is fitted to whole populations is a constant there."""
        batch, condition = self._batch_effect(), self.condition_total
        return torch.cat(
            [batch.detach() if self.holds_batches else batch, condition.detach() if self.cuts_response else condition]
        )

    def state(self, scores: Tensor, nb_mean: Tensor, code: Tensor) -> Tensor:
        """Cell state (n, d): principal scores (n, d) without intervention, from which the batch is taken out."""
        k = self.n_batch_latent
        if k:
            scores_of_batch = (nb_mean[:, :k].detach() - self.average_batch()) @ self.state_effect[:k]
            if self.unseen is None:
                return scores - scores_of_batch
            return scores - scores_of_batch - self._unseen_features(scores, code) @ self.axes
        return scores if self.unseen is None else scores - self._unseen_features(scores, code) @ self.axes

    def _unseen_features(self, scores: Tensor, code: Tensor) -> Tensor:
        assert self.unseen is not None
        row = (code - self.n_batch).clamp(0, len(self.unseen.level) - 1)
        offset = self.unseen.level[row] + torch.bmm(scores.unsqueeze(1), self.unseen.slope[row]).squeeze(1)
        is_unseen = (code >= self.n_batch) & (code < self.n_batch + len(self.unseen.level))
        return offset * is_unseen[:, None]

    def unseen_offset(self, scores: Tensor, code: Tensor) -> Tensor:
        """Offset of the latent genes (n, m) in cells of batches that the model was not trained on."""
        return self._unseen_features(scores, code) * line_of(self.encoder).slope

    def average_batch(self) -> Tensor:
        """Latent of the average batch of training, (k,)."""
        if self.batch_response == "state":
            return self.batch_prior.mean.new_zeros(self.n_batch_latent)
        return self.batch_prior.mean[: int(self.n_anchors)].detach().mean(0)

    def latent_in_batch(self, state: Tensor, code: int) -> Tensor:
        """Batch latents (n, k) that cells of ``state`` (n, d) have in the batch ``code``."""
        prior = self.batch_prior
        if prior.slope is None:
            return prior.mean[code].expand(len(state), -1)
        # a cell of state s has the scores t there: t = s + (mean + t slope) effect
        effect = self.state_effect[: self.n_batch_latent]
        own = torch.eye(self.n_state, device=state.device) - prior.slope[code] @ effect
        scores = torch.linalg.lstsq(own.T, (state + prior.mean[code] @ effect).T).solution.T
        return prior.mean[code] + scores @ prior.slope[code]
