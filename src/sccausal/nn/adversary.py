"""Removing a domain (batch, condition) from a representation by a discriminator that fails."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from sccausal._errors import SetupError


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.weight * grad[0], None


def gradient_reversal(x: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """Identity whose gradient is multiplied by ``-weight`` :cite:p:`Ganin2016`.

    Parameters
    ----------
    x
        Any tensor.
    weight
        Strength of the reversal.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import gradient_reversal
    >>> x = torch.ones(3, requires_grad=True)
    >>> gradient_reversal(x, 0.5).sum().backward()
    >>> x.grad.tolist()
    [-0.5, -0.5, -0.5]
    """
    return _Reverse.apply(x, float(weight))


def _class_index(target: torch.Tensor, n: int) -> torch.Tensor:
    """Class codes of shape ``(n,)`` from the ``(n,)`` or ``(n, 1)``, integer or float codes of a loader."""
    target = target.squeeze(-1) if target.ndim == 2 and target.shape[1] == 1 else target
    if target.ndim != 1 or target.shape[0] != n:
        raise SetupError(f"target must hold one class code for each of {n} cells; found shape {tuple(target.shape)}.")
    return target.long()


def focal_loss(
    logits: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy in which cells that are already classified well count less :cite:p:`Lin2017`.

    Parameters
    ----------
    logits
        ``(n, n_domain)``, unnormalised.
    target
        ``(n,)`` or ``(n, 1)``, codes of the true domains.
    gamma
        Focusing exponent; 0 is the (weighted) cross-entropy.
    weight
        ``(n_domain,)``, weight of each domain.

    Returns
    -------
    0-d tensor, the mean over cells, weighted by the weight of each cell's domain.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import focal_loss
    >>> logits, domains = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    >>> bool(focal_loss(logits, domains) < focal_loss(logits, domains, gamma=0))
    True
    """
    target = _class_index(target, logits.shape[0])
    log_p = F.log_softmax(logits, dim=-1).gather(1, target[:, None]).squeeze(1)
    loss = -log_p
    if gamma > 0:
        # the bound keeps the slope of the power finite for gamma < 1 and a cell that is certain
        loss = (-torch.expm1(log_p)).clamp_min(1e-12).pow(gamma) * loss
    if weight is None:
        return loss.mean()
    w = weight.to(loss)[target]
    return (w * loss).sum() / w.sum()


def confusion_loss(logits: torch.Tensor, prior: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of a discriminator's prediction to the domain prior, mean over cells :cite:p:`Tzeng2015`.

    Its gradient on the logits is ``softmax(logits) - prior``: the cells that leak most are pushed most.

    Parameters
    ----------
    logits
        ``(n, n_domain)``, unnormalised.
    prior
        ``(n_domain,)``, frequencies of the domains; uniform if ``None``.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import confusion_loss
    >>> undecided, sure = torch.zeros(5, 2), torch.tensor([[4.0, 0.0]]).repeat(5, 1)
    >>> bool(confusion_loss(undecided) < confusion_loss(sure))
    True
    """
    log_p = F.log_softmax(logits, dim=-1)
    if prior is None:
        return -log_p.mean()
    prior = prior.to(log_p)
    return -(log_p * (prior / prior.sum())).sum(-1).mean()


class DomainWeights(nn.Module):
    """Weights of the domains that grow with the discriminator's errors.

    The buffer holds the raw moving average of each domain's misclassification rate. The weights are the softmax
    of a copy, rescaled to mean 1: feeding the softmax back into the average would decay it to uniform.

    Parameters
    ----------
    n
        Number of domains.
    eta
        Share of the old average that is kept at each update, in [0, 1).

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import DomainWeights
    >>> weights = DomainWeights(2)
    >>> weights.update(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))  # wrong about domain 1
    >>> bool(weights()[1] > weights()[0])
    True
    """

    error: torch.Tensor

    def __init__(self, n: int, eta: float = 0.9):
        super().__init__()
        if n < 1 or not 0.0 <= eta < 1.0:
            raise SetupError(f"DomainWeights needs n >= 1 and eta in [0, 1); found n={n}, eta={eta}.")
        self.eta = float(eta)
        self.register_buffer("error", torch.full((n,), 1.0 - 1.0 / n))

    @torch.no_grad()
    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Move the average of each domain present in a minibatch towards its share of wrong predictions.

        Parameters
        ----------
        logits
            ``(n, n_domain)``.
        target
            ``(n,)`` or ``(n, 1)``, codes of the true domains.
        """
        target = _class_index(target, logits.shape[0])
        wrong = (logits.argmax(-1) != target).to(self.error)
        seen = torch.zeros(2, self.error.numel()).to(self.error)
        seen.index_add_(1, target, torch.stack([torch.ones_like(wrong), wrong]))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)  # each process sees other cells; all must weigh the domains alike
        count, errors = seen
        moved = self.eta * self.error + (1.0 - self.eta) * errors / count.clamp_min(1.0)
        self.error.copy_(torch.where(count > 0, moved, self.error))

    def forward(self) -> torch.Tensor:
        """Weights of the domains, ``(n,)``, mean 1, without gradient."""
        return torch.softmax(self.error.detach().clone(), dim=0) * self.error.numel()


class DomainDiscriminator(nn.Module):
    """Multilayer perceptron that predicts the domain of a cell from its features.

    It has no normalisation layers: they would hide the very shifts and scales by which domains differ, and their
    running statistics would be updated by the frozen pass of :func:`adversarial_losses`.

    Parameters
    ----------
    n_input
        Number of features.
    n_domain
        Number of domains.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of hidden layers; 0 is logistic regression.
    prior
        ``(n_domain,)`` frequencies of the domains, kept as a buffer; uniform if ``None``.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import DomainDiscriminator
    >>> DomainDiscriminator(n_input=10, n_domain=3)(torch.zeros(5, 10)).shape
    torch.Size([5, 3])
    """

    prior: torch.Tensor

    def __init__(
        self,
        n_input: int,
        n_domain: int,
        n_hidden: int = 64,
        n_layers: int = 2,
        prior: torch.Tensor | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        width = n_input
        for _ in range(n_layers):
            layers += [nn.Linear(width, n_hidden), nn.LeakyReLU(0.1)]
            width = n_hidden
        self.net = nn.Sequential(*layers, nn.Linear(width, n_domain))
        prior = torch.ones(n_domain) if prior is None else torch.as_tensor(prior, dtype=torch.float32)
        if prior.shape != (n_domain,) or bool((prior < 0).any()) or float(prior.sum()) <= 0:
            raise SetupError(f"prior must hold one frequency for each of {n_domain} domains; found {prior.tolist()}.")
        self.register_buffer("prior", prior / prior.sum())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, n_domain)`` of features ``(n, n_input)``."""
        return self.net(features)


def adversarial_losses(
    disc: DomainDiscriminator,
    features: torch.Tensor,
    target: torch.Tensor,
    weights: DomainWeights | None = None,
    mode: Literal["confusion", "reversal"] = "confusion",
    *,
    gamma: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of a discriminator and of the encoder it faces, for one backward pass over their sum.

    The discriminator sees detached features, the encoder a discriminator with detached parameters, so that neither
    term moves the other's parameters and each can have its own weight.

    Parameters
    ----------
    disc
        Discriminator.
    features
        ``(n, n_input)``, output of the encoder.
    target
        ``(n,)`` or ``(n, 1)``, codes of the true domains.
    weights
        Weights of the domains; updated here while it is in training mode.
    mode
        Encoder term: ``"confusion"`` pulls the prediction to the domain prior, ``"reversal"`` reverses the gradient
        of the focal loss (which vanishes where the discriminator is certain).
    gamma
        Exponent of the focal loss.

    Returns
    -------
    discriminator_loss, encoder_loss
        0-d tensors.

    Raises
    ------
    SetupError
        Unknown ``mode``, or ``target`` does not fit ``features``.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import DomainDiscriminator, adversarial_losses
    >>> features = torch.zeros(6, 4, requires_grad=True)
    >>> domains = torch.tensor([0, 1, 0, 1, 0, 1])
    >>> for_discriminator, for_encoder = adversarial_losses(DomainDiscriminator(4, 2), features, domains)
    >>> (for_discriminator + for_encoder).backward()
    >>> features.grad.shape
    torch.Size([6, 4])
    """
    if mode not in ("confusion", "reversal"):
        raise SetupError(f"mode must be 'confusion' or 'reversal'; found {mode!r}.")
    logits = disc(features.detach())
    weight = None if weights is None else weights()
    discriminator_loss = focal_loss(logits, target, gamma, weight)
    if weights is not None and weights.training:
        weights.update(logits, target)
    frozen = {name: p.detach() for name, p in disc.named_parameters()}
    seen = features if mode == "confusion" else gradient_reversal(features)
    frozen_logits = torch.func.functional_call(disc, frozen, (seen,))
    if mode == "confusion":
        return discriminator_loss, confusion_loss(frozen_logits, disc.prior)
    return discriminator_loss, focal_loss(frozen_logits, target, gamma, weight)
