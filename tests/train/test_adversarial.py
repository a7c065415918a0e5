from __future__ import annotations

import pytest
import torch

from sccausal._errors import NumericalError, SetupError
from sccausal.train import AdversarialCausalTrainingPlan


@pytest.fixture
def alternating(make_model):
    def make(**kwargs):
        model = make_model(**kwargs)
        model._training_plan_cls = AdversarialCausalTrainingPlan
        return model

    return make


def test_trains_with_its_own_number_of_steps(alternating, fit):
    model = alternating()
    calls = []
    loss = model.module.adversary_loss
    model.module.adversary_loss = lambda batch: calls.append(1) or loss(batch)
    fit(model, 2, plan_kwargs={"n_adversary_steps": 3})
    assert len(calls) == 2 * 3 * 3
    assert model.module.n_proximal == 2 * 3
    assert len(model.history["adversary_loss_train"]) == 2
    assert len(model.history["multiplier"]) == 2


def test_each_optimizer_moves_its_own_parameters(alternating, fit):
    for frozen, options in (("decoder.weight", {"lr": 1e-30}), ("discriminator.net.0.weight", {"adversary_lr": 1e-30})):
        model = alternating()
        before = {k: v.detach().clone() for k, v in model.module.named_parameters()}
        fit(model, 1, plan_kwargs={"adversary_lr": 1e-2, "weight_decay": 0.0, "adversary_weight_decay": 0.0} | options)
        after = dict(model.module.named_parameters())
        moved = {k for k in ("decoder.weight", "discriminator.net.0.weight") if not torch.equal(before[k], after[k])}
        assert moved == {"decoder.weight", "discriminator.net.0.weight"} - {frozen}


def test_clips_alternates_and_schedules(alternating, fit):
    options = {
        "gradient_clip_val": 1e-3,
        "alternate": (1, 1),
        "reduce_lr_on_plateau": True,
        "lr_patience": 0,
        "lr_threshold": 1e6,
        "lr_factor": 0.5,
    }
    model = alternating()
    fit(model, 3, plan_kwargs=options, early_stopping=True)
    main, adversary = model.trainer.optimizers
    assert main.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.25)
    assert adversary.param_groups[0]["lr"] == 1e-3
    assert adversary.param_groups[0]["name"] == "adversary"


def test_guard_and_resumption_hold_here_too(alternating, fit, tmp_path):
    with pytest.raises(NumericalError, match="kl_local"):
        fit(alternating(bad_epoch=1), 3)
    whole = fit(alternating(), 4)
    with pytest.raises(NumericalError):
        fit(alternating(bad_epoch=2), 4, checkpoint_dir=tmp_path)
    resumed = fit(alternating(), 4, checkpoint_dir=tmp_path)
    assert resumed.module.calls[0][0] == 2
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.trainer.global_step == resumed.trainer.global_step


def test_needs_an_adversary(make_model):
    module = make_model().module
    with pytest.raises(SetupError, match="1 or more"):
        AdversarialCausalTrainingPlan(module, n_adversary_steps=0)
    module.adversary_loss = None
    with pytest.raises(SetupError, match="adversary_loss"):
        AdversarialCausalTrainingPlan(module)
