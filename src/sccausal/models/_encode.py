"""Python values as JSON plus tensors, without pickle.

Containers that JSON does not know are wrapped as ``{"__kind__": ..., ...}``; numeric arrays go to the tensor file and
leave their name behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sccausal._errors import FileFormatError, SetupError

_KIND = "__kind__"
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Encoder:
    """Turns values into JSON; collects their arrays in :attr:`tensors`."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def __call__(self, value: Any, where: str) -> Any:
        """JSON form of ``value``; ``where`` names it in errors.

        Raises
        ------
        sccausal._errors.SetupError
            The value is of a type that cannot be written without pickle.
        """
        if value is None or isinstance(value, bool | str | int) and not isinstance(value, Enum):
            return value
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else {_KIND: "float", "value": str(float(value))}
        if isinstance(value, np.bool_ | np.integer):
            return value.item()
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, torch.Tensor):
            return {_KIND: "tensor", "name": self._store(value.detach().cpu())}
        if sparse.issparse(value):
            return self._sparse(value, where)
        if isinstance(value, pd.DataFrame | pd.Series | pd.Index):
            return self._pandas(value, where)
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        return self._container(value, where)

    def _container(self, value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            if all(isinstance(k, str) for k in value) and _KIND not in value:
                return {k: self(v, f"{where}[{k!r}]") for k, v in value.items()}
            pairs = [[self(k, where), self(v, f"{where}[{k!r}]")] for k, v in value.items()]
            return {_KIND: "dict", "pairs": pairs}
        if isinstance(value, list):
            return [self(v, f"{where}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, tuple | set | frozenset):
            items = list(value) if isinstance(value, tuple) else sorted(value, key=str)
            kind = "tuple" if isinstance(value, tuple) else type(value).__name__
            return {_KIND: kind, "items": [self(v, f"{where}[{i}]") for i, v in enumerate(items)]}
        if hasattr(value, "to_dict") and hasattr(type(value), "from_dict"):
            raise SetupError(f"{where} is a {type(value).__name__}; store {where}.to_dict() so that it can be saved.")
        raise SetupError(
            f"{where} is a {type(value).__name__}, which cannot be saved without pickle. "
            "Use plain values, arrays, frames, or a buffer of the module."
        )

    def _array(self, value: np.ndarray, where: str) -> dict[str, Any]:
        if value.dtype.kind in "biuf":
            tensor = torch.from_numpy(np.ascontiguousarray(value).copy().reshape(value.shape))
            return {_KIND: "array", "name": self._store(tensor)}
        if value.dtype.kind in "OUS":
            flat = [self(v, where) for v in value.astype(object).ravel().tolist()]
            return {_KIND: "objects", "shape": list(value.shape), "items": flat, "text": value.dtype.kind == "U"}
        raise SetupError(f"{where} is an array of {value.dtype}, which cannot be saved; convert it to numbers or text.")

    def _sparse(self, value: Any, where: str) -> dict[str, Any]:
        csr = sparse.csr_matrix(value)
        parts = {n: self._array(getattr(csr, n), where) for n in ("data", "indices", "indptr")}
        return {_KIND: "csr", "shape": list(csr.shape), **parts}

    def _pandas(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, pd.Index):
            return {_KIND: "index", "values": self._values(value.to_series(), where), "label": self(value.name, where)}
        index = self._pandas(value.index, where)
        if isinstance(value, pd.Series):
            return {
                _KIND: "series", "values": self._values(value, where), "index": index, "label": self(value.name, where)
            }  # fmt: skip
        columns = [self(c, where) for c in value.columns]
        values = [self._values(value.iloc[:, j], f"{where}[{c!r}]") for j, c in enumerate(value.columns)]
        axis = self(value.columns.name, where)
        return {_KIND: "frame", "columns": columns, "values": values, "index": index, "axis": axis}

    def _values(self, column: pd.Series, where: str) -> Any:
        values = column.to_numpy()
        if values.dtype.kind == "O":
            # scvi-tools logs numbers into columns of objects
            number = [v.item() if isinstance(v, torch.Tensor) and v.ndim == 0 else v for v in values]
            values = np.asarray(number, dtype=object)
        return self._array(np.asarray(values), where)

    def _store(self, tensor: torch.Tensor) -> str:
        name = f"attribute.{len(self.tensors)}"
        self.tensors[name] = tensor.contiguous().clone()
        return name


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Inverse of :class:`Encoder`.

    Raises
    ------
    sccausal._errors.FileFormatError
        The content is not what an encoder writes.
    """
    if isinstance(value, list):
        return [decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {k: decode(v, tensors) for k, v in value.items()}
    try:
        return _DECODERS[value[_KIND]](value, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"A value of the kind {value.get(_KIND)!r} is damaged ({error}).") from error


def _decode_array(value: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    return tensors[value["name"]].cpu().numpy().copy()


def _decode_objects(value: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    array = np.empty(len(value["items"]), dtype=object)
    array[:] = [decode(v, tensors) for v in value["items"]]
    return (array.astype(str) if value["text"] else array).reshape(value["shape"])


def _decode_csr(value: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> sparse.csr_matrix:
    parts = tuple(decode(value[n], tensors) for n in ("data", "indices", "indptr"))
    return sparse.csr_matrix(parts, shape=tuple(value["shape"]))


def _decode_frame(value: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    index = decode(value["index"], tensors)
    columns = pd.Index([decode(c, tensors) for c in value["columns"]], name=decode(value["axis"], tensors))
    data = {j: decode(v, tensors) for j, v in enumerate(value["values"])}
    return pd.DataFrame(data, index=index).set_axis(columns, axis=1)


_DECODERS: dict[str, Any] = {
    "float": lambda v, t: _FLOATS[v["value"]],
    "tensor": lambda v, t: t[v["name"]].clone(),
    "array": _decode_array,
    "objects": _decode_objects,
    "csr": _decode_csr,
    "tuple": lambda v, t: tuple(decode(x, t) for x in v["items"]),
    "set": lambda v, t: {decode(x, t) for x in v["items"]},
    "frozenset": lambda v, t: frozenset(decode(x, t) for x in v["items"]),
    "dict": lambda v, t: {decode(k, t): decode(x, t) for k, x in v["pairs"]},
    "index": lambda v, t: pd.Index(decode(v["values"], t), name=decode(v["label"], t)),
    "series": lambda v, t: pd.Series(
        decode(v["values"], t), index=decode(v["index"], t), name=decode(v["label"], t)
    ),
    "frame": _decode_frame,
}  # fmt: skip
