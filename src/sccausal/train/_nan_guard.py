"""Stop on values that are not finite, name them and give back the last good weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from sccausal._errors import NumericalError

logger = logging.getLogger(__name__)


class NanGuard(Callback):
    """Stops training before a value that is not finite reaches the weights.

    Before each optimizer step the loss and the norms of all gradients are tested with a single transfer from the
    device. At the start of each epoch the weights are copied into CPU memory that is allocated once. On a failure
    the copy is restored and :class:`~sccausal.NumericalError` names the first affected input, parameter, part of
    the loss or gradient. A distribution that refuses such values in the forward pass is recognised as well; then
    ``error`` holds what the runner raises.

    Examples
    --------
    >>> from sccausal.train import NanGuard
    >>> guard = NanGuard()  # a callback; train() of every model has one
    >>> guard.error is None
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._good: dict[str, torch.Tensor] = {}
        self._batch: Any = None
        self.good_epochs = 0
        self.error: NumericalError | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the copy of an earlier run."""
        self._good, self._batch, self.good_epochs, self.error = {}, None, 0, None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights with which the last epoch ended."""
        self._check_weights(trainer, pl_module)
        for name, value in pl_module.state_dict().items():
            if name in self._good:
                self._good[name].copy_(value)
            else:
                self._good[name] = value.detach().to("cpu", copy=True)
        self.good_epochs = trainer.current_epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the minibatch at hand, to name an input that is not finite."""
        self._batch = batch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the minibatch go."""
        self._batch = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Test the loss and all gradients at once."""
        loss = getattr(pl_module, "loss_parts", {}).get("loss")
        tensors = [] if loss is None else [loss.float()]
        # half precision scales the loss and skips steps with infinite gradients by itself
        if getattr(trainer, "precision", None) != "16-mixed":
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            tensors += [n.float() for n in torch._foreach_norm(grads)] if grads else []
        if tensors and not bool(torch.isfinite(torch.stack(tensors)).all()):
            self._stop(trainer, pl_module, self._culprit(pl_module))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Recognise a failure of the forward pass that comes from values which are not finite."""
        # torch's distributions raise on such values before there is a loss to test
        text = str(exception)
        if not isinstance(exception, ValueError) or "found invalid values" not in text:
            return
        named = text.split(" of shape")[0].removeprefix("Expected ").split(" (")[0]
        what = (
            _first_bad(_flat(self._batch), "the input")
            or _first_bad(_parameters(pl_module), "the parameter")
            or f"the {named} of a distribution"
        )
        self.restore(pl_module)
        self.error = self._describe(trainer, what)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test the weights a last time and free the copy."""
        self._check_weights(trainer, pl_module)
        self._good = {}

    def restore(self, pl_module: pl.LightningModule) -> None:
        """Write the last good weights back."""
        if self._good:
            pl_module.load_state_dict(self._good)

    def _check_weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # a finite gradient can still overflow in the step itself
        params = [p.detach() for p in pl_module.parameters() if p.is_floating_point()]
        if params and not bool(torch.isfinite(torch.stack(torch._foreach_norm(params, float("inf")))).all()):
            self._stop(trainer, pl_module, _first_bad(_parameters(pl_module), "the parameter") or "a parameter")

    def _culprit(self, pl_module: pl.LightningModule) -> str:
        parts = dict(getattr(pl_module, "loss_parts", {}))
        total = parts.pop("loss", None)
        gradients = ((n, p.grad) for n, p in _named(pl_module) if p.grad is not None)
        return (
            _first_bad(_flat(self._batch), "the input")
            or _first_bad(_parameters(pl_module), "the parameter")
            or _first_bad(parts.items(), "the loss part")
            or _first_bad([("loss", total)] if total is not None else [], "the")
            or _first_bad(gradients, "the gradient of")
            or "the norm of a gradient"
        )

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str) -> None:
        self.restore(pl_module)
        raise self._describe(trainer, what)

    def _describe(self, trainer: pl.Trainer, what: str) -> NumericalError:
        done = self.good_epochs
        kept = f"the weights after {done} finished epoch(s)" if done else "the weights before training"
        return NumericalError(
            f"Training stopped in epoch {trainer.current_epoch}: {what} is not finite. {kept.capitalize()} are "
            "restored. A smaller learning rate (plan_kwargs={'lr': ...}), gradient_clip_val in plan_kwargs, or a "
            "look at extreme values in the data usually helps."
        )


def _named(pl_module: pl.LightningModule) -> Iterable[tuple[str, torch.nn.Parameter]]:
    return ((name.removeprefix("module."), p) for name, p in pl_module.named_parameters())


def _parameters(pl_module: pl.LightningModule) -> Iterable[tuple[str, torch.Tensor]]:
    return ((name, p.detach()) for name, p in _named(pl_module))


def _flat(batch: Any, prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(batch, torch.Tensor):
        yield prefix or "batch", batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))


def _first_bad(named: Iterable[tuple[str, torch.Tensor]], kind: str) -> str | None:
    for name, value in named:
        if value.layout is torch.strided and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"{kind} {name!r}" if kind != "the" else f"the {name}"
    return None
