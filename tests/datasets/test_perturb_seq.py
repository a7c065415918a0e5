from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sccausal._errors import SetupError, UnknownNameError
from sccausal.datasets import simulate_perturb_seq
from sccausal.datasets._network import GeneNetwork


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return simulate_perturb_seq(n_cells=1500, n_genes=120, n_targets=6, n_doubles=3, n_batches=2, n_types=2, seed=3)


def network_of(adata: anndata.AnnData) -> GeneNetwork:
    frame = adata.uns["truth"]["network"]
    place = {g: i for i, g in enumerate(adata.var_names)}
    return GeneNetwork(
        genes=np.array(adata.var_names),
        source=frame["source"].map(place).to_numpy(),
        target=frame["target"].map(place).to_numpy(),
        weight=frame["weight"].to_numpy(),
        feedback=np.zeros(len(frame), dtype=bool),
        regulators=np.flatnonzero(adata.var["is_regulator"]),
    )


def downstream(adata: anndata.AnnData, label: str) -> np.ndarray:
    network = network_of(adata)
    return np.any([network.descendants(adata.var_names.get_loc(g)) for g in label.split("+")], axis=0)


def test_schema(adata):
    assert set(adata.layers) == {"counts", "mean", "counterfactual", "counterfactual_mean"}
    assert {"intervention", "dose", "cell_type", "batch", "condition", "size_factor", "library_size"} <= set(adata.obs)
    assert sparse.issparse(adata.X) and adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all() and adata.X.data.min() >= 0
    assert np.allclose(adata.obs["library_size"], np.asarray(adata.X.sum(axis=1)).ravel())
    counts = adata.obs["intervention"].value_counts()
    assert counts["control"] == 300 and counts.drop("control").max() - counts.drop("control").min() <= 1


def test_control_cells_are_their_own_counterfactual(adata):
    control = (adata.obs["intervention"] == "control").to_numpy()
    assert abs(adata.X[control] - adata.layers["counterfactual"][control]).sum() == 0
    assert np.array_equal(adata.layers["mean"][control], adata.layers["counterfactual_mean"][control])


def test_effects_reach_descendants_only(adata):
    truth = adata.uns["truth"]
    for label in truth["effects"]:
        cells = (adata.obs["intervention"] == label).to_numpy()
        reached = downstream(adata, label)
        mean, other = adata.layers["mean"][cells], adata.layers["counterfactual_mean"][cells]
        assert np.array_equal(mean[:, ~reached], other[:, ~reached])
        assert abs(adata.X[cells] - adata.layers["counterfactual"][cells])[:, ~reached].sum() == 0
        assert (truth["effects"][label][~reached] == 0).all()
        # faithful: nothing downstream stays exactly where it was
        assert (mean[:, reached] != other[:, reached]).any(axis=0).all()


def test_knockout_silences_its_target(adata):
    for target in adata.uns["truth"]["targets"]["target"]:
        cells = (adata.obs["intervention"] == target).to_numpy()
        assert adata[cells, target].X.sum() == 0
        assert adata.uns["truth"]["effects"].loc[target, target] < 0


@pytest.mark.parametrize(("kind", "factor"), [("knockdown", 0.15), ("activation", 6.0)])
def test_other_kinds_change_the_rate_of_their_target_by_the_stated_factor(kind, factor):
    adata = simulate_perturb_seq(n_cells=200, n_genes=40, n_targets=3, interventions=kind, seed=1, sortability=False)
    for target in adata.uns["truth"]["targets"]["target"]:
        cells = adata[adata.obs["intervention"] == target, target]
        assert np.allclose(cells.layers["mean"] / cells.layers["counterfactual_mean"], factor, rtol=1e-4)


def test_dose_is_graded():
    adata = simulate_perturb_seq(n_cells=900, n_genes=40, n_targets=2, doses=(0.25, 0.5, 1.0), seed=1)
    target = adata.uns["truth"]["targets"]["target"][0]
    cells = adata[adata.obs["intervention"] == target, target]
    left = (cells.layers["mean"] / cells.layers["counterfactual_mean"]).ravel()
    assert np.allclose(left, 1 - cells.obs["dose"], atol=1e-5)
    assert (adata.obs.loc[adata.obs["intervention"] == "control", "dose"] == 0).all()


def test_gene_without_targets_has_no_effect_elsewhere():
    adata = simulate_perturb_seq(n_cells=400, n_genes=60, n_regulators=2, n_targets=30, seed=2, sortability=False)
    lone = [t for t in adata.uns["truth"]["targets"]["target"] if not adata.var.loc[t, "is_regulator"]]
    assert len(lone) == 28
    effects = adata.uns["truth"]["effects"][lone]
    for target in lone:
        assert (effects[target].drop(target) == 0).all()


def interaction_left(**changed) -> float:
    """Root mean square of double minus sum of singles over that of the double, on log expected counts."""
    adata = simulate_perturb_seq(
        n_cells=3000, n_genes=100, n_targets=6, n_doubles=15, seed=4, noise=0.0, sortability=False, **changed
    )
    log_fold = np.log(adata.layers["mean"]) - np.log(adata.layers["counterfactual_mean"])
    mean = pd.DataFrame(log_fold, columns=adata.var_names).groupby(adata.obs["intervention"].to_numpy()).mean()
    doubles = [label for label in mean.index if "+" in label]
    sums = np.array([mean.loc[label.split("+")].sum(axis=0) for label in doubles])
    return float(np.sqrt(((mean.loc[doubles] - sums) ** 2).mean().mean() / (mean.loc[doubles] ** 2).mean().mean()))


def test_doubles_add_up_without_interaction_when_effects_are_small():
    small = {"interventions": "activation", "doses": 0.1, "strength": 0.3}
    assert interaction_left(**small) < 0.03
    # the interaction term goes with the product of doses: it needs full doses to be seen
    assert interaction_left(**(small | {"doses": 1.0, "interaction": 0.0})) < 0.12
    assert interaction_left(**(small | {"doses": 1.0, "interaction": 1.0})) > 0.2


def test_interaction_touches_common_descendants_only():
    arguments = {"n_cells": 600, "n_genes": 100, "n_targets": 6, "n_doubles": 15, "seed": 4, "sortability": False}
    plain, epistatic = (simulate_perturb_seq(**arguments, interaction=x) for x in (0.0, 1.0))
    singles = (plain.obs["intervention"].astype(str).str.count(r"\+") == 0).to_numpy()
    assert np.array_equal(plain.layers["mean"][singles], epistatic.layers["mean"][singles])
    touched = False
    for label in [c for c in plain.obs["intervention"].cat.categories if "+" in c]:
        cells = (plain.obs["intervention"] == label).to_numpy()
        common = np.all([downstream(plain, g) for g in label.split("+")], axis=0)
        changed = (plain.layers["mean"][cells] != epistatic.layers["mean"][cells]).any(axis=0)
        assert not changed[~common].any()
        touched |= bool(changed.any())
    assert touched


def test_observed_counts_follow_the_closed_form_of_their_mean():
    adata = simulate_perturb_seq(
        n_cells=4000, n_genes=40, n_targets=0, noise=0.0, dispersion=0.3, seed=1, sortability=False
    )
    mean = adata.layers["mean"]
    expected = mean.mean(axis=0)
    counts = adata.X.toarray()
    se = counts.std(axis=0) / np.sqrt(len(counts))
    assert (np.abs(counts.mean(axis=0) - expected) < 5 * se).all()
    # var = E[m] + phi E[m^2] + Var[m], with a gene-specific phi around .3
    phi = (counts.var(axis=0) - expected - mean.var(axis=0)) / (mean**2).mean(axis=0)
    assert abs(np.median(phi) - 0.3) < 0.1


@pytest.mark.parametrize(("confounded", "low", "high"), [(0.0, 0.0, 0.06), (0.5, 0.4, 0.6), (1.0, 0.999, 1.0)])
def test_batch_follows_the_condition_as_far_as_asked(confounded, low, high):
    adata = simulate_perturb_seq(
        n_cells=3000, n_genes=20, n_targets=0, n_batches=2, condition=True, confounded=confounded, sortability=False
    )
    table = pd.crosstab(adata.obs["condition"], adata.obs["batch"], normalize="index").to_numpy()
    assert low <= abs(table[0, 0] - table[1, 0]) <= high


def test_batches_shift_genes_in_observed_and_counterfactual_alike(adata):
    other = simulate_perturb_seq(
        n_cells=1500, n_genes=120, n_targets=6, n_doubles=3, n_batches=2, n_types=2, seed=3, batch_strength=0.0
    )
    ratio = np.log(adata.layers["mean"][:, 0] / other.layers["mean"][:, 0])
    finite = np.isfinite(ratio)
    by_batch = pd.Series(ratio[finite]).groupby(adata.obs["batch"].to_numpy()[finite])
    assert (by_batch.std() < 1e-5).all() and abs(by_batch.mean().diff().iloc[1]) > 1e-3


def test_stimulus_differs_between_types_and_spreads():
    adata = simulate_perturb_seq(n_cells=1200, n_genes=150, n_targets=4, n_types=3, condition=True, seed=0)
    truth = adata.uns["truth"]
    direct = (truth["stimulus"] != 0).any(axis=1)
    reached = (truth["condition_effects"].abs() > 0.05).any(axis=1)
    assert (reached & ~direct).sum() > 3
    assert (truth["stimulus"][direct].std(axis=1) > 0).all()
    # effects of interventions are told apart from the stimulus: non-descendants of a target stay at exactly 0
    target = truth["targets"]["target"][0]
    assert (truth["effects"][target][~downstream(adata, target)] == 0).all()


def test_times_lie_between_control_and_steady_state():
    adata = simulate_perturb_seq(n_cells=800, n_genes=60, n_targets=3, time=(0.0, 1.0, 20.0), seed=5)
    target = adata.uns["truth"]["targets"]["target"][0]
    cells = adata[adata.obs["intervention"] == target]
    left = pd.Series((cells[:, target].layers["mean"] / cells[:, target].layers["counterfactual_mean"]).ravel())
    by_time = left.groupby(cells.obs["time"].to_numpy()).mean()
    assert by_time[0.0] == pytest.approx(1.0) and 0.1 < by_time[1.0] < 0.7 and by_time[20.0] < 1e-3


def test_same_seed_same_data_and_other_seed_other_data():
    first, second = (simulate_perturb_seq(n_cells=200, n_genes=50, n_targets=3, seed=9) for _ in range(2))
    assert abs(first.X - second.X).sum() == 0 and first.obs.equals(second.obs)
    assert first.uns["truth"]["network"].equals(second.uns["truth"]["network"])
    other = simulate_perturb_seq(n_cells=200, n_genes=50, n_targets=3, seed=10)
    assert abs(first.X - other.X).sum() > 0


def test_network_seed_keeps_the_system_for_new_cells():
    first, second = (simulate_perturb_seq(n_cells=200, n_genes=50, n_targets=3, seed=s, network_seed=1) for s in (1, 2))
    assert first.uns["truth"]["network"].equals(second.uns["truth"]["network"])
    assert abs(first.X - second.X).sum() > 0


def test_h5ad_round_trip(adata, tmp_path):
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    back = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    assert abs(back.X - adata.X).sum() == 0
    for key in ("network", "effects", "targets"):
        pd.testing.assert_frame_equal(back.uns["truth"][key], adata.uns["truth"][key], check_dtype=False)
    assert back.uns["truth"]["parameters"] == adata.uns["truth"]["parameters"]


def test_feedback_and_dropout_run_and_are_marked():
    adata = simulate_perturb_seq(n_cells=400, n_genes=60, n_targets=4, n_feedback=6, dropout=0.4, seed=1)
    plain = simulate_perturb_seq(n_cells=400, n_genes=60, n_targets=4, n_feedback=6, dropout=0.0, seed=1)
    assert (adata.X != 0).sum() < (plain.X != 0).sum()
    assert not network_of(adata).is_acyclic
    assert (adata.layers["mean"] <= plain.layers["mean"] + 1e-6).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"confounded": 1.5}, "confounded"),
        ({"n_cells": 1}, "n_cells"),
        ({"n_targets": 600}, "n_targets"),
        ({"n_targets": 3, "n_doubles": 4}, "n_doubles"),
        ({"doses": (0.5, 2.0)}, "dose"),
        ({"n_cells": 20, "n_targets": 20}, "perturbed cells"),
        ({"time": (-1.0,)}, "time"),
        ({"library_size": 0.0}, "library_size"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(SetupError, match=word):
        simulate_perturb_seq(**arguments)


@pytest.mark.parametrize("arguments", [{"preset": "strogn"}, {"interventions": "knock-out"}])
def test_misspelt_names_get_suggestions(arguments):
    with pytest.raises(UnknownNameError, match="Did you mean"):
        simulate_perturb_seq(**arguments)


def test_preset_sizes_can_be_overridden():
    adata = simulate_perturb_seq(preset="mild", n_cells=500, seed=0, sortability=False)
    assert adata.shape == (500, 500)
    assert adata.obs["intervention"].nunique() == 41
    assert adata.uns["truth"]["preset"] == "mild"


def test_thousands_of_cells_and_two_thousand_genes():
    adata = simulate_perturb_seq(n_cells=2000, n_genes=2000, n_targets=10, sortability=False)
    assert adata.shape == (2000, 2000)
