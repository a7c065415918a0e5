"""How cells reach a model: interventions, registered fields, pairs of cells, and splits that cannot leak."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sccausal.data._interventions import Intervention, InterventionCodec
from sccausal.data._keys import KEYS
from sccausal.data._prediction import UNITS, prediction_anndata

if TYPE_CHECKING:
    from sccausal.data._build import build_fields, restore_on_error
    from sccausal.data._fields import InterventionField, MuDataInterventionField
    from sccausal.data._pairing import PairedDataset, PairGroup, StratifiedPairSampler
    from sccausal.data._splits import Split
    from sccausal.data._splitter import PairedDataSplitter
    from sccausal.data._validation import check_matrix, check_obs_column

# these import torch and scvi-tools, which baselines and metrics must not pay for
_LAZY = {
    "InterventionField": "_fields",
    "MuDataInterventionField": "_fields",
    "PairGroup": "_pairing",
    "PairedDataSplitter": "_splitter",
    "PairedDataset": "_pairing",
    "Split": "_splits",
    "StratifiedPairSampler": "_pairing",
    "build_fields": "_build",
    "check_matrix": "_validation",
    "check_obs_column": "_validation",
    "restore_on_error": "_build",
}

__all__ = [
    "KEYS",
    "UNITS",
    "Intervention",
    "InterventionCodec",
    "InterventionField",
    "MuDataInterventionField",
    "PairGroup",
    "PairedDataSplitter",
    "PairedDataset",
    "Split",
    "StratifiedPairSampler",
    "build_fields",
    "check_matrix",
    "check_obs_column",
    "prediction_anndata",
    "restore_on_error",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"sccausal.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sccausal.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
