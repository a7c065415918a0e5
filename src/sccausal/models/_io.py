"""A saved model: ``model.json`` (what it is) and ``model.safetensors`` (its numbers). Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sccausal import __version__
from sccausal._errors import FileFormatError, SetupError
from sccausal.models._encode import Encoder, decode

FORMAT = "sccausal-model"
SCHEMA = 1
JSON_FILE = "model.json"
TENSOR_FILE = "model.safetensors"
ANNDATA_FILE = "adata.h5ad"
MAX_BYTES = 16 * 2**30
MAX_JSON_BYTES = 512 * 2**20
# attributes that the constructor makes anew
_REBUILT = ("registry_", "init_params_")


@dataclass
class SavedModel:
    """Content of a saved model.

    Parameters
    ----------
    class_name
        Name of the model class.
    version
        Version of this package that wrote it.
    var_names
        Genes, in the order of training.
    init_params
        Arguments of the constructor.
    registry
        scvi-tools' registry of the training data.
    attributes
        Instance attributes ending in ``_``.
    state
        State of the module, on the CPU.
    """

    class_name: str
    version: str
    var_names: list[str]
    init_params: dict[str, Any]
    registry: dict[str, Any]
    attributes: dict[str, Any]
    state: dict[str, torch.Tensor]


def is_saved_model(dir_path: str | Path, prefix: str = "") -> bool:
    """Whether the folder holds a model in the format of this package."""
    return (Path(dir_path) / f"{prefix}{JSON_FILE}").is_file()


def write_model(model: Any, dir_path: str | Path, prefix: str = "", overwrite: bool = False) -> Path:
    """Write ``model`` into ``dir_path``; return the folder.

    Both files are written under a temporary name first, so that an interrupted save leaves an older one usable.

    Raises
    ------
    sccausal._errors.SetupError
        A model is there already and ``overwrite`` is false, or an attribute cannot be saved.
    """
    folder = Path(dir_path)
    json_path, tensor_path = folder / f"{prefix}{JSON_FILE}", folder / f"{prefix}{TENSOR_FILE}"
    if not overwrite and (json_path.exists() or tensor_path.exists()):
        raise SetupError(f"{folder} already holds a model; pass overwrite=True or another folder.")
    header, tensors = _contents(model)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = [p.with_name(f"{p.name}.{os.getpid()}.tmp") for p in (json_path, tensor_path)]
    try:
        save_file(tensors, temporary[1])
        header["tensors"] = {"bytes": temporary[1].stat().st_size, "sha256": _digest(temporary[1])}
        temporary[0].write_text(json.dumps(header, allow_nan=False, indent=1), encoding="utf-8")
        os.replace(temporary[1], tensor_path)
        os.replace(temporary[0], json_path)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return folder


def _contents(model: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    encode = Encoder()
    name = type(model).__name__
    attributes = {k: v for k, v in vars(model).items() if k.endswith("_") and k not in _REBUILT}
    header = {
        "format": FORMAT,
        "schema": SCHEMA,
        "version": __version__,
        "class": name,
        "var_names": [str(g) for g in model.get_var_names()],
        "init_params": encode(model.init_params_, f"{name}.init_params_"),
        "registry": encode(model.registry_, f"{name}.registry_"),
        "attributes": {k: encode(v, f"{name}.{k}") for k, v in attributes.items()},
    }
    tensors = dict(encode.tensors)
    for key, value in model.module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise SetupError(f"The module's state {key!r} is a {type(value).__name__}, not a tensor.")
        # a copy, because tensors that share memory cannot be written
        tensors[f"module.{key}"] = value.detach().cpu().contiguous().clone()
    return header, tensors


def read_model(dir_path: str | Path, prefix: str = "", max_bytes: int | None = MAX_BYTES) -> SavedModel:
    """Read and check a saved model without building it.

    Parameters
    ----------
    dir_path
        The folder.
    prefix
        Prefix of the file names.
    max_bytes
        Largest tensor file that is opened; ``None`` for any.

    Raises
    ------
    sccausal._errors.FileFormatError
        The files are cut off, altered, too large, of another package or of a newer schema.
    """
    folder = Path(dir_path)
    header = read_header(folder, prefix)
    path = folder / f"{prefix}{TENSOR_FILE}"
    _check_tensor_file(path, header["tensors"], max_bytes)
    try:
        tensors = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); save the model again or fetch a new copy.") from error
    content = {k: decode(header[k], tensors) for k in ("init_params", "registry", "attributes")}
    state = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    return SavedModel(header["class"], header["version"], list(header["var_names"]), **content, state=state)


_HEADER = {
    "class": str, "version": str, "var_names": list, "init_params": dict, "registry": dict, "attributes": dict,
    "tensors": dict,
}  # fmt: skip


def read_header(folder: Path, prefix: str) -> dict[str, Any]:
    path = folder / f"{prefix}{JSON_FILE}"
    if not path.is_file():
        raise FileFormatError(f"There is no {path.name} in {folder}.{_hint(folder)}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise FileFormatError(f"{path} has {path.stat().st_size} bytes, more than any model description needs.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is no valid JSON ({error}); it is damaged or cut off.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FileFormatError(f"{path} does not describe a model of sccausal.")
    schema = header.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise FileFormatError(f"{path} names no valid schema number ({schema!r}).")
    if schema > SCHEMA:
        raise FileFormatError(
            f"{path} was written by sccausal {header.get('version')} in schema {schema}; this version ({__version__}) "
            f"reads up to {SCHEMA}. Update with `pip install -U sccausal`."
        )
    wrong = [k for k, kind in _HEADER.items() if not isinstance(header.get(k), kind)]
    if wrong:
        raise FileFormatError(f"{path} lacks or garbles {', '.join(wrong)}; it is damaged.")
    return header


def _hint(folder: Path) -> str:
    if (folder / "model.pt").is_file():
        return " It holds model.pt, scvi-tools' own pickled format, which sccausal does not open."
    return " Give the folder that was passed to save()." if folder.is_dir() else " The folder does not exist."


def _check_tensor_file(path: Path, claim: dict[str, Any], max_bytes: int | None) -> None:
    if not path.is_file():
        raise FileFormatError(f"{path} is missing; a saved model needs it beside {JSON_FILE}.")
    size = path.stat().st_size
    if max_bytes is not None and size > max_bytes:
        raise FileFormatError(
            f"{path} has {size} bytes, more than max_bytes={max_bytes}; raise it if you trust the file."
        )
    if size != claim.get("bytes"):
        raise FileFormatError(
            f"{path} has {size} bytes where {claim.get('bytes')} were written; it is cut off or altered."
        )
    _check_claimed_size(path, size)
    if _digest(path) != claim.get("sha256"):
        raise FileFormatError(f"The content of {path} is not what was saved (its hash differs); fetch a new copy.")


def _check_claimed_size(path: Path, size: int) -> None:
    """Compare the sizes that the file's own header claims with the bytes that are there, before any allocation."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise FileFormatError(f"{path} claims a header of {length} bytes but has only {size}.")
        try:
            entries = json.loads(stream.read(length))
            end = max((e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"The header of {path} is damaged ({error}).") from error
    if 8 + length + end != size:
        raise FileFormatError(f"{path} claims {8 + length + end} bytes but has {size}.")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_for_scvi(
    dir_path: str, load_adata: bool, prefix: str | None = None, map_location: Any = None
) -> tuple[dict[str, Any], list[str], dict[str, torch.Tensor], Any]:
    """A saved model as scvi-tools' private reader returns it: attributes, genes, module state, AnnData."""
    saved = read_model(dir_path, prefix or "")
    attributes = {**saved.attributes, "registry_": saved.registry, "init_params_": saved.init_params}
    state = {k: v.to(map_location) if map_location is not None else v for k, v in saved.state.items()}
    adata = read_saved_anndata(dir_path, prefix or "") if load_adata else None
    return attributes, saved.var_names, state, adata


def read_saved_anndata(dir_path: str | Path, prefix: str = "") -> Any:
    """AnnData that was saved with the model, or ``None``."""
    from anndata import read_h5ad

    path = Path(dir_path) / f"{prefix}{ANNDATA_FILE}"
    return read_h5ad(path) if path.is_file() else None
