"""The contract every model keeps; each test runs over all cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback

from sccausal._errors import InputDataError, NumericalError, SetupError, UnknownNameError
from sccausal.data import KEYS
from sccausal.grn import Network
from sccausal.models import IdentifiabilityReport


def content(adata: AnnData) -> dict:
    """What a user sees of an AnnData, as copies."""
    matrix = adata.X.toarray() if hasattr(adata.X, "toarray") else np.array(adata.X)
    return {
        "X": matrix,
        "obs": adata.obs.copy(),
        "obsm": set(adata.obsm),
        "uns": set(adata.uns),
        "layers": set(adata.layers),
        "var": adata.var.copy(),
    }


def assert_unchanged(adata: AnnData, before: dict) -> None:
    after = content(adata)
    np.testing.assert_array_equal(after["X"], before["X"])
    pd.testing.assert_frame_equal(after["obs"], before["obs"])
    pd.testing.assert_frame_equal(after["var"], before["var"])
    for slot in ("obsm", "uns", "layers"):
        assert after[slot] == before[slot]


def plain(adata: AnnData) -> AnnData:
    """The cells without scvi-tools' notes, as a user would load them."""
    obs = adata.obs[[c for c in adata.obs if not c.startswith("_scvi")]].copy()
    return AnnData(adata.X.copy(), obs=obs, var=adata.var.copy(), layers={k: v.copy() for k, v in adata.layers.items()})


def labels_of(model) -> np.ndarray:
    return np.array(model.codec.decode(model.adata_manager.get_from_registry(KEYS.INTERVENTION)), dtype=object)


def cells_under(model, case, label: str) -> AnnData:
    """Cells of the model under one intervention, whatever the order of its targets in the label."""
    return plain(model.adata)[labels_of(model) == label].copy()


def observed_mean(model, case, label: str) -> np.ndarray:
    cells = cells_under(model, case, label)
    matrix = cells.X if case.setup.get("layer") is None else cells.layers[case.setup["layer"]]
    dense = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=float)
    if model.prediction_units == "counts":
        dense = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
    return dense.mean(axis=0)


# 1. set-up ---------------------------------------------------------------------------------------------------------


def test_misspelt_key_is_named_and_adata_untouched(case):
    adata = case.data(0)
    before = content(adata)
    with pytest.raises(SetupError, match=case.key[:-1]):
        case.model.setup_anndata(adata, **{k: v[:-1] if v == case.key else v for k, v in case.setup.items()})
    assert_unchanged(adata, before)


def test_wrong_control_is_named_and_adata_untouched(case):
    adata = case.data(0)
    before = content(adata)
    with pytest.raises(SetupError, match="contrl"):
        case.model.setup_anndata(adata, **{**case.setup, "control": "contrl"})
    assert_unchanged(adata, before)


def test_error_while_registering_leaves_adata_untouched(case, monkeypatch):
    from sccausal.data import InterventionField

    adata = case.data(0)
    before = content(adata)

    def fail(self, adata):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(InterventionField, "register_field", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        case.model.setup_anndata(adata, **case.setup)
    assert_unchanged(adata, before)


def test_a_view_is_refused(case):
    adata = case.data(0)
    with pytest.raises(SetupError, match="view"):
        case.model.setup_anndata(adata[:50], **case.setup)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(case, bad):
    adata = plain(case.data(0))
    matrix = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
    matrix[3, 2] = bad
    adata.X = matrix
    with pytest.raises(InputDataError, match=str(adata.var_names[2])):
        case.model.setup_anndata(adata, **{k: v for k, v in case.setup.items() if k != "layer"})
    assert not any(k.startswith("_scvi") for k in [*adata.uns, *adata.obs, *adata.obsm])


# 2. training -------------------------------------------------------------------------------------------------------


def test_wrong_plan_argument_fails_before_the_first_batch(case, monkeypatch):
    model = case.fresh()
    monkeypatch.setattr(type(model.module), "_get_inference_input", lambda *a, **k: pytest.fail("a batch was computed"))
    with pytest.raises((SetupError, TypeError), match="weight_dcay"):
        model.train(**{**case.train, "plan_kwargs": {"weight_dcay": 0.1}})


def test_history_holds_loss_parts_and_improves(trained):
    history = trained.history
    for name in ("train_loss", "elbo_train", "reconstruction_loss_train"):
        assert any(k.startswith(name.removesuffix("_train")) for k in history), name
    loss = history["elbo_train"].to_numpy(dtype=float).ravel()
    assert np.isfinite(loss).all()
    assert loss[-1] < loss[0]
    assert trained.is_trained


# 3. latent representation ------------------------------------------------------------------------------------------


def test_latent_representation_of_each_kind(trained):
    n = trained.adata.n_obs
    for kind in trained.representations:
        z = trained.get_latent_representation(representation=kind)
        assert z.ndim == 2 and len(z) == n and np.isfinite(z).all()
        assert z.std() > 0
    with pytest.raises(UnknownNameError, match="no_such"):
        trained.get_latent_representation(representation="no_such")


def test_latent_does_not_depend_on_order_or_batch_size(trained):
    full = trained.get_latent_representation()
    order = np.random.default_rng(1).permutation(trained.adata.n_obs)
    np.testing.assert_allclose(trained.get_latent_representation(indices=order), full[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(batch_size=17), full, rtol=1e-4, atol=1e-5)
    shuffled = plain(trained.adata)[order].copy()
    np.testing.assert_allclose(trained.get_latent_representation(shuffled), full[order], rtol=1e-4, atol=1e-5)


def test_new_cells_are_left_as_they_are(trained):
    cells = plain(trained.adata)[::-1].copy()
    before = content(cells)
    trained.get_latent_representation(cells)
    assert_unchanged(cells, before)


# 4. perturbation ---------------------------------------------------------------------------------------------------


def test_prediction_schema(case, trained):
    a, b = case.pair
    n_control = int((trained.adata.obs[case.key] == case.setup["control"]).sum())
    predicted = trained.perturbation.predict(interventions=[a, b], n_samples=2, seed=1)
    assert predicted.shape == (n_control * 2 * 2, trained.adata.n_vars)
    assert list(predicted.var_names) == list(trained.adata.var_names)
    for column in ("intervention", "condition", "time", "source_cell", "sample"):
        assert column in predicted.obs
    assert predicted.uns["sccausal"]["units"] == trained.prediction_units
    assert set(predicted.obs["intervention"]) == {a, b}
    assert set(predicted.obs["sample"]) == {0, 1}
    controls = trained.adata.obs_names[trained.adata.obs[case.key] == case.setup["control"]]
    assert set(predicted.obs["source_cell"]) == set(controls)


def test_each_intervention_fits_its_own_cells_best(case, trained):
    """Swapping the labels of the prediction must make it worse: a model that ignores its argument fails."""
    units = trained.prediction_units
    means = {}
    for label in case.pair:
        effects = trained.perturbation.effects([label])
        means[label] = effects["mean_predicted"].to_numpy()
    truth = {label: observed_mean(trained, case, label) for label in case.pair}
    a, b = case.pair
    right = np.linalg.norm(means[a] - truth[a]) + np.linalg.norm(means[b] - truth[b])
    swapped = np.linalg.norm(means[a] - truth[b]) + np.linalg.norm(means[b] - truth[a])
    assert right < 0.8 * swapped, units


def test_prediction_depends_on_the_source_cells(case, trained):
    predicted = trained.perturbation.predict(interventions=[case.pair[0]])
    spread = np.asarray(predicted.X).std(axis=0)
    assert (spread > 1e-4).mean() > 0.5


def test_seed_fixes_draws_and_leaves_the_global_state_alone(case, trained):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = trained.perturbation.predict(interventions=[case.pair[0]], n_samples=2, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    again = trained.perturbation.predict(interventions=[case.pair[0]], n_samples=2, seed=5)
    np.testing.assert_array_equal(first.X, again.X)


def test_new_control_cells_are_accepted_in_any_gene_order(case, trained):
    controls = cells_under(trained, case, case.setup["control"])
    expected = trained.perturbation.predict(controls, [case.pair[0]])
    order = np.random.default_rng(0).permutation(controls.n_vars)
    turned = controls[:, order].copy()
    before = content(turned)
    predicted = trained.perturbation.predict(turned, [case.pair[0]])
    assert_unchanged(turned, before)
    np.testing.assert_allclose(predicted.X, expected.X, rtol=1e-4, atol=1e-5)
    del turned.obs[case.key]
    unlabelled = trained.perturbation.predict(turned[:1].copy(), [case.pair[0]])
    np.testing.assert_allclose(unlabelled.X, expected.X[:1], rtol=1e-3, atol=1e-3)


def test_bad_source_cells_raise_typed_errors(case, trained):
    controls = cells_under(trained, case, case.setup["control"])
    with pytest.raises(InputDataError, match="missing"):
        trained.perturbation.predict(controls[:, 1:].copy(), [case.pair[0]])
    perturbed = cells_under(trained, case, case.pair[0])
    with pytest.raises(InputDataError, match="control"):
        trained.perturbation.predict(perturbed, [case.pair[0]])
    batch = case.setup.get("batch_key")
    if batch is not None and not trained._accepts_new_batches:
        controls.obs[batch] = "new"
        with pytest.raises(SetupError, match="'new'.*load_query_data"):
            trained.perturbation.predict(controls, [case.pair[0]])


def test_unknown_intervention_suggests_close_names(case, trained):
    wrong = case.pair[0] + "x"
    with pytest.raises(UnknownNameError, match=f"Did you mean.*{case.pair[0]}"):
        trained.perturbation.predict(interventions=[wrong])
    with pytest.raises(SetupError):
        trained.perturbation.predict(interventions=[case.pair[0]], n_samples=0)
    with pytest.raises(SetupError, match="condition"):
        trained.perturbation.predict(interventions=[case.pair[0]], condition="elsewhere")
    # models of time refuse what is no time, the others any
    wrong_time = np.nan if case.setup.get("time_key") else 1.0
    with pytest.raises(SetupError, match="[Tt]ime"):
        trained.perturbation.predict(interventions=[case.pair[0]], times=[wrong_time])


def test_combinations_doses_and_order(case, trained):
    if not case.combines:
        pytest.skip("conditions do not combine")
    a, b = case.pair
    forms = trained.perturbation.predict(interventions=[(b, a)])
    labelled = trained.perturbation.predict(interventions=[case.best])
    np.testing.assert_array_equal(forms.X, labelled.X)
    half = trained.perturbation.effects([{a: 0.5}, {a: 1.0}])
    size = half.groupby("intervention")["change"].apply(lambda c: np.linalg.norm(c))
    assert size.min() < size.max()


def test_effects_are_zero_under_control_and_grouped(case, trained):
    effects = trained.perturbation.effects([case.setup["control"], case.pair[0]])
    zero = effects[effects["intervention"] == case.setup["control"]]
    np.testing.assert_allclose(zero["change"], 0, atol=1e-6)
    assert effects.loc[effects["intervention"] == case.pair[0], "change"].abs().max() > 0.01
    batch = case.setup.get("batch_key")
    if batch is not None:
        grouped = trained.perturbation.effects([case.pair[0]], groupby=batch)
        assert len(grouped) == trained.adata.n_vars * trained.adata.obs[batch].nunique()


def test_rank_finds_the_best_intervention(case, trained):
    wanted = cells_under(trained, case, case.best)
    for metric in ("energy", "mean"):
        ranked = trained.perturbation.rank(wanted, metric=metric)
        assert ranked["intervention"].iloc[0] == case.best, ranked
        assert ranked["improvement"].iloc[0] > 0
        assert ranked["distance"].is_monotonic_increasing
        control = ranked.set_index("intervention").loc[case.setup["control"]]
        assert control["improvement"] == 0
    vector = trained.perturbation.effects([case.best])["mean_predicted"].to_numpy()
    best = trained.perturbation.rank(vector, metric="mean").iloc[0]
    assert best["intervention"] == case.best and best["improvement"] == pytest.approx(1, abs=1e-3)
    with pytest.raises(SetupError, match="metric='mean'"):
        trained.perturbation.rank(vector)


def test_evaluate_puts_rules_and_ceiling_beside_the_model(case, trained):
    label = case.best if case.combines else case.pair[0]
    true = trained.adata[np.isin(labels_of(trained), [label, case.setup["control"]])]
    table = trained.perturbation.evaluate(plain(true.copy()), baselines=["NoChange", "PerturbedMean"])
    assert {type(trained).__name__, "no change"} < set(table["method"])
    error = table[table["metric"] == "nmse_top"].groupby("method")["value"].mean()
    assert error[type(trained).__name__] < error["no change"]
    assert error["duplicate"] < error["no change"]


# 5. network --------------------------------------------------------------------------------------------------------


def test_network_has_the_models_genes(trained):
    if "grn" not in trained.capabilities:
        with pytest.raises(AttributeError, match="ScConCRL"):
            _ = trained.grn
        return
    network = trained.grn.network()
    assert isinstance(network, Network)
    # nodes are genes, or latents in models whose graph is one of latents
    assert set(network.genes) <= set(map(str, trained.adata.var_names)) | set(getattr(trained, "latent_names", ()))
    assert {"source", "target", "weight"} <= set(network.to_frame())
    assert len(trained.grn.network(top=3)) == min(3, len(network))
    assert network == trained.grn.network()


# 6. save and load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attach", ["saved", "none", "given"])
def test_loaded_model_is_the_same(case, trained, tmp_path, attach):
    trained.save(tmp_path / "model", save_anndata=attach == "saved")
    adata = {"saved": None, "none": False, "given": plain(trained.adata)}[attach]
    loaded = case.model.load(tmp_path / "model", adata, accelerator="cpu")
    assert sorted(p.name for p in (tmp_path / "model").iterdir() if p.suffix != ".h5ad") == [
        "model.json",
        "model.safetensors",
    ]
    cells = plain(trained.adata)
    np.testing.assert_array_equal(loaded.get_latent_representation(cells), trained.get_latent_representation(cells))
    pair = list(case.pair)
    expected = trained.perturbation.predict(cells, pair)
    np.testing.assert_array_equal(loaded.perturbation.predict(cells, pair).X, expected.X)
    for name, frame in trained.history.items():
        np.testing.assert_allclose(loaded.history[name].to_numpy(float), frame.to_numpy(float))
    np.testing.assert_array_equal(loaded.train_indices, trained.train_indices)
    if "grn" in trained.capabilities:
        assert loaded.grn.network() == trained.grn.network()
    if attach == "none":
        assert loaded.adata is None
        with pytest.raises(SetupError, match="adata"):
            loaded.perturbation.predict(interventions=pair)


def test_loaded_model_trains_on(case, trained, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    loaded = case.model.load(tmp_path / "model", accelerator="cpu")
    before = {k: v.clone() for k, v in loaded.module.state_dict().items()}
    loaded.train(**{**case.train, "max_epochs": 1})
    assert any(not torch.equal(before[k], v) for k, v in loaded.module.state_dict().items())


# 7. determinism ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_seed_gives_the_same_weights(case, trained):
    again = case.trained()
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


def test_same_seed_gives_the_same_weights_in_two_epochs(case):
    first, second = (case.trained(max_epochs=2).module.state_dict() for _ in range(2))
    other = case.trained(seed=1, max_epochs=2).module.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(first[k].shape != other[k].shape or not torch.equal(first[k], other[k]) for k in first)


# 8. assumptions ----------------------------------------------------------------------------------------------------


def test_identifiability_report(trained):
    report = trained.identifiability_report()
    assert isinstance(report, IdentifiabilityReport)
    frame = report.to_frame()
    assert len(frame) > 0
    assert frame["verdict"].isin(["holds", "violated", "unknown"]).all()
    assert (frame["explanation"].str.len() > 0).all()
    assert type(trained).__name__ in repr(report)


# 9. interruptions --------------------------------------------------------------------------------------------------


class _StopAt(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def test_resumes_after_an_interruption(case, tmp_path):
    whole = case.fresh()
    whole.train(**{**case.train, "max_epochs": 4})
    cut = case.fresh()
    options = {**case.train, "max_epochs": 4, "checkpoint_dir": tmp_path / "resume"}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cut.train(**options, callbacks=[_StopAt(2)])
    rest = case.fresh()
    rest.train(**options)
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(rest.module.state_dict()[name], value, rtol=0, atol=0, msg=name)


class _Poison(Callback):
    """Makes one weight infinite after the second epoch has begun."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            # pairs of cells come as two halves
            flat = [v for part in batch.values() for v in (part.values() if isinstance(part, dict) else [part])]
            for value in flat:
                if value.is_floating_point() and value.shape[1] > 2:
                    value[0, 0] = float("nan")
                    return


def test_stops_on_nan_with_the_last_good_weights(case):
    model = case.fresh()
    with pytest.raises(NumericalError, match="X"):
        model.train(**{**case.train, "max_epochs": 4}, callbacks=[_Poison()])
    # the multiplier's last value of the constraint is infinite until its first update
    state = model.module.state_dict()
    previous = state.pop("lagrangian_previous", None)
    assert previous is None or not torch.isnan(previous)
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


# query data --------------------------------------------------------------------------------------------------------


def query_cells(case, model) -> AnnData:
    cells = plain(model.adata)[:120].copy()
    cells.obs[case.setup["batch_key"]] = "new"
    return cells


def test_query_batches_change_nothing_of_the_reference(case, trained):
    if case.setup.get("batch_key") is None:
        pytest.skip("no batches")
    old = {k: v.clone() for k, v in trained.module.state_dict().items()}
    query = case.model.load_query_data(query_cells(case, trained), trained, accelerator="cpu")
    assert query.summary_stats.n_batch == trained.summary_stats.n_batch + 1
    assert np.isfinite(query.get_latent_representation()).all()
    start = {k: v.clone() for k, v in query.module.state_dict().items()}
    query.train(**{**case.train, "max_epochs": 2})
    moved = 0
    for name, value in query.module.state_dict().items():
        block = tuple(slice(0, n) for n in old[name].shape)
        torch.testing.assert_close(value[block], old[name], rtol=0, atol=0, msg=name)
        moved += int(not torch.equal(value, start[name]))
    assert moved > 0
    if "grn" in trained.capabilities:
        assert query.grn.network() == trained.grn.network()
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, old[name])


def test_query_needs_the_genes_of_the_reference(case, trained, tmp_path):
    if case.setup.get("batch_key") is None:
        pytest.skip("no batches")
    cells = query_cells(case, trained)
    with pytest.raises(InputDataError, match="prepare_query_anndata"):
        case.model.load_query_data(cells[:, 1:].copy(), trained)
    with pytest.raises(InputDataError, match="order"):
        case.model.load_query_data(cells[:, ::-1].copy(), trained)
    padded = case.model.prepare_query_anndata(cells[:, :0:-1].copy(), trained)
    assert list(padded.var_names) == list(trained.adata.var_names)
    trained.save(tmp_path / "reference")
    query = case.model.load_query_data(padded, tmp_path / "reference", accelerator="cpu")
    assert query.summary_stats.n_batch == trained.summary_stats.n_batch + 1
