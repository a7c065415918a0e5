"""Terms of the loss that make exogenous parts exogenous."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sccausal.nn.adversary import gradient_reversal
from sccausal.nn.concepts import ConceptSCM

_MAX_GROUPS = 64


class ConceptAdversaries(nn.Module):
    """Classifiers that try to read labels where they must not be, facing a reversed gradient.

    - the unexplained part must tell no label;
    - the exogenous part of a concept must not tell the labels of its ancestors;
    - beyond its own label, it must not tell those of the other concepts.

    Parameters
    ----------
    sizes
        Levels of each concept.
    ancestors
        Ancestors of each concept.
    n_latent
        Dimensions of an exogenous part.
    n_hidden
        Width.
    """

    def __init__(
        self, sizes: Sequence[int], ancestors: Sequence[Sequence[int]], n_latent: int, n_hidden: int = 64
    ) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.above = [list(a) for a in ancestors]
        self.beside = [[i for i in range(len(sizes)) if i != j and i not in self.above[j]] for j in range(len(sizes))]

        def net(n_input: int, n_output: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(n_input, n_hidden), nn.LeakyReLU(0.1), nn.Linear(n_hidden, n_hidden), nn.LeakyReLU(0.1),
                nn.Linear(n_hidden, n_output),
            )  # fmt: skip

        self.unexplained = net(n_latent, sum(sizes))
        self.nets = nn.ModuleDict()
        for j, size in enumerate(sizes):
            if self.above[j]:
                self.nets[f"above_{j}"] = net(n_latent, sum(sizes[i] for i in self.above[j]))
            if self.beside[j]:
                self.nets[f"beside_{j}"] = net(n_latent + size, sum(sizes[i] for i in self.beside[j]))

    def forward(self, eps: Tensor, labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropies for the unexplained part and for the concepts' parts, means over their classifiers.

        Parameters
        ----------
        eps
            Draws (n, concepts + 1, d), the last one unexplained.
        labels
            Level weights (n, levels) of each concept.
        """
        seen = gradient_reversal(eps)
        unexplained = self._entropy(self.unexplained(seen[:, -1]), list(range(len(labels))), labels)
        terms = []
        for j, label in enumerate(labels):
            if self.above[j]:
                terms.append(self._entropy(self.nets[f"above_{j}"](seen[:, j]), self.above[j], labels))
            if self.beside[j]:
                both = torch.cat([seen[:, j], label], dim=1)
                terms.append(self._entropy(self.nets[f"beside_{j}"](both), self.beside[j], labels))
        return unexplained, torch.stack(terms).mean() if terms else unexplained.new_zeros(())

    def _entropy(self, logits: Tensor, which: list[int], labels: Sequence[Tensor]) -> Tensor:
        parts = logits.split([self.sizes[i] for i in which], dim=1)
        losses = [-(labels[i] * F.log_softmax(a, 1)).sum(1).mean() for i, a in zip(which, parts, strict=True)]
        return torch.stack(losses).mean()


class Conditionals(nn.Module):
    """Labels of a concept after its parents were set, held to those observed under the same labels of the parents.

    Given the DAG and no hidden common cause, P(label | do(parents)) = P(label | parents). The exogenous part of a
    cell is joined with the parents' embeddings of another cell, and the classifier's reading of the result, averaged
    over cells with the same (borrowed) parents' labels, must have that distribution; single cells must be decided.

    Parameters
    ----------
    sizes
        Levels of each concept.
    parents
        Parents of each concept.
    """

    def __init__(self, sizes: Sequence[int], parents: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.sizes, self.parents = list(sizes), [list(p) for p in parents]
        for j, above in enumerate(self.parents):
            if above and self._n_groups(j) <= _MAX_GROUPS:
                self.register_buffer(f"table_{j}", torch.full((self._n_groups(j), sizes[j]), 1.0 / sizes[j]))

    def _n_groups(self, j: int) -> int:
        return int(np.prod([self.sizes[i] for i in self.parents[j]]))

    def _group(self, j: int, labels: Sequence[Tensor]) -> Tensor:
        code = torch.zeros(len(labels[0]), dtype=torch.long, device=labels[0].device)
        for i in self.parents[j]:
            code = code * self.sizes[i] + labels[i].argmax(1)
        return code

    @torch.no_grad()
    def count(self, labels: Sequence[np.ndarray]) -> None:
        """Take the observed distributions from level weights (cells, levels) of each concept."""
        given = [torch.as_tensor(y, dtype=torch.float32) for y in labels]
        for j in range(len(self.sizes)):
            table = getattr(self, f"table_{j}", None)
            if table is not None:
                counts = torch.zeros(table.shape).index_add_(0, self._group(j, given), given[j])
                # parents' labels never seen together fall back on the distribution of all cells
                overall = given[j].mean(0)
                table.copy_((counts + overall) / (counts + overall).sum(1, keepdim=True))

    def forward(
        self, scm: ConceptSCM, eps: Tensor, z: Tensor, labels: Sequence[Tensor], heads: nn.ModuleList
    ) -> Tensor:
        """Mean over concepts with parents; 0 without any."""
        terms = []
        order = torch.randperm(len(eps), device=eps.device)
        for j, above in enumerate(self.parents):
            table = getattr(self, f"table_{j}", None)
            if table is None:
                continue
            borrowed = {i: z[order, i].detach() for i in above}
            after = eps[:, j] + scm.inflow(j, borrowed)
            # the classifier is a measure here, not to be moved
            still = {name: value.detach() for name, value in heads[j].named_parameters()}
            logits = functional_call(heads[j], still, (after,))
            p = logits.softmax(1)
            group = self._group(j, labels)[order]
            size = torch.bincount(group, minlength=len(table)).to(p)
            mean = p.new_zeros(table.shape).index_add_(0, group, p) / size.clamp_min(1).unsqueeze(1)
            share = size / size.sum()
            divergence = (table * (table.clamp_min(1e-6).log() - mean.clamp_min(1e-6).log())).sum(1)
            undecided = -(p * logits.log_softmax(1)).sum(1).mean()
            terms.append((share * divergence).sum() + 0.1 * undecided)
        return torch.stack(terms).mean() if terms else eps.new_zeros(())
