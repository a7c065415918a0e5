"""CausCell: set-up, concepts of every kind, effects, saving, checks of assumptions."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from concept_case import DAG, NAMES, fitted, log1p_norm, simulated

from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.datasets import concept_counterfactual
from sccausal.models import CausCell
from sccausal.models.causcell._concepts import read_dag


def small(n_cells: int = 300, n_genes: int = 40, **kwargs):
    return simulated(n_cells, n_genes, **kwargs)


# graph and set-up --------------------------------------------------------------------------------------------------


def test_graphs_in_all_forms_are_the_same():
    frame = pd.DataFrame(0, index=NAMES, columns=NAMES)
    for s, t in (("a", "b"), ("a", "c"), ("b", "d")):
        frame.loc[s, t] = 1
    graph = nx.DiGraph([("a", "b"), ("a", "c"), ("b", "d")])
    edges = pd.DataFrame({"source": ["a", "a", "b"], "target": ["b", "c", "d"]})
    for form in (DAG, {"b": "a", "c": "a", "d": "b"}, frame, graph, edges):
        assert read_dag(form, NAMES) == DAG
    assert read_dag(None, NAMES) is None and read_dag({}, NAMES) == {}


def test_wrong_graphs_are_named():
    with pytest.raises(SetupError, match="a -> b -> a|b -> a -> b"):
        read_dag({"b": ["a"], "a": ["b"]}, NAMES)
    with pytest.raises(UnknownNameError, match="'dd'.*Did you mean"):
        read_dag({"dd": ["a"]}, [*NAMES, "ddd"])
    with pytest.raises(SetupError, match="directed"):
        read_dag(nx.Graph([("a", "b")]), NAMES)
    with pytest.raises(SetupError, match="list"):
        read_dag([("a", "b")], NAMES)
    with pytest.raises(SetupError, match="rows"):
        read_dag(pd.DataFrame(0, index=["a"], columns=["b"]), NAMES)


def test_set_up_says_what_is_missing():
    adata = small(60, 20)
    adata.obs["one"] = "x"
    before = adata.obs.copy()
    with pytest.raises(SetupError, match="one"):
        CausCell.setup_anndata(adata, concept_keys=["a", "one"])
    with pytest.raises(SetupError, match="aa"):
        CausCell.setup_anndata(adata, concept_keys=["aa"])
    pd.testing.assert_frame_equal(adata.obs, before)
    CausCell.setup_anndata(adata)
    with pytest.raises(SetupError, match="concept_keys"):
        CausCell(adata)
    CausCell.setup_anndata(adata, concept_keys=["a", "d"])
    with pytest.raises(UnknownNameError, match="ordered concept"):
        CausCell(adata, ordered=["b"])
    with pytest.raises(SetupError, match="'d0'"):
        CausCell(adata, ordered=["d"])
    with pytest.raises(SetupError, match="different"):
        CausCell(adata, ordered={"d": {"d0": 1, "d1": 1, "d2": 2}})
    model = CausCell(adata, dag={"d": ["a"]}, ordered={"d": {"d2": 0, "d1": 1, "d0": 2}})
    assert model.module.concepts[1].levels == ("d2", "d1", "d0")
    assert model.dag == {"d": ["a"]} and model.concepts == ["a", "d"]


def test_ordered_levels_follow_their_numbers_not_their_names():
    adata = small(60, 20)
    numbers = {"d0": 30.0, "d1": 4.0, "d2": 100.0}
    CausCell.setup_anndata(adata, concept_keys=["d"])
    model = CausCell(adata, ordered={"d": numbers})
    weights = model._label_weights()[0]
    values = np.asarray(model.module.concepts[0].values)
    assert list(values) == [4.0, 30.0, 100.0]
    np.testing.assert_allclose(weights @ values, [numbers[v] for v in adata.obs["d"]])


def test_size_at_two_thousand_genes():
    rng = np.random.default_rng(0)
    from anndata import AnnData

    adata = AnnData(rng.random((20, 2000), dtype=np.float32))
    adata.obs["a"], adata.obs["b"], adata.obs["c"] = (rng.permutation(["x", "y"] * 10) for _ in range(3))
    CausCell.setup_anndata(adata, concept_keys=["a", "b", "c"])
    model = CausCell(adata, dag={"b": ["a"]})
    assert sum(p.numel() for p in model.module.parameters()) < 12e6


def test_every_term_of_the_loss_moves_the_model():
    """Steps are taken first, since the denoiser starts at zero and passes nothing on to the encoder."""
    adata = small(256, 60)
    model = fitted(adata, epochs=15)
    module = model.module.train()
    batch = next(iter(model._make_data_loader(model.adata, batch_size=200)))
    inference = module.inference(**module._get_inference_input(batch))
    generative = module.generative(**module._get_generative_input(batch, inference))
    full = module.loss(batch, inference, generative)
    assert torch.isfinite(full.loss)
    weights = list(module.encoder.parameters())

    def gradient(loss):
        parts = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return float(sum(p.detach().square().sum() for p in parts if p is not None).sqrt())

    whole = gradient(full.loss)
    for name in ("exogenous", "endogenous", "classifier", "adversary", "unexplained", "consistency"):
        kept, module.weights[name] = module.weights[name], 0.0
        torch.manual_seed(1)
        without = module.loss(batch, inference, generative).loss
        module.weights[name] = kept
        torch.manual_seed(1)
        term = module.loss(batch, inference, generative).loss - without
        assert gradient(term) > 0.01 * whole, name
    assert gradient(full.reconstruction_loss["reconstruction_loss"].mean()) > 0.01 * whole


def test_kl_along_the_graph_is_that_of_all_embeddings_together():
    adata = small(60, 20)
    CausCell.setup_anndata(adata, concept_keys=NAMES)
    model = CausCell(adata, dag=DAG, edge="scalar", n_latent=2)
    module, n = model.module, 4000
    torch.manual_seed(0)
    mean, spread = torch.randn(5, 2).expand(n, 5, 2), torch.rand(5, 2).add(0.3).expand(n, 5, 2)
    z = module.embed(mean + spread * torch.randn(n, 5, 2))
    labels = [torch.eye(c.n_levels)[0].expand(n, -1) for c in module.concepts]
    _, found = module._kl({"mean": mean, "spread": spread, "z": z}, labels)
    # closed form: embeddings are a linear map of independent normal parts
    mix = module.scm(torch.eye(4).unsqueeze(2).expand(4, 4, 2))[:, :, 0].detach()
    exact = 0.0
    for k in range(2):
        m = mean[0, :4, k] @ mix
        cov = mix.T @ torch.diag(spread[0, :4, k] ** 2) @ mix
        prior = torch.stack([module.prior[j].places[0, k] for j in range(4)])
        exact = exact + 0.5 * (torch.trace(cov) + (m - prior).square().sum() - 4 - torch.logdet(cov))
    assert float(found.detach().mean()) == pytest.approx(float(exact.detach()), rel=0.05)


# kinds of concepts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aged():
    """Age as an ordered concept of which the third level is not in training."""
    adata = simulated(1000, 120, age_levels=4, seed=5)
    adata.obs["years"] = adata.obs["age"].astype(int).astype(str)
    train = adata[(adata.obs["years"] != "60").to_numpy()].copy()
    return adata, fitted(train, dag={"b": ["a"]}, keys=["a", "b", "years"], epochs=80, ordered=["years"])


def test_ages_never_measured_are_interpolated(aged):
    adata, model = aged
    source = adata[(adata.obs["years"] == "20").to_numpy()].copy()
    effects = {}
    for age in (40, 60, 80):
        after = log1p_norm(concept_counterfactual(source, {"age": age}).layers["mean"]) - source.layers["log_mean"]
        said = np.asarray(model.counterfactual(source, {"years": age}).X) - source.X
        effects[age] = after.mean(0), said.mean(0)
    true, said = effects[60]
    assert np.corrcoef(true, said)[0, 1] > 0.85
    assert 0.6 < said @ true / (true @ true) < 1.3
    between = [np.linalg.norm(effects[a][1]) for a in (40, 60, 80)]
    assert between[0] < between[1] < between[2]
    with pytest.raises(SetupError, match="outside"):
        model.counterfactual(source, {"years": 95})
    with pytest.raises(UnknownNameError, match="level"):
        model.counterfactual(source, {"years": "old"})


def test_time_is_a_continuous_concept():
    adata = small(300, 40, age_levels=0)
    model = fitted(adata, dag=None, keys=["a"], setup={"time_key": "age"}, epochs=10)
    assert model.concepts == ["a", "age"] and model.module.concepts[1].kind == "continuous"
    out = model.counterfactual(adata[:20].copy(), {"age": 33.3})
    assert set(out.obs["intervention"]) == {"age=33.3"}
    np.testing.assert_allclose(out.obs["age"], adata.obs["age"][:20].clip(20.2, 79.8), atol=0.6)
    guess = model.predict_concepts()["age"]
    assert np.issubdtype(guess.dtype, np.floating) and guess.between(20, 80).all()


def test_intervention_is_a_concept_with_a_control():
    adata = small(300, 40)
    adata.obs["c"] = adata.obs["c"].astype(str)
    model = fitted(adata, dag={"c": ["a"]}, keys=["a"], setup={"condition_key": "c", "control": "c0"}, epochs=10)
    assert model.concepts == ["a", "c"]
    predicted = model.perturbation.predict(interventions=["c1", "c2"])
    assert set(predicted.obs["intervention"]) == {"c1", "c2"}
    same = model.counterfactual(adata[(adata.obs["c"] == "c0").to_numpy()].copy(), {"c": "c1"})
    first = predicted[(predicted.obs["intervention"] == "c1").to_numpy()]
    np.testing.assert_allclose(np.asarray(first.X), np.asarray(same.X), atol=1e-4)
    with pytest.raises(SetupError, match="twice"):
        fitted(adata, keys=["a", "c"], setup={"condition_key": "c", "control": "c0"}, dag=None)


# effects -----------------------------------------------------------------------------------------------------------


def test_effects_of_a_concept_by_group_and_unit(model, held_out):
    table = model.effect_of("b", "b1", adata=held_out, groupby="c", unit_key="donor")
    assert set(table["c"]) == {"c0", "c1", "c2"} and (table["n_units"] == 4).all()
    assert (table["low"] <= table["change"]).all() and (table["change"] <= table["high"]).all()
    source = held_out[(held_out.obs["b"] == "b0").to_numpy()].copy()
    predicted = model.counterfactual(source, {"b": "b1"})
    overall = model.effect_of("b", "b1", adata=held_out)
    np.testing.assert_allclose(overall["change"], (np.asarray(predicted.X) - source.X).mean(0), atol=0.1)
    some = model.effect_of("b", "b1", ["G0003", "G0001"], adata=held_out, reference="b0")
    assert list(some["gene"]) == ["G0003", "G0001"]
    direct = model.effect_of("b", "b1", adata=held_out, mode="hold")
    by_d = held_out.var["acts_d"].to_numpy() & ~held_out.var["acts_b"].to_numpy()
    assert np.abs(direct["change"])[by_d].mean() < np.abs(overall["change"])[by_d].mean()


def test_wrong_effects_are_named(model, held_out):
    for error, text, arguments in (
        (UnknownNameError, "G0001", {"genes": ["G001"]}),
        (UnknownNameError, "column", {"unit_key": "donr"}),
        (UnknownNameError, "level", {"reference": "b7"}),
        (
            InputDataError,
            "No cell",
            {"reference": "b1", "adata": held_out[(held_out.obs["b"] == "b0").to_numpy()].copy()},
        ),
        (SetupError, "confidence", {"confidence": 2.0}),
    ):
        with pytest.raises(error, match=text):
            model.effect_of("b", "b1", **{"adata": held_out, **arguments})


def test_edges_are_told_apart_from_edges_without_dependence(model):
    frame = model.edges().set_index(["source", "target"])
    assert frame["supported"].all() and (frame["information"] > 0.05).all()
    adata = small(400, 20, correlation=0.0)
    CausCell.setup_anndata(adata, concept_keys=NAMES)
    assert not CausCell(adata, dag=DAG).edges()["supported"].any()


# outputs -----------------------------------------------------------------------------------------------------------


def test_embeddings_and_predicted_concepts(model, held_out):
    z = model.get_concept_embeddings(held_out)
    assert set(z) == {*NAMES, "unexplained"} and all(v.shape == (held_out.n_obs, 16) for v in z.values())
    drawn = model.get_concept_embeddings(held_out, sample=True, seed=4)
    np.testing.assert_array_equal(drawn["a"], model.get_concept_embeddings(held_out, sample=True, seed=4)["a"])
    assert np.abs(drawn["a"] - z["a"]).mean() > 0.05
    found = model.predict_concepts(held_out)
    assert list(found.index) == list(held_out.obs_names)
    for name, least in (("a", 0.8), ("b", 0.8), ("c", 0.7)):
        assert (found[name].to_numpy() == held_out.obs[name].to_numpy()).mean() > least
    soft = model.predict_concepts(held_out, soft=True)["c"]
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-5)
    with pytest.raises(UnknownNameError, match="exogenous"):
        model.get_concept_embeddings(held_out, kind="latent")


def test_saved_model_answers_alike_without_cells(model, held_out, tmp_path):
    expected = model.counterfactual(held_out[:20].copy(), {"b": "b1"})
    model.save(tmp_path / "m")
    loaded = CausCell.load(tmp_path / "m", adata=False, accelerator="cpu")
    np.testing.assert_array_equal(loaded.counterfactual(held_out[:20].copy(), {"b": "b1"}).X, expected.X)
    assert loaded.dag == model.dag and loaded.concepts == model.concepts
    for call in (
        lambda: loaded.trial({"a": ["a0"]}),
        lambda: loaded.counterfactual(held_out[:5].copy(), {"b": "b1"}, source="donor"),
        lambda: loaded.edges(),
        lambda: loaded.identifiability_report(),
    ):
        with pytest.raises(SetupError, match="adata"):
            call()


# assumptions: each verdict turns between two sets that differ in that point only -------------------------------------


def verdicts(adata, dag=DAG, train=False, **init):
    if train:
        return of(fitted(adata, dag=dag, epochs=30, **init))
    cells = adata.copy()
    CausCell.setup_anndata(cells, concept_keys=NAMES)
    return of(CausCell(cells, dag=dag))


def of(model) -> dict[str, str]:
    return model.identifiability_report().to_frame().set_index("name")["verdict"].to_dict()


@pytest.mark.parametrize(
    ("name", "good", "bad", "dag"),
    [
        ("overlap", {"correlation": 0.6}, {"correlation": 1.0}, DAG),
        ("DAG explains the labels", {"correlation": 0.0}, {"correlation": 0.6}, {"d": ["b"]}),
        ("edges are supported", {"correlation": 0.6}, {"correlation": 0.0}, DAG),
    ],
)
def test_verdicts_on_labels_turn(name, good, bad, dag):
    assert verdicts(small(600, 20, **good), dag)[name] == "holds"
    assert verdicts(small(600, 20, **bad), dag)[name] == "violated"


def test_verdict_on_legibility_turns(model):
    name = "expression shows the concepts"
    assert of(model)[name] == "holds"
    assert verdicts(small(400, 60, strength=0.0), train=True)[name] == "violated"


def test_verdict_on_exogenous_parts_turns(model):
    """It judges what training reached: without adversaries a part keeps a copy of the cause."""
    name, off = "exogenous parts are free of the causes", {"adversary_weight": 0.0, "consistency_weight": 0.0}
    assert of(model)[name] == "holds"
    assert verdicts(small(600, 100, correlation=0.9), train=True, **off)[name] == "violated"
