from __future__ import annotations

import numpy as np
import pytest

from sccausal.models._adaptive import shrunken_singles
from sccausal.models.gcrl._statistics import Conditions, condition_changes


def _screen(seed: int, n_cells: int, n_control: int, share: float = 0.1, T: int = 12, m: int = 200):
    """Mean changes of singles and a few doubles of targets that move a tenth of the genes."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=(T, m)) * (rng.random((T, m)) < share)
    dose = np.vstack([np.eye(T), np.eye(T)[:4] + np.eye(T)[4:8]])
    n = np.full(len(dose), float(n_cells))
    noise = rng.normal(size=(len(dose), m)) / np.sqrt(n_cells) - rng.normal(size=m) / np.sqrt(n_control)
    return effect, dose, n, dose @ effect + noise


def test_with_many_cells_the_singles_are_exact_and_doubles_additive():
    effect, dose, n, change = _screen(0, 10**7, 10**7)
    singles, shared = shrunken_singles(change, dose, n, 10**7, np.ones(change.shape[1]))
    np.testing.assert_allclose(singles, effect, atol=5e-3)
    np.testing.assert_allclose(shared, 0, atol=5e-3)


@pytest.mark.parametrize("seed", range(3))
def test_with_few_cells_it_beats_the_additive_rule(seed):
    effect, dose, n, change = _screen(seed, 50, 50)
    singles, shared = shrunken_singles(change, dose, n, 50, np.ones(change.shape[1]))
    pairs = np.eye(12)[[8, 9, 10]] + np.eye(12)[[9, 10, 11]]
    additive = np.linalg.norm(pairs @ change[:12] - pairs @ effect, axis=1).mean()
    shrunken = np.linalg.norm(pairs @ singles - pairs @ effect, axis=1).mean()
    assert shrunken < 0.8 * additive


def test_the_error_of_the_control_mean_is_found():
    """All conditions share it, so it is counted once and in no target."""
    rng = np.random.default_rng(1)
    error = rng.normal(size=300) / np.sqrt(30)
    dose = np.eye(20)
    change = rng.normal(size=(20, 300)) / np.sqrt(400) - error
    singles, shared = shrunken_singles(change, dose, np.full(20, 400.0), 30, np.ones(300))
    assert np.corrcoef(shared, -error)[0, 1] > 0.9
    assert np.abs(singles).mean() < 0.2 * np.abs(error).mean()


def test_genes_that_never_vary_get_no_effect():
    effect, dose, n, change = _screen(2, 50, 50, m=20)
    spread = np.ones(20)
    spread[3], change[:, 3] = 0.0, 0.0
    singles, shared = shrunken_singles(change, dose, n, 50, spread)
    assert np.isfinite(singles).all() and (singles[:, 3] == 0).all() and shared[3] == 0


def test_singles_of_targets_seen_in_combinations_only():
    effect, dose, n, change = _screen(3, 10**6, 10**6)
    keep = np.ones(len(dose), dtype=bool)
    keep[0] = False  # target 0 is left in one double whose other part is known
    found = Conditions(dose[keep], change[keep], n[keep], 10**6, np.ones(200)).singles(1e-9)
    np.testing.assert_allclose(found[0], effect[0], atol=0.05)


def test_changes_need_both_sides():
    x, dose = np.zeros((4, 2)), np.zeros((4, 1))
    assert condition_changes(x, dose, np.ones(4, dtype=bool)) is None
    assert condition_changes(x, dose + 1, np.zeros(4, dtype=bool)) is None
