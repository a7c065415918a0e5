from __future__ import annotations

import _thread
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from sccausal._errors import NumericalError


class Snapshots(Callback):
    """State of the module before each epoch, taken before the guard could act on it."""

    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({k: v.clone() for k, v in pl_module.module.named_parameters()})


def equal(module, state):
    return all(torch.equal(p, state[k]) for k, p in module.named_parameters())


def test_names_the_loss_part_and_restores(make_model, fit):
    model, snapshots = make_model(bad_epoch=2), Snapshots()
    with pytest.raises(NumericalError, match="epoch 2: the loss part 'kl_local'.*2 finished epoch"):
        fit(model, 5, callbacks=[snapshots])
    assert len(snapshots.states) == 2
    assert equal(model.module, snapshots.states[-1])
    assert model.is_trained_ and not model.module.training
    assert len(model.history["train_loss"]) == 2
    assert len(model.train_indices) == 180


def test_first_epoch_leaves_the_initial_weights(make_model, fit):
    model = make_model(bad_epoch=0)
    start = {k: v.detach().clone() for k, v in model.module.named_parameters()}
    with pytest.raises(NumericalError, match="weights before training"):
        fit(model, 2)
    assert equal(model.module, start)
    assert not model.is_trained_


def test_names_the_input(make_model, fit):
    model = make_model()
    model.adata.X[:, 3] = np.nan
    with pytest.raises(NumericalError, match="the input 'X' is not finite"):
        fit(model, 2)


def test_names_the_distribution_that_refused(make_model, fit):
    model = make_model()
    generative = model.module.generative

    def overflow(z):
        if model.module.epoch == 1:
            torch.distributions.Normal(z * float("nan"), 1.0, validate_args=True)
        return generative(z)

    model.module.generative = overflow
    with pytest.raises(NumericalError, match="parameter loc of a distribution.*1 finished epoch"):
        fit(model, 2)
    assert model.is_trained_


def test_other_errors_pass_unchanged(make_model, fit):
    model = make_model()
    model.module.generative = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(model, 2)
    model.module.generative = lambda z: int("x")
    with pytest.raises(ValueError, match="invalid literal"):
        fit(model, 2)


def test_names_the_gradient(make_model, fit):
    model = make_model()
    model.module.decoder.weight.register_hook(lambda g: g * float("inf"))
    start = {k: v.detach().clone() for k, v in model.module.named_parameters()}
    with pytest.raises(NumericalError, match="gradient of 'decoder.weight'"):
        fit(model, 2)
    assert equal(model.module, start)


def test_names_the_parameter_that_overflowed(make_model, fit):
    model = make_model()

    def proximal_step(lr):
        if model.module.epoch == 1:
            model.module.A.fill_(float("inf"))

    model.module.proximal_step = proximal_step
    with pytest.raises(NumericalError, match="the parameter 'A'"):
        fit(model, 3)
    assert torch.isfinite(model.module.A).all()


def test_last_step_is_tested_too(make_model, fit):
    model = make_model()
    model.module.proximal_step = lambda lr: model.module.A.fill_(float("nan"))
    with pytest.raises(NumericalError, match="the parameter 'A'"):
        fit(model, 1, batch_size=200)
    assert torch.isfinite(model.module.A).all()


class Interrupt(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2 and batch_idx == 1:
            _thread.interrupt_main()
            # the signal arrives at the next instruction of the main thread
            for _ in range(1000):
                pass


@pytest.fixture
def interruptible():
    # a shell starts background jobs with the signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_leaves_a_usable_model(make_model, fit):
    model = make_model()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="epoch 2"):
        fit(model, 5, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.is_trained_ and not model.module.training
    assert len(model.history["train_loss"]) == 2
    fit(model, 1)
    assert len(model.history["train_loss"]) == 3


def test_system_exit_of_the_user_is_passed_on(make_model, fit):
    class Leave(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        fit(make_model(), 2, callbacks=[Leave()])
