from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
from anndata import AnnData

from sccausal import baselines
from sccausal._errors import InputDataError, NotSupportedError, SetupError, UnknownNameError
from sccausal.metrics import aecd
from sccausal.models import GCRLAE, GCRLVAE, DiscrepancyVAE

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SETS = {f"module {k}": [f"g{i}" for i in range(12 * k, 12 * k + 12)] for k in range(4)}


def modules(n: int = 700, seed: int = 0) -> AnnData:
    """Four planted modules of twelve genes, and interventions on two genes of them and on two that are not measured."""
    rng = np.random.default_rng(seed)
    labels = np.array(["control", "g3", "g15", "far", "off", "far+g3"])[rng.integers(0, 6, n)]
    factor = rng.normal(size=(n, 4)) + 0.5 * rng.normal(size=(n, 1))
    for name, k, size in (("g3", 0, 2.0), ("g15", 1, -2.0), ("far", 2, 2.0)):
        factor[:, k] += size * np.array([name in v.split("+") for v in labels])
    loading = np.kron(np.eye(4), rng.uniform(0.5, 1, 12))
    x = factor @ loading + rng.normal(size=(n, 48))
    x[labels == "off", ::7] += 1.5  # an effect past the modules
    var = pd.DataFrame({"is_tf": [i % 12 < 8 for i in range(48)]}, index=[f"g{i}" for i in range(48)])
    return AnnData(x.astype(np.float32), obs=pd.DataFrame({"p": labels}, index=[f"c{i}" for i in range(n)]), var=var)


def trained(cls, adata: AnnData, epochs: int, seed: int = 0, **init):
    scvi.settings.seed = seed
    cls.setup_anndata(adata, intervention_key="p", control="control")
    model = cls(adata, **init)
    model.train(epochs, **QUIET)
    return model


@pytest.fixture(scope="module")
def vae() -> GCRLVAE:
    return trained(GCRLVAE, modules(), 12, activities=SETS, encoder_genes="is_tf")


@pytest.fixture(scope="module")
def autoencoder() -> GCRLAE:
    return trained(GCRLAE, modules(), 60, activities=SETS)


def test_latents_measure_their_activities(vae):
    z, t = vae.get_latent_representation(), vae.get_activities()
    correlation = np.abs(np.corrcoef(z.T, t.to_numpy().T)[: z.shape[1], z.shape[1] :])
    order = [vae.latent_names.index(n) for n in t.columns]
    matched = correlation[order].diagonal()[1:]
    other = correlation[order][1:, 1:] - np.diag(matched)
    assert matched.min() > 0.7 and matched.min() > other.max()


def test_targets_go_where_the_sets_say_and_others_find_their_module(vae):
    table = vae.get_intervention_targets().set_index("intervention")
    assert list(table.loc[["g3", "g15"], "latent"]) == ["module 0", "module 1"]
    assert list(table["known"]) == [t in ("g3", "g15") for t in table.index]
    assert table.loc["far", "latent"] == "module 2" and table.loc["far", "probability"] > 0.8
    assert np.sign(table.loc[["g3", "g15", "far"], "magnitude"]).tolist() == [1, -1, 1]
    assert table.loc["off", "explained"] < 0.5 < table.loc["far", "explained"]
    assert "global" not in set(table["latent"])


@pytest.mark.parametrize("residual", ["shrunken", "exact"])
def test_predictions_hold_the_means_of_training_and_new_combinations_add_up(residual):
    adata = modules(900)
    model = trained(GCRLVAE, adata, 4, activities=SETS, residual=residual, decoder="linear", n_interaction=0)
    train = adata[model.train_indices]
    rule = baselines.Additive(clip="none").fit(train, intervention_key="p", control="control")
    change = model.perturbation.effects(["g15", "off", "g15+off"]).set_index(["intervention", "gene"])["change"]
    seen = change["off"] - (
        rule.predict(interventions=["off"]).X.mean(0) - train[train.obs["p"] == "control"].X.mean(0)
    )
    size = np.linalg.norm(change["off"])
    assert np.linalg.norm(seen) < (0.02 if residual == "exact" else 0.5) * size
    # the shared part, which is small, is counted once
    shared = (model.module.residual_shared * model.module.scale).numpy(force=True)
    np.testing.assert_allclose(change["g15+off"], change["g15"] + change["off"] - shared, atol=2e-3)


def test_interactions_are_learned_only_from_enough_doubles(vae):
    # one combination of four targets: its factors would fit it, and give other combinations noise
    pairs = vae.module.interventions.pairs
    assert pairs.interaction_weight.weight.abs().max() == 0 and not pairs.partner.requires_grad
    adata = modules(900)
    names = ["g3", "g15", "far", "off"]
    combinations = ["+".join(c) for k in (1, 2) for c in itertools.combinations(names, k)]
    adata.obs["p"] = np.array(["control", *combinations])[np.arange(adata.n_obs) % (len(combinations) + 1)]
    model = trained(GCRLVAE, adata, 2, activities=SETS)
    assert model.module.interventions.pairs.interaction_weight.weight.abs().max() > 0


def test_every_weighted_term_is_felt_after_the_warm_up():
    import torch

    adata = modules()
    model = trained(GCRLVAE, adata, 6, activities=SETS)
    module = model.module.train()
    module.on_epoch_start(6, 6)
    data = model._make_data(None, {"train_size": 0.9, "batch_size": 256, "distributed_sampler": False})
    batch = next(iter(data.train_dataloader()))
    inference = module.inference(**module._get_inference_input(batch))
    cells = module._get_inference_input(batch)
    mean = module.generative(**module._get_generative_input(batch, inference))["mean"]
    terms = module.terms(batch, inference, cells, mean)
    weights = [p for p in module.parameters() if p.requires_grad]

    def norm(value):
        grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        return float(torch.sqrt(sum((g.square().sum() for g in grads if g is not None), torch.zeros(()))))

    total = norm(module.loss(batch, inference, {"mean": mean}).loss)
    for name in ("discrepancy", "alignment"):
        assert norm(terms[name]) > 0.01 * total, name


@pytest.mark.parametrize("permutation", ["hungarian", "sinkhorn", "fixed"])
def test_each_way_to_match_gives_a_permutation(permutation):
    model = trained(GCRLVAE, modules(300), 3, activities=SETS, permutation=permutation)
    assert sorted(model.module.columns.tolist()) == list(range(5))


@pytest.mark.parametrize(
    "option", [{"discrepancy": "mmd"}, {"discrepancy": "energy"}, {"loss_scale": "paper"}, {"start": "random"}]
)
def test_other_options_train(option):
    model = trained(DiscrepancyVAE, modules(300), 2, n_latent=3, **option)
    assert np.isfinite(model.perturbation.predict(interventions=["far+off"]).X).all()


def test_activities_from_any_source(tmp_path):
    adata = modules(300)
    series = pd.Series({g: name for name, own in SETS.items() for g in own})
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("".join(f"{n}\tabout\t" + "\t".join([*own, "NOT_MEASURED"]) + "\n" for n, own in SETS.items()))
    loadings = pd.DataFrame({n: [float(g in own) for g in adata.var_names] for n, own in SETS.items()}, adata.var_names)
    found = [trained(GCRLVAE, adata.copy(), 1, activities=a).get_activities() for a in (SETS, series, gmt, loadings)]
    for other in found[1:3]:
        np.testing.assert_allclose(other[list(SETS)], found[0][list(SETS)], atol=1e-4)
    assert np.corrcoef(found[3]["module 1"], found[0]["module 1"])[0, 1] > 0.98


def test_wrong_arguments_are_named():
    adata = modules(200)
    GCRLVAE.setup_anndata(adata, intervention_key="p", control="control")
    with pytest.raises(SetupError, match="DiscrepancyVAE"):
        GCRLVAE(adata)
    with pytest.raises(SetupError, match="None of the 1 sets.*G1"):
        GCRLVAE(adata, activities={"a": ["G1", "G2"]})
    with pytest.raises(UnknownNameError, match="is_tf"):
        GCRLVAE(adata, activities=SETS, encoder_genes="is_tff")
    with pytest.raises(UnknownNameError, match="g999"):
        GCRLVAE(adata, activities=SETS, encoder_genes=["g999"])
    with pytest.raises(SetupError, match="n_latent is 2"):
        GCRLVAE(adata, activities=SETS, n_latent=2)
    with pytest.raises(SetupError, match="no gene set file"):
        GCRLVAE(adata, activities="nowhere.gmt")
    with pytest.raises(InputDataError, match="finite"):
        GCRLVAE(adata, activities=pd.DataFrame({"a": [np.nan]}, index=["g1"]))
    for name, value in (("residual", "some"), ("start", "warm"), ("intervention", "soft"), ("permutation", "best")):
        with pytest.raises(SetupError, match=value):
            GCRLVAE(adata, activities=SETS, **{name: value})
    with pytest.raises(SetupError, match="intervention_key"):
        DiscrepancyVAE.setup_anndata(adata)


def test_alignment_finds_the_modules_beside_simple_projections(autoencoder):
    table = autoencoder.get_alignment()
    assert table["partial"].iloc[1:].min() > 0.6
    assert table.attrs["condition"] > 1
    test = autoencoder.permutation_test()
    frame = test.to_frame()
    assert list(frame.index) == ["autoencoder", "PCA", "random projection"]
    assert frame.loc["autoencoder", "pvalue"] < 0.01 and frame.loc["autoencoder", "n_permutations"] == 999
    assert autoencoder.identifiability_report()["the sets are more than random sets"].verdict == "holds"


def test_sets_drawn_at_random_are_not_special():
    rng = np.random.default_rng(0)
    pvalues, verdicts = [], []
    for _ in range(3):
        drawn = rng.permutation([g for own in SETS.values() for g in own]).reshape(4, 12)
        model = trained(GCRLAE, modules(), 5, activities={f"set {k}": list(d) for k, d in enumerate(drawn)})
        pvalues.append(model.permutation_test(199)["autoencoder"].pvalue)
        verdicts.append(model.identifiability_report()["the sets are more than random sets"].verdict)
    assert np.median(pvalues) > 0.05
    assert verdicts.count("violated") >= 2


def test_autoencoder_without_interventions_and_its_limits():
    adata = modules(300)
    GCRLAE.setup_anndata(adata)
    model = GCRLAE(adata, activities=SETS, with_global=False, constraint="orthogonal")
    model.train(3, **QUIET)
    spread = model.seed_variability(5, n_steps=50)
    assert len(spread) == 6 and spread["tmex"].between(-1, 1).all()
    with pytest.raises(NotSupportedError):
        model.perturbation.predict(interventions=["g3"])
    single = GCRLAE(adata, activities={"one": SETS["module 0"]})
    single.train(1, **QUIET)
    with pytest.raises(NotSupportedError, match="two or more"):
        single.permutation_test()


def test_activities_that_repeat_each_other_are_reported():
    adata = modules(300)
    GCRLAE.setup_anndata(adata)
    verdicts = []
    for sets in (SETS, {**SETS, "again": SETS["module 0"][:11]}):
        model = GCRLAE(adata, activities=sets, with_global=False)
        model.train(1, **QUIET)
        verdicts.append(model.identifiability_report()["activities can be told apart"].verdict)
    assert verdicts == ["holds", "violated"]


def test_unseen_doubles_of_norman_at_or_below_additive(test_data):
    """Most targets of this file are not measured."""
    doubles = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
    adata = sc.read_h5ad(test_data / "norman_subset.h5ad")
    adata = AnnData(adata.X.toarray(), obs=adata.obs[["perturbation"]].astype(str), var=adata.var[[]])
    held = adata.obs["perturbation"].isin(doubles).to_numpy()
    train = adata[~held, (adata[~held].X > 0).sum(0) > 0].copy()
    test, control = adata[held, train.var_names], train[train.obs["perturbation"] == "control"]
    scvi.settings.seed = 0
    DiscrepancyVAE.setup_anndata(train, intervention_key="perturbation", control="control")
    model = DiscrepancyVAE(train, n_latent=6)
    model.train(6, train_size=1.0, **QUIET)
    assert sum(t in set(train.var_names) for t in model.codec.targets) <= 1
    true = test.to_df().groupby(test.obs["perturbation"].to_numpy()).mean()
    rule = baselines.Additive().fit(train, intervention_key="perturbation", control="control")
    found = {}
    for name, predicted in (
        ("model", model.perturbation.predict(interventions=doubles)),
        ("additive", rule.predict(interventions=doubles)),
    ):
        mean = predicted.to_df().groupby(predicted.obs["intervention"].astype(str).to_numpy()).mean()
        mean.index = ["+".join(sorted(i.split("+"))) for i in mean.index]
        found[name] = aecd(mean.loc[true.index].to_numpy(), true.to_numpy())
    nothing = aecd(np.repeat(control.X.mean(0)[None], 5, 0), true.to_numpy())
    assert found["model"] <= found["additive"] < 0.5 * nothing
