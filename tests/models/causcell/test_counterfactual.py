"""What follows an intervention and what does not, against the simulator's own counterfactuals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from concept_case import log1p_norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.datasets import concept_counterfactual
from sccausal.metrics import energy_distance


@pytest.fixture(scope="module")
def readers(cells):
    """Classifiers of the labels that are no part of the model."""
    return {n: LogisticRegression(C=0.03, max_iter=500).fit(cells.X, cells.obs[n]) for n in "abcd"}


def shares(labels) -> pd.Series:
    return pd.Series(np.asarray(labels)).value_counts(normalize=True)


def variation(p: pd.Series, q: pd.Series) -> float:
    levels = p.index.union(q.index)
    return 0.5 * float((p.reindex(levels, fill_value=0) - q.reindex(levels, fill_value=0)).abs().sum())


def truth(source, do):
    after = concept_counterfactual(source, do)
    return after, log1p_norm(after.layers["mean"]) - source.layers["log_mean"]


def test_child_and_grandchild_follow_as_in_the_simulator(model, held_out, readers):
    source = held_out[(held_out.obs["a"] == "a0").to_numpy()].copy()
    after, _ = truth(source, {"a": "a1"})
    predicted = model.counterfactual(source, {"a": "a1"})
    for name in "bcd":
        expected = shares(readers[name].predict(log1p_norm(after.X)))
        found = shares(readers[name].predict(predicted.X))
        assert variation(found, expected) < 0.5 * variation(shares(source.obs[name]), expected) + 0.02, name
    found, expected = (shares(readers["b"].predict(x)) for x in (predicted.X, log1p_norm(after.X)))
    assert variation(found, expected) < 0.15


def test_without_a_graph_nothing_follows(independent, held_out, readers):
    source = held_out[(held_out.obs["a"] == "a0").to_numpy()].copy()
    predicted = independent.counterfactual(source, {"a": "a1"})
    assert shares(readers["a"].predict(predicted.X)).get("a1", 0) > 0.8
    for name in "bd":
        assert variation(shares(readers[name].predict(predicted.X)), shares(readers[name].predict(source.X))) < 0.1


@pytest.mark.parametrize("do", [{"b": "b1"}, {"d": "d2"}])
def test_effects_have_the_right_size_and_beat_mean_shift(model, cells, held_out, do):
    (name, value), *_ = do.items()
    source = held_out[(held_out.obs[name] != value).to_numpy()].copy()
    _, change = truth(source, do)
    said = np.asarray(model.counterfactual(source, do).X) - source.X
    effect = change.mean(0)
    assert 0.7 < said.mean(0) @ effect / (effect @ effect) < 1.25
    has = (cells.obs[name] == value).to_numpy()
    shift = cells.X[has].mean(0) - cells.X[~has].mean(0)
    assert ((said.mean(0) - effect) ** 2).sum() < 0.6 * ((shift - effect) ** 2).sum()


def tokens_after(model, source, do, mode, **options):
    """Embeddings after an intervention, as the denoiser gets them."""
    from sccausal.models._cells import registered

    request = model._request(do, mode, options.get("source", "own"), False)
    with torch.inference_mode(), registered(model, source) as cells:
        eps = model._exogenous_of(cells, 1, 0, None)[0]
        before = model.module.embed(eps)
        labels = [torch.as_tensor(w) for w in model._weights_of(cells)]
        return before.numpy(), model._intervened(eps, before, labels, request, 0, 0).numpy()


def tells(z, labels) -> float:
    net = LogisticRegression(C=0.1, max_iter=500)
    return float(cross_val_score(net, z, labels, cv=4, scoring="balanced_accuracy").mean())


def test_modes_on_the_middle_of_a_chain(model, cells):
    a = cells.obs["a"]
    before, do = tokens_after(model, cells, {"b": "b1"}, "do")
    _, shift = tokens_after(model, cells, {"b": "b1"}, "shift")
    _, hold = tokens_after(model, cells, {"b": "b1"}, "hold")
    assert tells(before[:, 1], a) > 0.7
    assert tells(do[:, 1], a) < 0.58  # cut off from its parent
    assert tells(shift[:, 1], a) > 0.65  # still under its influence
    np.testing.assert_array_equal(hold[:, 3], before[:, 3])  # the grandchild does not move
    np.testing.assert_array_equal(hold[:, 1], do[:, 1])
    assert np.abs(do[:, 3] - before[:, 3]).mean() > 0.1
    for after in (do, shift, hold):
        np.testing.assert_array_equal(after[:, [0, 2, 4]], before[:, [0, 2, 4]])


def test_shift_is_do_on_a_root(model, held_out):
    options = {"source": "donor", "seed": 3, "keep_own": False}
    do = model.counterfactual(held_out[:40].copy(), {"a": "a1"}, "do", **options)
    shift = model.counterfactual(held_out[:40].copy(), {"a": "a1"}, "shift", **options)
    np.testing.assert_allclose(do.X, shift.X, atol=1e-4)


def test_exogenous_parts_do_not_tell_the_parents(model, cells, held_out):
    z = model.get_concept_embeddings(held_out, sample=True)
    # a probe of one draw scatters by 0.04 around chance, which is 0.5
    draws = [model.get_concept_embeddings(held_out, kind="exogenous", sample=True, seed=s) for s in range(6)]
    for child, parent in (("b", "a"), ("c", "a"), ("d", "b")):
        assert np.mean([tells(eps[child], held_out.obs[parent]) for eps in draws]) < 0.56
    assert tells(z["b"], held_out.obs["a"]) > 0.7
    for name in "abc":
        own = tells(z[name], held_out.obs[name])
        assert own > (0.85 if name != "c" else 0.75)
        rest = np.mean([tells(eps["unexplained"], held_out.obs[name]) for eps in draws])
        assert rest < 1 / held_out.obs[name].nunique() + 0.12


def test_own_label_returns_the_cell(model, held_out):
    own = held_out[(held_out.obs["b"] == "b1").to_numpy()][:50].copy()
    np.testing.assert_array_equal(model.counterfactual(own, {"b": "b1"}).X, own.X)


def test_inversion_comes_back_and_moves_on(model, held_out):
    """The identity is free for a difference of passes, so it is shown beside the size of the effect."""
    from sccausal.models.causcell._module import SIGMA_HIGH, SIGMA_LOW
    from sccausal.models.causcell._steps import _denoiser
    from sccausal.nn import decode_pair, encode_pair, karras_levels

    source = held_out[(held_out.obs["b"] == "b0").to_numpy()].copy()
    levels = karras_levels(20, SIGMA_LOW, SIGMA_HIGH)
    with torch.inference_mode():
        y = model.module.space.standardised(torch.as_tensor(source.X))
        tokens = model.module.embed(model._exogenous(source, n_samples=1)[0])
        denoise = _denoiser(model.module, tokens)
        back = decode_pair(denoise, encode_pair(denoise, y, levels), levels)
        assert float((back - y).norm() / y.norm()) < 1e-3
    _, change = truth(source, {"b": "b1"})
    said = np.asarray(model.counterfactual(source, {"b": "b1"}, abduction="inverted").X) - source.X
    effect = change.mean(0)
    assert 0.6 < said.mean(0) @ effect / (effect @ effect) < 1.3


def test_few_steps_agree_with_a_thousand(model, held_out):
    """Cells drawn for the tokens of observed ones."""
    from sccausal.models.causcell._module import SIGMA_HIGH, SIGMA_LOW
    from sccausal.models.causcell._steps import Settings, draw_cells

    with torch.inference_mode():
        tokens = model.module.embed(model._exogenous(held_out, n_samples=1)[0])
        found = {}
        for solver, steps in (("dpm++2m", 20), ("ddpm", 300)):
            drawn = draw_cells(model.module, tokens, Settings(steps, solver, "shared", SIGMA_LOW, SIGMA_HIGH), 0, None)
            found[solver] = energy_distance(np.maximum(drawn, 0), held_out.X)
    a, b = (held_out.X[(held_out.obs["a"] == v).to_numpy()] for v in ("a0", "a1"))
    assert found["dpm++2m"] - found["ddpm"] < 0.05 * energy_distance(a, b) + 0.02
    assert found["dpm++2m"] < 0.5 * energy_distance(held_out.X, held_out.X.mean(0, keepdims=True), unbiased=False)


def test_schema_samples_and_several_concepts(model, held_out):
    source = held_out[:30].copy()
    before = source.copy()
    out = model.counterfactual(source, {"a": "a1", "d": "d0"}, n_samples=3, seed=1)
    assert out.shape == (90, source.n_vars)
    assert set(out.obs["sample"]) == {0, 1, 2} and set(out.obs["intervention"]) == {"a=a1, d=d0"}
    assert list(out.obs["source_cell"][:30]) == list(source.obs_names)
    assert (out.obs["b"].to_numpy()[:30] == source.obs["b"].to_numpy()).all()
    assert out.uns["sccausal"]["do"] == {"a": "a1", "d": "d0"} and out.uns["sccausal"]["mode"] == "do"
    assert np.asarray(out.X).min() >= 0
    spread = np.asarray(out.X).reshape(3, 30, -1).std(0)
    assert spread.mean() > 1e-3  # draws are kept apart
    np.testing.assert_array_equal(source.X, before.X)
    pd.testing.assert_frame_equal(source.obs, before.obs)
    again = model.counterfactual(source, {"a": "a1", "d": "d0"}, n_samples=3, seed=1)
    np.testing.assert_array_equal(out.X, again.X)
    first = model.counterfactual(source[:1].copy(), {"a": "a1", "d": "d0"}, n_samples=3, seed=1)
    np.testing.assert_allclose(first.X[0], out.X[0], atol=1e-3)


def test_cells_without_labels_are_taken(model, held_out):
    bare = held_out[:40].copy()
    del bare.obs["b"], bare.obs["d"]
    out = model.counterfactual(bare, {"a": "a1"})
    assert (out.obs["b"].to_numpy() == held_out.obs["b"].to_numpy()[:40]).mean() > 0.8


def test_trial_breaks_the_dependence_of_the_data(model, readers):
    """b and a are dependent in the data; in a trial on b the arms have the same a."""
    trial = model.trial({"b": ["b0", "b1"]}, n_cells=300)
    assert trial.n_obs == 600 and set(trial.obs["b"]) == {"b0", "b1"}
    arms = [trial[(trial.obs["b"] == v).to_numpy()] for v in ("b0", "b1")]
    assert variation(*(shares(readers["a"].predict(arm.X)) for arm in arms)) < 0.1
    assert shares(readers["b"].predict(arms[1].X)).get("b1", 0) > 0.75
    assert shares(readers["b"].predict(arms[0].X)).get("b0", 0) > 0.75


def test_wrong_requests_are_named(model, held_out):
    cases = [
        ({"bb": "b1"}, {}, UnknownNameError, "'b'"),
        ({"b": "b3"}, {}, UnknownNameError, "b1"),
        ({"b": "b1"}, {"mode": "see"}, UnknownNameError, "hold"),
        ({"b": "b1"}, {"source": "mean"}, UnknownNameError, "donor"),
        ({"b": "b1"}, {"solver": "dpm"}, UnknownNameError, "dpm"),
        ({"b": "b1"}, {"abduction": "none"}, UnknownNameError, "inverted"),
        ({"b": "b1"}, {"n_samples": 0}, SetupError, "n_samples"),
        ({"b": "b1"}, {"n_steps": 2}, SetupError, "n_steps"),
        ({}, {}, SetupError, "nothing"),
    ]
    for do, options, error, text in cases:
        with pytest.raises(error, match=text):
            model.counterfactual(held_out[:3].copy(), do, **options)
    with pytest.raises(InputDataError, match="missing"):
        model.counterfactual(held_out[:3, 5:].copy(), {"b": "b1"})
