"""Saved models: what is written, what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from scipy import sparse
from scvi.train import SaveCheckpoint
from toy_model import TOY_SETUP, TOY_TRAIN, BareModel, ToyModel, toy_data

from sccausal._errors import FileFormatError, InputDataError, NotSupportedError, SetupError
from sccausal.models import load_model
from sccausal.models._encode import Encoder, decode
from sccausal.models._io import JSON_FILE, TENSOR_FILE, read_model

SAVED = Path(__file__).parents[1] / "data" / "saved"


@pytest.fixture(scope="module")
def model() -> ToyModel:
    scvi.settings.seed = 0
    adata = toy_data()
    ToyModel.setup_anndata(adata, **TOY_SETUP)
    model = ToyModel(adata, n_latent=3)
    model.train(**{**TOY_TRAIN, "max_epochs": 3})
    return model


@pytest.fixture
def folder(model, tmp_path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    header = json.loads((folder / JSON_FILE).read_text())
    change(header)
    (folder / JSON_FILE).write_text(json.dumps(header))


# values ------------------------------------------------------------------------------------------------------------

_leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8)
_values = st.recursive(
    _leaves,
    lambda v: (
        st.lists(v, max_size=3)
        | st.tuples(v, v)
        | st.dictionaries(st.text(max_size=5), v, max_size=3)
        | st.dictionaries(st.integers(), v, max_size=2)
    ),
    max_leaves=8,
)


@given(_values)
@settings(max_examples=150, deadline=None)
def test_any_plain_value_comes_back(value):
    encode = Encoder()
    text = json.dumps(encode(value, "value"), allow_nan=False)
    back = decode(json.loads(text), encode.tensors)
    assert type(back) is type(value)
    assert repr(back) == repr(value)  # also tells nan, -0.0 and tuples from lists


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array(1.5),
        np.zeros((0, 3), dtype=np.float32),
        np.array([True, False]),
        np.array(["a", "bb"]),
        np.array([["a", None], [1, 2.5]], dtype=object),
        np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
    ],
)
def test_arrays_come_back(value):
    encode = Encoder()
    back = decode(json.loads(json.dumps(encode(value, "value"))), encode.tensors)
    assert back.dtype.kind == value.dtype.kind and back.shape == value.shape
    np.testing.assert_array_equal(back, value)


def test_frames_and_sparse_matrices_come_back():
    encode = Encoder()
    frame = pd.DataFrame({"x": [1.0, np.nan], "name": ["a", None], 3: [1, 2]}, index=pd.Index([5, 7], name="epoch"))
    frame["code"] = pd.Categorical(["u", "v"])
    back = decode(json.loads(json.dumps(encode(frame, "frame"))), encode.tensors)
    pd.testing.assert_frame_equal(back, frame.assign(code=["u", "v"]), check_column_type=False)
    series = pd.Series([1, 2], index=["a", "b"], name="s")
    pd.testing.assert_series_equal(decode(encode(series, "s"), encode.tensors), series)
    matrix = sparse.random(5, 4, 0.3, random_state=0, format="csc")
    assert (decode(encode(matrix, "m"), encode.tensors) != matrix).nnz == 0
    assert torch.equal(decode(encode(torch.arange(3), "t"), encode.tensors), torch.arange(3))


def test_other_objects_are_named(model, tmp_path):
    model.helper_ = object()
    try:
        with pytest.raises(SetupError, match="ToyModel.helper_ is a object"):
            model.save(tmp_path / "model")
        assert not (tmp_path / "model").exists()
    finally:
        del model.helper_


# what is written ---------------------------------------------------------------------------------------------------


def test_nothing_is_pickled(folder):
    assert {p.name for p in folder.iterdir()} == {JSON_FILE, TENSOR_FILE}
    header = json.loads((folder / JSON_FILE).read_text())
    assert header["schema"] == 1 and header["class"] == "ToyModel" and header["version"]
    assert header["registry"]["setup_args"]["batch_key"] == "batch"


def test_attributes_history_and_arguments_come_back(model, tmp_path):
    model.table_ = pd.DataFrame({"a": [1.0, 2.0]})
    model.big_ = np.arange(5)
    model.save(tmp_path / "model")
    del model.table_, model.big_
    loaded = ToyModel.load(tmp_path / "model", adata=False, accelerator="cpu")
    assert loaded.table_["a"].tolist() == [1.0, 2.0]
    assert loaded.big_.tolist() == [0, 1, 2, 3, 4]
    assert loaded.module.mean.out_features == 3
    assert set(loaded.history) == set(model.history)
    assert loaded.is_trained and not loaded.module.training


def test_saving_twice_needs_overwrite(model, folder):
    with pytest.raises(SetupError, match="overwrite=True"):
        model.save(folder)
    model.save(folder, overwrite=True)
    model.save(folder, prefix="second_")
    assert ToyModel.load(folder, False, prefix="second_", accelerator="cpu").is_trained


def test_a_failed_save_leaves_the_old_model(model, folder, monkeypatch):
    from sccausal.models import _io

    before = (folder / TENSOR_FILE).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(_io, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(folder, overwrite=True)
    assert (folder / TENSOR_FILE).read_bytes() == before
    assert {p.name for p in folder.iterdir()} == {JSON_FILE, TENSOR_FILE}
    assert ToyModel.load(folder, False, accelerator="cpu").is_trained


# what is refused ---------------------------------------------------------------------------------------------------


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileFormatError, match="does not exist"):
        ToyModel.load(tmp_path / "nowhere")
    (folder / TENSOR_FILE).unlink()
    with pytest.raises(FileFormatError, match="missing"):
        ToyModel.load(folder, False)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.pt").write_bytes(b"")
    with pytest.raises(FileFormatError, match="pickled"):
        ToyModel.load(tmp_path / "old")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_tensors(folder, keep):
    path = folder / TENSOR_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="cut off"):
        ToyModel.load(folder, False)


def test_altered_tensors(folder):
    path = folder / TENSOR_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="hash"):
        ToyModel.load(folder, False)


def test_header_that_claims_more_than_there_is(folder):
    path = folder / TENSOR_FILE
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = next(k for k in header if k.startswith("module."))
    header[name]["data_offsets"][1] += 10**12
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    rewrite(folder, lambda h: h["tensors"].update(bytes=path.stat().st_size))
    with pytest.raises(FileFormatError, match="claims"):
        ToyModel.load(folder, False)
    path.write_bytes(struct.pack("<Q", 2**60) + content[8:])
    rewrite(folder, lambda h: h["tensors"].update(bytes=path.stat().st_size))
    with pytest.raises(FileFormatError, match="claims a header"):
        ToyModel.load(folder, False)


def test_too_large(folder):
    with pytest.raises(FileFormatError, match="max_bytes=100"):
        ToyModel.load(folder, False, max_bytes=100)
    assert ToyModel.load(folder, False, max_bytes=None, accelerator="cpu").is_trained


def test_damaged_json(folder):
    text = (folder / JSON_FILE).read_text()
    for bad in (text[: len(text) // 2], "[]", "{}", "[" * 100_000, '{"format": "other"}'):
        (folder / JSON_FILE).write_text(bad)
        with pytest.raises(FileFormatError):
            ToyModel.load(folder, False)


@pytest.mark.parametrize("part", ["class", "var_names", "init_params", "registry", "attributes", "tensors"])
def test_json_without_a_part(folder, part):
    rewrite(folder, lambda h: h.pop(part))
    with pytest.raises(FileFormatError, match=part):
        ToyModel.load(folder, False)


def test_unknown_kind_of_value(folder):
    rewrite(folder, lambda h: h["attributes"].update(evil_={"__kind__": "pickle", "data": "gASV"}))
    with pytest.raises(FileFormatError, match="pickle"):
        ToyModel.load(folder, False)


def test_newer_schema_says_update(folder):
    rewrite(folder, lambda h: h.update(schema=99, version="9.0"))
    with pytest.raises(FileFormatError, match="9.0.*pip install -U sccausal"):
        ToyModel.load(folder, False)


def test_other_class(folder):
    with pytest.raises(FileFormatError, match="holds a ToyModel, not a BareModel"):
        BareModel.load(folder, False)
    with pytest.raises(FileFormatError, match="holds a ToyModel, which is none of"):
        load_model(folder, False)


def test_weights_of_another_shape(folder):
    rewrite(folder, lambda h: h["init_params"]["non_kwargs"].update(n_latent=5))
    with pytest.raises(FileFormatError, match="does not fit"):
        ToyModel.load(folder, False)


def test_other_genes(model, folder):
    adata = toy_data()
    with pytest.raises(InputDataError, match="missing, e.g. g0"):
        ToyModel.load(folder, adata[:, 1:].copy())
    with pytest.raises(InputDataError, match="order of training"):
        ToyModel.load(folder, adata[:, ::-1].copy())
    adata.obs["batch"] = "elsewhere"
    before = set(adata.uns), set(adata.obs), set(adata.obsm)
    with pytest.raises(SetupError, match="elsewhere"):
        ToyModel.load(folder, adata)
    assert (set(adata.uns), set(adata.obs), set(adata.obsm)) == before


# scvi-tools' own readers -------------------------------------------------------------------------------------------


class _Spoil(Callback):
    """Throws the weights off before the last epoch, so that an earlier one is the best."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == trainer.max_epochs - 1:
            pl_module.module.decoder.bias.data += 100


def test_save_checkpoint_of_scvi_restores_the_best_epoch(tmp_path):
    scvi.settings.seed = 0
    adata = toy_data()
    ToyModel.setup_anndata(adata, **TOY_SETUP)
    model = ToyModel(adata)
    keep = SaveCheckpoint(str(tmp_path / "best"), monitor="elbo_validation", load_best_on_end=True)
    model.train(
        **{**TOY_TRAIN, "max_epochs": 4},
        callbacks=[_Spoil(), keep],
        check_val_every_n_epoch=1,
        enable_checkpointing=True,
    )
    curve = model.history["elbo_validation"].to_numpy(float).ravel()
    assert int(curve.argmin()) < len(curve) - 1
    assert {p.name for p in Path(keep.best_model_path).iterdir()} == {JSON_FILE, TENSOR_FILE}
    best = read_model(keep.best_model_path).state
    for name, value in model.module.state_dict().items():
        assert torch.equal(best[name], value), name
    assert abs(model.module.decoder.bias.detach().mean()) < 50
    assert ToyModel.load(keep.best_model_path, adata=adata, accelerator="cpu").is_trained


def test_registry_reader_of_scvi(folder):
    assert ToyModel.load_registry(str(folder))["model_name"] == "ToyModel"


def test_hub_of_scvi(model, folder):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import ModelCard
    from scvi.hub import HubMetadata, HubModel

    model.save(folder, overwrite=True, save_anndata=True)
    metadata = HubMetadata.from_dir(str(folder), anndata_version="0.12", model_parent_module="toy_model")
    assert metadata.model_cls_name == "ToyModel"
    hub = HubModel(str(folder), metadata=metadata, model_card=ModelCard("# A toy"))
    cells = toy_data()
    np.testing.assert_array_equal(hub.model.get_latent_representation(cells), model.get_latent_representation(cells))


def test_other_models_of_scvi_still_load(tmp_path):
    adata = scvi.data.synthetic_iid(batch_size=30, n_genes=10)
    scvi.model.SCVI.setup_anndata(adata)
    plain = scvi.model.SCVI(adata, n_hidden=4)
    plain.save(str(tmp_path / "scvi"))
    assert scvi.model.SCVI.load(str(tmp_path / "scvi"), adata, accelerator="cpu") is not None


# accessors a model does not offer ----------------------------------------------------------------------------------


def test_missing_accessor_names_models_that_have_it():
    adata = toy_data()
    BareModel.setup_anndata(adata, **TOY_SETUP)
    bare = BareModel(adata)
    assert not hasattr(bare, "grn") and not hasattr(bare, "perturbation")
    with pytest.raises(NotSupportedError, match="BareModel predicts no interventions.*ScConCRL"):
        _ = bare.perturbation


# files of earlier releases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SAVED.glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}")
def test_models_of_earlier_releases_still_load(path):
    model = load_model(path, accelerator="cpu")
    expected = np.load(path / "expected.npz")
    np.testing.assert_allclose(model.get_latent_representation(), expected["latent"], rtol=1e-3, atol=1e-4)
    intervention = str(expected["intervention"])
    np.testing.assert_allclose(
        np.asarray(model.perturbation.predict(interventions=[intervention]).X),
        expected["predicted"],
        rtol=1e-3,
        atol=1e-4,
    )
