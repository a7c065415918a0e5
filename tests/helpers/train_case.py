"""Train one case of the contract in a process of its own: ``train_case.py CASE OUT [--ddp] [--die-at EPOCH]``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from contract_cases import CASES
from lightning.pytorch.callbacks import Callback


class Die(Callback):
    """Ends the process as a kill would: nothing is flushed or cleaned up."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            os._exit(9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ddp", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die-at", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = next(c for c in CASES if c.name == args.case)
    model = case.fresh()
    options = {**case.train, "max_epochs": 4}
    if args.ddp:
        options |= {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}
    if args.resume:
        options["checkpoint_dir"] = args.out / "resume"
    if args.die_at is not None:
        options["callbacks"] = [Die(args.die_at)]
    model.train(**options)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(model.module.state_dict(), args.out / f"state{rank}.pt")
    (args.out / f"history{rank}.txt").write_text(" ".join(sorted(model.history or {})))


if __name__ == "__main__":
    main()
