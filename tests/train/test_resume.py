from __future__ import annotations

import pandas as pd
import pytest
import scvi
import torch
from lightning.pytorch.callbacks import Callback

from sccausal._errors import FileFormatError, SetupError
from sccausal.train._resume import read_resume, resume_path


class Killed(BaseException):
    pass


class Kill(Callback):
    """End the run inside an epoch, as a kill would."""

    def __init__(self, epoch, batch=1):
        self.at = (epoch, batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Killed


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
    )


OPTIONS = {"lr": 1e-2, "lagrangian_every": 2, "alternate": (1, 1)}


@pytest.mark.parametrize("early_stopping", [False, True])
def test_resumed_run_equals_one_that_was_never_stopped(make_model, fit, tmp_path, early_stopping):
    kwargs = {"plan_kwargs": OPTIONS, "early_stopping": early_stopping}
    whole = fit(make_model(), 6, **kwargs)
    with pytest.raises(Killed):
        fit(make_model(), 6, checkpoint_dir=tmp_path, callbacks=[Kill(3)], **kwargs)
    scvi.settings.seed = 11
    fresh = make_model(seed=0)
    for p in fresh.module.parameters():
        p.data.normal_()
    resumed = fit(fresh, 6, checkpoint_dir=tmp_path, **kwargs)
    assert same(whole, resumed)
    assert [c[0] for c in resumed.module.calls] == [3, 4, 5]
    assert set(whole.history) == set(resumed.history)
    for name, frame in whole.history.items():
        pd.testing.assert_frame_equal(frame.astype(float), resumed.history[name].astype(float))
    assert resumed.trainer.global_step == whole.trainer.global_step


def test_sparse_checkpoints_resume_from_the_last_written(make_model, fit, tmp_path):
    whole = fit(make_model(), 5)
    with pytest.raises(Killed):
        fit(make_model(), 5, checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[Kill(3)])
    resumed = fit(make_model(), 5, checkpoint_dir=tmp_path, checkpoint_every=2)
    assert resumed.module.calls[0][0] == 2
    assert same(whole, resumed)


def test_states_of_callbacks_continue(make_model, fit, tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"model": Evil()}

    class Count(Callback):
        n = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.n += 1

        def state_dict(self):
            return {"n": self.n}

        def load_state_dict(self, state):
            self.n = state["n"]

    with pytest.raises(Killed):
        fit(make_model(), 4, checkpoint_dir=tmp_path, callbacks=[Count(), Odd(), Kill(3)])
    count = Count()
    fit(make_model(), 4, checkpoint_dir=tmp_path, callbacks=[count, Odd()])
    assert count.n == 4


def test_twice_killed(make_model, fit, tmp_path):
    whole = fit(make_model(), 5)
    for epoch in (2, 4):
        with pytest.raises(Killed):
            fit(make_model(), 5, checkpoint_dir=tmp_path, callbacks=[Kill(epoch)])
    assert same(whole, fit(make_model(), 5, checkpoint_dir=tmp_path))


def test_without_a_seed_the_split_and_the_noise_continue(make_model, fit, tmp_path):
    with pytest.raises(Killed):
        fit(make_model(seed=None), 4, checkpoint_dir=tmp_path, callbacks=[Kill(2)])
    saved = torch.load(resume_path(tmp_path, None), weights_only=True)
    a = fit(make_model(seed=None), 4, checkpoint_dir=tmp_path)
    assert a.train_indices.tolist() == saved["split"]["train_idx"].tolist()
    assert a.module.calls[0][0] == 2


def test_a_finished_run_is_restored(make_model, fit, tmp_path):
    first = fit(make_model(), 3, checkpoint_dir=tmp_path)
    again = fit(make_model(), 3, checkpoint_dir=tmp_path)
    assert same(first, again)
    assert again.is_trained_ and again.module.calls == []
    assert again.train_indices.tolist() == first.train_indices.tolist()
    pd.testing.assert_frame_equal(first.history["elbo_train"].astype(float), again.history["elbo_train"].astype(float))


def test_each_seed_has_its_own_file(make_model, fit, tmp_path):
    runs = [fit(make_model(seed=seed), 2, checkpoint_dir=tmp_path) for seed in (0, 1)]
    assert not same(*runs)
    assert same(runs[1], fit(make_model(seed=1), 2, checkpoint_dir=tmp_path))


def test_another_run_is_refused(make_model, fit, tmp_path):
    fit(make_model(), 2, checkpoint_dir=tmp_path)
    with pytest.raises(SetupError, match="max_epochs: 2 there, 3 now"):
        fit(make_model(), 3, checkpoint_dir=tmp_path)
    with pytest.raises(SetupError, match="plan_kwargs"):
        fit(make_model(), 2, checkpoint_dir=tmp_path, plan_kwargs={"lr": 0.5})
    model = make_model()
    model.adata.obs_names = [f"other{i}" for i in range(200)]
    with pytest.raises(SetupError, match="cells"):
        fit(model, 2, checkpoint_dir=tmp_path)


def test_foreign_and_corrupted_files_are_refused(make_model, fit, tmp_path):
    path = resume_path(tmp_path, 0)
    assert read_resume(resume_path(tmp_path, 0), {}) is None
    path.write_bytes(b"no checkpoint")
    with pytest.raises(FileFormatError, match="remove it"):
        fit(make_model(), 2, checkpoint_dir=tmp_path)
    torch.save({"schema": 99}, path)
    with pytest.raises(FileFormatError, match="schema"):
        read_resume(resume_path(tmp_path, 0), {})


class Evil:
    def __reduce__(self):
        return (open, ("/dev/null",))


def test_no_code_runs_on_reading(tmp_path):
    torch.save({"schema": 1, "evil": Evil()}, resume_path(tmp_path, 0))
    with pytest.raises(FileFormatError):
        read_resume(resume_path(tmp_path, 0), {})


def test_no_half_written_file(make_model, fit, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        fit(make_model(), 4, checkpoint_dir=tmp_path, callbacks=[Kill(2)])
    before = (resume_path(tmp_path, 0)).read_bytes()

    def save(state, file):
        file.write(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(Killed):
        fit(make_model(), 4, checkpoint_dir=tmp_path)
    assert (resume_path(tmp_path, 0)).read_bytes() == before
