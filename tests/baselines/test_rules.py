from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from sccausal import baselines as bl
from sccausal._errors import InputDataError, NotSupportedError, SetupError, UnknownNameError
from sccausal.baselines import shift_cells

EVERY = [
    bl.NoChange,
    bl.PerturbedMean,
    bl.MeanShift,
    bl.ShrunkShift,
    bl.NearestType,
    bl.NearestPerturbation,
    bl.RidgeOnMeans,
    bl.PerGeneRegression,
    bl.Additive,
    bl.ScaledAdditive,
    bl.MatchingMean,
    bl.LatentAdditive,
    bl.LinearGWP,
]


def _adata(groups: dict[tuple[str, str], list[float]], n: int = 4, noise: float = 0.0, seed: int = 0) -> AnnData:
    """Cells whose (type, label) groups have exactly the given means."""
    rng = np.random.default_rng(seed)
    X, obs = [], []
    for (kind, label), mean in groups.items():
        part = noise * rng.normal(size=(n, len(mean)))
        X.append(np.asarray(mean) + part - part.mean(axis=0))
        obs += [(kind, label)] * n
    frame = pd.DataFrame(obs, columns=["kind", "label"], index=[f"c{i}" for i in range(len(obs))])
    names = ["A", "B", "g2", "g3"][: len(next(iter(groups.values())))]
    return AnnData(np.concatenate(X), obs=frame, var=pd.DataFrame(index=names))


@pytest.fixture
def combos() -> AnnData:
    return _adata(
        {
            ("t", "ctrl"): [1, 1, 1, 1],
            ("t", "A"): [3, 1, 1, 0.5],
            ("t", "B"): [1, 4, 1, 0.8],
            ("t", "C"): [1, 1, 2, 1],
            ("t", "A+C"): [2, 1, 1.5, 0.75],
        },
        noise=0.1,
    )


@pytest.fixture
def types() -> AnnData:
    """Effect of the stimulus on gene 0 is the control mean of gene 1; type r has no stimulated cells."""
    return _adata(
        {
            ("p", "ctrl"): [1, 1, 2, 1],
            ("p", "stim"): [2, 1, 2, 1],
            ("q", "ctrl"): [1, 3, 2, 1],
            ("q", "stim"): [4, 3, 2, 1],
            ("s", "ctrl"): [1, 5, 2, 1],
            ("s", "stim"): [6, 5, 2, 1],
            ("r", "ctrl"): [1, 4, 2, 1],
        }
    )


KEYS = {"intervention_key": "label", "control": "ctrl"}
TYPES = {"condition_key": "label", "control": "ctrl", "labels_key": "kind"}


def _mean(rule, adata, wanted, keys, kind=None):
    out = rule.fit(adata, **keys).predict(interventions=[wanted])
    rows = out if kind is None else out[out.obs["kind"] == kind]
    return np.asarray(rows.X).mean(axis=0)


def test_no_change_copies_control_cells(combos):
    out = bl.NoChange().fit(combos, **KEYS).predict(interventions=["A", "B"])
    control = combos[combos.obs["label"] == "ctrl"]
    np.testing.assert_allclose(out.X, np.tile(control.X, (2, 1)), rtol=1e-6)
    assert out.obs["intervention"].tolist() == ["A"] * 4 + ["B"] * 4
    assert out.obs["source_cell"].tolist() == control.obs_names.tolist() * 2


def test_additive_by_hand(combos):
    np.testing.assert_allclose(_mean(bl.Additive(), combos, "A+B", KEYS), [3, 4, 1, 0.3], rtol=1e-5)
    np.testing.assert_allclose(_mean(bl.Additive(), combos, "B+A", KEYS), [3, 4, 1, 0.3], rtol=1e-5)
    # a seen combination is still predicted from its singles
    np.testing.assert_allclose(_mean(bl.Additive(), combos, ("A", "C"), KEYS), [3, 1, 2, 0.5], rtol=1e-5)


def test_matching_mean_by_hand(combos):
    np.testing.assert_allclose(_mean(bl.MatchingMean(), combos, "A+B", KEYS), [2, 2.5, 1, 0.65], rtol=1e-5)


def test_scaled_additive_learns_the_factor_of_the_training_combinations(combos):
    rule = bl.ScaledAdditive().fit(combos, **KEYS)
    assert rule.factor == pytest.approx(0.5)
    np.testing.assert_allclose(_mean(rule, combos, "A+B", KEYS), [2, 2.5, 1, 0.65], rtol=1e-5)
    np.testing.assert_allclose(_mean(rule, combos, "A", KEYS), [3, 1, 1, 0.5], rtol=1e-5)


def test_perturbed_mean_is_the_mean_of_the_centroids(combos):
    want = combos[combos.obs["label"] != "ctrl"].X.mean(axis=0)  # groups are of one size
    np.testing.assert_allclose(_mean(bl.PerturbedMean(), combos, "A", KEYS), want, rtol=1e-5)
    np.testing.assert_allclose(_mean(bl.PerturbedMean(), combos, "A+B", KEYS), want, rtol=1e-5)


def test_nearest_perturbation_shares_targets(combos):
    near = _mean(bl.NearestPerturbation(), combos, "B+C", KEYS)
    np.testing.assert_allclose(near, [1, 4, 1, 0.8], rtol=1e-5)  # B and C are equally near, B is stronger
    embedding = pd.DataFrame({"x": [1.0, 0.9, 0.0], "y": [0.0, 0.1, 1.0]}, index=["B", "A", "C"])
    only = combos[combos.obs["label"].isin(["ctrl", "A", "C", "A+C"])].copy()
    extra = AnnData(combos.X[:0], obs=combos.obs[:0], var=combos.var)
    assert extra.n_obs == 0
    rule = bl.NearestPerturbation(embedding=embedding)
    np.testing.assert_allclose(_mean(rule, only, "A", KEYS), [3, 1, 1, 0.5], rtol=1e-5)
    with pytest.raises(UnknownNameError, match="embedding"):
        bl.NearestPerturbation(embedding=embedding.loc[["A"]]).fit(combos, **KEYS).predict(interventions="A")


def test_mean_shift_uses_the_other_types(types):
    np.testing.assert_allclose(_mean(bl.MeanShift(), types, "stim", TYPES, "r"), [4, 4, 2, 1], rtol=1e-5)
    # for a training type its own effect is left out: (3 + 5) / 2
    np.testing.assert_allclose(_mean(bl.MeanShift(), types, "stim", TYPES, "p"), [5, 1, 2, 1], rtol=1e-5)


def test_mean_shift_by_cells(types):
    more = types[
        [*range(types.n_obs), *np.flatnonzero((types.obs["kind"] == "p") & (types.obs["label"] == "stim"))]
    ].copy()
    more.obs_names_make_unique()
    found = _mean(bl.MeanShift(weights="cells"), more, "stim", TYPES, "r")[0]
    assert found == pytest.approx(1 + (8 * 1 + 4 * 3 + 4 * 5) / 16)


def test_nearest_type_copies_the_nearest(types):
    # r has 4 in gene 1, as far from q as from s: the first of them; at 4.5 it is s
    at = types.copy()
    at.X[(at.obs["kind"] == "r").to_numpy(), 1] = 4.5
    np.testing.assert_allclose(_mean(bl.NearestType(), at, "stim", TYPES, "r"), [6, 4.5, 2, 1], rtol=1e-5)


def test_ridge_on_means_extrapolates_along_the_control_means(types):
    # effect = control mean of gene 1, so without penalty the rule is exact
    found = _mean(bl.RidgeOnMeans(penalty=1e-9), types, "stim", TYPES, "r")
    np.testing.assert_allclose(found, [5, 4, 2, 1], rtol=1e-4)
    huge = _mean(bl.RidgeOnMeans(penalty=1e9), types, "stim", TYPES, "r")
    np.testing.assert_allclose(huge, _mean(bl.MeanShift(), types, "stim", TYPES, "r"), rtol=1e-4)


def test_ridge_agrees_with_scikit_learn():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    groups = {}
    for kind in "pqsuv":
        base = rng.uniform(1, 3, size=4)
        groups[kind, "ctrl"] = base
        groups[kind, "stim"] = base + rng.uniform(0, 1, size=4)
    del groups["v", "stim"]
    rule = bl.RidgeOnMeans(penalty=0.3)
    found = _mean(rule, _adata(groups), "stim", TYPES, "v")
    C = np.array([groups[k, "ctrl"] for k in "pqsu"])
    D = np.array([groups[k, "stim"] for k in "pqsu"]) - C
    size = np.trace((C - C.mean(0)) @ (C - C.mean(0)).T) / 4
    want = Ridge(alpha=0.3 * size).fit(C, D).predict(groups["v", "ctrl"][None])[0] + groups["v", "ctrl"]
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_per_gene_regression_by_hand():
    data = _adata(
        {("p", "ctrl"): [1.0], ("p", "stim"): [2.0], ("q", "ctrl"): [3.0], ("q", "stim"): [8.0], ("r", "ctrl"): [2.5]}
    )
    # perturbed = 3 control - 1
    assert _mean(bl.PerGeneRegression(penalty=0.0), data, "stim", TYPES, "r")[0] == pytest.approx(6.5)


def test_shrunk_shift_drops_noise_and_keeps_signal():
    rng = np.random.default_rng(0)
    X = rng.normal(5, 1, size=(400, 60))
    labels = np.repeat(["ctrl", "A"], 200)
    X[200:, :5] += 2
    data = AnnData(X, obs=pd.DataFrame({"label": labels}, index=[f"c{i}" for i in range(400)]))
    base = X[:200].mean(axis=0)
    full, shrunk = (_mean(r, data, "A", KEYS) - base for r in (bl.MeanShift(), bl.ShrunkShift()))
    assert np.abs(shrunk[5:]).sum() < 0.5 * np.abs(full[5:]).sum()
    np.testing.assert_allclose(shrunk[:5], full[:5], rtol=0.02)


def test_linear_gwp_predicts_an_unseen_target_from_its_gene():
    rng = np.random.default_rng(0)
    k, g = 12, 30
    names = [f"g{i}" for i in range(g)]
    loadings = rng.normal(size=(g, 3))
    effects = loadings[:k] @ rng.normal(size=(3, 3)) @ loadings.T * 0.3  # target features are rows of the loadings
    groups = {("t", "ctrl"): np.full(g, 20.0)}
    groups |= {("t", names[i]): 20.0 + effects[i] for i in range(k)}
    data = _adata({key: list(v) for key, v in groups.items()}, n=2) if g <= 4 else _wide(groups, names)
    held = data[data.obs["label"] != f"{names[0]}"].copy()
    held.obs["label"] = held.obs["label"].astype(str)
    # the codec must know the target: it is seen in a combination
    held.obs.loc[held.obs_names[-1], "label"] = f"{names[0]}+{names[k - 1]}"
    rule = bl.LinearGWP(n_components=3, penalty=1e-3).fit(held, **KEYS)
    found = rule.predict(interventions=[names[0]]).X.mean(axis=0) - 20.0
    assert np.corrcoef(found, effects[0])[0, 1] > 0.8
    with pytest.raises(InputDataError, match="embedding"):
        bl.LinearGWP().fit(_adata({("t", "ctrl"): [1, 1], ("t", "X"): [1, 2]}), **KEYS)


def _wide(groups, names):
    X = np.concatenate([np.tile(v, (2, 1)) for v in groups.values()])
    labels = np.repeat([label for _, label in groups], 2)
    obs = pd.DataFrame({"label": labels}, index=[f"c{i}" for i in range(len(X))])
    return AnnData(X, obs=obs, var=pd.DataFrame(index=names))


def test_latent_additive_is_additive_when_nothing_is_lost(combos):
    singles = combos[~combos.obs["label"].str.contains("+", regex=False)].copy()
    rule = bl.LatentAdditive(n_components=4, penalty=1e-6)
    np.testing.assert_allclose(_mean(rule, singles, "A+B", KEYS), [3, 4, 1, 0.3], rtol=1e-3)


def test_batches_do_not_confound_the_effect():
    # batch 2 has only A cells and one control: pooled means would mix the batch effect in
    groups = {("b1", "ctrl"): [1.0, 1], ("b2", "ctrl"): [5.0, 1], ("b2", "A"): [6.0, 1]}
    data = _adata(groups)
    keys = dict(KEYS, batch_key="kind")
    assert _mean(bl.MeanShift(), data, "A", keys)[0] == pytest.approx(3.0 + 1.0)
    assert _mean(bl.MeanShift(), data, "A", KEYS)[0] == pytest.approx(6.0)


def test_doses_scale_the_effect():
    frame = pd.DataFrame({"A": [0, 0, 0.5, 0.5], "B": [0, 0, 0, 0.0]}, index=list("wxyz"))
    X = np.array([[1.0, 1], [1, 1], [2, 1], [2, 1]])
    data = AnnData(X, obs=pd.DataFrame(index=frame.index), obsm={"dose": frame})
    rule = bl.Additive().fit(data, intervention_key="dose")
    np.testing.assert_allclose(rule.predict(interventions=[{"A": 1.0}]).X.mean(axis=0), [3, 1])
    np.testing.assert_allclose(rule.predict(interventions=[{"A": 0.5}]).X.mean(axis=0), [2, 1])


@pytest.mark.parametrize("cls", EVERY)
def test_every_rule_keeps_the_contract(cls, combos):
    before = combos.copy()
    rule = cls().fit(combos, **KEYS)
    out = rule.predict(n_samples=2)
    assert out.n_obs == 4 * 4 * 2 and out.uns["sccausal"]["units"] == "log1p_norm"
    assert {"intervention", "condition", "time", "source_cell", "sample"} <= set(out.obs.columns)
    assert "label" not in out.obs.columns and out.obs["kind"].eq("t").all()
    assert out.var_names.equals(combos.var_names) and out.X.min() >= 0
    assert sorted(out.obs["sample"].unique()) == [0, 1]
    np.testing.assert_array_equal(out.X, cls().fit(combos, **KEYS).predict(n_samples=2).X)
    np.testing.assert_array_equal(combos.X, before.X)
    pd.testing.assert_frame_equal(combos.obs, before.obs)
    # the control itself is predicted unchanged
    control = rule.predict(interventions=["ctrl"])
    np.testing.assert_allclose(control.X, combos[combos.obs["label"] == "ctrl"].X, rtol=1e-6)


@pytest.mark.parametrize("cls", EVERY)
def test_cell_order_and_sparsity_do_not_matter(cls, combos):
    order = np.random.default_rng(0).permutation(combos.n_obs)
    turned = combos[order].copy()
    turned.X = sparse.csr_matrix(turned.X)
    source = combos[combos.obs["label"] == "ctrl"].copy()
    a = cls().fit(combos, **KEYS).predict(source, interventions=["A"])
    b = cls().fit(turned, **KEYS).predict(source, interventions=["A"])
    np.testing.assert_allclose(a.X, b.X, rtol=1e-4, atol=1e-5)


def test_new_source_cells_may_be_of_a_new_type(types):
    rule = bl.RidgeOnMeans(penalty=1e-9).fit(types[types.obs["kind"] != "r"].copy(), **TYPES)
    source = types[types.obs["kind"] == "r"][:, ::-1].copy()  # genes in another order
    out = rule.predict(source, ["stim"])
    np.testing.assert_allclose(out.X.mean(axis=0), [5, 4, 2, 1], rtol=1e-4)
    assert out.obs["condition"].eq("stim").all()


def test_counts_are_normalised():
    counts = np.random.default_rng(0).poisson(30, size=(20, 6)).astype(float)
    data = AnnData(counts, obs=pd.DataFrame({"label": ["ctrl", "A"] * 10}, index=[f"c{i}" for i in range(20)]))
    with pytest.raises(InputDataError, match="counts=True"):
        bl.NoChange().fit(AnnData(sparse.csr_matrix(counts), obs=data.obs), **KEYS)
    with pytest.raises(InputDataError, match="counts"):
        bl.NoChange().fit(data, **KEYS)
    out = bl.NoChange().fit(data, **KEYS, counts=True).predict(interventions="A")
    want = np.log1p(counts[::2] / counts[::2].sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(out.X, want, rtol=1e-5)


def test_errors_say_what_is_wrong(combos, types):
    with pytest.raises(SetupError, match="not fitted"):
        bl.Additive().predict()
    with pytest.raises(SetupError, match="exactly one"):
        bl.Additive().fit(combos, intervention_key="label", condition_key="label", control="ctrl")
    with pytest.raises(SetupError, match="exactly one"):
        bl.Additive().fit(combos, control="ctrl")
    with pytest.raises(UnknownNameError, match="'label'"):
        bl.Additive().fit(combos, intervention_key="labels", control="ctrl")
    with pytest.raises(SetupError, match="ctrl"):
        bl.Additive().fit(combos, intervention_key="label", control="ctr")
    rule = bl.MeanShift().fit(combos, **KEYS)
    with pytest.raises(UnknownNameError, match=r"A\+B"):
        rule.predict(interventions=["A+B"])  # never seen, and the rule cannot combine
    with pytest.raises(UnknownNameError):
        rule.predict(interventions=["Q"])
    with pytest.raises(NotSupportedError):
        rule.predict(interventions=["A"], times=[1.0])
    with pytest.raises(SetupError, match="condition"):
        rule.predict(condition="A")
    with pytest.raises(InputDataError, match="'B'"):
        rule.predict(combos[:, ["A", "g2", "g3"]].copy(), ["A"])
    bad = combos.copy()
    bad.X[0, 0] = np.nan
    with pytest.raises(InputDataError, match="finite"):
        bl.MeanShift().fit(bad, **KEYS)
    with pytest.raises(UnknownNameError, match="kind"):
        bl.MeanShift().fit(types, condition_key="label", control="ctrl", labels_key="kinds")


@given(st.integers(0, 10_000), st.floats(-4, 2))
@settings(max_examples=60, deadline=None)
def test_shift_has_the_mean_of_the_rule(seed, delta):
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(1, 1, size=(13, 5)), 0)
    out = shift_cells(X, np.full(5, delta))
    np.testing.assert_allclose(out.mean(axis=0), np.maximum(X.mean(axis=0) + delta, 0), atol=1e-9)
    assert out.min() >= 0
    assert (np.diff(out[np.argsort(X[:, 0]), 0]) >= -1e-12).all()  # cells keep their order


def test_clip_variants():
    X = np.array([[0.0], [1.0], [2.0]])
    assert shift_cells(X, np.array([-0.5]), "none").ravel().tolist() == [-0.5, 0.5, 1.5]
    assert shift_cells(X, np.array([-0.5]), "zero").ravel().tolist() == [0.0, 0.5, 1.5]
    np.testing.assert_allclose(shift_cells(X, np.array([-0.5])).ravel(), [0.0, 0.25, 1.25])
    with pytest.raises(SetupError):
        shift_cells(X, np.array([1.0]), "clip")  # type: ignore[arg-type]
