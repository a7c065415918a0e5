from __future__ import annotations

import json

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scvi.data import AnnDataManager

from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.data import KEYS, InterventionField, build_fields, restore_on_error
from sccausal.data import _fields as fields_module

USES = {"batch", "labels", "intervention", "time", "concepts"}
ARGS = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "intervention_key": "perturbation",
    "control": "ctrl",
    "time_key": "time",
    "concept_keys": ["cell_type", "batch"],
}

pytestmark = pytest.mark.filterwarnings("ignore:Category .* fewer than 3 cells")


def manager_of(adata, uses=USES, **args) -> AnnDataManager:
    manager = AnnDataManager(
        fields=build_fields(adata, uses, **(args or ARGS)), setup_method_args={"model_name": "m", "setup_args": {}}
    )
    manager.register_fields(adata)
    return manager


def test_building_fields_writes_nothing(cells, unchanged):
    with unchanged(cells):
        build_fields(cells, USES, **ARGS)


def test_registered_tensors(cells):
    manager = manager_of(cells)
    assert {**manager.summary_stats}["n_intervention"] == 2
    batch = manager.create_torch_dataset()[np.arange(5)]
    expected = [[t in label.split("+") for t in ("A", "B")] for label in cells.obs["perturbation"][:5]]
    np.testing.assert_array_equal(batch[KEYS.INTERVENTION], np.array(expected, dtype=np.float32))
    assert batch[KEYS.INTERVENTION].dtype == np.float32
    np.testing.assert_array_equal(batch[KEYS.TIME].ravel(), cells.obs["time"][:5])
    assert batch[KEYS.BATCH].dtype == np.int64 and batch[KEYS.CONCEPTS].shape == (5, 2)
    state = manager.registry["field_registries"][KEYS.INTERVENTION]["state_registry"]
    assert json.loads(json.dumps(state))["targets"] == ["A", "B"] and state["kind"] == "labels"


def test_only_private_entries_are_written(cells):
    columns = set(cells.obs)
    manager_of(cells)
    assert all(c.startswith("_scvi_") for c in set(cells.obs) - columns)
    assert all(k.startswith("_scvi_") for k in cells.obsm)


def test_new_cells_keep_the_targets(cells):
    manager = manager_of(cells)
    new = cells[:3].copy()
    new.obs["perturbation"] = ["ctrl", "B", "B+A"]
    manager.transfer_fields(new)
    np.testing.assert_array_equal(new.obsm["_scvi_intervention"], [[0, 0], [0, 1], [1, 1]])
    one = cells[:1].copy()
    one.obs["perturbation"] = "B"
    moved = manager.transfer_fields(one)
    assert {**moved.summary_stats}["n_intervention"] == 2


def test_unseen_target_is_refused_and_nothing_stays_behind(cells, unchanged):
    manager = manager_of(cells)
    new = cells[:4].copy()
    del new.obsm["_scvi_intervention"], new.obs["_scvi_batch"], new.obsm["_scvi_concepts"]
    new.obs["perturbation"] = ["ctrl", "A", "AA", "B"]
    with unchanged(new), pytest.raises(UnknownNameError, match="'AA'.*Did you mean 'A'"):
        with restore_on_error(new):
            manager.transfer_fields(new)


def test_restore_brings_back_older_entries(cells, unchanged):
    manager = manager_of(cells)
    cells.obs["perturbation"] = "unheard of"
    with unchanged(cells), pytest.raises(UnknownNameError), restore_on_error(cells):
        cells.obs["_scvi_batch"] = 7
        cells.obsm["_scvi_new"] = np.zeros((cells.n_obs, 2))
        manager.transfer_fields(cells)


def test_missing_column_of_new_cells(cells):
    manager = manager_of(cells)
    new = cells[:3].copy()
    del new.obs["perturbation"]
    with pytest.raises(SetupError, match="'perturbation'.*not in adata.obs or adata.obsm"):
        manager.transfer_fields(new)
    manager.transfer_fields(new, missing_as_control=True)
    assert not new.obsm["_scvi_intervention"].any()


@pytest.mark.parametrize("level", [0, 9])
def test_unseen_integer_level_is_refused(cells, level):
    cells.obs["batch"] = np.random.default_rng(0).integers(1, 4, cells.n_obs)
    manager = manager_of(cells)
    new = cells[:3].copy()
    new.obs["batch"] = [1, level, 2]
    with pytest.raises(UnknownNameError, match=f"'{level}'"):
        manager.transfer_fields(new)


def test_new_cells_with_missing_batch(cells):
    manager = manager_of(cells)
    new = cells[:3].copy()
    new.obs["batch"] = ["x", None, "y"]
    with pytest.raises(SetupError, match="no value in 1 of 3"):
        manager.transfer_fields(new)


def test_new_cells_are_checked_like_the_old_ones(cells):
    manager = manager_of(cells)
    bad = cells.copy()
    bad.X.data[0] = np.nan
    with pytest.raises(InputDataError, match="missing values"):
        manager.transfer_fields(bad)
    with pytest.raises(InputDataError, match="another order"):
        manager.transfer_fields(cells[:, ::-1].copy())
    with pytest.raises(InputDataError, match="1 of the model's 12 genes.*g0"):
        manager.transfer_fields(cells[:, 1:].copy())


def test_dose_frame(cells):
    rng = np.random.default_rng(0)
    cells.obsm["dose"] = pd.DataFrame(
        {"drug": rng.choice([0, 0.5, 2.0], cells.n_obs), "heat": rng.choice([0, 1], cells.n_obs)}, index=cells.obs_names
    )
    manager = manager_of(cells, {"intervention"}, intervention_key="dose")
    np.testing.assert_array_equal(cells.obsm["_scvi_intervention"], cells.obsm["dose"].to_numpy(np.float32))
    assert manager.get_state_registry(KEYS.INTERVENTION).kind == "dose"
    new = cells[:2].copy()
    new.obsm["dose"] = pd.DataFrame({"heat": [1.0, 0.0]}, index=new.obs_names)
    manager.transfer_fields(new)
    np.testing.assert_array_equal(new.obsm["_scvi_intervention"], [[0, 1], [0, 0]])


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (lambda n: np.ones((n, 2)), SetupError, "must be a DataFrame"),
        (lambda n: {"A": np.zeros(n)}, SetupError, "zero everywhere"),
        (lambda n: {"A": np.r_[np.nan, np.ones(n - 1)]}, InputDataError, "missing or infinite for A"),
        (lambda n: {"A": ["high"] * n}, SetupError, "doses as numbers"),
    ],
)
def test_unusable_dose_frames(cells, unchanged, frame, error, message):
    made = frame(cells.n_obs)
    cells.obsm["dose"] = pd.DataFrame(made, index=cells.obs_names) if isinstance(made, dict) else made
    with pytest.raises(error, match=message):
        build_fields(cells, {"intervention"}, intervention_key="dose")


def test_two_sources_must_agree(cells):
    from sccausal.pp import encode_interventions

    encode_interventions(cells, "perturbation", "ctrl", key_added="perturbation")
    assert manager_of(cells).get_state_registry(KEYS.INTERVENTION).kind == "dose"
    cells.obs["perturbation"] = np.roll(cells.obs["perturbation"], 1)
    with pytest.raises(SetupError, match="name different interventions in"):
        build_fields(cells, {"intervention"}, intervention_key="perturbation", control="ctrl")


def test_large_doses_are_kept_sparse(cells, monkeypatch):
    dense = manager_of(cells).create_torch_dataset()[np.arange(9)][KEYS.INTERVENTION]
    monkeypatch.setattr(fields_module, "_DENSE_LIMIT", 10)
    sparse_manager = manager_of(cells)
    assert sparse.issparse(cells.obsm["_scvi_intervention"])
    np.testing.assert_array_equal(sparse_manager.create_torch_dataset()[np.arange(9)][KEYS.INTERVENTION], dense)


BAD = {
    "missing column": (lambda a: None, {"batch_key": "bacth"}, "Did you mean 'batch'"),
    "one batch": (lambda a: a.obs.__setitem__("batch", "x"), {}, "only the level 'x'"),
    "control absent": (lambda a: None, {"control": "CTRL"}, "Did you mean 'ctrl'"),
    "control unnamed": (lambda a: None, {"control": None}, "Did you mean control='ctrl'"),
    "only control": (lambda a: a.obs.__setitem__("perturbation", "ctrl"), {}, "no intervention"),
    "missing label": (lambda a: a.obs.iloc.__setitem__((3, 0), None), {}, "no value in 1 of 240"),
    "time as text": (lambda a: a.obs.__setitem__("time", "early"), {}, "must hold numbers"),
    "nan": (lambda a: a.X.data.__setitem__(5, np.nan), {}, "missing values"),
    "negative": (lambda a: a.X.data.__setitem__(5, -1), {}, "negative values"),
    "not counts": (lambda a: a.X.data.__setitem__(5, 0.5), {}, "not counts"),
    "duplicate genes": (lambda a: setattr(a, "var_names", ["g"] * 12), {}, "gene names repeat"),
    "missing layer": (lambda a: None, {"layer": "counts"}, "'counts'"),
    "unknown key": (lambda a: None, {"condition_key": "batch"}, "does not use `condition_key`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_the_cells_alone(cells, unchanged, case):
    spoil, changed, message = BAD[case]
    spoil(cells)
    with unchanged(cells), pytest.raises((SetupError, InputDataError), match=message):
        build_fields(cells, USES, **{**ARGS, **changed})


def test_shapes_that_cannot_be_learned_from(cells):
    for part, message in ((cells[:0].copy(), "empty"), (cells[:1].copy(), "1 cell"), (cells[:9], "view")):
        with pytest.raises((SetupError, InputDataError), match=message):
            build_fields(part, USES, **ARGS)


def test_condition_as_intervention(cells):
    cells.obs["condition"] = np.where(cells.obs["perturbation"] == "ctrl", "ctrl", "IFN+TNF")
    args = {"condition_key": "condition", "control": "ctrl", "condition_as_intervention": True}
    manager = manager_of(cells, {"batch"}, **args)
    assert list(manager.get_state_registry(KEYS.INTERVENTION).targets) == ["IFN+TNF"]
    for both in ({"intervention_key": "perturbation"}, {"condition_key": None}):
        with pytest.raises(SetupError, match="exactly one"):
            build_fields(cells, {"batch"}, **{**args, **both})


def test_backed_cells(cells, tmp_path):
    cells.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    manager = manager_of(backed)
    expected = manager_of(cells).create_torch_dataset()[np.arange(7)]
    found = manager.create_torch_dataset()[np.arange(7)]
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


@pytest.mark.filterwarnings("ignore")
def test_mudata_modality(cells):
    mdata = md.MuData({"rna": cells, "protein": ad.AnnData(np.ones((cells.n_obs, 2)), obs=cells.obs[[]])})
    fields = build_fields(mdata, USES, **ARGS, mod_key="rna")
    manager = AnnDataManager(fields=fields, setup_method_args={"model_name": "m", "setup_args": {}})
    manager.register_fields(mdata)
    assert mdata.mod["rna"].obsm["_scvi_intervention"].shape == (cells.n_obs, 2)
    assert "_scvi_intervention" not in mdata.mod["protein"].obsm
    batch = manager.create_torch_dataset()[np.arange(4)]
    np.testing.assert_array_equal(batch[KEYS.X], cells.X[:4].toarray())
    with pytest.raises(SetupError, match="Modality 'RNA'.*rna"):
        build_fields(mdata, USES, **ARGS, mod_key="RNA")


def test_registry_is_shown(cells):
    field = InterventionField("intervention", "perturbation", "ctrl")
    table = field.view_state_registry(field.register_field(cells))
    assert table.row_count == 3
