"""Samplers and inversion against Gaussian data, whose best denoiser is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sccausal._errors import SetupError, UnknownNameError
from sccausal.nn import EMA, decode_pair, encode_pair, karras_levels, skip_scale, vp_levels
from sccausal.nn.diffusion import SOLVERS, invert_ddim, sample
from sccausal.nn.levels import spaced

MEAN = torch.tensor([2.0, -1.0, 4.0])
SPREAD = torch.tensor([1.0, 0.5, 2.0])


def denoise(x, sigma):
    """E[x0 | x] of N(MEAN, SPREAD**2)."""
    skip = SPREAD**2 / (SPREAD**2 + sigma**2)
    return MEAN + skip * (x - MEAN)


def two_modes(x, sigma):
    """E[x0 | x] of half of the mass at -2 and half at 2, each with standard deviation .3."""
    v = 0.3**2 + sigma**2
    right = torch.sigmoid(4 * x / v)
    centre = 2 * (2 * right - 1)
    return (0.3**2 * x + sigma**2 * centre) / v


def start(n, levels, seed=0):
    return levels[0].item() * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("solver", "steps"), [("ddpm", 1000), ("ddim", 1000), ("heun", 20), ("dpm++2m", 20), ("sde-dpm++2m", 40)]
)
def test_samplers_hit_mean_and_spread(solver, steps):
    torch.manual_seed(0)
    levels = vp_levels(1000) if steps == 1000 else karras_levels(steps, 0.02, 80.0)
    # the top level does not quite drown a mean, so that it belongs to the start
    x = sample(denoise, MEAN + start(20000, levels), levels, solver)
    assert torch.all((x.mean(0) - MEAN).abs() < 0.02 * MEAN.abs() + 3 * SPREAD / math.sqrt(20000))
    assert torch.all((x.std(0) / SPREAD - 1).abs() < 0.05)


def test_few_steps_of_first_order_are_worse_than_of_second_order():
    levels = karras_levels(10, 0.02, 80.0)
    spread = {s: sample(denoise, start(20000, levels), levels, s).std(0) / SPREAD for s in ("ddim", "dpm++2m")}
    assert (spread["dpm++2m"] - 1).abs().max() < 0.5 * (spread["ddim"] - 1).abs().max()


def test_two_modes_keep_their_shares_and_width():
    torch.manual_seed(1)
    levels = karras_levels(20, 0.02, 80.0)
    for solver in ("dpm++2m", "sde-dpm++2m"):
        x = sample(two_modes, start(6000, levels), levels, solver)
        assert ((x > 0).float().mean() - 0.5).abs() < 0.02
        assert x[x > 0].mean() == pytest.approx(2, abs=0.06)
        assert x[x > 0].std() == pytest.approx(0.3, abs=0.03)


def test_coupled_round_trip_is_exact_and_the_plain_one_is_not():
    torch.manual_seed(2)
    levels = karras_levels(20, 0.05, 80.0)
    x = torch.randn(500, 3) * 0.3 + 2 * torch.randn(500, 3).sign()
    size = x.norm()
    back = decode_pair(two_modes, encode_pair(two_modes, x, levels, spread=2.0), levels, spread=2.0)
    assert (back - x).norm() / size < 1e-3

    def again(n_iterations):
        z = invert_ddim(two_modes, x, levels, n_iterations=n_iterations)
        for s, t in zip(levels.tolist()[:-1], levels.tolist()[1:], strict=True):
            x0 = two_modes(z, torch.tensor(s))
            z = x0 + (t / s) * (z - x0)
        return float((z - x).norm() / size)

    assert again(1) > 0.02  # what a user gets without care
    assert again(8) < again(1)


def test_inverted_noise_is_normal_at_the_top_level():
    torch.manual_seed(3)
    levels = karras_levels(40, 0.02, 80.0)
    x = SPREAD * torch.randn(4000, 3)
    pair = encode_pair(lambda x, s: denoise(x + MEAN, s) - MEAN, x, levels, spread=1.0)  # a spread that is not exact
    for noise in pair:
        assert torch.all(noise.mean(0).abs() < 0.06)
        assert torch.all((noise.std(0) - 1).abs() < 0.1)


def test_inverted_noise_is_carried_to_another_distribution():
    """Noise of one Gaussian decoded for another gives the quantile-preserving map, which is affine."""
    torch.manual_seed(6)
    levels = karras_levels(60, 0.005, 80.0)
    x = SPREAD * torch.randn(1000, 3)
    pair = encode_pair(lambda x, s: denoise(x + MEAN, s) - MEAN, x, levels, spread=SPREAD)
    other = decode_pair(denoise, pair, levels, spread=SPREAD)
    assert (other - (x + MEAN)).abs().max() < 0.15


def test_levels_fall_between_their_ends():
    for schedule in ("linear", "cosine"):
        levels = vp_levels(1000, schedule)
        assert levels.shape == (1000,) and bool((levels.diff() < 0).all())
        assert levels[0] > 10 and levels[-1] < 0.1
    # the first step of the linear schedule has variance 1e-4
    assert vp_levels(1000)[-1] ** 2 == pytest.approx(1e-4 / (1 - 1e-4))
    karras = karras_levels(10, 0.1, 5.0)
    assert karras[0] == pytest.approx(5.0) and karras[-1] == pytest.approx(0.1)
    assert len(spaced(vp_levels(1000), 20)) == 20 and spaced(karras, 10).equal(karras)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_preconditioned_targets_have_unit_size(sigma):
    torch.manual_seed(4)
    x0 = SPREAD * torch.randn(40000, 3)
    level = torch.tensor(sigma)
    x = x0 + level * torch.randn_like(x0)
    skip, out, scale = skip_scale(level, SPREAD)
    assert torch.allclose((scale * x).std(0), torch.ones(3), atol=0.03)
    assert torch.allclose(((x0 - skip * x) / out).std(0), torch.ones(3), atol=0.03)
    # for Gaussian data the skip alone is the best denoiser: nothing is left for the network
    assert abs(float((((x0 - skip * x) / out) * x).mean())) < 0.05 * max(1.0, sigma)


def test_average_follows_parameters_and_is_saved():
    torch.manual_seed(5)
    net = nn.Linear(2, 2)
    ema = EMA(net, 0.9)
    for k in range(200):
        with torch.no_grad():
            net.weight.fill_(float(k))
        ema.update(net)
    assert ema.mean_weight.mean() == pytest.approx(199 - 9, abs=0.01)  # lag of decay / (1 - decay)
    twin = EMA(nn.Linear(2, 2), 0.9)
    twin.load_state_dict(ema.state_dict())
    twin.copy_to(net)
    assert torch.equal(net.weight, ema.mean_weight)
    with torch.no_grad():
        net.weight.fill_(7.0)
    with pytest.raises(ValueError, match="stop"), ema.applied(net):
        assert torch.equal(net.weight, ema.mean_weight)
        raise ValueError("stop")
    assert bool((net.weight == 7.0).all())


def test_wrong_arguments_are_named():
    levels = karras_levels(5)
    with pytest.raises(UnknownNameError, match="dpm"):
        sample(denoise, start(2, levels), levels, "dpm++3m")
    with pytest.raises(SetupError, match="fall"):
        sample(denoise, start(2, levels), levels.flip(0))
    with pytest.raises(UnknownNameError, match="linear"):
        vp_levels(10, "lineer")
    for bad in (
        lambda: karras_levels(1),
        lambda: spaced(levels, 9),
        lambda: vp_levels(0),
        lambda: EMA(nn.Linear(1, 1), 1.0),
    ):
        with pytest.raises(SetupError):
            bad()
    assert set(SOLVERS) == {"ddpm", "ddim", "heun", "dpm++2m", "sde-dpm++2m"}
