"""ScConCRL on cells with a known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

from sccausal._errors import InputDataError, NotSupportedError, SetupError, UnknownNameError
from sccausal.models import ScConCRL
from sccausal.models.scconcrl._assumptions import probe

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}


@pytest.fixture(autouse=True)
def _seed():
    scvi.settings.seed = 0


def network(m: int, regulators: int, seed: int) -> np.ndarray:
    """Acyclic weights from the first genes to later ones."""
    rng = np.random.default_rng(seed)
    A = np.zeros((m, m))
    for i in range(regulators):
        for j in rng.choice(np.arange(i + 1, m), size=4, replace=False):
            A[i, j] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
    return A


def cells(
    n: int = 800,
    m: int = 30,
    seed: int = 0,
    *,
    batch_shift: float = 0.0,
    confounded: bool = False,
    composition: bool = False,
    bent_batch: float = 0.0,
    condition: bool = False,
    controls_everywhere: bool = True,
    skew: bool = True,
    feedback: bool = False,
    targets: int = 1,
    interaction: float = 0.0,
) -> AnnData:
    """Cells of a linear SEM with two types, two batches and interventions; ``layers["clean"]`` has no batch effect."""
    rng = np.random.default_rng(seed)
    A = network(m, 6, 0)
    if feedback:
        A[0, 1], A[1, 0] = 0.6, 0.6
    noise = rng.gumbel(size=(n, m)) / 1.28 if skew else rng.normal(size=(n, m))
    batch, kind = rng.integers(0, 2, n), rng.integers(0, 2, n)
    if composition:
        kind = np.where(rng.random(n) < 0.95, batch, 1 - batch)
    dose = np.zeros((n, targets))
    if condition:
        draw = batch if confounded else rng.integers(0, 2, n)
        if targets == 1:
            dose[:, 0] = draw
        else:
            for t in range(2):
                dose[:, t] = rng.integers(0, 2, n)
        if not controls_everywhere:
            dose[kind == 1] = 1
    push = np.zeros((targets, m))
    for t in range(targets):
        push[t, t] = 2.0
    pair = interaction * (dose.prod(1) if targets > 1 else 0 * dose[:, 0])[:, None] * rng.normal(size=m)
    effect = np.zeros((2, m))
    effect[:, 15:25] = rng.normal(size=(2, 10)) * 2
    outside = noise + np.eye(2)[kind] @ effect + (dose * (1 + 0.5 * kind[:, None])) @ push + pair
    clean = outside @ np.linalg.inv(np.eye(m) - A) + 5
    x = clean + batch_shift * batch[:, None] * np.random.default_rng(7).normal(size=m)
    square = np.square((clean - clean.mean(0)) / clean.std(0))
    x = x + bent_batch * batch[:, None] * square * np.random.default_rng(8).normal(size=m)
    names = [f"g{i}" for i in range(m)]
    label = ["+".join(names[t] for t in np.flatnonzero(row)) or "control" for row in dose]
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"b{b}" for b in batch]),
            "cell_type": pd.Categorical([f"t{k}" for k in kind]),
            "intervention": pd.Categorical(label),
        },
        index=[f"c{i}" for i in range(n)],
    )
    out = AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame({"is_tf": np.arange(m) < 10}, index=names))
    out.layers["clean"] = clean.astype(np.float32)
    out.uns["truth"] = A
    return out


def model_of(adata: AnnData, setup: dict, epochs: int | None = 15, **kwargs) -> ScConCRL:
    ScConCRL.setup_anndata(adata, **setup)
    model = ScConCRL(adata, n_hidden=32, **kwargs)
    if epochs:
        model.train(epochs, **QUIET)
    return model


BATCH = {"batch_key": "batch"}
BOTH = {"batch_key": "batch", "labels_key": "cell_type", "intervention_key": "intervention", "control": "control"}


def test_graph_finds_edges_and_leaves_zeros_elsewhere():
    adata = cells(2000)
    model = model_of(adata, {}, 40, regulators="is_tf", sparsity_weight=0.3)
    weight = model.grn.network().to_matrix(list(adata.var_names))
    truth = adata.uns["truth"] != 0
    rows = np.arange(10)
    edges, others = truth[rows], ~truth[rows]
    others[rows, rows] = False
    size = np.abs(weight[rows])
    # an edge is larger than a non-edge, and what is cut to zero is a non-edge
    larger = (size[edges][:, None] > size[others][None]).mean()
    assert larger > 0.75
    assert (size[others] == 0).mean() > (size[edges] == 0).mean() + 0.1
    found = edges & (size > 0.2)
    assert (np.sign(weight[rows])[found] == np.sign(adata.uns["truth"][rows])[found]).mean() > 0.9


def test_network_is_acyclic_and_says_how():
    model = model_of(cells(), {}, 5, acyclicity="logdet")
    net = model.grn.network()
    import networkx as nx

    assert nx.is_directed_acyclic_graph(net.to_networkx())
    assert net.metadata["acyclicity"] == "logdet"
    free = model.grn.network(prune=False)
    assert len(free) == len(net) + net.metadata["n_cut"]


def test_dense_maps_refuse_a_network():
    model = model_of(cells(200), {}, 1, decoder="dense")
    with pytest.raises(NotSupportedError, match="mixes genes"):
        model.grn.network()


def test_ensemble_gives_stability():
    model = model_of(cells(300), {}, None, regulators="is_tf")
    model.train(3, n_runs=3, **QUIET)
    frame = model.grn.network().to_frame()
    assert model.grn.network().metadata["n_runs"] == 3
    assert frame["stability"].between(0, 1).all() and frame["stability"].iloc[:10].mean() > 0.6
    assert frame["stability"].iloc[:10].mean() > frame["stability"].iloc[-50:].mean() + 0.3


def test_probe_on_exogenous_part_is_at_chance():
    adata = cells(1200, batch_shift=1.5)
    codes = adata.obs["batch"].cat.codes.to_numpy()
    assert probe(adata.X, codes)[0] > 0.85
    model = model_of(adata, BATCH, 20)
    accuracy, chance = probe(model.get_latent_representation(representation="nx"), codes)
    assert accuracy < chance + 0.08


def test_integrated_expression_is_nearer_to_clean_cells_also_for_an_unseen_batch():
    adata = cells(1200, batch_shift=1.5)
    model = model_of(adata, BATCH, 20)
    clean = adata.layers["clean"] - adata.layers["clean"].mean(0)

    def error(x: np.ndarray) -> float:
        return float(((x - x.mean(0) - clean) ** 2).sum(1).mean())

    raw = error(adata.X)
    assert error(model.get_normalized_expression(return_numpy=True)) < 0.15 * raw
    frame = model.get_normalized_expression(indices=[3, 1], batch="b1")
    assert list(frame.index) == ["c3", "c1"] and list(frame.columns) == list(adata.var_names)
    with pytest.raises(UnknownNameError, match="b1"):
        model.get_normalized_expression(batch="b2")
    # a third batch, half as strong a shift as b1, is mapped by its cells alone
    shift = (adata.X - adata.layers["clean"])[(adata.obs["batch"] == "b1").to_numpy()][0]
    query = AnnData(
        (adata.layers["clean"] + 0.5 * shift).astype(np.float32),
        obs=adata.obs.assign(batch=pd.Categorical(["new"] * adata.n_obs)),
        var=adata.var,
    )
    query = query[:200].copy()
    mapped = model.get_normalized_expression(query, return_numpy=True)
    own = model.get_normalized_expression(indices=range(200), return_numpy=True)
    offset = query.X - adata.layers["clean"][:200]
    assert ((mapped - own) ** 2).sum() < 0.5 * (offset**2).sum()


def test_paper_response_warns_of_no_change_and_state_response_does_not():
    adata = cells(600, condition=True)
    with pytest.warns(UserWarning, match="almost no change"):
        model_of(adata.copy(), BOTH, 1, response="paper", graph_start="random")
    model = model_of(adata.copy(), BOTH, 10)
    predicted = model.perturbation.predict(interventions=["g0"])
    for kind in ("t0", "t1"):
        here = (adata.obs["cell_type"] == kind).to_numpy()
        treated = here & (adata.obs["intervention"] == "g0").to_numpy()
        control = here & (adata.obs["intervention"] == "control").to_numpy()
        true = adata.X[treated].mean(0) - adata.X[control].mean(0)
        mine = predicted[(predicted.obs["cell_type"] == kind).to_numpy()].X.mean(0) - adata.X[control].mean(0)
        assert ((mine - true) ** 2).sum() < 0.2 * (true**2).sum()


def test_one_batch_needs_no_batch_key_and_queries_can_be_aligned():
    adata = cells(800, condition=True)
    setup = {k: v for k, v in BOTH.items() if k != "batch_key"}
    model = model_of(adata[:600].copy(), setup, 5, align_queries=True)
    query = adata[600:].copy()
    expected = model.get_latent_representation(query.copy(), representation="integrated")
    query.X = query.X + 2 * np.random.default_rng(3).normal(size=adata.n_vars).astype(np.float32)
    aligned = model.get_latent_representation(query, representation="integrated")
    assert np.linalg.norm(aligned.mean(0) - expected.mean(0)) < 0.2 * np.linalg.norm(expected.std(0))
    assert model.module.unseen is None


def test_regulators_and_counts_are_checked():
    adata = cells(100)
    ScConCRL.setup_anndata(adata)
    with pytest.raises(SetupError, match="None of the 1 regulators"):
        ScConCRL(adata, regulators=["nothing"])
    with pytest.raises(UnknownNameError, match="is_tf"):
        ScConCRL(adata, regulators="is_tff")
    with pytest.raises(InputDataError, match="raw counts"):
        ScConCRL(adata, gene_likelihood="nb")
    with pytest.raises(SetupError, match="gene_likelihood"):
        ScConCRL(adata, gene_likelihood="poisson")


def test_domain_effects_have_blocks():
    model = model_of(cells(300, condition=True, batch_shift=1.0), BOTH, 1)
    frame = model.get_domain_effects()
    assert frame.shape[1] == 30 and {r.split("_")[0] for r in frame.index} == {"batch", "condition"}
    assert not np.allclose(frame, model.get_domain_effects(total=True))


PAIRS = [
    ("batch crosses condition", {"condition": True}, {"condition": True, "confounded": True}),
    ("control cells", {"condition": True}, {"condition": True, "controls_everywhere": False}),
    ("combinations are additive", {"condition": True, "targets": 2}, {"interaction": 2.0}),
    ("no feedback", {"condition": True, "targets": 2}, {"feedback": True}),
    ("directions are identifiable", {"condition": True}, {"skew": False}),
    ("batches share cell types", {"condition": True, "batch_shift": 1.0}, {"composition": True}),
    ("batch is removed", {"condition": True, "batch_shift": 1.0}, {"bent_batch": 6.0}),
]


@pytest.mark.parametrize(("name", "good", "bad"), PAIRS, ids=[p[0] for p in PAIRS])
def test_each_check_turns_on_its_own_assumption(name, good, bad):
    epochs = 10 if name == "batch is removed" else None

    def verdict(**kwargs) -> str:
        return model_of(cells(1000, **kwargs), BOTH, epochs).identifiability_report()[name].verdict

    assert verdict(**good) == "holds"
    assert verdict(**{**good, **bad}) == "violated"


def test_number_of_domains_is_checked():
    adata = cells(400, condition=True)
    few = model_of(adata, BOTH, None).identifiability_report()["enough domains"]
    ScConCRL.setup_anndata(adata, **BOTH)
    enough = ScConCRL(adata, n_domain_latent=1, n_condition_latent=1).identifiability_report()["enough domains"]
    assert (few.verdict, enough.verdict) == ("violated", "holds")


def test_model_with_a_column_of_regulators_loads_without_cells(tmp_path):
    adata = cells(200, condition=True)
    model = model_of(adata, BOTH, 1, regulators="is_tf")
    model.save(tmp_path / "m")
    again = ScConCRL.load(tmp_path / "m", adata=False)
    assert again.grn.network().regulators == list(adata.var_names[:10])
    pd.testing.assert_frame_equal(again.grn.network().to_frame(), model.grn.network().to_frame())
