r"""Mathematics of CausCell: encoder, structural model of concepts, classifiers, adversaries, denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.nn import functional as F

from sccausal._errors import unknown_name
from sccausal.data import KEYS
from sccausal.models.causcell._concepts import Concept
from sccausal.models.causcell._denoiser import Denoiser
from sccausal.models.causcell._numbers import LabelPrior, NumberHead, NumberPrior, standard_knots
from sccausal.models.causcell._space import CountSpace, ExpressionSpace
from sccausal.models.causcell._terms import ConceptAdversaries, Conditionals
from sccausal.nn.concepts import ConceptSCM, EdgeKind
from sccausal.nn.diffusion import EMA
from sccausal.nn.levels import skip_scale

SIGMA_LOW, SIGMA_HIGH = 0.03, 80.0
"""Noise levels in standard deviations of a gene: noise of sampling is larger than the first, the second drowns all."""


class CausCellModule(BaseModuleClass):
    """See :class:`~sccausal.models.CausCell` for the arguments that are not described here.

    Parameters
    ----------
    n_genes
        Genes.
    concepts
        The concepts.
    parents
        Parents of each concept, as positions.
    """

    def __init__(
        self,
        n_genes: int,
        concepts: Sequence[Concept],
        parents: Sequence[Sequence[int]],
        *,
        n_latent: int = 32,
        edge: EdgeKind = "map",
        learn_edges: bool = True,
        n_hidden: int = 96,
        n_tokens: int = 4,
        n_layers: int = 3,
        n_encoder: int = 256,
        dropout: float = 0.1,
        exogenous_weight: float = 1.0,
        endogenous_weight: float = 3.0,
        classifier_weight: float = 1.0,
        adversary_weight: float = 0.2,
        unexplained_weight: float = 1.0,
        consistency_weight: float = 1.0,
        ema_decay: float = 0.995,
        gene_likelihood: Literal["gaussian", "nb"] = "gaussian",
    ) -> None:
        super().__init__()
        if gene_likelihood not in ("gaussian", "nb"):
            raise unknown_name("gene_likelihood", gene_likelihood, ("gaussian", "nb"))
        self.gene_likelihood = gene_likelihood
        self.concepts, self.n_latent, self.n_genes = list(concepts), n_latent, n_genes
        m = len(self.concepts)
        self.weights = {
            "exogenous": exogenous_weight,
            "endogenous": endogenous_weight,
            "classifier": classifier_weight,
            "adversary": adversary_weight,
            "unexplained": unexplained_weight,
            "consistency": consistency_weight,
        }
        self.space = ExpressionSpace(n_genes) if gene_likelihood == "gaussian" else CountSpace(n_genes)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.Sequential(
            nn.Linear(n_genes, n_encoder), nn.LayerNorm(n_encoder), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(n_encoder, n_encoder), nn.SiLU(), nn.Linear(n_encoder, (m + 1) * 2 * n_latent),
        )  # fmt: skip
        self.scm = ConceptSCM(parents, n_latent, edge, learn_edges)
        self.prior, self.heads = nn.ModuleList(), nn.ModuleList()
        for c in self.concepts:
            if c.is_number and c.values is not None:
                knots = standard_knots(c.values)
                self.prior.append(NumberPrior(knots, n_latent))
                self.heads.append(NumberHead(knots, n_latent))
            else:
                n_features = c.n_levels if c.rows is None else c.rows.shape[1]
                self.prior.append(LabelPrior(n_features, n_latent, start=c.rows is not None))
                self.heads.append(nn.Linear(n_latent, c.n_levels))
        sizes = [c.n_levels for c in self.concepts]
        self.adversaries = ConceptAdversaries(sizes, [self.scm.ancestors(j) for j in range(m)], n_latent)
        self.conditionals = Conditionals(sizes, parents)
        self.denoiser = Denoiser(self.space.n_dims, m + 1, n_latent, n_tokens, n_hidden, n_layers, dropout=dropout)
        self.ema = EMA(self, ema_decay)

    # ------------------------------------------------------------------ start and hooks of the plan

    @torch.no_grad()
    def start(self, x: np.ndarray, labels: Sequence[np.ndarray]) -> None:
        """Standardise genes and count labels, on the training cells.

        Parameters
        ----------
        x
            Expression (cells, genes).
        labels
            Level weights of each concept (cells, levels).
        """
        self.space.start(x)
        self.conditionals.count(labels)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The adversaries learn faster than what they follow."""
        return [{"params": list(self.adversaries.parameters()), "name": "adversaries", "lr": 2 * lr}]

    def proximal_step(self, lr: float) -> None:
        """Follow the weights with their average, after each update."""
        self.ema.update(self)

    def finish(self) -> None:
        """Take the averaged weights for inference."""
        self.ema.copy_to(self)

    # ------------------------------------------------------------------ pieces

    def prior_mean(self, j: int, features: Tensor) -> Tensor:
        """Mean embedding of values of concept j: level weights (n, levels), or doses (n, targets)."""
        return self.prior[j](features)

    def prior_features(self, j: int, weights: Tensor) -> Tensor:
        """What :meth:`prior_mean` takes, from level weights (n, levels)."""
        rows = self.concepts[j].rows
        return weights if rows is None else weights @ torch.as_tensor(rows, dtype=weights.dtype, device=weights.device)

    # ------------------------------------------------------------------ scvi-tools' steps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Loss of a minibatch; out of training with the averaged weights, and with the same draws at every call.

        So the validation losses of two epochs differ by the weights alone, and judge those that inference uses.
        """
        if self.training:
            return super().forward(*args, **kwargs)
        device = self.ema.n_updates.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self.ema.applied(self):
            torch.manual_seed(0)
            return super().forward(*args, **kwargs)

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return {"x": tensors[KEYS.X]}

    @auto_move_data
    def inference(self, x: Tensor, n_samples: int = 1) -> dict[str, Tensor]:
        """Exogenous parts of cells, the last one unexplained: mean, standard deviation, draw (n, concepts + 1, d)."""
        out = self.encoder(self.dropout(self.space.standardised(x).clamp(-10, 10))).view(len(x), -1, 2, self.n_latent)
        mean, spread = out[:, :, 0], (0.5 * out[:, :, 1].clamp(-8, 1)).exp()
        eps = mean + spread * torch.randn_like(mean)
        return {"mean": mean, "spread": spread, "eps": eps, "z": self.embed(eps)}

    def embed(self, eps: Tensor, set_to: dict[int, Tensor] | None = None) -> Tensor:
        """Tokens (n, concepts + 1, d) of exogenous parts, under an intervention if ``set_to`` is given."""
        return torch.cat([self.scm(eps[:, :-1], set_to), eps[:, -1:]], dim=1)

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor], **_: Any
    ) -> dict[str, Tensor]:
        return {"x": tensors[KEYS.X], "z": inference_outputs["z"]}

    @auto_move_data
    def generative(self, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """What the net makes of noisy cells, what it should have made, and the loss of the space noise is added in."""
        y, space = self.space.training_code(x)
        # levels evenly spread in the logarithm, one stratum per cell: as good as twice the cells
        n = len(y)
        share = (torch.randperm(n, device=y.device) + torch.rand(n, device=y.device)) / n
        sigma = SIGMA_LOW * (SIGMA_HIGH / SIGMA_LOW) ** share
        noisy = y + sigma.unsqueeze(1) * torch.randn_like(y)
        skip, out, _ = skip_scale(sigma, 1.0)
        target = (y - skip.unsqueeze(1) * noisy) / out.unsqueeze(1)
        return {"guess": self.denoiser(noisy, sigma, self.denoiser.condition(z)), "target": target, "space": space}

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float | Tensor = 1.0,
    ) -> LossOutput:
        """Denoising, KL terms, classifiers, adversaries and consistency with the DAG, per cell and gene."""
        eps, z = inference_outputs["eps"], inference_outputs["z"]
        labels = [c.weights(tensors) for c in self.concepts]
        error = (generative_outputs["guess"] - generative_outputs["target"]).square().mean(1)
        error = error + generative_outputs["space"]
        exogenous, endogenous = self._kl(inference_outputs, labels)
        w = self.weights
        kl = (w["exogenous"] * exogenous.sum(1) + w["endogenous"] * endogenous) / self.n_genes
        logits = [head(z[:, j]) for j, head in enumerate(self.heads)]
        classifier = torch.stack([soft_entropy(a, y) for a, y in zip(logits, labels, strict=True)])
        unexplained, blocks = self.adversaries(eps, labels)
        consistency = self.conditionals(self.scm, eps, z, labels, self.heads)
        total = (
            error.mean()
            + kl_weight * kl.mean()
            + w["classifier"] * classifier.mean()
            + w["unexplained"] * unexplained
            + w["adversary"] * blocks
            + w["consistency"] * consistency
        )
        parts = {
            "kl_exogenous": exogenous[:, :-1].sum(1).mean(), "kl_unexplained": exogenous[:, -1].mean(),
            "kl_endogenous": endogenous.mean(), "classifier": classifier.mean(),
            "unexplained_adversary": unexplained, "block_adversary": blocks, "consistency": consistency,
        }  # fmt: skip
        for concept, value in zip(self.concepts, classifier, strict=True):
            parts[f"classifier_{concept.name}"] = value
        return LossOutput(
            loss=total,
            reconstruction_loss=error,
            kl_local=kl,
            extra_metrics={k: v.detach() for k, v in parts.items()},
        )

    def _kl(self, out: dict[str, Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """KL of exogenous parts to N(0, I) (n, concepts + 1), of all embeddings to N(mean of the label, I) (n,).

        The second is taken along the graph: given its parents' draws an embedding is normal with the spread of its
        exogenous part, and the KL terms of these add up to that of all embeddings together.
        """
        mean, spread = out["mean"], out["spread"]
        variance = spread.square()
        rest = variance - 1 - variance.log()  # (n, concepts + 1, d)
        exogenous = 0.5 * (mean.square() + rest).sum(2)
        z = {j: out["z"][:, j] for j in range(len(self.concepts))}
        endogenous = torch.zeros_like(exogenous[:, 0])
        for j, y in enumerate(labels):
            off = mean[:, j] + self.scm.inflow(j, z) - self.prior_mean(j, self.prior_features(j, y))
            endogenous = endogenous + 0.5 * (off.square() + rest[:, j]).sum(1)
        return exogenous, endogenous

    def sample(self, *args: Any, **kwargs: Any) -> None:
        """Not offered: use ``model.counterfactual`` or ``model.trial``."""
        raise NotImplementedError("Use model.counterfactual or model.trial.")


def soft_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits to level weights (n, levels), mean over cells."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1).mean()
