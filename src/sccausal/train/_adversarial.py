"""The alternating option: a discriminator with its own optimizer and its own number of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sccausal._errors import SetupError
from sccausal.train._groups import parameter_groups
from sccausal.train._plan import CausalTrainingPlan


class AdversarialCausalTrainingPlan(CausalTrainingPlan):
    """Training plan with two optimizers, for adversaries that need more steps than the encoder.

    Where one step each is enough, :func:`sccausal.nn.adversary.adversarial_losses` and
    :class:`CausalTrainingPlan` do the same in one backward pass, with accumulation of gradients.

    For each minibatch the adversary is updated ``n_adversary_steps`` times on ``module.adversary_loss(batch)``, then
    all other parameters once on ``module.loss``. The module needs

    - ``adversary_parameters() -> iterable``: parameters of the discriminator(s);
    - ``adversary_loss(batch) -> 0-d tensor``: their loss on features without gradient.

    Parameters
    ----------
    module
        Module to train.
    n_adversary_steps
        Updates of the adversary per minibatch.
    adversary_lr
        Learning rate of the adversary; ``lr`` if ``None``.
    adversary_weight_decay
        Weight decay of the adversary.
    **kwargs
        Arguments of :class:`CausalTrainingPlan`. ``gradient_clip_val`` applies to each optimizer; the trainer's own
        clipping and accumulation are not available with two optimizers.

    Raises
    ------
    SetupError
        The module has no adversary, or ``n_adversary_steps`` is below 1.

    Examples
    --------
    >>> from sccausal.models import CausalModel
    >>> from sccausal.train import AdversarialCausalTrainingPlan
    >>> class MyModel(CausalModel):  # its module offers adversary_loss and adversary_parameters
    ...     _training_plan_cls = AdversarialCausalTrainingPlan
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        n_adversary_steps: int = 1,
        adversary_lr: float | None = None,
        adversary_weight_decay: float = 1e-6,
        **kwargs: Any,
    ):
        for hook in ("adversary_parameters", "adversary_loss"):
            if not callable(getattr(module, hook, None)):
                raise SetupError(f"{type(module).__name__} has no {hook}(), which the alternating option needs.")
        if n_adversary_steps < 1:
            raise SetupError(f"n_adversary_steps must be 1 or more; found {n_adversary_steps}.")
        super().__init__(module, **kwargs)
        self.automatic_optimization = False
        self.n_adversary_steps = int(n_adversary_steps)
        self.adversary_lr = self.lr if adversary_lr is None else float(adversary_lr)
        self.adversary_weight_decay = float(adversary_weight_decay)

    def configure_optimizers(self) -> Any:
        """The optimizers of the model and of the adversary, and the scheduler of the first if it is wanted."""
        adversary = [p for p in self.module.adversary_parameters() if p.requires_grad]
        creator = self.get_optimizer_creator()
        main = creator(parameter_groups(self.module, self.lr, exclude=adversary))
        group = {
            "params": adversary,
            "name": "adversary",
            "lr": self.adversary_lr,
            "weight_decay": self.adversary_weight_decay,
        }
        optimizers = [main, creator([group])]
        if not self.reduce_lr_on_plateau:
            return optimizers
        return optimizers, [self._plateau(main)]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        """Update the adversary, then the model."""
        main, adversary = self.optimizers()
        for _ in range(self.n_adversary_steps):
            loss = self.module.adversary_loss(batch)
            self._step(adversary, loss)
        self._means.add("adversary_loss_train", loss)
        loss = super().training_step(batch, batch_idx)
        self._step(main, loss)
        # the model's loss passes through the adversary; what it leaves there is not for the next step
        adversary.zero_grad()
        self._proximal(main)
        return {"loss": loss.detach()}

    def _step(self, optimizer: Any, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.gradient_clip_val is not None:
            self.clip_gradients(optimizer, self.gradient_clip_val, "norm")
        optimizer.step()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step; the proximal operator follows once per minibatch."""
        optimizer.step(closure=optimizer_closure)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the groups that rest in this epoch; the adversary never rests."""
        if optimizer.param_groups[0].get("name") != "adversary":
            super().on_before_optimizer_step(optimizer)

    def on_train_epoch_end(self) -> None:
        """Update the multiplier and step the scheduler, which no one else does with two optimizers."""
        super().on_train_epoch_end()
        scheduler = self.lr_schedulers()
        if scheduler is None:
            return
        value = self.trainer.callback_metrics.get(self.lr_scheduler_metric)
        if value is not None:
            scheduler.step(value)
