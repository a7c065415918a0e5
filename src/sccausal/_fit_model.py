"""Which models `sccausal fit` trains, and how the options of the command line become their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sccausal._errors import SetupError, unknown_name
from sccausal._steps import Steps

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal._workflow import FitSettings

MODELS = {
    "scconcrl": "ScConCRL",
    "gcrlvae": "GCRLVAE",
    "discrepancyvae": "DiscrepancyVAE",
    "causcell": "CausCell",
    "lcd": "LCD",
    "citevae": "CITEVAE",
}
"""Name on the command line and class; all predict cells."""

# option of the command line -> (field of FitSettings, argument of setup_anndata it becomes)
_SETUP = {
    "--condition-key": ("condition_key", "condition_key"),
    "--intervention-key": ("intervention_key", "intervention_key"),
    "--time-key": ("time_key", "time_key"),
    "--concept": ("concepts", "concept_keys"),
}


def check_model(settings: FitSettings) -> None:
    """Refuse options that the model cannot honour.

    Raises
    ------
    sccausal._errors.UnknownNameError
        There is no such model.
    sccausal._errors.SetupError
        An option belongs to other models, or one that the model needs is not given.
    """
    if settings.model.lower() not in MODELS:
        raise unknown_name("model", settings.model, MODELS, "the command line")
    cls = _class_of(settings)
    for option, (name, argument) in _SETUP.items():
        taken = inspect.signature(cls.setup_anndata).parameters
        if getattr(settings, name) and argument not in taken:
            able = [n for n in MODELS if argument in inspect.signature(_class_named(n).setup_anndata).parameters]
            raise SetupError(f"{cls.__name__} takes no {option}; models that do: {', '.join(able)}.")
    if settings.edges and cls.__name__ != "CausCell":
        raise SetupError(f"--edge is the graph of concepts of causcell; {cls.__name__} has none.")
    if (settings.activities is None) == (cls.__name__ == "GCRLVAE"):
        raise SetupError(
            "--activities (sets of genes, .gmt) belongs to gcrlvae, which needs it; without sets take discrepancyvae."
        )
    if cls.__name__ == "CITEVAE" and settings.time_key is None:
        raise SetupError("CITEVAE needs --time-key, a column of obs with the times.")


def train_model(train: AnnData, out: Path, settings: FitSettings, steps: Steps, *, resume: bool) -> Any:
    """The trained model: the one in ``out`` if the same run finished it, otherwise a new one, saved there."""
    import scvi

    from sccausal import models

    folder = out / "model"
    if resume and (folder / "model.json").is_file():
        steps.say("taken from the folder; --overwrite trains anew")
        return models.load_model(folder)
    cls = _class_of(settings)
    scvi.settings.seed = settings.seed
    cls.setup_anndata(train, **_setup_arguments(cls, settings))
    try:
        model: Any = cls(train, **_model_arguments(cls, settings))
    except TypeError as error:
        raise SetupError(f"{cls.__name__} does not take an argument given by --set: {error}") from error
    model.train(max_epochs=settings.epochs, checkpoint_dir=str(out / "checkpoint"))
    model.save(folder, save_anndata=True, overwrite=True)
    return model


def parse_edges(edges: Sequence[str]) -> dict[str, list[str]]:
    """``["age->state"]`` as ``{child: [parents]}``.

    Raises
    ------
    sccausal._errors.SetupError
        An edge is not written as ``parent->child``.
    """
    graph: dict[str, list[str]] = {}
    for edge in edges:
        parent, arrow, child = (part.strip() for part in edge.partition("->"))
        if not (parent and arrow and child):
            raise SetupError(f"--edge needs PARENT->CHILD, got {edge!r}.")
        graph.setdefault(child, []).append(parent)
    return graph


def _class_named(name: str) -> Any:
    from sccausal import models

    return models.model_classes()[MODELS[name]]


def _class_of(settings: FitSettings) -> Any:
    return _class_named(settings.model.lower())


def _setup_arguments(cls: Any, settings: FitSettings) -> dict[str, Any]:
    wished = {
        "layer": None if settings.likelihood == "gaussian" else "counts",
        "batch_key": settings.batch_key,
        "labels_key": settings.labels_key,
        "control": settings.control,
        "sep": settings.sep,
        **settings.perturbed,
        "time_key": settings.time_key,
        "concept_keys": list(settings.concepts) or ([settings.labels_key] if settings.labels_key else None),
    }
    taken = inspect.signature(cls.setup_anndata).parameters
    return {name: value for name, value in wished.items() if name in taken}


def _model_arguments(cls: Any, settings: FitSettings) -> dict[str, Any]:
    taken = inspect.signature(cls.__init__).parameters
    arguments: dict[str, Any] = {}
    if "gene_likelihood" in taken:
        arguments["gene_likelihood"] = settings.likelihood
    elif settings.likelihood != "gaussian":
        raise SetupError(f"{cls.__name__} has no --likelihood; its noise model is an argument (--set).")
    if settings.edges:
        arguments["dag"] = parse_edges(settings.edges)
    if settings.activities is not None:
        arguments["activities"] = settings.activities
    if settings.regulators is not None:
        if "regulators" not in taken:
            raise SetupError(f"{cls.__name__} takes no --regulators.")
        arguments["regulators"] = list(settings.regulators)
    return {**arguments, **settings.model_kwargs}
