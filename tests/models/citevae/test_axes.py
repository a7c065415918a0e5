"""Axes of single responsive latents, and what keeps them apart from c during training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from sccausal.datasets import simulate_temporal_factors
from sccausal.metrics import mcc
from sccausal.models.citevae._axes import lines
from sccausal.models.citevae._components import EarlierLaw
from sccausal.models.citevae._module import CITEVAEModule
from sccausal.models.citevae._start import training_start


def test_lines_are_found_up_to_sign():
    rng = np.random.default_rng(0)
    planted = rng.standard_normal((4, 4))
    planted /= np.linalg.norm(planted, axis=1, keepdims=True)
    own = np.repeat(np.arange(4), 3)
    shifts = planted[own] * rng.choice([-1.0, 1.0], 12)[:, None] * rng.uniform(1, 3, 12)[:, None]
    found, assigned = lines(shifts + 0.02 * rng.standard_normal(shifts.shape), 4)
    order = np.abs(found @ planted.T).argmax(1)
    assert sorted(order) == [0, 1, 2, 3]
    assert np.abs((found * planted[order]).sum(1)).min() > 0.995
    assert (order[assigned] == own).all()


def test_fewer_interventions_than_latents_leave_the_axes_as_they_are():
    found, assigned = lines(np.eye(5)[:3], 5)
    np.testing.assert_array_equal(found, np.eye(5))
    assert (assigned == -1).all()
    one = np.ones((6, 1)) @ np.array([[1.0, 2.0, 0.5]])  # all on one line
    np.testing.assert_array_equal(lines(one, 3)[0], np.eye(3))


@pytest.fixture(scope="module")
def started():
    adata = simulate_temporal_factors(2000, seed=31)
    dose = pd.get_dummies(adata.obs["intervention"]).drop(columns="control").to_numpy(float)
    start = training_start(adata.X, dose, adata.obs["time"].to_numpy(), 7, 4, False, 0)
    return adata, start, (adata.X - start.mean) / start.scale


def test_the_start_finds_single_responsive_latents(started):
    adata, start, z = started
    truth = adata.obsm["responsive"]
    principal = np.linalg.svd(z, full_matrices=False)[0][:, :7]
    assert mcc(z @ start.responsive, truth) > 0.85 > mcc(principal, truth) + 0.1
    rebuilt = z @ np.column_stack([start.invariant, start.responsive]) @ start.loadings.T
    assert np.mean((z - rebuilt) ** 2) < 0.05
    np.testing.assert_allclose((z @ start.responsive).std(0), 1, atol=0.03)


def test_a_latent_is_free_of_c_under_its_own_interventions(started):
    adata, start, z = started
    s, c = z @ start.responsive, z @ start.invariant
    truth, label = adata.obsm["responsive"], adata.obs["intervention"].astype(str).to_numpy()
    late = (adata.obs["time"] == 3).to_numpy()
    for i, name in enumerate(adata.uns["truth"]["responsive"]):
        number = name.split("_")[1]
        rows = late & np.isin(label, [f"do_{number}_0", f"do_{number}_1"])
        latent = np.abs([np.corrcoef(column, truth[:, i])[0, 1] for column in s.T]).argmax()
        shared = np.corrcoef(np.column_stack([s[rows, latent], c[rows]]).T)[0, 1:]
        assert np.abs(shared).max() < 0.25


def test_the_earlier_law_is_a_full_gaussian():
    torch.manual_seed(0)
    law = EarlierLaw(3, 4)
    with torch.no_grad():
        for parameter in law.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        given, mean, log_var = torch.randn(6, 3), torch.randn(6, 4), 0.5 * torch.randn(6, 4)
        centre, spread = law.net(given).chunk(2, 1)
        whiten = (torch.eye(4) + torch.tril(law.lower, -1)) * torch.exp(-0.5 * spread)[:, None, :]
        prior = MultivariateNormal(centre, precision_matrix=whiten.transpose(1, 2) @ whiten)
        posterior = MultivariateNormal(mean, torch.diag_embed(log_var.exp()))
        torch.testing.assert_close(law.kl(mean, log_var, given).sum(1), kl_divergence(posterior, prior))


def test_release_sees_c_in_a_latent_whose_parents_are_gone():
    torch.manual_seed(0)
    module = CITEVAEModule(10, 1, 2, 2, n_invariant=2, n_responsive=2)
    module.embedding.copy_(torch.eye(2))
    with torch.no_grad():
        module.responsive.goal.copy_(3 * torch.eye(2))
    dose = torch.eye(2).repeat(60, 1)
    cells = {"x": torch.zeros(240, 10), "dose": torch.cat([dose, dose])}
    c, s = torch.randn(240, 2), torch.randn(240, 2)

    def value(latents):
        return float(module.released({"c_mean": c, "s_mean": latents}, cells))

    clean = value(s)
    assert clean < 0.1
    own = s.clone()
    own[:, 0] += c[:, 1]
    assert value(own) > clean + 0.1  # half of the cells are under the intervention on latent 0
    # under the other intervention the latent may depend on c
    other = s + torch.where(cells["dose"][:, [0]] == 1, 0.0, 1.0) * torch.stack([c[:, 1], torch.zeros(240)], 1)
    assert value(other) == pytest.approx(clean, abs=0.02)
