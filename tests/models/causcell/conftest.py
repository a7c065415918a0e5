"""Models trained once on cells whose concepts cause each other, with and without the graph."""

from __future__ import annotations

import pytest
from anndata import AnnData
from concept_case import fitted, simulated

from sccausal.models import CausCell


@pytest.fixture(scope="session")
def cells() -> AnnData:
    return simulated()


@pytest.fixture(scope="session")
def held_out(cells) -> AnnData:
    return cells[int(0.8 * cells.n_obs) :].copy()


@pytest.fixture(scope="session")
def model(cells) -> CausCell:
    return fitted(cells)


@pytest.fixture(scope="session")
def independent(cells) -> CausCell:
    return fitted(cells, dag=None, epochs=90)
