"""Training plan of CITE-VAE: the shared plan with a learning rate that falls."""

from __future__ import annotations

import math
from typing import Any

import torch

from sccausal._errors import SetupError
from sccausal.train import CausalTrainingPlan


class DecayingPlan(CausalTrainingPlan):
    """Plan whose learning rate falls along a cosine over the epochs of a run.

    Parameters
    ----------
    module
        Module to train.
    lr
        Learning rate of the first epoch.
    final_lr
        Share of ``lr`` that is left in the last epoch; 1 keeps it constant.
    gradient_clip_val
        Largest Euclidean norm of all gradients together.
    **kwargs
        Further arguments of :class:`~sccausal.train.CausalTrainingPlan`.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        lr: float = 2e-3,
        final_lr: float = 0.05,
        gradient_clip_val: float | None = 5.0,
        **kwargs: Any,
    ) -> None:
        if not 0 < final_lr <= 1:
            raise SetupError(f"final_lr must be above 0 and at most 1, got {final_lr}.")
        super().__init__(module, lr=lr, gradient_clip_val=gradient_clip_val, **kwargs)
        self.final_lr = final_lr

    def on_train_epoch_start(self) -> None:
        """Set the learning rate of the epoch; a function of the epoch alone, so that a resumed run takes it up."""
        super().on_train_epoch_start()
        if self.n_epochs is None or self.reduce_lr_on_plateau:
            return
        share = self.current_epoch / max(self.n_epochs - 1, 1)
        factor = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * share))
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("first_lr", group["lr"]) * factor
