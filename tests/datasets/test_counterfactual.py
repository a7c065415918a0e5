from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from sccausal._errors import FileFormatError, SetupError, UnknownNameError
from sccausal.datasets import simulate_counterfactual, simulate_perturb_seq


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return simulate_perturb_seq(
        n_cells=900,
        n_genes=80,
        n_targets=5,
        n_doubles=4,
        n_types=2,
        n_batches=2,
        interventions=("knockout", "activation"),
        doses=(0.5, 1.0),
        interaction=0.5,
        condition=True,
        time=(0.5, 2.0),
        dropout=0.2,
        n_feedback=3,
        seed=7,
        sortability=False,
    )


@pytest.fixture(scope="module")
def steady() -> anndata.AnnData:
    return simulate_perturb_seq(n_cells=700, n_genes=60, n_targets=4, n_doubles=2, seed=1, sortability=False)


@pytest.mark.parametrize("which", ["adata", "steady"])
def test_factual_intervention_gives_the_factual_cells(which, request):
    data = request.getfixturevalue(which)
    same = simulate_counterfactual(data)
    assert abs(same.X - data.X).sum() == 0
    assert np.array_equal(same.layers["mean"], data.layers["mean"])
    pd.testing.assert_frame_equal(same.obs, data.obs)


def test_factual_labels_per_cell_give_the_factual_cells(steady):
    same = simulate_counterfactual(steady, steady.obs["intervention"])
    assert abs(same.X - steady.X).sum() == 0


@pytest.mark.parametrize("which", ["adata", "steady"])
def test_control_gives_the_counterfactual_layer(which, request):
    data = request.getfixturevalue(which)
    control = simulate_counterfactual(data, "control", condition="control")
    assert abs(control.X - data.layers["counterfactual"]).sum() == 0
    assert np.allclose(control.layers["mean"], data.layers["counterfactual_mean"], rtol=1e-6)
    assert (control.obs["intervention"] == "control").all() and (control.obs["dose"] == 0).all()


def test_order_and_choice_of_cells_and_genes_do_not_matter(adata):
    chosen = np.random.default_rng(0).permutation(adata.n_obs)[:150]
    genes = adata.var_names[::-3]
    target = adata.uns["truth"]["targets"]["target"][0]
    whole = simulate_counterfactual(adata, target)
    part = simulate_counterfactual(adata[chosen, genes], target)
    assert part.obs_names.equals(adata.obs_names[chosen]) and part.var_names.equals(genes)
    assert abs(part.X - whole[chosen, genes].X).sum() == 0


def test_works_after_a_round_trip_through_a_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    same = simulate_counterfactual(anndata.read_h5ad(tmp_path / "simulated.h5ad"))
    assert abs(same.X - adata.X).sum() == 0


def test_spellings_of_one_intervention_agree(steady):
    a, b = steady.uns["truth"]["targets"]["target"][:2]
    results = [simulate_counterfactual(steady, x) for x in (f"{a}+{b}", f"{b}+{a}", (a, b), {a: 1.0, b: 1.0})]
    for other in results[1:]:
        assert abs(results[0].X - other.X).sum() == 0


def test_noise_is_shared_between_worlds(steady):
    # with the same noise, worlds agree far better than two draws would: the median gene does not move at all
    target = steady.uns["truth"]["targets"]["target"][0]
    other = simulate_counterfactual(steady, target)
    control = simulate_counterfactual(steady, "control")
    lower = other.layers["mean"] <= control.layers["mean"]
    fewer = other.X.toarray() <= control.X.toarray()
    assert fewer[lower].all() and (~fewer).sum() > 0


def test_any_gene_can_be_intervened_on_in_any_way(steady):
    gene = next(g for g in steady.var_names if not steady.var.loc[g, "is_target"])
    silent = simulate_counterfactual(steady, gene, kind="knockout")
    half = simulate_counterfactual(steady, {gene: 0.5}, kind="knockout")
    loud = simulate_counterfactual(steady, gene, kind="activation")
    base = simulate_counterfactual(steady, "control")
    mean = {k: v[:, gene].layers["mean"] for k, v in (("0", silent), ("half", half), ("6", loud), ("1", base))}
    assert (mean["0"] == 0).all()
    assert np.allclose(mean["half"], 0.5 * mean["1"]) and np.allclose(mean["6"], 6 * mean["1"], rtol=1e-5)


def test_dose_alone_changes_perturbed_cells_only(adata):
    target = adata.uns["truth"]["targets"]["target"][0]
    weak = simulate_counterfactual(adata, dose=0.0)
    control = simulate_counterfactual(adata, "control")
    assert abs(weak.X - control.X).sum() == 0
    strong = simulate_counterfactual(adata, target, dose=1.0)
    assert (strong.obs["dose"] == 1.0).all()


def test_time_and_condition_can_be_set(adata):
    early = simulate_counterfactual(adata, time=0.0)
    assert np.allclose(early.layers["mean"], adata.layers["counterfactual_mean"], rtol=1e-5)
    stimulated = simulate_counterfactual(adata, "control", condition="stimulated", time=5.0)
    assert (stimulated.obs["condition"] == "stimulated").all() and (stimulated.obs["time"] == 5.0).all()
    assert not np.allclose(stimulated.layers["mean"], adata.layers["counterfactual_mean"], rtol=0.1)


def test_errors_name_what_is_wrong(adata, steady):
    with pytest.raises(UnknownNameError, match="gene"):
        simulate_counterfactual(steady, "G00O1")
    with pytest.raises(UnknownNameError, match="kind"):
        simulate_counterfactual(steady, "control", kind="knock")
    with pytest.raises(UnknownNameError, match="condition"):
        simulate_counterfactual(steady, condition="stimulated")
    with pytest.raises(SetupError, match="time"):
        simulate_counterfactual(steady, time=1.0)
    with pytest.raises(SetupError, match="lacks"):
        simulate_counterfactual(steady, steady.obs["intervention"].iloc[:5])
    with pytest.raises(SetupError, match="simulate_perturb_seq"):
        simulate_counterfactual(anndata.AnnData(np.ones((3, 2), dtype=np.float32)))


def test_data_of_another_version_are_refused(steady):
    other = steady.copy()
    other.uns["truth"] = dict(other.uns["truth"], version=0)
    with pytest.raises(FileFormatError, match="version"):
        simulate_counterfactual(other)
    other.uns["truth"] = dict(steady.uns["truth"], network=steady.uns["truth"]["network"].iloc[:-1])
    with pytest.raises(FileFormatError, match="network"):
        simulate_counterfactual(other)
