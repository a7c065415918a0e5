from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from scvi.train import SaveCheckpoint

from sccausal._errors import SetupError
from sccausal.train._mixin import _as_split, default_epochs


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.module.parameters()])


def test_same_seed_same_weights(make_model, fit):
    a, b, c = make_model(), make_model(), make_model(seed=1)
    fit(a, 2)
    torch.rand(17)
    np.random.rand(3)  # noqa: NPY002
    fit(b, 2)
    fit(c, 2)
    assert torch.equal(weights(a), weights(b))
    assert not torch.allclose(weights(a), weights(c))


def test_noise_differs_between_epochs(make_model, fit):
    drawn = []
    model = make_model()
    model.module.on_epoch_start = lambda epoch, n: drawn.append(torch.rand(3))
    fit(model, 3)
    assert len({tuple(d.tolist()) for d in drawn}) == 3


def test_without_a_seed_runs_differ_but_follow_torch(make_model, fit):
    results = []
    for seed in (5, 5, 6):
        model = make_model(seed=None)
        scvi.settings._seed = None
        torch.manual_seed(seed)
        results.append(weights(fit(model, 1, shuffle_set_split=False)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_unknown_argument(make_model, fit):
    with pytest.raises(SetupError, match="did you mean 'max_epochs'"):
        make_model().train(max_epoch=3)


@pytest.mark.parametrize(("n", "epochs"), [(10, 400), (20_000, 400), (40_000, 200), (10**6, 8), (10**8, 1)])
def test_default_epochs(n, epochs):
    assert default_epochs(n) == epochs


def test_early_stopping_needs_validation_cells(make_model, fit):
    with pytest.raises(SetupError, match="validation cells"):
        fit(make_model(), 2, early_stopping=True, train_size=1.0)


def test_a_single_callback_is_taken(make_model, fit):
    from lightning.pytorch.callbacks import Callback

    class Count(Callback):
        n = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.n += 1

    count = Count()
    fit(make_model(), 2, callbacks=count)
    assert count.n == 2


def test_external_indexing(make_model, fit):
    train, validation = np.arange(0, 100), np.arange(100, 120)
    model = fit(make_model(), 1, external_indexing=[train, validation])
    assert model.train_indices.tolist() == train.tolist()
    assert model.validation_indices.tolist() == validation.tolist()
    assert model.test_indices.tolist() == list(range(120, 200))


def test_split_object_is_an_external_indexing():
    class Split:
        train, validation, test = np.array([3, 1]), None, np.array([0])

    parts = _as_split(Split(), 4)
    assert [p.tolist() for p in parts] == [[3, 1], [], [0, 2]]


@pytest.mark.parametrize(
    "bad", [[[0, 0]], [[0], [0]], [[5]], [[-1]], [[]], [], "abc", {"train": [0]}, [[0], [1], [2], [3]]]
)
def test_bad_external_indexing(bad):
    with pytest.raises(SetupError, match="external_indexing"):
        _as_split(bad, 4)


def test_a_rest_of_one_cell_is_no_minibatch(make_model, fit):
    sizes = []
    model = make_model()
    model.module.inference_, model.module.inference = model.module.inference, None

    def inference(x):
        sizes.append(len(x))
        return model.module.inference_(x)

    model.module.inference = inference
    fit(model, 1, batch_size=179)
    assert sizes == [179]
    assert len(model.train_indices) == 180


def test_further_training_continues_the_history(make_model, fit):
    model = fit(make_model(), 2)
    fit(model, 3, early_stopping=True)
    assert len(model.history["train_loss"]) == 5
    assert len(model.history["score_validation"]) == 3


def test_progress_bar_and_caller_callbacks(make_model, fit, capsys):
    callbacks = []
    fit(make_model(), 2, enable_progress_bar=True, callbacks=callbacks)
    assert "Epoch 2/2" in capsys.readouterr().out
    assert callbacks == []


def test_scvi_checkpoints_work_beside_resumption(make_model, fit, tmp_path):
    save = SaveCheckpoint(dirpath=str(tmp_path / "best"), monitor="score_validation")
    model = fit(make_model(), 3, callbacks=[save], checkpoint_dir=tmp_path / "resume")
    assert model.is_trained_
    assert len(list((tmp_path / "best").iterdir())) == 1
    assert (tmp_path / "resume" / "resume-0.ckpt").exists()
