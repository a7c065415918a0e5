from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from citevae_data import KEYS, QUIET, fit_factors, log_normalised

from sccausal import CITEVAE
from sccausal._errors import SetupError, UnknownNameError
from sccausal.datasets import simulate_temporal_factors, simulate_time_course
from sccausal.metrics import block_scores


def blocks(model):
    return {k: model.get_latent_representation(representation=k) for k in ("invariant", "responsive")}


def scores(model, adata, test, **kwargs):
    label = adata.obs["intervention"].astype(str).to_numpy()
    return block_scores(blocks(model), adata.obsm, label, ~test, **kwargs).set_index("metric")["value"]


# identification ----------------------------------------------------------------------------------------------------


def test_blocks_are_kept_apart_and_alignment_is_why(loose):
    model, adata, test = fit_factors(start="random")
    found = scores(model, adata, test, kind="linear")
    without = scores(loose, adata, test, kind="linear")
    assert found["excess_invariant"] < 0.1 < without["excess_invariant"]
    assert found["r2_invariant"] > without["r2_invariant"] + 0.1
    assert found["environment_accuracy"] < found["environment_chance"] + 0.05
    assert without["environment_accuracy"] > found["environment_accuracy"] + 0.05


@pytest.mark.slow
def test_both_blocks_are_identified():
    model, adata, test = fit_factors(epochs=60, n_cells=3000)
    found = scores(model, adata, test)
    assert found["r2_responsive"] > 0.9 and found["r2_invariant"] > 0.9
    assert found["excess_invariant"] < 0.1 and found["excess_responsive"] < 0.1
    assert found["environment_accuracy"] < found["environment_chance"] + 0.05
    assert found["mcc"] > 0.78  # principal components score below .6
    chance, auprc = lagged_edges(model, adata)
    assert auprc > chance + 0.2


def lagged_edges(model, adata):
    """Chance and AUPRC of the lagged edges into responsive factors, matched one to one."""
    from sccausal.metrics import auprc, match_latents

    truth = adata.uns["truth"]
    names, targets = [*truth["invariant"], *truth["responsive"]], truth["responsive"]
    edges = pd.crosstab(truth["graph"]["source"], truth["graph"]["target"])
    edges = edges.reindex(index=names, columns=targets, fill_value=0).to_numpy() > 0
    off = np.array([[source != target for target in targets] for source in names])
    z = np.column_stack(list(blocks(model).values()))
    order = match_latents(z, np.column_stack([adata.obsm["invariant"], adata.obsm["responsive"]])).learned
    weight = np.abs(model.get_lagged_graph().to_matrix(model.latent_names))[np.ix_(order, order[-len(targets) :])]
    return edges[off].mean(), auprc(weight[off], edges[off])


def test_a_collapse_is_noticed_and_warned_about(factors):
    """The form of the paper over random pairs is least for a constant block."""
    with pytest.warns(UserWarning, match="collapsed"):
        model, _, _ = fit_factors(epochs=8, alignment="paired", alignment_weight=200.0)
    assert model.invariant_collapse() > 0.5
    assert model.identifiability_report()["invariant block is used"].verdict == "violated"
    assert factors[0].invariant_collapse() < 0.5
    assert factors[0].identifiability_report()["invariant block is used"].verdict == "holds"


@pytest.mark.parametrize("pairing", ["ot", "ot-invariant", "independent"])
def test_snapshots_can_be_paired(pairing):
    adata = simulate_temporal_factors(800, n_times=3, tracked=False, seed=5)
    scvi.settings.seed = 0
    CITEVAE.setup_anndata(adata, **KEYS)
    model = CITEVAE(adata, n_invariant=4, n_responsive=7, pairing=pairing, intervention_embedding="onehot", n_hidden=16)
    model.train(3, batch_size=128, **QUIET)
    loss = model.history["elbo_train"].to_numpy(float).ravel()
    assert np.isfinite(loss).all() and loss[-1] < loss[0]


# prediction --------------------------------------------------------------------------------------------------------


def error(predicted, true, names, time):
    out = []
    for name in names:
        p = predicted[(predicted.obs["intervention"] == name).to_numpy()].X.mean(0)
        own = (true.obs["intervention"] == name).to_numpy() & (true.obs["time"] == time).to_numpy()
        t = np.asarray(true.X[own].mean(0)).ravel()
        out.append(np.sqrt(np.mean((np.asarray(p).ravel() - t) ** 2)))
    return float(np.mean(out))


def controls_at(cells, time):
    return cells[((cells.obs["intervention"] == "control") & (cells.obs["time"] == time)).to_numpy()].copy()


def no_change(cells, names, time):
    """Error of the control mean itself."""
    base = np.asarray(controls_at(cells, time).X.mean(0)).ravel()
    at = [((cells.obs["intervention"] == n) & (cells.obs["time"] == time)).to_numpy() for n in names]
    return float(np.mean([np.sqrt(np.mean((base - np.asarray(cells.X[k].mean(0)).ravel()) ** 2)) for k in at]))


def test_late_effects_of_interventions_seen_early_are_better_than_additive(followed):
    from sccausal.baselines import TimeAdditive

    model, cells, _, early = followed
    source = controls_at(cells, 4.0)
    ours = error(model.perturbation.predict(source, early, times=[4.0]), cells, early, 4.0)
    train = AnnData(model.adata.X, obs=model.adata.obs[["intervention", "time"]].astype({"intervention": str}),
                    var=model.adata.var)  # fmt: skip
    rule = TimeAdditive().fit(train, time_key="time", **{k: KEYS[k] for k in ("intervention_key", "control")})
    assert ours < error(rule.predict(source, early, times=[4.0]), cells, early, 4.0)
    assert ours < 0.8 * no_change(cells, early, 4.0)


def test_unseen_interventions_are_better_than_no_change(followed):
    model, cells, unseen, _ = followed
    source = controls_at(cells, 4.0)
    predicted = model.perturbation.predict(source, unseen, times=[4.0])
    assert error(predicted, cells, unseen, 4.0) < 0.9 * no_change(cells, unseen, 4.0)


def test_control_cells_reach_the_control_mean_of_later_times(followed):
    model, cells, _, _ = followed
    early, late = controls_at(cells, 0.5), controls_at(cells, 4.0)
    rolled = model.perturbation.predict(early, ["control"], times=[4.0])
    gap = np.linalg.norm(np.asarray(early.X.mean(0) - late.X.mean(0)))
    reached = np.linalg.norm(np.asarray(rolled.X).mean(0) - np.asarray(late.X.mean(0)).ravel())
    assert reached < 0.4 * gap
    back = model.perturbation.predict(late, ["control"], times=[0.5])
    assert np.linalg.norm(np.asarray(back.X).mean(0) - np.asarray(early.X.mean(0)).ravel()) < 0.4 * gap
    same = model.perturbation.predict(early, ["control"], times=[0.5])
    np.testing.assert_allclose(same.X, early.X.toarray(), atol=1e-5)
    assert (np.asarray(rolled.X) >= 0).all()


def test_rolled_cells_have_the_distribution_of_measured_ones(followed):
    from sccausal.metrics import energy_distance

    model, cells, _, _ = followed
    early, late = controls_at(cells, 0.5), controls_at(cells, 4.0)
    rolled = np.asarray(model.perturbation.predict(early, ["control"], times=[4.0]).X)
    before = energy_distance(early.X.toarray(), late.X.toarray())
    assert energy_distance(rolled, late.X.toarray()) < 0.25 * before
    # between two measured times a share of the cells has gone the whole way, the others have not left
    middle = np.asarray(model.perturbation.predict(early, ["control"], times=[1.0], seed=3).X)
    stayed = np.isclose(middle, early.X.toarray(), atol=1e-5).all(1).mean()
    assert stayed == pytest.approx(0.5, abs=0.12)


def test_times_between_and_beyond_are_marked(followed):
    model, cells, _, _ = followed
    source = controls_at(cells, 0.5)
    name = model.codec.targets[5]
    with pytest.warns(UserWarning, match="outside of the measured times"):
        predicted = model.perturbation.predict(source, [name], times=[1.5, 2.5, 6.0])
    marks = predicted.obs.groupby("time", observed=True)["time_support"].first().to_dict()
    assert marks == {1.5: "measured", 2.5: "between", 6.0: "beyond"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.perturbation.predict(source, [name], times=[1.5, 2.5])
    sizes = [model.perturbation.effects([name], source, time=t)["change"].pow(2).sum() for t in (0.5, 1.5, 2.5, 4.0)]
    assert sizes[0] < sizes[2] < sizes[3]


def test_one_hot_features_refuse_unseen_targets_with_the_remedy(course):
    cells = log_normalised(course)[:, :30].copy()
    label = cells.obs["intervention"].astype(str).to_numpy()
    names = sorted(set(label) - {"control"})
    cells = cells[label != names[0]].copy()
    label = cells.obs["intervention"].astype(str).to_numpy()
    cells.obsm["doses"] = pd.DataFrame({n: (label == n).astype(np.float32) for n in names}, index=cells.obs_names)
    CITEVAE.setup_anndata(cells, intervention_key="doses", control="control", time_key="time")
    model = CITEVAE(cells, intervention_embedding="onehot", n_responsive=2, n_invariant=2, n_hidden=8)
    model.train(1, **QUIET)
    with pytest.raises(SetupError, match=f"{names[0]} was not in training.*coexpression"):
        model.perturbation.predict(interventions=[names[0]])
    model.perturbation.predict(interventions=[names[1]])


def test_a_time_course_without_interventions_is_followed():
    truth = simulate_time_course(150, 60, 1, (0.3, 0.8, 1.5, 3.0), n_control_groups=2, seed=2)
    cells = log_normalised(truth)
    cells = cells[(cells.obs["intervention"] == "control").to_numpy()].copy()
    middle = (cells.obs["time"] == 0.8).to_numpy()
    train = cells[~middle].copy()
    scvi.settings.seed = 0
    CITEVAE.setup_anndata(train, time_key="time")
    model = CITEVAE(train, n_invariant=3, n_responsive=3, n_hidden=16)
    model.train(15, **QUIET)
    start = cells[(cells.obs["time"] == 0.3).to_numpy()].copy()
    out = model.rollout(start, [0.8], n_samples=2, seed=1)
    assert out.n_obs == 2 * start.n_obs and set(out.obs["time_support"]) == {"between"}
    mean = {t: np.asarray(cells[(cells.obs["time"] == t).to_numpy()].X.mean(0)).ravel() for t in (0.3, 0.8, 1.5)}
    near = min(np.linalg.norm(mean[t] - mean[0.8]) for t in (0.3, 1.5))
    assert np.linalg.norm(np.asarray(out.X).mean(0) - mean[0.8]) < 0.9 * near
    assert "alignment" not in {c.name for c in model.identifiability_report()}


# set-up ------------------------------------------------------------------------------------------------------------


def test_bad_setups_are_named(course):
    cells = log_normalised(course)
    with pytest.raises(SetupError, match="time_key"):
        CITEVAE.setup_anndata(cells, intervention_key="intervention", control="control")
    one = cells[(cells.obs["time"] == 4.0).to_numpy()].copy()
    with pytest.raises(SetupError, match="time 4"):
        CITEVAE.setup_anndata(one, **KEYS)
    with pytest.raises(UnknownNameError, match="trakc"):
        CITEVAE.setup_anndata(cells, **KEYS, track_key="trakc")
    CITEVAE.setup_anndata(cells, **KEYS)
    with pytest.raises(UnknownNameError, match="coexpresion"):
        CITEVAE(cells, intervention_embedding="coexpresion")
    targets = sorted(set(cells.obs["intervention"].astype(str)) - {"control"})
    with pytest.raises(UnknownNameError, match=targets[-1]):
        CITEVAE(cells, intervention_embedding=pd.DataFrame(np.ones((9, 2)), index=targets[:-1]))
    with pytest.warns(UserWarning, match="19 environments"):
        CITEVAE(cells, n_responsive=9)
    with pytest.raises(SetupError, match="pairng"):
        CITEVAE(cells, pairing="pairng")
    with pytest.raises(SetupError, match="track_key"):
        CITEVAE(cells, pairing="tracked").train(1, **QUIET)


# report ------------------------------------------------------------------------------------------------------------


def test_each_check_changes_its_verdict(factors, loose, course):
    report = factors[0].identifiability_report()
    assert report["control at every time"].verdict == "holds"
    assert report["interventions are followed"].verdict == "holds"
    assert report["alignment"].verdict == "holds"
    assert report["parents removed"].verdict == "unknown"
    assert loose.identifiability_report()["alignment"].verdict == "violated"
    for per_factor, verdict in ((3, "holds"), (1, "violated")):
        sim = {"n_responsive": 2, "n_invariant": 2, "n_per_factor": per_factor}
        own, _, _ = fit_factors(epochs=12, n_cells=600, sim=sim)
        assert own.identifiability_report()["environment sufficiency"].verdict == verdict
    cells = log_normalised(course)[:, :40].copy()
    label, time = cells.obs["intervention"].astype(str).to_numpy(), cells.obs["time"].to_numpy()
    names = sorted(set(label) - {"control"})
    cells = cells[~((label == "control") & (time == 1.5)) & ~((label == names[0]) & (time > 1))].copy()
    CITEVAE.setup_anndata(cells, **KEYS)
    model = CITEVAE(cells, n_responsive=2, n_invariant=2, n_hidden=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(1, **QUIET)
    poor = model.identifiability_report()
    assert poor["control at every time"].verdict == "violated"
    assert poor["interventions are followed"].verdict == "violated"


def test_outputs_of_the_latents(factors):
    model, adata, _ = factors
    graph = model.get_lagged_graph()
    assert graph.to_frame()["target"].str.startswith("responsive").all()
    assert model.grn.network() == graph
    edges = graph.to_frame()
    persistence = edges.loc[edges["source"] == edges["target"], "weight"]
    assert len(persistence) == 7 and persistence.between(0.01, 1.1).all()
    lines = model.get_trajectories(["do_0_0", "control"], n_cells=20, seed=3)
    assert set(lines["intervention"]) == {"do_0_0", "control"} and lines["time"].nunique() == 3
    wide = lines.pivot(index=["cell", "time"], columns="intervention", values=model.latent_names)
    first = wide.xs(0.0, level="time")
    for latent in model.latent_names:
        np.testing.assert_allclose(first[(latent, "do_0_0")], first[(latent, "control")])
    last = wide.xs(2.0, level="time")
    names = [n for n in model.latent_names if n.startswith("invariant")]
    for latent in names:  # the same noise, and no intervention reaches c
        np.testing.assert_allclose(last[(latent, "do_0_0")], last[(latent, "control")], atol=1e-5)
    effects = model.get_responsive_effects()
    assert len(effects) == 14 * 7 and effects["parents_kept"].between(0, 1).all()
    loadings = model.latent_loadings()
    assert loadings.shape == (64, 11) and np.isfinite(loadings.to_numpy()).all()
