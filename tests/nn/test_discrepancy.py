from __future__ import annotations

import numpy as np
import pytest
import torch

from sccausal._errors import SetupError
from sccausal.metrics import energy_distance
from sccausal.nn.discrepancy import (
    centroid_discrepancy,
    condition_discrepancy,
    coupled_discrepancy,
    energy_discrepancy,
    group_discrepancy,
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


@pytest.mark.parametrize("kind", ["mmd", "energy"])
def test_group_discrepancy_is_that_of_each_group_against_the_rest(kind):
    torch.manual_seed(0)
    x, group = torch.randn(60, 3), torch.arange(60) % 3
    x[group == 2] += 1.0
    square = torch.cdist(x, x).square()
    bandwidth = torch.median(square)

    def alone(a, b):
        if kind == "energy":
            return energy_discrepancy(a, b)
        return mmd_discrepancy(a, b, bandwidth=bandwidth)

    expected = torch.stack([alone(x[group == g], x[group != g]) for g in range(3)]).mean()
    torch.testing.assert_close(group_discrepancy(x, group, kind), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["mmd", "energy"])
def test_group_discrepancy_is_unbiased_and_sees_a_change_of_spread(kind):
    torch.manual_seed(0)
    group = torch.arange(90) % 3
    null = [group_discrepancy(torch.randn(90, 2), group, kind).item() for _ in range(60)]
    error = np.std(null) / np.sqrt(len(null))
    assert abs(np.mean(null)) < 3.5 * error
    code = torch.arange(600) % 3
    null = [group_discrepancy(torch.randn(600, 2), code, kind).item() for _ in range(20)]
    wide = torch.randn(600, 2)
    wide[code == 0] *= 2.0
    assert group_discrepancy(wide, code, kind).item() > 8 * np.std(null)


def test_small_groups_are_left_out_of_the_group_discrepancy():
    x = torch.randn(5, 2)
    assert group_discrepancy(x, torch.tensor([0, 0, 0, 0, 1])).item() == 0.0
    with pytest.raises(SetupError, match="centroid"):
        group_discrepancy(x, torch.zeros(5), "centroid")


def test_coupled_discrepancy_of_random_pairs_is_least_for_a_constant():
    """Equal distributions are not its minimum: the mean is the variance of the cells."""
    torch.manual_seed(0)
    x, reference = torch.randn(4000, 3), torch.arange(4000) % 2 == 0
    assert coupled_discrepancy(x, reference, reference).item() == pytest.approx(3.0, rel=0.1)
    assert coupled_discrepancy(0.1 * x, reference, reference).item() == pytest.approx(0.03, rel=0.1)
    assert coupled_discrepancy(x, reference, torch.zeros(4000, dtype=torch.bool)).item() == 0.0
