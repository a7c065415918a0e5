"""Noise levels, preconditioning and samplers against Gaussians, whose denoiser is known."""

from __future__ import annotations

import math

import pytest
import torch

from sccausal._errors import SetupError
from sccausal.nn.levels import noise_levels
from sccausal.nn.score import (
    GaussianDenoiser,
    annealed_langevin,
    draw,
    fixed_points,
    heun,
    preconditioning,
    score,
    stationary_path,
)


@pytest.fixture
def gaussian() -> tuple[GaussianDenoiser, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    factor = torch.randn(4, 4)
    covariance = factor @ factor.T / 4 + 0.3 * torch.eye(4)
    base = GaussianDenoiser(4, 4)
    base.set_covariance(covariance)
    return base, covariance, torch.tensor([1.0, -2.0, 0.5, 3.0])


def test_levels_fall_between_their_ends():
    for spacing in ("geometric", "edm"):
        levels = noise_levels(18, 0.03, 10.0, spacing=spacing)
        assert (levels.diff() < 0).all()
        torch.testing.assert_close(levels[[0, -1]], torch.tensor([10.0, 0.03]), rtol=1e-4, atol=1e-6)
    for bad in ({"n": 1}, {"n": 5, "sigma_min": 2.0, "sigma_max": 1.0}, {"n": 5, "spacing": "even"}):
        with pytest.raises(SetupError):
            noise_levels(**bad)


def test_edm_keeps_input_and_target_at_unit_size():
    torch.manual_seed(0)
    x = torch.randn(20_000, 1)
    for sigma in (0.03, 0.5, 3.0, 10.0):
        f = preconditioning(torch.tensor(sigma))
        noisy = x + sigma * torch.randn_like(x)
        assert float((f.into * noisy).std()) == pytest.approx(1, abs=0.03)
        assert float(((x - f.skip * noisy) / f.out).std()) == pytest.approx(1, abs=0.03)
    # the reference form has to cancel a term of size sigma
    far = preconditioning(torch.tensor(10.0), "reference")
    assert float(((x - far.skip * (x + 10 * torch.randn_like(x))) / far.out).std()) < 0.2


def test_gaussian_denoiser_is_the_conditional_mean(gaussian):
    base, covariance, _ = gaussian
    x = torch.randn(50, 4)
    for sigma in (0.1, 1.0, 5.0):
        exact = x @ torch.linalg.solve(covariance + sigma**2 * torch.eye(4), covariance)
        torch.testing.assert_close(base(x, sigma), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(base.covariance(), covariance, rtol=1e-4, atol=1e-5)
    few = GaussianDenoiser(4, 2)
    few.set_covariance(covariance)
    assert float(torch.trace(few.covariance())) == pytest.approx(float(torch.trace(covariance)), rel=1e-4)
    per_row = torch.tensor([[0.1]] * 25 + [[5.0]] * 25)
    torch.testing.assert_close(base(x, per_row)[:25], base(x[:25], 0.1))


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"n_steps": 100, "step": 0.1, "sigma_min": 0.03},
        # the 15 000 calls of the paper
        pytest.param({"n_steps": 500, "step": 0.01, "sigma_min": 0.01}, marks=pytest.mark.slow),
    ],
    ids=["heun", "langevin", "langevin of the paper"],
)
def test_samplers_have_mean_and_spread_of_the_data(gaussian, schedule):
    base, covariance, mean = gaussian
    sd = covariance.diagonal().sqrt()
    # the flow starts from centred noise, so its data are centred; Langevin steps find their way from anywhere
    mean = mean if schedule else torch.zeros(4)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return mean + base(x - mean, sigma)

    torch.manual_seed(1)
    if schedule:
        levels = noise_levels(30, schedule["sigma_min"], 10.0)
        x = annealed_langevin(
            denoise, torch.randn(20_000, 4), levels, n_steps=schedule["n_steps"], step=schedule["step"]
        )
    else:
        x = draw(denoise, 20_000, 4, noise_levels(30, 0.03, 10.0, spacing="edm"))
    assert float(((x.mean(0) - mean) / sd).abs().max()) < 0.02
    assert float((x.std(0) / sd - 1).abs().max()) < 0.05
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0.15, atol=0.08)


def test_the_flow_can_be_followed_back(gaussian):
    base, _, mean = gaussian
    levels = noise_levels(30, 0.03, 10.0, spacing="edm")
    x = torch.randn(100, 4)

    def denoise(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return mean + base(z - mean, sigma)

    noise = heun(denoise, x, levels.flip(0), finish=False)
    assert float(noise.std()) > 5
    torch.testing.assert_close(heun(denoise, noise, levels), x, rtol=0.02, atol=0.03)


def test_points_of_rest_are_modes(gaussian):
    base, _, mean = gaussian

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return mean + base(x - mean, sigma)

    levels = noise_levels(30, 0.03, 10.0)
    found = fixed_points(denoise, torch.zeros(3, 4), levels)
    torch.testing.assert_close(found, mean.expand(3, 4), rtol=1e-3, atol=1e-3)
    slow = annealed_langevin(denoise, torch.zeros(1, 4), levels, n_steps=200, step=0.1, noise=False)
    torch.testing.assert_close(slow, found[:1], rtol=0.02, atol=0.05)


def test_an_antisymmetric_part_leaves_the_stationary_law(gaussian):
    base, covariance, _ = gaussian
    torch.manual_seed(2)
    q = torch.randn(4, 4)
    turn = torch.eye(4) + (q - q.T)
    path = stationary_path(
        lambda x: score(base, x, 0.05) @ turn.T, torch.zeros(4000, 4), torch.tensor([4.0, 4.2]), step=0.005
    )
    law = covariance + 0.05**2 * torch.eye(4)
    torch.testing.assert_close(torch.cov(path[0].T), law, rtol=0.15, atol=0.12)
    # the flow is circular: correlations over time are not symmetric, unlike those of the score alone
    lagged = path[1].T @ path[0] / 4000
    assert float((lagged - lagged.T).norm()) > 0.2
    still = stationary_path(lambda x: -x, torch.ones(1, 4), torch.tensor([0.0, 1.0]), step=0.001, noise=None)
    torch.testing.assert_close(still[0], torch.ones(1, 4))
    torch.testing.assert_close(still[1], torch.full((1, 4), math.exp(-1)), rtol=1e-3, atol=1e-3)
