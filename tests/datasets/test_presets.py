from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from anndata import AnnData

from sccausal.datasets import simulate_perturb_seq
from sccausal.datasets._parameters import PRESETS, VERSION
from sccausal.datasets._perturb_seq import log_normalised

# mean over seeds 1000-1004; the wide band allows for other seeds, not for another simulator
FLOORS = {
    "mild": {"additive": 0.043, "duplicate": 0.018},
    "strong": {"additive": 0.135, "duplicate": 0.055},
}


def test_presets_are_frozen():
    digest = hashlib.sha256(json.dumps(PRESETS, sort_keys=True).encode()).hexdigest()[:16]
    assert (VERSION, digest) == (1, "473d10f76ce48a31"), "A changed preset is a new version; measure the floors again."


def test_simulated_cells_are_those_of_version_1():
    adata = simulate_perturb_seq(preset="strong", n_cells=300, seed=0, sortability=False)
    weights = adata.uns["truth"]["network"]["weight"]
    assert (len(weights), round(float(weights.sum()), 3), int(adata.X.sum())) == (2134, 1505.601, 576523)


def weighted_errors(adata: AnnData, seed: int) -> dict[str, float]:
    """Weighted MSE of two simple rules on the doubles: weights from one half of the cells, truth is the other."""
    rng = np.random.default_rng(seed)
    values, label = log_normalised(adata.X), adata.obs["intervention"].astype(str).to_numpy()
    control = values[label == "control"]
    base = control.mean(axis=0)
    errors: dict[str, list[float]] = {"additive": [], "duplicate": []}
    for double in [c for c in adata.obs["intervention"].cat.categories if "+" in c]:
        cells = rng.permutation(np.flatnonzero(label == double))
        truth, half = values[cells[::2]].mean(axis=0), values[cells[1::2]]
        se = np.sqrt(half.var(axis=0, ddof=1) / len(half) + control.var(axis=0, ddof=1) / len(control)) + 1e-8
        t = np.abs(half.mean(axis=0) - base) / se
        weight = ((t - t.min()) / (t.max() - t.min())) ** 2
        additive = sum(values[label == gene].mean(axis=0) for gene in double.split("+")) - base
        for name, guess in (("additive", additive), ("duplicate", half.mean(axis=0))):
            errors[name].append(float(np.average((guess - truth) ** 2, weights=weight)))
    return {name: float(np.mean(found)) for name, found in errors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(FLOORS))
def test_floors_of_simple_rules(preset):
    runs = []
    for seed in range(1000, 1005):
        runs.append(weighted_errors(simulate_perturb_seq(preset=preset, seed=seed, sortability=False), seed))
    for rule, floor in FLOORS[preset].items():
        assert np.mean([run[rule] for run in runs]) == pytest.approx(floor, rel=0.15)
