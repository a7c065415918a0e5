"""The models that the contract is run over: one case per model and kind of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import scvi
from anndata import AnnData
from toy_model import TOY_SETUP, TOY_TRAIN, ToyModel, toy_data

from sccausal.models import CausalModel


@dataclass(frozen=True)
class Case:
    """How one model is set up and trained in the contract.

    Parameters
    ----------
    name
        Shown in the name of the test.
    model
        The model class.
    data
        Data for a seed.
    setup, init, train
        Arguments of ``setup_anndata``, the constructor and ``train``.
    pair
        Two single interventions with different effects.
    best
        Intervention whose cells ``rank`` must find, and the candidates.
    combines
        Whether combinations exist.
    """

    name: str
    model: type[CausalModel]
    data: Callable[[int], AnnData]
    setup: dict[str, Any]
    train: dict[str, Any]
    pair: tuple[str, str]
    best: str
    init: dict[str, Any] = field(default_factory=dict)
    combines: bool = True
    loss_kwarg: str | None = None

    @property
    def key(self) -> str:
        """Column of the interventions."""
        return self.setup.get("intervention_key") or self.setup["condition_key"]

    def fresh(self, seed: int = 0, adata: AnnData | None = None) -> CausalModel:
        """Untrained model on new data."""
        scvi.settings.seed = seed
        adata = self.data(seed) if adata is None else adata
        self.model.setup_anndata(adata, **self.setup)
        return self.model(adata, **self.init)

    def trained(self, seed: int = 0, **train: Any) -> CausalModel:
        """Trained model on new data."""
        model = self.fresh(seed)
        model.train(**{**self.train, **train})
        return model


CASES = [
    Case(
        name="toy",
        model=ToyModel,
        data=toy_data,
        setup=TOY_SETUP,
        train=TOY_TRAIN,
        pair=("g0", "g1"),
        best="g0+g1",
        loss_kwarg="ridge",
    )
]
