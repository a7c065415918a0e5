from __future__ import annotations

import math

import pytest
import torch

from sccausal._errors import SetupError
from sccausal.train import CausalTrainingPlan, parameter_groups


def test_history_holds_every_part_per_epoch(make_model, fit):
    model = fit(make_model(), 4, early_stopping=True)
    parts = ["elbo", "reconstruction_loss", "kl_local", "adversary", "confusion", "acyclicity"]
    names = [f"{p}_{m}" for p in parts for m in ("train", "validation")]
    names += ["train_loss", "validation_loss", "kl_weight", "constraint", "multiplier", "penalty", "score_validation"]
    for name in names:
        assert len(model.history[name]) == 4, name
        assert model.history[name].iloc[:, 0].astype(float).map(math.isfinite).all(), name


def test_means_are_those_of_all_cells(make_model, fit):
    # 180 training and 20 validation cells in minibatches of unequal size; nothing moves
    model = make_model()
    frozen = {"lr": 1e-30, "weight_decay": 0.0, "lagrangian_tolerance": 1e9}
    model.module.encoder.requires_grad_(False)
    model.module.inference = lambda x: {
        "qz": torch.distributions.Normal(torch.log1p(x[:, :2]), torch.ones(len(x), 2)),
        "z": torch.log1p(x[:, :2]),
    }
    fit(model, 2, plan_kwargs=frozen, early_stopping=True, batch_size=77)
    x = torch.log1p(torch.as_tensor(model.adata.X))
    with torch.no_grad():
        error = (model.module.generative(x[:, :2])["mean"] - x).square().mean(-1)
    kl = 0.5 * x[:, :2].square().sum(-1) / x.shape[1]
    for rows, mode in ((model.train_indices, "train"), (model.validation_indices, "validation")):
        for name, value in (("reconstruction_loss", error), ("kl_local", kl), ("elbo", error + kl)):
            got = model.history[f"{name}_{mode}"].iloc[:, 0].astype(float).tolist()
            assert got == pytest.approx([float(value[rows].mean())] * 2, rel=1e-4), (name, mode)


def test_score_is_elbo_plus_constraint(make_model, fit):
    model = fit(make_model(), 3, early_stopping=True, plan_kwargs={"score_constraint_weight": 7.0, "lr": 1e-9})
    score = model.history["score_validation"].iloc[:, 0].astype(float)
    elbo = model.history["elbo_validation"].iloc[:, 0].astype(float)
    assert (score - elbo).tolist() == pytest.approx([7.0 * 0.0625] * 3, rel=1e-3)


def test_unknown_plan_kwargs_fail_before_the_first_batch(make_model, fit):
    model = make_model()
    with pytest.raises(SetupError, match="'wramup_fraction'.*'warmup_fraction'"):
        fit(model, plan_kwargs={"wramup_fraction": 0.1})
    with pytest.raises(SetupError, match="did you mean 'domain_weight'"):
        fit(model, plan_kwargs={"domain_wieght": 0.1})
    with pytest.raises(SetupError, match="kl_weight follows"):
        fit(model, plan_kwargs={"kl_weight": 0.1})
    assert model.module.calls == []


def test_loss_arguments_reach_the_loss(make_model, fit):
    model = fit(make_model(), 1, plan_kwargs={"domain_weight": 0.0, "n_steps_kl_warmup": 5})
    gradient_free = model.module.discriminator.net[0].weight.grad
    assert gradient_free is None or not gradient_free.any()


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"warmup_fraction": 1.5},
        {"gradient_clip_val": -1.0},
        {"lagrangian_every": 0},
        {"lagrangian_shrink": 2.0},
        {"alternate": (1, 0)},
        {"alternate": (1, 1), "structure_group": "graph"},
    ],
)
def test_bad_values(make_model, bad):
    with pytest.raises(SetupError):
        CausalTrainingPlan(make_model().module, **bad)


def test_warmup_ends_at_its_fraction(make_model, fit):
    weights = {}
    for n in (6, 12):
        model = fit(make_model(), n, plan_kwargs={"warmup_fraction": 0.5})
        weights[n] = model.history["kl_weight"].iloc[:, 0].astype(float).to_numpy()
        assert weights[n][0] < 2.0 / n
        assert (weights[n][n // 2 :] == 1.0).all()
        assert (weights[n][: n // 2] < 1.0).all()
        assert (weights[n][1:] >= weights[n][:-1]).all()
    # one single epoch still sees the KL term
    model = fit(make_model(), 1, plan_kwargs={"warmup_fraction": 0.5})
    assert 0.3 < float(model.history["kl_weight"].iloc[0, 0]) < 1.0


def test_warmup_can_be_given_in_epochs(make_model, fit):
    model = fit(make_model(), 4, plan_kwargs={"n_epochs_kl_warmup": 2, "max_kl_weight": 0.5})
    assert model.history["kl_weight"].iloc[:, 0].tolist() == [0.0, 0.25, 0.5, 0.5]


def test_groups(make_model):
    module = make_model().module
    groups = parameter_groups(module, 1e-2)
    assert [g["name"] for g in groups] == ["network", "structure"]
    assert groups[1]["lr"] == 2e-3
    counted = sum(p.numel() for g in groups for p in g["params"])
    assert counted == sum(p.numel() for p in module.parameters())
    module.parameter_groups = lambda lr: [{"params": module.A, "name": "a"}, {"params": [module.A], "name": "b"}]
    with pytest.raises(SetupError, match="already in another"):
        parameter_groups(module, 1e-2)


def test_hooks_are_called(make_model, fit):
    module = fit(make_model(), 3, plan_kwargs={"lr": 1e-2}).module
    assert module.calls == [(0, 3), (1, 3), (2, 3)]
    assert module.n_proximal == 9  # 180 cells in batches of 64
    assert module.last_proximal_lr == pytest.approx(2e-3)


class _Recorder:
    """Weights after each epoch."""

    def __new__(cls):
        from lightning.pytorch.callbacks import Callback

        class Recorder(Callback):
            def __init__(self):
                self.states = []

            def on_train_epoch_end(self, trainer, pl_module):
                self.states.append({k: v.clone() for k, v in pl_module.module.named_parameters()})

        return Recorder()


def test_alternation_freezes_groups_in_turn(make_model, fit):
    recorder = _Recorder()
    model = make_model()
    start = {k: v.detach().clone() for k, v in model.module.named_parameters()}
    fit(model, 6, plan_kwargs={"alternate": (1, 2)}, callbacks=[recorder])
    states = [start, *recorder.states]
    for epoch, (old, new) in enumerate(zip(states[:-1], states[1:], strict=True)):
        graph_moved = not torch.equal(old["A"], new["A"])
        network_moved = not torch.equal(old["decoder.weight"], new["decoder.weight"])
        assert (graph_moved, network_moved) == ((False, True) if epoch % 3 == 0 else (True, False))
    assert model.module.n_proximal == 4 * 3


def test_clipping_bounds_the_gradient(make_model, fit):
    from lightning.pytorch.callbacks import Callback

    class Norms(Callback):
        def __init__(self):
            self.norms = []

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            if grads:
                self.norms.append(float(torch.stack(grads).norm()))

    free, clipped = Norms(), Norms()
    fit(make_model(), 2, callbacks=[free])
    fit(make_model(), 2, callbacks=[clipped], plan_kwargs={"gradient_clip_val": 0.01})
    assert max(free.norms) > 0.05
    assert 0 < max(clipped.norms) <= 0.01 * (1 + 1e-4)


def test_lagrangian_drives_the_constraint_to_zero(make_model, fit):
    options = {"lr": 2e-2, "lagrangian_every": 2, "lagrangian_max_penalty": 1e4}
    free = fit(make_model(), 30, plan_kwargs=options | {"lagrangian_tolerance": 1e9})
    model = fit(make_model(), 30, plan_kwargs=options)
    h = model.history["constraint"].iloc[:, 0].astype(float)
    multiplier = model.history["multiplier"].iloc[:, 0].astype(float)
    penalty = model.history["penalty"].iloc[:, 0].astype(float)
    assert h.iloc[-1] < 0.1 * h.iloc[0]
    assert h.iloc[-1] < 0.1 * float(free.history["constraint"].iloc[-1, 0])
    assert multiplier.is_monotonic_increasing
    assert penalty.max() <= 1e4
    assert multiplier.iloc[0] == 0.0 < multiplier.iloc[1]
    assert float(model.module.lagrangian_multiplier) == pytest.approx(multiplier.iloc[-1])


def test_lagrangian_rests_below_its_tolerance(make_model, fit):
    model = fit(make_model(), 4, plan_kwargs={"lagrangian_tolerance": 1.0, "lagrangian_every": 1})
    assert model.history["multiplier"].iloc[:, 0].tolist() == [0.0] * 4


def test_lr_scheduler(make_model, fit):
    options = {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e6, "lr_factor": 0.5}
    model = fit(make_model(), 4, plan_kwargs=options, early_stopping=True)
    rates = [g["lr"] for g in model.trainer.optimizers[0].param_groups]
    assert rates[0] == pytest.approx(1e-3 * 0.5**3)
    assert rates[1] == pytest.approx(2e-4 * 0.5**3)


def test_early_stopping_monitors_the_score(make_model, fit):
    model = fit(make_model(), 50, early_stopping=True, early_stopping_patience=2, early_stopping_min_delta=1e3)
    assert len(model.history["train_loss"]) == 3
    assert model.trainer.early_stopping_callback.monitor == "score_validation"
