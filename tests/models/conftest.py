from __future__ import annotations

import pytest
import scvi
import torch
from contract_cases import CASES, Case

from sccausal.models import CausalModel

_TRAINED: dict[str, CausalModel] = {}


@pytest.fixture(autouse=True)
def _quiet_run(tmp_path, monkeypatch):
    """One thread, the default seed, and log files away from the repository."""
    monkeypatch.setattr(scvi.settings, "logging_dir", str(tmp_path / "log"), raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    yield
    torch.set_num_threads(threads)


def _params() -> list:
    return [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in CASES]


@pytest.fixture(params=_params())
def case(request) -> Case:
    return request.param


@pytest.fixture
def trained(case) -> CausalModel:
    """Trained model of the case, made once; tests must not change it."""
    if case.name not in _TRAINED:
        _TRAINED[case.name] = case.trained()
    return _TRAINED[case.name]
