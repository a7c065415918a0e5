"""Several processes, and a process that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

PREAMBLE = """
import importlib.util, json, os, sys, warnings
import numpy as np, scvi, torch
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("toy", os.environ["TOY"])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
scvi.settings.seed = 0
adata = toy.toy_data()
toy.ToyModel.setup_anndata(adata, batch_key="batch")
out = os.environ["OUT"]
rank = int(os.environ.get("LOCAL_RANK", 0))

def weights(model):
    return torch.cat([v.flatten().double() for v in model.module.state_dict().values()])
"""


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "run.py"
    path.write_text(PREAMBLE + textwrap.dedent(body))
    return path


def run(path: Path, *, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "TOY": str(HERE / "conftest.py"),
        "OUT": str(path.parent),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, str(path)], env=environment | env, cwd=path.parent, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "plan", ["CausalTrainingPlan", pytest.param("AdversarialCausalTrainingPlan", marks=pytest.mark.slow)]
)
def test_two_processes_train_one_model(tmp_path, plan):
    body = f"""
    import sccausal.train
    model = toy.ToyModel(adata)
    model._training_plan_cls = sccausal.train.{plan}
    model.train(
        4, accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", batch_size=32,
        enable_progress_bar=False, check_val_every_n_epoch=1, checkpoint_dir=out + "/resume",
        plan_kwargs={{"lr": 1e-2, "lagrangian_every": 1}},
    )
    torch.save(weights(model), f"{{out}}/partial{{rank}}")
    os.replace(f"{{out}}/partial{{rank}}", f"{{out}}/weights{{rank}}.pt")
    if rank == 0:
        history = {{k: v.iloc[:, 0].astype(float).tolist() for k, v in model.history.items()}}
        json.dump(history, open(out + "/history.json", "w"))
    """
    run(script(tmp_path, body))
    waited = time.monotonic() + 30  # the second process ends by itself, later than the one that was started here
    while not (tmp_path / "weights1.pt").exists() and time.monotonic() < waited:
        time.sleep(0.1)
    first, second = (torch.load(tmp_path / f"weights{rank}.pt") for rank in (0, 1))
    # weights, multipliers and moving averages
    assert torch.equal(first, second)
    history = json.loads((tmp_path / "history.json").read_text())
    for name in ("elbo_train", "adversary_train", "confusion_validation", "multiplier", "penalty", "score_validation"):
        assert len(history[name]) == 4, name
    assert (tmp_path / "resume" / "resume-0.ckpt").exists()


@pytest.mark.multiprocess
def test_a_killed_process_is_continued(tmp_path, make_model, fit):
    body = """
    from lightning.pytorch.callbacks import Callback

    class Kill(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 3 and batch_idx == 1:
                os.kill(os.getpid(), 9)

    kill, name = os.environ["KILL"] == "1", os.environ["NAME"]
    model = toy.ToyModel(adata)
    model.train(
        6, accelerator="cpu", batch_size=64, enable_progress_bar=False, checkpoint_dir=f"{out}/{name}",
        callbacks=[Kill()] if kill else None,
    )
    torch.save({"weights": weights(model), "epochs": [c[0] for c in model.module.calls]}, f"{out}/{name}.pt")
    """
    path = script(tmp_path, body)
    assert run(path, check=False, KILL="1", NAME="killed").returncode == -9
    run(path, KILL="0", NAME="killed")
    killed = torch.load(tmp_path / "killed.pt")
    assert killed["epochs"] == [3, 4, 5]
    whole = fit(make_model(), 6).module.state_dict()
    whole = torch.cat([v.flatten().double() for v in whole.values()])
    assert torch.allclose(whole, killed["weights"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_plain_ddp_gets_a_hint(tmp_path):
    body = """
    model = toy.ToyModel(adata)
    model.module.unused = torch.nn.Parameter(torch.zeros(3))
    model.train(2, accelerator="cpu", devices=2, strategy="ddp", batch_size=32, enable_progress_bar=False)
    """
    done = run(script(tmp_path, body), check=False)
    assert done.returncode != 0
    assert "SetupError" in done.stderr and "ddp_find_unused_parameters_true" in done.stderr
