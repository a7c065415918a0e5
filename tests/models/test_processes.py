"""The contract across processes: two at a time, and one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "helpers" / "train_case.py"
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def run(case, out: Path, *options: str, code: int = 0) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), case.name, str(out), *options],
        capture_output=True,
        text=True,
        timeout=400,
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=out.parent,
    )
    assert done.returncode == code, done.stderr[-3000:]


def state(out: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(out / f"state{rank}.pt", weights_only=True)


def test_two_processes_end_with_the_same_weights(case, tmp_path):
    run(case, tmp_path / "ddp", "--ddp")
    first, second = state(tmp_path / "ddp"), state(tmp_path / "ddp", 1)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert not value.is_floating_point() or torch.isfinite(value).all(), name
    assert "train_loss" in (tmp_path / "ddp" / "history0.txt").read_text()


def test_a_killed_run_resumes_on_its_path(case, tmp_path):
    run(case, tmp_path / "whole")
    run(case, tmp_path / "cut", "--resume", "--die-at", "2", code=9)
    assert not (tmp_path / "cut" / "state0.pt").exists()
    run(case, tmp_path / "cut", "--resume")
    whole = state(tmp_path / "whole")
    for name, value in state(tmp_path / "cut").items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0, msg=name)
