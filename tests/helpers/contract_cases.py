"""The models that the contract is run over: one case per model and kind of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import notebook_model
import scanpy as sc
import scvi
from anndata import AnnData
from toy_model import TOY_SETUP, TOY_TRAIN, ToyModel, toy_data

from sccausal.datasets import simulate_perturb_seq, simulate_time_course
from sccausal.models import CITEVAE, GCRLAE, GCRLVAE, LCD, CausalModel, CausCell, DiscrepancyVAE, ScConCRL


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
        Canonical label of the intervention whose cells ``rank`` must recognise.
    combines
        Whether combinations exist.
    slow
        Left out of the default run.
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
    slow: bool = False

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


@cache
def _simulated(condition: bool, counts: bool) -> AnnData:
    if condition:
        adata = simulate_perturb_seq(
            400, 60, 0, n_types=2, n_batches=2, condition=True, condition_strength=3.0, seed=1,
            sortability=False,
        )  # fmt: skip
    else:
        adata = simulate_perturb_seq(
            420, 60, 3, n_batches=2, n_doubles=3, interventions="activation", doses=1.5, strength=4.0,
            library_size=4000.0, seed=1, sortability=False,
        )  # fmt: skip
    adata = AnnData(adata.X, obs=adata.obs, var=adata.var)
    if counts:
        adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def simulated(seed: int = 0) -> AnnData:
    """Cells under activations of three genes and of their pairs, log-normalised; the same cells for every seed."""
    return _simulated(False, False).copy()


def counted(seed: int = 0) -> AnnData:
    """The cells of :func:`simulated` with their counts in a layer."""
    return _simulated(False, True).copy()


@cache
def _followed() -> AnnData:
    adata = simulate_time_course(
        14, 60, 3, (1.0, 2.0, 4.0), n_batches=2, n_doubles=3, strength=4.0, library_size=4000.0,
        differentiation=0.5, seed=1,
    )  # fmt: skip
    adata = AnnData(adata.X, obs=adata.obs, var=adata.var)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def followed(seed: int = 0) -> AnnData:
    """Cells under three activations and their pairs at two times, log-normalised, counts in a layer."""
    return _followed().copy()


def stimulated(seed: int = 0) -> AnnData:
    """Two cell types with and without a stimulus; counts in a layer."""
    return _simulated(True, True).copy()


_INTERVENED = {"batch_key": "batch", "intervention_key": "intervention", "control": "control"}
_SHORT = {"max_epochs": 8, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False}
# sets of genes as a community or a pathway would give them; two targets are in one set each, the third in none
_SETS = {
    "first": [f"G{i:04d}" for i in range(2, 14)],
    "second": [f"G{i:04d}" for i in range(14, 26)],
    "third": [f"G{i:04d}" for i in range(26, 38)],
}

CASES = [
    Case(
        name="toy",
        model=ToyModel,
        data=toy_data,
        setup=TOY_SETUP,
        train=TOY_TRAIN,
        pair=("g0", "g1"),
        best="g0+g1",
    ),
    Case(
        name="scconcrl",
        model=ScConCRL,
        data=simulated,
        setup={
            "batch_key": "batch",
            "labels_key": "cell_type",
            "intervention_key": "intervention",
            "control": "control",
        },
        train={"max_epochs": 8, "batch_size": 128, "accelerator": "cpu", "enable_progress_bar": False},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
    ),
    Case(
        name="scconcrl-counts",
        model=ScConCRL,
        data=stimulated,
        setup={
            "layer": "counts",
            "batch_key": "batch",
            "labels_key": "cell_type",
            "condition_key": "condition",
            "control": "control",
        },
        init={"gene_likelihood": "nb", "n_domain_latent": 8},
        train={"max_epochs": 8, "batch_size": 128, "accelerator": "cpu", "enable_progress_bar": False},
        pair=("stimulated", "control"),
        best="stimulated",
        combines=False,
        slow=True,
    ),
    Case(
        name="gcrl-ae",
        model=GCRLAE,
        data=simulated,
        setup=_INTERVENED,
        init={"activities": _SETS},
        train=_SHORT,
        pair=("G0005", "G0017"),
        best="G0005+G0017",
    ),
    Case(
        name="gcrl-vae",
        model=GCRLVAE,
        data=simulated,
        setup=_INTERVENED,
        init={"activities": _SETS},
        train=_SHORT,
        pair=("G0005", "G0017"),
        best="G0005+G0017",
    ),
    Case(
        name="discrepancy-vae",
        model=DiscrepancyVAE,
        data=simulated,
        setup=_INTERVENED,
        init={"intervention": "do", "l1_on": "graph"},
        train=_SHORT,
        pair=("G0005", "G0017"),
        best="G0005+G0017",
        slow=True,
    ),
    Case(
        name="gcrl-vae-counts",
        model=GCRLVAE,
        data=counted,
        setup={**_INTERVENED, "layer": "counts"},
        init={"activities": _SETS, "gene_likelihood": "nb"},
        train=_SHORT,
        pair=("G0005", "G0017"),
        best="G0005+G0017",
        slow=True,
    ),
    Case(
        name="lcd",
        model=LCD,
        data=simulated,
        setup=_INTERVENED,
        init={"n_hidden": 64},
        train={"max_epochs": 8, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
    ),
    Case(
        name="lcd-zip",
        model=LCD,
        data=counted,
        setup={**_INTERVENED, "layer": "counts"},
        init={"n_hidden": 64, "noise_model": "zip", "n_states": 200},
        train={"max_epochs": 8, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
        slow=True,
    ),
    Case(
        name="causcell",
        model=CausCell,
        data=simulated,
        setup={"concept_keys": ["batch"], "intervention_key": "intervention", "control": "control"},
        init={"n_latent": 16, "n_hidden": 48, "n_tokens": 2, "n_layers": 1, "n_encoder": 96},
        train={"max_epochs": 40, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
    ),
    Case(
        name="causcell-counts",
        model=CausCell,
        data=counted,
        setup={
            "layer": "counts",
            "concept_keys": ["batch"],
            "intervention_key": "intervention",
            "control": "control",
        },
        init={
            "gene_likelihood": "nb",
            "n_latent": 16,
            "n_hidden": 48,
            "n_tokens": 2,
            "n_layers": 1,
            "n_encoder": 96,
        },  # fmt: skip
        train={"max_epochs": 60, "batch_size": 64, "accelerator": "cpu", "enable_progress_bar": False},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
        slow=True,
    ),
    Case(
        name="citevae",
        model=CITEVAE,
        data=followed,
        setup={**_INTERVENED, "time_key": "time"},
        init={"n_responsive": 3, "n_invariant": 4, "n_hidden": 32},
        train={**_SHORT, "max_epochs": 12},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
    ),
    Case(
        name="citevae-counts",
        model=CITEVAE,
        data=followed,
        setup={**_INTERVENED, "time_key": "time", "layer": "counts"},
        init={"n_responsive": 3, "n_invariant": 4, "n_hidden": 32, "gene_likelihood": "nb"},
        train={**_SHORT, "max_epochs": 12},
        pair=("G0005", "G0017"),
        best="G0005+G0017",
        slow=True,
    ),
]

# a source package without the notebooks has one case less
if notebook_model.NOTEBOOK.exists():
    CASES.append(
        Case(
            name="notebook",
            model=notebook_model.load().FactorShift,
            data=toy_data,
            setup=TOY_SETUP,
            init={"n_latent": 4},
            train={**TOY_TRAIN, "max_epochs": 15, "plan_kwargs": {"lr": 0.01}},
            pair=("g0", "g1"),
            best="g0+g1",
        )
    )
