"""Log-likelihoods of expression, without distribution objects (slow in training), and counts at another rate."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sccausal._errors import SetupError

Likelihood = Literal["gaussian", "nb", "zinb"]
EPS = 1e-8


def check_likelihood(kind: str) -> None:
    """Raise :class:`SetupError` if ``kind`` is unknown."""
    if kind not in get_args(Likelihood):
        raise SetupError(f"Unknown gene_likelihood {kind!r}; choose one of {', '.join(get_args(Likelihood))}.")


def gaussian(x: Tensor, mean: Tensor, log_var: Tensor, extra_var: Tensor | None = None) -> Tensor:
    """Log-density of N(mean, exp(log_var)) summed over genes, (n,), without the constant.

    ``extra_var`` (m,) is the variance of ``mean`` itself, over which the expectation is then taken.
    """
    error, precision = x - mean, torch.exp(-log_var)
    constant = log_var.sum() if extra_var is None else log_var.sum() + precision @ extra_var
    return -0.5 * ((error * error) @ precision + constant)


def negative_binomial(x: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Log-probability of counts under NB(mean, exp(log_dispersion)) for each entry."""
    theta = torch.exp(log_dispersion)
    log_total = torch.log(theta + mean + EPS)
    return (
        theta * (torch.log(theta + EPS) - log_total)
        + x * (torch.log(mean + EPS) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def zero_inflated(x: Tensor, mean: Tensor, log_dispersion: Tensor, dropout_logit: Tensor) -> Tensor:
    """Log-probability under a negative binomial whose counts are lost with probability sigmoid(dropout_logit)."""
    log_nb = negative_binomial(x, mean, log_dispersion)
    lost, kept = F.logsigmoid(dropout_logit), F.logsigmoid(-dropout_logit)
    return torch.where(x < 0.5, torch.logaddexp(lost, kept + log_nb), kept + log_nb)


def count_log_likelihood(x: Tensor, mean: Tensor, log_dispersion: Tensor, dropout: Tensor | None) -> Tensor:
    """Log-probability of counts summed over genes, (n,); zero-inflated if ``dropout`` logits are given."""
    if dropout is None:
        return negative_binomial(x, mean, log_dispersion).sum(1)
    return zero_inflated(x, mean, log_dispersion, dropout).sum(1)


def move_counts(x: Tensor, before: Tensor, after: Tensor, theta: Tensor, sample: bool) -> Tensor:
    """Counts ``x`` (n, m) of the same cells at another rate: lost counts are thinned, new ones come from their own.

    The rate of a cell given its count is ``before * (x + theta) / (before + theta)`` on average (gamma-Poisson).
    """
    ratio = after / before.clamp_min(1e-8)
    gain = (ratio - 1).clamp_min(0) * before * (x + theta) / (before + theta)
    kept = ratio.clamp_max(1)
    if not sample:
        return x * kept + gain
    return torch.binomial(x, kept.expand_as(x)) + torch.poisson(gain)
