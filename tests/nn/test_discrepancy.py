from __future__ import annotations

import numpy as np
import pytest
import torch

from sccausal._errors import SetupError
from sccausal.metrics import energy_distance
from sccausal.nn.discrepancy import (
    centroid_discrepancy,
    condition_discrepancy,
    energy_discrepancy,
    mmd_discrepancy,
)

KINDS = {"centroid": centroid_discrepancy, "mmd": mmd_discrepancy, "energy": energy_discrepancy}


def _clouds(shift: float, n: int = 12, m: int = 9, g: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, g, generator=generator), shift + torch.randn(m, g, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_is_zero_for_equal_distributions_and_not_otherwise(kind):
    same = torch.stack([KINDS[kind](*_clouds(0.0, seed=s)) for s in range(400)])
    moved = torch.stack([KINDS[kind](*_clouds(0.7, seed=s)) for s in range(400)])
    error = same.std() / len(same) ** 0.5
    assert abs(float(same.mean())) < 4 * float(error)
    assert float(moved.mean()) > 20 * float(error)


def test_centroid_is_the_squared_distance_of_the_means_in_expectation():
    values = torch.stack([centroid_discrepancy(*_clouds(0.7, seed=s)) for s in range(400)])
    assert float(values.mean()) == pytest.approx(5 * 0.49, rel=0.1)


def test_energy_agrees_with_the_metric():
    x, y = _clouds(0.5, 40, 30)
    assert float(energy_discrepancy(x, y)) == pytest.approx(energy_distance(x.numpy(), y.numpy()), abs=1e-4)


def test_mmd_sees_what_the_means_do_not():
    generator = torch.Generator().manual_seed(1)
    x, wide = torch.randn(200, 3, generator=generator), 3 * torch.randn(200, 3, generator=generator)
    narrow = torch.randn(200, 3, generator=generator)
    assert float(mmd_discrepancy(x, wide)) > 10 * abs(float(mmd_discrepancy(x, narrow)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_descent_moves_one_cloud_onto_the_other(kind):
    x, y = _clouds(2.0, 60, 60)
    offset = torch.zeros(5, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        KINDS[kind](x + offset, y).backward()
        optimiser.step()
    np.testing.assert_allclose(offset.detach().numpy(), (y.mean(0) - x.mean(0)).numpy(), atol=0.5)


def test_one_condition_cannot_pay_for_another():
    """Predictions with the labels swapped have the right mean over the batch, and are found out."""
    generator = torch.Generator().manual_seed(0)
    code = torch.arange(2).repeat_interleave(50)
    observed = torch.where(code[:, None] == 0, -2.0, 2.0) + torch.randn(100, 4, generator=generator)
    right, swapped = observed[torch.randperm(50).tolist() + (50 + torch.randperm(50)).tolist()], observed.flip(0)
    assert abs(float(centroid_discrepancy(swapped, observed))) < 1.5
    assert float(condition_discrepancy(swapped, observed, code)) > 50
    assert float(condition_discrepancy(right, observed, code)) < 0.5


def test_few_cells_and_unknown_names():
    x, y = _clouds(0.0, 3, 3)
    assert float(condition_discrepancy(x, y, torch.arange(3))) == 0
    with pytest.raises(SetupError, match="centroids"):
        condition_discrepancy(x, y, torch.zeros(3, dtype=torch.long), "centroids")
    with pytest.raises(SetupError, match="two cells"):
        mmd_discrepancy(x[:1], y)
