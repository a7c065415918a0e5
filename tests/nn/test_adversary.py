from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from sccausal._errors import SetupError
from sccausal.nn.adversary import (
    DomainDiscriminator,
    DomainWeights,
    adversarial_losses,
    confusion_loss,
    focal_loss,
    gradient_reversal,
)


def logits_of(p: float) -> torch.Tensor:
    """Logits of two domains with probability ``p`` for the first."""
    return torch.tensor([[np.log(p / (1 - p)), 0.0]], dtype=torch.float64, requires_grad=True)


def test_gradient_reversal():
    x = torch.randn(4, 3, requires_grad=True)
    y = gradient_reversal(x, 0.5)
    assert torch.equal(x, y)
    (y * torch.arange(12.0).view(4, 3)).sum().backward()
    assert torch.equal(x.grad, -0.5 * torch.arange(12.0).view(4, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_focal_with_gamma_zero_is_cross_entropy(n_domain, n, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, n_domain, generator=g, dtype=torch.float64) * 3
    target = torch.randint(n_domain, (n,), generator=g)
    weight = torch.rand(n_domain, generator=g, dtype=torch.float64) + 0.1
    assert torch.allclose(focal_loss(logits, target, 0.0), F.cross_entropy(logits, target))
    assert torch.allclose(focal_loss(logits, target, 0.0, weight), F.cross_entropy(logits, target, weight))


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_closed_form(p, gamma):
    loss = focal_loss(logits_of(p), torch.tensor([0]), gamma)
    assert loss.item() == pytest.approx(-((1 - p) ** gamma) * np.log(p), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_where_the_prediction_is_certain(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), gamma)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_targets_as_a_loader_gives_them():
    logits = torch.randn(5, 3)
    codes = torch.tensor([0, 1, 2, 1, 0])
    assert focal_loss(logits, codes[:, None].float()) == focal_loss(logits, codes)
    for bad in (codes[:4], torch.zeros(5, 3)):
        with pytest.raises(SetupError, match="one class code"):
            focal_loss(logits, bad)


def test_confusion_gradient_does_not_vanish_on_certain_cells():
    logits = logits_of(0.99)
    (gradient,) = torch.autograd.grad(confusion_loss(logits), logits)
    assert gradient.flatten().tolist() == pytest.approx([0.49, -0.49], rel=1e-6)
    # the reversed focal loss is five orders weaker at the same cell
    logits = logits_of(0.99)
    (reversed_,) = torch.autograd.grad(focal_loss(gradient_reversal(logits), torch.tensor([0])), logits)
    assert float(reversed_.abs().max()) < 1e-5
    assert reversed_[0, 0] > 0  # a step down the gradient lowers the probability of the true domain


def test_confusion_is_least_at_the_prior():
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = confusion_loss(logits, 5 * prior)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(logits.softmax(-1)[0], prior, atol=1e-4)
    assert confusion_loss(logits, prior).item() == pytest.approx(float(-(prior * prior.log()).sum()), abs=1e-6)


def test_weights_follow_the_raw_error_and_do_not_decay_to_uniform():
    weights = DomainWeights(3, eta=0.9)
    # domain 0 always right, domain 1 wrong half of the time, domain 2 always wrong
    target = torch.tensor([0, 0, 1, 1, 2, 2])
    logits = F.one_hot(torch.tensor([0, 0, 1, 0, 0, 1]), 3).float()
    for _ in range(300):
        weights.update(logits, target)
        before = weights.error.clone()
        w = weights()
        assert torch.equal(weights.error, before)
        assert float(w.mean()) == pytest.approx(1.0, abs=1e-6)
    assert weights.error.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-5)
    expected = 3 * np.exp([0.0, 0.5, 1.0]) / np.exp([0.0, 0.5, 1.0]).sum()
    assert w.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_weights_after_one_update_in_closed_form():
    weights = DomainWeights(2, eta=0.75)
    weights.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    # domain 1 was absent and keeps chance
    assert weights.error.tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.5, 0.5])
    weights.update(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert weights.error.tolist() == pytest.approx([0.5, 0.75 * 0.5 + 0.25])


def test_weights_rest_in_evaluation_mode():
    disc, weights = DomainDiscriminator(3, 2), DomainWeights(2)
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    weights.eval()
    before = weights.error.clone()
    adversarial_losses(disc, x, y, weights)
    assert torch.equal(weights.error, before)
    weights.train()
    adversarial_losses(disc, x, torch.zeros(20), weights)
    assert not torch.equal(weights.error, before)


@pytest.mark.parametrize("mode", ["confusion", "reversal"])
def test_each_term_moves_only_its_side(mode):
    torch.manual_seed(0)
    disc = DomainDiscriminator(3, 2, n_hidden=8)
    x = torch.randn(16, 3, requires_grad=True)
    y = torch.arange(16) % 2
    parameters = list(disc.parameters())
    d, e = adversarial_losses(disc, x, y, DomainWeights(2), mode)
    assert torch.autograd.grad(d, [x], retain_graph=True, allow_unused=True) == (None,)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(d, parameters, retain_graph=True))
    assert torch.autograd.grad(e, parameters, retain_graph=True, allow_unused=True) == (None,) * len(parameters)
    assert torch.autograd.grad(e, [x], retain_graph=True)[0].abs().sum() > 0
    # one backward over the sum gives each side the gradient of its own term
    separate = torch.autograd.grad(d, parameters, retain_graph=True), torch.autograd.grad(e, [x], retain_graph=True)
    (d + e).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, separate[0], strict=True))
    assert torch.equal(x.grad, separate[1][0])


def test_reversal_is_the_negative_of_the_discriminators_wish():
    torch.manual_seed(0)
    disc = DomainDiscriminator(3, 2, n_hidden=8)
    x, y = torch.randn(16, 3, requires_grad=True), torch.arange(16) % 2
    _, e = adversarial_losses(disc, x, y, None, "reversal")
    (reversed_,) = torch.autograd.grad(e, x)
    (wish,) = torch.autograd.grad(focal_loss(disc(x), y), x)
    assert torch.allclose(reversed_, -wish)


@pytest.mark.parametrize(
    "call",
    [
        lambda: DomainWeights(0),
        lambda: DomainWeights(2, eta=1.0),
        lambda: DomainDiscriminator(3, 2, prior=torch.ones(3)),
        lambda: DomainDiscriminator(3, 2, prior=torch.tensor([-1.0, 2.0])),
        lambda: adversarial_losses(DomainDiscriminator(3, 2), torch.ones(2, 3), torch.ones(2), mode="focal"),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(SetupError):
        call()


def train_encoder(mode: str | None, steps: int = 600) -> tuple[float, float]:
    """Accuracy of a fresh probe for the domain, and squared correlation of the representation with the signal."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    n = 1000
    domain = torch.arange(n) % 2
    signal = torch.randn(n, 2, generator=g)
    shift = torch.tensor([1.0, -1.5, 0.5, 2.0, -1.0, 1.0])
    mixing = torch.randn(2, 6, generator=g)
    x = signal @ mixing + domain[:, None] * shift + 0.1 * torch.randn(n, 6, generator=g)
    encoder, decoder = nn.Linear(6, 3), nn.Linear(3 + 1, 6)
    disc, weights = DomainDiscriminator(3, 2, 32, 2), DomainWeights(2)
    nets = nn.ModuleList([encoder, decoder, disc])
    optimizer = torch.optim.Adam(nets.parameters(), lr=1e-2)
    for step in range(steps):
        rows = torch.randint(n, (200,), generator=g)
        z = encoder(x[rows])
        d = domain[rows]
        loss = (decoder(torch.cat([z, d[:, None].float()], 1)) - x[rows]).square().mean()
        if mode is not None:
            loss = loss + sum(adversarial_losses(disc, z, d, weights, mode))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = encoder(x).numpy()
    fit, test = slice(0, n // 2), slice(n // 2, n)
    probe = LogisticRegression().fit(z[fit], domain[fit])
    design = np.c_[z, np.ones(n)]
    coefficients = np.linalg.lstsq(design[fit], signal.numpy()[fit], rcond=None)[0]
    rest = signal.numpy()[test] - design[test] @ coefficients
    return float(probe.score(z[test], domain[test])), float(1 - rest.var() / signal.numpy()[test].var())


def test_a_fresh_probe_is_at_chance():
    leaks, _ = train_encoder(None)
    assert leaks > 0.9
    accuracy, kept = train_encoder("confusion")
    assert abs(accuracy - 0.5) < 0.07  # three standard errors of 500 cells
    assert kept > 0.9
